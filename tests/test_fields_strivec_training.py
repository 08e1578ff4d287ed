"""Strivec in whole runs: it learns a ball with every loss, resumes bit for bit, and is saved at its known size."""

import dataclasses
import json
import re

import pytest
import torch
from dvgo_toys import write_ball
from interrupted_runs import assert_same, crash_at, newest
from strivec_toys import toy_config, training_config

from nfc_splat.data.config import DataConfig
from nfc_splat.errors import UserError
from nfc_splat.fields.strivec_tensors import parameter_count
from nfc_splat.train import train
from nfc_splat.training.checkpoint import newest_checkpoint
from nfc_splat.training.config import CheckpointConfig
from nfc_splat.training.load import load_run
from nfc_splat.training.run import read_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_ball(tmp_path_factory.mktemp("data") / "ball")


@pytest.mark.parametrize("loss", ["regression", "classification", "bitwise"])
def test_a_ball_is_learned(scene, tmp_path, loss):
    config = training_config(scene, tmp_path / "run", toy_config(target_encoding="auto"), loss=loss, log_every=1)
    assert train(config) == 0
    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["tensors"] > 10
    assert log[-1]["samples"] > 0
    assert json.loads((config.out / "eval/summary.json").read_text())["psnr"] > 20
    run = load_run(config.out)
    assert [scale.cells for scale in run.model.scales] == [12, 6]
    assert run.model.mask is not None
    assert run.model.head.n_logits == (1 if loss == "regression" else 8)


def test_the_checkpoint_is_as_large_as_the_numbers_it_holds(scene, tmp_path):
    config = training_config(scene, tmp_path / "run", toy_config())
    train(config)
    model, settings = load_run(config.out).model, config.model
    counts = [len(scale.centers) for scale in model.scales]
    ranks = [rank + settings.appearance_rank for rank in settings.density_ranks]
    tensors = sum(parameter_count(*shape) for shape in zip(counts, settings.cells_at(1), ranks, strict=True))
    basis = settings.features * settings.appearance_rank * 2
    inputs = (settings.features + 3) * 3
    net = (inputs + 1) * 16 + 17 * 16 + 17 * 3
    assert sum(parameter.numel() for parameter in model.parameters()) == tensors + basis + net
    checkpoint = newest_checkpoint(config.out / "checkpoints")
    moments = sum(value.nbytes for name, value in checkpoint.tensors.items() if name.startswith("optimizer"))
    assert moments == pytest.approx(2 * 4 * (tensors + basis + net), abs=200)
    own = sum(value.nbytes for name, value in checkpoint.tensors.items() if name.startswith("model"))
    assert 0 <= own - 4 * (tensors + basis + net) < 0.1 * own  # centres, the mask's bits, the box
    assert checkpoint.path.stat().st_size < 1.3 * (own + moments) + 2**16


def interrupted(scene, out):
    """A run of 30 steps: the coarse stage ends with step 10; masks, growth and shrinking come 4, 8 and 14 later."""
    thin = {"geometry_threshold": 1e-5, "mask_threshold": 0.0}
    model = toy_config(steps=30, coarse_steps=10, mask_at=(4, 14), grow_at=(8,), **thin)
    saving = CheckpointConfig(save_steps=5, save_minutes=0, keep=2)
    return training_config(scene, out, model, checkpoints=saving, loss="classification", log_every=1)


@pytest.fixture(scope="module")
def straight(scene, tmp_path_factory):
    config = interrupted(scene, tmp_path_factory.mktemp("straight") / "run")
    train(config)
    return newest(config.out)


@pytest.mark.parametrize("crash", [7, 12, 16, 20, 26])
def test_a_resumed_run_is_the_same_run(scene, straight, tmp_path, monkeypatch, crash):
    broken = interrupted(scene, tmp_path / "broken")
    crash_at(monkeypatch, crash, broken)
    train(dataclasses.replace(broken, resume=str(broken.out)))
    assert_same(straight, newest(broken.out))


def test_a_run_with_too_many_tensors_says_the_threshold_that_the_next_one_needs(scene, tmp_path):
    thin = {"geometry_threshold": 1e-5, "mask_threshold": 0.0, "max_parameters": 15_000}
    model = toy_config(steps=22, coarse_steps=20, mask_at=(), **thin)
    config = training_config(scene, tmp_path / "run", model)
    with pytest.raises(UserError, match="start again with --overwrite") as caught:
        train(config)
    threshold = float(re.search(r"--geometry-threshold (\S+) \(now 1e-05\) fits", str(caught.value))[1])
    model = dataclasses.replace(model, geometry_threshold=threshold)
    assert train(dataclasses.replace(config, model=model, overwrite=True)) == 0
    assert load_run(config.out).model.primitives > 5


def test_given_points_take_the_place_of_the_coarse_stage(scene, tmp_path):
    points = 0.8 * torch.nn.functional.normalize(torch.randn(300, 3), dim=-1)
    path = tmp_path / "points.txt"
    path.write_text("\n".join(";".join(f"{value:.5f}" for value in row) for row in points.tolist()))
    model = toy_config(geometry="points", steps=80)
    config = training_config(scene, tmp_path / "run", model, data=DataConfig(points=path), log_every=1)
    assert train(config) == 0
    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert "tensors" in log[0]
    assert log[-1]["psnr"] > log[0]["psnr"] + 3
    given = path.read_bytes()
    path.unlink()
    assert (config.out / "initial_points.txt").read_bytes() == given
    assert load_run(config.out).step == 80  # its scene, points included, is that of the training


def test_fewer_training_views_are_recorded(scene, tmp_path):
    data = DataConfig(train_views=5)
    config = training_config(scene, tmp_path / "run", toy_config(steps=60, coarse_steps=50), data=data)
    assert train(config) == 0
    assert read_config(config.out).data.train_views == 5
    protocol = json.loads((config.out / "eval/summary.json").read_text())["protocol"]
    assert protocol["views"] == {"train": 5, "test": 1}
    assert protocol["train_views"] == 5
