"""The tables, plots and files of a comparison, from runs with made-up numbers."""

import csv
import json
import statistics
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from nfc_splat.compare.experiments import EXPERIMENTS
from nfc_splat.compare.measured import LENGTHS, RATIOS, measured, training_images
from nfc_splat.compare.paired import paired, two_sided_p
from nfc_splat.compare.plan import Budget, Case, Command, MeasuredScene, plan
from nfc_splat.compare.plot import _ticks, draw_plot
from nfc_splat.compare.published import ROOMS, published, published_mean
from nfc_splat.compare.records import log_path
from nfc_splat.compare.results import cases_of, report
from nfc_splat.compare.rows import _differences
from nfc_splat.compare.tables import Table, mean_table, scene_table
from nfc_splat.fields import METHODS
from nfc_splat.files import write_json


def leave(case, psnr, images=None, **more):
    """What a finished run leaves."""
    summary = {"psnr": psnr, "ssim": 0.9, "lpips": None, "train_seconds": 60.0, "peak_memory_mb": 500, "n_views": 4}
    summary |= {"seconds": 9.0, "median_seconds": 0.525, "primitives": None} | more
    write_json(case.folder / "eval" / "summary.json", summary)
    write_json(case.folder / "config.json", {"scene": {"training_images": images or "all"}})
    return case


def finished(folder, method, seed, psnr, variant="regression", scene="a", **more):
    """A case whose run is there."""
    run = folder / f"{scene}-{method}-{variant}-{seed}"
    return leave(case_of(run, scene, method, variant, seed), psnr, **more)


def case_of(run, scene, method, variant, seed):
    commands = (Command(("x",), run / "eval/summary.json"),)
    return Case(run.name, scene, method, variant, seed, run, commands, MeasuredScene(run.parent / scene))


def planned(name, folder, scene, seeds, methods=()):
    (folder / scene).mkdir(exist_ok=True)
    scenes = [MeasuredScene(folder / scene)]
    return plan([EXPERIMENTS[name]], scenes, methods, seeds, Budget("quick"), folder / "out")


def column(table, heading):
    at = table.rows[0].index(heading)
    return [row[at] for row in table.rows[1:]]


def test_a_row_is_the_mean_over_seeds(tmp_path, capsys):
    values = [20.0, 21.0, 24.0]
    cases = [finished(tmp_path, "dvgo", seed, value) for seed, value in enumerate(values)]
    cases.append(case_of(tmp_path / "3dgs-0", "a", "3dgs", "regression", 0))
    failures = {"3dgs-0": "failed (2): no memory"}
    tables, files = report([(EXPERIMENTS["static"], cases)], failures, tmp_path)
    paths = list(files)
    assert [path.name for path in paths] == [
        "static-a-dvgo+3dgs.json",
        "static-a-dvgo+3dgs.csv",
        "static-a-dvgo+3dgs.tex",
    ]
    out = capsys.readouterr().out
    assert f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" in out
    assert "LPIPS" not in out
    assert "3dgs-0: failed (2): no memory" in out
    assert "regression (0 of 1)" in out
    record = json.loads(paths[0].read_text())
    assert [case["measured"] and case["measured"]["psnr"] for case in record["cases"]] == [*values, None]
    assert record["tables"][0]["rows"] == tables[0].rows
    rows = list(csv.DictReader(paths[1].open()))
    assert (rows[2]["psnr"], rows[2]["lpips"], rows[3]["failure"]) == ("24.0", "", "failed (2): no memory")
    assert float(rows[0]["render_seconds"]) == 0.525


def test_variants_are_compared_seed_by_seed_with_the_first(tmp_path):
    gains = {1: 1.0, 2: 2.0, 3: 3.0}
    first = [finished(tmp_path, "dvgo", seed, 20 + 5 * seed) for seed in gains]
    second = [finished(tmp_path, "dvgo", seed, 20 + 5 * seed + gain, "classification") for seed, gain in gains.items()]
    cases = [*first, *second]
    numbers = {case.name: json.loads((case.folder / "eval/summary.json").read_text()) for case in cases}
    table = scene_table(EXPERIMENTS["static"], "a", cases, numbers)
    assert column(table, "dPSNR") == ["", "+2.00 ± 1.00"]
    assert float(column(table, "p")[1]) == pytest.approx(0.0742, rel=0.01)  # t = 2 sqrt(3), two degrees of freedom
    alone = scene_table(EXPERIMENTS["static"], "a", [first[0], second[0]], numbers)
    assert column(alone, "dPSNR") == ["", "+1.00"]
    assert "p" not in alone.rows[0]
    crossed = scene_table(EXPERIMENTS["static"], "a", [first[0], second[1]], numbers)  # no seed in common
    assert "dPSNR" not in crossed.rows[0]


def test_scenes_are_averaged_and_paired_scene_by_scene(tmp_path):
    cases = [finished(tmp_path, "dvgo", 1, 20 + k, scene=scene) for k, scene in enumerate("ab")]
    cases += [finished(tmp_path, "dvgo", 1, 23 + 3 * k, "classification", scene) for k, scene in enumerate("ab")]
    numbers = {case.name: json.loads((case.folder / "eval/summary.json").read_text()) for case in cases}
    table = mean_table(EXPERIMENTS["static"], cases, numbers)
    assert [cell.split()[0] for cell in column(table, "PSNR")] == ["20.50", "24.50"]
    assert column(table, "dPSNR")[1] == "+4.00 ± 1.41"
    assert "mean of 2 scenes" in table.title
    assert any("over 2 scenes" in note for note in table.notes)


def table_of(name, folder, effect, scenes=("a",), seeds=(1, 2, 3), missing=()):
    """The table of an experiment whose runs have made-up PSNRs: `effect(variant)` and something of scene and seed."""
    cases = [case for scene in scenes for case in planned(name, folder, scene, seeds, ["dvgo"])]
    numbers = {}
    for case in cases:
        psnr = 10.0 * scenes.index(case.scene) + case.seed + effect(case.variant)
        numbers[case.name] = {"psnr": psnr, "ssim": 0.9, "lpips": None, "primitives": None} | dict.fromkeys(
            ("train_seconds", "peak_memory_mb", "render_seconds"), 1.0
        )
        if (case.scene, case.seed, case.variant) in missing:
            numbers[case.name] = None
    if len(scenes) > 1:
        return mean_table(EXPERIMENTS[name], cases, numbers)
    return scene_table(EXPERIMENTS[name], scenes[0], cases, numbers)


@pytest.mark.parametrize("name", ["sparse", "noise", "grid"])
def test_classification_is_compared_with_regression_at_the_same_place(name, tmp_path):
    def effect(variant):
        return len(variant) + sum(map(ord, variant)) % 7 if "regression" in variant else gain + effect(mate(variant))

    def mate(variant):
        return variant.replace("classification", "regression")

    gain = 1.25
    table = table_of(name, tmp_path, effect)
    for variant, difference in zip(column(table, "variant"), column(table, "dPSNR"), strict=True):
        assert difference == ("+1.25 ± 0.00" if "classification" in variant else "")
    assert "n/a" in column(table, "p")
    assert any("regression under the same conditions" in note for note in table.notes)


def test_weights_are_compared_with_regression(tmp_path):
    gains = {"classification, weight 0.5": 2.0, "classification, weight 20": 3.0}
    table = table_of("lambda", tmp_path, lambda variant: gains.get(variant, 0.0))
    assert column(table, "variant")[:2] == ["regression", "classification, weight 0.5"]
    assert column(table, "dPSNR") == ["", "+2.00 ± 0.00", *["+0.00 ± 0.00"] * 4, "+3.00 ± 0.00"]


def test_controls_are_also_compared_with_classification(tmp_path):
    gains = {"regression": 0.0, "regression, 5 x": 2.0, "classification": 3.0, "regression, eps 1e-15": 1.0}
    table = table_of("controls", tmp_path, lambda variant: gains.get(variant, 2.5))
    beside = dict(zip(column(table, "variant"), column(table, "dPSNR of NFC"), strict=True))
    assert beside["regression, 5 x"].startswith("+1.00")
    assert beside["regression"].startswith("+3.00")
    assert beside["classification"] == ""
    others = dict(zip(column(table, "variant"), column(table, "dPSNR"), strict=True))
    assert others["classification, eps 1e-15"].startswith("+1.50")  # beside regression with that epsilon


def test_seeds_of_one_scene_are_not_independent_of_each_other():
    """Where scenes differ and seeds hardly do, nine differences of three scenes are three."""
    draws = torch.Generator().manual_seed(0)
    rejected = 0
    for _ in range(300):
        of_scenes = torch.randn(3, generator=draws, dtype=torch.float64)
        gains = of_scenes[:, None] + 0.1 * torch.randn(3, 3, generator=draws, dtype=torch.float64)
        mine = {(str(k), seed): {"psnr": float(gains[k, seed])} for k in range(3) for seed in range(3)}
        others = {key: {"psnr": 0.0} for key in mine}
        rejected += _differences(mine, others, by_scene=True)["psnr"].p < 0.05
    assert rejected / 300 == pytest.approx(0.05, abs=0.03)


def test_differences_are_those_of_the_means_beside_them(tmp_path):
    """Of the rows one lacks a seed that the others have; the gain grows with the seed."""
    gains = {1: 1.0, 2: 2.0, 3: 6.0}
    cases = planned("controls", tmp_path, "a", [1, 2, 3], ["dvgo"])
    empty = dict.fromkeys(("ssim", "lpips", "primitives", "train_seconds", "peak_memory_mb"))
    numbers = {
        case.name: {"psnr": 20.0 + gains[case.seed] * (case.variant == "classification"), **empty} for case in cases
    }
    numbers |= {case.name: None for case in cases if (case.seed, case.variant) == (3, "regression, 20 x")}
    table = scene_table(EXPERIMENTS["controls"], "a", cases, numbers)
    cells = dict(zip(column(table, "variant"), column(table, "PSNR"), strict=True))
    differences = dict(zip(column(table, "variant"), column(table, "dPSNR"), strict=True))
    assert (cells["regression"], cells["classification"]) == ("20.00 ± 0.00", "21.50 ± 0.71")
    assert differences["classification"] == "+1.50 ± 0.71"


def test_what_is_published_of_other_scenes_than_those_of_the_means_is_left_out(tmp_path):
    """Classification failed on room1."""
    cases = [case for scene in ("room0", "room1") for case in planned("static", tmp_path, scene, [1], ["dvgo"])]
    numbers = {case.name: json.loads((leave(case, 30.0).folder / "eval/summary.json").read_text()) for case in cases}
    whole = mean_table(EXPERIMENTS["static"], cases, numbers)
    assert column(whole, "PSNR")[1] == f"{statistics.fmean([13.03, 14.81]):.2f}"
    numbers[cases[-1].name] = None
    table = mean_table(EXPERIMENTS["static"], cases, numbers)
    assert table.title.startswith("mean of 1 of 2 scenes")
    assert column(table, "PSNR")[1] == "13.03"
    assert "all rows have room0 alone" in table.notes


def test_times_of_different_conditions_are_told_apart(tmp_path):
    cases = planned("cost", tmp_path, "a", [1], ["dvgo"])
    same = {"psnr": 30.0, "ssim": 0.9, "lpips": None, "primitives": None, "train_seconds": 9.0, "peak_memory_mb": 500}
    same |= {"render_seconds": 0.5, "threads": 2, "jobs": 1, "machine": "2 cores of X"}
    table = scene_table(EXPERIMENTS["cost"], "a", cases, {case.name: same for case in cases})
    assert not any("cannot be compared" in note for note in table.notes)
    for other in ({"threads": 1}, {"jobs": 2}, {"device": "cuda"}, {"machine": "4 cores of Y"}):
        numbers = {case.name: same for case in cases} | {cases[0].name: same | other}
        (note,) = [one for one in scene_table(EXPERIMENTS["cost"], "a", cases, numbers).notes if "compared" in one]
        assert str(next(iter(other.values()))) in note
    (note,) = scene_table(EXPERIMENTS["cost"], "a", cases, {case.name: same | {"jobs": None} for case in cases}).notes[
        1:
    ]
    assert "at a time: unknown" in note
    beside = {case.name: same | {"jobs": 2} for case in cases}  # of an earlier comparison
    assert "at a time: 2" in scene_table(EXPERIMENTS["cost"], "a", cases, beside).notes[-1]
    others = planned("static", tmp_path, "a", [1], ["dvgo"])  # whose point is not the time
    assert not any("at a time" in note for note in scene_table(EXPERIMENTS["static"], "a", others, beside).notes)


def test_a_gpus_memory_is_shown_where_there_was_a_gpu(tmp_path):
    first, second = planned("static", tmp_path, "a", [1], ["dvgo"])
    cases = [leave(first, 30.0, peak_gpu_memory_mb=None), leave(second, 30.0, peak_gpu_memory_mb=None)]
    table = scene_table(EXPERIMENTS["static"], "a", cases, {case.name: measured(case) for case in cases})
    assert "GPU MB" not in table.rows[0]
    leave(second, 30.0, peak_gpu_memory_mb=1234)
    table = scene_table(EXPERIMENTS["static"], "a", cases, {case.name: measured(case) for case in cases})
    assert column(table, "GPU MB") == ["-", "1234"]
    assert column(table, "MB") == ["500", "500"]


def test_surfaces_by_different_protocols_are_told_apart(tmp_path):
    """The paper's surfaces are of Replica's protocol; what another one measures is not put beside them."""
    cases = planned("surface", tmp_path, "room0", [1], ["neus"])
    run = {name: 0.5 for name in (*LENGTHS, *RATIOS)} | {"psnr": 30.0, "ssim": 0.9, "lpips": None, "primitives": None}
    run |= {"train_seconds": 9.0, "peak_memory_mb": 500, "threshold": 0.05, "geometry_protocol": "replica"}
    table = scene_table(EXPERIMENTS["surface"], "room0", cases, {case.name: run for case in cases})
    assert column(table, "F-score") == ["50.00", "14.87", "50.00", "55.56"]
    plain = run | {"threshold": 0.013, "geometry_protocol": "plain"}
    table = scene_table(EXPERIMENTS["surface"], "room0", cases, {case.name: plain for case in cases})
    assert column(table, "F-score") == ["50.00", "-", "50.00", "-"]
    assert column(table, "PSNR")[1] == "29.38"
    mixed = scene_table(EXPERIMENTS["surface"], "room0", cases, {cases[0].name: run, cases[1].name: plain})
    assert any("replica" in note and "within 0.05; protocol plain" in note for note in mixed.notes)
    assert any("measured in different ways" in note for note in mixed.notes)


def test_means_are_over_what_all_rows_have(tmp_path):
    missing = {("b", 1, "classification"), ("b", 2, "classification"), ("b", 3, "classification")}
    table = table_of("static", tmp_path, lambda variant: 0.0, ("a", "b"), missing=missing)
    assert column(table, "PSNR") == ["2.00", "2.00"]  # scene a alone, the mean of its seeds
    assert column(table, "variant") == ["regression", "classification (3 of 6)"]
    assert any("that all rows have" in note for note in table.notes)
    whole = table_of("static", tmp_path, lambda variant: 0.0, ("a", "b"))
    assert column(whole, "PSNR") == ["7.00 ± 7.07"] * 2  # of two scenes, not of six runs


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(1.0, 1, 0.5), (12.706, 1, 0.05), (4.3027, 2, 0.05), (2.7764, 4, 0.05), (2.0423, 30, 0.05), (0.0, 5, 1.0)],
)
def test_the_tail_of_students_t_is_the_tables(t, freedom, p):
    assert two_sided_p(t, freedom) == pytest.approx(p, rel=1e-3)
    assert two_sided_p(-t, freedom) == pytest.approx(p, rel=1e-3)


def test_the_paired_test_holds_its_level_where_nothing_differs():
    noise = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = sum(paired(row.tolist(), [0.0] * 5).p < 0.1 for row in noise) / len(noise)
    assert share == pytest.approx(0.1, abs=0.02)


def test_a_test_that_cannot_be_made_has_no_p():
    assert paired([3.0], [1.0]).p is None
    assert paired([30.1, 31.3, 29.7], [30, 31.2, 29.6]).p is None  # equal but for rounding
    assert paired([3.0, 4.0], [1.0, 2.0]).p is None  # no spread: t would be infinite
    assert paired([3.0, 4.0], [1.0, 2.0]).mean == 2.0


# ---------------------------------------------------------------------------------------------- the paper's numbers


def test_what_was_printed_of_a_scene_stands_below_its_row(tmp_path):
    cases = planned("ablation", tmp_path, "office1", [1], ["dvgo"])
    numbers = {case.name: json.loads((leave(case, 30.0).folder / "eval/summary.json").read_text()) for case in cases}
    table = scene_table(EXPERIMENTS["ablation"], "office1", cases, numbers)
    assert [row[0] for row in table.rows[1:]] == ["dvgo", "dvgo*", "dvgo", "dvgo*", "dvgo", "dvgo", "dvgo*"]
    assert column(table, "PSNR") == ["30.00", "15.17", "30.00", "35.86", "30.00", "30.00", "35.93"]
    assert any("scene 5 of Replica" in note for note in table.notes)
    elsewhere = [replace(case, source=MeasuredScene(tmp_path / "room")) for case in cases]
    assert not any("*" in row[0] for row in scene_table(EXPERIMENTS["ablation"], "room", elsewhere, numbers).rows)
    numbered = [replace(case, source=MeasuredScene(tmp_path / "Replica/scan5")) for case in cases]
    assert scene_table(EXPERIMENTS["ablation"], "scan5", numbered, numbers).rows == table.rows


def test_means_of_the_printed_rows_are_the_printed_means():
    rows = published_mean("ablation", ROOMS)
    assert [row.metrics["psnr"] for row in rows] == pytest.approx([17.08, 32.49, 34.11], abs=0.04)
    means = {(row.method, row.variant): row.metrics["psnr"] for row in published_mean("static", ROOMS)}
    assert list(means.values()) == pytest.approx([17.08, 34.11, 29.38, 33.68], abs=0.04)
    assert [method for method, _ in means] == ["dvgo", "dvgo", "neus", "neus"]
    assert {row.source for row in rows} == {"means of the same 8 scenes"}
    assert not published_mean("static", ["room0", "kitchen"])
    assert not published_mean("static", ["room0", "museum"])
    assert {row.method for row in published_mean("static", ["museum", "ballroom"])} == {"dvgo", "nerf", "neus"}


@pytest.mark.parametrize(
    ("experiment", "scene", "count"),
    [
        ("dynamic", "dnerf_hook_400", 2),
        ("dynamic", "lego", 2),
        ("dynamic", "jacks", 0),
        ("dynamic", "lego-hook", 0),  # which of them?
        ("sparse", "tat_Truck", 8),
        ("sparse", "Truckee_lake", 0),
        ("dynamic", "legoland_ride", 0),
        ("noise", "Truck", 6),
        ("noise", "lego", 0),
        ("cost", "office2", 3),
        ("cost", "office1", 0),
        ("static", "room0", 4),
        ("ablation", "room0", 3),
        ("surface", "room0", 2),
        ("surface", "room", 0),
        ("few-views", "chair", 2),
        ("few-views", "lego", 0),
        ("grid", "room0", 0),
    ],
)
def test_what_the_paper_has_of_an_experiment(experiment, scene, count):
    rows = published(experiment, scene)
    labels = {variant.label for variant in EXPERIMENTS[experiment].variants}
    assert len(rows) == count
    assert all(row.method in METHODS for row in rows)
    if experiment != "few-views":  # whose number of views the paper does not state
        assert all(row.variant in labels for row in rows)


# ---------------------------------------------------------------------------------------------- plots and files


def svg(path):
    picture = ElementTree.parse(path).getroot()
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    return texts, [element for element in picture.iter() if element.tag.endswith("circle")]


def test_few_views_are_a_table_and_a_plot(tmp_path, capsys):
    experiment = EXPERIMENTS["few-views"]
    cases = planned("few-views", tmp_path, "chair", [1, 2])
    for case in cases[:-1]:  # the last one failed
        leave(case, 20.0 + case.seed + 5 * case.variant.endswith("classification"), ["x"])
    _, files = report([(experiment, cases)], {}, tmp_path)
    printed = capsys.readouterr().out
    assert "views 100, classification (1 of 2)" in printed
    assert "28.53" in printed
    assert "a number of views that the paper does not state" in printed
    assert list(files)[-1].name == "few-views-chair-strivec.svg"
    texts, circles = svg(list(files)[-1])
    assert {"regression", "classification", "10", "100", "training views", "PSNR (dB)"} <= set(texts)
    heights = [float(circle.get("cy")) for circle in circles]
    assert heights[0] == heights[4] > heights[5]  # regression's points, and above them classification's


def test_places_far_apart_can_be_drawn_at_equal_distances(tmp_path):
    lines = {"one": {0.5: [1.0], 1.0: [2.0], 20.0: [3.0]}}
    (tmp_path / "plot.svg").write_text(draw_plot("title", "x", "y", lines, even=True))
    left, middle, right = (float(circle.get("cx")) for circle in svg(tmp_path / "plot.svg")[1])
    assert middle - left == pytest.approx(right - middle)
    (tmp_path / "plot.svg").write_text(draw_plot("title", "x", "y", lines))
    left, middle, right = (float(circle.get("cx")) for circle in svg(tmp_path / "plot.svg")[1])
    assert (middle - left) / (right - left) == pytest.approx(0.5 / 19.5, abs=1e-3)


def test_bars_stay_within_the_axes(tmp_path):
    (tmp_path / "plot.svg").write_text(draw_plot("title", "x", "y", {"one": {1.0: [20.0, 21.0], 2.0: [20.5]}}))
    picture = ElementTree.parse(tmp_path / "plot.svg").getroot()
    paths = [element.get("d") for element in picture.iter() if element.tag.endswith("path")]
    lines = sorted(float(path.split()[1].split("H")[0]) for path in paths if "H" in path and path.startswith("M64 "))
    (bar,) = [path for path in paths if "V" in path]
    low, high = (float(part) for part in bar.split()[1].split("V"))
    assert lines[0] <= high < low <= lines[-1]


def test_curves_are_lines_over_steps(tmp_path, capsys):
    cases = planned("curves", tmp_path, "room", [1, 2], ["dvgo"])
    for case in cases:
        lines = [{"step": step, "loss": 0.1} for step in (10, 20)]
        lines += [{"step": 150 * k, "train_psnr": 20.0 + k + case.seed, "test_psnr": 18.0 + k} for k in range(1, 21)]
        leave(case, 30.0)
        (case.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, files = report([(EXPERIMENTS["curves"], cases)], {}, tmp_path)
    texts, circles = svg(list(files)[-1])
    assert {"regression, training views", "regression, test views", "classification, test views", "step"} <= set(texts)
    assert not circles  # so many points are a line
    assert {"1000", "2000", "3000"} <= set(texts)
    assert "recorded" in capsys.readouterr().out


@pytest.mark.parametrize(("low", "high"), [(20.1, 31.7), (28.0, 28.0), (-3e-5, 2e-4), (0.0, 0.0), (99.0, 101.0)])
def test_ticks_are_round_and_hold_all_values(low, high):
    first, last, step = _ticks(low, high)
    assert first <= low + 1e-9 * step
    assert last > high
    assert 1 <= round((last - first) / step) <= 12
    assert float(f"{step:.1e}") == pytest.approx(step)


def test_latex_is_a_table_whose_names_are_harmless():
    rows = [["method", "variant", "PSNR"], ["m", r"x_y & 5 % \input{z}", "-1.50 ± 0.20"]]
    table = Table("a_b: < 50 %\n\\input{x}", rows, ["note"])
    lines = table.latex().splitlines()
    assert lines[:2] == [r"\begin{table}", r"\caption{a\_b: $<$ 50 \% /input\{x\}. note}"]
    assert lines[2] == r"\begin{tabular}{llr}"
    assert lines[5] == r"m & x\_y \& 5 \% /input\{z\} & $-$1.50 $\pm$ 0.20 \\"


def test_runs_of_other_images_are_not_compared(tmp_path):
    cases = planned("sparse", tmp_path, "room", [1], ["dvgo"])
    for case in cases:
        share = next((word for word in case.variant.split(",")[0].split() if "." in word), "")
        leave(case, 30.0, [f"{share}.png"] if share else None)
    lists, wrong = training_images(cases)
    assert lists["room --train-share 0.2"] == ["0.2.png"]
    assert len(lists) == 4
    assert not wrong
    leave(cases[1], 30.0, ["another.png"])
    _, wrong = training_images(cases)
    assert list(wrong) == [cases[1].name]
    assert "trained on other images than the runs of room --train-share 0.2" in wrong[cases[1].name]
    tables, files = report([(EXPERIMENTS["sparse"], cases)], wrong, tmp_path)
    assert f"{cases[1].variant} (0 of 1)" in column(tables[0], "variant")
    assert all(file.is_file() for file in files)


def test_what_trainings_warned_of_is_told_once_for_each_kind(tmp_path, capsys):
    cases = planned("static", tmp_path, "a", [1, 2], ["dvgo"])
    begun, resumed = "$ python -m nfc_splat.train a\n", "# where it stopped\n"
    stopped = "warning: stopped at step 5, which is saved; --resume goes on from there\n"
    logs = [
        "warning: of a run that was deleted\n" + begun + "warning: step 7: no voxel is seen\n",
        begun
        + "warning: step 3: no voxel is seen\n"
        + stopped
        + begun
        + resumed
        + "warning: step 8: no voxel is seen\n",
        begun + "views: 3\n",
    ]
    for case, log in zip(cases, logs, strict=False):  # the last has none
        log_path(leave(case, 30.0)).parent.mkdir(exist_ok=True)
        log_path(case).write_text(log)
    leave(cases[-1], 30.0)
    report([(EXPERIMENTS["static"], cases)], {}, tmp_path / "out")
    told = capsys.readouterr().out.partition("\nwarned\n")[2].splitlines()
    assert told[0] == f"  2 of 4 runs, such as {cases[0].run}: step 7: no voxel is seen"
    assert not any("deleted" in line for line in told)
    record = json.loads((tmp_path / "out/static-a-dvgo.json").read_text())
    assert [case["warnings"] for case in record["cases"]][1:3] == [
        ["step 3: no voxel is seen", "step 8: no voxel is seen"],
        [],
    ]


def test_each_experiment_gets_its_own_cases_in_its_order(tmp_path):
    (tmp_path / "a").mkdir()
    experiments = [EXPERIMENTS[name] for name in ("controls", "ablation")]
    cases = plan(experiments, [MeasuredScene(tmp_path / "a")], ["dvgo"], [1, 2], Budget("quick"), tmp_path)
    mine = cases_of(EXPERIMENTS["ablation"], cases, ["dvgo"], "quick")
    assert [case.variant for case in mine[::2]] == [variant.label for variant in EXPERIMENTS["ablation"].variants]
    assert [case.seed for case in mine] == [1, 2] * 4
