"""What is recorded of a run besides its folder, in `cases/RUN.json`: how many went on at a time, and what its surface
was measured against. No path is in it, so a comparison's folder can be moved."""

from functools import cache
from pathlib import Path
from typing import Any

from nfc_splat.compare.plan import Case, Command
from nfc_splat.errors import UserError
from nfc_splat.files import read_json, sha256, write_json
from nfc_splat.training.run import was_saved

RECORDS = "cases"
TRAINING = "$ python -m nfc_splat.train "
GOES_ON = "# where it stopped"
WARNING = "warning: "


def record_path(case: Case) -> Path:
    """Where the record of a case's run is."""
    return case.folder.parent / RECORDS / f"{case.run}.json"


def log_path(case: Case) -> Path:
    """Where what the commands of a case's run print goes."""
    return record_path(case).with_suffix(".log")


def warnings_of(case: Case) -> list[str]:
    """What the case's training warned of since it was begun, each warning once; that it was stopped is not one."""
    try:
        text = log_path(case).read_text(encoding="utf-8", errors="replace")
    except OSError:  # it may be deleted
        return []
    found: list[str] = []
    for part in reversed(text.split(TRAINING)):
        lines = part.splitlines()
        found[:0] = [line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)]
        if GOES_ON not in lines:  # what is before it is of a training that is no more
            break
    return [line for line in dict.fromkeys(found) if not line.startswith("stopped at step")]


def command_note(case: Case, command: Command) -> str:
    """What the log says of a command before it is begun."""
    resumed = command.words[0] == "nfc_splat.train" and was_saved(case.folder)
    return f"$ {command.text}\n" + (f"{GOES_ON}\n" if resumed else "")


def read_record(case: Case) -> dict[str, Any]:
    """The record of a case's run; empty where there is none that can be read."""
    try:
        found = read_json(record_path(case))
    except UserError:  # nothing that was measured is in it
        return {}
    return found if isinstance(found, dict) and type(found.get("jobs", 0)) is int else {}


def write_record(case: Case, jobs: int) -> None:
    """Note that the case's run goes on among `jobs` at a time."""
    before = read_record(case).get("jobs", 0)
    write_json(record_path(case), {"jobs": max(jobs, before), "surface": _surface(case)})


def forget_other_surface(case: Case) -> bool:
    """Delete what was measured of a surface that was compared to another truth; returns whether it was."""
    last = case.commands[-1]
    if _surface(case) is None or not last.product.exists() or read_record(case).get("surface") == _surface(case):
        return False
    last.product.unlink()
    return True


def _surface(case: Case) -> dict[str, str] | None:
    """What the case's surface is measured against."""
    if len(case.commands) == 1 or case.source.truth is None:
        return None
    return {"truth": _digest(case.source.truth), "protocol": case.source.protocol}


@cache
def _digest(path: Path) -> str:
    return sha256(path)
