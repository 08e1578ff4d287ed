"""`python -m nfc_splat.compare`: what a comparison plans, that it goes on where it stopped, and its table."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from eval_toys import write_blender_scene

from nfc_splat.compare.__main__ import main as compare
from nfc_splat.compare.experiments import EXPERIMENTS, Experiment, Variant
from nfc_splat.compare.plan import Budget, Case, Command, MeasuredScene, plan
from nfc_splat.compare.plot import _ticks
from nfc_splat.compare.results import measured, report
from nfc_splat.errors import UserError
from nfc_splat.files import write_json
from nfc_splat.open3d_loader import load_open3d

REPOSITORY = Path(__file__).resolve().parent.parent


def planned(capsys, *arguments):
    """The commands of a dry run."""
    assert compare(["--dry-run", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_combination_is_planned_once(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    scenes = (tmp_path / "a", tmp_path / "b")
    words = ("--preset", "quick", "--methods", "dvgo", "3dgs", "--seeds", "1", "2", "3", "--out", tmp_path / "out")
    commands = planned(capsys, *scenes, *words)
    assert len(commands) == len(set(commands)) == 2 * 2 * 2 * 3
    assert all(line.startswith("python -m nfc_splat.train ") for line in commands)
    first = commands[0]
    assert f"{tmp_path}/a --out {tmp_path}/out/a-dvgo-regression-1 --resume auto --method dvgo" in first
    assert "--loss regression --seed 1" in first


def test_flags_after_the_dashes_reach_every_training(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    commands = planned(capsys, tmp_path / "a", "--preset", "quick", "--", "--downscale", "2")
    assert len(commands) == 6
    assert all("--preset quick" in line and "--downscale 2" in line for line in commands)


def test_rounding_is_off_unless_asked_for():
    assert Budget("quick").of("nerf") == ("--preset", "quick", "--no-bf16")
    assert Budget("quick", ("--bf16",)).of("nerf") == ("--preset", "quick", "--bf16")
    assert Budget("quick").of("3dgs") == ("--preset", "quick")


def test_surfaces_are_extracted_and_measured_against_the_scenes_truth(tmp_path, capsys):
    room = tmp_path / "room0"
    room.mkdir()
    for name in ("traj.txt", "../room0_mesh.ply"):
        (room / name).write_text("")
    lines = planned(capsys, room, "--preset", "quick", "--experiment", "surface", "--methods", "neus")
    assert [line.split()[2] for line in lines] == ["nfc_splat.train", "nfc_splat.export", "nfc_splat.eval"] * 2
    assert "room0_mesh.ply --protocol replica --scene" in lines[2]
    (room / "traj.txt").unlink()
    lines = planned(capsys, room, "--preset", "quick", "--experiment", "surface", "--methods", "neus")
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
        (["a", "--truth", "x.ply"], "--truth x.ply: is for one scene and an experiment that measures surfaces"),
    ],
)
def test_wrong_comparisons_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "other/a"):
        Path(folder).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        compare(["--preset", "quick", "--dry-run", *arguments])
    assert not Path("runs").exists()


# ----------------------------------------------------------------------------------------------- the table


def finished(folder, method, seed, psnr):
    """A case whose run is there, with made-up numbers."""
    run = folder / f"{method}-{seed}"
    summary = {"psnr": psnr, "ssim": 0.9, "lpips": None, "train_seconds": 60.0, "peak_memory_mb": 500}
    write_json(run / "eval" / "summary.json", summary)
    return Case(run.name, "a", method, "regression", seed, run, (Command(("x",), run / "eval/summary.json"),))


def test_a_row_is_the_mean_over_seeds(tmp_path, capsys):
    values = [20.0, 21.0, 24.0]
    cases = [finished(tmp_path, "dvgo", seed, value) for seed, value in enumerate(values)]
    cases.append(Case("3dgs-0", "a", "3dgs", "regression", 0, tmp_path, (Command(("x",), tmp_path / "no"),)))
    paths = report(EXPERIMENTS["static"], cases, {"3dgs-0": "failed (2): no memory"}, tmp_path)
    out = capsys.readouterr().out
    assert f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" in out
    assert "LPIPS" not in out
    assert "3dgs-0: failed (2): no memory" in out
    assert "regression (0 of 1)" in out
    record = json.loads(paths[0].read_text())
    assert [case["measured"] and case["measured"]["psnr"] for case in record["cases"]] == [*values, None]
    rows = list(csv.DictReader(paths[1].open()))
    assert (rows[2]["psnr"], rows[2]["lpips"], rows[3]["failure"]) == ("24.0", "", "failed (2): no memory")


def test_few_views_are_a_table_and_a_plot(tmp_path, capsys):
    (tmp_path / "chair").mkdir()
    words = (tmp_path / "chair", "--preset", "quick", "--experiment", "few-views", "--out", tmp_path / "out")
    commands = planned(capsys, *words)
    assert len(commands) == 10
    assert all("--method strivec" in line for line in commands)
    assert "--train-views 10 --loss regression --seed 42" in commands[0]
    experiment = EXPERIMENTS["few-views"]
    cases = plan(experiment, [MeasuredScene(tmp_path / "chair")], ["strivec"], [1, 2], Budget("quick"), tmp_path)
    for case in cases[:-1]:  # the last one failed
        psnr = 20.0 + case.seed + 5 * case.variant.endswith("classification")
        summary = {"psnr": psnr, "ssim": 0.9, "lpips": None, "train_seconds": 60.0, "peak_memory_mb": 500}
        write_json(case.folder / "eval" / "summary.json", summary)
    paths = report(experiment, cases, {}, tmp_path)
    printed = capsys.readouterr().out
    assert "100 views, classification (1 of 2)" in printed
    assert "28.53" in printed
    assert "a number of views that the paper does not state" in printed
    picture = ElementTree.parse(paths[-1]).getroot()
    assert paths[-1].name == "chair-strivec.svg"
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"regression", "classification", "10", "100", "training views", "PSNR (dB)"} <= set(texts)
    heights = [float(element.get("cy")) for element in picture.iter() if element.tag.endswith("circle")]
    assert heights[0] == heights[4] > heights[6]  # regression's points, and above them classification's


@pytest.mark.parametrize(("low", "high"), [(20.1, 31.7), (28.0, 28.0), (-3e-5, 2e-4), (0.0, 0.0), (99.0, 101.0)])
def test_ticks_are_round_and_hold_all_values(low, high):
    first, last, step = _ticks(low, high)
    assert first <= low + 1e-9 * step
    assert last > high
    assert 1 <= round((last - first) / step) <= 12
    assert float(f"{step:.1e}") == pytest.approx(step)


def test_a_case_counts_when_all_its_files_are_there(tmp_path):
    experiment = Experiment("e", "", ("neus",), (Variant("regression", ()),), surfaces=True)
    scene = MeasuredScene(tmp_path / "a", tmp_path / "truth.ply", "replica")
    (case,) = plan(experiment, [scene], ["neus"], [1], Budget("quick"), tmp_path)
    write_json(case.folder / "eval" / "summary.json", {"psnr": 30.0})
    (case.folder / "mesh.ply").write_text("")
    assert not case.done
    assert measured(case) is None
    names = ("accuracy", "completeness", "chamfer_l1_mean", "normal_consistency")
    values = dict.fromkeys(names, 0.5) | {f"{name}@0.05": 0.7 for name in ("precision", "recall", "fscore")}
    geometry = {"metrics": values, "protocol": {"name": "replica", "thresholds": [0.05]}}
    write_json(case.folder / "mesh-eval" / "metrics.json", geometry)
    found = measured(case)
    assert (found["psnr"], found["accuracy"], found["fscore"], found["threshold"]) == (30.0, 0.5, 0.7, 0.05)


# ----------------------------------------------------------------------------------------------- the command


def started(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "nfc_splat.compare", *map(str, arguments)]
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


SIZE = ("--steps", "120", "--init-points", "1000", "--max-primitives", "1500", "--threads", "1")


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_and_one_failure_does_not_end_it(tmp_path, monkeypatch, capsys):
    write_blender_scene(tmp_path / "ball", train=8, test=2)
    asked = ("ball", "--preset", "quick", "--methods", "3dgs", "nerf", "--out", "out")
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
    assert "resumed at step" in Path("out/cases/ball-3dgs-regression-42.log").read_text()
    assert "ball-nerf-regression-42: failed (2): " in out
    assert "--init-points" in out
    cases = json.loads(Path("out/results.json").read_text())["cases"]
    assert [bool(case["measured"]) for case in cases] == [True, True, False, False]
    assert all(case["measured"]["psnr"] > 5 for case in cases[:2])

    before = Path("out/results.csv").read_text().splitlines()
    assert compare([*asked, "--methods", "3dgs", "--", *SIZE]) == 0
    assert capsys.readouterr().out.count("done before") == 2
    rows = Path("out/results.csv").read_text().splitlines()
    assert rows == before[: len(rows)]
    with pytest.raises(UserError, match="was begun with other flags than now"):
        compare([*asked, "--", *SIZE, "--sh-degree", "1"])


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
    (case,) = json.loads(Path("out/results.json").read_text())["cases"]
    assert 0 < case["measured"]["fscore"] <= 1
    out = capsys.readouterr().out
    assert "protocol plain" in out
    assert "NeuS*" in out
