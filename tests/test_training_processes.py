"""Several processes, started by torchrun as a user would, on gloo: marched fields learn what one process learns,
Gaussians from the mean of the processes' images; they stop, save and fail together."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import dvgo_toys
import moving_toys
import ngp_scenes
import pytest
import strivec_toys
import torch
import training_toy
from eval_toys import cameras
from interrupted_runs import newest
from neus_toys import SMALL
from test_fields_dnerf_training import KINDS
from test_training_rays import WHITE, Views

from nfc_splat.errors import UserError
from nfc_splat.fields.gaussians import Recipe as GaussianRecipe
from nfc_splat.fields.recipe import Sampling, SceneGeometry
from nfc_splat.losses import mse
from nfc_splat.rendering.sharing import WHOLE, ProcessLost, part_of_sum, rand, randn, sharing, total
from nfc_splat.train import main
from nfc_splat.training import processes
from nfc_splat.training.batches import Batches
from nfc_splat.training.config import default_config
from nfc_splat.training.processes import ALONE, Apart, FailedElsewhere, Group, joined
from nfc_splat.training.run import RunSource
from nfc_splat.training.sampling import Sampler
from nfc_splat.training.saving import Saver
from nfc_splat.training.signals import Signals

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
STEPS = 100  # of the run that is stopped
PATIENCE = 300  # seconds until a child that does not answer is given up
# Sums in another order differ by some 1e-7 of the largest number in them (Gaussians' by 1e-5: they add up more), and a
# few steps multiply that by a hundred. A term that counts twice, or a neighbour's random numbers, show much more.
CLOSE, CLOSE_GAUSSIANS = 1e-4, 1e-3
# Of ngp's table a sample that changes its cell moves some entries further: this share of them, by this at most.
STRAY = {"ngp": 0.01}

NERF = {"width": 32, "depth": 3, "coarse_samples": 16, "fine_samples": 16, "bf16": False}
NEUS = {name: value for name, value in SMALL.items() if name != "steps"}
DVGO = {"voxels": 20**3, "base_voxels": 20**3, "color_channels": 3, "width": 8, "growths": 1, "grow_every": 2}
# Rays that two processes cannot halve, everything random that a method has, stages, growing, pruning, regularisers.
RUNS = {
    "ngp": ("ball", {"loss": "classification", "steps": 5, "max_rays": 301, "log2_table_size": 12, "update_every": 2}),
    "nerf": ("opaque", {**NERF, "steps": 3, "rays": 63, "networks": 2, "batching": "all", "density_noise": 0.1}),
    "dvgo": ("spiral", {**DVGO, "steps": 45, "coarse_steps": 40, "rays": 255, "coarse_voxels": 18**3}),
    "dvgo-unbounded": ("opaque", {**DVGO, "steps": 4, "bounded": "no", "rays": 255, "nearclip": 0.01}),
    "dnerf": ("moving", {**KINDS["networks"], "loss": "classification", "steps": 4, "rays": 63, "time_steps": 3}),
    "dnerf-hash": ("moving", {**KINDS["hash"], "steps": 5, "rays": 301, "time_steps": 4, "update_every": 2}),
    "strivec": ("spiral", {**strivec_toys.SMALL, "steps": 50, "coarse_steps": 42, "coarse_rays": 255, "rays": 255}),
    "neus": ("ball", {**NEUS, "loss": "bitwise", "target_encoding": "auto", "steps": 4, "eikonal_points": 32}),
    "3dgs": ("ball", {"steps": 8, "init_points": 200, "refine_start": 2, "refine_every": 3, "grow_grad2d": 1e-5}),
}
RUNS["dvgo"][1].update(mask_every=2, lr_density=1.0, lr_decay_steps=160, tv_dense_until=3)
RUNS["dvgo-unbounded"][1].update(mask_every=2, tv_dense_until=3)
# At displaced points ten octaves can make 1e-2 of a difference of 1e-7 in three steps, of one process too.
RUNS["dnerf"][1].update(octaves=3)
RUNS["strivec"][1].update(loss="classification", mask_at=(2, 5), grow_at=(4,), lr_lines=0.02)
RUNS["neus"][1].update(mask_weight=0.5)
RUNS["3dgs"][1].update(refine_stop=7, lr_quats=0)  # a ball has no direction: its gradient is rounding alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    ngp_scenes.write_ball(folder / "ball")
    ngp_scenes.write_ball(folder / "opaque", transparent=False)
    dvgo_toys.write_ball(folder / "spiral")
    moving_toys.write_moving_scene(folder / "moving")
    training_toy.write_scene(folder / "pictures")
    return folder


def command_line(folder: Path, name: str, out: str) -> list[str]:
    scene, settings = RUNS[name]
    words = [str(folder / scene), "--method", name.partition("-")[0], "--preset", "quick", "--device", "cpu"]
    words += ["--threads", "1", "--log-every", "1", "--out", str(folder / out / name)]
    for key, value in settings.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that gets SIGTERM: the step that it saved, and what it said."""
    words = [str(folder / "opaque"), "--method", "nerf", "--preset", "quick", "--device", "cpu", "--threads", "1"]
    words += ["--width", "32", "--depth", "3", "--coarse-samples", "16", "--fine-samples", "16", "--rays", "63"]
    words += ["--steps", str(STEPS), "--log-every", "1", "--curve-points", "2", "--out", str(folder / "stopped")]
    command, pipes = [*TORCHRUN, "-m", "nfc_splat.train", *words], {"stdout": subprocess.DEVNULL, "text": True}
    child = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, **pipes)
    try:
        deadline, log = time.monotonic() + PATIENCE, folder / "stopped" / "metrics.jsonl"
        while not (log.is_file() and '"step": 2' in log.read_text()):
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
    return newest(folder / "stopped").header.step, errors


@pytest.fixture(scope="module")
def together(folder, stopped):
    """All `RUNS` with two processes, and what was stopped to its end; at last a method that remembers what each process
    has drawn for itself."""
    lines = [command_line(folder, name, "two") for name in RUNS] + [["--resume", str(folder / "stopped")]]
    toy = [str(folder / "pictures"), "--method", "toy", "--device", "cpu", "--threads", "1"]
    lines.append([*toy, "--steps", "3", "--out", str(folder / "two" / "toy")])
    command = [*TORCHRUN, str(REPOSITORY / "tests" / "training_together.py"), json.dumps(lines)]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def alone(folder, together):
    """The same runs with one process, whose Gaussians see two images in a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GaussianRecipe, "sampling", lambda *_: Sampling(images=2))
        for name in RUNS:
            assert main([*command_line(folder, name, "one"), "--quiet"]) == 0


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_does(folder, together, alone, name):
    one, two = (newest(folder / out / name) for out in ("one", "two"))
    close = CLOSE_GAUSSIANS if name == "3dgs" else CLOSE
    assert one.header.step == two.header.step == RUNS[name][1]["steps"], together.stderr
    assert one.tensors.keys() == two.tensors.keys()
    for key, value in one.tensors.items():
        other = two.tensors[key]
        assert value.shape == other.shape, key
        if not value.is_floating_point():
            assert torch.equal(value, other), key
        elif value.numel():
            apart = (value - other).abs() / value.abs().max().clamp(min=1e-30)
            assert float((apart > close).float().mean()) <= STRAY.get(name, 0), key
            assert float(apart.max()) <= max(close, STRAY.get(name, 0)), key
    assert two.header.losses == pytest.approx(one.header.losses, rel=close)


@pytest.mark.parametrize("name", RUNS)
def test_the_log_speaks_of_the_whole_batch(folder, together, alone, name):
    one, two = (
        [json.loads(line) for line in (folder / out / name / "metrics.jsonl").read_text().splitlines()]
        for out in ("one", "two")
    )
    assert len(one) == len(two) == RUNS[name][1]["steps"]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"seconds", "losses"}:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3), key


def test_gaussians_were_added(folder, together):
    """Else the runs would say nothing of the statistics of several processes."""
    log = [json.loads(line) for line in (folder / "two/3dgs/metrics.jsonl").read_text().splitlines()]
    assert log[-1]["primitives"] > log[0]["primitives"]


def test_the_first_process_alone_speaks_and_writes(folder, together):
    assert together.stdout.count("2 processes share the rays of a step") == len(RUNS)
    assert together.stdout.count("2 processes draw images of their own: a step sees 2") == 2
    for name in RUNS:
        assert together.stdout.count(f"written  {folder / 'two' / name}\n") == 1
        assert (folder / "two" / name / "eval" / "summary.json").is_file()
        assert json.loads((folder / "two" / name / "config.json").read_text())["processes"] == 2


def test_models_that_have_come_apart_end_the_run_with_one_message(folder, together):
    assert together.returncode != 0
    errors = [line for line in together.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "step 3: the processes do not hold the same model any more" in errors[0]
    assert newest(folder / "two" / "toy").header.step == 0


def test_a_signal_saves_and_resume_goes_on(folder, stopped, together):
    """torchrun hands SIGTERM on, all stop after the same step, which is saved."""
    step, errors = stopped
    assert 2 <= step < STEPS
    assert errors.count(f"stopped at step {step}, which is saved") == 1
    assert f"resumed at step {step} of {STEPS}" in together.stdout
    assert newest(folder / "stopped").header.step == STEPS
    records = [json.loads(line) for line in (folder / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))
    assert sum("test_psnr" in record for record in records) == 2  # by the first alone, while the other waits


# ---- what belongs to whom


@pytest.mark.parametrize(("count", "size"), [(255, 2), (7, 3), (3, 3), (2, 3), (1, 4)])
def test_shares_cover_the_batch(count, size):
    shares = [Group(rank, size).rays(count) for rank in range(size)]
    assert sum(share.weight for share in shares) == pytest.approx(1)
    rows = [row for share in shares for row in range(count)[share.chosen]]
    values = torch.rand(count)
    mean = sum(share.weight * float(values[share.chosen].mean()) for share in shares)
    assert mean == pytest.approx(float(values.mean()))
    assert rows == list(range(count)) * (1 if count >= size else size)


@pytest.mark.parametrize("draw", [rand, randn])
@pytest.mark.parametrize(("count", "each"), [(5, 1), (7, 16), (1, 3)])
def test_random_numbers_are_those_of_one_process(draw, count, each):
    like = torch.zeros(1)
    torch.manual_seed(3)
    whole, after = draw(count * each, 4, like=like), torch.rand(1)
    for rank in range(2):
        share = Group(rank, 2).rays(count)
        torch.manual_seed(3)
        with sharing(share):
            own = draw((share.stop - share.first) * each, 4, like=like)
        assert torch.equal(own, whole.view(count, each, 4)[share.chosen].reshape(-1, 4))
        assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("count", [1, 5])
def test_sums_over_rays_count_once(count):
    values, added = torch.rand(count), 0.0
    for rank in range(2):
        share = Group(rank, 2).rays(count)
        with sharing(share):
            added += share.of_rays({"sum": part_of_sum(values[share.chosen].sum())})["sum"]
    assert float(added) == pytest.approx(float(values.sum()))


def test_masked_pixels_and_backgrounds_are_shared():
    """Weights of the pixels, which differ, and a colour for every ray."""

    class Soft(Views):
        def mask(self, index):
            return torch.rand(
                self.cameras.sizes[index].flip(0).tolist(), generator=torch.Generator().manual_seed(index)
            )

    sampling = Sampling("random_rays", rays=31, background="random")
    draw = lambda group: Batches(Soft(masks=True), WHITE, "cpu", group).draw(sampling, Sampler(3, seed=5))  # noqa: E731
    whole, parts = draw(ALONE), [draw(Group(rank, 2)) for rank in range(2)]
    for name in ("pixels", "target", "mask", "background"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    loss = lambda batch: mse(torch.zeros_like(batch.target), batch.target, mask=batch.mask)  # noqa: E731
    added = sum(part.share.of_pixels({"loss": loss(part)})["loss"] for part in parts)
    assert float(added) == pytest.approx(float(loss(whole)))
    assert parts[0].share.counted != pytest.approx(parts[0].share.weight)


def test_one_process_asks_nobody():
    assert ALONE.rays(7) is ALONE.images(2) is WHOLE
    value = torch.rand(3, requires_grad=True)
    assert part_of_sum(value) is value
    assert total(12) == 12
    assert ALONE.most(3, True) == (3, 1)
    terms = {"loss": value}
    assert WHOLE.of_rays(terms)["loss"] is WHOLE.of_pixels(terms)["loss"] is value
    assert not torch.distributed.is_initialized()


# ---- joining and failing


STARTED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
STARTED |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def announce(monkeypatch):
    def announce(**variables):
        for name in STARTED:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return announce


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            r"\(WORLD_SIZE\), but RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not",
        ),
        ({k: v for k, v in STARTED.items() if k != "MASTER_PORT"}, "but MASTER_PORT is not set: start with torchrun"),
        (STARTED | {"RANK": "2"}, "RANK=2, WORLD_SIZE=2, .*: expected ranks below their sizes"),
        (STARTED | {"LOCAL_WORLD_SIZE": "3"}, "WORLD_SIZE of at least LOCAL_WORLD_SIZE"),
        (STARTED | {"WORLD_SIZE": "two"}, "WORLD_SIZE='two': expected a whole number"),
    ],
)
def test_half_an_environment_is_refused(announce, folder, capsys, variables, message):
    announce(**variables)
    with pytest.raises(UserError, match=message):
        main([str(folder / "ball")])


def test_without_torchrun_or_with_one_process_there_is_no_group(announce):
    announce(MASTER_ADDR="localhost", MASTER_PORT="29500")
    with joined() as group:
        assert group is ALONE
    announce(**STARTED | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    with joined() as group:
        assert group is ALONE


def test_processes_on_a_host_divide_its_cores(announce, monkeypatch):
    monkeypatch.setattr(processes, "available_cores", lambda: 5)
    announce()
    assert processes.cores_of_process() == 5
    announce(**STARTED)
    assert processes.cores_of_process() == 2


def test_more_processes_than_cards_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 processes on this host and 1 CUDA cards: .*start at most 1"):
        Group(1, 2, 1, 2).use("cuda")
    Group(1, 2, 1, 2).use("cpu")


class Among(Group):
    """One of two processes, whose other one always answers 0."""

    def most(self, *values):
        return tuple(max(int(value), 0) for value in values)


@pytest.mark.parametrize(("method", "most"), [("3dgs", "5 processes with images"), ("nerf", "3 processes with rays")])
def test_more_processes_than_a_step_has_work_for_are_refused(folder, tmp_path, method, most):
    from nfc_splat.train import train
    from nfc_splat.training.config import default_config, resolve

    config = resolve(default_config(folder / "ball", method=method, preset="quick", device="cpu"))
    if method == "nerf":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, rays=3))
    config = dataclasses.replace(config, out=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=f"WORLD_SIZE=6: a step has work for {most}"):
        train(config, Among(0, 6, 0, 6))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "size", "before", "said"),
    [
        ("nerf", 1, 2, []),
        ("nerf", 2, 1, ["shared: 2 processes share the rays"]),
        ("3dgs", 1, 2, ["until here a step of this run saw 2 images, from here on 1: "]),
        ("3dgs", 2, 1, ["shared: 2 processes draw images of their own", "saw 1 images, from here on 2: "]),
        ("3dgs", 2, 2, ["shared: 2 processes draw images of their own"]),
    ],
)
def test_what_is_said_of_a_run_that_had_other_processes(tmp_path, monkeypatch, caplog, method, size, before, said):
    from nfc_splat.train import _introduce_processes

    config = default_config(tmp_path, method=method, preset="quick", device="cpu")
    geometry = SceneGeometry(cameras(5), None, None)
    monkeypatch.setattr("nfc_splat.training.run.processes_of", lambda folder: before)
    with caplog.at_level("INFO", logger="nfc_splat.train"):
        _introduce_processes(config, geometry, RunSource(tmp_path, None), Group(0, size, 0, size))
    assert len(caplog.messages) == len(said)
    for message, part in zip(caplog.messages, said, strict=True):
        assert part in message


def test_training_does_not_go_on_without_a_process_that_has_ended(tmp_path, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr("torch.distributed.all_reduce", broken)
    with pytest.raises(ProcessLost, match="another process has ended"):
        Group(0, 2).most(1)
    saver = Saver(None, None, None, "", -1, Group(0, 2))
    state = SimpleNamespace(step=7)
    monkeypatch.setattr(saver, "save", lambda _: Group(0, 2).most(0))
    with pytest.raises(ProcessLost):
        saver.after_step(state, due=True)

    def full(_):
        raise UserError("disk full")

    monkeypatch.setattr(saver, "save", full)
    saver.after_step(state, due=True)
    assert caplog.messages == ["training goes on without a checkpoint at step 7: disk full"]


def test_a_failure_is_told_by_one_and_ends_all():
    class Failing(Group):
        """Beside a second process that fails with exit code 3."""

        def most(self, *values):
            return tuple(max(int(value), 256 + 3) for value in values)

    with pytest.raises(FailedElsewhere) as caught, Failing(0, 2).together():
        pass
    assert caught.value.exit_code == 3
    with pytest.raises(UserError, match="mine"), Failing(0, 2).together():
        raise UserError("mine")
    with Among(1, 2).together():
        pass


def test_nobody_leaves_before_the_error_is_told(announce, monkeypatch, capsys):
    """torchrun ends the others as soon as one has left, printed or not."""
    announce(**STARTED)
    store, seen = torch.distributed.HashStore(), []
    monkeypatch.setattr("torch.distributed.rendezvous", lambda _: iter([(store, 1, 2)]))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)

    def another() -> None:
        with pytest.raises(FailedElsewhere), joined():
            raise FailedElsewhere(2)
        seen.append(capsys.readouterr().err)

    thread = threading.Thread(target=another)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    with pytest.raises(FailedElsewhere), joined():
        raise UserError("--bogus: unknown flag")
    thread.join(PATIENCE)
    assert seen == ["error: --bogus: unknown flag\n"]


def test_what_is_wrong_is_told_by_one_process_before_all_end(folder):
    command = [*TORCHRUN, "-m", "nfc_splat.train", str(folder / "opaque"), "--bogus"]
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("error: --bogus: unknown flag") == 1
    assert "nfc_splat/train.py" not in done.stderr  # torchrun alone has a traceback


def test_tensors_are_compared_by_their_bits():
    class Other(Group):
        """Beside a second process that holds a one and a zero."""

        def most(self, *values):
            mine = [int(value) for value in values]
            if not hasattr(Other, "answer"):
                Other.answer = mine
            return tuple(map(max, zip(mine, Other.answer, strict=True)))

    Other(0, 2).require_same({"a": torch.tensor([1.0, 0.0])}, 4)
    Other(0, 2).require_same({"a": torch.tensor([1.0, 0.0])}, 4)
    with pytest.raises(Apart, match="step 4"):
        Other(0, 2).require_same({"a": torch.tensor([1.0, 1e-30])}, 4)
    with pytest.raises(Apart):
        Other(0, 2).require_same({"a": torch.tensor([0.0, 1.0])}, 4)
    with pytest.raises(Apart):
        Other(0, 2).require_same({"a": torch.tensor([1.0])}, 4)


def test_a_second_signal_waits_with_several_processes():
    with Signals(patient=True) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop == signal.SIGTERM
