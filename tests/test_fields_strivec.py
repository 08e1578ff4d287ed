"""Strivec: its numbers, where tensors stand, what grows, shrinks and is masked, and what it draws."""

import logging
import math
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dvgo_toys import ball_cameras, ball_geometry
from strivec_toys import geometry_with, placed, toy_config

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.fields.strivec import Config, Model, Recipe, export, preset
from nfc_splat.fields.strivec_geometry import Region, choose_region, coarse_config
from nfc_splat.fields.strivec_size import fitting_threshold
from nfc_splat.fields.strivec_tensors import CellMask, grown, parameter_count, place_tensors
from nfc_splat.rendering.density_grid import opacity
from nfc_splat.rendering.packed import accumulate

WHITE = torch.ones(3)


def test_the_published_sizes():
    config = preset("paper", target_encoding="none")
    ranks = [rank + config.appearance_rank for rank in config.density_ranks]
    each = [parameter_count(1, *shape) for shape in zip(config.cells_at(5), ranks, strict=True)]
    assert each == [29_280, 13_392, 6_144]
    assert config.cells_at(0) == (29, 15, 7)
    model = Model(config, choose_region(config, ball_geometry()))
    assert model.basis.weight.numel() == 27 * 48 * 3
    assert [layer.weight.shape[1] for layer in model.net.layers] == [27 + 3 + 2 * 2 * 27 + 2 * 2 * 3, 128, 128]
    assert model.basis.weight.abs().max().item() == pytest.approx(48**-0.5, rel=1e-3)


def test_steps_and_cells_have_the_published_lengths_at_first_and_at_last():
    """In the unit of the synthetic scenes; the region is a small one, as its cells are many."""
    config = preset("paper", target_encoding="none", unit=1.0)
    corner = torch.full((3,), 0.1)
    model = Model(config, Region(torch.stack([-corner, corner]), 0.0, 1.0))
    model.place(torch.zeros(1, 3))
    first = float(opacity(torch.zeros(()), config.density_shift, model.interval(model.step)))
    assert first == pytest.approx(1.17e-5, abs=5e-8)
    for growth, step, sides in ((0, 0.010345, (0.0207, 0.0200, 0.0214)), (5, 0.002479, (0.0050, 0.0049, 0.0048))):
        model.grow(growth)
        assert model.step == pytest.approx(step, abs=5e-7)
        found = [2 * half / scale.cells for half, scale in zip(config.halves, model.scales, strict=True)]
        assert found == pytest.approx(sides, abs=5e-5)


def test_the_synthetic_scenes_have_the_published_unit_and_region():
    config, geometry = preset("paper"), ball_geometry()
    cameras = geometry.cameras
    centers = cameras.centers * 4.0311 / cameras.centers.norm(dim=1, keepdim=True)
    viewmats = cameras.viewmats.clone()
    viewmats[:, :3, 3] = -(viewmats[:, :3, :3] @ centers[:, :, None])[:, :, 0]
    region = choose_region(config, replace(geometry, cameras=Cameras.pinhole(viewmats, cameras.Ks[0], 24, 24)))
    assert region.unit == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(region.box, torch.tensor([[-1.5] * 3, [1.5] * 3]), rtol=1e-3, atol=1e-3)
    bounds = torch.tensor([[0.0] * 3, [1.0, 2.0, 3.0]])
    stated = choose_region(replace(config, unit=7.0), replace(geometry, bounds=bounds))
    assert stated.unit == 7
    assert torch.equal(stated.box, bounds)


def test_one_tensor_stands_in_every_voxel_that_holds_a_point():
    points = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [0.39, 0.0, 0.0], [0.41, 0.0, 0.0], [2.0, 0.05, 1.0]])
    expected = torch.tensor([[0.2, 0.2, 0.2], [0.6, 0.2, 0.2], [2.2, 0.2, 1.0]])
    torch.testing.assert_close(place_tensors(points - 5, 0.4), expected - 5)


def test_growing_to_twice_the_cells_keeps_every_node():
    lines = torch.randn(4, 3, 8, 5)
    finer = grown(lines, 14)
    assert finer.shape == (4, 3, 15, 5)
    assert finer.is_contiguous()
    torch.testing.assert_close(finer[:, :, ::2], lines)
    torch.testing.assert_close(finer[:, :, 1::2], (lines[:, :, 1:] + lines[:, :, :-1]) / 2)


def test_growing_changes_nothing_that_is_drawn_between_old_nodes():
    model = placed()
    points = 0.8 * torch.nn.functional.normalize(torch.randn(300, 3), dim=-1)
    model.config = replace(model.config, cells=(8, 4, 16, 8), nearest=16)
    model._lay_out()  # all tensors that reach a cell are asked, whatever its size
    before = model.raw_at(points, model.cells.rows_of(points))
    seen = [model.cells.neighbors[model.cells.rows_of(points).long(), level] for level in range(2)]
    model.grow(1)
    after = model.raw_at(points, model.cells.rows_of(points))
    again = [model.cells.neighbors[model.cells.rows_of(points).long(), level] for level in range(2)]
    same = torch.stack([(one >= 0).sum(1) == (two >= 0).sum(1) for one, two in zip(seen, again, strict=True)]).all(0)
    assert same.float().mean() > 0.1
    torch.testing.assert_close(after[same], before[same], rtol=1e-3, atol=1e-4)
    assert [scale.cells for scale in model.scales] == [16, 8]
    assert model.cell == pytest.approx(2 * 0.6 / 16 * model.numbers[1])


def test_a_mask_is_packed_and_found_again_in_another_lattice():
    occupied = torch.zeros(5, 3, 4, dtype=torch.bool)
    occupied[1, 2, 3] = occupied[4, 0, 0] = True
    low = torch.tensor([-1.0, 0.5, 2.0])
    mask = CellMask.of(occupied, low, 0.3)
    assert mask.bits.dtype == torch.uint8
    assert len(mask.bits) == math.ceil(60 / 8)
    assert torch.equal(mask.occupied(), occupied)
    assert torch.equal(mask.overlapping(low, 0.3, (5, 3, 4)), occupied)
    halved = occupied.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(mask.overlapping(low, 0.15, (10, 6, 8)), halved)
    shifted = mask.overlapping(low + 0.3 * torch.tensor([1.0, 2.0, 3.0]), 0.3, (5, 3, 4))
    assert shifted.nonzero().tolist() == [[0, 0, 0]]
    between = mask.overlapping(low + torch.tensor([0.2, 0.5, 0.8]), 0.2, (2, 2, 2))
    assert between.nonzero().tolist() == [[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    box = torch.stack([low + 0.3 * torch.tensor([1.0, 0, 0]), low + 0.3 * torch.tensor([5.0, 3, 4])])
    torch.testing.assert_close(mask.box(), box)


def hardened(model, strength=2.0):
    """Make the first scale's densities large wherever a tensor stands, so that there is something to see."""
    with torch.no_grad():
        for scale in model.scales:
            scale.density.fill_(strength)
    return model


@pytest.mark.parametrize(("kind", "kept"), [("unscaled", False), ("rendered", True)])
def test_the_mask_asks_for_a_steps_opacity_in_its_own_length_or_as_drawn(kind, kept):
    """A haze whose step is 1e-3 opaque as it is drawn: the released code's mask sees a 25th of that."""
    config = toy_config(geometry="points", mask_alpha=kind, mask_threshold=1e-4, density_scale=25.0)
    model = placed(config)
    step = model.interval(model.step)
    raw = math.log(math.expm1(1e-3 / step)) - config.density_shift
    with torch.no_grad():
        model.scales[0].density.zero_()
        model.scales[0].density[:, :, :, 0] = np.cbrt(raw)
        model.scales[1].density.zero_()
    points = model.cells.middles(model.cells.active())
    haze = opacity(model.raw_at(points, model.cells.rows_of(points)), config.density_shift, step)
    assert haze.median().item() == pytest.approx(1e-3, rel=0.01)
    if kept:
        before = len(points)
        model.update_mask(1)
        assert len(model.cells.neighbors) == before
    else:
        with pytest.raises(UserError, match=r"step 1: no cell is occupied any more.*--mask-threshold"):
            model.update_mask(1)


def test_masking_and_shrinking_leave_what_is_opaque():
    model = hardened(placed(toy_config(geometry="points", mask_threshold=1e-2)))
    with torch.no_grad():
        for scale in model.scales:
            scale.density[scale.centers[:, 0] < 0.35] = 0.0
    before, box = model.cells.occupied.sum(), model.box.clone()
    model.update_mask(3)
    assert 0 < model.cells.occupied.sum() < before
    assert torch.equal(model.box, box)
    points = model.cells.middles(model.cells.active())
    assert float(model.opacity_at(points, model.step).max()) > 0.1
    model.shrink()
    assert (model.box[0] >= box[0] - 1e-5).all()
    assert (model.box[1] <= box[1] + 1e-5).all()
    assert model.box[0, 0] > box[0, 0] + 0.5
    around = torch.stack([points.amin(0), points.amax(0)]) + torch.tensor([[-0.5], [0.5]]) * model.cell
    torch.testing.assert_close(model.box, around)
    torch.testing.assert_close(model.cells.middles(model.cells.active()), points)


def test_a_white_scene_stays_white_and_energy_is_conserved():
    """White tensors over white are white, whatever their density; over black they are as white as they are opaque."""
    model = placed().train()
    with torch.no_grad():
        for scale in model.scales:
            scale.density.uniform_(0.2, 1.2)
        model.net.layers[-1].weight.zero_()
        model.net.layers[-1].bias.fill_(40.0)
    cameras = ball_cameras()
    model.config = replace(model.config, weight_threshold=0.0)
    drawn = model.render(cameras, background=WHITE)
    torch.testing.assert_close(drawn.color, torch.ones_like(drawn.color), rtol=0, atol=2e-6)
    black = model.render(cameras, background=torch.zeros(3))
    assert 0.05 < float(black.alpha.mean()) < 0.95
    torch.testing.assert_close(black.color, black.alpha.expand_as(black.color), rtol=0, atol=2e-6)
    extras = drawn.extras
    total = accumulate(extras["weights"], torch.ones_like(extras["weights"])[:, None], extras["samples"].offsets)[:, 0]
    torch.testing.assert_close(total + extras["transmittance"], torch.ones_like(total), rtol=0, atol=2e-6)


@pytest.mark.parametrize("encoding", ["none", "binary"])
def test_it_is_rebuilt_from_its_tensors_at_every_stage(encoding, tmp_path):
    config = toy_config(target_encoding=encoding)
    model = Model.initialise(config, ball_geometry())
    camera = ball_cameras()[[0]]

    def same(model):
        other = Model.from_tensors(config, {name: value.clone() for name, value in model.state_dict().items()})
        assert other.state_dict().keys() == model.state_dict().keys()
        drawn = [one.eval().render(camera, background=WHITE) for one in (model, other)]
        assert torch.equal(drawn[0].color, drawn[1].color)
        return other

    assert same(model).coarse.coarse
    assert model.primitives is None
    assert len(export(model, tmp_path)) == 2
    torch.manual_seed(0)
    model.place(0.8 * torch.nn.functional.normalize(torch.randn(500, 3), dim=-1))
    hardened(model)
    assert same(model).primitives == model.primitives == sum(len(scale.centers) for scale in model.scales)
    model.update_mask(1)
    same(model)
    model.shrink()
    model.grow(1)
    same(model)
    (path,) = export(model.eval(), tmp_path)
    assert b"element vertex 0" not in path.read_bytes()


def test_normals_bits_and_surfaces_can_be_drawn():
    model = hardened(placed(toy_config(geometry="points", target_encoding="binary")), 1.0).eval()
    with torch.no_grad():
        for scale in model.scales:
            scale.density += 0.2 * torch.randn_like(scale.density)
    camera = ball_cameras()[[0]]
    model.draw_normals = model.draw_bits = True
    drawn = model.render(camera, background=WHITE)
    assert drawn.bits.shape == (1, 24, 24, 3, 8)
    hit = drawn.alpha[..., 0] > 0.99
    assert hit.float().mean() > 0.1
    assert (drawn.normal.norm(dim=-1)[hit] > 0.99).float().mean() > 0.9
    surface = model.level_set()
    points = torch.cat([surface.bounds, 0.8 * torch.eye(3)])
    values = surface.values(points)
    assert (values[2:] > surface.level).all()
    assert (values[:2] == 0).all()
    colors = model.surface_colors(points[2:], torch.eye(3))
    assert ((colors >= 0) & (colors <= 1)).all()


def test_gradients_reach_every_parameter():
    model = hardened(placed(), 0.5).train()
    drawn = model.render(ball_cameras(), background=WHITE)
    loss = (drawn.color - 0.3).square().mean() + sum(model.regularizers(drawn, None, 1).values())
    loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_the_l1_term_is_the_mean_over_each_of_the_vectors_summed():
    model = placed(toy_config(geometry="points", l1=0.5))
    by_hand = sum(scale.density[:, axis].abs().mean() for scale in model.scales for axis in range(3))
    torch.testing.assert_close(model.regularizers(None, None, 1)["l1"], 0.5 * by_hand)
    assert placed(toy_config(geometry="points", l1=0.0)).regularizers(None, None, 1) == {}


def test_too_many_tensors_are_an_error_before_there_are_any(caplog):
    config = toy_config(geometry="points", max_parameters=1000)
    with (
        caplog.at_level(logging.INFO, "nfc_splat"),
        pytest.raises(UserError, match="fewer points, or --spacings"),
    ):
        placed(config)
    assert re.search(r"tensors: 12 \+ 58, \d\d,\d{3} numbers, after the last growth 19,950 \(", caplog.text)


def test_how_many_cells_there_will_be_is_said_before_there_are_any(caplog):
    config = toy_config(geometry="points")
    with caplog.at_level(logging.INFO, "nfc_splat"):
        model = placed(config)
    found = re.search(r"cells: ([\d,]+), after the last growth at most ([\d,]+) \(\d+ MB\)", caplog.text)
    first, last = (int(number.replace(",", "")) for number in found.groups())
    assert first == model.cells.rows.numel()
    for growth in range(len(config.grow_at)):
        model.grow(growth + 1)
    assert last == pytest.approx(model.cells.rows.numel(), rel=0.25)
    assert last > first


def matter():
    """Points of a ball and opacities above 0.01 that fall from its middle outwards."""
    points = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)).mul(0.3)
    opacities = (-6 * points.norm(dim=1)).exp()
    return points[opacities > 0.01], opacities[opacities > 0.01]


def test_too_many_tensors_name_the_lowest_threshold_that_fits():
    points, opacities = matter()
    config = toy_config(max_parameters=10_000)
    model = Model(config, choose_region(config, ball_geometry()))
    with pytest.raises(UserError, match="start again with --overwrite: the coarse stage is trained anew") as caught:
        model.place(points, opacities)
    assert re.search(r"expected at most 10,000 \(--max-parameters\)", str(caught.value))
    threshold = float(re.search(r"--geometry-threshold (\S+) \(now 0.01\) fits", str(caught.value))[1])
    unit = model.numbers[1]
    assert threshold == fitting_threshold(config, points, unit, opacities)
    below = opacities > threshold - 10 ** math.floor(math.log10(threshold)) / 10
    with pytest.raises(UserError, match="tensors would have"):
        model.place(points[below], opacities[below])
    model.place(points[opacities > threshold], opacities[opacities > threshold])
    grown_to = [
        parameter_count(len(s.centers), *shape) for s, *shape in zip(model.scales, (12, 6), (14, 11), strict=True)
    ]
    assert 5_000 < sum(grown_to) <= 10_000


def test_where_no_threshold_fits_none_is_named():
    points, _ = matter()
    config = toy_config(max_parameters=1000)
    model = Model(config, choose_region(config, ball_geometry()))
    with pytest.raises(UserError, match=r"no higher --geometry-threshold than .* leaves few enough; raise"):
        model.place(points, torch.full((len(points),), 0.5))


def test_scenes_without_what_it_needs_are_refused():
    config = toy_config(geometry="points")
    with pytest.raises(UserError, match="--geometry points: the scene has no initial points"):
        Model.initialise(config, ball_geometry())
    with pytest.raises(UserError, match=r"none of the 1 points .* lies in a region"):
        Model.initialise(replace(config, unit=1.0), geometry_with(torch.tensor([[90.0, 0, 0]])))
    bounds = torch.tensor([[1.0] * 3, [0.0] * 3])
    with pytest.raises(UserError, match="the coarse stage cannot begin: "):
        Model.initialise(toy_config(), ball_geometry(near_far=None, bounds=bounds))


def test_opaque_scenes_are_warned_of_what_is_not_drawn(caplog):
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        placed(has_alpha=False, cut_out=False)
    assert "outside of the region is not drawn" in caplog.text


def test_the_coarse_stage_never_becomes_a_fine_one():
    config = toy_config()
    own = coarse_config(config)
    assert own.bounded == "yes"
    assert own.coarse_steps > config.coarse_steps
    assert own.steps > own.coarse_steps
    assert own.mask_every // 2 > config.coarse_steps
    assert Recipe(config, ball_geometry()).sampling(config.coarse_steps).kind == "random_rays"


def test_learning_rates_fall_to_a_tenth_and_start_anew_at_every_growth():
    """The published rates and growths, on tensors of few cells."""
    paper = preset("paper")
    names = ("steps", "grow_at", "lr_decay_steps", "lr_lines", "lr_net")
    cells = tuple(count for growth in range(6) for count in (8 + growth, 4 + growth))
    chosen = {name: getattr(paper, name) for name in names}
    config = toy_config(geometry="points", mask_at=(), cells=cells, **chosen)
    model, recipe = placed(config), Recipe(config, ball_geometry())
    optimizers = recipe.optimizers(model)
    rates = {}
    for step in range(1, 30_001):
        recipe.after_step(model, optimizers, SimpleNamespace(extras={"samples": ()}), step)
        rates[step] = [group["lr"] for group in optimizers["field"].param_groups]
    assert rates[1] == pytest.approx([0.02 * 0.1 ** (1 / 30_000), 1e-3 * 0.1 ** (1 / 30_000)], rel=1e-12)
    starts = (0, 2000, 3000, 4000, 5500, 7000)
    for start, growth in pairwise(starts):
        assert rates[growth] == [0.02, 1e-3]
        left = 0.1 ** ((growth - 1 - start) / 30_000)
        assert rates[growth - 1] == pytest.approx([0.02 * left, 1e-3 * left], rel=1e-9)
    assert rates[30_000] == pytest.approx([0.00342, 0.000171], rel=1e-3)
    assert rates[30_000][0] == pytest.approx(0.02 * 0.1 ** (23 / 30), rel=1e-9)


def test_the_schedule_scales_with_the_steps():
    config = preset("paper")
    assert (config.steps, config.first_steps, config.cells_at(5)) == (35_000, 5000, (121, 61, 31))
    half = config.scaled_to(17_500)
    assert half.grow_at == (1000, 1500, 2000, 2750, 3500)
    assert (half.coarse_steps, half.mask_at, half.lr_decay_steps) == (2500, (1000, 2000), 15_000)
    tiny = config.scaled_to(3)
    assert tiny.grow_at == (1, 2, 3, 4, 5)
    assert tiny.coarse_steps == 1
    assert preset("quick", steps=1650).steps == 1650
    assert preset("quick").scaled_to(preset("quick").steps) == preset("quick")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"halves": (0.6,)}, "--spacings 0.8 0.4: expected 1 numbers"),
        ({"spacings": (0.4, 0.7)}, "--spacings 0.4 0.7: .*at most twice"),
        ({"cells": (8, 4)}, "--cells 8 4: expected 4 numbers, for 2 scales at first and after each of 1 growths"),
        ({"cells": (8, 4, 0, 6)}, "--cells 8 4 0 6: expected numbers of 1 or more"),
        ({"grow_at": (0,)}, "--grow-at 0: expected rising"),
        ({"mask_at": (3, 3)}, "--mask-at 3 3: expected rising"),
        ({"coarse_steps": 150}, "--coarse-steps 150: expected 1 to 149"),
        ({"lr_lines": 0.0}, "--lr-lines 0.0: expected above 0"),
        ({"mask_threshold": 1.0}, "--mask-threshold 1.0: expected below 1"),
        ({"stepsize": 0.01}, "--stepsize 0.01: expected 0.05 or more"),
        ({"unit": -1.0}, "--unit -1.0: expected a finite number above 0"),
        ({"l1": math.nan}, "--l1 nan: expected a finite number"),
        ({"nearest": 17}, "--nearest 17: expected 1 to 16"),
    ],
)
def test_settings_that_make_no_sense_name_their_flag(change, message):
    with pytest.raises(UserError, match=message):
        toy_config(**change)


def test_presets_refuse_what_they_do_not_know():
    with pytest.raises(UserError, match="--preset slow: expected one of quick, paper"):
        preset("slow")
    with pytest.raises(UserError, match="strivec has no setting depth"):
        preset("quick", depth=3)
    assert preset("quick", features=9).features == 9
    assert isinstance(preset("paper"), Config)
