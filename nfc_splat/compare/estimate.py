"""How long a comparison will take, before it is begun: a fortieth of each method's training, timed.

Whatever a method keys to a step is scaled with the number of steps, so a short training passes through all of it.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nfc_splat.compare.plan import Case
from nfc_splat.compare.work import duration
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.files import read_json, write_json

PART = 40
FEWEST_STEPS = 20


def describe_time(cases: Sequence[Case], preset: str, out: Path, jobs: int) -> list[str]:
    """What the runs that are left should take: a line for each scene and method, and one for all.

    Finished runs in `out` tell it; where a method has none on a scene, its first case is tried for a moment. Extracting
    and measuring surfaces is not counted.
    """
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.scene, case.method), []).append(case)
    lines, total, unknown = [], 0.0, False
    for (scene, method), group in groups.items():
        left = sum(not case.done for case in group)
        known = [read_json(case.folder / "eval/summary.json").get("train_seconds") for case in group if case.done]
        try:
            seconds = statistics.fmean(filter(None, known)) if any(known) else _tried(group[0], preset, out)
        except UserError as error:
            lines.append(f"{scene}, {method}: {left} runs left; how long they take is unknown: {error}")
            unknown = True
            continue
        lines.append(f"{scene}, {method}: {left} runs left, about {duration(seconds)} each")
        total += left * seconds / jobs
    return [*lines, f"in all about {duration(total)}{' and what is unknown' if unknown else ''}, {jobs} at a time"]


def _tried(case: Case, preset: str, out: Path) -> float:
    """Seconds that the case should take, judged by a short training; what one found is kept in `out`.

    Raises:
        UserError: the training fails.
    """
    record = out / "trials" / f"{case.name}.json"
    words = list(case.commands[0].words)
    if record.exists() and (found := read_json(record))["words"] == words:
        return found["seconds"]
    steps = _value(words, "--steps") or find_method(case.method).load().preset(preset).steps
    part = min(int(steps), max(FEWEST_STEPS, int(steps) // PART))
    folder = record.with_suffix("")
    short = _without(words, "--steps", "--out", "--resume")
    short += ["--out", str(folder), "--steps", str(part), "--overwrite"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *short], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    whole = time.monotonic() - started
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(said[-1].removeprefix("error: ") if said else f"exit code {done.returncode}")
    training = read_json(folder / "eval/summary.json")["train_seconds"]
    seconds = whole - training + training * int(steps) / part
    write_json(record, {"words": words, "steps": part, "seconds": seconds})
    return seconds


def _value(words: Sequence[str], flag: str) -> str | None:
    """What follows `flag`, the last one counting as it does for the parser."""
    found = [words[at + 1] for at, word in enumerate(words[:-1]) if word == flag]
    return found[-1] if found else None


def _without(words: Sequence[str], *flags: str) -> list[str]:
    """`words` without these flags and the value of each."""
    return [word for at, word in enumerate(words) if word not in flags and (at == 0 or words[at - 1] not in flags)]
