"""D-NeRF: the released code's facts, the displacement against float64, time 0, the order of frames, files."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from ngp_scenes import cameras, geometry
from safetensors.torch import load_file
from torch import nn

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.fields import METHODS, dnerf, nerf, ngp
from nfc_splat.fields.displacement import Displacement
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.rendering.march import MovedField, composite
from nfc_splat.rendering.packed import render_weights
from nfc_splat.rendering.samplers import importance, stratified

SMALL = {"deformation_width": 24, "deformation_depth": 3, "width": 16, "rays": 64}
NETWORKS = {"canonical": "networks", "depth": 3, "coarse_samples": 12, "fine_samples": 10}
HASH = {"canonical": "hash", "levels": 4, "log2_table_size": 10, "finest_resolution": 32, "grid": 16, "march_steps": 48}
KINDS = {"networks": NETWORKS, "hash": HASH}
WHITE = torch.ones(3)


def moving_geometry(times=None, count=6, **changes):
    times = torch.linspace(0, 1, count) if times is None else torch.tensor(times)
    return geometry(cameras=replace(cameras(count), times=times), **changes)


def build(kind="networks", scene=None, **options):
    torch.manual_seed(0)
    config = dnerf.preset("paper", **{"target_encoding": "none", **SMALL, **KINDS[kind], **options})
    return dnerf.Model.initialise(config, scene or moving_geometry())


def rays_at(time, count=40, seed=3):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.stack([torch.randint(n, (count,), generator=generator) for n in (6, 24, 24)], 1)
    return replace(cameras().rays(pixels), times=torch.full((count,), time))


def push(model, shift):
    """Displace everything by `shift`, in the units of the displacement."""
    last = model.displacement.network.layers[-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor(shift))


# ------------------------------------------------------------------------------------------------ published facts


def test_published_configuration():
    """The released code's numbers; the paper's would be 4 octaves of time, 4096 rays and 64 samples."""
    config = dnerf.preset("paper")
    assert (config.steps, config.rays, config.coarse_samples, config.fine_samples) == (800_000, 500, 64, 128)
    assert (config.lr, config.lr_decay_steps) == (5e-4, 500_000)
    assert (config.deformation_octaves, config.time_octaves, config.octaves, config.view_octaves) == (10, 10, 10, 4)
    assert (config.deformation_width, config.deformation_depth, config.width, config.depth) == (256, 8, 256, 8)
    assert (config.precrop_steps, config.precrop_share, config.time_steps) == (500, 0.5, 100_000)
    assert (config.bf16, config.zero_start, config.canonical) == (False, False, "networks")
    assert METHODS["dnerf"].dynamic
    assert METHODS["dnerf"].loss_weight == 2.0


@pytest.mark.parametrize(("encoding", "canonical"), [("none", 595_844), ("binary", 598_553)])
def test_one_network_of_the_published_size(encoding, canonical):
    model = dnerf.Model.initialise(dnerf.preset("paper", target_encoding=encoding), moving_geometry())
    count = lambda part: sum(p.numel() for p in part.parameters())  # noqa: E731
    assert (count(model.displacement), count(model.canonical)) == (499_203, canonical)
    assert count(model) == 499_203 + canonical
    assert not hasattr(model.canonical, "coarse")
    assert (model.displacement.points.out_dim, model.displacement.times.out_dim) == (63, 21)
    layers = [(layer.in_features, layer.out_features) for layer in model.displacement.network.layers]
    # The sixth layer sees the point again, but not the time.
    assert layers == [(84, 256), *[(256, 256)] * 4, (319, 256), *[(256, 256)] * 2, (256, 3)]


def test_rays_are_not_taken_through_a_second_loss():
    """The first pass has no loss of its own and says where to look; all samples are drawn, and asked for once."""
    model = build().train()
    asked = []
    model.canonical.fine.register_forward_hook(lambda module, inputs, answer: asked.append(len(inputs[0])))
    drawn = model.march(rays_at(0.5), WHITE)
    assert drawn.auxiliary == ()
    assert asked == [40 * 12, 40 * 10]
    drawn.color.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_samples_that_were_asked_for_before_are_drawn_as_if_they_were_asked_for_now():
    """Values and gradients of one rendering of all samples, in the order of the rays."""
    model = build(octaves=4, target_encoding="binary").double().eval()
    torch.nn.init.constant_(model.canonical.fine.density.bias, 0.2)
    rays = rays_at(0.5)
    rays = replace(rays, **{name: getattr(rays, name).double() for name in ("origins", "directions", "times")})
    drawn = model.march(rays, WHITE.double())
    canonical = model.canonical
    views = canonical.view_encoding(torch.nn.functional.normalize(rays.directions, dim=-1))
    field = MovedField(nerf._Pass(canonical, canonical.fine, canonical.fine_points, views), model.moved)
    first = stratified(rays, *canonical.depth_range.tolist(), 12, jitter=False)
    weights, _ = render_weights(field.alpha(first)[0].detach(), first.offsets)
    whole = composite(field, importance(first, weights, 10, jitter=False), WHITE.double())
    weight = torch.randn(40, 3, dtype=torch.float64)
    parameters = list(model.parameters())
    for name in ("color", "alpha", "depth"):
        torch.testing.assert_close(getattr(drawn, name), getattr(whole, name))
    ours, expected = (torch.autograd.grad((part.color * weight).sum(), parameters) for part in (drawn, whole))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("space", ["world", "ndc"])
def test_one_network_is_two_that_are_equal(space):
    """NeRF with --networks 1, in the world and in the coordinates of a forward-facing scene."""
    sizes = {"width": 16, "depth": 3, "octaves": 4, "coarse_samples": 9, "fine_samples": 11, "target_encoding": "none"}
    cameras = Cameras.pinhole(torch.eye(4)[None], torch.tensor([[30.0, 0, 12], [0, 30, 12], [0, 0, 1]]), 24, 24)
    scene = SceneGeometry(cameras, None, None, near_far=(2.0, 9.0))
    torch.manual_seed(0)
    configs = [nerf.preset("paper", space=space, networks=count, **sizes) for count in (1, 2)]
    one, two = (nerf.Model.initialise(config, scene).eval() for config in configs)
    nn.init.constant_(one.fine.density.bias, 0.5)
    assert not hasattr(one, "coarse")
    for network in (two.coarse, two.fine):
        network.load_state_dict(one.fine.state_dict())
    rays = cameras.rays(
        torch.randint(24, (30, 3), generator=torch.Generator().manual_seed(1)) * torch.tensor([0, 1, 1])
    )
    drawn, expected = one.march(rays, WHITE), two.march(rays, WHITE)
    for name in ("color", "alpha", "depth"):
        torch.testing.assert_close(getattr(drawn, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    again = nerf.Model.from_tensors(one.config, one.state_dict()).eval()
    assert torch.equal(again.march(rays, WHITE).color, drawn.color)


def test_rays_run_from_2_to_6_around_published_scenes():
    assert build().canonical.depth_range.tolist() == pytest.approx([2, 6], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_learning_rates_at_the_end(kind):
    """1.26e-5 after 800,000 steps, not the paper's 5e-5; here in a schedule of a hundredth."""
    config = replace(build(kind).config, steps=8000, lr_decay_steps=5000, update_every=10**6)
    scene = moving_geometry()
    model, recipe = dnerf.Model.initialise(config, scene), dnerf.Recipe(config, scene)
    optimizers = recipe.optimizers(model)
    (optimizer,) = optimizers.values()
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in listed}) == len(listed) == sum(p.requires_grad for p in model.parameters())
    drawn = model.eval().march(rays_at(0.5), WHITE)
    for step in range(1, config.steps + 1):
        recipe.after_step(model, optimizers, drawn, step)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert min(rates) == pytest.approx(5e-4 * 10**-1.6, rel=1e-4)
    assert max(rates) == pytest.approx((5e-4 if kind == "networks" else 1e-2) * 10**-1.6, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"time_octaves": 17}, "--time-octaves 17"),
        ({"deformation_depth": 0}, "--deformation-depth 0"),
        ({"field_lr": 0.0}, "--field-lr 0.0"),
        ({"lr": math.nan}, "--lr nan"),
        ({"time_steps": -1}, "--time-steps -1"),
        ({"width": 33}, "--width 33"),
        ({"levels": 0}, "--levels 0"),
        ({"steps": 0}, "--steps 0"),
        ({"widht": 3}, "widht"),
    ],
)
def test_settings_that_make_no_sense(options, flag):
    with pytest.raises(UserError, match=flag):
        dnerf.preset("paper", **options)


# ------------------------------------------------------------------------------------------------ the displacement


# How near to 0 a ReLU's input may come before float32's rounding of it (about 1e-6 here) can land on the other side.
KINK = 5e-6


def published(module, points, times, ray):
    """The displacement [M, 3] written out, in the dtype of its inputs, and how near [M] a ReLU's input comes to 0."""
    encode = lambda x, octaves: torch.cat(  # noqa: E731
        [x, *(wave(2.0**k * x) for k in range(octaves) for wave in (torch.sin, torch.cos))], 1
    )
    point, time = encode(points, module.points.octaves), encode(times[ray][:, None], module.times.octaves)
    h, nearest = torch.cat([point, time], 1), torch.full((len(points),), math.inf, dtype=points.dtype)
    *hidden, last = module.network.layers
    for index, layer in enumerate(hidden):
        h = layer(h)
        nearest = nearest.minimum(h.detach().abs().amin(1))
        h = h.relu()
        if index == len(hidden) // 2 and len(hidden) > 2:
            h = torch.cat([point, h], 1)
    return last(h) * (times[ray] != 0)[:, None], nearest


def apart(ours, expected):
    """The norm of a difference, relative to that of what was expected."""
    return ((ours.double() - expected).norm() / expected.norm()).item()


def displacement_inputs(rows=3000, rays=40):
    generator = torch.Generator().manual_seed(5)
    times = torch.rand(rays, generator=generator)
    times[::7] = 0
    points = torch.rand(rows, 3, generator=generator) * 2 - 1
    return points, times, torch.arange(rows) * rays // rows, torch.randn(rows, 3, generator=generator)


@pytest.mark.parametrize(("width", "depth", "octaves", "time_octaves"), [(64, 8, 10, 10), (32, 3, 4, 2), (16, 1, 0, 0)])
@pytest.mark.parametrize("seed", [1, 5])
def test_the_displacement_equals_a_float64_reference(width, depth, octaves, time_octaves, seed):
    """To float32's rounding, angles of up to 2^9 included: a power of two times a coordinate is exact, and both take
    their sines of the same angles.

    But for samples at a kink of a ReLU. Where its input is within rounding of 0 the two can take different sides;
    values hardly notice, but a path has its gradient in one and none in the other. With seed 5 one of 3000 samples does
    so, which alone puts gradients of parameters 1e-2 apart. Such samples are left out of the loss.
    """
    torch.manual_seed(seed)
    module = Displacement(width, depth, octaves, time_octaves)
    exact = copy.deepcopy(module).double()
    points, times, ray, weight = displacement_inputs()
    x, y = points.clone().requires_grad_(), points.double().requires_grad_()
    moved, (expected, nearest) = module(x, times, ray), published(exact, y, times.double(), ray)
    assert apart(moved, expected) < 1e-6
    weight = weight * (nearest > KINK)[:, None]
    assert (nearest > KINK).double().mean() > 0.98
    ours = torch.autograd.grad((moved * weight).sum(), [x, *module.parameters()])
    theirs = torch.autograd.grad((expected * weight.double()).sum(), [y, *exact.parameters()])
    assert max(map(apart, ours, theirs)) < 2e-6  # sums of 3000 rows in float32
    assert torch.equal(exact(points.double(), times.double(), ray), expected)


def test_gradients_of_the_displacement():
    torch.manual_seed(2)
    module = Displacement(6, 3, 1, 1).double()
    points, times, ray = torch.randn(4, 3).double().requires_grad_(), torch.tensor([0.3, 0.0]).double(), [0, 0, 1, 1]
    function = lambda x, *_: module(x, times, torch.tensor(ray))  # noqa: E731
    assert torch.autograd.gradcheck(function, (points, *module.parameters()))


def test_nothing_moves_at_time_0_and_nothing_is_learned_there():
    module = Displacement(16, 3, 4, 4)
    nn.init.constant_(module.network.layers[-1].bias, 0.7)
    points, times, ray, _ = displacement_inputs()
    moved = module(points, times, ray)
    still = (times == 0)[ray]
    assert torch.equal(moved[still], torch.zeros(int(still.sum()), 3))
    assert (moved[~still].norm(dim=1) > 0).all()
    moved[still].sum().backward()
    assert all(not p.grad.any() for p in module.parameters())


def test_a_start_without_displacement():
    points, times, ray, _ = displacement_inputs()
    assert not Displacement(16, 3, 4, 4, zero_start=True)(points, times, ray).any()
    assert Displacement(16, 3, 4, 4)(points, times, ray).any()


# ------------------------------------------------------------------------------------------------ drawing


@pytest.mark.parametrize("kind", KINDS)
def test_time_0_is_the_static_field(kind):
    model = build(kind).eval()
    rays = rays_at(0.0)
    drawn, static = model.march(rays, WHITE), model.canonical.march(rays, WHITE)
    assert torch.equal(drawn.color, static.color)
    assert torch.equal(drawn.depth, static.depth)
    assert not torch.equal(model.march(rays_at(0.5), WHITE).color, drawn.color)


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_displaced_from_where_they_are_seen_to_where_they_are_known(kind):
    """Backwards, unlike 4DGS: what is seen at x is the canonical field at x + dx, as from a camera moved along. What
    the viewing direction is does not change."""
    model = build(kind, octaves=4).eval()
    push(model, [0.05, -0.1, 0.02])
    unit = float(model.canonical.space.radius) if kind == "hash" else 1.0
    rays = rays_at(0.4)
    shift = unit * torch.tensor([0.05, -0.1, 0.02])
    samples = stratified(rays, 3.0, 5.0, 9, jitter=False)
    moved = model.moved(samples)
    torch.testing.assert_close(moved.positions, samples.positions + shift, rtol=0, atol=1e-6)
    assert torch.equal(moved.directions, samples.directions)
    if kind == "networks":  # rays of the hash grid end where its box does, which does not move along
        drawn = model.march(rays, WHITE)
        beside = model.canonical.march(replace(rays, origins=rays.origins + shift), WHITE)
        torch.testing.assert_close(drawn.color, beside.color, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_displacement_through_the_static_fields_positions(kind):
    """As the chain rule has it, with the displacement written out in float64."""
    model = build(kind)
    rays = rays_at(0.5)
    samples = stratified(rays, 3.0, 5.0, 30, jitter=False)
    canonical = model.canonical
    if kind == "hash":
        nn.init.uniform_(canonical.table, -1, 1)
        field, local, unit = canonical, canonical.space.to_local(samples.positions), canonical.space.radius
    else:
        nn.init.constant_(canonical.fine.density.bias, 1.0)
        views = canonical.view_encoding(torch.nn.functional.normalize(rays.directions, dim=-1))
        field, local, unit = nerf._Pass(canonical, canonical.fine, canonical.fine_points, views), samples.positions, 1.0
    parameters = list(model.displacement.parameters())
    exact = copy.deepcopy(model.displacement).double()
    shift, nearest = published(exact, local.double(), rays.times.double(), samples.ray)
    kept = nearest > KINK
    ours = torch.autograd.grad(field.alpha(model.moved(samples))[0][kept].sum(), parameters)
    leaf = model.moved(samples).positions.detach().requires_grad_()
    (v_positions,) = torch.autograd.grad(field.alpha(samples.moved_to(leaf))[0][kept].sum(), leaf)
    expected = torch.autograd.grad((unit * shift * v_positions.double()).sum(), list(exact.parameters()))
    assert v_positions.any()
    assert max(map(apart, ours, expected)) < 2e-6


def test_rays_without_times_are_refused():
    with pytest.raises(ValueError, match="no times"):
        build().march(replace(rays_at(0.5), times=None), WHITE)


@pytest.mark.parametrize("kind", KINDS)
def test_normals_and_bits_are_drawn_through_the_displacement(kind):
    model = build(kind, target_encoding="binary").eval()
    model.draw_normals = model.draw_bits = True
    drawn = model.march(rays_at(0.5), WHITE)
    assert drawn.normal.shape == (40, 3)
    assert drawn.bits.shape == (40, 3, 8)
    shares = torch.tensor([2.0**k / 255 for k in range(7, -1, -1)])
    torch.testing.assert_close((drawn.bits * shares).sum(-1), drawn.color, rtol=0, atol=1e-5)  # decoded, then white
    head = model.canonical.rgb if kind == "hash" else model.canonical.fine.color
    assert (head.out_dim if kind == "hash" else head.out_features) == 24


def test_the_occupancy_grid_holds_what_is_filled_at_any_time():
    """A ball that is displaced at all times but 0 leaves its mark at its place then."""
    model = build("hash")
    space, shift = model.canonical.space, torch.tensor([0.4, 0.0, 0.0])
    push(model, shift.tolist())
    middle = space.center + space.radius * shift  # where the canonical ball is
    model.canonical.thickness = lambda unit: ((space.to_world(unit) - middle).norm(dim=-1) < 0.2 * space.radius).float()
    model.grid.update(model.thickness, everywhere=True)
    occupied = (model.grid.occupied.nonzero() + 0.5) / model.grid.size
    assert len(occupied) > 5
    away = (space.to_world(occupied) - space.center).norm(dim=-1) / space.radius
    assert away.max() < 0.2 + 2 * math.sqrt(3) / model.grid.size


# ------------------------------------------------------------------------------------------------ the order of frames


def test_frames_join_in_the_order_of_time():
    """Not in that of the list, which may be shuffled."""
    times = [0.6, 0.0, 1.0, 0.2, 0.4, 0.8]
    config = dnerf.preset("paper", time_steps=1200, **NETWORKS)
    recipe = dnerf.Recipe(config, moving_geometry(times))
    assert [recipe.frames(step) for step in (1, 799, 800, 1000, 1199, 1200)] == [3, 3, 4, 5, 5, 6]
    first = recipe.sampling(1)
    assert (first.kind, first.crop) == ("image_rays", 0.5)
    assert first.views.tolist() == [1, 3, 4]
    assert recipe.sampling(800).views.tolist() == [1, 3, 4, 0]
    assert recipe.sampling(1200).views is None
    assert recipe.sampling(500).crop == 0.5
    assert recipe.sampling(501).crop == 1.0


def test_the_hash_grid_gets_pixels_of_the_early_frames_alone():
    config = dnerf.preset("quick", time_steps=1200, **{**SMALL, **HASH})
    recipe = dnerf.Recipe(config, moving_geometry([0.6, 0.0, 1.0, 0.2, 0.4, 0.8]))
    sampling = recipe.sampling(10)
    assert (sampling.kind, sampling.background) == ("random_rays", "random")
    assert (sampling.candidates // 24**2).unique().tolist() == [1, 3, 4]
    assert len(sampling.candidates) == 3 * 24**2
    assert recipe.sampling(11).candidates is sampling.candidates
    later = recipe.sampling(1200)
    assert (later.kind, later.candidates) == ("shuffled_rays", None)


def test_few_frames_or_no_schedule():
    recipe = dnerf.Recipe(dnerf.preset("paper", **NETWORKS), moving_geometry(count=2))
    assert recipe.frames(1) == 2
    recipe = dnerf.Recipe(dnerf.preset("paper", time_steps=0, **NETWORKS), moving_geometry())
    assert recipe.frames(1) == 6
    assert recipe.sampling(1).views is None


def test_scaled_schedule():
    config = dnerf.preset("paper", steps=8000)
    assert (config.time_steps, config.precrop_steps, config.lr_decay_steps) == (1000, 5, 5000)
    assert dnerf.preset("quick", steps=1).update_every >= 1


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_from_its_tensors(kind):
    model = build(kind, target_encoding="gray").eval()
    again = dnerf.Model.from_tensors(model.config, copy.deepcopy(model.state_dict())).eval()
    for time in (0.0, 0.7):
        assert torch.equal(again.march(rays_at(time), WHITE).color, model.march(rays_at(time), WHITE).color)


def test_the_networks_are_exported_under_the_published_names(tmp_path):
    model = build()
    weights, facts = dnerf.export(model, tmp_path)
    tensors = load_file(weights)
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(p.numel() for p in model.parameters())
    names = {name.rpartition(".")[0] for name in tensors}
    assert {"_occ.pts_linears.0", "_occ.views_linears.0", "_occ.rgb_linear", "_time.2", "_time_out"} <= names
    assert torch.equal(tensors["_time_out.bias"], model.displacement.network.layers[-1].bias)
    told = json.loads(facts.read_text())
    assert (told["time_octaves"], told["deformation_depth"], told["near"]) == (10, 3, pytest.approx(2, rel=1e-4))


def test_the_hash_grid_is_exported_as_it_is_at_time_0(tmp_path):
    model = build("hash")
    nn.init.uniform_(model.canonical.table, -1, 1)
    (cloud,) = dnerf.export(model, tmp_path)
    (beside,) = ngp.export(model.canonical, tmp_path / "beside") if (tmp_path / "beside").mkdir() is None else ()
    assert cloud.name == "point_cloud.ply"
    assert cloud.read_bytes() == beside.read_bytes()
