"""In which settings runs differ, and what it takes to repeat them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfc_splat.report.folder import Run, at

# These say where a run lies and how it was watched, not what it is.
ASIDE = {"out", "resume", "overwrite", "quiet", "log_every", "view", "view_port"}
CIRCUMSTANCES = ("commit", "versions", "hardware")
TRAIN_PATH = ("nfc_splat/train.py", "nfc_splat\\train.py")


@dataclass(frozen=True)
class Difference:
    """A setting and its value in every run; None where a run does not have it."""

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


def differences(runs: Sequence[Run]) -> Differences:
    """Compare the configurations, the code and the machines of the runs."""
    flat = [flattened(_compared(run)) for run in runs]
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


def flattened(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested mappings as JSON, by their dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    leaves: dict[str, str] = {}
    for key, part in value.items():
        leaves |= flattened(part, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _compared(run: Run) -> dict[str, Any]:
    train = run.told("train")
    settings = {key: value for key, value in train.items() if key not in ASIDE} if isinstance(train, Mapping) else {}
    rest = {key: run.told(key) for key in CIRCUMSTANCES if run.told(key) is not None}
    return settings | rest


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
    typed = [at(entry, "command") for entry in earlier] if isinstance(earlier, list) else []
    commands = [command_line(words) for words in [*typed, run.told("command")] if isinstance(words, list) and words]
    if run.summary is not None:
        commands.append(f"python -m nfc_splat.eval images {shlex.quote(str(run.folder))}")
    return commands


def command_line(words: Sequence[Any]) -> str:
    """`sys.argv` as typed into a shell."""
    program, *rest = map(str, words)
    if program.endswith(TRAIN_PATH):
        return f"python -m nfc_splat.train {shlex.join(rest)}".rstrip()
    return f"python {shlex.join([program, *rest])}"
