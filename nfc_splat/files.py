"""Reading files that nobody vouches for, and writing files that a crash cannot spoil. Standard library only."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nfc_splat.errors import UserError

MAX_JSON_BYTES = 256 * 2**20
MAX_JSON_DEPTH = 32


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    Whoever reads `path`, at any moment and after a crash or power loss, finds the old file or the new one, whole.
    On failure the temporary file is removed and `path` is untouched. The temporary name carries the process id, so
    that the next run can tell a leftover from a file being written (`sweep_leftovers`).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
        ) from error
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable; a no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expect_writable(folder: Path) -> None:
    """Refuse a folder of results that cannot be made or written, before the work; makes nothing."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir() or not os.access(place, os.W_OK):
        found = "is not writable" if place.is_dir() else "is a file" if place.exists() else "is a broken link"
        raise UserError(f"cannot write to {folder}: {place} {found}; choose another --out")


def sweep_leftovers(folder: Path) -> None:
    """Remove temporary files that processes now dead left below `folder`."""
    for leftover in Path(folder).rglob(".*.tmp-*"):
        pid = leftover.name.rpartition("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN or Infinity) atomically. Raises ValueError when `value` holds a non-finite number."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read JSON that may be hostile.

    Refused with a `UserError` that names the file: unreadable, larger than `max_bytes`, not JSON, nested deeper than
    32, duplicate keys, NaN or Infinity.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise UserError(f"{path}: {size} bytes of JSON, expected at most {max_bytes}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    return parse_json(text, path)


def parse_json(text: str, source: Path | str) -> Any:
    """JSON from a text that may be hostile; `source` names it in the `UserError`. Refuses what `read_json` refuses."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({error})") from error
    if _depth(value) > MAX_JSON_DEPTH:
        raise UserError(f"{source}: JSON nested deeper than {MAX_JSON_DEPTH}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _depth(value: Any) -> int:
    """Nesting depth, without recursion: level by level."""
    depth, level = 0, [value]
    while level := [
        child
        for node in level
        if isinstance(node, dict | list)
        for child in (node.values() if isinstance(node, dict) else node)
    ]:
        depth += 1
    return depth


def contained_path(root: Path, name: str, *, allow_external: bool = False, source: Path | str = "") -> Path:
    """`name` resolved below `root`, symbolic links followed.

    Raises a `UserError` naming `source` when the result lies outside `root`, unless `allow_external`.
    """
    root = Path(root).resolve()
    if "\0" in name:
        raise UserError(f"{source or root}: the path {name!r} holds a NUL character")
    resolved = (root / name).resolve()
    if not allow_external and not resolved.is_relative_to(root):
        raise UserError(
            f"{source or root}: the path {name!r} leaves the scene folder {root}; "
            "move the file inside, or pass --allow-external-paths if you trust the scene"
        )
    return resolved


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def number_in_name(name: str) -> int | None:
    """The number that the name of a photograph or mask is, as in 000012.png and 000012_rgb.png."""
    match = re.fullmatch(r"([0-9]{1,9})(_rgb)?\.\w+", name, re.IGNORECASE)
    return None if match is None else int(match.group(1))
