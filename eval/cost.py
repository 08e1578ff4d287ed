"""What classification costs: training steps of the same method by regression and by classification, taken in turn.

`python -m nfc_splat.eval cost SCENE --method dvgo` takes every flag of `python -m nfc_splat.train`. The trainings start
from the same seed and advance step by step, one after the other, so that whatever else the machine does hits all of
them; nothing is written. A cost is the median, over the steps, of the quotient of the two times. Where a method trains
in stages, each has its own medians, and that of the whole training follows from theirs.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nfc_splat.terminal import print_table, progress

if TYPE_CHECKING:
    from nfc_splat.training.config import TrainConfig
    from nfc_splat.training.trainer import Trainer

SKIPPED = 0.1  # share of a stage's first steps that does not count: kernels are compiled, memory is taken


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
        stages: list[set[str]] = []
        states = lambda: (trainer.state for trainer in trainers.values())  # noqa: E731
        note = lambda: stages.append({state.recipe.stage(state.step + 1) for state in states()})  # noqa: E731
        seconds = take_turns(trainers, config.steps, on_round=note)
    print(f"{config.method}, {config.preset}: {config.steps} steps each, {config.threads} threads, on {config.device}")
    rows = cost_table(seconds, stages)
    print_table(rows, numbers=(len(rows[0]) - 2, len(rows[0]) - 1))
    return 0


def cost_table(seconds: dict[str, list[float]], stages: Sequence[set[str]]) -> list[list[str]]:
    """The table's rows: of every stage, and of all together where there are several.

    Args:
        seconds: of every round's step, by loss; that of "regression" is what the others are compared with.
        stages: which stages each round's steps belong to. Rounds in which they are of different ones do not count.
    """
    rounds: dict[str, list[int]] = {}
    for index, names in enumerate(stages):
        if len(names) == 1:
            rounds.setdefault(next(iter(names)), []).append(index)
    counted = {stage: indices[int(SKIPPED * len(indices)) :] for stage, indices in rounds.items()}
    rows, whole = [["stage", "loss", "median step", "cost"]], dict.fromkeys(seconds, 0.0)
    for stage, indices in counted.items():
        base = np.array(seconds["regression"])[indices]
        for name, times in seconds.items():
            own = np.array(times)[indices]
            whole[name] += float(np.median(own)) * len(rounds[stage])
            rows.append([stage, name, f"{1e3 * np.median(own):.2f} ms", _cost(name, float(np.median(own / base)))])
    if len(counted) == 1:
        return [row[1:] for row in rows]
    total = sum(map(len, rounds.values()))
    for name, time_of in whole.items():
        rows.append(["all", name, f"{1e3 * time_of / total:.2f} ms", _cost(name, time_of / whole["regression"])])
    return rows


def _cost(name: str, ratio: float) -> str:
    return "" if name == "regression" else f"{100 * (ratio - 1):+.1f} %"


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


def take_turns(
    trainers: dict[str, "Trainer"], steps: int, on_round: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every step of each trainer; each round takes one step of all, beginning with another one, after a call
    of `on_round`."""
    names = list(trainers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with progress(steps, "steps") as advance:
        for step in range(steps):
            on_round()
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
