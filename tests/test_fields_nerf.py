"""NeRF: the published facts, the network against plain torch, rays and depths, the warp, training and resuming."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method, nerf
from nfc_splat.fields.nerf_network import NeRFNetwork
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.rendering.samplers import importance, sample_pdf, stratified

SMALL = {"width": 32, "depth": 3, "coarse_samples": 16, "fine_samples": 16, "rays": 64}
WHITE = torch.ones(3)


def ring(count=5, distance=4.0, size=24):
    """Cameras on a circle about the origin, looking at it."""
    viewmats = torch.eye(4).repeat(count, 1, 1)
    for k in range(count):
        angle = 2 * math.pi * k / count
        forward = torch.tensor([math.cos(angle), 0.0, math.sin(angle)])
        right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward)
        viewmats[k, :3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
        viewmats[k, 2, 3] = distance
    K = torch.tensor([[1.2 * size, 0, size / 2], [0, 1.2 * size, size / 2], [0, 0, 1.0]])
    return Cameras.pinhole(viewmats, K, size, size)


def row(count=4, size=32):
    """Cameras side by side, looking along z with a slight turn."""
    viewmats = torch.eye(4).repeat(count, 1, 1)
    for k in range(count):
        turn = 0.05 * (k - 1.5)
        viewmats[k, :3, :3] = torch.tensor(
            [[math.cos(turn), 0, -math.sin(turn)], [0, 1, 0], [math.sin(turn), 0, math.cos(turn)]]
        )
        viewmats[k, 0, 3] = 0.3 * (1.5 - k)
    K = torch.tensor([[40.0, 0, size / 2], [0, 44.0, size / 2], [0, 0, 1.0]])
    return Cameras.pinhole(viewmats, K, size, size)


def build(geometry=None, **options):
    config = nerf.preset("paper", **{"target_encoding": "none", **SMALL, **options})
    return nerf.Model.initialise(config, geometry or SceneGeometry(ring(), None, None))


def some_rays(cameras, count=50):
    pixels = torch.stack([torch.randint(n, (count,)) for n in (len(cameras), cameras.height, cameras.width)], 1)
    return cameras.rays(pixels)


def set_density(model, value):
    """The same density everywhere, in both networks."""
    for network in (model.coarse, model.fine):
        torch.nn.init.zeros_(network.density.weight)
        torch.nn.init.constant_(network.density.bias, value)


# ------------------------------------------------------------------------------------------------ published facts


def test_published_configuration():
    config = nerf.preset("paper")
    assert (config.width, config.depth, config.coarse_samples, config.fine_samples) == (256, 8, 64, 128)
    assert (config.rays, config.lr, config.lr_decay_steps, config.steps) == (1024, 5e-4, 500_000, 200_000)
    assert (config.batching, config.precrop_steps, config.precrop_share) == ("image", 500, 0.5)
    assert (config.bf16, config.density_noise) == (False, 0)
    forward = nerf.preset("paper", space="ndc")
    assert (forward.fine_samples, forward.density_noise, forward.lr_decay_steps) == (64, 1.0, 250_000)
    assert (forward.batching, forward.precrop_steps) == ("all", 0)
    assert find_method("nerf").loss_weight == 2.0


@pytest.mark.parametrize(("encoding", "each"), [("none", 595_844), ("binary", 598_553)])
def test_parameter_count(encoding, each):
    model = nerf.Model.initialise(nerf.preset("paper", target_encoding=encoding), SceneGeometry(ring(), None, None))
    for network in (model.coarse, model.fine):
        assert sum(p.numel() for p in network.parameters()) == each
    assert sum(p.numel() for p in model.parameters()) == 2 * each
    assert model.coarse_points.out_dim == 63
    assert model.view_encoding.out_dim == 27
    layers = [(layer.in_features, layer.out_features) for layer in model.fine.trunk.layers]
    assert layers == [(63, 256), *[(256, 256)] * 4, (319, 256), *[(256, 256)] * 2]
    assert (model.fine.view.in_features, model.fine.color.in_features) == (283, 128)


@pytest.mark.parametrize(("space", "rate"), [("world", 1.99e-4), ("ndc", 7.92e-5)])
def test_learning_rate_at_the_end(space, rate):
    config = nerf.preset("paper", space=space, steps=20_000)
    model = build(SceneGeometry(row(), None, None, (2.0, 9.0)))
    recipe = nerf.Recipe(config, SceneGeometry(ring(), None, None))
    optimizers = recipe.optimizers(model)
    (group,) = optimizers["networks"].param_groups
    assert (group["lr"], group["eps"], group["betas"], group["weight_decay"]) == (5e-4, 1e-8, (0.9, 0.999), 0)
    assert len(group["params"]) == len(list(model.parameters()))
    for step in range(1, config.steps + 1):
        recipe.after_step(model, optimizers, None, step)
    assert group["lr"] == pytest.approx(rate, rel=2e-3)


def test_batches_begin_in_the_middle_of_one_image():
    recipe = nerf.Recipe(nerf.preset("paper"), SceneGeometry(ring(), None, None))
    first, later = recipe.sampling(500), recipe.sampling(501)
    assert (first.kind, first.rays, first.crop, first.background) == ("image_rays", 1024, 0.5, "scene")
    assert (later.kind, later.crop) == ("image_rays", 1.0)
    everywhere = nerf.Recipe(nerf.preset("paper", space="ndc"), SceneGeometry(row(), None, None))
    assert everywhere.sampling(1).kind == "shuffled_rays"


def test_scaled_schedule():
    config = nerf.preset("paper", steps=2000)
    assert (config.steps, config.precrop_steps, config.lr_decay_steps) == (2000, 5, 5000)
    assert nerf.preset("paper").scaled_to(1).lr_decay_steps >= 1


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"width": 33}, "--width 33"),
        ({"depth": 1}, "--depth 1"),
        ({"coarse_samples": 2}, "--coarse-samples 2"),
        ({"fine_samples": 0}, "--fine-samples 0"),
        ({"rays": 0}, "--rays 0"),
        ({"near": 3.0, "far": 2.0}, "--far 2.0"),
        ({"near": -1.0}, "--near -1.0"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"density_noise": math.nan}, "--density-noise nan"),
        ({"activation": "sine"}, "--encoding positional"),
        ({"space": "sphere"}, "--space sphere"),
        ({"widht": 3}, "widht"),
        ({"steps": 0}, "--steps 0"),
    ],
)
def test_settings_that_make_no_sense(options, flag):
    with pytest.raises(UserError, match=flag):
        nerf.preset("paper", **options)


# ------------------------------------------------------------------------------------------------ the network


def network_gradients(network, points, views, ray, noise, weights):
    points = points.clone().requires_grad_()
    density, logits, rows = network(points, views, ray, noise)
    of_density, of_logits = weights
    total = (density * of_density).sum() + (logits * of_logits[rows]).sum()
    return density, logits, rows, torch.autograd.grad(total, [points, *network.parameters()])


def network_inputs(rows=9001, rays=300, share=1.0):
    ray = torch.arange(rows) * rays // rows
    weights = torch.randn(rows), torch.randn(rows, 24)
    silent = torch.rand(rows) >= share
    for weight in weights:
        weight[silent] = 0
    return torch.randn(rows, 63), torch.randn(rays, 27), ray, 0.1 * torch.randn(rows), weights


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("rows", [1, 9001])
def test_the_fast_network_equals_plain_torch(rows, share):
    network = NeRFNetwork(63, 27, 24, width=64)
    exact = copy.deepcopy(network).double()
    points, views, ray, noise, weights = network_inputs(rows, min(rows, 300), share)
    wide = [weight.double() for weight in weights]
    density, logits, found, ours = network_gradients(network, points, views, ray, noise, weights)
    density_, logits_, found_, expected = network_gradients(exact, points.double(), views.double(), ray, noise, wide)
    assert torch.equal(found, found_)
    torch.testing.assert_close(density, density_.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, logits_.float(), rtol=0, atol=1e-6)
    assert all(relative(a, b) < 1e-5 for a, b in zip(ours, expected, strict=True))


def test_the_plain_network_is_the_published_one():
    network = NeRFNetwork(63, 27, 3, width=16).double()
    points, views, ray, noise, _ = network_inputs(200, 20)
    points, views = points.double(), views.double()
    h = points
    for index, layer in enumerate(network.trunk.layers):
        h = layer(h).relu()
        if index == 4:
            h = torch.cat([points, h], 1)
    density = (network.density(h)[:, 0] + noise).relu()
    seen = network.view(torch.cat([network.feature(h), views[ray]], 1)).relu()
    ours, logits, rows = network(points, views, ray, noise)
    torch.testing.assert_close(ours, density)
    torch.testing.assert_close(logits, network.color(seen)[density > 0])
    assert torch.equal(rows, density.nonzero()[:, 0])


def test_gradients_of_the_plain_network():
    network = NeRFNetwork(4, 3, 3, width=6, depth=3).double()
    torch.nn.init.constant_(network.density.bias, 1.0)  # positive everywhere: no kink within the probe's reach
    views, ray = torch.randn(2, 3).double(), torch.tensor([0, 0, 1])
    points = torch.randn(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: network(x, views, ray)[:2], (points, *network.parameters()))


def test_bf16_network_is_close():
    """Values to 1 % of their size and parameters' gradients to 10 %, for loss gradients that agree across rows."""
    network = NeRFNetwork(63, 27, 24, width=64, bf16=True)
    exact = copy.deepcopy(network)
    exact.trunk.bf16 = False
    points, views, ray, _, weights = network_inputs(share=0.5)
    torch.nn.init.constant_(network.density.bias, 0.3)
    torch.nn.init.constant_(exact.density.bias, 0.3)
    weights = [weight.abs() for weight in weights]
    density, logits, rows, ours = network_gradients(network, points, views, ray, None, weights)
    density_, logits_, rows_, expected = network_gradients(exact, points, views, ray, None, weights)
    assert torch.equal(rows, rows_)
    assert len(rows) == len(points)
    assert density.dtype == logits.dtype == torch.float32
    assert 1e-5 < relative(density, density_) < 0.01
    assert 1e-5 < relative(logits, logits_) < 0.01
    assert all(relative(a, b) < 0.1 for a, b in zip(ours[1:], expected[1:], strict=True))


def test_one_thread_and_two_agree():
    network = NeRFNetwork(63, 27, 24, width=32)
    inputs = network_inputs(share=0.5)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(network_gradients(network, *inputs))
    finally:
        torch.set_num_threads(threads)
    (*_, one), (*_, two) = results
    # The library's own matrix products may sum in another order with another number of threads.
    assert all(relative(a, b) < 1e-5 for a, b in zip(one, two, strict=True))


def test_a_kept_graph_can_be_used_again():
    network = NeRFNetwork(63, 27, 3, width=16)
    points, views, ray, _, _ = network_inputs(500, 50)
    density, logits, _ = network(points, views, ray)
    total = density.sum() + logits.sum()
    first = torch.autograd.grad(total, list(network.parameters()), retain_graph=True)
    sum(part.sum() for part in network(points + 1, views, ray)[:2]).backward()  # takes the buffers over
    second = torch.autograd.grad(total, list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------------ rays and samples


def test_depth_range_of_the_scene_or_of_the_flags():
    torch.testing.assert_close(build().depth_range, torch.tensor([2.0, 6.0]))
    stated = SceneGeometry(ring(), None, None, near_far=(1.0, 5.0))
    assert build(stated).depth_range.tolist() == [1.0, 5.0]
    assert build(stated, near=1.5).depth_range.tolist() == [1.5, 5.0]
    assert build(stated, near=1.5, far=9.0).depth_range.tolist() == [1.5, 9.0]
    one_place = SceneGeometry(ring()[[0]], None, None)
    assert build(one_place, near=0.5, far=3.0).depth_range.tolist() == [0.5, 3.0]


@pytest.mark.parametrize(("flag", "value"), [("near", 8.0), ("far", 0.25)])
def test_a_flag_beyond_the_other_end_of_the_scene(flag, value):
    stated = SceneGeometry(ring(), None, None, near_far=(1.0, 5.0))
    with pytest.raises(UserError, match=f"--{flag} {value:g}: rays would start at .* state both"):
        build(stated, **{flag: value})


def test_the_second_network_sees_all_samples_in_order():
    rays = some_rays(ring(), 7)
    coarse = stratified(rays, 2.0, 6.0, 64, jitter=True)
    union = importance(coarse, torch.rand(len(coarse)), 128, jitter=True)
    t = union.t.view(7, 192)
    assert (t.diff(dim=1) >= 0).all()
    assert all(torch.isin(coarse.t.view(7, 64)[k], t[k]).all() for k in range(7))


def test_a_peak_draws_the_samples_into_its_bin():
    edges = torch.linspace(2, 6, 63)[None]
    weights = torch.zeros(1, 62)
    weights[0, 20] = 1
    drawn = sample_pdf(edges, weights, 128, jitter=False)[0]
    inside = (drawn >= edges[0, 20]) & (drawn <= edges[0, 21])
    assert inside[1:-1].all()  # what the floor of 1e-5 takes is at the ends


def test_no_density_shows_the_background():
    model = build().eval()
    set_density(model, -1.0)
    drawn = model.march(some_rays(ring()), torch.tensor([0.2, 0.5, 0.9]))
    torch.testing.assert_close(drawn.color, torch.tensor([0.2, 0.5, 0.9]).expand(50, 3))
    assert (drawn.alpha == 0).all()
    assert (drawn.depth == 0).all()


def test_any_density_is_opaque_at_the_last_sample():
    """The last interval has no end, so whatever the density, nothing of the background is seen."""
    model = build().eval()
    set_density(model, 1e-3)
    torch.nn.init.zeros_(model.fine.color.weight)
    color = torch.tensor([0.25, 0.5, 0.75])
    with torch.no_grad():
        model.fine.color.bias.copy_(color.logit())
    drawn = model.march(some_rays(ring()), WHITE)
    torch.testing.assert_close(drawn.color, color.expand(50, 3))
    torch.testing.assert_close(drawn.alpha, torch.ones(50, 1))
    weights = drawn.extras["weights"].view(50, 32)
    # alpha = 1 - exp(-density * length), of the world length of the interval and not of its depth.
    lengths = drawn.extras["samples"].t.view(50, 32).diff(dim=1)[:, 0] * some_rays_norms(drawn)
    torch.testing.assert_close(weights[:, 0], 1 - torch.exp(-1e-3 * lengths), rtol=1e-3, atol=1e-8)


def some_rays_norms(drawn):
    return drawn.extras["samples"].rays.directions.norm(dim=1)


def test_depth_is_along_the_camera_axis():
    """A dense fog begins where rays begin: depth near everywhere, whatever the slant of the ray."""
    model = build(near=3.0, far=7.0).eval()
    set_density(model, 1e4)
    drawn = model.march(some_rays(ring()), WHITE)
    torch.testing.assert_close(drawn.depth, torch.full((50, 1), 3.0), rtol=1e-3, atol=0)


def test_training_draws_both_networks_and_reaches_all_parameters():
    model = build(target_encoding="binary", density_noise=0.5).train()
    drawn = model.march(some_rays(ring()), WHITE)
    assert len(drawn.auxiliary) == 1
    (drawn.color.square().sum() + drawn.auxiliary[0].color.square().sum()).backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())
    assert not model.eval().march(some_rays(ring()), WHITE).auxiliary


def test_samples_do_not_pass_gradients_to_the_first_network():
    model = build().train()
    drawn = model.march(some_rays(ring()), WHITE)
    drawn.color.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.coarse.parameters())


@pytest.mark.parametrize("unit", [0.01, 300.0])
def test_the_unit_of_the_world_changes_nothing(unit):
    """A scene in millimetres is the scene in metres."""
    cameras, large = ring(), ring(distance=4.0 * unit)
    models = []
    for seen, factor in ((cameras, 1.0), (large, unit)):
        torch.manual_seed(0)
        scene = SceneGeometry(seen, None, None, near_far=(2.0 * factor, 6.0 * factor))
        models.append(build(scene, encoding="hash" if unit > 1 else "positional").eval())
    assert float(models[0].unit) == 1
    assert float(models[1].unit) == pytest.approx(unit)
    rays, stretched = (seen.rays(torch.tensor([[0, 5, 9], [2, 16, 16], [3, 30, 2]])) for seen in (cameras, large))
    drawn, again = models[0].march(rays, WHITE), models[1].march(stretched, WHITE)
    torch.testing.assert_close(again.alpha, drawn.alpha, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again.color, drawn.color, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.depth, drawn.depth * unit, rtol=1e-3, atol=1e-4 * unit)


@pytest.mark.parametrize("space", ["world", "ndc"])
def test_no_pixels_are_no_colours(space):
    model = build(SceneGeometry(row(), None, None, near_far=(2.0, 9.0)), space=space).eval()
    with torch.no_grad():
        drawn = model.render(row(), torch.zeros(0, 3, dtype=torch.int64), background=WHITE)
    assert (drawn.color.shape, drawn.depth.shape) == ((0, 3), (0, 1))


def test_drawing_is_deterministic_and_training_is_not():
    model, rays = build(), some_rays(ring())
    noisy = build(density_noise=1.0)
    assert torch.equal(model.eval().march(rays, WHITE).color, model.march(rays, WHITE).color)
    assert torch.equal(noisy.eval().march(rays, WHITE).color, noisy.march(rays, WHITE).color)
    assert not torch.equal(model.train().march(rays, WHITE).color, model.march(rays, WHITE).color)


def test_bits_and_normals():
    model = build(target_encoding="binary").eval()
    set_density(model, 1.0)
    model.draw_bits = model.draw_normals = True
    drawn = model.render(ring()[0], background=WHITE)
    assert drawn.bits.shape == (1, 24, 24, 3, 8)
    torch.testing.assert_close(model.encoding.decode(drawn.bits), drawn.color, atol=1e-5, rtol=0)
    assert drawn.normal.shape == (1, 24, 24, 3)
    plain = build().eval()
    set_density(plain, 1.0)
    plain.draw_bits = True
    with pytest.raises(ValueError, match="no digits"):
        plain.march(some_rays(ring()), WHITE)


@pytest.mark.parametrize(
    ("encoding", "activation"),
    [("fourier", "relu"), ("hash", "relu"), ("identity", "relu"), ("identity", "sine"), ("identity", "gaussian")],
)
def test_encodings_and_activations(encoding, activation):
    model = build(encoding=encoding, activation=activation).train()
    drawn = model.march(some_rays(ring()), WHITE)
    (drawn.color.sum() + drawn.auxiliary[0].color.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    again = nerf.Model.from_tensors(model.config, model.state_dict())
    rays = some_rays(ring())
    assert torch.equal(again.eval().march(rays, WHITE).color, model.eval().march(rays, WHITE).color)


# ------------------------------------------------------------------------------------------------ forward-facing


@pytest.fixture
def forward():
    return build(SceneGeometry(row(), None, None, near_far=(2.0, 9.0)), space="ndc")


def test_the_warp_is_the_published_one(forward):
    """Appendix C of the paper, written in its axes (y up, z backwards), in the mean camera's frame."""
    ndc, rays = forward.ndc, some_rays(row())
    near = 1.5
    assert ndc.near.item() == pytest.approx(near)
    flip = torch.tensor([1.0, -1.0, -1.0])
    o = (rays.origins @ ndc.to_frame[:, :3].T + ndc.to_frame[:, 3]) * flip
    d = (rays.directions @ ndc.to_frame[:, :3].T) * flip
    o = o - ((near + o[:, 2:]) / d[:, 2:]) * d
    a, b = 40 / 16, 44 / 16
    ox, oy, oz = o.unbind(1)
    dx, dy, dz = d.unbind(1)
    origins = torch.stack([-a * ox / oz, -b * oy / oz, 1 + 2 * near / oz], 1)
    directions = torch.stack([-a * (dx / dz - ox / oz), -b * (dy / dz - oy / oz), -2 * near / oz], 1)
    warped = ndc.warp_rays(rays)
    up = torch.tensor([1.0, -1.0, 1.0])  # ours keeps y down
    torch.testing.assert_close(warped.origins * up, origins, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(warped.directions * up, directions, rtol=1e-5, atol=1e-5)


def test_warped_rays_and_warped_points_agree(forward):
    rays = some_rays(row())
    warped = forward.ndc.warp_rays(rays)
    share = torch.rand(50, 6) * 0.99
    t = forward.ndc.depth(rays, share)
    for k in range(6):
        points = rays.origins + t[:, k, None] * rays.directions
        expected = warped.origins + share[:, k, None] * warped.directions
        torch.testing.assert_close(forward.ndc.warp_points(points), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("space", "cameras"), [("world", ring()), ("ndc", row())])
def test_the_hash_encoding_covers_what_cameras_see(space, cameras):
    model = build(SceneGeometry(cameras, None, None, near_far=(2.0, 9.0)), space=space, encoding="hash")
    low, high = model.fine_points.box
    rays = some_rays(cameras, 200)
    rays = model.ndc.warp_rays(rays) if model.ndc else rays
    near, far = model.depth_range.tolist()
    points = torch.cat([rays.origins + near * rays.directions, rays.origins + far * rays.directions])
    assert ((points >= low - 1e-4) & (points <= high + 1e-4)).all()
    assert (points.amax(0) - points.amin(0) > 0.5 * (high - low)).all()


def test_stated_bounds_are_what_the_hash_encoding_covers():
    bounds = torch.tensor([[-1.0, -1, -1], [1.0, 1, 2]])
    model = build(SceneGeometry(ring(), None, None, bounds=bounds), encoding="hash")
    assert torch.equal(model.fine_points.box, bounds)


def test_depth_of_a_wall_in_a_forward_facing_scene(forward):
    """A wall at z = 4 of the world comes out at its camera-space depth, for turned cameras too."""
    forward = build(SceneGeometry(row(), None, None, (2.0, 9.0)), space="ndc", coarse_samples=256, fine_samples=256)
    rays = some_rays(row())

    class Wall(torch.nn.Module):
        """Stands for a network: dense behind the plane. It gets encoded points, the first three as they are."""

        def forward(self, points, views, ray, noise=None):
            z = 2 * forward.ndc.near / (1 - points[:, 2])
            density = torch.where(z > 4, 1e5, 0.0)
            rows = density.nonzero()[:, 0]
            return density, torch.zeros(len(rows), 3), rows

    forward.coarse = forward.fine = Wall()
    drawn = forward.eval().march(rays, WHITE)
    frame = forward.ndc.to_frame
    z_origin, z_slope = (rays.origins @ frame[2, :3] + frame[2, 3]), rays.directions @ frame[2, :3]
    torch.testing.assert_close(drawn.depth[:, 0], (4 - z_origin) / z_slope, rtol=2e-2, atol=0)
    assert (drawn.alpha > 0.999).all()


def test_directions_are_those_of_the_world(forward, monkeypatch):
    seen = []
    encode = forward.view_encoding.forward
    monkeypatch.setattr(forward.view_encoding, "forward", lambda x: seen.append(x) or encode(x))
    rays = some_rays(row())
    forward.march(rays, WHITE)
    torch.testing.assert_close(seen[0], torch.nn.functional.normalize(rays.directions, dim=1))


def test_cameras_that_look_around_cannot_be_warped():
    with pytest.raises(UserError, match="--space ndc: the cameras look in different directions"):
        build(space="ndc")


# ------------------------------------------------------------------------------------------------ checkpoint and files


@pytest.mark.parametrize("space", ["world", "ndc"])
def test_rebuilt_from_its_tensors(space):
    model = build(SceneGeometry(row(), None, None, (2.0, 9.0)), space=space, target_encoding="binary").eval()
    again = nerf.Model.from_tensors(model.config, model.state_dict()).eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    rays = some_rays(row())
    ours, theirs = model.march(rays, WHITE), again.march(rays, WHITE)
    assert torch.equal(ours.color, theirs.color)
    assert torch.equal(ours.depth, theirs.depth)


def test_export(tmp_path):
    model = build(target_encoding="binary")
    paths = nerf.export(model, tmp_path)
    assert [path.name for path in paths] == ["nerf_coarse.safetensors", "nerf_fine.safetensors", "nerf.json"]
    tensors = load_file(paths[1])
    assert torch.equal(tensors["alpha_linear.weight"], model.fine.density.weight)
    assert torch.equal(tensors["pts_linears.2.weight"], model.fine.trunk.layers[2].weight)
    assert tensors["views_linears.0.weight"].shape == (16, 32 + 27)
    assert tensors["rgb_linear.bias"].shape == (24,)
    facts = json.loads(paths[2].read_text())
    assert (facts["near"], facts["far"]) == pytest.approx((2, 6))
    assert (facts["logits_per_channel"], facts["octaves"], facts["coarse_samples"]) == (8, 10, 16)
