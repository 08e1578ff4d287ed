"""The run folder: what a training run leaves behind, and who may write there.

config.json     the resolved configuration, versions, command, commit, hardware, both step clocks
metrics.jsonl   one line per logged step and per event, written as it goes
checkpoints/    see `nfc_splat.training.checkpoint`
initial_points.*  a copy of what --points named
eval/, renders/, gt/, depth/, contact_sheet.png and the exported model, once training is over
run.lock        while a process is at work here
"""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from nfc_splat import machine
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.files import atomic_path, read_json, sweep_leftovers, write_json
from nfc_splat.training.checkpoint import CHECKPOINT_NAME, checkpoint_files
from nfc_splat.training.config import TrainConfig, config_from_plain
from nfc_splat.training.lock import LOCK_FILE, locked
from nfc_splat.training.plain import to_plain

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
SCHEMA = 1
# What --overwrite deletes. Anything else in the folder is the user's.
_OUTPUTS = (
    "checkpoints",
    "eval",
    "rendered",
    "renders",
    "gt",
    "depth",
    METRICS_FILE,
    "contact_sheet.png",
    "point_cloud.ply",
    "initial_points.ply",
    "initial_points.txt",
    "bounds.json",
    "dnerf.json",
    "dnerf.safetensors",
    "nerf.json",
    "nerf_coarse.safetensors",
    "nerf_fine.safetensors",
    "mesh.ply",
    "mesh.obj",
    "mesh.glb",
    "mesh-eval",
    "report.html",
    "exported",
    CONFIG_FILE,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSource:
    """What `--resume` names: a run folder, and one of its checkpoints or None for the newest."""

    folder: Path
    checkpoint: Path | None = None


class RunFolder:
    """An open run folder, this process's own until it is closed (see `open_run`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self._metrics: TextIO | None = None

    def start_metrics(self, step: int) -> None:
        """Open `metrics.jsonl`, without the lines after `step` that an earlier process wrote."""
        path = self.folder / METRICS_FILE
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines if _line_step(line) <= step))
        self.close()
        self._metrics = open(path, "a", encoding="utf-8")

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl` and hand it to the system. Non-finite numbers become null."""
        clean = {key: None if isinstance(v, float) and v - v != 0 else v for key, v in record.items()}
        self._metrics.write(json.dumps(clean, allow_nan=False) + "\n")
        self._metrics.flush()

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


class OthersRun(RunFolder):
    """A run folder that another process writes: only read here."""

    def start_metrics(self, step: int) -> None:
        pass

    def log(self, record: dict[str, Any]) -> None:
        pass


@contextmanager
def open_run(config: TrainConfig, source: RunSource | None) -> Iterator[RunFolder]:
    """Take `config.out` for this process, ready to be written.

    Args:
        config: resolved.
        source: what is being resumed, or None for a fresh run.

    Raises:
        UserError: the folder holds another run or foreign files, is in use, or cannot be written.
    """
    folder = config.out
    fresh = source is None or source.folder.resolve() != folder.resolve()
    if fresh:
        _refuse_foreign(folder)
    _make_writable(folder)
    with locked(folder):
        if fresh:
            _clear(folder, config.overwrite, config.data.points)
        sweep_leftovers(folder)
        run = RunFolder(folder)
        try:
            yield run
        finally:
            run.close()


def _refuse_foreign(folder: Path) -> None:
    """Raise a `UserError` when `folder` exists, holds something, and is no run folder."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder}: is a file, expected a folder")
    names = {path.name for path in folder.iterdir()}
    if names and not names & {CONFIG_FILE, LOCK_FILE, "checkpoints"}:
        raise UserError(f"--out {folder}: holds files that are no run's ({min(names)}, ...); choose an empty folder")


def _make_writable(folder: Path) -> None:
    """Create `folder` and prove that a file can be written, renamed and removed there, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be created ({error.strerror}); choose another --out") from error
    probe = folder / ".probe"
    with atomic_path(probe) as temporary:
        temporary.write_bytes(b"probe")
    probe.unlink()


def _clear(folder: Path, overwrite: bool, points: Path | None) -> None:
    """Make room for a fresh run: delete an earlier one's files if allowed, or if it never got anywhere.

    Raises:
        UserError: that is not allowed, or the fresh run's initial `points` are among them.
    """
    last = max(checkpoint_files(folder / "checkpoints"), default=0)
    if not overwrite and (last > 0 or (folder / "eval" / "summary.json").exists()):
        raise UserError(
            f"{folder} already holds a run at step {last}: pass --resume to continue it, --overwrite to start again, "
            "or --out for another folder"
        )
    present = [folder / name for name in _OUTPUTS if (folder / name).exists()]
    if points is not None and any(points.resolve().is_relative_to(path.resolve()) for path in present):
        raise UserError(
            f"--points {points}: is part of the run that --overwrite deletes; copy it to another place first"
        )
    for path in present:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if last > 0:
        log.warning("deleted the earlier run in %s (it was at step %d)", folder, last)


def find_run(path: Path) -> RunSource:
    """The run that `path` names: a run folder or one of its checkpoints.

    Raises:
        UserError: it is neither.
    """
    if is_run(path):
        return RunSource(path)
    if CHECKPOINT_NAME.fullmatch(path.name) and path.is_file():
        return RunSource(path.parent.parent, path)
    raise UserError(
        f"{path}: expected a run folder (with {CONFIG_FILE} and checkpoints/) or a checkpoint step_XXXXXXXX.safetensors"
    )


def is_run(folder: Path) -> bool:
    """Whether `folder` looks like a run folder."""
    return (folder / CONFIG_FILE).is_file() and (folder / "checkpoints").is_dir()


def was_saved(folder: Path) -> bool:
    """Whether `folder` looks like a run folder in which a checkpoint was ever completed, be it damaged or deleted
    since."""
    checkpoints, log = folder / "checkpoints", folder / METRICS_FILE
    completed = any(checkpoints.glob("*.json"))  # written after the file of a step
    later = max(checkpoint_files(checkpoints), default=0) > 0 or (log.is_file() and log.stat().st_size > 0)
    return is_run(folder) and (completed or later)


def write_record(config: TrainConfig, scene: dict[str, Any], processes: int = 1) -> None:
    """Write `config.json` into the run folder; what an earlier process wrote there moves into its "earlier" list.

    Args:
        config: resolved.
        scene: what is known of the data, ready for JSON.
        processes: how many train together.
    """
    path = config.out / CONFIG_FILE
    earlier = []
    if path.is_file():
        before = read_json(path)
        kept = {key: before.get(key) for key in ("started", "command", "versions", "processes")}
        earlier = [*before.get("earlier", []), kept]
    method = find_method(config.method)
    variant = {name: getattr(config.model, name) for name in method.preset_fields}
    preset = method.load().preset(config.preset, **variant)
    record = {
        "schema": SCHEMA,
        "train": to_plain(config),
        "clocks": {"steps": config.steps, "preset_steps": preset.steps},
        "scene": scene,
        "command": sys.argv,
        "commit": _commit(),
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "processes": processes,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "earlier": earlier,
    }
    write_json(path, record)


def read_config(folder: Path) -> TrainConfig:
    """The resolved configuration of the run in `folder`.

    Raises:
        UserError: no config.json, another schema, or content that does not fit; strictly read.
    """
    path = folder / CONFIG_FILE
    record = read_json(path)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        schema = record.get("schema") if isinstance(record, dict) else None
        raise UserError(f"{path}: run schema {schema!r}, this version reads {SCHEMA}")
    return config_from_plain(record.get("train"), str(path))


def processes_of(folder: Path) -> int:
    """How many processes trained the run in `folder` together, when it was last begun or continued."""
    found = read_json(folder / CONFIG_FILE).get("processes", 1)
    if not isinstance(found, int) or found < 1:
        raise UserError(f"{folder / CONFIG_FILE}: processes is {found!r}, expected a whole number of at least 1")
    return found


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, "+changes" if it was edited; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = lambda *words: subprocess.run(words, cwd=root, capture_output=True, text=True, check=True, timeout=10)  # noqa: E731
        commit = run("git", "rev-parse", "HEAD").stdout.strip()
        return commit + ("+changes" if run("git", "status", "--porcelain", "-uno").stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _line_step(line: str) -> float:
    """The step of a line of `metrics.jsonl`; infinite for one that was cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
