"""A run folder read with care: finished or not, whole or damaged. What cannot be read is a reason, never a crash."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nfc_splat.errors import UserError
from nfc_splat.files import contained_path, read_json
from nfc_splat.report.curves import MAX_NUMBER, Log, read_log

MAX_BYTES = 64 * 2**20  # of a JSON file or a picture
MAX_PIXELS = 64 * 10**6
TRACES = ("config.json", "metrics.jsonl", "checkpoints", "eval/summary.json")


@dataclass(frozen=True)
class View:
    """A row of `eval/per_view.json`; a metric is None where it does not exist."""

    name: str
    file: str
    size: tuple[int, int]
    psnr: float | None
    ssim: float | None
    lpips: float | None
    identical: bool

    @property
    def rank(self) -> float:
        """PSNR for sorting: a view without a value is the worst, one without error the best."""
        if self.psnr is not None:
            return self.psnr
        return math.inf if self.identical else -math.inf


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: where it is.
        name: what the report calls it, unique among its runs.
        record: of `config.json`, empty where that cannot be read.
        summary: of `eval/summary.json`, None where that is absent or cannot be read.
        views: of `eval/per_view.json`.
        photographs: a fingerprint of the names, sizes and first picture of the views; None without views.
        log: of `metrics.jsonl`.
        problems: what is missing or damaged, and why, one sentence each.
    """

    folder: Path
    name: str
    record: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    views: tuple[View, ...]
    photographs: str | None
    log: Log
    problems: tuple[str, ...]

    def told(self, *keys: str) -> Any:
        """A value of `config.json`, below `keys`; None where it is not."""
        return at(self.record, *keys)

    def measured(self, *keys: str) -> Any:
        """A value of `eval/summary.json`, below `keys`; None where it is not."""
        return at(self.summary, *keys)

    @property
    def scene(self) -> str:
        """The name of the scene's folder."""
        path = self.told("train", "scene")
        return Path(path).name or path if isinstance(path, str) and path else "unknown scene"


def at(record: Any, *keys: str) -> Any:
    """What lies below `keys` in nested mappings; None where it does not."""
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def number(value: Any) -> float | None:
    """A number of a JSON file, of less than `MAX_NUMBER`; None for anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return value if known and abs(value) < MAX_NUMBER else None


def leading(values: Sequence[float | None], texts: Sequence[str], choose: Callable[..., float]) -> list[bool]:
    """Which of several are marked as the best: those that look like it, and none where all look the same.

    Args:
        values: what they are ranked by, None for what has no value and no mark.
        texts: what is shown of them, as many.
        choose: `min` or `max`.
    """
    known = [index for index, value in enumerate(values) if value is not None]
    shown = {texts[index] for index in known}
    best = texts[choose(known, key=values.__getitem__)] if len(shown) > 1 else None
    return [value is not None and text == best for value, text in zip(values, texts, strict=True)]


def is_reportable(folder: Path) -> bool:
    """Whether a training left any trace in `folder`."""
    return any((folder / name).exists() for name in TRACES)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, each once, in the order given, under names that tell them apart.

    Raises:
        UserError: a folder that is no run's.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder in folders:
        if not is_reportable(folder):
            raise UserError(f"{folder}: expected a run folder, as train leaves it, with {', '.join(TRACES[:3])}")
    names = _names([folder.resolve() for folder in folders])
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as tell it apart from the others."""
    count = 1
    while True:
        names = ["/".join(folder.parts[-count:]) or str(folder) for folder in folders]
        if len(set(names)) == len(names):
            return names
        count += 1


def _read_run(folder: Path, name: str) -> Run:
    problems: list[str] = []
    record = _mapping(folder / "config.json", problems) or {}
    log = read_log(folder / "metrics.jsonl")
    problems += log.problems
    summary = _mapping(folder / "eval" / "summary.json", problems)
    if summary is None and not (folder / "eval" / "summary.json").exists():
        problems[-1:] = [_unfinished(record, log)]
    views = _views(folder, problems) if summary is not None else ()
    return Run(folder, name, record, summary, views, _fingerprint(folder, views), log, tuple(problems))


def _mapping(path: Path, problems: list[str]) -> Mapping[str, Any] | None:
    """The object in a JSON file, or None and why."""
    try:
        value = read_json(path, max_bytes=MAX_BYTES)
    except UserError as error:
        problems.append(f"{path.name} is missing." if not path.exists() else f"{error}.")
        return None
    if not isinstance(value, Mapping):
        problems.append(f"{path}: holds no JSON object.")
        return None
    return value


def _unfinished(record: Mapping[str, Any], log: Log) -> str:
    """Why there are no metrics."""
    steps = number(at(record, "train", "model", "steps"))
    reached = "no step is logged" if log.last_step is None else f"the log ends at step {log.last_step:g}"
    if steps is not None and log.last_step == steps:
        return f"All {steps:g} steps are logged, but eval/summary.json is missing: the test views were not measured."
    return f"Not finished: {reached}" + ("" if steps is None else f" of {steps:g}") + ", eval/summary.json is missing."


def _views(folder: Path, problems: list[str]) -> tuple[View, ...]:
    path = folder / "eval" / "per_view.json"
    try:
        rows = read_json(path, max_bytes=MAX_BYTES)
    except UserError as error:
        problems.append("eval/per_view.json is missing." if not path.exists() else f"{error}.")
        return ()
    views = [_view(row) for row in rows] if isinstance(rows, list) else [None]
    if None in views:
        problems.append(f"{path}: {views.count(None)} entries are no views.")
    return tuple(view for view in views if view is not None)


def _view(row: Any) -> View | None:
    name, file, width, height = (at(row, key) for key in ("name", "file", "width", "height"))
    if not (isinstance(name, str) and isinstance(file, str) and isinstance(width, int) and isinstance(height, int)):
        return None
    lpips = next((value for key in ("lpips_alex", "lpips_vgg") if (value := number(row.get(key))) is not None), None)
    metrics = number(row.get("psnr")), number(row.get("ssim")), lpips
    return View(name, file, (width, height), *metrics, row.get("psnr_infinite") is True)


def picture_path(folder: Path, kind: str, file: str) -> Path:
    """A view's picture of the folder `kind`; a `UserError` where its name leads elsewhere."""
    return contained_path(folder / kind, file, source=folder / "eval" / "per_view.json")


def read_png(path: Path, mode: str) -> np.ndarray:
    """Pixels of a PNG in the given mode ("RGB", or "P" for a palette's indices).

    Raises:
        UserError: no such file, too large, no PNG, or another mode.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path.name} has more than {MAX_BYTES} bytes")
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path.name} has more than {MAX_PIXELS} pixels")
            if mode == "P" and image.mode != "P":
                raise UserError(f"{path.name} has no palette")
            return np.asarray(image if mode == "P" else image.convert(mode))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent.name}/{path.name} is missing") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.parent.name}/{path.name} cannot be decoded") from error


def _fingerprint(folder: Path, views: Sequence[View]) -> str | None:
    """Equal for runs that were measured on the same photographs: their names, sizes, and pixels of three of them."""
    if not views:
        return None
    digest = hashlib.sha256(repr(sorted((view.name, view.size) for view in views)).encode(errors="backslashreplace"))
    for view in {views[index].name: views[index] for index in (0, len(views) // 2, -1)}.values():
        try:
            digest.update(read_png(picture_path(folder, "gt", view.file), "RGB").tobytes())
        except UserError:
            digest.update(b"no picture")
    return digest.hexdigest()[:12]
