"""`python -m nfc_splat.train` on scenes that move: which method, what is said, both losses, killed and resumed."""

import dataclasses
import json
import logging

import pytest
import torch
from interrupted_runs import assert_same, crash_at, newest
from moving_toys import moving_config, write_moving_scene

from nfc_splat import render
from nfc_splat.data import load_scene
from nfc_splat.data.config import DataConfig
from nfc_splat.data.motion import scene_moves
from nfc_splat.errors import UserError
from nfc_splat.export import fusion
from nfc_splat.export.fusion import draw_views
from nfc_splat.export.mesh import main as export_mesh
from nfc_splat.train import train
from nfc_splat.training.checkpoint import checkpoint_files
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.config import CheckpointConfig, default_config, resolve
from nfc_splat.training.load import load_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_moving_scene(tmp_path_factory.mktemp("data") / "disc")


def configured(scene, out, **changes):
    """A resolved 4dgs config of a few steps."""
    config = default_config(scene, method="4dgs", preset="quick", device="cpu")
    config = dataclasses.replace(config, out=out, threads=1, quiet=True, log_every=1)
    return resolve(dataclasses.replace(config, model=moving_config(steps=30, coarse_steps=12), **changes))


@pytest.fixture
def configure(scene, tmp_path):
    return lambda name, **changes: configured(scene, tmp_path / name, **changes)


@pytest.fixture(scope="module")
def trained(scene, tmp_path_factory):
    """The folder of a finished run by regression."""
    config = configured(scene, tmp_path_factory.mktemp("moving") / "run")
    assert train(config) == 0
    return config.out


@pytest.fixture(scope="module")
def static(scene, tmp_path_factory):
    """The folder of a run of 3dgs on the same scene, and what it warned of."""
    out = tmp_path_factory.mktemp("static") / "run"
    words = ("--method", "3dgs", "--steps", "1", "--out", str(out), "--quiet", "--backend", "reference")
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("nfc_splat")
    log.addHandler(handler)
    try:
        assert train(parse(scene, *words)) == 0
    finally:
        log.removeHandler(handler)
    return out, said


def parse(scene, *words):
    return parse_command_line([str(scene), "--device", "cpu", "--threads", "1", *words])


# Times


def test_times_are_normalised_over_training_and_test_frames(scene):
    splits = load_scene(scene, undistort=True).splits
    torch.testing.assert_close(splits["train"].cameras.times, torch.arange(8) / 9)
    torch.testing.assert_close(splits["test"].cameras.times, torch.tensor([1 / 9, 1.0]))


@pytest.mark.parametrize(("times", "moves"), [("moving", True), ("constant", False), ("none", False)])
def test_what_moves_is_known_before_images_are_read(tmp_path, times, moves):
    scene = write_moving_scene(tmp_path / "scene", times=times)
    for image in (scene / "train").iterdir():
        image.write_bytes(b"")
    assert scene_moves(scene, DataConfig()) == moves
    assert scene_moves(scene / "transforms_train.json", DataConfig(format="blender")) == moves


# The choice of the method


def test_auto_is_4dgs_where_frames_carry_different_times(scene, tmp_path):
    for words in ((), ("--method", "auto")):
        config = parse(scene, *words, "--steps", "7", "--time-planes", "published")
        assert (config.method, config.steps, config.model.time_planes) == ("4dgs", 7, "published")
        assert config.out.name == "disc-4dgs-regression"
    still = write_moving_scene(tmp_path / "still", times="none")
    assert parse(still).method == "3dgs"
    assert parse(still, "--method", "4dgs").method == "4dgs"
    assert default_config(scene, device="cpu").method == "4dgs"
    assert default_config(still, device="cpu").method == "3dgs"


def test_what_auto_chose_is_said(scene, tmp_path, caplog):
    config = parse(scene, "--steps", "1", "--out", str(tmp_path / "run"), "--backend", "reference")
    with caplog.at_level(logging.INFO, "nfc_splat"):
        assert train(config) == 0
    assert "method: 4dgs" in caplog.text
    assert "the training frames carry 8 different times, so the scene moves" in caplog.text


def test_a_static_method_is_warned_of_motion(static):
    (warning,) = [line for line in static[1] if "static" in line]
    assert warning.startswith("--method 3dgs is static and the frames carry 8 different times")
    assert "4dgs" in warning


@pytest.mark.parametrize(
    ("times", "why"), [("constant", "all training frames have the same time"), ("none", "no times")]
)
def test_a_method_that_moves_needs_motion(tmp_path, times, why):
    scene = write_moving_scene(tmp_path / "scene", times=times)
    config = parse(scene, "--method", "4dgs", "--out", str(tmp_path / "run"))
    with pytest.raises(UserError, match=why) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert "--method 3dgs" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_target_encoding_is_refused_with_the_reason(scene):
    with pytest.raises(UserError, match=r"4dgs has no colour network.*--loss classification alone"):
        parse(scene, "--method", "4dgs", "--loss", "classification", "--target-encoding", "binary")
    with pytest.raises(UserError, match="--loss bitwise: 4dgs predicts no bits"):
        parse(scene, "--method", "4dgs", "--loss", "bitwise")


# Training


@pytest.mark.parametrize("loss", ["regression", "classification"])
def test_a_run_learns_and_can_be_drawn_at_any_time(configure, trained, loss):
    if loss == "classification":
        trained = configure("run", loss=loss).out
        assert train(configure("run", loss=loss)) == 0
    log = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["psnr"] > log[0]["psnr"]
    assert all(record["primitives"] > 0 for record in log)  # N is logged
    assert ("classification" in log[0]["losses"]) == (loss == "classification")
    assert "time_smoothness" not in log[11]["losses"]
    assert "time_smoothness" in log[12]["losses"]
    assert json.loads((trained / "eval/summary.json").read_text())["n_views"] == 2
    assert (trained / "point_cloud.ply").is_file()
    run = load_run(trained)
    cameras = run.scene.splits["test"].cameras[0]
    early, late = (
        run.model.render(dataclasses.replace(cameras, times=torch.tensor([time])), background=torch.ones(3)).color
        for time in (0.0, 1.0)
    )
    assert not torch.equal(early, late)


def test_time_passes_along_a_path_or_stands_still(trained, tmp_path):
    for words, same in ((("--path", "still"), False), (("--path", "still", "--time", "0.5"), True)):
        folder = tmp_path / f"{same}"
        words = (*words, "--frames", "3", "--outputs", "color", "--out", str(folder))
        assert render.main([str(trained), *words]) == 0
        first, _, last = (path.read_bytes() for path in sorted((folder / "color").iterdir()))
        assert (first == last) == same
        frames = json.loads((folder / "frames.json").read_text())["frames"]
        assert [frame["time"] for frame in frames] == ([0.5] * 3 if same else [0, 0.5, 1])
        assert frames[0]["camera_to_world"] == frames[2]["camera_to_world"]
    with pytest.raises(UserError, match="--time 2: expected 0 to 1"):
        render.main([str(trained), "--time", "2"])


def test_a_mesh_shows_one_moment(trained, monkeypatch, capsys):
    asked = []

    def seen(model, cameras, advance):
        asked.append(cameras.times.unique().tolist())
        return draw_views(model, cameras, advance)

    monkeypatch.setattr(fusion, "draw_views", seen)
    monkeypatch.setattr(fusion, "OPAQUE", 0.01)  # so few steps leave but a haze
    for words in ((), ("--time", "0.75", "--overwrite")):
        assert export_mesh([str(trained), "--resolution", "24", "--min-triangles", "1", *words]) == 0
    assert asked == [[0.0], [0.75]]
    assert "views at time 0.75, depth up to" in capsys.readouterr().out


def test_a_static_method_knows_no_time(static):
    with pytest.raises(UserError, match="3dgs does not model motion"):
        render.main([str(static[0]), "--time", "0.5"])


def test_a_killed_run_goes_on_bit_for_bit_in_both_stages(configure, monkeypatch):
    saving = CheckpointConfig(save_steps=6, save_minutes=0, keep=9)
    straight = configure("straight", loss="classification", checkpoints=saving)
    train(straight)
    assert sorted(checkpoint_files(straight.out / "checkpoints")) == [0, 6, 12, 18, 24, 30]
    for crash, saved in ((9, 6), (13, 12), (22, 18)):  # in the coarse stage, between the stages, in the fine stage
        broken = configure(f"broken{crash}", loss="classification", checkpoints=saving)
        crash_at(monkeypatch, crash, broken)
        assert newest(broken.out).header.step == saved
        train(dataclasses.replace(broken, resume=str(broken.out)))
        assert_same(newest(straight.out), newest(broken.out))
