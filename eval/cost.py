"""What classification costs: training steps of the same method by regression and by classification, taken in turn.

`python -m nfc_splat.eval cost SCENE --method dvgo` takes every flag of `python -m nfc_splat.train`. The trainings start
from the same seed and advance step by step, one after the other, so that whatever else the machine does hits all of
them; nothing is written. A cost is the median, over the steps, of the quotient of the two times.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nfc_splat.terminal import print_table, progress

if TYPE_CHECKING:
    from nfc_splat.training.config import TrainConfig
    from nfc_splat.training.trainer import Trainer

SKIPPED = 0.1  # share of the steps at the start that does not count: kernels are compiled, memory is taken


class _NoRun:
    """Where the trainer's log lines go."""

    def log(self, record: dict[str, Any]) -> None: ...


def main(argv: Sequence[str]) -> int:
    """Print the table; returns the exit code."""
    from nfc_splat.rendering.kernels.memory import keep_freed_memory
    from nfc_splat.rendering.kernels.threads import set_threads
    from nfc_splat.training.command_line import parse_command_line
    from nfc_splat.training.load import load_training_scene

    config = replace(parse_command_line(argv), quiet=True, log_every=10**9)
    set_threads(config.threads)
    keep_freed_memory()
    with quiet():
        scene = load_training_scene(config)
        trainers = {name: make_trainer(other, scene) for name, other in variants(config).items()}
        seconds = take_turns(trainers, config.steps)
    counted = {name: np.array(times[int(SKIPPED * config.steps) :]) for name, times in seconds.items()}
    base = counted["regression"]
    print(f"{config.method}, {config.preset}: {config.steps} steps each, {config.threads} threads, on {config.device}")
    rows = [["loss", "median step", "cost"]]
    for name, times in counted.items():
        cost = "" if times is base else f"{100 * (np.median(times / base) - 1):+.1f} %"
        rows.append([name, f"{1e3 * np.median(times):.2f} ms", cost])
    print_table(rows, numbers=(1, 2))
    return 0


@contextmanager
def quiet() -> Iterator[None]:
    """What every training would say is said by none."""
    log = logging.getLogger("nfc_splat")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def variants(config: "TrainConfig") -> dict[str, "TrainConfig"]:
    """The configurations to compare, by what to call them: regression first."""
    from nfc_splat.training.config import resolve

    encoded = hasattr(config.model, "target_encoding")
    plain = replace(config.model, target_encoding="none") if encoded else config.model
    unsettled = replace(config, loss_weight=None, model=plain)
    found = {
        "regression": resolve(replace(unsettled, loss="regression")),
        "classification": resolve(replace(unsettled, loss="classification")),
    }
    if encoded:
        code = "binary" if config.model.target_encoding == "none" else config.model.target_encoding
        model = replace(config.model, target_encoding=code)
        with_code = replace(found["classification"], model=model)
        found[f"classification, {code} encoding"] = resolve(with_code)
    return found


def take_turns(trainers: dict[str, "Trainer"], steps: int) -> dict[str, list[float]]:
    """Seconds of every step of each trainer; each round takes one step of all, beginning with another one."""
    names = list(trainers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with progress(steps, "steps") as advance:
        for step in range(steps):
            for turn in range(len(names)):
                name = names[(step + turn) % len(names)]
                started = clock(trainers[name].config.device)
                trainers[name].step()
                seconds[name].append(clock(trainers[name].config.device) - started)
            advance()
    return seconds


def make_trainer(config: "TrainConfig", scene: Any) -> "Trainer":
    """A trainer before its first step, that writes nothing."""
    from nfc_splat.train import scene_geometry
    from nfc_splat.training.batches import Batches
    from nfc_splat.training.state import fresh_state
    from nfc_splat.training.trainer import Trainer

    state = fresh_state(config, scene_geometry(scene, config.device))
    batches = Batches(scene.splits["train"], scene.background, config.device)
    return Trainer(config, batches, state, None, _NoRun())


def clock(device: str) -> float:
    """Seconds, once the device has finished what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
