"""NeuS in whole runs: it learns a ball with every loss, resumes bit for bit, and writes its surface."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from interrupted_runs import assert_same, crash_at, newest
from neus_toys import SMALL, build, small
from ngp_scenes import RADIUS, write_ball

from nfc_splat.fields.neus import Recipe, export
from nfc_splat.train import train
from nfc_splat.training.config import CheckpointConfig, default_config, resolve
from nfc_splat.training.load import load_run

pytestmark = pytest.mark.slow

LONGER = {"steps": 160, "decay_steps": 160, "anneal_steps": 40, "warmup_steps": 10, "level_every": 30, "grid": 24}
FASTER = {
    "sharpness_lr": 2e-3,
    "depth": 1,
    "bias": 0.4,
    "finest_resolution": 16,
    "log2_table_size": 12,
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_ball(tmp_path_factory.mktemp("data") / "ball")


@pytest.fixture
def configure(scene, tmp_path):
    def build(loss="regression", model=LONGER, preset="quick", **changes):
        config = default_config(scene, method="neus", preset=preset, device="cpu")
        model = dataclasses.replace(config.model, **(SMALL | FASTER | {"target_encoding": "auto"} | model))
        defaults = {"out": tmp_path / "run", "threads": 1, "quiet": True, "log_every": 1}
        return resolve(dataclasses.replace(config, model=model, loss=loss, **(defaults | changes)))

    return build


@pytest.mark.parametrize("loss", ["regression", "classification", "bitwise"])
def test_a_ball_is_learned(configure, loss):
    config = configure(loss)
    assert config.loss_weight == (None if loss == "regression" else 20.0)
    assert train(config) == 0
    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert {"rays", "samples", "occupied", "s"} <= log[-1].keys()
    assert log[-1]["s"] > 30
    assert log[-1]["occupied"] < 0.5
    assert json.loads((config.out / "eval/summary.json").read_text())["psnr"] > 22
    model = load_run(config.out).model
    assert model.head.n_logits == (1 if loss == "regression" else 8)
    towards = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    towards[:, 2] *= 0.3  # the cameras stand around the ball, not above
    towards = torch.nn.functional.normalize(towards, dim=-1)
    assert (model.distance(RADIUS * towards)).abs().mean() < 0.1  # a pixel is 0.12 wide there
    assert (model.distance((RADIUS + 0.25) * towards) > 0.02).float().mean() > 0.95
    assert (model.distance((RADIUS - 0.25) * towards) < -0.02).float().mean() > 0.95


def test_the_published_networks_learn_too(configure):
    wider = {"sharpness": 0.3, "lr": 1e-3, "sharpness_lr": 1e-3, "width": 48, "rays": 128, "warmup_steps": 5}
    changes = LONGER | wider | {"steps": 200, "surroundings": "none", "octaves": 2, "depth": 2}
    config = configure(model=changes, preset="paper")
    assert train(config) == 0
    assert json.loads((config.out / "eval/summary.json").read_text())["psnr"] > 17
    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([line["loss"] for line in log[-10:]]) < 0.6 * np.mean([line["loss"] for line in log[:10]])


# Around an update of the grid (multiples of 4), the end of the warm-up (5), a level (10) and the annealing's end (20).
@pytest.mark.parametrize("crash", [6, 12, 22])
def test_a_resumed_run_is_the_same_run(configure, tmp_path, monkeypatch, crash):
    saving = CheckpointConfig(save_steps=5, save_minutes=0, keep=2)
    straight, broken = (
        configure("classification", model={"steps": 30}, out=tmp_path / name, checkpoints=saving)
        for name in ("straight", "broken")
    )
    train(straight)
    crash_at(monkeypatch, crash, broken)
    train(dataclasses.replace(broken, resume=str(broken.out)))
    assert_same(newest(straight.out), newest(broken.out))


def test_opaque_scenes_have_a_background(configure, tmp_path):
    config = configure(scene=write_ball(tmp_path / "opaque", transparent=False), model={"steps": 3})
    assert train(config) == 0
    model = load_run(config.out).model
    assert model.behind.kind == "contracted"
    moments = newest(config.out).tensors
    assert any(name.startswith("optimizer") and "background" in name for name in moments)


def test_the_masks_term_is_there_when_asked_for(configure):
    config = configure(model={"steps": 3, "mask_weight": 0.1})
    assert train(config) == 0
    lines = (config.out / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["losses"]["mask"] > 0 for line in lines)


def test_the_number_of_rays_follows_the_samples_they_need():
    config = small("quick", depth=1, rays=1000)
    model, recipe = build(config), None
    recipe = Recipe(config, None)
    optimizers = recipe.optimizers(model)

    def after(marched):
        drawn = type("Drawn", (), {"extras": {"marched": marched}})
        recipe.after_step(model, optimizers, drawn, 1)
        return recipe.rays

    assert recipe.rays == 64
    assert after(2048) == 128
    assert after(10) == 256
    assert after(4096 * 2) == 128
    assert after(0) == 256
    for _ in range(3):
        after(0)
    assert recipe.rays == 1000
    other = Recipe(config, None)
    other.load_state_dict(recipe.state_dict())
    assert other.rays == 1000
    assert Recipe(small("paper", rays=77), None).rays == 77


def test_export_writes_points_on_the_surface(tmp_path):
    model = build(small("quick", depth=1, bias=0.5, width=64), bounds=torch.tensor([[1.0, 1, 1], [5.0, 5, 5]])).eval()
    (path,) = export(model, tmp_path)
    _, _, body = path.read_bytes().partition(b"end_header\n")
    rows = np.frombuffer(body, [("position", "<f4", 3), ("color", "u1", 3)])
    assert len(rows) > 5000
    points = torch.from_numpy(rows["position"].copy())
    assert model.distance(points).abs().max() < 0.1 * 2 * 2 / 160 + 1e-4
    assert ((points > 1) & (points < 5)).all()


def test_a_surface_that_is_gone_gives_an_empty_cloud(tmp_path, caplog):
    model = build(small("quick", depth=1)).eval()
    with torch.no_grad():
        model.sdf.layers[-1].bias.fill_(9.0)
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        (path,) = export(model, tmp_path)
    assert b"element vertex 0" in path.read_bytes()
    assert "no surface in its region" in caplog.text
