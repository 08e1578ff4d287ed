"""Wavefront OBJ files with polygons, which open3d 0.20 leaves out of the mesh without a word.

Only positions and faces are read. A polygon is cut into a fan of triangles from its first corner, which is exact for
flat convex ones.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from nfc_splat.errors import UserError

_POLYGON = re.compile(rb"^[ \t]*f(?:[ \t]+[^\s#]+){4}", re.MULTILINE)


def has_polygons(path: Path) -> bool:
    """Whether a face has more than three corners."""
    return _POLYGON.search(path.read_bytes()) is not None


def read_polygons(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] float64 and triangles [F, 3] int32.

    Raises:
        UserError: a line that is not OBJ, with its number.
    """
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            try:
                if words[:1] == ["v"]:
                    x, y, z = words[1:4]
                    vertices.append([float(x), float(y), float(z)])
                elif words[:1] == ["f"]:
                    corners = [_index(word, len(vertices)) for word in words[1:]]
                    faces += [(corners[0], *pair) for pair in pairwise(corners[1:])]
            except ValueError as error:
                raise UserError(f"{path}: line {number} is not OBJ ({error}); export the mesh again") from error
    return np.array(vertices, np.float64).reshape(-1, 3), np.array(faces, np.int64).reshape(-1, 3).astype(np.int32)


def _index(corner: str, count: int) -> int:
    """The vertex of a corner such as 7, 7/2/5, or -1 for the last one so far; counted from 0 here."""
    index = int(corner.partition("/")[0])
    found = index - 1 if index > 0 else count + index
    if index == 0 or not -1 < found < 2**31:
        raise ValueError(f"corner {corner!r}")
    return found
