"""One process per run folder."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from nfc_splat.errors import UserError

LOCK_FILE = "run.lock"

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a notice is logged when the lock of a process that died was taken over.

    The kernel's lock on `run.lock` decides, and ends with the process however that ends: a process number that was
    given away again cannot mislead. The process and host written into it are for people, and for file systems that
    keep locks per host: a file left by another host is not taken over.

    Raises:
        UserError: another process holds the folder, or another host may.
    """
    path = folder / LOCK_FILE
    descriptor = _acquire(path)
    try:
        holder = _read(descriptor)
        if holder and holder["host"] != socket.gethostname():
            raise UserError(
                f"{path}: left by process {holder['pid']} on {holder['host']}, which cannot be checked from here; "
                "delete this file if that process is gone"
            )
        if holder:
            log.warning("took over %s: process %s died at work on it", folder, holder["pid"])
        _write(descriptor)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """An open descriptor of the lock file at `path`, locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(descriptor)
            os.close(descriptor)
            who = "process {pid} on {host} since {since}".format(**holder) if holder else "another process"
            raise UserError(f"{path.parent} is in use by {who}; wait for it, or choose another --out") from error
        # Whoever held it may have deleted the file between our opening and locking it: then we hold nothing.
        if _same_file(descriptor, path):
            return descriptor
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, str | int] | None:
    """Who wrote the lock file; None when nobody did or it was cut short."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return {key: holder[key] for key in ("pid", "host", "since")}
    except (ValueError, TypeError, KeyError):
        return None


def _write(descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
