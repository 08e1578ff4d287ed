"""Doing what a plan says: what is done stays done, and what was interrupted goes on.

Every run leaves `cases/RUN.json` (`nfc_splat.compare.records`), and `cases/RUN.log`, what its commands printed.
"""

import ctypes
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nfc_splat.compare.plan import Case, flag_of
from nfc_splat.compare.records import command_note, forget_other_surface, log_path, write_record
from nfc_splat.terminal import duration
from nfc_splat.training.signals import Signals

PR_SET_PDEATHSIG = 1  # of Linux's prctl
PATIENCE = 0.2  # seconds between two looks at the processes


@dataclass
class Pace:
    """What cases took, and so what those that are left will take."""

    jobs: int = 1
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, case: Case, seconds: float) -> None:
        self.seconds.setdefault(case.method, []).append(seconds)

    def left(self, cases: Sequence[Case]) -> float | None:
        """Seconds for `cases`, as the others of the same method took, else as all others; None before any."""
        known = [value for values in self.seconds.values() for value in values]
        if not known:
            return None
        return sum(statistics.fmean(self.seconds.get(case.method, known)) for case in cases) / self.jobs


def do(runs: Sequence[Case], jobs: int = 1, threads: int | None = None) -> tuple[dict[str, str], int]:
    """Run every command that is not done.

    Args:
        runs: a case for each run.
        jobs: how many runs at a time.
        threads: of each training that says nothing of threads itself.

    Returns:
        why runs failed, by name, and 0 or the exit code of the signal that stopped it.
    """
    waiting = prepare(runs, jobs)
    failures: dict[str, str] = {}
    pace, active = Pace(jobs), []
    with Signals() as signals:
        while (waiting and signals.stop is None) or active:
            while waiting and len(active) < jobs and signals.stop is None:
                active.append(_Running(waiting.pop(0), threads))
            for running in [one for one in active if one.finished(signals.stop)]:
                active.remove(running)
                if signals.stop is None:
                    _close(running, failures, pace, [*waiting, *(other.case for other in active)])
            time.sleep(PATIENCE if active else 0)
    if signals.stop is not None:
        print("stopped; the same command continues", flush=True)
        return failures, 128 + signals.stop
    return failures, 0


def prepare(runs: Sequence[Case], jobs: int) -> list[Case]:
    """The runs that are left to do, `jobs` at a time, after saying which are done and recording the others."""
    for case in runs:
        if forget_other_surface(case):
            print(f"{case.run}: its surface was compared to another truth; it is measured again", flush=True)
        if case.done:
            print(f"{case.run}: done before", flush=True)
        else:
            write_record(case, jobs)
    return [case for case in runs if not case.done]


class _Running:
    """A case whose commands run one after another, each in a process."""

    def __init__(self, case: Case, threads: int | None) -> None:
        print(f"{case.run} ...", flush=True)
        self.case, self.started = case, time.monotonic()
        self.failure: str | None = None
        self._steps = run_case(case, threads)
        self._process = next(self._steps, None)
        self._told = False

    def finished(self, signal: int | None) -> bool:
        """Whether nothing of it runs any more; `signal` is handed on, once, and nothing is begun after it."""
        if self._process is None:
            return True
        if self._process.poll() is None:
            if signal is not None and not self._told:
                self._process.send_signal(signal)
                self._told = True
            return False
        if signal is not None:
            return True
        try:
            self._process = next(self._steps, None)
        except CaseFailed as failure:
            self.failure, self._process = str(failure), None
        return self._process is None


class CaseFailed(Exception):
    """A command of a case failed; the message says why, in one line."""


def run_case(case: Case, threads: int | None) -> Iterator["subprocess.Popen[bytes]"]:
    """Start what is left of a case, command by command: gives each process, to be waited for before the next is asked
    for.

    Raises:
        CaseFailed: the process given last failed, or left nothing.
    """
    log = log_path(case)
    for command in case.commands:
        if command.done:
            continue
        with open(log, "a", encoding="utf-8") as sink:
            sink.write(command_note(case, command))
            sink.flush()
            # A session of its own: a Ctrl-C reaches it through us, once, and it saves.
            process = subprocess.Popen(
                [sys.executable, "-m", *with_threads(command.words, threads)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=ending_with_us(),
            )
        yield process
        if process.returncode or not command.product.exists():
            raise CaseFailed(_last_words(log, process.returncode))
        if command.flaw:
            raise CaseFailed(command.flaw)


def with_threads(words: Sequence[str], threads: int | None) -> list[str]:
    """The words of a command; those of a training that says nothing of threads itself with `threads` of them."""
    silent = words[0] == "nfc_splat.train" and "--threads" not in map(flag_of, words)
    return [*words, *(("--threads", str(threads)) if silent and threads is not None else ())]


def ending_with_us() -> Callable[[], None] | None:
    """To be called in a new process: when this one dies, even by SIGKILL, it gets SIGTERM, and a training saves. Only
    Linux can do that."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(128 + signal.SIGTERM)

    return ask


def _close(running: _Running, failures: dict[str, str], pace: Pace, left: Sequence[Case]) -> None:
    """Say how a case ended."""
    spent = time.monotonic() - running.started
    if running.failure:
        failures[running.case.run] = running.failure
    else:
        pace.add(running.case, spent)
    words = f"{running.case.run}: {'failed after ' if running.failure else ''}{duration(spent)}"
    remaining = pace.left(left)
    if left:
        words += f"; {len(left)} more" + ("" if remaining is None else f", about {duration(remaining)}")
    print(words, flush=True)


def _last_words(log: Path, code: int) -> str:
    """Why a command failed, in one line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [
        line for line in text[text.rindex("$ python -m ") :].splitlines() if line.strip() and not line.startswith("#")
    ]
    errors = [line for line in lines if line.startswith("error: ")]
    return f"failed ({code}): {(errors or lines)[-1].removeprefix('error: ')} (see {log})"
