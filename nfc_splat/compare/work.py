"""Doing what a plan says: what is done stays done, and what was interrupted goes on.

Every case leaves `cases/NAME.json`, its commands, and `cases/NAME.log`, what they printed.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nfc_splat.compare.plan import Case
from nfc_splat.errors import UserError
from nfc_splat.files import read_json, write_json
from nfc_splat.training.signals import Signals

RECORDS = "cases"
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


def do(cases: Sequence[Case], out: Path, jobs: int = 1, threads: int | None = None) -> tuple[dict[str, str], int]:
    """Run every command whose file is not there.

    Args:
        out: folder of the comparison.
        jobs: how many cases at a time.
        threads: of each training that says nothing of threads itself.

    Returns:
        why cases failed, by name, and 0 or the exit code of the signal that stopped it.

    Raises:
        UserError: `out` holds a run of the same name that was asked for in other words.
    """
    waiting = prepare(cases, out)
    failures: dict[str, str] = {}
    pace, active = Pace(jobs), []
    with Signals() as signals:
        while (waiting and signals.stop is None) or active:
            while waiting and len(active) < jobs and signals.stop is None:
                active.append(_Running(waiting.pop(0), out, threads))
            for running in [one for one in active if one.finished(signals.stop)]:
                active.remove(running)
                if signals.stop is None:
                    _close(running, failures, pace, [*waiting, *(other.case for other in active)])
            time.sleep(PATIENCE if active else 0)
    if signals.stop is not None:
        print("stopped; the same command continues", flush=True)
        return failures, 128 + signals.stop
    return failures, 0


def prepare(cases: Sequence[Case], out: Path) -> list[Case]:
    """The cases that are left to do, after saying which are done and recording what is to be done.

    Raises:
        UserError: `out` holds a run of the same name that was asked for in other words.
    """
    for case in cases:
        _refuse_another(case, out)
    for case in cases:
        if case.done:
            print(f"{case.name}: done before", flush=True)
        else:
            write_json(_record(case, out), [list(command.words) for command in case.commands])
    return [case for case in cases if not case.done]


class _Running:
    """A case whose commands run one after another, each in a process."""

    def __init__(self, case: Case, out: Path, threads: int | None) -> None:
        print(f"{case.name} ...", flush=True)
        self.case, self.started = case, time.monotonic()
        self.failure: str | None = None
        self._steps = run_case(case, out / RECORDS / f"{case.name}.log", threads)
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


def run_case(case: Case, log: Path, threads: int | None) -> Iterator["subprocess.Popen[bytes]"]:
    """Start what is left of a case, command by command: gives each process, to be waited for before the next is asked
    for.

    Raises:
        CaseFailed: the process given last failed, or left nothing.
    """
    for command in case.commands:
        if command.product.exists():
            continue
        words = [*command.words]
        if threads is not None and words[0] == "nfc_splat.train" and "--threads" not in words:
            words += ["--threads", str(threads)]
        with open(log, "a", encoding="utf-8") as sink:
            sink.write(f"$ {command.text}\n")
            sink.flush()
            # A session of its own: a Ctrl-C reaches it through us, once, and it saves.
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        yield process
        if process.returncode or not command.product.exists():
            raise CaseFailed(_last_words(log, process.returncode))


def _close(running: _Running, failures: dict[str, str], pace: Pace, left: Sequence[Case]) -> None:
    """Say how a case ended."""
    spent = time.monotonic() - running.started
    if running.failure:
        failures[running.case.name] = running.failure
    else:
        pace.add(running.case, spent)
    words = f"{running.case.name}: {'failed after ' if running.failure else ''}{duration(spent)}"
    remaining = pace.left(left)
    if left:
        words += f"; {len(left)} more" + ("" if remaining is None else f", about {duration(remaining)}")
    print(words, flush=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1h02m or 2m05s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def _last_words(log: Path, code: int) -> str:
    """Why a command failed, in one line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text[text.rindex("$ python -m ") :].splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return f"failed ({code}): {(errors or lines)[-1].removeprefix('error: ')} (see {log})"


def _record(case: Case, out: Path) -> Path:
    return out / RECORDS / f"{case.name}.json"


def _refuse_another(case: Case, out: Path) -> None:
    """Refuse to take another run's results: the commands recorded under the case's name must be the case's; one of the
    two may have more of them, as surfaces need."""
    path = _record(case, out)
    if not path.exists():
        return
    for recorded, command in zip(read_json(path), case.commands, strict=False):
        if recorded != list(command.words):
            raise UserError(
                f"{path}: this run was begun with other flags than now ({command.text}); choose another --out, or "
                f"delete {path} and {case.folder} to train it again"
            )
