"""Points and colours out of a PLY file: ASCII, binary little and big endian.

The header may have 64 kB; a count is believed only if the rest of the file can hold that many rows. Properties that are
not x, y, z, red, green, blue are skipped over.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfc_splat.errors import UserError

MAX_HEADER = 64 * 1024
TYPES = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2"},
    **{"uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
ENCODINGS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True)
class Cloud:
    """points [M, 3] float32, colors [M, 3] float32 in [0, 1] or None, and how many rows were not finite."""

    points: np.ndarray
    colors: np.ndarray | None
    dropped: int


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]]  # name, numpy type; type "list" for a list property


def read_ply_points(path: Path) -> Cloud:
    """Read the vertices of `path`; raises a `UserError` naming it for whatever is wrong with it."""
    try:
        with open(path, "rb") as handle:
            order, elements = _read_header(handle, path)
            remaining = path.stat().st_size - handle.tell()
            table = _read_vertices(handle, path, order, elements, remaining)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return _cloud(table)


def _read_header(handle, path: Path) -> tuple[str, list[_Element]]:
    """Byte order ("" for ASCII) and elements; leaves `handle` after the header."""
    lines, size = [], 0
    while not lines or lines[-1] != "end_header":
        raw = handle.readline(MAX_HEADER - size + 1)
        size += len(raw)
        if size > MAX_HEADER or not raw.endswith(b"\n"):
            raise UserError(f"{path}: not a PLY file, or its header does not end within {MAX_HEADER} bytes")
        lines.append(raw.decode("latin-1").strip())
        if lines[0] != "ply":
            raise UserError(f"{path}: does not begin with `ply`; expected a PLY point cloud")
    order, elements = None, []
    for line in lines[1:-1]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3 and words[1] in ENCODINGS:
            order = ENCODINGS[words[1]]
        elif words[0] == "element" and len(words) == 3 and words[2].isascii() and words[2].isdigit():
            elements.append(_Element(words[1], int(words[2][:18]), []))
        elif words[0] == "property" and elements and _property(words) is not None:
            elements[-1].properties.append(_property(words))
        else:
            raise UserError(f"{path}: the PLY header line {line[:80]!r} makes no sense")
    if order is None:
        raise UserError(f"{path}: the PLY header names no format, expected one of {', '.join(ENCODINGS)}")
    return order, elements


def _property(words: list[str]) -> tuple[str, str] | None:
    if len(words) == 3 and words[1] in TYPES:
        return words[2], TYPES[words[1]]
    if len(words) == 5 and words[1] == "list" and words[2] in TYPES and words[3] in TYPES:
        return words[4], "list"
    return None


def _read_vertices(handle, path: Path, order: str, elements: list[_Element], remaining: int) -> dict[str, np.ndarray]:
    """The columns x, y, z and, if there, red, green, blue, as stored."""
    names = [element.name for element in elements]
    if names.count("vertex") != 1:
        raise UserError(f"{path}: {names.count('vertex')} vertex elements, expected 1")
    before, vertex = elements[: names.index("vertex")], elements[names.index("vertex")]
    columns = [name for name, _ in vertex.properties]
    if missing := [axis for axis in "xyz" if axis not in columns]:
        raise UserError(f"{path}: the vertices lack {', '.join(missing)}; expected the properties x, y and z")
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise UserError(f"{path}: the vertices have the property {twice[:40]!r} twice; expected each once")
    for element in [*before, vertex]:
        if any(kind == "list" for _, kind in element.properties):
            raise UserError(f"{path}: list properties in or before the vertices are not supported")
    for element in [*before, vertex]:
        stride = _stride(element, order)
        if element.count * stride > remaining:
            raise UserError(f"{path}: claims {element.count} rows of {element.name}, more than the file can hold")
        if element is not vertex and order:
            handle.seek(element.count * stride, 1)
        remaining -= element.count * stride
    if order:
        layout = np.dtype([(name, order + kind) for name, kind in vertex.properties])
        table = np.frombuffer(handle.read(vertex.count * layout.itemsize), layout)
        return {name: table[name] for name in columns}
    return _read_ascii(handle, path, sum(element.count for element in before), vertex)


def _stride(element: _Element, order: str) -> int:
    """Bytes of a row; in ASCII the fewest it can have: a digit and a separator per property."""
    if not order:
        return max(2 * len(element.properties) - 1, 1)
    return sum(np.dtype(kind).itemsize for _, kind in element.properties)


def _read_ascii(handle, path: Path, skip: int, vertex: _Element) -> dict[str, np.ndarray]:
    rows = np.empty((vertex.count, len(vertex.properties)))
    for i in range(-skip, vertex.count):
        words = handle.readline(2**20).split()
        if i < 0:
            continue
        if len(words) != rows.shape[1]:
            raise UserError(f"{path}: vertex {i} has {len(words)} numbers, expected {rows.shape[1]}")
        try:
            rows[i] = [float(word) for word in words]
        except ValueError as error:
            raise UserError(f"{path}: vertex {i}: {error}; expected numbers") from error
    return {name: _as_stored(rows[:, i], kind) for i, (name, kind) in enumerate(vertex.properties)}


def _as_stored(column: np.ndarray, kind: str) -> np.ndarray:
    """A column of numbers read as text in the type that the header gives it."""
    if np.issubdtype(np.dtype(kind), np.integer):
        limits = np.iinfo(kind)
        column = np.nan_to_num(column).clip(limits.min, limits.max)
    with np.errstate(over="ignore"):  # becomes infinite, and the row is dropped
        return column.astype(kind)


def _cloud(table: dict[str, np.ndarray]) -> Cloud:
    points = np.stack([table[name] for name in "xyz"], -1).astype(np.float64)
    with np.errstate(over="ignore"):
        points = points.astype(np.float32)
    finite = np.isfinite(points).all(-1)
    colors = None
    if {"red", "green", "blue"} <= set(table):
        channels = [_unit(table[name]) for name in ("red", "green", "blue")]
        colors = np.stack(channels, -1).astype(np.float32)[finite]
    return Cloud(points[finite], colors, int((~finite).sum()))


def _unit(column: np.ndarray) -> np.ndarray:
    """Colours in [0, 1]: integers by their type's largest value, floating-point numbers as they are."""
    if np.issubdtype(column.dtype, np.integer):
        return column / np.iinfo(column.dtype).max
    return np.nan_to_num(column).clip(0, 1)
