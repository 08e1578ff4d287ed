"""`python -m nfc_splat.train` as a process: killed, interrupted, asked to save, started twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import training_toy
from interrupted_runs import newest

from nfc_splat.errors import UserError, run_command
from nfc_splat.fields import METHODS
from nfc_splat.train import _within_memory, main, train
from nfc_splat.training.checkpoint import checkpoint_files
from nfc_splat.training.command_line import parse_command_line

REPOSITORY = Path(__file__).resolve().parent.parent
TOY = [sys.executable, str(REPOSITORY / "tests" / "training_toy.py")]
REAL = [sys.executable, "-m", "nfc_splat.train"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
PATIENCE = 300  # seconds until a child that does not answer is given up


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return training_toy.write_scene(tmp_path_factory.mktemp("data") / "scene", size=24)


@pytest.fixture
def launch(scene, tmp_path):
    """Start the command in `tmp_path`; whatever still runs at the end of the test is killed."""
    children = []

    def start(*words, program=TOY, out="run"):
        method = ["--method", "toy"] if program is TOY else []
        command = [*program, str(scene), *method, "--device", "cpu", "--threads", "1", "--out", out, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        children.append(subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, **pipes))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def here(scene, tmp_path, monkeypatch):
    """Train to the end in this process, with the same flags."""
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)

    def run(*words, out):
        words = [str(scene), "--device", "cpu", "--threads", "1", "--quiet", "--out", str(tmp_path / out), *words]
        assert train(parse_command_line(words)) == 0

    return run


def finish(child) -> str:
    """Wait for success; returns what was printed."""
    out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, err
    return out


def wait_for_step(folder: Path, step: int, child) -> None:
    """Until the log shows `step`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if logged_step(folder) >= step:
            return
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def logged_step(folder: Path) -> int:
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return -1
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=-1)


def largest_difference(one, other) -> float:
    assert one.tensors.keys() == other.tensors.keys()
    assert all(value.shape == other.tensors[name].shape for name, value in one.tensors.items())
    pairs = [(value.double(), other.tensors[name].double()) for name, value in one.tensors.items()]
    return max(float((a - b).abs().max()) for a, b in pairs if a.numel())


SLOWLY = ("--steps", "60", "--pause", "0.02", "--save-steps", "9", "--log-every", "1")


@pytest.mark.slow
def test_killed_and_resumed_equals_straight(launch, here, tmp_path):
    here("--method", "toy", *SLOWLY, out="straight")
    child = launch(*SLOWLY, "--loss", "regression", out="broken")
    wait_for_step(tmp_path / "broken", 31, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 27 <= newest(tmp_path / "broken").header.step < 60
    assert (tmp_path / "broken" / "run.lock").exists()
    finish(launch(*SLOWLY, "--resume", out="broken"))
    assert largest_difference(newest(tmp_path / "straight"), newest(tmp_path / "broken")) == 0
    assert newest(tmp_path / "broken").header.step == 60
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "broken")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 60


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_it_saves_the_step_and_says_how_to_go_on(launch, tmp_path, number, code):
    words = ("--steps", "100000", "--pause", "0.02", "--save-steps", "0", "--log-every", "1")
    child = launch(*words)
    wait_for_step(tmp_path / "run", 5, child)
    child.send_signal(number)
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == code
    assert newest(tmp_path / "run").header.step == logged_step(tmp_path / "run") >= 5
    assert "--resume" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(launch, tmp_path):
    """While a step takes an hour, nothing would come of the first one alone."""
    child = launch("--pause", "3600", "--grow-at", "1000000")
    deadline = time.monotonic() + PATIENCE
    while not checkpoint_files(tmp_path / "run" / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)  # into the first step
    child.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=PATIENCE) == 143
    assert list(checkpoint_files(tmp_path / "run" / "checkpoints")) == [0]


@pytest.mark.slow
def test_asked_to_save_it_saves_and_goes_on_and_nobody_else_gets_in(launch, tmp_path):
    words = ("--steps", "100000", "--pause", "0.02", "--save-steps", "0", "--log-every", "1")
    child = launch(*words)
    wait_for_step(tmp_path / "run", 5, child)
    child.send_signal(signal.SIGUSR1)
    wait_for_step(tmp_path / "run", logged_step(tmp_path / "run") + 20, child)
    saved = newest(tmp_path / "run").header.step
    assert 5 <= saved < logged_step(tmp_path / "run")
    assert child.poll() is None
    second = launch(*words, "--resume")
    _, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 2
    assert f"in use by process {child.pid} on " in err
    assert "Traceback" not in err
    assert child.poll() is None
    assert newest(tmp_path / "run").header.step == saved


def test_memory_that_does_not_suffice_is_an_error_of_one_line():
    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: torch.empty(2**62)):
        with pytest.raises(
            UserError, match=r"the memory does not suffice \(.+\); raise --downscale or choose"
        ) as found:
            with _within_memory():
                allocate()
        assert "\n" not in str(found.value)
    with pytest.raises(RuntimeError, match="must match"), _within_memory():
        torch.ones(2) + torch.ones(3)


def test_an_error_is_one_line_and_code_2(tmp_path, capsys, monkeypatch):
    result = subprocess.run(
        [*REAL, "absent"], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, timeout=PATIENCE
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        run_command(lambda: main(["absent", "--dwnscale", "2"]))
    said = (result.returncode, result.stderr, "absent"), (leaving.value.code, capsys.readouterr().err, "--downscale?")
    for code, text, message in said:
        assert code == 2
        (line,) = text.strip().splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_gaussians_killed_and_resumed_equal_straight(launch, here, tmp_path, strategy):
    """N steps, kill -9, N steps, against 2N in another process: the maximum absolute difference is 0."""
    words = ["--loss", "classification", "--strategy", strategy, "--steps", "60", "--init-points", "150"]
    words += ["--refine-start", "5", "--refine-every", "10", "--refine-stop", "55", "--max-primitives", "400"]
    words += ["--sh-degree-every", "20", "--save-steps", "8", "--log-every", "1", "--grow-grad2d", "1e-5"]
    here(*words, out="straight")
    child = launch(*words, program=REAL, out="broken")
    wait_for_step(tmp_path / "broken", 18, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 16 <= newest(tmp_path / "broken").header.step < 60
    here(*words, "--resume", out="broken")
    straight, broken = newest(tmp_path / "straight"), newest(tmp_path / "broken")
    assert len(straight.tensors["model/means"]) > 150
    assert largest_difference(straight, broken) == 0
    assert straight.header.optimizers == broken.header.optimizers
    ply = [(tmp_path / name / "point_cloud.ply").read_bytes() for name in ("straight", "broken")]
    assert ply[0] == ply[1]
    summaries = [json.loads((tmp_path / name / "eval/summary.json").read_text()) for name in ("straight", "broken")]
    assert summaries[0]["psnr"] == summaries[1]["psnr"]
    assert torch.isfinite(torch.tensor(summaries[0]["psnr"]))
