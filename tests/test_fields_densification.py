"""Clone, split, prune and reset: what happens to the Gaussians and to Adam's moments; when; and the cap."""

import logging
import math

import pytest
import torch
from splat_toys import random_tensors, toy_config

from nfc_splat.fields.densification import (
    SPLAT_TENSORS,
    DefaultDensification,
    rebuild,
    reset_opacities,
    rotate,
)
from nfc_splat.fields.gaussians import Config, Model, Recipe
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.rendering.rasterize import RasterInfo

WIDTH, HEIGHT = 40, 20
HOT, COLD = 1.0, 1e-9


def model_and_optimizer(count, config=None, **tensors):
    """A model whose moments hold the index of their Gaussian (plus 1)."""
    config = config or toy_config()
    model = Model(config, random_tensors(count) | tensors)
    geometry = SceneGeometry(_one_camera(), None, None)
    (optimizer,) = Recipe(config, geometry).optimizers(model).values()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for parameter in model.parameters():
        index = torch.arange(1.0, count + 1).view(-1, *[1] * (parameter.ndim - 1)).expand_as(parameter)
        optimizer.state[parameter]["exp_avg"].copy_(index)
        optimizer.state[parameter]["exp_avg_sq"].copy_(index**2)
    return model, optimizer


def _one_camera():
    from splat_toys import orbit

    return orbit(2)


def moments(model, optimizer, name, key="exp_avg"):
    """One number per Gaussian: the moment of the parameter `name`, after checking that its row agrees in itself."""
    value = optimizer.state[getattr(model, name)][key].flatten(1) if name != "opacities" else None
    if value is None:
        return optimizer.state[model.opacities][key]
    assert torch.equal(value, value[:, :1].expand_as(value))
    return value[:, 0]


def refined(model, optimizer, config, gradients, *, step=None, extent=1.0):
    """Run one refinement with mean gradients (in NDC units) [N]; returns the densification and its figures."""
    densification = DefaultDensification(config, extent)
    info = _info(torch.ones(1, len(gradients), 2, dtype=torch.int32))
    in_pixels = torch.stack([gradients / (WIDTH / 2), torch.zeros_like(gradients)], dim=-1)[None]
    densification.observe(in_pixels, info)
    return densification, densification.after_step(model, optimizer, step or config.refine_every, 1e-3)


def _info(radii):
    empty = torch.zeros(0)
    return RasterInfo(empty, radii, empty, empty, empty, WIDTH, HEIGHT)


def all_of_size(count, size):
    return torch.full((count, 3), size).log()


def test_rebuild_moves_parameters_and_moments_together():
    model, optimizer = model_and_optimizer(6)
    before = {name: getattr(model, name).detach().clone() for name in SPLAT_TENSORS}
    source, fresh = torch.tensor([5, 0, 0, 3]), torch.tensor([False, False, True, False])
    rebuild(model, optimizer, source, fresh, {"opacities": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    for group in optimizer.param_groups:
        name = group["name"]
        assert group["params"] == [getattr(model, name)]
        expected = torch.tensor([1.0, 2.0, 3.0, 4.0]) if name == "opacities" else before[name][source]
        assert torch.equal(getattr(model, name), expected)
        assert moments(model, optimizer, name).tolist() == [6, 1, 0, 4]
        assert moments(model, optimizer, name, "exp_avg_sq").tolist() == [36, 1, 0, 16]
        assert optimizer.state[getattr(model, name)]["step"] == 1
    assert len(optimizer.state) == len(SPLAT_TENSORS)


def test_optimizer_still_updates_the_model_after_a_rebuild():
    model, optimizer = model_and_optimizer(4)
    rebuild(model, optimizer, torch.tensor([0, 1, 2, 3, 0]), torch.zeros(5, dtype=torch.bool))
    before = model.means.detach().clone()
    model.means.square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.means, before)


def test_small_gaussian_with_high_gradient_is_cloned():
    config = toy_config(refine_start=0)
    model, optimizer = model_and_optimizer(5, config, scales=all_of_size(5, 0.005))
    before = {name: getattr(model, name).detach().clone() for name in SPLAT_TENSORS}
    _, figures = refined(model, optimizer, config, torch.tensor([COLD, HOT, COLD, COLD, COLD]))
    assert (figures["cloned"], figures["split"], figures["pruned"]) == (1, 0, 0)
    for name in SPLAT_TENSORS:
        assert torch.equal(getattr(model, name), torch.cat([before[name], before[name][1:2]]))
        assert moments(model, optimizer, name).tolist() == [1, 2, 3, 4, 5, 0]


def test_large_gaussian_with_high_gradient_is_split():
    config = toy_config(refine_start=0)
    model, optimizer = model_and_optimizer(5, config, scales=all_of_size(5, 0.05))
    before = {name: getattr(model, name).detach().clone() for name in SPLAT_TENSORS}
    _, figures = refined(model, optimizer, config, torch.tensor([COLD, HOT, COLD, COLD, COLD]))
    assert (figures["cloned"], figures["split"], figures["pruned"]) == (0, 1, 0)
    rest = torch.tensor([0, 2, 3, 4])
    for name in SPLAT_TENSORS:
        assert torch.equal(getattr(model, name)[:4], before[name][rest])
        assert moments(model, optimizer, name).tolist() == [1, 3, 4, 5, 0, 0]
        if name not in ("means", "scales"):
            assert torch.equal(getattr(model, name)[4:], before[name][[1, 1]])
    torch.testing.assert_close(model.scales[4:].exp(), torch.full((2, 3), 0.05 / 1.6))
    assert not torch.equal(model.means[4], model.means[5])


def test_split_children_are_spread_like_their_parent():
    count = 4000
    config = toy_config(refine_start=0)
    sizes, quat = torch.tensor([0.02, 0.05, 0.2]), torch.tensor([0.3, -0.5, 0.7, 0.2])
    model, optimizer = model_and_optimizer(
        count,
        config,
        scales=sizes.log().repeat(count, 1),
        quats=quat.repeat(count, 1),
        means=torch.zeros(count, 3),
    )
    refined(model, optimizer, config, torch.full((count,), HOT))
    assert len(model.means) == 2 * count
    axes = rotate(quat.expand(3, 4), torch.eye(3)).T
    expected = axes @ torch.diag(sizes**2) @ axes.T
    spread = model.means.detach().T.cov()
    assert (spread - expected).norm() < 0.05 * expected.norm()
    assert model.means.mean(0).norm() < 0.05 * 0.2


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", SPLAT_TENSORS)
def test_faint_and_non_finite_gaussians_are_removed(name, poison):
    config = toy_config(refine_start=0, prune_opacity=0.005)
    tensors = random_tensors(4)
    tensors["opacities"][0] = math.log(0.0049 / 0.9951)
    tensors["opacities"][1] = math.log(0.0051 / 0.9949)
    tensors[name][2] = poison
    model, optimizer = model_and_optimizer(4, config, **tensors)
    _, figures = refined(model, optimizer, config, torch.full((4,), COLD))
    assert figures["pruned"] == 2
    assert moments(model, optimizer, "quats").tolist() == [2, 4]


def test_a_faint_gaussian_is_not_grown():
    config = toy_config(refine_start=0)
    tensors = {"opacities": torch.tensor([-9.0, 0.0]), "scales": all_of_size(2, 0.05)}
    model, optimizer = model_and_optimizer(2, config, **tensors)
    _, figures = refined(model, optimizer, config, torch.tensor([HOT, COLD]))
    assert (figures["cloned"], figures["split"], figures["pruned"]) == (0, 0, 1)


def test_huge_gaussians_go_only_later():
    config = toy_config(refine_start=0, prune_large_from=10, refine_every=5, prune_scale3d=0.1)
    scales = torch.stack([all_of_size(1, 0.3)[0], all_of_size(1, 0.01)[0]])
    for step, left in ((10, 2), (15, 1)):
        model, optimizer = model_and_optimizer(2, config, scales=scales)
        refined(model, optimizer, config, torch.full((2,), COLD), step=step, extent=2.0)
        assert len(model.means) == left


def test_sizes_are_measured_in_extents():
    config = toy_config(refine_start=0, grow_scale3d=0.01)
    for extent, cloned in ((1.0, 0), (10.0, 1)):
        model, optimizer = model_and_optimizer(1, config, scales=all_of_size(1, 0.05))
        _, figures = refined(model, optimizer, config, torch.tensor([HOT]), extent=extent)
        assert figures["cloned"] == cloned
        assert figures["split"] == 1 - cloned


def test_gradients_are_averaged_over_the_views_that_see_a_gaussian_in_ndc_units():
    densification = DefaultDensification(toy_config(), 1.0)
    gradients = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [5.0, 5.0]]])  # [C = 2, N = 2, 2]
    radii = torch.tensor([[[4, 4], [3, 1]], [[2, 2], [0, 0]]], dtype=torch.int32)
    densification.observe(gradients, _info(radii))
    # times half the image size and the number of images, whose losses were averaged
    first = 2 * math.hypot(3 * WIDTH / 2, 4 * HEIGHT / 2) + 2 * 2 * HEIGHT / 2
    torch.testing.assert_close(densification.gradient_sum, torch.tensor([first, 2 * WIDTH / 2]))
    assert densification.views.tolist() == [2, 1]


def test_refinement_happens_when_it_should_and_forgets():
    config = toy_config(refine_start=10, refine_stop=30, refine_every=5)
    model, optimizer = model_and_optimizer(3, config, scales=all_of_size(3, 0.005))
    densification = DefaultDensification(config, 1.0)
    changed = []
    for step in range(1, 41):
        if densification.wants_gradients(step):
            radii = torch.ones(1, len(model.means), 2, dtype=torch.int32)
            densification.observe(torch.full((1, len(model.means), 2), HOT), _info(radii))
        if densification.after_step(model, optimizer, step, 1e-3):
            changed.append(step)
            assert densification.views.tolist() == [0] * len(model.means)
            assert densification.gradient_sum.tolist() == [0] * len(model.means)
    assert changed == [15, 20, 25]
    assert not densification.wants_gradients(30)


def test_cap_binds_takes_the_steepest_and_is_reported_once(caplog):
    config = toy_config(refine_start=0, max_primitives=7)
    model, optimizer = model_and_optimizer(5, config, scales=all_of_size(5, 0.005))
    gradients = torch.tensor([0.5, 0.9, 0.6, 0.8, COLD])
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        densification, figures = refined(model, optimizer, config, gradients)
        assert figures["refused"] == 2
        assert len(model.means) == 7
        # the clones are those of the two with the largest gradient
        torch.testing.assert_close(model.means[5:], model.means[[1, 3]], rtol=0, atol=0)
        assert ["--max-primitives 7" in record.message for record in caplog.records] == [True]
        densification.observe(torch.full((1, 7, 2), HOT), _info(torch.ones(1, 7, 2, dtype=torch.int32)))
        figures = densification.after_step(model, optimizer, 2 * config.refine_every, 1e-3)
    assert figures["refused"] == 7
    assert len(model.means) == 7
    assert len(caplog.records) == 1


def test_pruning_makes_room_under_the_cap():
    config = toy_config(refine_start=0, max_primitives=4)
    opacities = torch.tensor([-9.0, 0.0, 0.0, 0.0])
    model, optimizer = model_and_optimizer(4, config, opacities=opacities, scales=all_of_size(4, 0.05))
    _, figures = refined(model, optimizer, config, torch.tensor([COLD, HOT, COLD, COLD]))
    assert (figures["split"], figures["pruned"], figures["refused"], len(model.means)) == (1, 1, 0, 4)


def test_reset_lowers_opacities_and_forgets_only_their_moments():
    model, optimizer = model_and_optimizer(3, opacities=torch.tensor([0.9, 0.008, 0.01]).logit())
    reset_opacities(model, optimizer, 0.01)
    torch.testing.assert_close(model.opacities.sigmoid(), torch.tensor([0.01, 0.008, 0.01]))
    assert moments(model, optimizer, "opacities").tolist() == [0, 0, 0]
    assert moments(model, optimizer, "means").tolist() == [1, 2, 3]
    assert optimizer.state[model.opacities]["step"] == 1


def test_resets_come_every_so_many_steps_counted_from_one_until_refinement_stops():
    config = toy_config(reset_every=6, refine_start=100, refine_stop=20, prune_opacity=0.02)
    model, optimizer = model_and_optimizer(2, config)
    densification, resets = DefaultDensification(config, 1.0), []
    for step in range(41):
        if step == 0:
            continue
        with torch.no_grad():
            model.opacities.fill_(2.0)
        densification.after_step(model, optimizer, step, 1e-3)
        if model.opacities.max() < 2.0:
            torch.testing.assert_close(model.opacities.sigmoid(), torch.full((2,), 0.04))
            resets.append(step)
    assert resets == [6, 12, 18]


def test_published_schedule_resets_at_3000_and_never_at_the_start():
    densification = DefaultDensification(Config(), 1.0)
    model, optimizer = model_and_optimizer(1, opacities=torch.tensor([3.0]))
    for step in (1, 2999):
        densification.after_step(model, optimizer, step, 1e-3)
        assert model.opacities.item() == 3.0
    densification.after_step(model, optimizer, 3000, 1e-3)
    assert model.opacities.sigmoid().item() == pytest.approx(0.01)


def test_rotate_agrees_with_the_rotation_matrix():
    quats = torch.randn(50, 4, dtype=torch.float64)
    vectors = torch.randn(50, 3, dtype=torch.float64)
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    matrices = torch.stack(rows, dim=1)
    torch.testing.assert_close(rotate(quats, vectors), (matrices @ vectors[:, :, None])[:, :, 0])
