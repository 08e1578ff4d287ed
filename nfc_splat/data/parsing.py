"""Values out of JSON and text that nobody vouches for; a refusal is a `UserError` naming the file and the key."""

import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.data.capture import MAX_COORDINATE, MAX_FRAMES, Lens
from nfc_splat.errors import UserError
from nfc_splat.files import contained_path, read_json

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
MAX_TEXT_BYTES = 2**31
MAX_LINE = 2**24
MAX_PATH = 4096
# As a share of fx; what it bends at the border of a 1600 pixel wide image is below a pixel.
MAX_SKEW = 1e-3


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object at the top level, got {_kind(value)}")
    return value


def read_frames(meta: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """The `frames` of a transforms or meta_data file: a list of objects, not empty, not too long."""
    frames = meta.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path}: expected `frames` to be a list of objects, got {_kind(frames)}")
    if not frames:
        raise UserError(f"{path}: `frames` is empty; expected at least one posed image")
    if len(frames) > MAX_FRAMES:
        raise UserError(f"{path}: {len(frames)} frames, expected at most {MAX_FRAMES}")
    return frames


def number(mapping: Mapping[str, Any], key: str, where: str, *, integral: bool = False) -> float | None:
    """The finite number under `key`, or None if it is absent."""
    if key not in mapping or mapping[key] is None:
        return None
    value = mapping[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: `{key}` is {_kind(value)}, expected a number")
    value = _float(value)
    if not math.isfinite(value):
        raise UserError(f"{where}: `{key}` is {value}, expected a finite number")
    if integral and value != round(value):
        raise UserError(f"{where}: `{key}` is {value}, expected a whole number")
    return value


def pixels(mapping: Mapping[str, Any], key: str, where: str) -> int | None:
    """An image width or height."""
    value = number(mapping, key, where, integral=True)
    if value is not None and not 1 <= value <= 2**20:
        raise UserError(f"{where}: `{key}` is {value:g}, expected 1 to {2**20} pixels")
    return None if value is None else int(value)


def text(mapping: Mapping[str, Any], key: str, where: str) -> str | None:
    """The non-empty string under `key`, or None if it is absent."""
    value = mapping.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: `{key}` is {_kind(value)}, expected the path or name as text")
    return value


def matrix(value: Any, key: str, where: str, shapes: tuple[tuple[int, int], ...] = ((4, 4), (3, 4))) -> np.ndarray:
    """Nested lists of numbers as float64; 3x4 gains the row 0 0 0 1. Infinities pass: poses are judged later."""
    expected = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
    rows = value if isinstance(value, list) else []
    shape = (len(rows), len(rows[0]) if rows and isinstance(rows[0], list) else 0)
    if shape not in shapes or not all(isinstance(row, list) and len(row) == shape[1] for row in rows):
        raise UserError(f"{where}: `{key}` is {_kind(value)}, expected {expected} numbers in nested lists")
    if any(isinstance(entry, bool) or not isinstance(entry, int | float) for row in rows for entry in row):
        raise UserError(f"{where}: `{key}` holds something that is not a number, expected {expected} numbers")
    result = np.array([[_float(entry) for entry in row] for row in rows], dtype=np.float64)
    if shape == (3, 4):
        result = np.vstack([result, [0.0, 0.0, 0.0, 1.0]])
    return result


def vector(mapping: Mapping[str, Any], key: str, count: int, where: str) -> list[float] | None:
    """The list of `count` finite numbers under `key`, or None if it is absent."""
    value = mapping.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count or None in value:
        raise UserError(f"{where}: `{key}` is {_kind(value)}, expected a list of {count} numbers")
    return [number({key: entry}, key, where) for entry in value]


def pinhole_lens(
    K: np.ndarray, where: str, width: int | None = None, height: int | None = None, *, shift: float = 0.0
) -> Lens:
    """The lens of an intrinsic matrix [3 or 4, 3 or 4]; `shift` is what leads to pixel centres at +0.5.

    Refuses what is not finite or absurdly large, what is no intrinsic matrix, and skew, which no camera here has.
    """
    if not (np.abs(K) <= MAX_COORDINATE).all():
        raise UserError(f"{where}: the intrinsics hold a number that is not finite or beyond {MAX_COORDINATE:g}")
    if abs(K[0, 1]) > MAX_SKEW * abs(K[0, 0]):
        raise UserError(f"{where}: the intrinsics have skew {K[0, 1]:g}, expected none; undistort the images first")
    expected = np.eye(4)[: K.shape[0], : K.shape[1]]
    expected[:2, :3] = K[:2, :3]
    expected[1, 0] = 0
    if np.abs(K - expected).max() > MAX_SKEW:
        raise UserError(
            f"{where}: the intrinsics are {K.tolist()}, expected the rows `fx 0 cx`, `0 fy cy` and `0 0 1`; "
            "is the matrix transposed or scaled?"
        )
    fx, fy, cx, cy = (float(value) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    return Lens(width, height, fx, fy, cx + shift, cy + shift, origin=where)


def scene_box(corners: np.ndarray, where: str) -> np.ndarray:
    """`corners` [2, 3], checked to be the lowest and the highest corner of a box of some size."""
    if not np.abs(corners).max() <= MAX_COORDINATE:
        raise UserError(f"{where} is {corners.tolist()}, expected finite numbers up to {MAX_COORDINATE:g}")
    if not (corners[0] < corners[1]).all():
        raise UserError(f"{where} is {corners.tolist()}, expected the lowest corner, then the highest")
    return corners


def scene_path(root: Path, name: str, *, allow_external: bool, source: Path | str) -> Path:
    """`name` below `root`, as `nfc_splat.files.contained_path`, whatever the operating system thinks of the name.

    Names that cannot be printed are refused: they would break messages, file lists and the pages made of them.
    """
    if len(name) > MAX_PATH:
        raise UserError(f"{source}: a path has {len(name)} characters, expected at most {MAX_PATH}: {name[:80]!r}...")
    if not _printable(name):
        raise UserError(
            f"{source}: the path {name[:200]!r} holds line breaks, control characters or what is not UTF-8; rename it"
        )
    try:
        return contained_path(root, name, allow_external=allow_external, source=source)
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, names that cannot be encoded
        raise UserError(f"{source}: the path {name[:200]!r} cannot be followed ({error})") from error


def _printable(name: str) -> bool:
    """Whether a name is free of control characters, lone surrogates (undecodable bytes), line and paragraph breaks."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def image_path(root: Path, name: str, *, allow_external: bool, source: Path | str) -> Path:
    """The image called `name`, its extension added if it was left out. If no such file exists: as named."""
    path = scene_path(root, name, allow_external=allow_external, source=source)
    if is_file(path):
        return path
    candidates = [name + suffix for suffix in IMAGE_SUFFIXES]
    if "\\" in name:
        candidates.append(name.replace("\\", "/"))
    for candidate in candidates:
        other = scene_path(root, candidate, allow_external=allow_external, source=source)
        if is_file(other):
            return other
    return path


def is_file(path: Path) -> bool:
    """Whether `path` is a file; names that the system refuses are not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def opencv_from_opengl(camera_to_world: np.ndarray) -> np.ndarray:
    """Turn the camera's axes from OpenGL's (x right, y up, looking along -z) to OpenCV's; the world stays."""
    return camera_to_world * np.array([1.0, -1.0, -1.0, 1.0])


def text_lines(path: Path):
    """The lines of a text file with their numbers, from 1; refuses what is not text or has endless lines."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes of text, expected at most {MAX_TEXT_BYTES}")
        with open(path, encoding="utf-8-sig") as handle:  # Windows editors begin a file with a byte-order mark
            count = 0
            while line := handle.readline(MAX_LINE):
                count += 1
                if len(line) == MAX_LINE:
                    raise UserError(f"{path}: line {count} has more than {MAX_LINE} characters")
                yield count, line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error


def floats(words: list[str], where: str) -> list[float]:
    """The numbers that `words` spell; nan and inf pass."""
    try:
        return [float(word) for word in words]
    except ValueError as error:
        wrong = next(word for word in words if not _is_number(word))
        raise UserError(f"{where}: {wrong[:80]!r} is not a number; expected numbers") from error


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _kind(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, dict | list):
        return f"a JSON {'object' if isinstance(value, dict) else 'list'} of {len(value)}"
    return repr(value)[:80]
