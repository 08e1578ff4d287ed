"""Doing what a plan says, one process after another: what is done stays done, and what was interrupted goes on."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nfc_splat.compare.plan import Case
from nfc_splat.errors import UserError
from nfc_splat.files import read_json, write_json
from nfc_splat.training.signals import Signals

RECORDS = "cases"


def do(cases: Sequence[Case], out: Path) -> tuple[dict[str, str], int]:
    """Run every command whose file is not there.

    Returns:
        why cases failed, by name, and 0 or the exit code of the signal that stopped it.

    Raises:
        UserError: `out` holds a run of the same name that was asked for in other words.
    """
    for case in cases:
        _refuse_another(case, out)
    failures: dict[str, str] = {}
    with Signals() as signals:
        for number, case in enumerate(cases, 1):
            print(f"[{number}/{len(cases)}] {case.name}: ", end="", flush=True)
            started = time.monotonic()
            if case.done:
                print("done before", flush=True)
                continue
            write_json(_record(case, out), _words(case))
            failure = _run(case, out, signals)
            if signals.stop is not None:
                print("stopped; the same command continues", flush=True)
                return failures, 128 + signals.stop
            if failure:
                failures[case.name] = failure
            spent = time.monotonic() - started
            print(f"{'failed after ' if failure else ''}{spent // 60:.0f}m{spent % 60:02.0f}s", flush=True)
    return failures, 0


def _run(case: Case, out: Path, signals: Signals) -> str | None:
    """Run what is left of a case; returns why it failed."""
    log = out / RECORDS / f"{case.name}.log"
    for command in case.commands:
        if command.product.exists():
            continue
        with open(log, "a", encoding="utf-8") as sink:
            sink.write(f"$ {command.text}\n")
            sink.flush()
            # A session of its own: a Ctrl-C reaches it through us, once, and it saves.
            process = subprocess.Popen(
                [sys.executable, "-m", *command.words],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = _wait(process, signals)
        if signals.stop is not None:
            return None
        if code or not command.product.exists():
            return _last_words(log, code)
    return None


def _wait(process: "subprocess.Popen[bytes]", signals: Signals) -> int:
    """The exit code; a signal that asks us to stop is handed on."""
    told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.2)
        if signals.stop is not None and not told:
            process.send_signal(signals.stop)
            told = True


def _last_words(log: Path, code: int) -> str:
    """Why a command failed, in one line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text[text.rindex("$ python -m ") :].splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return f"failed ({code}): {(errors or lines)[-1].removeprefix('error: ')} (see {log})"


def _record(case: Case, out: Path) -> Path:
    return out / RECORDS / f"{case.name}.json"


def _words(case: Case) -> list[list[str]]:
    return [list(command.words) for command in case.commands]


def _refuse_another(case: Case, out: Path) -> None:
    path = _record(case, out)
    if path.exists() and read_json(path) != _words(case):
        raise UserError(
            f"{path}: this run was begun with other flags than now ({case.commands[0].text}); choose another --out, or "
            f"delete {path} and {case.folder} to train it again"
        )
