"""Checkpoints that a crash cannot spoil and that hold no code: one safetensors file per step.

`checkpoints/` of a run folder:
    step_00001000.safetensors   tensors, and in the file's own metadata one JSON header: renaming it commits everything
    step_00001000.json          sidecar: size and SHA-256, written after it; a file without a sidecar that agrees is
                                not believed
    latest.json                 written last; for people and other tools, the reader looks at the files themselves

Names of tensors: model/..., recipe/..., optimizer/..., rng/..., sampler/...
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.files import atomic_path, parse_json, read_json, sha256, write_json
from nfc_splat.training.memory import PeakMemory
from nfc_splat.training.plain import from_plain, to_plain

SCHEMA = 2

log = logging.getLogger(__name__)

CHECKPOINT_NAME = re.compile(r"step_(\d{8,12})\.safetensors")


class UntrustedCheckpoint(UserError):
    """A checkpoint that is incomplete or damaged; an older one may still be good."""


@dataclass(frozen=True)
class Header:
    """Everything in a checkpoint that is not a tensor.

    Attributes:
        schema: version of this layout.
        step: optimiser steps done.
        method: name of the method.
        config: the resolved training configuration, as JSON.
        config_hash: of the part of it that a resumed run must share.
        scene_hash: of the cameras, image names and initial points.
        threads: size of the thread pools, on which the last bits of a CPU result depend.
        device: "cpu" or "cuda".
        learning_rate_scale: 1, or less after a roll-back.
        skipped: steps tried again because something was not finite.
        seconds: spent training so far.
        losses: the named terms when last logged.
        optimizers: the optimisers' states, with the names of tensors in place of tensors.
        memory: the most that training took so far.
    """

    schema: int
    step: int
    method: str
    config: dict[str, Any]
    config_hash: str
    scene_hash: str
    threads: int
    device: str
    learning_rate_scale: float
    skipped: int
    seconds: float
    losses: dict[str, float]
    optimizers: dict[str, Any]
    memory: PeakMemory = field(default_factory=PeakMemory)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was verified and read."""

    path: Path
    header: Header
    tensors: dict[str, Tensor]

    def section(self, name: str) -> dict[str, Tensor]:
        """The tensors below `name`/, without that prefix."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}/")}


def write_checkpoint(folder: Path, header: Header, tensors: Mapping[str, Tensor], *, keep: int) -> Path:
    """Write a checkpoint into `folder`, then delete all but the `keep` newest up to its step.

    A crash at any moment leaves the previous checkpoints believed, or this one.

    Raises:
        UserError: it cannot be written (disk full, no permission), or holds a number that is not finite, which nobody
            could resume from; what was there is untouched.
    """
    for name, tensor in tensors.items():
        if name.startswith("model/") and tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"step {header.step} is not saved: {name} holds NaN or Inf; the older checkpoints are kept")
    path = folder / f"step_{header.step:08d}.safetensors"
    ready = _separate({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    text = json.dumps(to_plain(header), allow_nan=False)
    try:
        save_tensors(path, ready, {"header": text})
    except (SafetensorError, UserError) as error:
        needed = sum(tensor.nbytes for tensor in ready.values()) + len(text)
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        reason = error.__cause__ or error
        remedy = "make room or choose another --out"
        raise UserError(f"cannot write {path}: {reason}; {needed} bytes needed, {free} free: {remedy}") from error
    record = {"step": header.step, "size": path.stat().st_size, "sha256": sha256(path)}
    write_json(_sidecar(path), record)
    write_json(folder / "latest.json", {"step": header.step, "file": path.name})
    _prune(folder, header.step, keep)
    return path


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; SafetensorError or `UserError` when it cannot be written."""
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata))
        temporary.chmod(0o666 & ~_umask())  # safetensors lets only the owner read it


def checkpoint_files(folder: Path) -> dict[int, Path]:
    """Checkpoint files in `folder` by step, newest first, believed or not."""
    found = {int(match[1]): path for path in folder.glob("step_*") if (match := CHECKPOINT_NAME.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in a run's `checkpoints` folder that can be believed, or None where there is no file.

    A warning is logged about each newer one that was passed over.

    Raises:
        UserError: there are checkpoints and none can be believed, or the newest has another schema.
    """
    files = checkpoint_files(folder)
    for path in files.values():
        try:
            return read_checkpoint(path)
        except UntrustedCheckpoint as error:
            log.warning("passed over a checkpoint: %s", error)
    if files:
        raise UserError(f"{folder}: none of the {len(files)} checkpoints can be believed; start again with --overwrite")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify and read one checkpoint.

    Raises:
        UntrustedCheckpoint: no sidecar, or size, hash or content do not agree with it.
        UserError: another schema.
    """
    _verify(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UntrustedCheckpoint(f"{path}: not a safetensors file ({error})") from error
    header = _header(path, metadata.get("header", ""))
    for name, tensor in tensors.items():
        if name.startswith("model/") and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UntrustedCheckpoint(f"{path}: the tensor {name} holds values that are not finite")
    return Checkpoint(path, header, tensors)


def _verify(path: Path) -> None:
    """Raise `UntrustedCheckpoint` unless the sidecar exists and size and hash agree with it."""
    try:
        record = read_json(_sidecar(path), max_bytes=65536)
    except UserError as error:
        raise UntrustedCheckpoint(f"{path}: it was not completed ({error})") from error
    try:
        size, digest = path.stat().st_size, sha256(path)
    except OSError as error:
        raise UntrustedCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
    match = CHECKPOINT_NAME.fullmatch(path.name)
    expected = {"step", "size", "sha256"}
    if not isinstance(record, dict) or set(record) != expected or match is None or record["step"] != int(match[1]):
        raise UntrustedCheckpoint(f"{path}: its sidecar {_sidecar(path).name} does not belong to it")
    if record["size"] != size:
        raise UntrustedCheckpoint(f"{path}: {size} bytes, expected {record['size']}")
    if record["sha256"] != digest:
        raise UntrustedCheckpoint(f"{path}: its SHA-256 is not the one in {_sidecar(path).name}")


def _header(path: Path, text: str) -> Header:
    """The header in a file's metadata."""
    try:
        value = parse_json(text, path)
    except UserError as error:
        raise UntrustedCheckpoint(f"{path}: its header is damaged ({error})") from error
    if isinstance(value, dict) and value.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: checkpoint schema {value.get('schema')!r}, this version reads {SCHEMA}; "
            "use the version of nfc_splat that wrote it (config.json names it)"
        )
    try:
        return from_plain(Header, value, str(path))
    except UserError as error:
        raise UntrustedCheckpoint(f"its header is damaged ({error})") from error


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def discard_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps: a future that is abandoned by resuming from `step`."""
    for number, path in checkpoint_files(folder).items():
        if number > step:
            _sidecar(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Delete what is older than the `keep` newest complete checkpoints up to `step`, what was never completed, and what
    lies after `step`: a future that was damaged or abandoned."""
    files = checkpoint_files(folder)
    kept = [number for number, path in files.items() if number <= step and _sidecar(path).is_file()][:keep]
    for number in set(files) - set(kept):
        # The sidecar first: a file without one is not believed, and goes at the next pruning.
        _sidecar(files[number]).unlink(missing_ok=True)
        files[number].unlink(missing_ok=True)


def _umask() -> int:
    """The process's file mode mask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those tensors that share memory with an earlier one, which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if address in seen and tensor.numel() else tensor
        seen.add(address)
    return result


def split_tensors(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON, its tensors moved into `tensors` under names that start with `name`. `join_tensors` undoes it.

    Dictionaries become lists of pairs, so that keys keep their types (an optimiser's state has integer keys).
    """
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"items": [[key, split_tensors(value, f"{name}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple | list):
        parts = [split_tensors(value, f"{name}/{index}", tensors) for index, value in enumerate(tree)]
        return {"tuple": parts} if isinstance(tree, tuple) else parts
    return tree


def join_tensors(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `split_tensors` was given."""
    if isinstance(tree, list):
        return [join_tensors(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "tuple" in tree:
        return tuple(join_tensors(value, tensors) for value in tree["tuple"])
    return {key: join_tensors(value, tensors) for key, value in tree["items"]}


def differences(mine: Mapping[str, Any], recorded: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings in which two configurations (as JSON) differ, one short phrase each."""
    found = []
    for key in [*mine, *(key for key in recorded if key not in mine)]:
        name, new, old = f"{prefix}{key}", mine.get(key), recorded.get(key)
        if isinstance(new, Mapping) and isinstance(old, Mapping):
            found += differences(new, old, f"{name}.")
        elif new != old:
            found.append(f"{name} {new} (the run: {old})")
    return found
