"""PSNR along a training: what is logged when, that it is the views' PSNR, and that the training does not feel it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import training_toy
from dvgo_toys import toy_config
from eval_toys import write_blender_scene

from nfc_splat.eval.curves import Curve
from nfc_splat.eval.images import psnr
from nfc_splat.fields import METHODS
from nfc_splat.train import main, train
from nfc_splat.training.checkpoint import newest_checkpoint
from nfc_splat.training.config import default_config, resolve
from nfc_splat.training.load import load_run


def lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "test_psnr" in record]


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)
    monkeypatch.chdir(tmp_path)
    return training_toy.write_scene(tmp_path / "scene", views=20, tests=10)


def mean_psnr(run, split: str, chosen: list[int]) -> float:
    """Of the model that `run` ended with, in dB."""
    _, scene, model, _ = load_run(run)
    views, background = scene.splits[split], scene.background
    drawn = [model.render(views.cameras[index], background=background).color[0].clamp(0, 1) for index in chosen]
    values = [psnr(color, views.target(index, background)) for color, index in zip(drawn, chosen, strict=True)]
    return torch.stack(values).mean().item()


def test_lines_are_evenly_spread_and_the_last_is_the_models_own_psnr(toy):
    assert main([str(toy), "--method", "toy", "--steps", "50", "--curve-points", "4", "--out", "run"]) == 0
    found = lines(toy.parent / "run")
    assert [line["step"] for line in found] == [12, 25, 38, 50]  # 12.5 and 37.5, rounded
    for name, chosen in (("train", [1, 3, 6, 8, 11, 13, 16, 18]), ("test", [0, 1, 3, 4, 5, 6, 8, 9])):
        assert found[-1][f"{name}_psnr"] == pytest.approx(mean_psnr(toy.parent / "run", name, chosen), abs=1e-6)


def test_the_line_of_the_views_held_out_has_one_name_whatever_theirs_is(toy):
    text = json.loads((toy / "transforms_test.json").read_text())
    (toy / "transforms_val.json").write_text(json.dumps(text | {"frames": text["frames"][3:6]}))
    words = ["--steps", "10", "--curve-points", "1", "--split", "val", "--out", "run"]
    assert main([str(toy), "--method", "toy", *words]) == 0
    (line,) = lines(toy.parent / "run")
    assert set(line) == {"step", "train_psnr", "test_psnr"}
    assert line["test_psnr"] == pytest.approx(mean_psnr(toy.parent / "run", "val", [0, 1, 2]), abs=1e-6)


def test_a_resumed_run_has_each_line_once(toy):
    words = [str(toy), "--method", "toy", "--steps", "40", "--curve-points", "8", "--out", "run"]
    assert main(words) == 0
    whole = lines(toy.parent / "run")
    checkpoint = toy.parent / "run/checkpoints"
    assert len(whole) == 8
    assert checkpoint.is_dir()
    assert main([*words, "--resume"]) == 0
    assert lines(toy.parent / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("method", ["3dgs", "dvgo", "ngp"])
def test_the_training_does_not_feel_it(tmp_path, method):
    write_blender_scene(tmp_path / "ball", train=6, test=2)
    models = {
        "3dgs": dict(init_points=300, max_primitives=400, steps=40),
        "dvgo": vars(toy_config()),
        "ngp": dict(samples=2048, steps=40),
    }
    config = default_config(tmp_path / "ball", method=method, preset="quick", device="cpu")
    config = replace(config, model=replace(config.model, **models[method]), threads=1, quiet=True)
    tensors = []
    for out, points in (("plain", 0), ("measured", 5)):
        assert train(resolve(replace(config, curve_points=points, out=tmp_path / out))) == 0
        tensors.append(newest_checkpoint(tmp_path / out / "checkpoints").tensors)
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert [line["step"] for line in lines(tmp_path / "measured")] == [config.steps * k // 5 for k in range(1, 6)]
    assert not lines(tmp_path / "plain")


def test_a_step_that_was_not_taken_is_not_measured():
    curve = Curve({}, torch.zeros(3), steps=10, points=1, device="cpu", log=lambda _: pytest.fail("logged"))
    curve.after_step(SimpleNamespace(step=10, model=None), None)
