"""What changes while DVGO trains: its mask, its grids, the step from the coarse stage to the fine one."""

import math

import pytest
import torch
from dvgo_toys import ball_geometry, toy_config

from nfc_splat.errors import UserError
from nfc_splat.fields import dvgo
from nfc_splat.fields.dvgo import Model, Recipe, preset
from nfc_splat.fields.occupancy_mask import OccupancyMask
from nfc_splat.fields.voxel_grid import grid_nodes, grid_size, voxel_size
from nfc_splat.rendering.density_grid import opacity

CUBE = torch.tensor([[-1.2] * 3, [1.2] * 3])


def fine_model(**changes):
    """The fine stage of an unbounded scene."""
    return Model.initialise(toy_config(bounded="no", **changes), ball_geometry(has_alpha=False))


def raw_density(alpha, shift):
    """The raw density that has an opacity over the length of a base voxel."""
    return math.log(alpha / (1 - alpha)) - shift


def numbers_are_current(model):
    side = voxel_size(model.density.box, int(model.voxels))
    return tuple(model.numbers) == (int(model.voxels), float(model.act_shift), float(model.threshold), side)


def test_the_mask_answers_with_the_nearest_node_and_only_shrinks():
    occupied = torch.zeros(3, 3, 3, dtype=torch.bool)
    occupied[2, 0, 1] = True
    mask = OccupancyMask(occupied, torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]))
    points = torch.tensor([[1.6, 0.4, 1.4], [1.4, 0.4, 1.4], [2.4, 0.0, 1.0], [2.6, 0.0, 1.0], [-9.0, 0.0, 1.0]])
    assert mask.at(points).tolist() == [True, False, True, False, False]
    finer = mask.resampled(mask.box, (5, 5, 5))
    assert int(finer.occupied.sum()) == int(mask.at(grid_nodes(mask.box, (5, 5, 5))).sum()) > 1
    mask.prune(torch.ones(3, 3, 3, dtype=torch.bool))
    assert mask.share == pytest.approx(1 / 27)
    mask.prune(~occupied)
    assert mask.share == 0


def test_growing_keeps_raw_values():
    model = fine_model()
    size = model.density.size
    ramp = grid_nodes(CUBE, size) @ torch.tensor([1.0, 2.0, -3.0])
    with torch.no_grad():
        model.density.values.copy_(ramp[..., None])
        model.features.values.copy_(ramp[..., None] * torch.tensor([1.0, -1.0, 0.5]))
    before = model.density.values
    model.grow(model.config.voxels, step=7)
    assert model.density.values is not before
    grown = grid_size(CUBE, model.config.voxels)
    assert model.density.size == model.features.size == model.mask.size == grown > size
    ramp = grid_nodes(CUBE, grown) @ torch.tensor([1.0, 2.0, -3.0])
    assert torch.allclose(model.density.values[..., 0], ramp, atol=1e-4)
    assert torch.allclose(model.features.values, ramp[..., None] * torch.tensor([1.0, -1.0, 0.5]), atol=1e-4)


@pytest.mark.parametrize(("alpha", "share"), [(1.1e-3, 1.0), (0.9e-3, 0.0)])
def test_growing_prunes_before_the_shift_falls(alpha, share):
    """To base voxels, whose opacity the threshold is compared with; with the new shift both would be below."""
    model = fine_model()
    model.set_threshold(1e-3)
    before = float(model.act_shift)
    with torch.no_grad():
        model.density.values.fill_(raw_density(alpha, before))
    model.grow(model.config.voxels, step=7)
    assert model.voxel_ratio == 1.0
    assert model.numbers.act_shift == before - 1
    assert model.node_alpha(model.mask.size).max() < 1e-3
    assert model.mask.share == share


def test_growing_keeps_what_the_mask_has_lost():
    model = fine_model(alpha_threshold=2e-2)
    with torch.no_grad():
        model.density.values.fill_(8.0)
    model.mask.occupied[3] = False
    old = OccupancyMask(model.mask.occupied, CUBE)
    model.grow(model.config.voxels, step=7)
    assert torch.equal(model.mask.occupied, old.at(grid_nodes(CUBE, model.mask.size)))
    assert 0 < model.mask.share < 1


def test_a_mask_that_is_large_enough_keeps_its_size(monkeypatch):
    """It is pruned by what the grids hold at its own nodes then."""
    monkeypatch.setattr(dvgo, "LARGEST_MASK", 12**3)
    model = fine_model(alpha_threshold=2e-2, voxels=17**3, base_voxels=17**3)
    size = model.mask.size
    torch.manual_seed(3)
    with torch.no_grad():
        model.density.values.uniform_(-60, 20)
    model.grow(model.config.voxels, step=7)
    assert model.mask.size == size == (10, 10, 10)
    assert model.density.size == model.features.size == (17, 17, 17)
    assert model.mask.share == 1
    model.update_mask(8)
    nodes = grid_nodes(CUBE, size).reshape(1, 1, 1, -1, 3).flip(-1) / 1.2
    raw = torch.nn.functional.grid_sample(model.density.values.permute(3, 0, 1, 2)[None], nodes, align_corners=True)
    alpha = opacity(raw.view(1, 1, *size), float(model.act_shift), model.voxel_ratio)
    kept = torch.nn.functional.max_pool3d(alpha, 3, 1, 1)[0, 0] > float(model.threshold)
    assert torch.equal(model.mask.occupied, kept)
    assert 0.1 < model.mask.share < 0.9


def test_an_empty_mask_ends_a_bounded_scene_and_names_the_opacities():
    model = Model.initialise(toy_config(coarse_steps=0), ball_geometry())
    model.set_threshold(1e-3)
    with torch.no_grad():
        model.density.values.fill_(-20.0)
    with pytest.raises(UserError, match=r"step 12: no voxel .* from .* to .*, more than 0\.001 is needed"):
        model.update_mask(12)


def test_an_unbounded_scene_goes_on_with_an_empty_mask(caplog):
    """A collapsed model is a result. It is worth one warning, shows the background, and still trains."""
    geometry = ball_geometry(has_alpha=False)
    config = toy_config(bounded="no", steps=60, grow_every=8, mask_every=8)
    model, recipe = Model.initialise(config, geometry).train(), Recipe(config, geometry)
    with torch.no_grad():
        model.density.values.fill_(-20.0)
    optimizers = recipe.optimizers(model)
    pixels = torch.tensor([[0, 12, 12], [3, 2, 5]])
    for step in range(1, 20):
        background = torch.rand(2, 3)
        drawn = model.render(geometry.cameras, pixels, background=background)
        assert torch.equal(drawn.color, background)
        batch = dvgo.Batch(geometry.cameras, pixels, torch.rand(2, 3), None, background)
        terms = model.regularizers(drawn, batch, step)
        (recipe.photometric(drawn, batch) + sum(terms.values())).backward()
        recipe.after_backward(model, step)
        optimizers["field"].step()
        recipe.after_step(model, optimizers, drawn, step)
    assert model.mask.share == 0
    assert model.voxels == config.voxels
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step 4: no voxel is occupied any more" in caplog.text
    assert "training goes on" in caplog.text


def test_the_fine_stage_starts_with_what_the_coarse_one_found():
    """Its mask is what is opaque enough and the nodes around it, looked up at the fine nodes; its grids are empty."""
    model = Model.initialise(toy_config(voxels=60**3, growths=2), ball_geometry())
    coarse_box, size = model.density.box, model.density.size
    enough, little = (raw_density(alpha, float(model.act_shift)) for alpha in (1.1e-3, 0.9e-3))
    with torch.no_grad():
        model.density.values.fill_(-20.0)
        model.density.values[5:7, 8, 9] = 12.0
        model.density.values[12, 7, 9:11] = enough
        model.density.values[9, 12, 9] = little
    model.begin_fine_stage(61)
    found = torch.zeros(size, dtype=torch.bool)
    found[4:8, 7:10, 8:11] = True
    found[11:14, 6:9, 8:12] = True
    side = (coarse_box[1] - coarse_box[0]) / (torch.tensor(size) - 1)
    low, high = (coarse_box[0] + side * torch.tensor(node) for node in ((5.0, 7.0, 9.0), (12.0, 8.0, 10.0)))
    middle, half = (low + high) / 2, 1.05 * (high - low) / 2
    assert torch.allclose(model.density.box, torch.stack([middle - half, middle + half]), atol=1e-4)
    place = (grid_nodes(model.density.box, model.mask.size) - coarse_box[0]) / side
    assert torch.equal(model.mask.occupied, found[place.round().long().unbind(-1)])
    assert 0.1 < model.mask.share < 0.9
    assert (model.density.values == 0).all()
    assert (model.features.values == 0).all()
    assert model.net is not None
    assert model.seen is None
    assert (int(model.voxels), float(model.threshold)) == (60**3 // 4, 1e-4)
    assert float(model.act_shift) == pytest.approx(-4.5951, abs=1e-4)
    assert numbers_are_current(model)


def test_the_numbers_of_the_host_are_those_of_the_buffers():
    model = fine_model()
    assert numbers_are_current(model)
    model.set_threshold(0.125)
    assert numbers_are_current(model)
    model.grow(model.config.voxels, step=7)
    assert numbers_are_current(model)
    assert numbers_are_current(Model.from_tensors(model.config, model.state_dict()))
    coarse = Model.initialise(toy_config(), ball_geometry())
    assert numbers_are_current(Model.from_tensors(coarse.config, coarse.state_dict()))


@pytest.mark.parametrize(("bounded", "steps", "factor"), [("yes", 250, 0.158), ("no", 300, 0.071)])
def test_what_the_learning_rates_end_with(bounded, steps, factor):
    """The published schedules, at a hundredth of their length."""
    sizes = dict(voxels=2**10, base_voxels=2**10, coarse_voxels=8**3, target_encoding="none", width=8)
    config = preset("paper", bounded=bounded, steps=steps, **sizes)
    geometry = ball_geometry(has_alpha=bounded == "yes")
    model, recipe = Model.initialise(config, geometry), Recipe(config, geometry)
    optimizers = recipe.optimizers(model)
    drawn = model.train().render(geometry.cameras, torch.zeros(1, 3, dtype=torch.int64), background=torch.ones(3))
    for step in range(1, steps):
        with torch.no_grad():
            model.density.values.fill_(20.0)
        recipe.after_step(model, optimizers, drawn, step)
    rates = {group["name"]: group["lr"] for group in optimizers["field"].param_groups}
    assert rates == pytest.approx({"density": 0.1 * factor, "features": 0.1 * factor, "net": 1e-3 * factor}, rel=5e-3)
    assert model.numbers.voxels == 2**10
