"""The hash-grid field: its space, occupancy grid, densities and schedule, and that it learns, resumes and exports."""

import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import torch
from interrupted_runs import assert_same, crash_at, newest
from ngp_scenes import COLOR, DISTANCE, RADIUS, cameras, geometry, write_ball

from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.fields.ngp import Config, Model, Recipe, density_of, export, preset
from nfc_splat.fields.ngp_space import FARTHEST, Space, choose_space
from nfc_splat.fields.occupancy_grid import OccupancyGrid
from nfc_splat.rendering.samples import flat_rays
from nfc_splat.train import train
from nfc_splat.training.config import CheckpointConfig, default_config, resolve
from nfc_splat.training.load import load_run

SMALL = Config(
    steps=60,
    target_encoding="none",
    levels=4,
    log2_table_size=10,
    base_resolution=4,
    finest_resolution=32,
    width=16,
    color_layers=1,
    march_steps=96,
    cone=1 / 16,
    samples=4096,
    max_rays=1024,
    grid=16,
    update_every=4,
    warmup=20,
    decay_start=30,
    decay_every=10,
)
LONGER = {"steps": 240, "decay_start": 160, "decay_every": 40}


def box(config=SMALL, radius=1.5):
    return Space(torch.zeros(3), radius, 0.0, False, config)


def around(config=SMALL, radius=2.0, near=0.25):
    return Space(torch.tensor([0.1, -0.2, 0.3]), radius, near, True, config)


def rays(count=40):
    drawn = flat_rays(cameras().rays())
    chosen = torch.linspace(0, len(drawn.origins) - 1, count).long()
    return dataclasses.replace(drawn, origins=drawn.origins[chosen], directions=drawn.directions[chosen])


# --------------------------------------------------------------------------------------------------------- settings


def test_the_paper_preset_is_the_paper():
    config = preset("paper")
    assert config == Config()
    assert (config.levels, config.features, config.log2_table_size, config.finest_resolution) == (16, 2, 19, 2048)
    assert (config.lr, config.samples, config.grid, config.occupancy_decay) == (1e-2, 2**18, 128, 0.95)
    assert find_method("ngp").loss_weight == 2.0


def test_everything_counted_in_steps_scales():
    config = preset("paper", steps=70_000)
    assert (config.decay_start, config.decay_every, config.update_every, config.warmup) == (40_000, 20_000, 32, 512)
    short = preset("quick", steps=1)
    assert (short.update_every, short.warmup, short.decay_every) == (1, 1, 1)
    assert preset("quick", steps=700, warmup=9).warmup == 9


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"levels": 0},
        {"features": 9},
        {"log2_table_size": 40},
        {"finest_resolution": 8},
        {"lr": -1.0},
        {"lr": math.nan},
        {"cone": 0.0},
        {"grid": 4000},
        {"march_steps": 100_000},
        {"occupancy_decay": 1.5},
        {"box_scale": 0.0},
    ],
)
def test_settings_that_make_no_sense(change):
    with pytest.raises(UserError, match=f"--{next(iter(change)).replace('_', '-')} .*: expected"):
        preset("quick", **change)


def test_unknown_presets_and_settings():
    with pytest.raises(UserError, match="expected one of quick, paper"):
        preset("fast")
    with pytest.raises(UserError, match="ngp has no setting colour"):
        preset("quick", colour=1)


# ------------------------------------------------------------------------------------------------------- the space


@pytest.mark.parametrize("space", [box(), around()])
def test_the_unit_cube_and_back(space):
    unit = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    world = space.to_world(unit)
    torch.testing.assert_close(space.to_unit(world), unit, atol=2e-6, rtol=0)
    assert (space.to_unit(space.center[None]) == 0.5).all()


def test_contraction_keeps_the_inside_and_bounds_the_outside():
    space = around()
    inner = space.center + space.radius * torch.tensor([[1.0, -1.0, 0.5]])
    torch.testing.assert_close(space.to_unit(inner), torch.tensor([[0.75, 0.25, 0.625]]))
    far = space.to_unit(torch.tensor([[1e6, -1e6, 3.0]]))
    assert ((far >= 0) & (far <= 1)).all()
    assert far[0, 0] > 0.999


def test_which_space_a_scene_gets():
    alpha, opaque = geometry(), geometry(has_alpha=False)
    assert not choose_space(SMALL, alpha).contracted
    assert choose_space(SMALL, opaque).contracted
    stated = geometry(has_alpha=False, bounds=torch.tensor([[0.0, 0, 0], [2.0, 4.0, 1.0]]))
    space = choose_space(SMALL, stated)
    assert not space.contracted
    assert (space.center.tolist(), space.radius.item()) == ([1.0, 2.0, 0.5], 2.0)
    assert choose_space(dataclasses.replace(SMALL, space="contracted"), alpha).contracted
    doubled = choose_space(dataclasses.replace(SMALL, box_scale=2.0), stated)
    assert doubled.radius.item() == 4.0


def test_without_anything_stated_the_box_is_what_the_cameras_see():
    space = choose_space(SMALL, geometry())
    assert space.center.abs().max() < 1e-5
    assert space.radius.item() == pytest.approx(1.1 * DISTANCE * math.tan(0.35), rel=1e-4)


def test_the_box_holds_the_points_but_for_outliers():
    points = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)) + 5
    points[:5] = 1e6
    space = choose_space(SMALL, geometry(points=points))
    unit = space.to_unit(points[5:])
    assert ((unit > 0) & (unit < 1)).float().mean() > 0.99
    assert space.radius < 1


def test_cameras_that_look_outwards_have_a_space_too():
    turned = cameras()
    flip = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    outwards = dataclasses.replace(turned, viewmats=flip @ turned.viewmats)
    space = choose_space(SMALL, geometry(cameras=outwards, has_alpha=False))
    assert space.contracted
    assert space.radius.item() == pytest.approx(3 * 1.1 * DISTANCE, rel=1e-3)
    points = 7 * (torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    space = choose_space(SMALL, geometry(cameras=outwards, has_alpha=False, points=points))
    assert space.radius.item() == pytest.approx(7 * 0.75 ** (1 / 3), rel=0.03)


@pytest.mark.parametrize("space", [box(), around()])
@pytest.mark.parametrize("jitter", [False, True])
def test_samples_lie_in_occupied_cells_and_are_a_step_apart(space, jitter):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    occupied = torch.rand(8, 8, 8, generator=generator) < 0.4
    whole, some = (space.sample(rays(), grid, jitter=False) for grid in (None, occupied))
    assert 0.2 * len(whole) < len(some) < 0.6 * len(whole)
    samples = space.sample(rays(), occupied, jitter)
    cell = (space.to_unit(samples.positions) * 8).long().clamp(0, 7)
    assert occupied[tuple(cell.T)].float().mean() > 0.995  # a position on a cell's side may round to the other one
    full = space.sample(rays(), None, jitter)
    same = full.ray[1:] == full.ray[:-1]
    length = full.rays.directions.norm(dim=-1)[full.ray]
    gaps = ((full.t[1:] - full.t[:-1]) * length[1:])[same]
    torch.testing.assert_close(gaps, full.widths[:-1][same], rtol=2e-3, atol=1e-6)


def test_contracted_rays_start_near_and_end_far():
    space = around()
    samples = space.sample(rays(), None, jitter=False)
    first, last = samples.offsets[:-1], samples.offsets[1:] - 1
    length = samples.rays.directions.norm(dim=-1)
    radius = float(space.radius)
    torch.testing.assert_close(samples.t[first], 0.25 + 0.5 * space.step * radius / length)  # the middle of a step
    assert samples.offsets.diff().max() <= space.steps_per_ray
    assert (samples.t[last] * length > 0.8 * FARTHEST * 2.0).all()
    assert len(samples) < 40 * 400


def test_jitter_moves_samples_by_up_to_a_step():
    torch.manual_seed(0)
    space = box()
    moved = torch.stack([space.sample(rays(1), None, jitter=True).t[0] for _ in range(200)])
    step = space.step * 1.5 / rays(1).directions.norm()
    spread = (moved - moved.min()) / step
    assert 0.9 < spread.max() <= 1
    assert spread.mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_warning_when_hardly_a_ray_meets_the_box(caplog):
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        box().warn_of_misses(rays())
        assert not caplog.records
        Space(torch.tensor([50.0, 0, 0]), 0.1, 0.0, False, SMALL).warn_of_misses(rays())
    assert "rays meet the box of the scene: try --box-scale 2" in caplog.text


# -------------------------------------------------------------------------------------------------- the occupancy


def ball(unit):
    """Optical thickness 1 within 0.3 of the middle of the unit cube, 0 outside."""
    return ((unit - 0.5).norm(dim=-1) < 0.3).float()


def test_the_grid_finds_a_ball():
    torch.manual_seed(0)
    grid = OccupancyGrid(16, 0.95, 0.01)
    assert grid.share == 1.0
    for _ in range(6):
        grid.update(ball, everywhere=True)
    centers = (torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1) + 0.5) / 16
    away = (centers - 0.5).norm(dim=-1)
    half_diagonal = math.sqrt(3) / 32
    assert grid.occupied[away < 0.3 - half_diagonal].all()
    assert not grid.occupied[away > 0.3 + half_diagonal].any()
    assert grid.centers().shape == (int(grid.occupied.sum()), 3)
    assert ((grid.centers() - 0.5).norm(dim=-1) < 0.3 + half_diagonal).all()


def test_memory_decays_unless_renewed():
    grid = OccupancyGrid(4, 0.5, 0.01)
    grid.update(lambda unit: torch.where(unit[:, 0] < 0.5, 1.0, 0.5), everywhere=True)
    grid.update(lambda unit: torch.full((len(unit),), 0.3), everywhere=True)
    assert grid.thickness.unique().tolist() == pytest.approx([0.3, 0.5])


def test_later_updates_look_at_half_as_many_points_half_of_them_where_something_is():
    torch.manual_seed(0)
    grid, asked = OccupancyGrid(16, 0.95, 0.01), []

    def spy(unit):
        asked.append(unit)
        return ball(unit)

    grid.update(spy, everywhere=True)
    assert len(asked[0]) == 16**3
    assert len((asked[0] * 16).long().unique(dim=0)) == 16**3  # one in every cell
    filled = grid.share
    grid.update(spy, everywhere=False)
    assert len(asked[1]) == 16**3 // 2
    cell = (asked[1][len(asked[1]) // 2 :] * 16).long()
    assert (ball((cell + 0.5) / 16) > 0).float().mean() > 0.8
    assert (ball(asked[1][: len(asked[1]) // 2]) > 0).float().mean().item() == pytest.approx(filled, abs=0.06)


def test_thin_scenes_are_compared_with_their_mean():
    torch.manual_seed(0)
    grid = OccupancyGrid(8, 0.95, 0.01)
    grid.update(lambda unit: torch.where(unit[:, 2] < 0.25, 1e-4, 1e-6), everywhere=True)
    assert grid.occupied.nonzero()[:, 2].unique().tolist() == [0, 1]


def test_an_empty_scene_is_said():
    grid = OccupancyGrid(4, 0.95, 0.01)
    with pytest.raises(UserError, match=r"scene is empty: the optical thickness .* between 0 and 0 in all 4\^3 cells"):
        grid.update(lambda unit: torch.zeros(len(unit)), everywhere=True)


# ------------------------------------------------------------------------------------------------------- the field


def test_density_is_an_exponential_that_ends():
    x = torch.tensor([[-30.0], [-2.0], [0.0], [3.0], [15.0], [40.0]], requires_grad=True)
    density = density_of(x)
    torch.testing.assert_close(density[:4], x.detach()[:4, 0].exp())
    assert density.tolist()[4:] == pytest.approx([math.exp(15)] * 2, rel=1e-6)
    density.sum().backward()
    torch.testing.assert_close(x.grad[1:5, 0], density.detach()[1:5])
    assert x.grad[5] > 0
    assert x.grad[0] > 0


@pytest.mark.parametrize("kind", ["box", "contracted"])
def test_an_even_fog_is_as_opaque_as_beer_says(kind):
    """With the density network at zero the density is 1 per (contracted) radius everywhere."""
    config = dataclasses.replace(SMALL, space=kind, march_steps=800, cone=1 / 256, weight_threshold=0.0, stop=0.0)
    model = Model.initialise(config, geometry()).eval()
    torch.nn.init.zeros_(model.density.layers[-1].weight)
    asked = rays()
    with torch.no_grad():
        drawn = model.march(asked, torch.zeros(3))
    space = model.space
    near, far = float(space.near) or 1.0, FARTHEST * float(space.radius)
    t = torch.linspace(math.log(near), math.log(far), 20_000).double().exp()
    local = (asked.origins[:, None] + t[:, None] * asked.directions[:, None] - space.center) / space.radius
    away = local.abs().amax(-1)
    density = torch.where(away <= 1, 1.0, 0.0 if kind == "box" else away**-2)
    thickness = torch.trapezoid(density, t) * asked.directions.norm(dim=-1) / space.radius
    assert thickness.max() > 1
    torch.testing.assert_close(drawn.alpha[:, 0].double(), 1 - torch.exp(-thickness), rtol=0, atol=5e-3)


def test_colours_depend_on_position_and_direction():
    torch.manual_seed(0)
    model = Model.initialise(SMALL, geometry()).eval()
    with torch.no_grad():
        model.table.uniform_(-1, 1)
        drawn = model.march(rays(), torch.zeros(3))
    assert drawn.extras["colors"].std(0).min() > 0.01
    assert drawn.extras["marched"] >= len(drawn.extras["samples"])


def test_chunks_get_larger_when_space_is_found_empty():
    model = Model.initialise(SMALL, geometry())
    full = model.ray_bytes
    assert full > 600 * SMALL.march_steps
    model.grid.occupied.zero_()[3, 4, 5] = True
    model.grid._share = None
    assert model.ray_bytes < full / 20


def test_normals_point_out_of_a_ball():
    torch.manual_seed(0)
    model = Model.initialise(dataclasses.replace(SMALL, march_steps=400), geometry()).eval()
    model.draw_normals = True
    inside = lambda unit: torch.sigmoid(80 * (0.25 - (unit - 0.5).norm(dim=-1)))  # noqa: E731
    features = lambda unit: torch.cat([9 * inside(unit)[:, None], torch.zeros(len(unit), 15)], 1)  # noqa: E731
    model.features = features
    with torch.no_grad():
        drawn = model.render(cameras(), background=torch.zeros(3))
    hit = drawn.alpha[..., 0] > 0.99
    assert 0.02 < hit.float().mean() < 0.5
    torch.testing.assert_close(drawn.normal[hit].norm(dim=-1), torch.ones(int(hit.sum())))
    where = cameras().rays().origins + drawn.depth * cameras().rays().directions
    outward = torch.nn.functional.normalize(where[hit], dim=-1)
    assert (drawn.normal[hit] * outward).sum(-1).mean() > 0.9


@pytest.mark.parametrize("encoding", ["none", "binary"])
def test_a_model_is_rebuilt_from_its_tensors(encoding):
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, target_encoding=encoding)
    for space in ("box", "contracted"):
        model = Model.initialise(dataclasses.replace(config, space=space), geometry())
        model.grid.update(model.thickness, everywhere=True)
        again = Model.from_tensors(config, {name: value.clone() for name, value in model.state_dict().items()})
        with torch.no_grad():
            one, two = (m.eval().render(cameras(), background=torch.ones(3)) for m in (model, again))
        assert torch.equal(one.color, two.color)
        assert again.head.n_logits == (8 if encoding == "binary" else 1)


def test_the_networks_have_no_biases_that_learn():
    model = Model.initialise(SMALL, geometry())
    (optimizer,) = Recipe(SMALL, geometry()).optimizers(model).values()
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    assert [p.ndim for p in learned] == [2] * len(learned)
    assert len(learned) == 1 + 2 + 2
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"table": 0, "networks": SMALL.weight_decay}


# ----------------------------------------------------------------------------------------------------- the recipe


def step_of(recipe, model, step, marched):
    optimizers = recipe.optimizers(model)
    drawn = model.train().march(rays(), torch.zeros(3))
    drawn = dataclasses.replace(drawn, extras={**drawn.extras, "marched": marched})
    figures = recipe.after_step(model, optimizers, drawn, step)
    return figures, optimizers["field"].param_groups[0]["lr"]


def test_the_number_of_rays_follows_the_samples_they_need():
    recipe, model = Recipe(SMALL, geometry()), Model.initialise(SMALL, geometry())
    first = recipe.sampling(1).rays
    step_of(recipe, model, 1, marched=first)  # one sample per ray
    assert recipe.sampling(2).rays == 2 * first
    step_of(recipe, model, 2, marched=10**6)
    assert recipe.sampling(3).rays == first  # never fewer
    for step in range(3, 20):
        step_of(recipe, model, step, marched=recipe.rays)
    assert recipe.sampling(20).rays == SMALL.max_rays
    other = Recipe(SMALL, geometry())
    other.load_state_dict(recipe.state_dict())
    assert other.sampling(20) == recipe.sampling(20)


def test_rates_fall_as_told_and_transparent_scenes_have_random_backgrounds():
    recipe, model = Recipe(SMALL, geometry()), Model.initialise(SMALL, geometry())
    rates = {step: step_of(recipe, model, step, 4096)[1] for step in (29, 30, 31, 40, 50, 59)}
    fallen = SMALL.lr * SMALL.decay
    assert rates == {29: SMALL.lr, 30: fallen, 31: SMALL.lr, 40: fallen, 50: fallen, 59: SMALL.lr}
    assert recipe.sampling(1).background == "random"
    assert Recipe(SMALL, geometry(has_alpha=False)).sampling(1).background == "scene"


# --------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_ball(tmp_path_factory.mktemp("data") / "ball")


@pytest.fixture
def configure(scene, tmp_path):
    def build(loss="regression", model=LONGER, **changes):
        config = default_config(scene, method="ngp", preset="quick", device="cpu")
        model = dataclasses.replace(SMALL, target_encoding="auto", **model)
        defaults = {"out": tmp_path / "run", "threads": 1, "quiet": True, "log_every": 1}
        return resolve(dataclasses.replace(config, model=model, loss=loss, **(defaults | changes)))

    return build


@pytest.mark.parametrize("loss", ["regression", "classification", "bitwise"])
def test_a_ball_is_learned(configure, loss):
    config = configure(loss)
    assert train(config) == 0
    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert {"rays", "samples", "occupied"} <= log[-1].keys()
    assert log[-1]["occupied"] < 0.4
    assert json.loads((config.out / "eval/summary.json").read_text())["psnr"] > 22
    model = load_run(config.out).model
    assert model.head.n_logits == (1 if loss == "regression" else 8)
    points = read_cloud(config.out / "point_cloud.ply")
    away = np.linalg.norm(points["position"], axis=1)
    assert len(points) > 20
    assert np.median(away) < RADIUS + 0.1
    assert np.abs(points["color"] / 255 - COLOR).mean() < 0.15


def read_cloud(path):
    """Vertices of a binary PLY: positions and colours."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    names = [line.split()[2] for line in lines if line.startswith("property")]
    assert names == ["x", "y", "z", "red", "green", "blue"]
    rows = np.frombuffer(body, [("position", "<f4", 3), ("color", "u1", 3)])
    assert f"element vertex {len(rows)}" in lines
    return rows


# Around an update of the grid (multiples of 4), the end of its warm-up (20) and a fall of the rate (30).
@pytest.mark.parametrize("crash", [8, 21, 30])
def test_a_resumed_run_is_the_same_run(configure, tmp_path, monkeypatch, crash):
    saving = CheckpointConfig(save_steps=6, save_minutes=0, keep=2)
    straight, broken = (
        configure("classification", model={}, out=tmp_path / name, checkpoints=saving)
        for name in ("straight", "broken")
    )
    train(straight)
    crash_at(monkeypatch, crash, broken)
    train(dataclasses.replace(broken, resume=str(broken.out)))
    assert_same(newest(straight.out), newest(broken.out))


def test_a_ball_is_learned_in_contracted_space(configure):
    finer = {"space": "contracted", "box_scale": 0.25, "finest_resolution": 64, "log2_table_size": 12}
    config = configure(model=LONGER | finer)
    assert train(config) == 0
    assert load_run(config.out).model.space.contracted
    assert json.loads((config.out / "eval/summary.json").read_text())["psnr"] > 20


def test_opaque_scenes_are_contracted_and_keep_their_background(configure, tmp_path):
    config = configure(scene=write_ball(tmp_path / "opaque", transparent=False))
    trained = []

    class Spy(Recipe):
        def after_step(self, model, optimizers, rendering, step):
            trained.append((bool(model.space.contracted), self.sampling(step).background))
            return super().after_step(model, optimizers, rendering, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nfc_splat.fields.ngp.Recipe", Spy)
        train(dataclasses.replace(config, model=config.model.scaled_to(2)))
    assert trained == [(True, "scene")] * 2


def test_an_empty_cloud_is_said(tmp_path, caplog):
    model = Model.initialise(SMALL, geometry())
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        (path,) = export(model, tmp_path)
    assert "point cloud is empty" in caplog.text
    assert len(read_cloud(path)) == 0


@pytest.mark.gpu
def test_fused_networks_equal_the_plain_ones():
    from nfc_splat.fields.ngp import Network
    from nfc_splat.rendering.kernels.networks_cuda import fused_network, usable

    if not torch.cuda.is_available() or not usable(32, 64, 2):
        pytest.skip("needs a CUDA device and tiny-cuda-nn")
    torch.manual_seed(0)
    network = Network(32, 24, 64, 2, bf16=False)
    x = torch.randn(1000, 32)
    leaves = x.cuda().requires_grad_(), *(layer.weight.detach().cuda().requires_grad_() for layer in network.layers)
    fused = fused_network(leaves[0], leaves[1:])
    x.requires_grad_()
    expected = network(x)
    assert (fused.cpu() - expected).norm() < 5e-3 * expected.norm()
    fused.square().sum().backward()
    expected.square().sum().backward()
    for leaf, exact in zip(leaves, (x, *(layer.weight for layer in network.layers)), strict=True):
        assert (leaf.grad.cpu() - exact.grad).norm() < 2e-2 * exact.grad.norm()
