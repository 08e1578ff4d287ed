"""D-NeRF through the commands: it learns motion by every loss, and goes on when it was killed; which views are
measured."""

import json
import logging
from dataclasses import replace

import pytest
from interrupted_runs import assert_same, crash_at, newest
from moving_toys import write_moving_scene

from nfc_splat import render
from nfc_splat.data import load_scene
from nfc_splat.errors import UserError
from nfc_splat.eval.__main__ import main as evaluate
from nfc_splat.fields import dnerf
from nfc_splat.train import main, train
from nfc_splat.training.checkpoint import checkpoint_files
from nfc_splat.training.config import CheckpointConfig, TrainConfig, resolve
from nfc_splat.training.load import load_run

pytestmark = pytest.mark.slow

SMALL = {"deformation_width": 16, "deformation_depth": 3, "width": 16, "bf16": False}
NETWORKS = {"canonical": "networks", "depth": 3, "coarse_samples": 12, "fine_samples": 10, "rays": 64}
HASH = {"levels": 4, "log2_table_size": 12, "finest_resolution": 64, "grid": 16, "march_steps": 96, "samples": 2**12}
KINDS = {"networks": NETWORKS | SMALL, "hash": HASH | SMALL}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_moving_scene(tmp_path_factory.mktemp("data") / "disc")


def training(scene, out, loss="regression", steps=12, kind="hash", **options):
    model = dnerf.preset("quick", **{"steps": steps, **KINDS[kind], **options})
    saving = CheckpointConfig(save_steps=4, save_minutes=0, keep=9)
    fixed = {"method": "dnerf", "threads": 1, "quiet": True, "checkpoints": saving, "log_every": 1}
    return resolve(TrainConfig(scene=scene, loss=loss, out=out, model=model, **fixed))


def read_log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def words_of(options):
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_the_command_learns_what_moves(scene, tmp_path):
    run = tmp_path / "run"
    sizes = {name: value for name, value in KINDS["hash"].items() if name != "bf16"}
    words = [str(scene), "--method", "dnerf", "--preset", "quick", "--out", str(run), "--quiet", "--no-bf16"]
    assert main([*words, *words_of(sizes), "--steps", "100", "--threads", "1", "--background", "white"]) == 0
    log = read_log(run)
    assert [log[0]["frames"], log[-1]["frames"]] == [3, 8]
    assert log[-1]["losses"]["photometric"] < 0.3 * log[0]["losses"]["photometric"]
    assert (run / "point_cloud.ply").is_file()
    assert render.main([str(run), "--path", "still", "--frames", "2", "--outputs", "color"]) == 0
    first, last = sorted((run / "rendered" / "still" / "color").iterdir())
    assert first.read_bytes() != last.read_bytes()
    # D-NeRF's protocol leaves out the first of the two test views.
    assert evaluate(["images", str(run), "--protocol", "dnerf"]) == 0
    found = json.loads((run / "eval" / "dnerf-test" / "summary.json").read_text())
    (view,) = json.loads((run / "eval" / "dnerf-test" / "per_view.json").read_text())
    assert found["n_views"] == 1
    assert found["psnr"] == pytest.approx(view["psnr"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("loss", "encoding"), [("classification", "auto"), ("bitwise", "gray")])
def test_classification_learns_too(scene, tmp_path, loss, encoding, kind):
    config = training(scene, tmp_path / "run", loss, steps=30, kind=kind, target_encoding=encoding)
    assert train(config) == 0
    first, *_, last = read_log(tmp_path / "run")
    assert last["losses"]["classification"] < first["losses"]["classification"]
    assert load_run(tmp_path / "run").model.canonical.head.n_logits == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(scene, tmp_path, monkeypatch, kind):
    """Killed while frames still join, and resumed past the step from which all are there."""
    options = {"kind": kind, "time_steps": 9, "update_every": 3}
    straight, broken = (training(scene, tmp_path / name, "classification", **options) for name in ("one", "two"))
    train(straight)
    assert [record["frames"] for record in read_log(straight.out)] == [3, 3, 3, 3, 4, 5, 6, 7, 8, 8, 8, 8]
    crash_at(monkeypatch, 7, broken)
    assert max(checkpoint_files(broken.out / "checkpoints")) == 4
    train(replace(broken, resume=str(broken.out)))
    assert_same(newest(straight.out), newest(broken.out))


@pytest.mark.parametrize("times", ["constant", "none"])
def test_a_scene_that_stands_still_is_refused(tmp_path, times):
    still = write_moving_scene(tmp_path / "still", times=times)
    with pytest.raises(UserError, match=r"--method dnerf models motion, and .*; use --method 3dgs"):
        train(training(still, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_static_method_is_told_of_dnerf(scene, tmp_path, caplog):
    words = [str(scene), "--method", "ngp", "--steps", "1", "--out", str(tmp_path / "run"), "--quiet", "--threads", "1"]
    assert main([*words, "--levels", "2", "--log2-table-size", "8", "--samples", "64", "--march-steps", "8"]) == 0
    (warning,) = [record.getMessage() for record in caplog.records if "static" in record.getMessage()]
    assert "for motion use --method 4dgs or dnerf" in warning


# Which views are measured


@pytest.fixture
def lego(tmp_path):
    """A scene called lego that moves, with views for validation: its test views over again."""
    folder = write_moving_scene(tmp_path / "lego")
    (folder / "transforms_val.json").write_text((folder / "transforms_test.json").read_text())
    return folder


def test_lego_is_measured_on_views_that_fit_its_training_views(lego, tmp_path, caplog):
    config = replace(training(lego, tmp_path / "run", steps=2), split="val", quiet=False)
    with caplog.at_level(logging.INFO, "nfc_splat"):
        assert train(config) == 0
    assert "shows its bucket at another angle in the test views" in caplog.text
    assert "--split val measures on views that fit" in caplog.text
    summary = json.loads((config.out / "eval" / "summary.json").read_text())
    assert (summary["n_views"], summary["protocol"]["split"]) == (2, "val")
    assert evaluate(["images", str(config.out)]) == 0
    again = json.loads((config.out / "eval" / "summary.json").read_text())
    assert (again["protocol"]["split"], again["psnr"]) == ("val", summary["psnr"])
    assert evaluate(["images", str(config.out), "--split", "test"]) == 0
    assert (config.out / "eval" / "default-test" / "summary.json").is_file()


def test_views_that_the_scene_does_not_have_are_missed_before_training(scene, tmp_path):
    config = replace(training(scene, tmp_path / "run"), split="val")
    with pytest.raises(UserError, match=r"--split val: disc has no such views, it has train \(8\), test \(2\)"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_other_scenes_are_not_called_broken(scene, tmp_path):
    still = write_moving_scene(tmp_path / "lego", times="none")  # NeRF's own lego
    for folder in (scene, still):
        assert not any("bucket" in notice for notice in load_scene(folder, undistort=False).notices)
