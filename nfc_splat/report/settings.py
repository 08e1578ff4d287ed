"""In which settings runs differ, and what it takes to repeat them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfc_splat.report.folder import Run, at, number

# These say where a run lies and how it was watched, not what it is.
ASIDE = {"out", "resume", "overwrite", "quiet", "log_every", "view", "view_port"}
CIRCUMSTANCES = ("commit", "versions", "hardware")
TRAIN_PATH = ("nfc_splat/train.py", "nfc_splat\\train.py")


@dataclass(frozen=True)
class Difference:
    """A setting and its value in every run or variant; None where one does not have it."""

    name: str
    values: tuple[str | None, ...]


@dataclass(frozen=True)
class Differences:
    """Settings whose values are not the same in all runs that have them, and how many only some runs have."""

    rows: tuple[Difference, ...]
    partial: int


@dataclass(frozen=True)
class Origin:
    """Where a run comes from: facts by label, the commands that repeat it, and its whole configuration as JSON."""

    facts: Mapping[str, str]
    commands: tuple[str, ...]
    config: str


def differences(runs: Sequence[Run], groups: Sequence[Sequence[int]] | None = None) -> Differences:
    """Compare the configurations, the code and the machines of the runs; those of a group of indices are taken
    together, and several values of one setting are listed."""
    each = [flattened(_compared(run)) for run in runs]
    flat = each if groups is None else [_together([each[index] for index in group]) for group in groups]
    names = dict.fromkeys(name for settings in flat for name in settings)
    names = sorted(names, key=lambda name: name.startswith(CIRCUMSTANCES))  # after the settings
    rows, partial = [], 0
    for name in names:
        values = tuple(settings.get(name) for settings in flat)
        present = {value for value in values if value is not None}
        if len(present) > 1:
            rows.append(Difference(name, values))
        elif None in values:
            partial += 1
    return Differences(tuple(rows), partial)


def _together(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    names = dict.fromkeys(name for settings in found for name in settings)
    return {name: ", ".join(dict.fromkeys(one[name] for one in found if name in one)) for name in names}


def flattened(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested mappings as JSON, by their dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    leaves: dict[str, str] = {}
    for key, part in value.items():
        leaves |= flattened(part, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def settings_of(run: Run) -> dict[str, Any]:
    """What was chosen for a run, as `config.json` has it, and how many processes trained it; empty where nothing is
    known."""
    train = run.told("train")
    chosen = {key: value for key, value in train.items() if key not in ASIDE} if isinstance(train, Mapping) else {}
    return chosen | {"processes": processes_of(run.record)} if chosen else {}


def processes_of(record: Any) -> int:
    """How many processes trained together, by a `config.json` or an entry of its "earlier" list; 1 where it does not
    say."""
    count = number(at(record, "processes"))
    return 1 if count is None else max(1, int(count))


def _compared(run: Run) -> dict[str, Any]:
    rest = {key: run.told(key) for key in CIRCUMSTANCES if run.told(key) is not None}
    return settings_of(run) | rest


def origin(run: Run) -> Origin:
    """Where a run comes from."""
    views = run.told("scene", "views")
    listed = ", ".join(f"{count} {name}" for name, count in views.items()) if isinstance(views, Mapping) else None
    device = run.told("train", "device")
    threads = run.told("train", "threads")
    facts = {
        "Folder": str(run.folder),
        "Scene": run.told("train", "scene"),
        "Format": run.told("scene", "format"),
        "Views": listed,
        "Started": run.told("started"),
        "Machine": _machine(run.told("hardware")),
        "Device": None if device is None else f"{device}, {threads} threads" if threads else device,
        "Processes": run.told("processes"),
        "Commit": run.told("commit"),
        "Versions": _versions(run.told("versions")),
        "Scene's hash": run.told("scene", "hash"),
    }
    known = {label: str(value) for label, value in facts.items() if value}
    return Origin(known, tuple(_commands(run)), json.dumps(run.record, indent=2) if run.record else "")


def _machine(hardware: Any) -> str | None:
    if not isinstance(hardware, Mapping):
        return None
    parts = [str(hardware.get("cpu", "")), f"{hardware.get('cores')} cores", f"{hardware.get('memory_gb')} GB"]
    gpus = hardware.get("gpus")
    parts += [str(gpu) for gpu in gpus] if isinstance(gpus, list) else []
    return ", ".join([*parts, str(hardware.get("system", ""))])


def _versions(versions: Any) -> str | None:
    if not isinstance(versions, Mapping):
        return None
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)


def _commands(run: Run) -> list[str]:
    """What was typed, oldest first, and what measures the run anew."""
    earlier = run.told("earlier")
    starts = [*(earlier if isinstance(earlier, list) else []), run.record]
    typed = [(at(start, "command"), processes_of(start)) for start in starts]
    commands = [command_line(words, count) for words, count in typed if isinstance(words, list) and words]
    if run.summary is not None:
        commands.append(f"python -m nfc_splat.eval images {shlex.quote(str(run.folder))}")
    return commands


def command_line(words: Sequence[Any], processes: int = 1) -> str:
    """`sys.argv` as typed into a shell; of several `processes`, as it starts them all on one host."""
    program, *rest = map(str, words)
    start = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    if program.endswith(TRAIN_PATH):
        return f"{start} -m nfc_splat.train {shlex.join(rest)}".rstrip()
    return f"{start} {shlex.join([program, *rest])}"
