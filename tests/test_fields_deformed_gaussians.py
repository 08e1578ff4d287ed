"""4DGS as the trainer sees it: config, drawing at a time, two stages, regularisers, resume, export.

Where a test belongs to a mistake that is easily made when 4DGS is written anew, its name says which.
"""

import dataclasses
import inspect
import re

import pytest
import torch
from moving_toys import moving_batches, moving_config, moving_geometry, moving_truth, timed_orbit
from splat_toys import BACKGROUND, SIZE, Trainer, orbit, toy_config

from nfc_splat.errors import UserError
from nfc_splat.fields import deformed_gaussians_config, find_method, gaussians
from nfc_splat.fields.deformed_gaussians import Config, Model, Recipe, export, preset, write_splats_at
from nfc_splat.fields.densification import SPLAT_TENSORS
from nfc_splat.fields.recipe import Batch, SceneGeometry
from nfc_splat.fields.splat_file import read_splats
from nfc_splat.losses import l1
from nfc_splat.rendering import Rendering
from nfc_splat.training.command_line import parse_command_line

CHANGED_BY_STAGES = {"coarse_steps", "decay_steps", "prune_every"}


def trainer(seed=0, classification=0.0, **overrides):
    """A trainer of a fresh toy model; the same seed gives the same one."""
    torch.manual_seed(seed)
    config = moving_config(**overrides)
    cameras = timed_orbit()
    batches, geometry = moving_batches(cameras), moving_geometry(cameras)
    return Trainer(Model.initialise(config, geometry), Recipe(config, geometry), batches, classification)


def moved_model(shift=(0.3, 0.0, 0.2), **overrides):
    """A model in its fine stage that moves every centre by `shift` at all times and changes nothing else."""
    model = Model.initialise(moving_config(deform=("means",), **overrides), moving_geometry(timed_orbit()))
    model.deforming.fill_(True)
    head = model.deformation.heads["means"]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(shift))
        model.shN.copy_(torch.randn_like(model.shN))
    model.active_sh_degree.fill_(3)
    return model.eval()


def group(optimizers, name):
    (optimizer,) = optimizers.values()
    return next(group for group in optimizer.param_groups if group["name"] == name)


# Config


def test_the_method_is_registered_as_one_that_moves():
    method = find_method("4dgs")
    assert method.dynamic
    assert not find_method("3dgs").dynamic
    module = method.load()
    assert module.preset("paper") == Config()
    assert module.preset("quick").steps < module.preset("paper").steps


def test_published_numbers():
    config = preset("paper")
    assert (config.steps, config.coarse_steps, config.decay_steps) == (23_000, 3000, 20_000)
    assert (config.refine_start, config.refine_stop, config.refine_every, config.reset_every) == (
        500,
        15_000,
        100,
        3000,
    )
    assert (config.prune_every, config.prune_above, config.max_primitives) == (8000, 200_000, 360_000)
    assert (config.plane_channels, config.plane_nodes, config.plane_levels) == (32, 64, (1, 2))
    assert (config.deformation_width, config.deform) == (64, ("means", "scales", "quats"))
    assert (config.plane_smoothness, config.time_smoothness, config.time_constancy) == (1e-4, 1e-2, 1e-4)
    assert (config.lr_planes, config.lr_planes_final) == (1.6e-3, 1.6e-5)
    assert (config.lr_deformation, config.lr_deformation_final) == (1.6e-4, 1.6e-6)
    assert (config.init_points, config.init_cube) == (2000, 1.3)  # not 3DGS's 100,000
    assert config.dssim_weight == 0  # no D-SSIM
    assert (config.time_planes, config.plane_roughness, config.zero_heads) == ("published", "published", False)
    static = {"lr_means", "lr_means_final", "lr_sh0", "lr_shN", "lr_opacities", "lr_scales", "lr_quats", "grow_grad2d"}
    for name in static | {"grow_scale3d", "prune_opacity", "prune_scale3d", "sh_degree_every"}:
        assert getattr(config, name) == getattr(gaussians.Config(), name)


def test_the_flags_for_other_scenes_give_what_is_published():
    """Every flag that the docstring names, as the command line takes it, beside the sections of the release."""
    text = inspect.getdoc(deformed_gaussians_config).partition("beside --preset paper")[2].partition("What the odd")[0]
    shared, *others = re.split(r"\n +(?:HyperNeRF|DyNeRF|DyCheck) ", text)
    expected = {"refine_start": 500, "refine_stop": 10_000, "refine_every": 100, "prune_every": 100, "reset_every": 0}
    expected |= {"coarse_steps": 3000, "decay_steps": 20_000, "sh_degree_every": 1000, "plane_channels": 16}
    expected |= {"time_rows": 150, "deformation_width": 128, "plane_smoothness": 2e-4, "time_smoothness": 1e-3}
    expected |= {"lr_planes_final": 1.6e-4, "lr_deformation_final": 1.6e-5, "lr_means_final": 1.6e-6}
    expected |= {"time_constancy": 1e-4, "prune_above": 200_000, "prune_large_from": 3000}
    moves = ("means", "scales", "quats")
    for words, steps, levels, deform in zip(
        others,
        (17_000, 17_000, 63_000),
        ((1, 2, 4), (1, 2), (1, 2, 4)),
        (moves, (*moves, "opacities", "colors"), moves),
        strict=True,
    ):
        flags = [
            word for part in (shared[shared.index("--coarse") :], words) for word in part.partition(";")[0].split()
        ]
        model = parse_command_line(["scene", "--method", "4dgs", "--preset", "paper", *flags]).model
        assert (model.steps, model.plane_levels, model.deform) == (steps, levels, deform)
        assert {name: getattr(model, name) for name in expected} == expected


def test_everything_counted_in_steps_is_scaled_with_the_steps():
    config = preset("paper", steps=2300)
    assert (config.coarse_steps, config.decay_steps, config.prune_every) == (300, 2000, 800)
    assert (config.refine_start, config.refine_stop, config.refine_every, config.reset_every) == (50, 1500, 10, 300)
    changed = {"steps", *Config.STEP_FIELDS}
    assert changed == {"steps", *gaussians.Config.STEP_FIELDS} | CHANGED_BY_STAGES
    for field in dataclasses.fields(Config):
        assert field.name in changed or getattr(config, field.name) == getattr(Config(), field.name)
    for name in ("quick", "paper"):
        assert preset(name, steps=1).steps == 1


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"coarse_steps": 99_999}, "--coarse-steps 99999: expected at most --steps 23000"),
        ({"plane_levels": ()}, "--plane-levels"),
        ({"plane_levels": (0, 1)}, "--plane-levels"),
        ({"plane_nodes": 1}, "--plane-nodes 1: expected 2 or more"),
        ({"time_rows": 1}, "--time-rows 1: expected 0 or 2 or more"),
        ({"deform": ()}, "--deform"),
        ({"deform": ("means", "means")}, "--deform"),
        ({"lr_planes": 0.0}, "--lr-planes 0.0: expected above 0"),
        ({"lr_means": float("nan")}, "--lr-means nan"),
        ({"decay_steps": 0}, "--decay-steps 0"),
        ({"no_such": 1}, "4dgs has no setting no_such"),
    ],
)
def test_wrong_settings_are_refused_by_flag(overrides, named):
    with pytest.raises(UserError, match=named):
        preset("paper", **overrides)
    with pytest.raises(UserError, match="--preset best: expected one of quick, paper"):
        preset("best")


# The model


@pytest.mark.parametrize(("rows", "numbers"), [(25, 2_426_880), (50, 2_887_680), (75, 3_348_480), (100, 3_809_280)])
def test_the_planes_have_the_published_sizes(rows, numbers):
    config = preset("paper", time_rows=rows)
    model = Model.initialise(config, SceneGeometry(timed_orbit(), None, None))
    assert sum(plane.numel() for plane in model.deformation.planes.parameters()) == numbers
    low, high = model.deformation.planes.low, model.deformation.planes.high
    torch.testing.assert_close(high[:3] - low[:3], torch.full((3,), 2.6), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("deform", "numbers"),
    [(("means", "scales", "quats"), 17_290), (("means", "scales", "quats", "opacities", "colors"), 28_795)],
)
def test_only_heads_of_what_moves_are_made(deform, numbers):
    model = Model.initialise(preset("paper", deform=deform, time_rows=2), SceneGeometry(timed_orbit(), None, None))
    assert sum(value.numel() for value in model.deformation.network_parameters()) == numbers


def test_rows_along_time_are_half_the_training_times_unless_given():
    for rows, expected in ((0, 5), (9, 9)):
        model = Model.initialise(moving_config(time_rows=rows), moving_geometry(timed_orbit(10)))
        assert model.deformation.planes.temporal[0].shape[1] == expected


def test_the_box_is_that_of_the_initial_points_not_a_setting():
    model = Model.initialise(moving_config(), moving_geometry(timed_orbit()))
    torch.testing.assert_close(model.deformation.planes.low[:3], model.means.amin(0))
    torch.testing.assert_close(model.deformation.planes.high[:3], model.means.amax(0))


@pytest.mark.parametrize(("time_planes", "first"), [("published", -1.0), ("normalized", 0.0)])
def test_published_times_are_not_mapped_to_the_whole_planes(time_planes, first):
    model = Model.initialise(moving_config(time_planes=time_planes), moving_geometry(timed_orbit()))
    assert model.deformation.planes.low[3] == first
    assert model.deformation.planes.high[3] == 1


def test_changes_are_added_before_activation():
    model = Model.initialise(
        moving_config(deform=("means", "scales", "quats", "opacities", "colors")), moving_geometry(timed_orbit())
    )
    model.deforming.fill_(True)
    biases = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (1,), "colors": (48,)}
    with torch.no_grad():
        for name, shape in biases.items():
            model.deformation.heads[name].weight.zero_()
            biases[name] = torch.randn(shape)
            model.deformation.heads[name].bias.copy_(biases[name])
    splats = model.splats_at(0.4)
    torch.testing.assert_close(splats["means"], model.means + biases["means"])
    torch.testing.assert_close(splats["scales"].exp(), model.scales.exp() * biases["scales"].exp())
    torch.testing.assert_close(splats["quats"], model.quats + biases["quats"])  # neither is of unit length
    torch.testing.assert_close(splats["opacities"], model.opacities + biases["opacities"])
    torch.testing.assert_close(splats["sh0"], model.sh0 + biases["colors"][:3])
    torch.testing.assert_close(splats["shN"], model.shN + biases["colors"][3:].view(15, 3))


def test_in_the_coarse_stage_time_means_nothing():
    model = Model.initialise(moving_config(), moving_geometry(timed_orbit()))
    assert all(model.splats_at(0.7)[name] is getattr(model, name) for name in SPLAT_TENSORS)
    assert model.regularizers(None, None, 1) == {}


def test_colours_follow_the_direction_to_the_moved_centre():
    model = moved_model()
    tensors = {name: getattr(model, name).detach() for name in SPLAT_TENSORS}
    tensors["means"] = tensors["means"] + torch.tensor([0.3, 0.0, 0.2])
    static = gaussians.Model(toy_config(), tensors, active_sh_degree=3).eval()
    for index in range(3):
        camera = timed_orbit()[index]
        expected = static.render(camera, background=BACKGROUND)
        drawn = model.render(camera, background=BACKGROUND)
        torch.testing.assert_close(drawn.color, expected.color)
        torch.testing.assert_close(drawn.depth, expected.depth)


def fine_model(**overrides):
    """A model whose Gaussians differ from time to time."""
    model = Model.initialise(moving_config(**overrides), moving_geometry(timed_orbit()))
    model.deforming.fill_(True)
    with torch.no_grad():
        for plane in model.deformation.planes.temporal:
            plane.add_(torch.randn_like(plane))
    return model


def test_every_camera_is_drawn_at_its_own_time():
    model, cameras = fine_model().eval(), timed_orbit(4)
    whole = model.render(cameras, background=BACKGROUND)
    assert whole.color.shape == (4, SIZE, SIZE, 3)
    for index in range(4):
        alone = model.render(cameras[index], background=BACKGROUND)
        for name in ("color", "alpha", "depth"):
            assert torch.equal(getattr(whole, name)[index], getattr(alone, name)[0])
    pixels = torch.stack([torch.randint(4, (50,)), torch.randint(SIZE, (50,)), torch.randint(SIZE, (50,))], dim=-1)
    some = model.render(cameras, pixels, background=BACKGROUND)
    for name in ("color", "alpha", "depth"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[pixels.unbind(-1)])
    later = dataclasses.replace(cameras, times=1 - cameras.times)
    assert (model.render(later, background=BACKGROUND).color - whole.color).abs().max() > 0.01


def test_cameras_without_times_are_refused():
    with pytest.raises(ValueError, match="no times"):
        fine_model().render(orbit(1), background=BACKGROUND)


def test_a_model_is_rebuilt_from_its_tensors():
    for model in (fine_model(time_rows=7, plane_levels=(1, 2, 4)), trainer().model):
        model.eval()
        again = Model.from_tensors(model.config, model.state_dict()).eval()
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
        drawn = (each.render(timed_orbit(2), background=BACKGROUND).color for each in (model, again))
        assert torch.equal(*drawn)


def test_regularisers_are_weighted_and_named():
    weights = dict(plane_smoothness=2.0, time_smoothness=3.0, time_constancy=5.0)
    model = fine_model(**weights, plane_roughness="total-variation")
    planes, terms = model.deformation.planes, model.regularizers(None, None, 1)
    torch.testing.assert_close(terms["plane_smoothness"], 2 * planes.space_roughness("total-variation"))
    torch.testing.assert_close(terms["time_smoothness"], 3 * planes.time_roughness())
    torch.testing.assert_close(terms["time_constancy"], 5 * planes.time_dependence())
    assert fine_model(**dict.fromkeys(weights, 0.0)).regularizers(None, None, 1) == {}


# Training


def test_the_base_loss_is_l1_alone():
    color, target, mask = torch.rand(1, 20, 16, 3), torch.rand(1, 20, 16, 3), (torch.rand(1, 20, 16) > 0.3).float()
    recipe = Recipe(moving_config(), moving_geometry(timed_orbit()))
    batch = Batch(timed_orbit(1), None, target, mask, BACKGROUND)
    value = recipe.photometric(Rendering(color, color[..., :1], None), batch)
    torch.testing.assert_close(value, l1(color, target, mask=mask))


@pytest.mark.parametrize("unit", ["extent", "published"])
def test_what_is_learned_of_motion_in_another_unit(unit):
    """The same scene eight times as large is learned in the same way, unless the release's units are kept."""
    losses = []
    for scale in (1.0, 8.0):
        torch.manual_seed(0)
        cameras, batches = timed_orbit(), moving_batches(timed_orbit())
        for one in (cameras, *(batch.cameras for batch in batches)):
            one.viewmats[:, :3, 3] *= scale
        torch.manual_seed(1)
        geometry = moving_geometry(cameras)
        geometry = dataclasses.replace(geometry, points=scale * geometry.points)
        config = moving_config(motion_unit=unit, zero_heads=True, lr_deformation=1e-2)
        run = Trainer(Model.initialise(config, geometry), Recipe(config, geometry), batches)
        losses.append(run.run(1, 40))
    ours, theirs = (torch.tensor(values) for values in losses)
    apart = (ours - theirs).abs() / ours
    assert apart[:15].max() < 0.01  # nothing moves yet
    assert (apart[15:].mean() < 0.01) == (unit == "extent")


def test_learning_rates_of_means_planes_and_networks_are_per_unit_of_extent():
    run = trainer()
    config, extent = run.model.config, run.recipe.extent
    assert extent > 2
    for name in ("means", "planes", "deformation"):
        assert group(run.optimizers, name)["lr"] == pytest.approx(getattr(config, f"lr_{name}") * extent)
    assert group(run.optimizers, "scales")["lr"] == config.lr_scales


def test_learning_rates_fall_log_linearly_and_then_stay():
    run = trainer(coarse_steps=0, steps=30, decay_steps=20, lr_planes=1e-2, lr_planes_final=1e-4)
    run.run(1, 10)
    assert group(run.optimizers, "planes")["lr"] == pytest.approx(1e-3 * run.recipe.extent)
    run.run(11, 30)
    assert group(run.optimizers, "planes")["lr"] == pytest.approx(1e-4 * run.recipe.extent)
    final = run.model.config.lr_means_final * run.recipe.extent
    assert group(run.optimizers, "means")["lr"] == pytest.approx(final)


def test_the_coarse_stage_does_not_touch_the_deformation():
    run = trainer()
    before = {name: value.clone() for name, value in run.model.deformation.state_dict().items()}
    run.run(1, 15)
    assert all(torch.equal(value, before[name]) for name, value in run.model.deformation.state_dict().items())
    run.run(16, 18)
    after = run.model.deformation.state_dict()
    assert not any(
        torch.equal(after[name], before[name]) for name in before if name not in ("planes.low", "planes.high")
    )


def test_the_fine_stage_starts_with_a_new_optimiser_and_a_new_clock():
    run = trainer(coarse_steps=9, refine_stop=8, decay_steps=10, lr_means=1e-2, lr_means_final=1e-4)
    run.run(1, 8)
    (optimizer,) = run.optimizers.values()
    assert group(run.optimizers, "means")["lr"] < 3e-4 * run.recipe.extent
    assert optimizer.state
    count = run.model.primitives
    assert run.step(9)[1]["primitives"] == count  # refine_stop is over
    assert bool(run.model.deforming)
    assert not optimizer.state
    assert not run.recipe.state_dict()
    assert group(run.optimizers, "means")["lr"] == pytest.approx(1e-2 * run.recipe.extent)
    moved = run.run(10, 16)
    assert len(moved) == 7
    assert run.model.primitives != count  # and in the new clock it is not over


def test_without_a_coarse_stage_everything_moves_from_the_start():
    run = trainer(coarse_steps=0)
    assert bool(run.model.deforming)
    assert run.step(1)[2].extras["raster"].means2d.grad is not None
    assert "plane_smoothness" in run.model.regularizers(None, None, 1)


def test_the_last_coarse_step_resets_the_opacities():
    run = trainer(coarse_steps=12, reset_every=12, refine_stop=40, init_opacity=0.5)
    run.run(1, 11)
    assert run.model.opacities.sigmoid().max() > 0.1
    run.step(12)
    assert run.model.opacities.sigmoid().max() <= 0.0101
    run.run(13, 23)
    assert run.model.opacities.sigmoid().max() > 0.0101
    run.step(24)
    assert run.model.opacities.sigmoid().max() <= 0.0101


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(prune_every=1, prune_above=0), {100, 200, 300, 400, 500, 600}),
        (dict(prune_every=250, prune_above=0), {300, 500}),
        (dict(prune_every=300, prune_above=49), {300, 600}),
        (dict(prune_every=300, prune_above=50), set()),
    ],
)
def test_gaussians_are_pruned_rarely_and_only_where_there_are_many(settings, expected):
    rule = Recipe(moving_config(refine_every=100, **settings), moving_geometry(timed_orbit())).densification
    assert {step for step in range(100, 601, 100) if rule.prunes(step, 50)} == expected


def test_faint_gaussians_stay_unless_it_is_time_to_prune():
    counts = {}
    for above in (0, 10_000):
        run = trainer(prune_above=above, grow_grad2d=1e9)
        with torch.no_grad():
            run.model.opacities[:10] = -9.0
        run.run(1, 6)
        counts[above] = run.model.primitives
    assert counts == {0: 30, 10_000: 40}


def test_densification_leaves_planes_and_networks_alone():
    run = trainer(grow_grad2d=1e-6, coarse_steps=2)
    fields = [id(parameter) for parameter in run.model.deformation.parameters()]
    run.run(1, 12)
    assert run.model.primitives > 40
    assert [id(parameter) for parameter in run.model.deformation.parameters()] == fields


def test_the_deformation_alone_learns_the_motion():
    """The pictures' own Gaussians, held still but for the deformation."""
    still = dict.fromkeys(("lr_quats", "lr_scales", "lr_opacities", "lr_sh0", "lr_shN"), 0.0)
    still |= dict(lr_means=1e-9, lr_means_final=1e-9, refine_stop=0, coarse_steps=0, zero_heads=True)
    rates = dict(lr_planes=2e-2, lr_planes_final=2e-3, lr_deformation=4e-3, lr_deformation_final=4e-4)
    truth = moving_truth()
    torch.manual_seed(0)
    run = trainer(steps=100, decay_steps=100, **still, **rates)
    with torch.no_grad():
        for name in SPLAT_TENSORS:
            group(run.optimizers, name)["params"][0].set_(getattr(truth, name))
    run.model.active_sh_degree.fill_(1)
    losses = run.run(1, 100)
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])


def test_spherical_harmonics_rise_in_the_coarse_stage():
    run = trainer()
    run.run(1, 15)
    assert int(run.model.active_sh_degree) == 3


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
@pytest.mark.parametrize("stop", [8, 15, 22])  # in the coarse stage, at the change, in the fine one
def test_resume_is_exact(stop, strategy):
    settings = dict(strategy=strategy, grow_grad2d=1e-5, reset_every=9, max_primitives=200)
    settings |= dict(deform=("scales", "quats", "means"))
    straight = trainer(**settings)
    straight.run(1, 30)

    first = trainer(**settings)
    first.run(1, stop)
    # A file gives tensors back in the order of their names; the optimiser's state is by the order of parameters.
    model, recipe = dict(sorted(first.model.state_dict().items())), first.recipe.state_dict()
    optimizer, random = first.optimizers["gaussians"].state_dict(), torch.get_rng_state()

    second = trainer(seed=1, **settings)
    second = Trainer(Model.from_tensors(first.model.config, model), second.recipe, first.batches)
    second.optimizers["gaussians"].load_state_dict(optimizer)
    second.recipe.load_state_dict(recipe)
    torch.set_rng_state(random)
    second.run(stop + 1, 30)

    assert len(second.model.means) != 40
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    for name, tensor in straight.recipe.state_dict().items():
        assert torch.equal(tensor, second.recipe.state_dict()[name]), name


def test_densification_can_leave_the_classification_term_out():
    sums = {}
    for name, weight in (("base", 2.0), ("total", 2.0), ("alone", 0.0)):
        run = trainer(classification=weight, densify_from="total" if name == "total" else "base", coarse_steps=0)
        run.step(1)
        sums[name] = run.recipe.state_dict()["gradient_sum"]
    torch.testing.assert_close(sums["base"], sums["alone"], rtol=1e-5, atol=0)
    assert (sums["total"] - sums["alone"]).abs().max() > 0.1 * sums["alone"].max()


# Export


def test_splats_at_a_time_are_what_is_drawn_then(tmp_path):
    model = fine_model(antialiased=True).eval()
    model.active_sh_degree.fill_(3)
    camera = timed_orbit()[1]
    for time in (0.0, 0.35, 1.0):
        path = tmp_path / f"{time}.ply"
        write_splats_at(model, time, path)
        splats, dropped = read_splats(path)
        assert dropped == 0
        assert splats.antialiased
        tensors = {name: getattr(splats, name) for name in SPLAT_TENSORS}
        static = gaussians.Model(toy_config(antialiased=True), tensors, active_sh_degree=3).eval()
        expected = model.render(dataclasses.replace(camera, times=torch.tensor([time])), background=BACKGROUND).color
        torch.testing.assert_close(static.render(camera, background=BACKGROUND).color, expected, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "0.0.ply").read_bytes() != (tmp_path / "1.0.ply").read_bytes()


def test_export_writes_the_first_moment(tmp_path):
    model = fine_model().eval()
    assert export(model, tmp_path / "run") == [tmp_path / "run" / "point_cloud.ply"]
    write_splats_at(model, 0.0, tmp_path / "first.ply")
    assert (tmp_path / "run" / "point_cloud.ply").read_bytes() == (tmp_path / "first.ply").read_bytes()


@pytest.mark.parametrize("time", [-0.1, 1.5, float("nan")])
def test_there_is_nothing_before_the_first_moment_or_after_the_last(tmp_path, time):
    with pytest.raises(UserError, match="expected 0 to 1"):
        write_splats_at(fine_model(), time, tmp_path / "out.ply")
