"""Being told to stop, politely: the step in progress is finished and saved first."""

import os
import signal
import threading
from types import FrameType
from typing import Self


class Signals:
    """Catches SIGINT, SIGTERM, SIGHUP and SIGUSR1 while training.

    The first of SIGINT, SIGTERM and SIGHUP sets `stop`, and the trainer saves and leaves with 128 + its number; a
    second one leaves at once, unless it is SIGHUP: shell and system both send that when a terminal closes. Under nohup
    SIGHUP stays ignored. SIGUSR1 sets `save`: save and go on. Outside the main thread, where Python allows no handlers,
    it does nothing.

    Args:
        patient: a second signal changes nothing: torchrun may pass on what the terminal has sent already, and ends
            processes that do not answer itself.

    Attributes:
        stop: number of the signal that asked to stop, or None.
        save: whether saving was asked for; the trainer clears it.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self.stop: int | None = None
        self.save = False
        self._before: dict[int, object] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: self._on_stop, signal.SIGTERM: self._on_stop, signal.SIGUSR1: self._on_save}
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                handlers[signal.SIGHUP] = self._on_hangup
            self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        if self.stop is not None and not self._patient:
            os._exit(128 + number)
        self.stop = number

    def _on_hangup(self, number: int, _: FrameType | None) -> None:
        self.stop = self.stop or number
        # Whatever prints into a terminal that is gone fails, and what should be saved would not be.
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

    def _on_save(self, *_: object) -> None:
        self.save = True
