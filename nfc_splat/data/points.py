"""Initial points from a file of the user's: PLY, or text with x, y, z first on each line."""

from pathlib import Path

import numpy as np

from nfc_splat.data.ply import Cloud, read_ply_points
from nfc_splat.errors import UserError


def read_points(path: Path) -> Cloud:
    """Read `path`. Text may separate its numbers by blanks, commas or semicolons, and have comments after "#".

    Raises:
        UserError: the file cannot be read, has a line without three numbers, or no finite point.
    """
    cloud = read_ply_points(path) if path.suffix.lower() == ".ply" else _read_text(path)
    if not len(cloud.points):
        raise UserError(f"--points {path}: holds no finite point; expected one or more")
    return cloud


def _read_text(path: Path) -> Cloud:
    rows = []
    try:
        with open(path, encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                words = line.partition("#")[0].replace(",", " ").replace(";", " ").split()
                if words:
                    rows.append(_numbers(words, f"--points {path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--points {path}: cannot be read as text ({error})") from error
    points = np.array(rows, np.float32).reshape(-1, 3)
    finite = np.isfinite(points).all(1)
    return Cloud(points[finite], None, int((~finite).sum()))


def _numbers(words: list[str], where: str) -> list[float]:
    try:
        x, y, z = (float(word) for word in words[:3])
    except ValueError as error:
        raise UserError(f"{where}: {' '.join(words[:3])!r}, expected x, y, z") from error
    return [x, y, z]
