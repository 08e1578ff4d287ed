"""A viewer of a model in training.

It works between two steps, in the training's own thread, so nothing that is learned depends on it: it only draws. Each
piece of work is followed by a pause nine times as long, so it takes a tenth of the time at most; two pieces are not
counted: the first that takes long, which may have compiled kernels, and the one after the last step. What is sent waits
in viser's threads; a slow browser gets fewer pictures.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from nfc_splat.view import address
from nfc_splat.view.page import Subject, Viewer

if TYPE_CHECKING:
    from nfc_splat.data import Scene
    from nfc_splat.training.config import TrainConfig
    from nfc_splat.training.progress import Observer
    from nfc_splat.training.state import TrainingState

REFRESH_SECONDS = 3.0  # between two states of the model that are shown
SHARE = 0.1  # of the time
FIRST_PAUSE = 30.0  # seconds at most, after the first piece that would ask for more

log = logging.getLogger("nfc_splat")


class Watching:
    """An observer (`nfc_splat.training.progress.Observer`) that keeps a viewer busy.

    Args:
        viewer: of the model in training.
        steps: of the whole training; the last one is always shown.
        clock: seconds.
    """

    def __init__(self, viewer: Viewer, steps: int, clock=time.monotonic) -> None:
        self._viewer: Viewer | None = viewer
        self._steps, self._clock = steps, clock
        self._free_from = self._fresh_until = 0.0
        self._compiled = False

    def after_step(self, state: "TrainingState", figures: Mapping[str, float] | None) -> None:
        """Do one piece of what visitors wait for, if it is time for it."""
        now, last = self._clock(), state.step == self._steps
        if self._viewer is None or not self._viewer.watched or (now < self._free_from and not last):
            return
        try:
            if now >= self._fresh_until or last:
                self._fresh_until = now + REFRESH_SECONDS
                self._viewer.model_changed(describe(state.step, self._steps, state.model.primitives))
            self._viewer.work(state.model)
        except Exception as error:  # whatever goes wrong here, the training is worth more
            self._viewer = None
            log.warning("the viewer shows nothing new any more, training goes on: %s: %s", type(error).__name__, error)
        ended = self._clock()
        pause = (ended - now) * (1 - SHARE) / SHARE
        if pause > FIRST_PAUSE and not self._compiled:  # what it compiled is not compiled again
            self._compiled, pause = True, FIRST_PAUSE
        self._free_from = ended + pause


def describe(step: int, steps: int, primitives: int | None) -> str:
    """A line about a model."""
    return f"step {step:,} of {steps:,}" + ("" if primitives is None else f", {primitives:,} primitives")


@contextmanager
def watching(config: "TrainConfig", scene: "Scene") -> "Iterator[list[Observer]]":
    """A viewer for as long as the block lasts, where `--view` asks for one; gives the observers that keep it busy.

    Raises:
        UserError: viser is missing, or the port is taken.
    """
    if not config.view:
        yield []
        return
    from nfc_splat.fields import find_method
    from nfc_splat.fields.gaussians import Model

    address.load_viser()
    method = find_method(config.method)
    splats = issubclass(method.load().Model, Model)
    title = f"{scene.name}, {config.method}, {config.loss}"
    port = address.choose_port(address.HOST, config.view_port)
    subject = Subject(scene, title, None, splats, method.dynamic, scene.points)
    with closing(Viewer(subject, address.HOST, port)) as viewer:
        for line in address.introduction(address.HOST, port):
            print(line, flush=True)
        yield [Watching(viewer, config.steps)]
