"""DVGO's numbers, those that its reference fixes: grid sizes, densities, thresholds, schedules, where it looks."""

from dataclasses import fields, replace

import pytest
import torch
from dvgo_toys import DISTANCE, ball_geometry, toy_config

from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.fields.dvgo import Model, Recipe, preset
from nfc_splat.fields.dvgo_bounds import enlarged, inner_cube, scene_box, tight_box
from nfc_splat.fields.dvgo_config import BOUNDED, UNBOUNDED, Config, settled, thresholds, voxels_at
from nfc_splat.fields.dvgo_space import Contracted, contracted_step, inner_steps
from nfc_splat.fields.dvgo_views import crossing_pixels, near_camera, view_counts
from nfc_splat.fields.occupancy_mask import OccupancyMask
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


@pytest.mark.parametrize(("alpha", "shift"), [(1e-6, -13.8155), (1e-2, -4.5951), (1e-4, -9.2102)])
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
        threshold, shift = float(model.threshold), float(model.act_shift)
        raw = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
        needed[step] = raw[opacity(raw, shift, model.voxel_ratio) > threshold][0].item()
        return node_alpha(size)

    monkeypatch.setattr(model, "node_alpha", spy)
    optimizers = recipe.optimizers(model)
    for step in range(1, 8001):
        recipe._prepare(model, optimizers, step)
        alpha = opacity(torch.zeros(1), float(model.act_shift), 0.5 * model.voxel_ratio).item()
        drawn[step] = alpha if alpha > float(model.threshold) else None
    assert [drawn[step] for step in (1, 1000, 2000)] == pytest.approx([2.5e-4, 7.4e-5, 2.2e-5], rel=0.05)
    assert all((drawn[step] is not None) == (step < 2500) for step in drawn)
    assert all(needed[step] < 0 for step in needed if step <= 3000)
    rise = {3000: -0.31, 3500: 0.69, 4000: 1.21, 4500: 2.21, 5000: 2.84, 5500: 3.84, 6000: 4.77, 6500: 5.77, 7500: 7.0}
    assert {step: needed[step] for step in rise} == pytest.approx(rise, abs=0.01)


def test_the_unbounded_thresholds_follow_the_doublings():
    published = {0: 5e-6, 1500: 1e-5, 2500: 2.5e-5, 3500: 1e-4 / 3, 4500: 5e-5, 5500: 1e-4}
    assert thresholds(settled(Config(), bounded=False)) == pytest.approx(published)
    assert thresholds(settled(Config(grow_every=10), bounded=False))[15] == pytest.approx(1e-5)
    assert thresholds(settled(Config(), bounded=True)) == {0: 1e-4}
    assert thresholds(settled(Config(alpha_threshold=3e-4), bounded=True)) == {0: 3e-4}


def test_published_settings():
    bounded, unbounded = settled(preset("paper", bounded="yes"), True), settled(preset("paper", bounded="no"), False)
    assert (bounded.steps, bounded.coarse_steps, bounded.rays, bounded.voxels) == (25_000, 5000, 8192, 160**3)
    assert (unbounded.steps, unbounded.coarse_steps, unbounded.rays, unbounded.voxels) == (30_000, 0, 4096, 320**3)
    assert (bounded.distortion, bounded.tv_density, bounded.growths) == (0, 0, 4)
    assert (unbounded.distortion, unbounded.tv_density, unbounded.tv_color, unbounded.growths) == (0.01, 1e-6, 1e-7, 7)
    for config in (bounded, unbounded):
        assert (config.weight_main, config.entropy, config.rgbper, config.nearclip) == (1.0, 1e-3, 1e-2, 0.0)
        assert (config.lr_density, config.lr_color, config.lr_net, config.adam_eps) == (0.1, 0.1, 1e-3, 1e-8)
    large = settled(preset("paper", bounded="yes", voxels=256**3, growths=6), True)
    assert (large.base_voxels, voxels_at(large, 0)) == (160**3, 256**3 // 64)
    assert set(BOUNDED) >= set(UNBOUNDED) <= {field.name for field in fields(Config)}


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


def test_growing_keeps_raw_values_and_prunes_before_the_shift_falls():
    model = fine_model(alpha_threshold=2e-2)
    with torch.no_grad():
        model.density.values.fill_(-20.0)
        model.density.values[2:4, 2:4, 2:4] = 8.0
    model.mask.occupied[3] = False
    kept_density = model.density(torch.tensor([[0.1, 0.2, 0.3]]))
    before = model.density.values
    model.grow(model.config.voxels, step=7)
    assert model.density.values is not before
    assert model.density.size == model.mask.size == grid_size(CUBE, model.config.voxels)
    assert torch.allclose(model.density(torch.tensor([[0.1, 0.2, 0.3]])), kept_density, atol=2.0)
    assert 0 < model.mask.share < 0.2
    assert not model.mask.at(torch.tensor([[1.1, 1.1, 1.1]])).any()


def test_an_empty_mask_is_an_error_that_names_the_opacities():
    model = fine_model(alpha_threshold=2e-2)
    with torch.no_grad():
        model.density.values.fill_(-20.0)
    with pytest.raises(UserError, match=r"step 12: no voxel .* from .* to .*, more than 0\.001 is needed"):
        model.update_mask(12)


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


@pytest.mark.parametrize("name", ["distortion", "nearclip"])
def test_losses_that_bounded_scenes_have_not(name):
    with pytest.raises(UserError, match=rf"--{name} 0.1: expected 0 in bounded scenes"):
        Model.initialise(toy_config(**{name: 0.1}), ball_geometry())


def test_total_variation_is_added_to_the_gradient():
    geometry = ball_geometry()
    model = Model.initialise(toy_config(bounded="no", tv_density=1.0, tv_color=0.0), geometry)
    recipe = Recipe(toy_config(bounded="no", tv_density=1.0, tv_color=0.0), geometry)
    with torch.no_grad():
        model.density.values[5, 5, 5] = 0.5
    for step, touched in ((59, True), (60, False)):  # dense until step 60
        model.density.values.grad = torch.zeros_like(model.density.values)
        recipe.after_backward(model, step)
        weight = 1.0 / recipe.rays * max(model.density.size) / 128 / 6
        expected = 6 * weight * 0.5 if touched else 0.0
        assert model.density.values.grad[5, 5, 5, 0].item() == pytest.approx(expected, rel=1e-5)
        assert model.density.values.grad[5, 5, 6, 0].item() == pytest.approx(
            -weight * 0.5 if touched else 0.0, rel=1e-5
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(stepsize=0.0), "--stepsize 0.0: expected above 0"),
        (dict(coarse_steps=30_000), "--coarse-steps 30000: expected fewer than --steps 25000"),
        (dict(alpha_init=1.5), "--alpha-init 1.5: expected strictly between 0 and 1"),
        (dict(voxels=1), "--voxels 1: expected 8 to"),
        (dict(entropy=float("nan")), "--entropy nan: expected a finite number"),
        (dict(rays=0), "--rays 0: expected above 0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        Config(**changes)


def test_every_number_of_steps_scales_with_the_schedule():
    config = preset("paper", bounded="yes").scaled_to(250)
    assert (config.coarse_steps, config.grow_every, config.mask_every, config.lr_decay_steps) == (50, 10, 10, 200)
    assert config.tv_dense_until == 100
    for steps in (1, 2, 3, 7):
        tiny = preset("quick", steps=steps)
        assert tiny.steps == steps
        assert tiny.coarse_steps < steps
        assert min(tiny.grow_every, tiny.mask_every) >= 1
    assert preset("quick", steps=100, grow_every=3).grow_every == 3


def test_the_kind_of_scene_is_seen_by_transparency_and_said(caplog):
    with caplog.at_level("INFO", "nfc_splat"):
        assert Model.initialise(toy_config(), ball_geometry()).coarse
        assert Model.initialise(toy_config(), ball_geometry(has_alpha=False)).config.bounded == "no"
    assert "images are transparent: a bounded scene (--bounded yes)" in caplog.text
    assert "no image is transparent: an unbounded scene (--bounded no)" in caplog.text


def test_unknown_presets_and_settings():
    with pytest.raises(UserError, match="--preset huge"):
        preset("huge")
    with pytest.raises(UserError, match="no setting depth"):
        preset("quick", depth=3)
    with pytest.raises(UserError, match="--bounded maybe"):
        preset("quick", bounded="maybe")


def test_it_is_a_method():
    method = find_method("dvgo")
    assert method.load().Model is Model
    assert method.loss_weight == 2.0


def test_a_grid_belongs_to_its_box():
    grid = VoxelGrid.zeros(CUBE, (3, 4, 5), 2)
    assert grid.size == (3, 4, 5)
    assert grid(torch.zeros(7, 3)).shape == (7, 2)
    grid.resize((6, 5, 4))
    assert grid.size == (6, 5, 4)
    assert grid.values.requires_grad
