"""Showing how training goes: who is told of every step, and a live line in a terminal, plain lines elsewhere, nothing
when quiet."""

import sys
import time
from collections.abc import Mapping
from typing import Protocol, Self

from nfc_splat.training.state import TrainingState

PLAIN_SECONDS = 10.0  # between plain lines


class Observer(Protocol):
    """Something that looks on while a model is trained."""

    def after_step(self, state: TrainingState, figures: Mapping[str, float] | None) -> None:
        """Called by the training loop after every step, in its thread, with no gradient pending.

        It may draw the model, and must leave `state`, the random number generators and the number of threads as they
        are.

        Args:
            state: after the step.
            figures: "step", "loss", "psnr" (dB, of the batch) and the recipe's, if the step was logged; else {}; None
                when the step was not taken.
        """


class Progress:
    """How far training is, an `Observer`. Use as a context manager."""

    def __init__(self, steps: int, start: int, quiet: bool) -> None:
        self._steps = steps
        self._first: tuple[int, float] | None = None
        self._shown = 0.0
        self._bar = None
        self._plain = not quiet and not sys.stdout.isatty()
        if not quiet and not self._plain:
            self._bar = _live_bar()
            self._task = self._bar.add_task("training", total=steps, completed=start, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def after_step(self, state: TrainingState, figures: Mapping[str, float] | None) -> None:
        """Show the step and the figures among "loss", "psnr" (dB) and "primitives" that are there, if there are any."""
        if not figures:
            return
        step, now = state.step, time.monotonic()
        text = f"{_describe(figures)}  {state.memory.with_this_process()}  {self._time_left(step, now)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=text)
        elif self._plain and (now - self._shown >= PLAIN_SECONDS or step == self._steps):
            self._shown = now
            print(f"step {step}/{self._steps}  {text}", flush=True)

    def _time_left(self, step: int, now: float) -> str:
        """Judged from the first update on: the first steps compile kernels."""
        if self._first is None:
            self._first = step, now
            return ""
        first, began = self._first
        return f"{_clock((now - began) / max(step - first, 1) * (self._steps - step))} left"


def _live_bar():
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    return Bar(TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=12), TextColumn("{task.fields[figures]}"))


def _describe(figures: Mapping[str, float]) -> str:
    parts = []
    if "loss" in figures:
        parts.append(f"loss {figures['loss']:.4f}")
    if "psnr" in figures:
        parts.append(f"PSNR {figures['psnr']:.2f}")
    if "primitives" in figures:
        parts.append(f"{int(figures['primitives']):,} primitives")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
