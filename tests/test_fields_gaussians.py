"""3DGS as the trainer sees it: config, drawing, losses, schedules, resume, export."""

import dataclasses
import math

import pytest
import torch
from splat_toys import BACKGROUND, SIZE, Trainer, orbit, random_tensors, toy_batches, toy_config, toy_geometry

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.fields.gaussians import Config, Model, Recipe, export, preset
from nfc_splat.fields.gaussians_config import STEP_FIELDS
from nfc_splat.fields.recipe import Batch, SceneGeometry
from nfc_splat.fields.splat_file import read_splats
from nfc_splat.losses import l1_dssim
from nfc_splat.rendering import Rendering


def trainer(seed=0, classification=0.0, **overrides):
    """A trainer of a fresh toy model; the same seed gives the same one."""
    torch.manual_seed(seed)
    config = toy_config(**overrides)
    cameras = orbit()
    batches, geometry = toy_batches(cameras), toy_geometry(cameras)
    return Trainer(Model.initialise(config, geometry), Recipe(config, geometry), batches, classification)


# Config


def test_the_method_is_registered_and_has_both_presets():
    module = find_method("3dgs").load()
    assert module.preset("paper") == Config()
    assert module.preset("quick").steps < module.preset("paper").steps


def test_published_numbers():
    config = preset("paper")
    assert (config.steps, config.refine_start, config.refine_stop, config.refine_every) == (30_000, 500, 15_000, 100)
    assert (config.reset_every, config.sh_degree_every, config.sh_degree) == (3000, 1000, 3)
    assert (config.grow_grad2d, config.grow_scale3d, config.prune_opacity, config.prune_scale3d) == (
        2e-4, 0.01, 0.005, 0.1,
    )  # fmt: skip
    assert (config.lr_means, config.lr_means_final, config.dssim_weight) == (1.6e-4, 1.6e-6, 0.2)
    mcmc = preset("paper", strategy="mcmc")
    assert (mcmc.init_opacity, mcmc.init_scale, mcmc.opacity_reg, mcmc.scale_reg) == (0.5, 0.1, 0.01, 0.01)
    assert (mcmc.max_primitives, mcmc.refine_stop, mcmc.mcmc_noise) == (1_000_000, 25_000, 5e5)


def test_everything_counted_in_steps_is_scaled_with_the_steps():
    config = preset("paper", steps=3000)
    assert {name: getattr(config, name) for name in STEP_FIELDS} == {
        "sh_degree_every": 100,
        "refine_start": 50,
        "refine_stop": 1500,
        "refine_every": 10,
        "reset_every": 300,
        "prune_large_from": 300,
    }
    assert config.steps == 3000
    changed = {"steps", *STEP_FIELDS}
    for field in dataclasses.fields(Config):
        assert field.name in changed or getattr(config, field.name) == getattr(Config(), field.name)
    assert preset("paper", steps=60_000).refine_stop == 30_000


def test_every_field_that_looks_like_a_step_is_scaled():
    names = {field.name for field in dataclasses.fields(Config)}
    stepwise = {name for name in names if name.endswith(("_every", "_start", "_stop", "_from"))} - {"densify_from"}
    assert stepwise == set(STEP_FIELDS)


def test_scaling_to_a_handful_of_steps_stays_legal():
    for name in ("quick", "paper"):
        for strategy in ("default", "mcmc"):
            config = preset(name, strategy=strategy, steps=1)
            assert config.refine_every >= 10
            assert config.sh_degree_every >= 1


def test_no_resets_stay_no_resets():
    assert preset("paper", reset_every=0).scaled_to(17).reset_every == 0


def test_overrides_are_taken_literally_beside_scaled_steps():
    config = preset("paper", steps=3000, refine_every=77)
    assert (config.refine_every, config.refine_stop) == (77, 1500)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"sh_degree": 4}, "--sh-degree 4"),
        ({"init_opacity": 1.0}, "--init-opacity 1.0"),
        ({"dssim_weight": 1.5}, "--dssim-weight 1.5"),
        ({"max_primitives": 0}, "--max-primitives 0"),
        ({"refine_every": 0}, "--refine-every 0"),
        ({"lr_means": math.nan}, "--lr-means nan: expected a finite number"),
        ({"grow_grad2d": math.inf}, "--grow-grad2d inf: expected a finite number"),
        ({"far_plane": math.inf}, "--far-plane inf: expected a finite number"),
        ({"opacity_reg": math.nan}, "--opacity-reg nan: expected a finite number"),
        ({"opacity_reg": -0.1}, "--opacity-reg -0.1: expected 0 or more"),
        ({"lr_quats": -1.0}, "--lr-quats -1.0: expected 0 or more"),
        ({"lr_shN": -1.0}, "--lr-shN -1.0: expected 0 or more"),
        ({"mcmc_noise": -1.0}, "--mcmc-noise -1.0: expected 0 or more"),
        ({"refine_stop": -1}, "--refine-stop -1: expected 0 or more"),
        ({"init_scale": 0.0}, "--init-scale 0.0: expected above 0"),
        ({"near_plane": 0.0}, "--near-plane 0.0: expected above 0"),
        ({"near_plane": 2.0, "far_plane": 1.0}, "--far-plane 1.0: expected above --near-plane 2.0"),
        ({"strategy": "magic"}, "--strategy magic"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_wrong_settings_are_refused_by_flag(overrides, named):
    with pytest.raises(UserError, match=named):
        preset("paper", **overrides)


def test_unknown_preset():
    with pytest.raises(UserError, match="--preset best: expected one of quick, paper"):
        preset("best")


# Drawing


def one_gaussian(**config):
    """A nearly opaque, small red Gaussian at the origin."""
    tensors = {
        "means": torch.zeros(1, 3),
        "quats": torch.tensor([[1.0, 0, 0, 0]]),
        "scales": torch.full((1, 3), 0.2).log(),
        "opacities": torch.tensor([6.0]),
        "sh0": torch.tensor([[[0.5, -0.5, -0.5]]]) / 0.28209479177387814,
        "shN": torch.zeros(1, 15, 3),
    }
    return Model(toy_config(**config), tensors)


def test_color_alpha_depth_of_a_gaussian_in_front_of_white():
    model = one_gaussian().eval()
    cameras = orbit(1)
    rendering = model.render(cameras, background=BACKGROUND)
    assert rendering.color.shape == (1, SIZE, SIZE, 3)
    center = rendering.color[0, SIZE // 2, SIZE // 2]
    assert center[0] > 0.9
    assert center[1] < 0.2
    assert rendering.alpha[0, SIZE // 2, SIZE // 2, 0] > 0.8
    distance = cameras.centers.norm().item()
    assert rendering.depth[0, SIZE // 2, SIZE // 2, 0].item() == pytest.approx(distance, rel=1e-4)
    corner = (0, 0, 0)
    assert rendering.alpha[corner].item() == 0
    assert rendering.depth[corner].item() == 0
    assert rendering.color[corner].tolist() == [1, 1, 1]


def test_depth_is_drawn_only_when_evaluating():
    model = one_gaussian()
    assert model.train().render(orbit(1), background=BACKGROUND).depth is None
    drawn = model.render(orbit(1), background=BACKGROUND)
    measured = model.eval().render(orbit(1), background=BACKGROUND)
    assert measured.depth.shape == (1, SIZE, SIZE, 1)
    torch.testing.assert_close(drawn.color, measured.color)


def test_pixels_are_those_of_the_whole_images():
    model = Model(toy_config(), random_tensors(20)).eval()
    cameras = orbit(3)
    pixels = torch.stack([torch.randint(3, (50,)), torch.randint(SIZE, (50,)), torch.randint(SIZE, (50,))], dim=-1)
    whole = model.render(cameras, background=BACKGROUND)
    some = model.render(cameras, pixels, background=BACKGROUND)
    for name in ("color", "alpha", "depth"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[pixels.unbind(-1)])


def test_view_dependence_appears_with_the_active_degree():
    model = Model(toy_config(), random_tensors(20)).eval()
    cameras = orbit(1)
    flat = model.render(cameras, background=BACKGROUND).color
    model.active_sh_degree.fill_(3)
    assert not torch.equal(flat, model.render(cameras, background=BACKGROUND).color)


def test_antialiasing_dims_gaussians_smaller_than_a_pixel():
    tensors = {"scales": torch.full((1, 3), 0.01).log()}
    alphas = {}
    for antialiased in (False, True):
        model = one_gaussian(antialiased=antialiased).eval()
        model.load_state_dict(model.state_dict() | tensors)
        alphas[antialiased] = model.render(orbit(1), background=BACKGROUND).alpha.sum().item()
    assert 0 < alphas[True] < 0.5 * alphas[False]


def test_cameras_that_cannot_be_rasterised_are_refused():
    model, cameras = one_gaussian(), orbit(2)
    sizes = torch.tensor([[24, 24], [32, 24]])
    with pytest.raises(ValueError, match="different sizes"):
        model.render(dataclasses.replace(cameras, sizes=sizes), background=BACKGROUND)
    bent = dataclasses.replace(cameras, model="opencv", distortion=torch.zeros(2, 6))
    with pytest.raises(ValueError, match="undistort"):
        model.render(bent, background=BACKGROUND)


def test_initial_gaussians():
    points = torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0, 0.4, 0], [0.3, 0.4, 0], [0.3, 0.4, 0]])
    colors = torch.rand(5, 3)
    model = Model.initialise(toy_config(init_opacity=0.2), SceneGeometry(orbit(), points, colors))
    torch.testing.assert_close(model.scales[0].exp(), torch.full((3,), math.sqrt((0.09 + 0.16 + 0.25) / 3)))
    torch.testing.assert_close(model.opacities.sigmoid(), torch.full((5,), 0.2))
    torch.testing.assert_close(0.5 + 0.28209479177387814 * model.sh0[:, 0], colors)
    assert int(model.active_sh_degree) == 0
    coincident = Model.initialise(toy_config(), SceneGeometry(orbit(), torch.zeros(10, 3), None))
    assert coincident.scales.isfinite().all()


def test_a_model_is_rebuilt_from_its_tensors():
    model = Model(toy_config(sh_degree=2), random_tensors(33, degree=2), active_sh_degree=2).eval()
    again = Model.from_tensors(model.config, model.state_dict()).eval()
    expected = model.render(orbit(1), background=BACKGROUND).color
    assert torch.equal(again.render(orbit(1), background=BACKGROUND).color, expected)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


# Training


def test_photometric_loss_is_that_of_3dgs_with_masks():
    color, target = torch.rand(2, 20, 16, 3), torch.rand(2, 20, 16, 3)
    mask = (torch.rand(2, 20, 16) > 0.3).float()
    recipe = Recipe(toy_config(), toy_geometry(orbit()))
    for one in (slice(0, 2), slice(0, 1)):
        for weights in (None, mask[one]):
            batch = Batch(orbit(2), None, target[one], weights, BACKGROUND)
            value = recipe.photometric(Rendering(color[one], color[one, ..., :1], None), batch)
            torch.testing.assert_close(value, l1_dssim(color[one], target[one], mask=weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_thirty_steps_lower_the_loss(strategy):
    run = trainer(strategy=strategy, max_primitives=200)
    losses = run.run(1, 30)
    assert sum(losses[-6:]) < 0.75 * sum(losses[:6])


def test_the_number_of_gaussians_changes_and_is_reported():
    run = trainer(grow_grad2d=1e-6)
    counts = [run.step(step)[1]["primitives"] for step in range(1, 12)]
    assert counts[:4] == [40] * 4
    assert counts[-1] > 40
    assert counts[-1] == len(run.model.means)


def test_learning_rate_of_the_means_falls_log_linearly_and_respects_the_trainer():
    run = trainer(steps=20, lr_means=1e-2, lr_means_final=1e-4)
    (optimizer,) = run.optimizers.values()
    rate = lambda: next(g["lr"] for g in optimizer.param_groups if g["name"] == "means")  # noqa: E731
    extent = run.recipe.extent
    assert rate() == pytest.approx(1e-2 * extent)
    run.run(1, 10)
    assert rate() == pytest.approx(1e-3 * extent)
    for group in optimizer.param_groups:
        group["lr"] /= 2
    run.run(11, 20)
    assert rate() == pytest.approx(1e-4 * extent / 2)
    others = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert others["sh0"] == pytest.approx(run.recipe.config.lr_sh0 / 2)


def test_spherical_harmonics_rise_with_the_steps():
    run = trainer(sh_degree_every=3, sh_degree=2)
    degrees = []
    for step in range(1, 11):
        run.step(step)
        degrees.append(int(run.model.active_sh_degree))
    assert degrees == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_resume_is_exact(strategy):
    settings = dict(strategy=strategy, grow_grad2d=1e-5, reset_every=9, opacity_reg=0.01, scale_reg=0.01)
    straight = trainer(**settings)
    straight.run(1, 30)

    first = trainer(**settings)
    first.run(1, 17)  # in the middle of collecting statistics
    model, recipe = first.model.state_dict(), first.recipe.state_dict()
    optimizer, random = first.optimizers["gaussians"].state_dict(), torch.get_rng_state()

    second = trainer(seed=1, **settings)
    second = Trainer(Model.from_tensors(first.model.config, model), second.recipe, first.batches)
    second.optimizers["gaussians"].load_state_dict(optimizer)
    second.recipe.load_state_dict(recipe)
    torch.set_rng_state(random)
    second.run(18, 30)

    assert len(second.model.means) != 40
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    for name, tensor in straight.recipe.state_dict().items():
        assert torch.equal(tensor, second.recipe.state_dict()[name]), name


def statistics(densify_from, classification, **overrides):
    """What densification has gathered after one step, and the model's gradient-driven update of that step."""
    run = trainer(classification=classification, densify_from=densify_from, **overrides)
    run.step(1)
    return run.recipe.state_dict()["gradient_sum"], run.model.means.detach()


def test_densification_can_leave_the_classification_term_out():
    alone, means_alone = statistics("base", 0.0)
    base, means_base = statistics("base", 2.0)
    total, means_total = statistics("total", 2.0)
    torch.testing.assert_close(base, alone, rtol=1e-5, atol=0)
    assert (total - alone).abs().max() > 0.1 * alone.max()
    # while the optimiser sees the whole loss either way
    torch.testing.assert_close(means_base, means_total, rtol=1e-5, atol=1e-7)
    assert not torch.equal(means_base, means_alone)
    # and the two agree where there is nothing to leave out
    assert torch.equal(statistics("total", 0.0)[0], alone)


@pytest.mark.parametrize("densify_from", ["base", "total"])
def test_absolute_gradients_are_never_smaller(densify_from):
    plain, _ = statistics(densify_from, 2.0)
    absolute, _ = statistics(densify_from, 2.0, absgrad=True)
    assert (absolute >= plain * (1 - 1e-4)).all()
    assert absolute.sum() > 1.2 * plain.sum()


def test_no_gradients_are_kept_when_nothing_will_be_densified():
    run = trainer(refine_stop=3)
    for step in range(1, 6):
        _, _, rendering = run.step(step)
    assert rendering.extras["raster"].means2d.grad is None


def test_mcmc_regularisers_are_means_over_the_gaussians():
    model = Model(toy_config(opacity_reg=0.5, scale_reg=0.25), random_tensors(7))
    terms = model.regularizers(None, None, 1)
    assert terms["opacity"].item() == pytest.approx(0.5 * model.opacities.sigmoid().mean().item())
    assert terms["scale"].item() == pytest.approx(0.25 * model.scales.exp().mean().item())
    assert Model(toy_config(), random_tensors(7)).regularizers(None, None, 1) == {}


def test_model_without_view_dependence_trains():
    run = trainer(sh_degree=0)
    losses = run.run(1, 12)
    assert run.model.shN.shape[1:] == (0, 3)
    assert losses[-1] < losses[0]


# Export


def test_export_writes_what_is_drawn(tmp_path, caplog):
    model = Model(toy_config(antialiased=True), random_tensors(25), active_sh_degree=3).eval()
    with torch.no_grad():
        model.means[3, 1] = math.nan
    assert export(model, tmp_path) == [tmp_path / "point_cloud.ply"]
    assert "left out 1 Gaussians" in caplog.text
    splats, dropped = read_splats(tmp_path / "point_cloud.ply")
    assert dropped == 0
    assert splats.antialiased
    tensors = {name: getattr(splats, name) for name in ("means", "quats", "scales", "opacities", "sh0", "shN")}
    again = Model(model.config, tensors, active_sh_degree=3).eval()
    cameras: Cameras = orbit(2)
    expected = model.render(cameras, background=BACKGROUND).color
    torch.testing.assert_close(again.render(cameras, background=BACKGROUND).color, expected, rtol=1e-4, atol=1e-5)
