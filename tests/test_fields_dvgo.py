"""DVGO's numbers, those that its reference fixes: grid sizes, densities, thresholds, schedules, where it looks."""

import math
from dataclasses import replace

import pytest
import torch
from dvgo_toys import DISTANCE, ball_geometry, toy_config

from nfc_splat.errors import UserError
from nfc_splat.fields.dvgo import Model, Recipe
from nfc_splat.fields.dvgo_bounds import enlarged, inner_cube, scene_box, tight_box
from nfc_splat.fields.dvgo_config import Config, settled, voxels_at
from nfc_splat.fields.dvgo_space import Contracted, contracted_step, inner_steps
from nfc_splat.fields.dvgo_views import crossing_pixels, near_camera, view_counts
from nfc_splat.fields.recipe import Batch
from nfc_splat.fields.voxel_grid import VoxelGrid, grid_nodes, grid_size
from nfc_splat.rendering.density_grid import activation_shift, opacity
from nfc_splat.rendering.samples import flat_rays, unit_directions

CUBE = torch.tensor([[-1.2] * 3, [1.2] * 3])


def fine_model(**changes):
    """The fine stage of an unbounded scene."""
    return Model.initialise(toy_config(bounded="no", **changes), ball_geometry(has_alpha=False))


def test_sides_of_the_contracted_cube_as_it_grows():
    config = settled(Config(), bounded=False)
    sides = [grid_size(CUBE, voxels_at(config, growth)) for growth in range(8)]
    assert sides == [(side,) * 3 for side in (63, 80, 100, 126, 160, 201, 253, 320)]


def test_sides_of_a_box_are_cut_down_to_whole_voxels():
    box = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.5]])
    assert grid_size(box, 8 * 4 * 2 * 8) == (16, 8, 4)
    assert grid_size(box, 600) == (16, 8, 4)  # 16.87, 8.43, 4.22
    assert grid_size(torch.tensor([[0.0, 0.0, 0.0], [100.0, 1.0, 1.0]]), 100) == (100, 2, 2)


@pytest.mark.parametrize(
    ("alpha", "shift"), [(1e-6, -13.8155), (1e-2, -4.5951), (1e-4, -9.2102), (1e-20, -46.0517), (0.9, 2.1972)]
)
def test_a_raw_density_of_zero_has_the_initial_opacity(alpha, shift):
    assert activation_shift(alpha) == pytest.approx(shift, abs=1e-4)
    assert opacity(torch.zeros(1, dtype=torch.float64), activation_shift(alpha), 1.0).item() == pytest.approx(alpha)


def test_opacity_is_the_closed_form_and_its_derivative():
    raw = torch.linspace(-12, 12, 25, dtype=torch.float64, requires_grad=True)
    alpha = opacity(raw, -4.5951, 0.8)
    e = (raw - 4.5951).exp()
    assert torch.allclose(alpha, 1 - (1 + e) ** -0.8, atol=1e-14)
    (gradient,) = torch.autograd.grad(alpha.sum(), raw)
    assert torch.allclose(gradient, e * (1 + e) ** -1.8 * 0.8, atol=1e-14)


def test_an_opaque_voxel_has_no_infinite_gradient():
    raw = torch.tensor([200.0, 1e4], requires_grad=True)
    alpha = opacity(raw, -4.6, 0.5)
    (gradient,) = torch.autograd.grad(alpha.sum(), raw)
    assert torch.equal(alpha, torch.ones(2))
    assert torch.equal(gradient, torch.zeros(2))


@pytest.mark.parametrize(("bounded", "last"), [(True, -8.595), (False, -16.210)])
def test_the_shift_falls_with_every_doubling(bounded, last):
    config = settled(Config(), bounded)
    assert activation_shift(config.alpha_init) - config.growths * config.act_shift_decay == pytest.approx(
        last, abs=1e-3
    )
    model = fine_model()
    trace = [float(model.act_shift)]
    for growth in (1, 2):
        model.grow(voxels_at(model.config, growth), step=1)
        trace.append(float(model.act_shift))
    assert trace == pytest.approx([-9.2102, -10.2102, -11.2102], abs=1e-4)


def test_what_becomes_of_an_untouched_voxel(monkeypatch):
    """The published unbounded schedule, step by step: a raw density that stays at 0 is drawn until step 2500; what a
    node needs to stay in the mask rises from doubling to pruning to doubling."""
    config = toy_config(bounded="no", voxels=32**3, base_voxels=32**3, steps=9000)
    config = replace(config, growths=7, grow_every=1000, mask_every=1000)
    geometry = ball_geometry(has_alpha=False)
    model, recipe = Model.initialise(config, geometry), Recipe(config, geometry)
    with torch.no_grad():
        model.density.values.fill_(10.0)
    needed, drawn, node_alpha = {}, {}, model.node_alpha

    def spy(size):
        threshold, shift = model.numbers.threshold, model.numbers.act_shift
        raw = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
        needed[step] = raw[opacity(raw, shift, model.voxel_ratio) > threshold][0].item()
        return node_alpha(size)

    monkeypatch.setattr(model, "node_alpha", spy)
    optimizers = recipe.optimizers(model)
    for step in range(1, 8001):
        recipe._prepare(model, optimizers, step)
        alpha = 1 - (1 + math.exp(model.numbers.act_shift)) ** (-0.5 * model.voxel_ratio)
        drawn[step] = alpha if alpha > model.numbers.threshold else None
    assert [drawn[step] for step in (1, 1000, 2000)] == pytest.approx([2.5e-4, 7.4e-5, 2.2e-5], rel=0.05)
    assert all((drawn[step] is not None) == (step < 2500) for step in drawn)
    assert all(needed[step] < 0 for step in needed if step <= 3000)
    rise = {3000: -0.31, 3500: 0.69, 4000: 1.21, 4500: 2.21, 5000: 2.84, 5500: 3.84, 6000: 4.77, 6500: 5.77, 7500: 7.0}
    assert {step: needed[step] for step in rise} == pytest.approx(rise, abs=0.01)


@pytest.mark.parametrize(("side", "steps"), [(63, 106), (320, 534)])
def test_steps_of_a_contracted_ray(side, steps):
    assert inner_steps(side, 0.5) == steps
    table = Contracted(torch.zeros(3), torch.tensor(1.0), torch.tensor(0.1), "l2").distances(steps)
    assert len(table) == 2 * steps
    assert (table.diff() > 0).all()
    assert table[0].item() == pytest.approx(1 / steps)
    assert table[:steps].max() < 2 < table[steps:].min()
    # The last interval ends at 2 * 128.
    assert table[-1].item() == pytest.approx((256 + 2 / torch.linspace(1, 1 / 128, steps + 1)[-2].item()) / 2, rel=1e-5)


def test_contracted_samples_start_at_the_camera_and_are_thinned_outside():
    model = fine_model()
    rays = flat_rays(ball_geometry().cameras.rays(torch.tensor([[0, 12, 12], [3, 2, 5]])))
    samples = model.sample(rays)
    scaled = samples.t * rays.directions.norm(dim=-1)[samples.ray] / model.space.radius
    table = model.space.distances(inner_steps(model.density.size[0], 0.5))
    assert torch.allclose(scaled, table[samples.steps], rtol=1e-5)
    points = model.space.to_grid(samples.positions)
    assert points.norm(dim=-1).max() <= 1.2
    inner = points.norm(dim=-1) <= 1
    t = table * model.space.radius / rays.directions.norm(dim=-1)[:, None]
    every = rays.origins[:, None] + rays.directions[:, None] * t[..., None]
    all_inner = model.space.to_grid(every.reshape(-1, 3)).norm(dim=-1) <= 1
    assert int(inner.sum()) == int(all_inner.sum()) > 0
    assert len(samples) < len(all_inner)
    spacing = contracted_step(model.density.size[0], 0.5)
    gaps = points.diff(dim=0).norm(dim=-1)[(samples.ray.diff() == 0) & ~inner[1:] & ~inner[:-1]]
    assert (gaps > 0.5 * spacing).all()  # along a bent path the straight gap is shorter than the length


def test_bounded_samples_begin_on_the_box_without_jitter():
    model = Model.initialise(toy_config(), ball_geometry())
    model.mask.occupied.fill_(True)
    rays = flat_rays(ball_geometry().cameras[0].rays())
    one, two = model.sample(rays), model.sample(rays)
    assert torch.equal(one.t, two.t)
    low, high = model.density.box
    first = one.positions[one.offsets[:-1]]
    on_face = ((first - low).abs() < 1e-4) | ((first - high).abs() < 1e-4)
    assert (on_face.any(-1) | ((one.t[one.offsets[:-1]] - 2.0).abs() < 1e-4)).all()  # or at the near depth
    lengths = one.positions.diff(dim=0).norm(dim=-1)[one.ray.diff() == 0]
    side = ((high - low).prod() / 18**3) ** (1 / 3)
    assert torch.allclose(lengths, 0.5 * side, rtol=1e-3)


def test_the_box_holds_every_ray_from_near_to_far():
    geometry = ball_geometry()
    near, box = scene_box(geometry)
    rays = flat_rays(geometry.cameras.rays())
    ends = torch.cat([rays.origins + unit_directions(rays) * t for t in (2.0, 6.0)])
    assert near == 2.0
    assert torch.allclose(box, torch.stack([ends.amin(0), ends.amax(0)]), atol=2e-3)


def test_stated_bounds_are_the_box_of_a_scene_without_depth_range():
    bounds = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 2.0]])
    near, box = scene_box(ball_geometry(near_far=None, bounds=bounds))
    assert near == 0.0
    assert torch.equal(box, bounds)


@pytest.mark.parametrize("corner", [[1.0, -1.0, 2.0], [1.0, -3.0, 2.0], [1.0, float("nan"), 2.0]])
def test_a_box_without_room_is_refused(corner):
    bounds = torch.tensor([[-1.0, -1.0, -1.0], corner])
    with pytest.raises(UserError, match=r"box goes from \(-1, -1, -1\) to \(1, .*, 2\).*--bounded no"):
        Model.initialise(toy_config(), ball_geometry(near_far=None, bounds=bounds))


def test_nothing_says_where_the_scene_is():
    geometry = ball_geometry(near_far=None)
    outward = geometry.cameras.viewmats.clone()
    outward[:, 1:3] *= -1  # turned about the camera's x axis: they look away from one another
    lost = replace(geometry, cameras=replace(geometry.cameras, viewmats=outward))
    with pytest.raises(UserError, match="--bounded no"):
        Model.initialise(toy_config(bounded="yes"), lost)
    still = replace(lost, cameras=replace(lost.cameras, viewmats=outward[:1].expand_as(outward)))
    with pytest.raises(UserError, match="--near-clip"):
        Model.initialise(toy_config(bounded="no"), still)


def test_a_box_that_rays_miss_is_worth_a_warning(caplog):
    Model.initialise(toy_config(), ball_geometry())
    assert not caplog.records
    bounds = torch.tensor([[50.0, 50.0, 50.0], [51.0, 51.0, 51.0]])
    Model.initialise(toy_config(coarse_steps=0), ball_geometry(near_far=None, bounds=bounds))
    assert "only 0.0 % of the rays meet the scene's box: correct the depth range" in caplog.text


def test_the_inner_cube_surrounds_the_cameras():
    geometry = ball_geometry()
    center, radius, near_clip = inner_cube(geometry, 1.0, None)
    centers = geometry.cameras.centers
    assert float(near_clip) == pytest.approx(0.02 * float(torch.cdist(centers, centers).max()), rel=1e-4)
    rays = flat_rays(geometry.cameras.rays())
    ends = rays.origins + rays.directions * near_clip
    assert float(radius) == pytest.approx(float((ends.amax(0) - ends.amin(0)).max()) / 2, rel=1e-3)
    assert torch.allclose(center, (ends.amax(0) + ends.amin(0)) / 2, atol=1e-3)
    assert torch.allclose(inner_cube(geometry, 2.5, None)[1], 2.5 * radius)
    far = inner_cube(geometry, 1.0, DISTANCE)[1]  # at that depth all rays meet about the origin
    assert far < radius


def test_boxes_grow_about_their_centre_and_fit_what_is_opaque():
    assert torch.allclose(enlarged(CUBE, 1.05), 1.05 * CUBE)
    nodes = grid_nodes(CUBE, (13, 13, 13))
    alpha = torch.zeros(13, 13, 13)
    alpha[2:5, 6, 1:12] = 0.5
    box = tight_box(nodes, alpha, 1e-3)
    assert torch.allclose(box, torch.tensor([[-0.8, -0.1, -1.0], [-0.4, 0.1, 1.0]]), atol=1e-6)
    with pytest.raises(UserError, match=r"from 0 to 0\.5, at least 0\.9"):
        tight_box(nodes, alpha, 0.9)


def test_nodes_close_to_cameras_and_hardly_seen_ones_stay_empty():
    geometry = ball_geometry()
    model = Model.initialise(toy_config(), geometry)
    nodes, centers = grid_nodes(model.density.box, model.density.size), geometry.cameras.centers
    close = torch.cdist(nodes.reshape(-1, 3), centers).amin(1).view(nodes.shape[:3]) <= 2.0
    assert torch.equal(near_camera(geometry.cameras, model.density.box, model.density.size, 2.0), close)
    assert torch.equal(model.density.values[..., 0] == -100, close)
    assert torch.equal(model.mask.occupied, model.seen > 2)
    assert model.seen.max() == len(geometry.cameras)  # the middle is seen by all
    rates = Recipe(toy_config(), geometry).optimizers(model)["field"].param_groups
    assert torch.equal(rates[0]["per_voxel_lr"], (model.seen / len(geometry.cameras))[..., None])
    assert rates[1]["per_voxel_lr"] is None


def test_a_coarse_voxel_is_as_long_as_its_own_base():
    model = Model.initialise(toy_config(base_voxels=40**3), ball_geometry())
    assert model.voxel_ratio == 1.0
    assert fine_model(base_voxels=40**3).voxel_ratio == pytest.approx((40**3 / 2000) ** (1 / 3))


def test_two_images_are_too_few_for_a_coarse_stage():
    few = replace(ball_geometry(), cameras=ball_geometry().cameras[[0, 1]])
    with pytest.raises(UserError, match="seen by more than 2 of the 2 training images"):
        Model.initialise(toy_config(), few)


def test_view_counts_agree_with_projection():
    """A node in the middle of the box is seen by exactly the cameras whose image it falls into."""
    cameras, box = ball_geometry().cameras, torch.tensor([[-1.5] * 3, [1.5] * 3])
    counts = view_counts(cameras, box, (9, 9, 9), step=0.1, near=0.5, stride=1)
    pixels, _ = cameras.project(grid_nodes(box, (9, 9, 9)).reshape(-1, 3))
    margin = 6  # pixels a node's neighbourhood reaches beyond it
    surely = ((pixels > 0) & (pixels < 24)).all(-1).sum(0).view(9, 9, 9)
    perhaps = ((pixels > -margin) & (pixels < 24 + margin)).all(-1).sum(0).view(9, 9, 9)
    assert (counts >= surely).all()
    assert (counts <= perhaps).all()


def test_pixels_whose_rays_cross_the_mask():
    geometry = ball_geometry()
    model = Model.initialise(toy_config(), geometry)
    model.mask.occupied.copy_(grid_nodes(model.density.box, model.density.size).norm(dim=-1) < 0.6)
    chosen = crossing_pixels(geometry.cameras, model.sample)
    picture = (
        torch.zeros(len(geometry.cameras) * 24 * 24, dtype=torch.bool).index_fill_(0, chosen, True).view(-1, 24, 24)
    )
    assert picture[:, 12, 12].all()
    assert not picture[:, 0, 0].any()
    assert 0.02 < picture.float().mean() < 0.3


def test_the_colour_network_reads_39_numbers_and_starts_without_bias():
    model = fine_model(color_channels=12, width=128)
    assert model.net.in_dim == 39
    assert [tuple(layer.weight.shape) for layer in model.net.layers] == [(128, 39), (128, 128), (3, 128)]
    assert (model.net.layers[-1].bias == 0).all()
    encoded = fine_model(color_channels=12, width=128, target_encoding="binary")
    assert sum(p.numel() for p in encoded.net.parameters()) - sum(p.numel() for p in model.net.parameters()) == 2709


@pytest.mark.parametrize(("encoding", "channels"), [("none", 3), ("binary", 24), ("gray", 24), ("onehot", 3)])
def test_the_coarse_colour_grid_holds_the_logits(encoding, channels):
    model = Model.initialise(toy_config(target_encoding=encoding), ball_geometry())
    assert model.features.values.shape[3] == channels
    colors = model.color(model.sample(flat_rays(ball_geometry().cameras[0].rays())), None)
    assert torch.allclose(colors, torch.full_like(colors, 0.5))


def toy_batch(model, geometry, count=64):
    places = torch.stack(
        [torch.randint(0, high, (count,)) for high in (len(geometry.cameras), 24, 24)], -1
    )  # fmt: skip
    batch = Batch(geometry.cameras, places, torch.rand(count, 3), None, torch.ones(3))
    return batch, model.train().render(batch.cameras, places, background=batch.background)


@pytest.mark.parametrize(("bounded", "entropy", "rgbper"), [("yes", 0.01, 0.1), ("no", 0.001, 0.01)])
def test_regularizers_by_hand(bounded, entropy, rgbper):
    """The coarse stage of a bounded scene and the fine one of an unbounded scene."""
    geometry = ball_geometry()
    model = Model.initialise(toy_config(bounded=bounded, distortion=None if bounded == "no" else 0.0), geometry)
    with torch.no_grad():
        model.density.values[7:11, 7:11, 7:11] = 16.0
        model.features.values.normal_()
    batch, drawn = toy_batch(model, geometry)
    terms = model.regularizers(drawn, batch, 1)
    left = drawn.extras["transmittance"].double().clamp(1e-6, 1 - 1e-6)
    expected = entropy * -(left * left.log() + (1 - left) * (1 - left).log()).mean()
    assert terms["entropy"].item() == pytest.approx(expected.item(), rel=1e-4)
    samples, weights, colors = (drawn.extras[name] for name in ("samples", "weights", "colors"))
    error = (colors.detach() - batch.target[samples.ray]).square().sum(-1)
    expected = float((weights.detach().double() * error.double()).sum())
    assert terms["rgbper"].item() == pytest.approx(rgbper * expected / 64, rel=1e-3)
    assert set(terms) == {"entropy", "rgbper"} | ({"distortion"} if bounded == "no" else set())
    if bounded == "no":
        table = model.space.distances(inner_steps(model.density.size[0], 0.5)).double()
        s = (1 - 1 / (1 + table))[samples.steps]
        same = samples.ray[:, None] == samples.ray
        w = weights.double()
        expected = (w[:, None] * w * (s[:, None] - s).abs() * same).sum() + (w * w).sum() / 3 / len(table)
        assert terms["distortion"].item() == pytest.approx(0.01 * expected.item() / 64, rel=1e-3)


def test_masked_rays_count_in_no_regularizer():
    geometry = ball_geometry()
    model = Model.initialise(toy_config(bounded="no"), geometry)
    batch, drawn = toy_batch(model, geometry)
    terms = model.regularizers(drawn, replace(batch, mask=torch.zeros(64)), 1)
    assert all(value == 0 for value in terms.values())


def test_nearclip_pushes_the_density_in_front_of_cameras_down():
    geometry = ball_geometry()
    model = Model.initialise(toy_config(bounded="no", nearclip=1.0, near_clip=0.5), geometry)
    batch, drawn = toy_batch(model, geometry)
    term = model.regularizers(drawn, batch, 1)["nearclip"]
    assert term == 0
    (gradient,) = torch.autograd.grad(term, model.density.values)
    samples = drawn.extras["samples"]
    near = int(((samples.positions - samples.rays.origins[samples.ray]).norm(dim=-1) < 0.5).sum())
    assert near > 0
    assert gradient.min() >= 0
    assert gradient.sum().item() == pytest.approx(near, rel=1e-4)  # +1 per sample, shared by its eight nodes


def test_total_variation_is_added_to_the_gradient():
    """In a box, by the longest of its sides; dense until step 60 of the fine stage, then where a gradient is."""
    bounds = torch.tensor([[-2.0, -1.0, -0.5], [2.0, 1.0, 0.5]])
    geometry = ball_geometry(near_far=None, bounds=bounds)
    config = toy_config(coarse_steps=0, voxels=8**3, base_voxels=8**3, tv_density=1.0, tv_color=0.5)
    model, recipe = Model.initialise(config, geometry), Recipe(config, geometry)
    assert len(set(model.density.size)) == 3
    for step in (59, 60):
        for grid in (model.density, model.features):
            with torch.no_grad():
                grid.values.normal_()
            grid.values.grad = (torch.rand_like(grid.values) < 0.3).float()
        before = [grid.values.grad.clone() for grid in (model.density, model.features)]
        recipe.after_backward(model, step)
        for grid, gradient, weight in zip((model.density, model.features), before, (1.0, 0.5), strict=True):
            pull = torch.zeros_like(gradient)
            for axis in range(3):
                change = grid.values.detach().diff(dim=axis).clamp(-1, 1)
                pull.narrow(axis, 1, change.shape[axis]).add_(change)
                pull.narrow(axis, 0, change.shape[axis]).sub_(change)
            expected = weight / recipe.rays * max(model.density.size) / 128 / 6 * pull
            expected = expected if step < 60 else expected * (gradient != 0)
            assert torch.allclose(grid.values.grad - gradient, expected, atol=1e-6 * float(expected.abs().max()) + 1e-7)


def test_a_grid_belongs_to_its_box():
    grid = VoxelGrid.zeros(CUBE, (3, 4, 5), 2)
    assert grid.size == (3, 4, 5)
    assert grid(torch.zeros(7, 3)).shape == (7, 2)
    grid.resize((6, 5, 4))
    assert grid.size == (6, 5, 4)
    assert grid.values.requires_grad
