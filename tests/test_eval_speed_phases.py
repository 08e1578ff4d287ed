"""`eval speed --fields`: the steps are the trainer's own, the phases are those that ran, and they add up."""

import json
import time
from dataclasses import replace

import dvgo_toys
import ngp_scenes
import numpy as np
import pytest
import torch
from torch.autograd import Function

from nfc_splat.data import load_scene
from nfc_splat.errors import UserError
from nfc_splat.eval import speed, speed_phases
from nfc_splat.eval.cost import make_trainer
from nfc_splat.eval.speed_phases import BACKWARD, PARTS, PHASES, UNKNOWN, Probe, Stopwatch, time_parts, write_ball
from nfc_splat.fields import nerf, ngp
from nfc_splat.training.config import default_config, resolve
from nfc_splat.training.load import load_training_scene

MODELS = {
    "dvgo": dvgo_toys.toy_config(coarse_steps=0, alpha_init=0.01, growths=1, grow_every=4, mask_every=5),
    "ngp": replace(
        ngp.preset("quick"), levels=4, log2_table_size=10, finest_resolution=32, width=16, grid=16, march_steps=32,
        samples=1024, max_rays=256, update_every=4, warmup=8,
    ),
    "nerf": nerf.preset("quick", width=16, depth=3, coarse_samples=8, fine_samples=8, rays=64),
}  # fmt: skip
EVERYWHERE = {"batch", "sample", "network", "composite", "loss", "check", "optimiser", "after step", UNKNOWN}
EVERYWHERE |= {"after backward"} | {BACKWARD[name] for name in ("network", "composite", "loss", UNKNOWN)}
GRIDS = {"interpolate", BACKWARD["interpolate"]}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return ngp_scenes.write_ball(tmp_path_factory.mktemp("scene") / "ball", size=16)


@pytest.fixture
def make(scene):
    def build(method, **changes):
        config = default_config(scene, method=method, preset="quick", device="cpu")
        model = replace(MODELS[method], **changes)
        config = resolve(replace(config, model=model, threads=1, quiet=True, log_every=10**9))
        return make_trainer(config, load_training_scene(config))

    return build


@pytest.mark.parametrize("method", list(PARTS))
def test_every_phase_is_seen_and_they_add_up_to_the_step(make, method):
    trainer, probe = make(method), Probe(method, time.perf_counter)
    for _ in range(2):
        started = time.perf_counter()
        seconds = probe.step(trainer)
        wall = time.perf_counter() - started
    expected = EVERYWHERE | (GRIDS if method != "nerf" else set())
    assert expected <= set(seconds) <= set(PHASES)
    assert all(seconds[phase] > 0 for phase in expected)
    assert 0 < sum(seconds.values()) < wall


def test_the_coarse_stage_has_no_network_but_a_colour_head(make):
    seconds = Probe("dvgo", time.perf_counter).step(make("dvgo", coarse_steps=60))
    assert GRIDS <= set(seconds)
    assert seconds["network"] < seconds["sample"] + seconds["interpolate"]


@pytest.mark.parametrize("method", list(PARTS))
def test_watching_changes_nothing(make, method):
    watched, plain = make(method), make(method)
    probe = Probe(method, time.perf_counter)
    torch.manual_seed(5)
    for _ in range(12):
        probe.step(watched)
    torch.manual_seed(5)
    for _ in range(12):
        plain.step()
    assert watched.state.step == plain.state.step == 12
    ours, theirs = watched.state.model.state_dict(), plain.state.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_everything_is_as_before_once_the_step_is_over(make):
    from nfc_splat.fields import dvgo, dvgo_space, voxel_grid

    places = [(dvgo, "composite"), (voxel_grid.VoxelGrid, "forward"), (dvgo_space.Contracted, "to_grid")]
    places += [(dvgo.Model, "color"), (torch.Tensor, "backward")]
    before = [vars(owner)[name] for owner, name in places]
    trainer = make("dvgo")
    owners = [trainer, trainer.batches, trainer.state.recipe, trainer.state.model]
    own = [set(vars(owner)) for owner in owners]
    trainer.step()
    own[1] = set(vars(trainer.batches))  # it keeps what it has looked up
    Probe("dvgo", time.perf_counter).step(trainer)
    assert [vars(owner)[name] for owner, name in places] == before
    assert [set(vars(owner)) for owner in owners] == own


def test_a_step_that_fails_leaves_nothing_behind(make, monkeypatch):
    trainer = make("ngp")

    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(ngp, "hash_encode", fail)
    with pytest.raises(RuntimeError, match="no"):
        Probe("ngp", time.perf_counter).step(trainer)
    assert ngp.hash_encode is fail
    assert not {"render", "losses", "draw"} & {*vars(trainer), *vars(trainer.state.model), *vars(trainer.batches)}


class Clock:
    """A clock that stands still but for `spend`."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


def test_a_stopwatch_runs_for_one_phase_at_a_time():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.spend(1)
    assert watch.switch("a") == UNKNOWN
    clock.spend(2)
    assert watch.switch("b") == "a"
    clock.spend(4)
    watch.resume("a")  # the four do not count
    clock.spend(8)
    watch.switch(UNKNOWN)
    assert watch.seconds == {UNKNOWN: 1, "a": 10}


def test_time_goes_to_the_innermost_phase_forward_and_backward():
    """A step whose parts take known times, on a clock that only they move."""
    clock = Clock()

    def costly(forward, backward):
        class Costly(Function):
            @staticmethod
            def forward(ctx, x):
                clock.spend(forward)
                return 2 * x

            @staticmethod
            def backward(ctx, v_x):
                clock.spend(backward)
                return 2 * v_x

        return Costly.apply

    leaf = torch.ones((), requires_grad=True)
    probe = Probe("dvgo", clock)
    grid = probe.timed("interpolate", part=True)(costly(1, 10))

    def composite(x):
        x = costly(2, 20)(x)
        x = grid(x)
        return costly(4, 40)(x)

    render = probe._drawn(lambda x: probe.timed("composite", part=True)(composite)(costly(8, 80)(x)))
    backward = probe._backward(torch.Tensor.backward)
    probe.watch.start()
    probe._enter(UNKNOWN)
    total = render(leaf)
    total = probe.timed("loss")(costly(100, 1000))(total)
    backward(costly(200, 2000)(total))
    grid(leaf.detach())  # not while the model draws
    probe.watch.switch(UNKNOWN)
    seconds = {phase: value for phase, value in probe.watch.seconds.items() if value}
    assert seconds == {
        "sample": 8, "composite": 6, "interpolate": 1, "loss": 100, UNKNOWN: 200 + 1,
        "backward: sample": 80, "backward: composite": 60, "backward: interpolate": 10, "backward: loss": 1000,
        "backward: rest": 2000,
    }  # fmt: skip
    assert leaf.grad == 2**6


def test_parts_are_early_and_late_and_their_shares_add_up(make):
    trainer = make("dvgo", coarse_steps=60, alpha_init=None)
    early, late = time_parts(trainer, 3, 70)
    assert (early.first, early.last) == (6, 11)
    assert (late.first, late.last) == (71, 76)
    assert trainer.state.step == 76
    for part in (early, late):
        assert [row.phase for row in part.rows] == list(PHASES)
        assert sum(row.share for row in part.rows) == pytest.approx(1)
        assert min(part.step_ms, part.unwatched_ms) > 0
    assert early.figures["voxels"] == 18**3
    assert late.figures["voxels"] == 20**3


def test_the_command_prints_tables_and_writes_a_record(scene, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("nfc_splat.fields.dvgo.preset", lambda name, **_: MODELS["dvgo"])
    monkeypatch.setattr("nfc_splat.fields.ngp.preset", lambda name, **_: MODELS["ngp"])
    monkeypatch.setattr(speed_phases, "LATE", dict.fromkeys(PARTS, 14))
    record = tmp_path / "phases.json"
    words = ["--fields", "dvgo", "ngp", "--scene", str(scene), "--steps", "2", "--threads", "1"]
    assert speed.main([*words, "--record", str(record)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("quick preset") == 2
    assert printed.count("steps 6-9") == printed.count("steps 15-18") == 2
    for phase in (*EVERYWHERE, *GRIDS, "step, unwatched"):
        assert printed.count(f"  {phase} ") == 2, phase
    written = json.loads(record.read_text())
    assert (written["steps"], written["threads"], written["device"], written["scene"]) == (2, 1, "cpu", str(scene))
    assert {"hardware", "versions"} <= written.keys()
    assert [entry["method"] for entry in written["methods"]] == ["dvgo", "ngp"]
    for entry in written["methods"]:
        for part in entry["parts"]:
            assert sum(row["share"] for row in part["rows"]) == pytest.approx(1)


def test_the_built_in_scene_is_a_painted_ball(tmp_path):
    loaded = load_scene(write_ball(tmp_path / "ball", views=6, side=20), undistort=True)
    views = loaded.splits["train"]
    assert loaded.has_alpha
    assert (views.cameras.width, views.cameras.height) == (20, 20)
    assert np.allclose(views.cameras.centers.norm(dim=-1), speed_phases.DISTANCE)
    middle = torch.tensor([[camera, 10, 10] for camera in range(len(views))])
    rays = views.cameras.rays(middle)
    directions = torch.nn.functional.normalize(rays.directions, dim=-1)
    along = -(rays.origins * directions).sum(-1)
    points = rays.origins + directions * (along - (1 - (speed_phases.DISTANCE**2 - along**2)).sqrt())[:, None]
    expected = 0.5 + 0.4 * torch.sin(points @ torch.tensor([[7.0, 1, 2], [1, 6, -3], [-2, 3, 8]]))
    seen = torch.stack([views.target(index, torch.ones(3))[10, 10] for index in range(len(views))])
    torch.testing.assert_close(seen, expected, atol=0.01, rtol=0)


def test_a_scene_is_for_fields(tmp_path):
    with pytest.raises(UserError, match="it belongs to --fields"):
        speed.main(["--scene", str(tmp_path)])
    with pytest.raises(UserError, match="neus"):
        speed.main(["--fields", "neus"])
