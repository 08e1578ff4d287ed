"""NeRF through the commands: it learns by every loss, and a run that was killed goes on as if it had not been."""

import json
from dataclasses import replace

import pytest
from interrupted_runs import assert_same, crash_at, newest
from ngp_scenes import write_ball

from nfc_splat.fields import nerf
from nfc_splat.train import main, train
from nfc_splat.training.checkpoint import checkpoint_files
from nfc_splat.training.config import CheckpointConfig, TrainConfig, resolve
from nfc_splat.training.load import load_run

pytestmark = pytest.mark.slow

SMALL = {"width": 32, "depth": 3, "coarse_samples": 16, "fine_samples": 16, "rays": 128, "precrop_steps": 10}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene") / "ball"
    write_ball(folder, transparent=False)
    return folder


def training(scene, out, loss="regression", steps=12, **options):
    model = nerf.preset("quick", **{"steps": steps, **SMALL, **options})
    saving = CheckpointConfig(save_steps=4, save_minutes=0, keep=9)
    return resolve(
        TrainConfig(
            scene=scene, method="nerf", loss=loss, out=out, threads=1, quiet=True, checkpoints=saving, model=model
        )
    )


def read_log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_command_learns_a_ball(scene, tmp_path):
    words = [str(scene), "--method", "nerf", "--preset", "quick", "--out", str(tmp_path / "run"), "--quiet"]
    sizes = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*words, *sizes, "--lr", "5e-3", "--steps", "200", "--threads", "1"]) == 0
    losses = [record["losses"]["photometric"] for record in read_log(tmp_path / "run")]
    assert losses[-1] < 0.4 * max(losses)
    assert json.loads((tmp_path / "run" / "eval" / "summary.json").read_text())["psnr"] > 13  # all white: 10.6
    assert (tmp_path / "run" / "nerf_fine.safetensors").is_file()
    model = load_run(tmp_path / "run").model
    assert model.config.target_encoding == "none"
    assert model.depth_range.tolist() == pytest.approx([2.0, 6.0], rel=1e-4)


@pytest.mark.parametrize(("loss", "encoding"), [("classification", "auto"), ("bitwise", "gray")])
def test_classification_learns_too(scene, tmp_path, loss, encoding):
    config = training(scene, tmp_path / "run", loss, steps=40, target_encoding=encoding)
    assert train(config) == 0
    first, *_, last = read_log(tmp_path / "run")
    assert last["losses"]["classification"] < first["losses"]["classification"]
    model = load_run(tmp_path / "run").model
    assert model.coarse.color.out_features == model.fine.color.out_features == 24


@pytest.mark.parametrize("options", [{}, {"bf16": False, "density_noise": 0.1, "batching": "all"}])
def test_a_killed_run_goes_on_as_if_nothing_had_been(scene, tmp_path, monkeypatch, options):
    straight, broken = (training(scene, tmp_path / name, "classification", **options) for name in ("one", "two"))
    train(straight)
    crash_at(monkeypatch, 7, broken)
    assert max(checkpoint_files(broken.out / "checkpoints")) == 4
    train(replace(broken, resume=str(broken.out)))
    assert_same(newest(straight.out), newest(broken.out))
