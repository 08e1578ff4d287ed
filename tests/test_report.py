"""`python -m nfc_splat.report`: what the file says, of whole and of damaged runs, and that nothing in it can act."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from eval_toys import ToySplit
from PIL import Image
from report_runs import HOSTILE, STEPS, append, edit, hostile_run, write_run, write_surface

from nfc_splat.errors import UserError
from nfc_splat.eval.mesh import Shown
from nfc_splat.files import read_json, write_json
from nfc_splat.report.__main__ import main
from nfc_splat.report.folder import read_runs
from nfc_splat.report.page import Plot, Table, write_report
from nfc_splat.report.pictures import Detail, encoded
from nfc_splat.report.settings import command_line, differences, origin
from nfc_splat.report.summary import summarize
from nfc_splat.report.surface import surfaces
from nfc_splat.report.views import MAX_PICTURES, view_groups

VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Page(HTMLParser):
    """The elements of a file as (tag, attributes), its text, and the content of scripts and styles."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.code: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.code:
            self.code[self.open[-1]].append(data)
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, key: str) -> list[float]:
        """The numbers behind the cells or tiles of a column."""
        return [float(a["data-value"]) for _, a in self.elements if a.get("data-key") == key and "data-value" in a]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with two runs of the same photographs, that tests copy."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "plain")
    write_run(folder / "bright", brightness=0.95, train={"loss": "classification", "loss_weight": 2.0, "seed": 43})
    return folder


@pytest.fixture
def runs(made, tmp_path) -> dict[str, Path]:
    return {path.name: Path(shutil.copytree(path, tmp_path / path.name)) for path in made.iterdir()}


def report(tmp_path: Path, *runs: Path, **options) -> Page:
    return Page(write_report(runs, tmp_path / "page.html", **options))


# ----------------------------------------------------------------------------------------------- what it says


def test_the_numbers_are_those_of_the_summary(runs, tmp_path):
    page = report(tmp_path, *runs.values())
    found = [read_json(run / "eval" / "summary.json") for run in runs.values()]
    for key in ("psnr", "ssim", "train_seconds", "peak_memory_mb", "primitives"):
        assert page.values(key) == [summary[key] for summary in found]
    for summary in found:
        assert f"{summary['psnr']:.2f}" in page.text
        assert f"{summary['ssim']:.4f}" in page.text
    assert page.values("lpips") == []
    assert "lpips_alex" in page.text
    assert "1m23s" in page.text


def test_memory_of_the_gpu_has_its_own_column_where_one_was_used(runs, tmp_path):
    page = report(tmp_path, *runs.values())
    assert "GPU memory" not in page.text
    edit(runs["plain"] / "eval" / "summary.json", peak_gpu_memory_mb=1234)
    page = report(tmp_path, *runs.values())
    assert page.values("peak_gpu_memory_mb") == [1234]
    assert page.text.index("GPU memory") < page.text.index("1,234 MB")


def test_the_protocol_is_stated(runs, tmp_path):
    page = report(tmp_path, runs["plain"])
    protocol = read_json(runs["plain"] / "eval" / "summary.json")["protocol"]
    assert f"Protocol default ({protocol['reproduces']}), on 5 test views of 40x30 pixels" in page.text
    assert protocol["psnr"] in page.text
    assert "padding valid" in page.text


def test_the_best_of_what_can_be_compared_is_marked(runs):
    summary = summarize(read_runs(list(runs.values())))
    (block,) = summary.blocks
    assert not summary.warnings
    cells = {row.name: row.cells for row in block.rows}
    assert cells["bright"]["psnr"].value > cells["plain"]["psnr"].value
    assert (cells["bright"]["psnr"].best, cells["plain"]["psnr"].best) == (True, False)
    assert not any(row["train_seconds"].best for row in cells.values())  # equal


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "graphdeco"}, "protocol: default (plain); graphdeco (other)"),
        ({"scene": "/data/kitchen"}, "scene: room (plain); kitchen (other)"),
        ({"split": ToySplit(4)}, "number of views: 5 (plain); 4 (other)"),
        ({"split": ToySplit(size=(20, 15))}, "resolution: 40x30 (plain); 20x15 (other)"),
    ],
)
def test_what_cannot_be_compared_is_said_and_not_ranked(runs, tmp_path, changes, said):
    other = write_run(tmp_path / "other", brightness=0.95, **changes)
    summary = summarize(read_runs([runs["plain"], other]))
    assert said in summary.warnings
    assert len(summary.blocks) == 2
    assert not any(cell.best for block in summary.blocks for row in block.rows for cell in row.cells.values())
    page = report(tmp_path, runs["plain"], other)
    assert "Not everything here can be compared" in page.text
    assert said in page.text


def test_runs_of_another_machine_are_not_ranked_by_time(runs):
    for run, seconds, cpu in ((runs["plain"], 10.0, "fast"), (runs["bright"], 99.0, "slow")):
        edit(run / "eval" / "summary.json", train_seconds=seconds)
        edit(run / "config.json", hardware={"cpu": cpu})
    marked = lambda: [row.cells["train_seconds"].best for row in summarize(read_runs([*runs.values()])).blocks[0].rows]  # noqa: E731
    assert not any(marked())
    edit(runs["bright"] / "config.json", hardware={"cpu": "fast"})
    assert sorted(marked()) == [False, True]
    edit(runs["bright"] / "config.json", processes=2)
    assert not any(marked())


def test_only_settings_that_differ_are_listed(runs):
    found = differences(read_runs([runs["plain"], runs["bright"]]))
    assert {row.name: row.values for row in found.rows} == {
        "loss": ("regression", "classification"),
        "loss_weight": ("null", "2.0"),
        "seed": ("42", "43"),
    }
    assert found.partial == 0


def test_settings_that_only_one_method_has_are_counted(runs):
    record = read_json(runs["bright"] / "config.json")
    record["train"]["model"] = {"steps": 2 * STEPS, "voxels": 5}
    write_json(runs["bright"] / "config.json", record)
    found = differences(read_runs([runs["plain"], runs["bright"]]))
    assert ("model.steps", (str(STEPS), str(2 * STEPS))) in [(row.name, row.values) for row in found.rows]
    assert found.partial == 2  # voxels, max_primitives


def test_what_repeats_a_run_is_a_command_line(runs, tmp_path):
    page = report(tmp_path, runs["plain"])
    assert "python -m nfc_splat.train /data/room --out runs/plain --seed 42" in page.text
    assert f"python -m nfc_splat.eval images {runs['plain']}" in page.text
    for words in ("toy processor, 2 cores", "ab" * 20, "torch 2.13.0", "2026-11-20T12:00:00", '"max_primitives": 500'):
        assert words in page.text
    assert command_line(["/a/nfc_splat/train.py", "my scene", "--out", "$(x)"]) == (
        "python -m nfc_splat.train 'my scene' --out '$(x)'"
    )
    assert command_line(["my trainer.py", "a"]) == "python 'my trainer.py' a"


def test_how_many_processes_trained_is_a_setting_and_part_of_the_command(runs, tmp_path):
    command = ["/code/nfc_splat/train.py", "--resume", "runs/plain"]
    started = {"command": ["/code/nfc_splat/train.py", "/data/room"], "processes": 3}
    edit(runs["plain"] / "config.json", processes=2, command=command, earlier=[started])
    found = differences(read_runs([runs["plain"], runs["bright"]]))
    assert ("processes", ("2", "1")) in [(row.name, row.values) for row in found.rows]
    (run,) = read_runs([runs["plain"]])
    assert origin(run).facts["Processes"] == "2"
    assert origin(run).commands[:2] == (
        "torchrun --nproc-per-node 3 -m nfc_splat.train /data/room",
        "torchrun --nproc-per-node 2 -m nfc_splat.train --resume runs/plain",
    )
    assert command_line(["my trainer.py", "a"], 2) == "torchrun --nproc-per-node 2 'my trainer.py' a"


@pytest.mark.parametrize("count", ["<b>", True, [2], 0, None])
def test_what_is_no_number_of_processes_is_one(runs, count):
    edit(runs["plain"] / "config.json", processes=count)
    (run,) = read_runs([runs["plain"]])
    assert origin(run).commands[0].startswith("python -m nfc_splat.train /data/room")


def test_views_of_several_runs_are_the_same_views(runs):
    (group,) = view_groups(read_runs(list(runs.values())))
    names = [view.name for view in read_runs([runs["plain"]])[0].views]
    assert {shown.name for shown in group.views} <= set(names)
    for shown in group.views:
        assert [column.name for column in shown.columns] == list(runs)
        assert sum(column.best for column in shown.columns) == 1
        assert shown.truth.uri.startswith("data:image/webp;base64,")
        assert all(picture.uri for column in shown.columns for picture in (column.render, column.error, column.depth))
    tags = [tag for shown in group.views for column in shown.columns for tag in column.tags]
    assert sorted(tags) == ["best", "best", "median", "median", "worst", "worst"]


def test_no_view_is_the_best_of_equal_ones(made, tmp_path):
    copies = [Path(shutil.copytree(made / "plain", tmp_path / f"run{index}")) for index in range(2)]
    copies.append(made / "bright")
    (group,) = view_groups(read_runs(copies[:2]))
    assert not any(column.best for shown in group.views for column in shown.columns)
    (group,) = view_groups(read_runs(copies))
    assert [[column.best for column in shown.columns] for shown in group.views] == [[False, False, True]] * 3


def test_other_photographs_are_another_group(runs, tmp_path):
    other = write_run(tmp_path / "other")
    path = min((other / "gt").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert len(view_groups(read_runs([*runs.values(), other]))) == 2


def test_small_pictures_are_those_of_the_run_exactly(runs):
    (run,) = read_runs([runs["plain"]])
    shown = view_groups([run])[0].views[0]
    view = next(view for view in run.views if view.name == shown.name)
    for kind, picture in (("renders", shown.columns[0].render), ("gt", shown.truth)):
        kept = Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(Image.open(runs["plain"] / kind / view.file)))


def test_large_pictures_are_reduced():
    pixels = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8), 8, 0), 8, 1)
    picture = encoded(pixels, Detail(160), "noise")
    assert picture.size == (160, 120)
    assert picture.uri.startswith("data:image/jpeg;base64,")
    kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))).astype(float)
    assert np.abs(kept - pixels[::2, ::2]).mean() < 4  # colours are not reduced further, as JPEG does by default


def test_the_number_of_pictures_has_a_bound(made, tmp_path):
    copies = [Path(shutil.copytree(made / "plain", tmp_path / f"run{index}")) for index in range(90)]
    for index, copy in enumerate(copies):
        edit(copy / "config.json", train={"scene": "/data/room", "loss_weight": index})
    page = report(tmp_path, *copies)
    assert len([image for image in page.all("img") if "src" in image]) <= MAX_PICTURES
    assert "Pictures of the first 26 of these 90" in page.text
    assert len([a for _, a in page.elements if a.get("data-key") == "psnr"]) == 90


def test_runs_of_the_same_name_are_told_apart(made, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(made / "plain", tmp_path / place / "run")
    runs = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "a" / "." / "run"]
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run"]


def test_results_of_a_comparison_come_first(runs, tmp_path):
    table = Table("Table 1", [["method", "PSNR"], ["dvgo <i>", "31.5"]], numbers=(1,), notes=("mean of 3 seeds",))
    plot = Plot("PSNR over views", '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    page = report(tmp_path, *runs.values(), title="Few views", tables=[table], plots=[plot], notes=["by hand"])
    assert page.text.index("Table 1") < page.text.index("dvgo <i>") < page.text.index("mean of 3 seeds")
    assert page.text.index("mean of 3 seeds") < page.text.index("by hand") < page.text.index("Protocol default (")
    assert page.source.count("<title>Few views</title>") == 1
    (image,) = [a for a in page.all("img") if a.get("alt") == "PSNR over views"]
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"  # as an image, whose scripts no browser runs
    assert base64.b64decode(data).decode() == plot.svg


def test_the_words_before_the_numbers_name_the_row(runs, tmp_path):
    rows = [["method", "", "PSNR"], ["dvgo", "classification", "31.5"], ["nerf", "", "30.1"]]
    path = tmp_path / "page.html"
    write_report([runs["plain"]], path, tables=[Table("Table 1", rows, numbers=(2,)), Table("Table 2", rows)])
    heads = re.findall(r"<tr>(.*?)</tr>", path.read_text(), re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", re.sub(r"</?span[^>]*>", "", head)) for head in heads]
    assert cells[:3] == [["method, variant", "PSNR"], ["dvgo classification", "31.5"], ["nerf", "30.1"]]
    assert cells[4] == ["dvgo", "classification", "31.5"]  # without numbers the first column alone names it


# ----------------------------------------------------------------------------------------------- surfaces


def test_surfaces_are_shown_as_eval_mesh_shows_them(runs, tmp_path):
    write_surface(runs["plain"], accuracy=0.012)
    write_surface(runs["bright"], accuracy=0.010)
    Image.new("RGB", (60, 40), "teal").save(runs["bright"] / "mesh-eval" / "errors.png")
    found = surfaces(read_runs(list(runs.values())))
    assert found.comparable
    values = {surface.name: surface.rows[("accuracy", "cm")] for surface in found.found}
    record = read_json(runs["plain"] / "mesh-eval" / "metrics.json")
    shown = Shown("cm", 100.0, True)
    assert values["plain"].value == shown.value("accuracy", record["metrics"]["accuracy"]) == "1.205"
    assert values["plain"].interval == shown.value("accuracy", record["interval_95"]["accuracy"])
    assert values["plain"].floor == "0.1"
    assert (values["plain"].best, values["bright"].best) == (False, True)
    assert found.found[0].rows[("F-score < 5 cm", "%")].value == "80.00"
    page = report(tmp_path, *runs.values())
    assert page.text.count("mesh-eval/errors.png is missing") == 1
    assert [a["width"] for a in page.all("img") if "surface of bright" in a.get("alt", "")] == ["60"]
    assert "made up" in page.text


def test_surfaces_measured_otherwise_are_not_ranked(runs, tmp_path):
    write_surface(runs["plain"])
    write_surface(runs["bright"], accuracy=0.01, truth="other.ply")
    assert not any(entry.best for found in surfaces(read_runs([*runs.values()])).found for entry in found.rows.values())
    assert "These surfaces cannot be compared" in report(tmp_path, *runs.values()).text


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": {"accuracy": "<b>"}}', '{"protocol": {"name": "x"}}'])
def test_a_damaged_surface_is_a_reason(runs, tmp_path, content):
    write_surface(runs["plain"])
    (runs["plain"] / "mesh-eval" / "metrics.json").write_text(content)
    assert "mesh-eval/metrics.json: " in report(tmp_path, runs["plain"]).text


@pytest.mark.parametrize("name", [{"a": 1}, ["replica"], "unheard of"])
def test_a_surface_by_an_unknown_protocol_is_a_reason(runs, tmp_path, name):
    write_surface(runs["plain"])
    path = runs["plain"] / "mesh-eval" / "metrics.json"
    edit(path, protocol=read_json(path)["protocol"] | {"name": name})
    assert "expected the metrics of a surface as eval mesh writes them" in report(tmp_path, runs["plain"]).text


# ----------------------------------------------------------------------------------------------- what is missing


def test_an_unfinished_run_is_shown_as_far_as_it_got(runs, tmp_path):
    stopped = write_run(tmp_path / "stopped", measured=False)
    page = report(tmp_path, runs["plain"], stopped)
    assert f"Not finished: the log ends at step {STEPS // 2} of {STEPS}, eval/summary.json is missing." in page.text
    assert f"{STEPS // 2} of {STEPS}" in page.text
    (data,) = [json.loads(code) for code in page.code["script"] if code.startswith("{")]
    assert {line["variant"] for line in data["charts"][0]["lines"]} == {0, 1}
    page = report(tmp_path, stopped)
    assert "There are no views to show" in page.text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing: there are no curves."),
        (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl is empty"),
        (lambda run: append(run / "metrics.jsonl", '{"step": 9\nnonsense\n{"step": "a"}\n'), "3 line(s) of metrics"),
        (lambda run: append(run / "metrics.jsonl", '{"step": 9, "event": "skipped"}\n'), "the event 'skipped', 1 time"),
        (lambda run: (run / "config.json").write_text('{"a": NaN}'), "config.json: not valid JSON (NaN"),
        (lambda run: (run / "config.json").unlink(), "config.json is missing."),
        (lambda run: (run / "config.json").write_text("[1]"), "config.json: holds no JSON object."),
        (lambda run: (run / "eval/summary.json").write_text("{"), "summary.json: not valid JSON"),
        (lambda run: (run / "eval/per_view.json").unlink(), "eval/per_view.json is missing."),
        (lambda run: (run / "eval/per_view.json").write_text('[{"name": 3}]'), "1 entries are no views."),
        (lambda run: shutil.rmtree(run / "renders"), "is missing."),
        (lambda run: cut(run / "gt"), "cannot be decoded."),
        (lambda run: shutil.rmtree(run / "depth"), "This run was measured without keeping depth"),
        (lambda run: (run / "depth/depth.json").write_text("{}"), "depth.json: holds no near_far."),
        (lambda run: outside(run), "leaves the scene folder"),
    ],
)
def test_what_is_damaged_is_said(runs, tmp_path, damage, said):
    damage(runs["plain"])
    page = report(tmp_path, runs["plain"], runs["bright"])
    assert said in page.text
    assert "bright" in page.text


def cut(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:90])


def outside(run: Path) -> None:
    """The views' pictures are said to be somewhere else."""
    rows = read_json(run / "eval" / "per_view.json")
    write_json(run / "eval" / "per_view.json", [row | {"file": "../../../secret.png"} for row in rows])


def test_wrong_types_are_no_numbers(runs, tmp_path):
    edit(runs["plain"] / "eval" / "summary.json", psnr="<b>31</b>", ssim=True, primitives=[1], protocol=7, notes="no")
    edit(runs["plain"] / "config.json", train={"method": {"a": 1}, "model": 3}, earlier=7, command="rm", scene=[])
    page = report(tmp_path, runs["plain"], runs["bright"])
    assert len(page.values("psnr")) == len(page.values("ssim")) == len(page.values("primitives")) == 1


def test_integers_that_no_float_holds_are_no_numbers(runs, tmp_path):
    write_surface(runs["plain"])
    for name in ("eval/summary.json", "mesh-eval/metrics.json", "config.json"):
        text = (runs["plain"] / name).read_text()
        huge = re.sub(r'("(?:psnr|step|accuracy|per_mesh|seed|steps)": )[0-9.]+', rf"\g<1>1{'0' * 400}", text)
        assert huge != text
        (runs["plain"] / name).write_text(huge)
    page = report(tmp_path, runs["plain"], runs["bright"])
    assert len(page.values("psnr")) == 1
    (found,) = surfaces(read_runs([runs["plain"]])).found
    assert found.rows[("accuracy", "cm")].value == "-"
    assert found.rows[("completeness", "cm")].value == "1.205"


def test_a_folder_that_is_no_run_is_refused(runs, tmp_path):
    (tmp_path / "photos").mkdir()
    for folder in (tmp_path / "photos", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"{folder}: expected a run folder"):
            main([str(runs["plain"]), str(folder), "--out", str(tmp_path / "r.html")])
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "no RUN"), (["RUN", "--out", "page.txt"], "--out page.txt: expected"), (["RUN", "--outt", "a"], "--outt")],
)
def test_wrong_words_are_refused(runs, words, said):
    with pytest.raises(UserError, match=said):
        main([word.replace("RUN", str(runs["plain"])) for word in words])


def test_the_command_writes_where_it_says(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(runs["plain"])]) == 0
    assert "plain/report.html" in capsys.readouterr().out
    assert main([*map(str, runs.values()), "--title", "Two & more"]) == 0
    page = Page(Path("report.html"))
    assert "Two & more" in page.text
    assert "python -m nfc_splat.report" in page.text
    assert (runs["plain"] / "report.html").is_file()


# ----------------------------------------------------------------------------------------------- nothing acts


def test_hostile_names_are_text(tmp_path):
    runs = [hostile_run(tmp_path / name.replace("/", "")) for name in HOSTILE[:2]]
    page = report(tmp_path, *runs, title=HOSTILE[0])
    assert not page.open  # every element is closed where it should be
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert [a.get("type") for a in page.all("script")] == ["application/json", None]
    assert len(page.all("style")) == 1
    assert all(a["src"].startswith("data:image/") for a in page.all("img") if "src" in a)
    for name in HOSTILE:
        assert name in page.text
    json.loads(page.code["script"][0])
    assert "<" not in page.code["script"][0]


def test_nothing_outside_the_file_is_named(runs, tmp_path):
    page = report(tmp_path, *runs.values())
    for _, attributes in page.elements:
        for name in {"src", "href", "srcset", "action", "data", "poster"} & set(attributes):
            assert attributes[name].startswith(("data:", "#")), attributes
    assert "url(" not in page.code["style"][0]
    assert "@import" not in page.code["style"][0]
    assert not re.search(r"fetch|XMLHttpRequest|WebSocket|import\(|sendBeacon|innerHTML", page.code["script"][1])
    assert len(page.source) < 2_000_000


def test_the_policy_allows_our_script_and_style_alone(runs, tmp_path):
    page = report(tmp_path, runs["plain"])
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()  # noqa: E731
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert f"style-src 'sha256-{digest(page.code['style'][0])}'" in policy
    assert f"script-src 'sha256-{digest(page.code['script'][1])}'" in policy
    assert "unsafe" not in policy
    assert not any("style" in attributes for _, attributes in page.elements)  # which the policy would refuse


@pytest.mark.skipif(os.name == "nt", reason="names there are text")
def test_names_without_characters_are_written_escaped(made, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    shutil.copytree(made / "plain", folder)
    assert "run\\udcff" in report(tmp_path, folder).text
