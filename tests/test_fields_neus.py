"""NeuS: its settings, grid of distances, background and losses, against the published implementations' numbers."""

import dataclasses
import math

import pytest
import torch
from neus_toys import WHITE, ball, build, rays, region, small
from ngp_scenes import cameras, geometry

from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.fields.distance_grid import DistanceGrid
from nfc_splat.fields.neus import Config, Model, Recipe, preset
from nfc_splat.fields.neus_networks import Background, ColorNetwork
from nfc_splat.fields.recipe import Batch
from nfc_splat.rendering.level_set import LevelSet

# --------------------------------------------------------------------------------------------------------- settings


def test_the_presets_are_the_published_ones():
    sdfstudio, original = preset("paper"), preset("paper-original")
    assert sdfstudio == Config()
    facts = ("steps", "rays", "lr", "adam_eps", "sharpness", "bias", "section_point", "spare_inputs", "color_padding")
    assert [getattr(sdfstudio, name) for name in facts] == [100_000, 1024, 5e-4, 1e-15, 0.1, 0.8, "start", 32, 0.001]
    assert [getattr(original, name) for name in facts] == [300_000, 512, 5e-4, 1e-8, 0.3, 0.5, "middle", 0, 0.0]
    shared = {"anneal_steps": 50_000, "warmup_steps": 5000, "decay_steps": 300_000, "lr_floor": 0.05}
    shared |= {"coarse_samples": 64, "fine_samples": 64, "fine_rounds": 4, "background_samples": 32}
    shared |= {"eikonal_weight": 0.1, "mask_weight": 0.0, "octaves": 6}
    for config in (sdfstudio, original):
        assert {name: getattr(config, name) for name in shared} == shared
    assert (sdfstudio.surroundings, original.surroundings) == ("contracted", "sphere")
    assert find_method("neus").loss_weight == 20.0
    assert find_method("neus").load().Model is Model


@pytest.mark.parametrize("name", ["paper", "paper-original", "quick"])
@pytest.mark.parametrize("kind", ["none", "binary"])
def test_every_preset_builds_draws_and_returns_from_its_tensors(name, kind):
    config = preset(name, target_encoding=kind, rays=64)
    torch.manual_seed(0)
    model = Model.initialise(config, geometry(has_alpha=name == "quick"))
    if model.grid is not None:
        model.grid.update(model.sdf.distance, 0.1)
    again = Model.from_tensors(config, model.state_dict()).eval()
    with torch.no_grad():
        drawn, same = (m.eval().march(rays(3), WHITE) for m in (model, again))
    assert torch.equal(drawn.color, same.color)
    assert drawn.color.shape == (3, 3)
    assert drawn.color.isfinite().all()


def test_the_published_numbers_of_parameters():
    torch.manual_seed(0)
    counts = {}
    for name in ("paper", "paper-original"):
        model = Model.initialise(preset(name, target_encoding="none"), geometry(has_alpha=False))
        counts[name] = [sum(p.numel() for p in part.parameters()) for part in (model.sdf, model.colors, model.behind)]
    sdf = [
        sum(o * i + 2 * o for o, i in [(256, n), (256, 256), (256, 256), (256 - n, 256), *[(256, 256)] * 4, (257, 256)])
        for n in (71, 39)
    ]
    color = [sum(o * i + 2 * o for o, i in [(256, n), *[(256, 256)] * 3, (3, 256)]) for n in (321, 289)]
    behind = []
    for point, head in ((63, [(128, 283), (128, 128), (3, 128)]), (84, [(256, 256), (128, 283), (3, 128)])):
        trunk = [(256, point), *[(256, 256)] * 6, (256, 256 + point), (1, 256)]
        behind.append(sum(o * i + o for o, i in trunk + head))
    assert counts["paper"] == [sdf[0], color[0], behind[0]]
    assert counts["paper-original"] == [sdf[1], color[1], behind[1]]


def test_a_head_of_bits_has_24_outputs():
    model = build(small(target_encoding="binary"))
    assert model.head.out_features == 24
    assert model.colors.layers[-1].weight.shape == (24, 16)
    assert model.behind.color.layers[-1].weight.shape[0] == 24


def test_everything_counted_in_steps_scales():
    config = preset("paper", steps=50_000)
    assert (config.warmup_steps, config.decay_steps, config.anneal_steps) == (2500, 150_000, 25_000)
    short = preset("quick", steps=1)
    assert (short.warmup_steps, short.decay_steps, short.update_every, short.level_every) == (1, 2, 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"rays": 0},
        {"sharpness": 9.0},
        {"bias": 0.0},
        {"fine_samples": 63},
        {"coarse_samples": 2},
        {"finest_resolution": 8},
        {"lr": math.nan},
        {"decay_steps": 100},
        {"region_scale": 0.0},
        {"width": 64},
        {"mask_weight": -1.0},
    ],
)
def test_settings_that_make_no_sense(change):
    with pytest.raises(UserError, match=f"--{next(iter(change)).replace('_', '-')} .*: expected") as caught:
        preset("paper", **change)
    assert "\n" not in str(caught.value)


def test_unknown_presets_and_settings():
    with pytest.raises(UserError, match="expected one of quick, paper, paper-original"):
        preset("fast")
    with pytest.raises(UserError, match="neus has no setting colour"):
        preset("quick", colour=1)
    with pytest.raises(UserError, match="--sampler occupancy: expected hierarchical with --region sphere"):
        preset("quick", region="sphere")


# --------------------------------------------------------------------------------------------------- learning rates


def test_the_learning_rates_are_the_published_ones():
    recipe = Recipe(preset("paper"), geometry())
    found = [recipe.rate(step) for step in (0, 2500, 5000, 50_000, 100_000, 200_000, 300_000)]
    assert found == pytest.approx([0, 0.5, 1, 0.9465, 0.7769, 0.295, 0.05], abs=5e-4)


def test_the_first_update_changes_nothing_and_groups_are_the_published_ones():
    model, recipe = build(has_alpha=False), Recipe(small(), geometry(has_alpha=False))
    optimizers = recipe.optimizers(model)
    assert list(optimizers) == ["fields", "background"]
    held = [p for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert all(group["lr"] == 0 for o in optimizers.values() for group in o.param_groups)
    drawn = model.march(rays(), WHITE)
    recipe.after_step(model, optimizers, drawn, 1)
    assert {group["lr"] for o in optimizers.values() for group in o.param_groups} == {5e-4 / 5}
    assert (model.anneal, int(model.steps_done)) == (1 / 20, 1)


# ------------------------------------------------------------------------------------------------- grid of distances


def test_the_grid_finds_the_surface():
    grid, asked = DistanceGrid(32), []

    def spy(points):
        asked.append(len(points))
        return ball(points)

    grid.update(spy, 0.05)
    assert sum(asked) == 32**3
    axis = torch.linspace(-1 + 1 / 32, 1 - 1 / 32, 32)
    distance = ball(torch.cartesian_prod(axis, axis, axis)).view(32, 32, 32)
    assert torch.equal(grid.occupied, distance.abs() < 0.05 + math.sqrt(3) / 32)
    assert grid.share == pytest.approx(grid.occupied.float().mean().item())
    asked.clear()
    for _ in range(16):
        grid.update(ball, 0.05)
        grid.update(spy, 0.05)
    assert sum(asked) / 16 < 0.4 * 32**3


def test_the_grid_follows_a_surface_that_appears_elsewhere():
    grid = DistanceGrid(16)
    grid.update(ball, 0.02)
    moved = lambda points: torch.minimum(ball(points), (points - 0.9).norm(dim=-1) - 0.2)  # noqa: E731
    for _ in range(16):
        grid.update(moved, 0.02)
    assert grid.occupied[13:, 13:, 13:].any()


def test_a_surface_that_is_gone_is_said():
    grid = DistanceGrid(8)
    with pytest.raises(UserError, match=r"surface is gone: the distances lie between 3 and 3 .* all 8\^3 cells"):
        grid.update(lambda points: torch.full((len(points),), 3.0), 0.01)


def test_samples_behind_a_surface_are_out_of_sight():
    grid, where, asked = DistanceGrid(32), region(), rays(200)
    grid.update(ball, 0.2)
    samples = where.steps(asked, grid.occupied, 100.0, False)
    local = where.to_local(samples.positions)
    seen = grid.in_sight(local, samples.offsets, 100.0)
    fall = torch.zeros(len(local), dtype=torch.float64)  # what the light loses from the nearest sample of the ray on
    for first, last in zip(samples.offsets[:-1].tolist(), samples.offsets[1:].tolist(), strict=True):
        light = torch.nn.functional.logsigmoid(100 * ball(local[first:last].double()))
        fall[first + 1 : last] = light.diff().clamp_max(0).cumsum(0)
    assert seen[fall > -3].all()
    assert not seen[fall < -16].any()
    assert 0.4 < seen.float().mean() < 0.8
    sharper = grid.in_sight(local, samples.offsets, 400.0)
    assert sharper.sum() < seen.sum()


# ---------------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("name", ["paper", "paper-original", "quick"])
def test_an_untrained_field_is_a_ball(name):
    config = small(name, sharpness=0.55, surroundings="none", width=128, **({"depth": 1} if name == "quick" else {}))
    model = build(config).eval()
    model.draw_normals = True
    if model.grid is not None:
        model.grid.update(model.sdf.distance, 0.05)
    center = rays(400)
    with torch.no_grad():
        drawn = model.march(center, WHITE)
    past = model.region.to_local(center.origins)
    directions = torch.nn.functional.normalize(center.directions, dim=-1)
    away = torch.linalg.cross(past, directions).norm(dim=-1)
    radius = config.bias
    assert (drawn.alpha[away < radius - 0.3] > 0.95).all()
    assert (drawn.alpha[away > radius + 0.3] < 0.05).all()
    straight = away < 0.3 * radius
    z = past.norm(dim=-1) * model.region.radius - radius * model.region.radius
    depth = drawn.depth[:, 0] * center.directions.norm(dim=-1)
    assert (depth - z)[straight].abs().mean() < 0.4
    facing = (drawn.normal * -directions).sum(-1)[straight]
    assert facing.min() > 0.6
    torch.testing.assert_close(drawn.normal[straight].norm(dim=-1), torch.ones(int(straight.sum())))


def test_the_background_shows_where_the_surface_does_not():
    model = build(small(surroundings="contracted"), has_alpha=False).eval()
    with torch.no_grad():
        model.behind.density.weight.zero_()
        model.behind.density.bias.fill_(30.0)
        model.behind.color.layers[-1].weight.zero_()
        model.behind.color.layers[-1].bias.copy_(torch.tensor([9.0, -9.0, 9.0]))
        for layer in model.sdf.layers[-1:]:
            layer.bias.fill_(5.0)  # far from any surface
        drawn = model.march(rays(), WHITE)
    torch.testing.assert_close(drawn.alpha, torch.ones(40, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn.color, torch.tensor([[1.0, 0, 1]]).expand(40, 3), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", ["none", "contracted"])
def test_rays_that_meet_nothing(kind):
    model = build(small("quick", depth=1, surroundings=kind), has_alpha=False)
    model.grid.update(lambda points: points.norm(dim=-1) - 0.1, 0.01)
    asked = rays()
    away = dataclasses.replace(asked, directions=-asked.directions)
    model.draw_normals = True
    for some in (away, dataclasses.replace(away, origins=away.origins[:0], directions=away.directions[:0])):
        drawn = model.train().march(some, torch.zeros(3))
        assert (drawn.normal == 0).all()
        assert drawn.color.shape == (len(some.origins), 3)
        (drawn.color.sum() + model.regularizers(drawn, batch_of(40), 1)["eikonal"]).backward()
    assert kind != "none" or (drawn.alpha == 0).all()


@pytest.mark.parametrize("kind", ["contracted", "sphere"])
def test_gradients_reach_every_parameter(kind):
    shape = "sphere" if kind == "sphere" else "box"
    config = small("paper-original" if kind == "sphere" else "paper", surroundings=kind, region=shape)
    model = build(config, has_alpha=False).train()
    drawn = model.march(rays(), WHITE)
    (drawn.color.sum() + model.regularizers(drawn, batch_of(40), 1)["eikonal"]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.sharpness.v.grad != 0


def test_colours_are_padded_without_an_encoding_alone():
    for kind, highest in (("none", 1.001), ("binary", 1.0)):
        model = build(small(target_encoding=kind, surroundings="none", color_padding=0.001, sharpness=0.6)).eval()
        with torch.no_grad():
            last = model.colors.layers[-1]
            last.length.zero_()
            last.bias.fill_(50.0)
            drawn = model.march(rays(400), torch.zeros(3))
        opaque = drawn.alpha[:, 0] > 0.999
        assert opaque.any()
        assert drawn.color[opaque].max().item() == pytest.approx(highest, abs=5e-5)


@pytest.mark.parametrize("kind", ["none", "contracted"])
def test_bits_are_composited(kind):
    model = build(small(target_encoding="binary", surroundings=kind), has_alpha=False).eval()
    model.draw_bits = True
    with torch.no_grad():
        drawn = model.march(rays(), torch.zeros(3))
    assert drawn.bits.shape == (40, 3, 8)
    weights = 2.0 ** torch.arange(7, -1, -1) / 255
    torch.testing.assert_close((drawn.bits * weights).sum(-1), drawn.color, atol=1e-5, rtol=0)


def test_evaluation_is_annealed_to_the_end_and_training_is_not():
    model = build(small(anneal_steps=100, surroundings="none", coarse_samples=64))
    assert model.anneal == 0
    model.advance(30)
    assert model.anneal == 0.3
    assert Model.from_tensors(model.config, model.state_dict()).anneal == 0.3
    levels = build(small("quick", depth=1))
    assert levels.sdf.encoding.active == 2
    levels.advance(10)
    assert levels.sdf.encoding.active == 3
    levels.advance(1000)
    assert levels.sdf.encoding.active == 4


# ----------------------------------------------------------------------------------------------------------- losses


def batch_of(count, foreground=None, mask=None):
    return Batch(cameras(), None, torch.full((count, 3), 0.25), mask, WHITE, foreground)


def test_the_base_loss_is_l1_and_the_original_sums_channels():
    model, batch = build().eval(), batch_of(40)
    with torch.no_grad():
        drawn = model.march(rays(), WHITE)
    error = (drawn.color - 0.25).abs()
    losses = [Recipe(small(l1=kind), geometry()).photometric(drawn, batch) for kind in ("mean", "sum")]
    torch.testing.assert_close(losses[0], error.mean())
    torch.testing.assert_close(losses[1], error.sum() / 40)


def test_the_eikonal_term_and_where_it_counts():
    model = build(small(surroundings="none"))
    drawn = model.march(rays(), WHITE)
    terms = model.regularizers(drawn, batch_of(40), 1)
    assert list(terms) == ["eikonal"]
    gradients, points = drawn.extras["gradients"], drawn.extras["points"]
    assert len(gradients) == 40 * 24
    torch.testing.assert_close(terms["eikonal"], 0.1 * (gradients.norm(dim=-1) - 1).square().mean())
    inner = dataclasses.replace(model.config, eikonal_region="sphere")
    model.config = inner
    near = points.norm(dim=-1) < 1.2
    assert 0.1 < near.float().mean() < 1
    expected = 0.1 * (gradients[near].norm(dim=-1) - 1).square().mean()
    torch.testing.assert_close(model.regularizers(drawn, batch_of(40), 1)["eikonal"], expected)


@pytest.mark.parametrize("behind", ["none", "contracted", "sphere"])
def test_the_mask_term(behind):
    """Of the region's own opacity: a background is opaque wherever one looks."""
    region = {"region": "sphere"} if behind == "sphere" else {}
    model = build(small(surroundings=behind, mask_weight=0.1, **region))
    drawn = model.march(rays(), WHITE)
    foreground = (torch.arange(40) % 2).float()
    found = model.regularizers(drawn, batch_of(40, foreground), 1)["mask"]
    samples, weights = drawn.extras["samples"], drawn.extras["weights"]
    near = model.region.to_local(samples.positions).abs() <= 1
    near = near.all(-1) if behind != "sphere" else model.region.to_local(samples.positions).norm(dim=-1) < 1
    alpha = torch.zeros(40).index_add(0, samples.ray, weights * near).clamp(1e-3, 1 - 1e-3)
    assert 0.1 < float((alpha < 0.9).float().mean())
    expected = -(foreground * alpha.log() + (1 - foreground) * (1 - alpha).log()).mean()
    torch.testing.assert_close(found, 0.1 * expected, rtol=1e-3, atol=1e-5)
    found.backward()
    assert sum(float(one.grad.abs().sum()) for one in model.sdf.parameters() if one.grad is not None) > 0.01
    assert "mask" not in model.regularizers(drawn, batch_of(40), 1)


def test_the_mask_term_needs_something_that_says_where_the_object_is():
    config = small(mask_weight=0.1, surroundings="none")
    with pytest.raises(UserError, match=r"--mask-weight 0\.1: expected images whose masks or transparency"):
        Recipe(config, geometry(has_alpha=False))
    assert Recipe(config, geometry(has_alpha=False, object_masks=True)).sampling(1).colors == "object"
    assert Recipe(config, geometry()).sampling(1).colors == "all"
    quick, masked = small("quick", mask_weight=0.1, surroundings="none", steps=60, shape_steps=20), {"has_alpha": False}
    for stated, steps in (({}, 20), (masked | {"object_masks": True}, 0)):
        assert Recipe(quick, geometry(**stated)).first_steps == steps
        assert (build(quick, **stated).shape is None) == (steps == 0)
    behind = dataclasses.replace(config, surroundings="contracted")
    assert Recipe(behind, geometry(has_alpha=False, object_masks=True)).sampling(1).colors == "all"


def test_the_originals_eikonal_term_goes_beyond_what_is_drawn():
    """To 1.2 radii, though its background answers for all that is outside of the unit ball."""
    model = build(small("paper-original"))
    assert model.behind.kind == "sphere"
    drawn = model.march(rays(), WHITE)
    far = drawn.extras["points"].norm(dim=-1)
    assert ((far >= 1) & (far < 1.2)).float().mean() > 0.05
    own = model.sdf(drawn.extras["points"])[2]
    torch.testing.assert_close(drawn.extras["gradients"], own)
    term = model.regularizers(drawn, batch_of(40), 1)["eikonal"]
    torch.testing.assert_close(term, 0.1 * (own[far < 1.2].norm(dim=-1) - 1).square().mean())
    with torch.no_grad():
        assert model.eval().march(rays(), WHITE).extras["points"].norm(dim=-1).max() < 1


# ------------------------------------------------------------------------------------------------------ the surface


def test_the_level_set_is_in_the_scenes_frame():
    bounds = torch.tensor([[3.0, -1.0, 2.0], [7.0, 3.0, 6.0]])
    model = build(small(surroundings="none"), bounds=bounds)
    surface = model.level_set()
    assert isinstance(surface, LevelSet)
    assert surface.level == 0
    torch.testing.assert_close(surface.bounds, bounds)
    center = torch.tensor([[5.0, 1.0, 4.0]])
    out = center + torch.tensor([[2.0, 0, 0]])
    values = surface.values(torch.cat([center, out]))
    assert values.dtype == torch.float32
    assert values[0] > 0 > values[1]
    torch.testing.assert_close(values, -model.distance(torch.cat([center, out])))
    assert values[0].item() == pytest.approx(0.8 * 2.0, abs=0.6)  # in world units
    assert not values.requires_grad


def test_the_background_network_sees_bounded_points():
    torch.manual_seed(0)
    far = torch.randn(50, 3) * 100
    contracted, inverted = (Background(kind, small(), 3) for kind in ("contracted", "sphere"))
    assert contracted._bounded(far).abs().max() <= 2
    bounded = inverted._bounded(far)
    torch.testing.assert_close(bounded[:, :3].norm(dim=-1), torch.ones(50))
    torch.testing.assert_close(bounded[:, 3], 1 / far.norm(dim=-1))


def test_the_colour_network_starts_as_its_variant_does():
    torch.manual_seed(0)
    ours, theirs = (ColorNetwork(preset("paper", variant=name), 3, None) for name in ("sdfstudio", "original"))
    assert all((layer.bias == 0).all() for layer in ours.layers)
    assert ours.layers[1].weight.abs().max().item() == pytest.approx(math.sqrt(6 / 256), rel=0.01)
    assert theirs.layers[1].weight.abs().max().item() == pytest.approx(math.sqrt(1 / 256), rel=0.01)
    assert (theirs.layers[1].bias != 0).all()


def test_colours_have_a_hash_grid_of_their_own():
    """No parameter of the colours is one of the distances'."""
    model = build(small("quick", depth=1))
    drawn = model.march(rays(), WHITE)
    drawn.color.sum().backward()
    assert model.colors.grid.table.grad.abs().sum() > 0
    points = torch.rand(50, 3) - 0.5
    before = model.sdf.distance(points)
    with torch.no_grad():
        model.colors.grid.table += 1.0
    assert torch.equal(model.sdf.distance(points), before)
    assert not torch.allclose(model.march(rays(), WHITE).color, drawn.color, atol=1e-3)
    config = small("quick", depth=1, table_lr=0.002, color_table_lr=0.03)
    groups = {group["name"]: group for group in Recipe(config, geometry()).optimizers(model)["fields"].param_groups}
    assert [p is model.colors.grid.table for p in groups["color_table"]["params"]] == [True]
    assert Recipe(config, geometry()).highest_rates["color_table"] == 0.03
