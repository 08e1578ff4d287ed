"""DVGO trained through the command: what it finds, in both kinds of scene, and that a resumed run ends alike."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from dvgo_toys import COLOR, RADIUS, ball_geometry, toy_config, training_config, write_ball

from nfc_splat.errors import UserError
from nfc_splat.fields.dvgo import Model, Recipe, export
from nfc_splat.fields.marched import warn_of_misses
from nfc_splat.rendering.kernels.threads import set_threads
from nfc_splat.train import train
from nfc_splat.training.checkpoint import checkpoint_files, read_checkpoint
from nfc_splat.training.config import CheckpointConfig, default_config, resolve
from nfc_splat.training.load import load_run
from nfc_splat.training.run import open_run, write_record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_ball(tmp_path_factory.mktemp("transparent") / "ball")


@pytest.fixture(scope="module")
def opaque_scene(tmp_path_factory):
    return write_ball(tmp_path_factory.mktemp("opaque") / "ball", transparent=False)


@pytest.fixture(autouse=True)
def _threads():
    yield
    set_threads()


def psnr(folder):
    return json.loads((folder / "eval" / "summary.json").read_text())["psnr"]


def final_tensors(folder):
    return read_checkpoint(next(iter(checkpoint_files(folder / "checkpoints").values()))).tensors


@pytest.fixture(scope="module")
def bounded_run(scene, tmp_path_factory):
    """A finished run with all its checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "bounded"
    saving = CheckpointConfig(save_steps=5, keep=1000)
    assert train(training_config(scene, out, toy_config(), checkpoints=saving)) == 0
    set_threads()
    return out


def test_a_bounded_scene_trains_coarse_then_fine(bounded_run):
    model = load_run(bounded_run).model
    assert psnr(bounded_run) > 25
    low, high = model.density.box
    assert ((low > -2.2 * RADIUS) & (low < -0.6 * RADIUS)).all()  # the coarse voxels are large
    assert ((high < 2.2 * RADIUS) & (high > 0.6 * RADIUS)).all()
    assert model.voxel_ratio == pytest.approx(1.0)
    assert float(model.act_shift) == pytest.approx(-4.5951 - 2, abs=1e-3)
    assert model.seen is None
    assert 0 < model.mask.share < 1


def test_the_figures_tell_the_stages(bounded_run):
    steps = [json.loads(line) for line in (bounded_run / "metrics.jsonl").read_text().splitlines()]
    voxels = {record["step"]: record["voxels"] for record in steps if "voxels" in record}
    assert voxels[50] == 18**3
    assert [voxels[step] for step in (70, 90, 120, 160)] == [2000, 4000, 8000, 8000]


@pytest.mark.parametrize("step", [25, 60, 65, 85, 115, 150])
def test_a_resumed_run_ends_with_the_same_bits(scene, bounded_run, tmp_path, step):
    """From the coarse stage, its last step, the fine stage before, between and after its doublings."""
    checkpoint = bounded_run / "checkpoints" / f"step_{step:08d}.safetensors"
    saving = CheckpointConfig(save_steps=0, keep=1)
    config = training_config(scene, tmp_path / "resumed", toy_config(), checkpoints=saving, resume=str(checkpoint))
    assert train(config) == 0
    ours, theirs = final_tensors(tmp_path / "resumed"), final_tensors(bounded_run)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(("loss", "encoding"), [("classification", "auto"), ("bitwise", "gray")])
def test_classification_trains_both_stages(scene, tmp_path, loss, encoding):
    config = training_config(scene, tmp_path / "run", toy_config(target_encoding=encoding), loss=loss)
    assert train(config) == 0
    assert load_run(tmp_path / "run").model.net.out_dim == 24
    assert psnr(tmp_path / "run") > 20


def test_an_unbounded_scene_trains_in_contracted_space(opaque_scene, tmp_path, caplog):
    """It learns its training views; with eight of them, each may stand right in front of its camera."""
    changes = dict(coarse_steps=30, voxels=24**3, base_voxels=24**3, alpha_init=1e-2)
    with caplog.at_level(logging.INFO):
        config = training_config(opaque_scene, tmp_path / "run", toy_config(**changes))
        assert train(config) == 0
    model = load_run(tmp_path / "run").model
    assert model.config.bounded == "no"
    assert model.config.coarse_steps == 0
    assert model.density.size == (24, 24, 24)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["psnr"] > 20
    bounds = json.loads((tmp_path / "run" / "bounds.json").read_text())
    assert bounds["space"] == "contracted (l2)"
    assert bounds["radius"] == pytest.approx(float(model.space.radius))


def test_every_unbounded_term_can_be_resumed(opaque_scene, tmp_path):
    changes = dict(steps=40, bounded="no", growths=1, nearclip=0.1, tv_density=1e-3, tv_color=1e-3, contraction="inf")
    model = toy_config(**changes, coarse_steps=0, tv_dense_until=20)
    saving = CheckpointConfig(save_steps=15, keep=10)
    assert train(training_config(opaque_scene, tmp_path / "whole", model, checkpoints=saving)) == 0
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "step_00000015.safetensors")
    config = training_config(opaque_scene, tmp_path / "rest", model, checkpoints=saving, resume=checkpoint)
    assert train(config) == 0
    ours, theirs = final_tensors(tmp_path / "rest"), final_tensors(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("bounded", "steps"), [("auto", 25_000), ("yes", 25_000), ("no", 30_000)])
def test_the_record_names_the_steps_of_the_presets_own_variant(tmp_path, bounded, steps):
    config = default_config(tmp_path, method="dvgo", preset="paper", device="cpu", bounded=bounded)
    run = resolve(replace(config, out=tmp_path / "run", model=config.model.scaled_to(700)))
    with open_run(run, None):
        write_record(run, {})
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["clocks"] == {"steps": 700, "preset_steps": steps}


def test_learning_rates_fall_and_start_anew_at_each_doubling():
    geometry = ball_geometry(has_alpha=False)
    config = toy_config(bounded="no")
    model, recipe = Model.initialise(config, geometry), Recipe(config, geometry)
    optimizers = recipe.optimizers(model)
    drawn = model.train().render(geometry.cameras, torch.zeros(4, 3, dtype=torch.int64), background=torch.ones(3))
    for step in range(1, 25):
        recipe.after_step(model, optimizers, drawn, step)
        rates = {group["name"]: group["lr"] for group in optimizers["field"].param_groups}
        passed = step if step < 24 else 0  # step 25 is the first with twice the voxels
        expected = {"density": 0.5, "features": 0.1, "net": 1e-2}
        assert rates == pytest.approx({name: lr * 0.1 ** (passed / 160) for name, lr in expected.items()})
        assert all(
            group.get("skip_zero_grad") == (group["name"] != "net") for group in optimizers["field"].param_groups
        )
    assert optimizers["field"].param_groups[0]["params"][0] is model.density.values
    assert not optimizers["field"].state


def test_what_is_drawn_from_in_each_stage():
    geometry = ball_geometry()
    recipe = Recipe(toy_config(), geometry)
    assert recipe.sampling(60).kind == "random_rays"
    recipe.candidates = torch.tensor([3, 5])
    fine = recipe.sampling(61)
    assert (fine.kind, fine.background, fine.rays) == ("shuffled_rays", "scene", 256)
    assert fine.candidates is recipe.candidates
    unbounded = Recipe(toy_config(bounded="no"), geometry).sampling(1)
    assert (unbounded.kind, unbounded.background, unbounded.candidates) == ("shuffled_rays", "random", None)
    assert unbounded.rays == 256


def test_candidates_survive_as_bits():
    recipe, other = (Recipe(toy_config(), ball_geometry()) for _ in range(2))
    assert recipe.state_dict() == {}
    recipe.candidates = torch.tensor([0, 7, 8, 1003])
    state = recipe.state_dict()
    assert state["candidates"].dtype == torch.uint8
    assert len(state["candidates"]) == 126
    other.load_state_dict(state)
    assert torch.equal(other.candidates, recipe.candidates)


def test_a_coarse_stage_that_finds_nothing_says_so(scene, tmp_path):
    config = training_config(scene, tmp_path / "run", toy_config(lr_density=1e-4))
    with pytest.raises(UserError, match=r"the coarse stage found nothing: opacities lie from .* to "):
        train(config)


def test_few_rays_that_meet_the_scene_are_worth_a_warning(caplog):
    warn_of_misses(torch.arange(100) < 4, "what the coarse stage found", "raise --coarse-steps")
    assert "only 4.0 % of the rays meet what the coarse stage found: raise --coarse-steps" in caplog.text


def test_a_bounded_scene_may_do_without_a_coarse_stage():
    model = Model.initialise(toy_config(coarse_steps=0), ball_geometry())
    assert not model.coarse
    assert model.mask.share == 1
    sides = model.density.box[1] - model.density.box[0]
    coarse = Model.initialise(toy_config(), ball_geometry()).density.box
    assert torch.allclose(sides, 1.05 * (coarse[1] - coarse[0]))


def read_points(path):
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert f"element vertex {len(body) // 15}".encode() in header
    return np.frombuffer(body, [("position", "<f4", 3), ("color", "u1", 3)])


def test_export_is_the_surface_in_world_space(bounded_run):
    points = read_points(bounded_run / "point_cloud.ply")
    distances = np.linalg.norm(points["position"], axis=1)
    assert len(points) > 50
    assert np.median(np.abs(distances - RADIUS)) < 0.25
    assert np.abs(np.median(points["color"], axis=0) / 255 - COLOR).max() < 0.15
    bounds = json.loads((bounded_run / "bounds.json").read_text())
    model = load_run(bounded_run).model
    assert bounds["low"] == pytest.approx(model.density.box[0].tolist())
    assert bounds["voxels"] == list(model.density.size)


def test_export_of_nothing_opaque_warns(tmp_path, caplog):
    model = Model.initialise(toy_config(bounded="no"), ball_geometry(has_alpha=False)).eval()
    assert [path.name for path in export(model, tmp_path)] == ["point_cloud.ply", "bounds.json"]
    assert len(read_points(tmp_path / "point_cloud.ply")) == 0
    assert "no voxel is opaque" in caplog.text


def test_contracted_export_is_in_world_space(tmp_path):
    geometry = ball_geometry(has_alpha=False)
    model = Model.initialise(toy_config(bounded="no"), geometry).eval()
    with torch.no_grad():
        model.density.values.fill_(20.0)
    export(model, tmp_path)
    points = torch.from_numpy(read_points(tmp_path / "point_cloud.ply")["position"].copy())
    assert len(points) == model.mask.occupied.numel()
    inner = model.space.to_grid(points)
    assert inner.abs().max() <= 1.2 + 1e-5
    assert (points - model.space.center).norm(dim=-1).max() > 5 * model.space.radius


@pytest.mark.gpu
def test_it_trains_on_a_gpu(scene, tmp_path):
    config = replace(training_config(scene, tmp_path / "run", toy_config()), device="cuda")
    assert train(config) == 0
    assert psnr(tmp_path / "run") > 25
