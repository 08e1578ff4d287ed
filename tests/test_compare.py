"""`python -m nfc_splat.compare`: what a comparison plans, that it goes on where it stopped, and its table."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from eval_toys import write_blender_scene

from nfc_splat.compare import checks, estimate, records, work
from nfc_splat.compare.__main__ import main as compare
from nfc_splat.compare.experiments import EXPERIMENTS, Experiment, Variant, chosen
from nfc_splat.compare.measured import measured
from nfc_splat.compare.plan import Budget, MeasuredScene, plan, runs_of, variants_of
from nfc_splat.compare.results import cases_of
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.files import write_json
from nfc_splat.open3d_loader import load_open3d
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.config import matching
from nfc_splat.training.load import describe_scene, load_training_scene, scene_hash
from nfc_splat.training.run import write_record

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def planned(capsys, monkeypatch):
    """The commands of a dry run, without the trainings that tell the time."""
    monkeypatch.setattr(estimate, "describe_time", lambda *_: ["soon"])

    def run(*arguments):
        assert compare(["--dry-run", *map(str, arguments)]) == 0
        *commands, ending = capsys.readouterr().out.splitlines()
        assert ending == "# soon"
        return commands

    return run


def tiny_scene(folder, train=2):
    write_blender_scene(folder, train=train, test=1, size=16)
    return folder


def test_every_combination_is_planned_once(tmp_path, planned):
    tiny_scene(tmp_path / "a")
    tiny_scene(tmp_path / "b")
    scenes = (tmp_path / "a", tmp_path / "b")
    words = ("--preset", "quick", "--methods", "dvgo", "3dgs", "--seeds", "1", "2", "3", "--out", tmp_path / "out")
    commands = planned(*scenes, *words)
    assert len(commands) == len(set(commands)) == 2 * 2 * 2 * 3
    assert all(line.startswith("python -m nfc_splat.train ") for line in commands)
    first = commands[0]
    assert f"{tmp_path}/a --out {tmp_path}/out/a-dvgo-regression-1 --resume auto --method dvgo" in first
    assert "--loss regression --seed 1" in first


def test_flags_after_the_dashes_reach_every_training(tmp_path, planned):
    tiny_scene(tmp_path / "a")
    commands = planned(tmp_path / "a", "--preset", "quick", "--", "--downscale", "2")
    assert len(commands) == 6
    assert all("--preset quick" in line and "--downscale 2" in line for line in commands)


def test_rounding_is_off_unless_asked_for():
    assert Budget("quick").of("nerf") == ("--preset", "quick", "--no-bf16")
    assert Budget("quick", ("--bf16",)).of("nerf") == ("--preset", "quick", "--bf16")
    assert Budget("quick", ("--no_bf16",)).of("nerf") == ("--preset", "quick", "--no_bf16")
    assert Budget("quick").of("3dgs") == ("--preset", "quick")


def test_surfaces_are_extracted_and_measured_against_the_scenes_truth(tmp_path, planned):
    room = tiny_scene(tmp_path / "room0")
    for name in ("traj.txt", "../room0_mesh.ply"):
        (room / name).write_text("")
    lines = planned(room, "--preset", "quick", "--experiment", "surface", "--methods", "neus")
    assert [line.split()[2] for line in lines] == ["nfc_splat.train", "nfc_splat.export", "nfc_splat.eval"] * 2
    assert "room0_mesh.ply --protocol replica --scene" in lines[2]
    assert "--to-world identity" in lines[2]  # what `export mesh` writes is in the truth's frame, worldtogt or not
    (room / "traj.txt").unlink()
    lines = planned(room, "--preset", "quick", "--experiment", "surface", "--methods", "neus")
    assert "--protocol plain" in lines[2]
    assert "--scene" not in lines[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no SCENE"),
        (["nowhere"], "nowhere: no such folder"),
        (["a", "--methods", "dvgoo"], "--method dvgoo: expected one of"),
        (["a", "other/a"], "two scenes are called a"),
        (["a", "--experiment", "surface"], "no true surface at"),
        (["a", "--experiment", "surface", "--truth", "x.ply"], "no true surface at x.ply"),
        (["a", "--", "--method", "nerf"], "-- --method: is for the comparison to say"),
        (["a", "--", "--loss=bitwise"], "-- --loss=bitwise: is for the comparison to say"),
        (["a", "--experiment", "grid", "--", "--voxels", "8"], "-- --voxels: is for the comparison to say"),
        (["a", "--jobs", "0"], "--jobs 0: expected 1 or more"),
        (["a", "--experiment", "static", "cost", "--jobs", "2"], "--jobs 2: --experiment cost compares times"),
        (["a", "--experiment", "cost", "--cluster"], "--cluster: --experiment cost compares times"),
        (["a", "--truth", "x.ply"], "--truth x.ply: is for one scene and an experiment that measures surfaces"),
        (["a", "--experiment", "grid", "--methods", "ngp"], "nothing to compare; grid: ngp has no side 64"),
        (["a", "--losses", "bitwise", "--methods", "3dgs"], "nothing to compare; bitwise: 3dgs has no bitwise"),
        (["a", "--seeds", "--methods", "ngp"], "--seeds: expected one value or more"),
        (["a", "--losses"], "--losses: expected one value or more"),
        (["a", "--seeds", "1", "-1"], "--seeds -1: expected 0 to"),
        (["a", "--", "--device"], "a-dvgo-regression-42: .*--device"),
        (["a", "--", "--device", "gpu"], "a-dvgo-regression-42: --device gpu: expected auto, cpu or cuda"),
        (["a", "--experiment", "dynamic"], "a-dnerf-regression-42: --method dnerf models motion"),
        (["a", "--methods", "3dgs", "--", "--split", "val"], "a-3dgs-regression-42: --split val"),
        (["a", "--", "--test-every", "0"], "a: has no test views, so there is nothing to compare"),
        (["a", "--methods", "dvgo", "--", "--stepz", "8"], "a-dvgo-regression-42: .*--stepz"),
        (["a", "--methods", "3dgs", "dvgo", "--", "--sh-degree", "1"], "a-dvgo-regression-42: .*--sh-degree"),
        (["empty"], "empty: .*format"),
    ],
)
def test_wrong_comparisons_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "other/a"):
        tiny_scene(tmp_path / folder)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message):
        compare(["--preset", "quick", "--dry-run", *arguments])
    assert not Path("runs").exists()


def test_experiments_share_the_runs_that_they_have_in_common(tmp_path, planned):
    tiny_scene(tmp_path / "a")
    both = planned(tmp_path / "a", "--preset", "quick", "--experiment", "ablation", "controls", "--methods", "dvgo")
    each = [
        planned(tmp_path / "a", "--preset", "quick", "--experiment", name, "--methods", "dvgo")
        for name in ("ablation", "controls")
    ]
    assert [len(commands) for commands in each] == [4, 7]
    assert len(both) == len(set(both)) == 9  # regression and classification once
    assert set(both) == {*each[0], *each[1]}
    assert sum("--photometric-weight" in line for line in both) == 3
    assert sum("--adam-eps 1e-15" in line for line in both) == 2
    assert sum("--loss regression --target-encoding binary" in line for line in both) == 1


def test_equal_trainings_share_a_run_whatever_they_are_called(tmp_path):
    """The weight that is a method's own, and a run that is recorded besides."""
    names = ("ablation", "lambda", "controls", "curves")
    scenes, plain = [MeasuredScene(tmp_path / "a")], ([1], Budget("quick"), tmp_path)
    cases = plan([EXPERIMENTS[name] for name in names], scenes, ["dvgo"], *plain)
    runs = runs_of(cases)
    assert len({json.dumps(matching(parse_command_line(run.commands[0].words[1:]))) for run in runs}) == len(runs)
    folders = {case.variant: case.run for case in cases}
    assert len(folders) == len(cases) == len(runs) + 3
    assert folders["classification"] == folders["classification, weight 2"] == folders["classification, recorded"]
    assert folders["regression"] == folders["regression, recorded"] == "a-dvgo-regression_recorded-1"
    for name in names:  # every table has all its rows
        experiment = EXPERIMENTS[name]
        found = cases_of(experiment, cases, ["dvgo"], "quick")
        assert [case.variant for case in found] == [one.label for one in experiment.variants]
    (alone,) = [case for case in plan([EXPERIMENTS["lambda"]], scenes, ["dvgo"], *plain) if "weight_2-" in case.name]
    assert alone.run == "a-dvgo-classification-1"  # so that a later comparison finds it
    neus = plan([EXPERIMENTS["lambda"]], scenes, ["neus"], *plain)
    assert [case.run for case in neus if case.name != case.run] == ["a-neus-classification-1"]  # its own weight is 20


def test_a_run_that_was_watched_serves_those_who_do_not_ask_for_its_curve(tmp_path):
    scenes, rest = [MeasuredScene(tmp_path / "a")], (["dvgo"], [1], Budget("quick"), tmp_path)
    for case in plan([EXPERIMENTS["curves"]], scenes, *rest):
        write_json(case.folder / "eval/summary.json", {"psnr": 30.0})
        write_json(case.folder / "config.json", {"scene": {}})
    cases = plan([EXPERIMENTS["static"]], scenes, *rest)
    assert [case.variant for case in cases] == ["regression", "classification"]
    assert [case.run for case in cases] == [f"a-dvgo-{loss}_recorded-1" for loss in ("regression", "classification")]
    assert all(case.done for case in cases)


def test_variants_that_a_method_does_not_have_are_named(tmp_path, planned):
    tiny_scene(tmp_path / "a")
    lines = planned(tmp_path / "a", "--preset", "quick", "--experiment", "encodings", "--methods", "3dgs")
    assert lines[0].startswith("# encodings: 3dgs has no classification, no encoding; no classification, gray; no ")
    assert lines[0].endswith("; no bitwise; no bitwise, gray")
    assert len(lines) == 1 + 2


def test_losses_and_encodings_of_ones_own_choice(tmp_path, planned):
    """Where a named experiment has the same training, they share the run."""
    words = (tiny_scene(tmp_path / "a"), "--preset", "quick", "--methods", "dvgo")
    lines = planned(*words, "--losses", "bitwise", "regression", "--encodings", "binary", "onehot", "none")
    assert lines[0] == "# bitwise+regression+binary+onehot+none: dvgo has no bitwise, onehot; no bitwise, none"
    pattern = "/(a-dvgo-[^ ]+) .*--loss ([a-z]+)(?: --target-encoding ([a-z]+))? "
    assert [re.search(pattern, line).groups() for line in lines[1:]] == [
        ("a-dvgo-bitwise-42", "bitwise", None),
        ("a-dvgo-target_encoding_alone-42", "regression", "binary"),
        ("a-dvgo-regression_onehot-42", "regression", "onehot"),
        ("a-dvgo-regression-42", "regression", None),
    ]
    assert len(planned(*words, "--losses", "bitwise")) == 1
    both = planned(*words, "--encodings", "none", "gray", "--experiment", "encodings")
    assert len(both) == 8 + 1  # regression with gray


def test_a_code_that_is_a_methods_own_is_not_taken_for_another(tmp_path, monkeypatch):
    """Methods of other packages may have another default than "auto", which is settled by the loss."""
    module = find_method("dvgo").load()
    monkeypatch.setattr(module, "preset", lambda _: replace(module.Config(), target_encoding="none"))
    codes = variants_of(chosen(("classification",), ("binary", "none")), "dvgo", "quick")
    assert [one.arguments[2:] for one in codes] == [("--target-encoding", "binary"), ("--target-encoding", "none")]


def test_runs_from_more_images_than_there_are_are_left_out(tmp_path, planned):
    scene = tiny_scene(tmp_path / "a", train=20)
    words = (scene, "--preset", "quick", "--experiment", "few-views")
    *left_out, ten, ten_too, twenty, twenty_too = planned(*words)
    assert left_out == [f"# a has 20 training images: no runs from {views}" for views in (25, 50, 100)]
    assert all("--train-views 10" in line for line in (ten, ten_too))
    assert all("--train-views 20" in line for line in (twenty, twenty_too))


def test_a_run_whose_surface_is_measured_serves_other_experiments_too(tmp_path, planned):
    tiny_scene(tmp_path / "room")
    for name in ("traj.txt", "room_mesh.ply"):
        (tmp_path / "room" / name).write_text("")
    words = (tmp_path / "room", "--preset", "quick", "--methods", "ngp", "--experiment")
    both = planned(*words, "static", "surface")
    assert both == planned(*words, "surface") == planned(*words, "surface", "static")
    assert len(both) == 6


@pytest.mark.parametrize(
    ("experiment", "method", "count", "flags"),
    [
        ("dynamic", "4dgs", 2, {"--loss"}),
        ("sparse", "dvgo", 10, {"--loss", "--train-share"}),
        ("noise", "dvgo", 8, {"--loss", "--train-noise"}),
        ("ablation", "3dgs", 2, {"--loss"}),  # no network whose last layer could predict a code
        ("lambda", "ngp", 7, {"--loss", "--loss-weight"}),
        ("cost", "nerf", 3, {"--loss", "--target-encoding"}),
        ("controls", "neus", 5, {"--loss", "--photometric-weight"}),  # its epsilon is that small anyway
        ("encodings", "ngp", 8, {"--loss", "--target-encoding"}),
        ("grid", "dvgo", 18, {"--loss", "--voxels", "--stepsize"}),
        ("curves", "3dgs", 2, {"--loss", "--curve-points"}),
        ("few-views", "strivec", 10, {"--loss", "--train-views"}),
    ],
)
def test_every_variant_is_a_command_that_train_understands(tmp_path, experiment, method, count, flags):
    scenes = [MeasuredScene(tmp_path / "a")]
    cases = plan([EXPERIMENTS[experiment]], scenes, [method], [1], Budget("quick"), tmp_path)
    assert len(cases) == count
    configs = [parse_command_line(case.commands[0].words[1:]) for case in cases]
    assert all(config.method == method for config in configs)
    assert len({json.dumps(matching(config) | {"curve": config.curve_points}) for config in configs}) == count
    said = {word for case in cases for word in case.commands[0].words if word.startswith("--")}
    assert said - {"--out", "--resume", "--method", "--preset", "--no-bf16", "--seed"} == flags


def test_a_case_counts_when_all_its_files_are_there(tmp_path):
    experiment = Experiment("e", "", ("neus",), (Variant("regression", ()),), surfaces=True)
    scene = MeasuredScene(tmp_path / "a", tmp_path / "truth.ply", "replica")
    (case,) = plan([experiment], [scene], ["neus"], [1], Budget("quick"), tmp_path)
    write_json(case.folder / "eval" / "summary.json", {"psnr": 30.0})
    write_json(case.folder / "config.json", {"scene": {}, "train": {"threads": 3}})
    (case.folder / "mesh.ply").write_text("")
    assert not case.done
    assert measured(case) is None
    names = ("accuracy", "completeness", "chamfer_l1_mean", "normal_consistency")
    values = dict.fromkeys(names, 0.5) | {f"{name}@0.05": 0.7 for name in ("precision", "recall", "fscore")}
    geometry = {"metrics": values, "protocol": {"name": "replica", "thresholds": [0.05]}}
    write_json(case.folder / "mesh-eval" / "metrics.json", geometry)
    found = measured(case)
    assert (found["psnr"], found["accuracy"], found["fscore"], found["threshold"]) == (30.0, 0.5, 0.7, 0.05)
    assert (found["threads"], found["jobs"]) == (3, None)
    case.source.truth.write_text("x")
    records.write_record(case, 4)
    records.write_record(case, 2)  # it went on among fewer
    assert measured(case)["jobs"] == 4
    for text in ("", "[]", "{}"):
        (case.folder / "mesh-eval/metrics.json").write_text(text)
        assert not case.done
        assert measured(case) is None
        assert "mesh-eval/metrics.json" in case.commands[-1].flaw


# ---------------------------------------------------------------------------------------- runs that are there already


ASKED = ("--preset", "quick", "--methods", "dvgo", "--")


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A comparison that is done, without its trainings; `compare` would start no process."""
    write_blender_scene(tmp_path / "ball", train=2, test=1, size=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "run_case", lambda *_: pytest.fail("something was trained"))
    scenes = [MeasuredScene(Path("ball"))]
    for case in plan([EXPERIMENTS["static"]], scenes, ["dvgo"], [42], Budget("quick"), Path("out")):
        config = parse_command_line(case.commands[0].words[1:])
        scene = load_training_scene(config)
        config.out.mkdir(parents=True)
        write_record(config, describe_scene(scene, scene_hash(scene), config.data))
        summary = {"psnr": 20.0, "ssim": 0.5, "lpips": None, "train_seconds": 60.0, "peak_memory_mb": 500}
        write_json(config.out / "eval/summary.json", summary)
    return tmp_path


def test_a_finished_comparison_can_be_moved_and_named_in_other_ways(finished, capsys):
    for scene, out in (("ball", "out"), (finished / "ball", finished / "out")):
        assert compare([str(scene), "--out", str(out), *ASKED]) == 0
        assert capsys.readouterr().out.count("done before") == 2
    Path("out").rename("elsewhere")
    Path("ball").rename("other")
    Path("there").mkdir()
    Path("other").rename("there/ball")
    assert compare(["there/ball", "--out", "elsewhere", *ASKED]) == 0
    assert capsys.readouterr().out.count("done before") == 2


def test_finished_runs_are_believed_where_the_scene_is_gone(finished, capsys):
    """Also those whose number of training images the scene would have to tell."""
    few = ("--", "--train-views", "2")
    for folder in (finished / "out").glob("*/config.json"):
        record = json.loads(folder.read_text())
        record["train"]["data"]["train_views"] = 2
        folder.write_text(json.dumps(record))
    (finished / "ball").rename(finished / "elsewhere")
    (finished / "ball").mkdir()
    assert compare(["ball", "--out", "out", *ASKED[:-1], *few]) == 0
    out = capsys.readouterr().out
    assert out.count("done before") == 2
    assert "ball: cannot be read now, so its finished runs are taken as they are" in out
    with pytest.raises(UserError, match="no scene that any reader knows"):
        compare(["ball", "--out", "new", *ASKED[:-1], *few])


def test_only_runs_on_this_machine_need_its_devices(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    scene = MeasuredScene(tiny_scene(tmp_path / "a"))
    cases = plan([EXPERIMENTS["static"]], [scene], ["3dgs"], [1], Budget("quick", ("--device", "cuda")), tmp_path)
    assert checks.check(cases, checks.Scenes(), here=False) == []
    with pytest.raises(UserError, match="a-3dgs-regression-1: --device cuda"):
        checks.check(cases, checks.Scenes())
    other = plan([EXPERIMENTS["static"]], [scene], ["3dgs"], [1], Budget("quick", ("--device=cuda:0",)), tmp_path)
    with pytest.raises(UserError, match="--device cuda:0: expected auto"):
        checks.check(other, checks.Scenes(), here=False)


def test_runs_of_other_flags_or_scenes_are_refused(finished):
    for flags, difference in ((("--steps", "7"), "model.*steps"), (("--protocol", "dnerf"), "protocol dnerf")):
        with pytest.raises(UserError, match=f"was begun with other flags than now: .*{difference}"):
            compare(["ball", "--out", "out", *ASKED, *flags])
    image = next(Path("ball/train").glob("*.png"))
    image.write_bytes(image.read_bytes() + b"more")
    with pytest.raises(UserError, match="ball has changed since this run was trained"):
        compare(["ball", "--out", "out", *ASKED])


@pytest.mark.parametrize(("file", "text"), [("eval/summary.json", ""), ("config.json", '{"a": 1'), ("config.json", "")])
def test_a_damaged_file_is_told_and_done_again_and_the_others_stay(finished, monkeypatch, capsys, file, text):
    class Process:
        def poll(self):
            return 2

    def run_case(*_):
        yield Process()
        raise work.CaseFailed("failed (2): tried")

    monkeypatch.setattr(work, "run_case", run_case)
    Path("out/ball-dvgo-regression-42", file).write_text(text)
    assert compare(["ball", "--out", "out", *ASKED]) == 1
    out = capsys.readouterr().out
    assert f"ball-dvgo-regression-42: not taken as done: out/ball-dvgo-regression-42/{file}: not valid JSON" in out
    assert out.count("done before") == 1
    assert "ball-dvgo-regression-42: failed (2): tried" in out


def test_another_truth_is_measured_against_again(tmp_path):
    for name in ("room/one.ply", "room/two.ply"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    case, other = (
        plan([EXPERIMENTS["surface"]], [MeasuredScene(tmp_path / "room", tmp_path / f"room/{truth}.ply")], ["neus"],
             [1], Budget("quick"), tmp_path / "out")[0] for truth in ("one", "two")
    )  # fmt: skip
    records.write_record(case, 1)
    write_json(case.commands[-1].product, {})
    assert not records.forget_other_surface(case)
    assert case.commands[-1].product.exists()
    assert records.forget_other_surface(other)
    assert not case.commands[-1].product.exists()


# ----------------------------------------------------------------------------------------------- the command


def started(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "nfc_splat.compare", *map(str, arguments)]
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


SIZE = ("--steps", "120", "--threads", "1")


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_and_one_failure_does_not_end_it(tmp_path, monkeypatch, capsys):
    write_blender_scene(tmp_path / "ball", train=2, test=2)  # which is too few for dvgo's coarse stage
    asked = ("ball", "--preset", "quick", "--methods", "3dgs", "dvgo", "--out", "out")
    process = started(tmp_path, *asked, "--", *SIZE)
    progress = tmp_path / "out/ball-3dgs-regression-42/metrics.jsonl"
    while not (progress.is_file() and progress.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 143
    assert "stopped; the same command continues" in out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert compare([*asked, "--", *SIZE]) == 1
    out = capsys.readouterr().out
    log = Path("out/cases/ball-3dgs-regression-42.log").read_text()
    assert "\n# where it stopped\n" in log
    assert "resumed at step" in log
    assert "stopped at step" not in out
    assert "ball-dvgo-regression-42: failed (2): " in out
    assert "train on more images" in out
    cases = json.loads(Path("out/static-ball-3dgs+dvgo.json").read_text())["cases"]
    assert [bool(case["measured"]) for case in cases] == [True, True, False, False]
    assert all(case["measured"]["psnr"] > 5 for case in cases[:2])

    page = Path("out/static-ball-3dgs+dvgo.html").read_text()
    assert "ball: images by regression and by classification" in page
    assert "ball-dvgo-regression-42: failed (2)" in page
    assert f"{cases[0]['measured']['psnr']:.2f}" in page

    before = Path("out/static-ball-3dgs+dvgo.csv").read_text().splitlines()
    assert compare([*asked, "--methods", "3dgs", "--", *SIZE]) == 0
    assert capsys.readouterr().out.count("done before") == 2
    rows = Path("out/static-ball-3dgs.csv").read_text().splitlines()
    assert rows == before[: len(rows)]
    assert Path("out/static-ball-3dgs+dvgo.csv").read_text().splitlines() == before
    with pytest.raises(UserError, match="was begun with other flags than now"):
        compare([*asked, "--", *SIZE, "--protocol", "graphdeco"])


@pytest.mark.slow
def test_surfaces_of_a_comparison(tmp_path, monkeypatch, capsys):
    """The whole chain, of one variant."""
    o3d = load_open3d()
    write_blender_scene(tmp_path / "ball", train=8, test=2)
    o3d.io.write_triangle_mesh(str(tmp_path / "ball_mesh.ply"), o3d.geometry.TriangleMesh.create_sphere(1.0))
    experiment = EXPERIMENTS["surface"]
    monkeypatch.setitem(EXPERIMENTS, "surface", replace(experiment, variants=experiment.variants[:1]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    words = ["ball", "--experiment", "surface", "--preset", "quick", "--methods", "3dgs", "--out", "out"]
    assert compare([*words, "--", *SIZE]) == 0
    (case,) = json.loads(Path("out/surface-ball-3dgs.json").read_text())["cases"]
    assert 0 < case["measured"]["fscore"] <= 1
    out = capsys.readouterr().out
    assert "protocol plain" in out
    assert "neus*" not in out  # the paper has none of this method
