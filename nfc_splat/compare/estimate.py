"""How long a comparison will take, before it is begun: a fortieth of a training of each kind, timed.

Whatever a method keys to a step is scaled with the number of steps, so a short training passes through all of it.
"""

import heapq
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nfc_splat.compare.checks import asked_config
from nfc_splat.compare.plan import Case, without
from nfc_splat.compare.work import ending_with_us, with_threads
from nfc_splat.errors import UserError
from nfc_splat.files import read_json, write_json
from nfc_splat.terminal import duration

PART = 40
FEWEST_STEPS = 20
# Flags on which the time that a step takes hardly depends.
FREE = {"--out", "--seed", "--train-share", "--train-views", "--train-draw", "--train-noise"}
FREE |= {"--loss-weight", "--photometric-weight", "--adam-eps"}


def describe_time(runs: Sequence[Case], out: Path, jobs: int, threads: int | None) -> list[str]:
    """What the runs that are left should take: a line for each kind of training, and one for all.

    Runs of a kind have a scene and the flags that time depends on in common. Finished ones tell how long the training
    itself takes. Where there are none, the first of a kind is tried for a moment, and what it takes to start and to
    evaluate is counted too; compiling kernels and extracting and measuring surfaces are not.

    Args:
        runs: a case for each run.
        out: folder of the comparison.
        jobs: how many runs at a time.
        threads: of each training that says nothing of threads itself.
    """
    kinds: dict[tuple[str, ...], list[Case]] = {}
    for case in runs:
        kinds.setdefault(tuple(without(case.commands[0].words, FREE)), []).append(case)
    lines, unknown = [], False
    expected: dict[str, float] = {}
    for kind in kinds.values():
        left = [case for case in kind if not case.done]
        title = _title(kind)
        if not left:
            lines.append(f"{title}: nothing left")
            continue
        known = [read_json(case.folder / "eval/summary.json").get("train_seconds") for case in kind if case.done]
        try:
            seconds = statistics.fmean(filter(None, known)) if any(known) else _tried(kind[0], out, threads)
        except UserError as error:
            lines.append(f"{title}: {_runs(left)} left; how long it takes is unknown: {error}")
            unknown = True
            continue
        lines.append(f"{title}: {_runs(left)} left, about {duration(seconds)} each")
        expected |= {case.run: seconds for case in left}
    total = _elapsed([expected[case.run] for case in runs if case.run in expected], jobs)
    return [*lines, f"in all about {duration(total)}{' and what is unknown' if unknown else ''}, {jobs} at a time"]


def _title(kind: Sequence[Case]) -> str:
    first, others = kind[0], len({case.variant for case in kind}) - 1
    return f"{first.scene}, {first.method}, {first.variant}{f' and {others} like it' if others else ''}"


def _runs(cases: Sequence[Case]) -> str:
    return f"{len(cases)} run{'s' if len(cases) > 1 else ''}"


def _elapsed(durations: Sequence[float], jobs: int) -> float:
    """When the last is over of what takes so long, begun in order, `jobs` at a time."""
    ends = [0.0] * jobs
    for seconds in durations:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _tried(case: Case, out: Path, threads: int | None) -> float:
    """Seconds that the case should take, judged by a short training with as many threads; what one found is kept in
    `out`.

    Raises:
        UserError: the training fails.
    """
    record = out / "trials" / f"{case.run}.json"
    folder = record.with_suffix("")
    words = with_threads(case.commands[0].words, threads)
    short = without(words, {"--steps", "--out", "--resume"})
    asked = without(words, {"--out", "--resume"})
    if (seconds := _recorded(record, asked)) is not None:
        return seconds
    steps = asked_config(case).steps
    part = min(steps, max(FEWEST_STEPS, steps // PART))
    print(f"# timing a moment of {_title([case])} ...", flush=True)
    command = [sys.executable, "-m", *short, "--out", str(folder), "--steps", str(part), "--overwrite"]
    kernels = _last_compiled()
    try:
        whole = _timed(command)
        if _last_compiled() != kernels:  # which takes longer than a moment of training
            whole = _timed(command)
        training = read_json(folder / "eval/summary.json")["train_seconds"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = whole - training + training * steps / part
    write_json(record, {"words": asked, "steps": part, "seconds": seconds})
    return seconds


def _timed(command: Sequence[str]) -> float:
    """Seconds that a command takes, whose failure is a `UserError`."""
    started = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, preexec_fn=ending_with_us()
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(said[-1].removeprefix("error: ") if said else f"exit code {done.returncode}")
    return time.monotonic() - started


def _last_compiled() -> int:
    """When the last of the kernels that are kept for later processes was written, ns; 0 without any."""
    from nfc_splat.rendering.kernels.numba_tools import cache_folder

    kept = cache_folder("numba_tools").parent.rglob("kernels-*/**/*.nbc")
    return max((path.stat().st_mtime_ns for path in kept), default=0)


def _recorded(record: Path, words: Sequence[str]) -> float | None:
    """What an earlier trial by the same words found, if it can be read."""
    try:
        found = read_json(record)
    except UserError:  # absent or damaged: it is tried again
        return None
    same = isinstance(found, dict) and found.get("words") == list(words)
    return found.get("seconds") if same else None
