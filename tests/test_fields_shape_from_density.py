"""NeuS's first stage: matter is what no light reaches, and distances are fitted to it."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from dvgo_toys import RADIUS as BALL
from dvgo_toys import toy_config, write_ball
from export_scenes import cameras_around
from interrupted_runs import assert_same, newest
from neus_toys import SMALL, build, small
from ngp_scenes import geometry

from nfc_splat.errors import UserError
from nfc_splat.fields import dvgo, neus, shape_from_density
from nfc_splat.fields.neus import Recipe
from nfc_splat.fields.neus_config import preset
from nfc_splat.fields.neus_region import Region, choose_region
from nfc_splat.fields.sdf_network import HashFeatures, SDFNetwork
from nfc_splat.fields.shape_from_density import FIT_STEPS, LATTICE, density_model, find_matter, fit
from nfc_splat.rendering.hash_encoding import HashLevels
from nfc_splat.rendering.level_set import LevelSet
from nfc_splat.train import train
from nfc_splat.training.checkpoint import checkpoint_files, read_checkpoint
from nfc_splat.training.config import CheckpointConfig, default_config, resolve
from nfc_splat.training.load import load_run

pytestmark = pytest.mark.slow

CENTER = torch.tensor([3.0, -1.0, 0.5])
RADIUS = 2.0
CELL = 2 / LATTICE


def region():
    return Region(CENTER, RADIUS, False, small())


def surface(opaque):
    """A field that is opaque where `opaque` is true of local points."""

    def values(points):
        return opaque((points - CENTER) / RADIUS).float()

    return LevelSet(values, 0.5, torch.stack([CENTER - RADIUS, CENTER + RADIUS]))


def shell(points, opening=0.0):
    """A sphere's shell between 0.5 and 0.6 with a round opening on top."""
    length = points.norm(dim=-1)
    closed = points[:, :2].norm(dim=-1) > opening
    return (length > 0.5) & (length < 0.6) & (closed | (points[:, 2] < 0))


def middles():
    axis = (torch.arange(LATTICE) + 0.5) * CELL - 1
    return torch.cartesian_prod(axis, axis, axis).view(LATTICE, LATTICE, LATTICE, 3)


def cameras_at(distance, count=30):
    """All around the region's middle, `distance` local units away and looking at it."""
    return cameras_around(count, RADIUS * distance, CENTER.tolist())


def test_what_no_camera_looks_through_is_matter():
    """A closed shell is solid, an open one is not where cameras look in; what is in front of either is empty."""
    length, across = middles().norm(dim=-1), middles()[..., :2].norm(dim=-1)
    closed, open_ = (
        find_matter(surface(lambda points, o=opening: shell(points, o)), region(), cameras_at(3))
        for opening in (0, 0.4)
    )
    assert closed[length < 0.6].all()
    assert closed[length > 0.6 + 3 * CELL].float().mean() < 1e-3
    assert open_[(across < 0.2) & (length < 0.3)].float().mean() < 0.05
    assert open_[(length > 0.5) & (length < 0.6) & (middles()[..., 2] < 0)].all()
    assert open_.sum() < 0.7 * closed.sum()


def test_a_hole_that_one_camera_sees_through_is_not_believed():
    """A straight bore, as noise makes them, leaves a shell solid."""
    middle, first = middles(), cameras_at(3)
    towards = torch.nn.functional.normalize(torch.linalg.inv(first.viewmats[7])[:3, 3] - CENTER, dim=0)

    def bored(points):
        along = points @ towards
        return shell(points) & (((points - along[:, None] * towards).norm(dim=1) > 2 * CELL) | (along < 0))

    matter = find_matter(surface(bored), region(), first)
    assert matter[middle.norm(dim=-1) < 0.5].all()


def test_one_camera_is_enough_where_there_is_no_other():
    camera = cameras_at(3)[0]
    matter = find_matter(surface(shell), region(), camera)
    towards = torch.nn.functional.normalize(torch.linalg.inv(camera.viewmats[0])[:3, 3] - CENTER, dim=0)
    along = middles() @ towards
    beside = (middles() - along[..., None] * towards).norm(dim=-1)
    assert not matter[(beside < 0.2) & (along > 0.7) & (along < 0.95)].any()
    assert matter[(beside < 0.2) & (along < 0.5)].all()


def test_distances_are_fitted_to_matter(monkeypatch):
    """A bowl: half a shell."""
    monkeypatch.setattr(shape_from_density, "FIT_STEPS", FIT_STEPS)
    levels = HashLevels.between(6, 2, 14, 8, 64)
    network = SDFNetwork(HashFeatures(levels, levels.table()), width=32, depth=1, features=0, skip=None, bias=0.6)
    points = middles()

    def bowl(points):
        length = points.norm(dim=-1)
        return (length > 0.4) & (length < 0.6) & (points[..., 2] < 0)

    fit(network, bowl(points))
    asked = torch.rand(20_000, 3) * 1.8 - 0.9
    distance, _, gradient = network(asked)
    truth = bowl(asked)
    assert ((distance < 0) == truth).float().mean() > 0.98
    middle = torch.tensor([[0.0, 0.0, -0.5], [0.5, 0.0, -0.05], [0.0, 0.0, -0.2], [0.0, 0.0, -0.75]])
    assert network.distance(middle).tolist() == pytest.approx([-0.1, -0.05, 0.2, 0.15], abs=0.04)
    assert gradient.norm(dim=1).median().item() == pytest.approx(1, abs=0.1)


DENSITY_CONFIG = shape_from_density.density_config
STAGE = SMALL | {"steps": 220, "shape_steps": 200, "depth": 1, "decay_steps": 30, "target_encoding": "auto"}


def configured(scene, out, **changes):
    config = default_config(scene, method="neus", preset="quick", device="cpu")
    config = replace(config, out=out, threads=1, quiet=True, log_every=1, loss="classification")
    return resolve(replace(config, model=replace(config.model, **STAGE), **changes))


@pytest.fixture(scope="module", autouse=True)
def _toy():
    """Voxels that are trained in seconds, and distances that are fitted to them in a second."""

    def density_config(config):
        return toy_config(
            bounded="yes", steps=config.shape_steps, coarse_steps=100, lr_density=1.0, tv_dense_until=100,
            target_encoding=config.target_encoding,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        for module in (neus, shape_from_density):
            patch.setattr(module, "density_config", density_config)
        patch.setattr(shape_from_density, "FIT_STEPS", 150)
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_ball(tmp_path_factory.mktemp("data") / "ball")


@pytest.fixture(scope="module")
def whole_run(scene, tmp_path_factory):
    """A finished run of both stages with all its checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(configured(scene, out, checkpoints=CheckpointConfig(save_steps=10, save_minutes=0, keep=99))) == 0
    return out


def checkpoint_at(run, step):
    return checkpoint_files(run / "checkpoints")[step]


def test_the_first_stage_finds_the_ball_and_leaves_nothing_behind(whole_run):
    """200 steps of dvgo, 100 of them coarse; the surface starts near the ball's and not as it was initialised."""
    log = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert ["voxels" in record for record in log[:201]] == [True] * 200 + [False]
    assert log[200]["s"] == pytest.approx(math.exp(5), rel=1e-3)
    coarse, fine, surface = (load_run(checkpoint_at(whole_run, step)).model for step in (80, 180, 200))
    assert coarse.shape.coarse
    assert not fine.shape.coarse
    assert surface.shape is None
    assert not any(name.startswith("shape.") for name in surface.state_dict())
    kept = {step: read_checkpoint(checkpoint_at(whole_run, step)).tensors for step in (180, 200)}
    assert ["recipe/first.candidates" in kept[step] for step in (180, 200)] == [True, False]
    towards = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    away = surface.distance(towards * BALL).abs()
    assert away.median() < 0.2 * BALL
    assert surface.distance(torch.zeros(1, 3)) < -0.5 * BALL
    untrained = neus.Model(surface.config, surface.region, "none")
    assert untrained.distance(towards * BALL).abs().median() > 2 * away.median()


# At the end of the coarse stage, in the fine one, and at the end of the density field.
@pytest.mark.parametrize("step", [100, 140, 200])
def test_a_resumed_run_ends_with_the_same_bits(scene, whole_run, tmp_path, step):
    saving = CheckpointConfig(save_steps=0, save_minutes=0, keep=1)
    resumed = configured(scene, tmp_path / "rest", checkpoints=saving, resume=str(checkpoint_at(whole_run, step)))
    assert train(resumed) == 0
    assert_same(newest(whole_run), newest(resumed.out))


def test_what_the_first_stage_draws_is_the_density_fields(whole_run):
    run = load_run(checkpoint_at(whole_run, 180))
    cameras, white = run.scene.splits["test"].cameras[0], torch.ones(3)
    with torch.no_grad():
        drawn, expected = (model.render(cameras, background=white) for model in (run.model, run.model.shape))
    assert torch.equal(drawn.color, expected.color)
    assert run.model.level_set().level == run.model.shape.level_set().level
    run.model.draw_normals = run.model.draw_bits = True
    seen = run.model.render(cameras, background=white)
    assert seen.normal is not None
    assert seen.bits.shape[-1] == 8


def test_voxels_are_those_of_the_quick_preset():
    """Apart from this module's toy: the coarse stage is dvgo quick's 400 steps, or half of a shorter first stage."""
    found = DENSITY_CONFIG(preset("quick", target_encoding="binary"))
    assert (found.steps, found.coarse_steps, found.target_encoding, found.bounded) == (3000, 400, "binary", "yes")
    assert found.coarse_voxels == dvgo.preset("quick").coarse_voxels
    assert DENSITY_CONFIG(preset("quick", shape_steps=100)).coarse_steps == 50


def test_a_first_stage_that_finds_nothing_leaves_a_ball_and_the_run_resumes(scene, tmp_path, monkeypatch, caplog):
    """At the end of the coarse stage, step 100, of 200; the surface takes the steps that are left."""
    monkeypatch.setattr(dvgo, "OCCUPIED", 1.1)
    saving = CheckpointConfig(save_steps=10, save_minutes=0, keep=99)
    whole = configured(scene, tmp_path / "whole", checkpoints=saving)
    whole = replace(whole, model=replace(whole.model, steps=210))
    train(whole)
    assert "step 100: the first stage ends early, the surface starts as a ball: the coarse stage found" in caplog.text
    log = [json.loads(line) for line in (whole.out / "metrics.jsonl").read_text().splitlines()]
    assert ["s" in record for record in log] == [False] * 100 + [True] * 110
    assert int(load_run(whole.out).model.steps_done) == 110
    for step in (90, 100, 150):
        rest = replace(whole, out=tmp_path / f"from{step}", resume=str(checkpoint_at(whole.out, step)))
        train(rest)
        assert_same(newest(whole.out), newest(rest.out))


def test_rooms_scenes_with_surroundings_and_short_runs(scene):
    """The first stage is for objects with nothing behind them, and leaves the surface some steps."""
    config = small("quick", depth=1, steps=160, shape_steps=150)
    assert build(config).shape is not None
    assert Recipe(config, geometry()).first_steps == 150
    behind = replace(config, surroundings="contracted")
    assert build(behind).shape is None
    assert build(replace(config, orientation="inside_out")).shape is None
    assert Recipe(behind, geometry()).sampling(1).kind == "shuffled_rays"
    assert [preset("quick", steps=steps).shape_steps for steps in (1, 2, 100)] == [0, 1, 40]
    with pytest.raises(UserError, match="--shape-steps 160: expected less than --steps 160"):
        replace(config, shape_steps=160)


def test_the_first_stage_looks_where_the_scene_is():
    """The region is a cube; around something flat it would be mostly empty."""
    flat = torch.tensor([[-1.0, -1, -0.25], [1, 1, 0.25]])
    room = geometry(points=flat, colors=torch.zeros(2, 3))
    config = small("quick", depth=1, steps=300, shape_steps=200)
    where = choose_region(config, room)
    low, high = density_model(config, room, where).level_set().bounds
    assert (where.bounds[1] - where.bounds[0]).unique().numel() == 1
    assert torch.allclose((high - low) / (high - low).max(), torch.tensor([1, 1, 0.25]), atol=0.05)
    assert (low <= flat[0]).all()
    assert (high >= flat[1]).all()


def test_matter_everywhere_or_nowhere_is_said(caplog):
    in_view = geometry(bounds=torch.tensor([[-0.3] * 3, [0.3] * 3]))
    for share, what in ((0.0, "nothing"), (1.0, "no empty space")):
        model = build(small("quick", depth=1), bounds=in_view.bounds)
        values = LevelSet(lambda points, share=share: torch.full((len(points),), share), 0.5, model.region.bounds)
        model.shape = SimpleNamespace(level_set=lambda values=values: values)
        model.begin_surface(in_view)
        assert model.shape is None
        assert f"has found {what}; the surface starts as a ball" in caplog.text
