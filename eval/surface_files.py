"""Mesh and point files, read strictly: what is cut off or out of range is refused, never made up.

PLY, OBJ and OFF are read here, STL and glTF by open3d. open3d 0.20 returns memory as it found it for what a truncated
PLY or OFF lacks, believes any count in a header, and leaves OBJ's polygons out of the mesh without a word. Polygons are
cut into fans of triangles from their first corners, which is exact for flat convex ones.

Symbols: V vertices, P polygons, T triangles.
"""

import re
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.surface import Surface
from nfc_splat.open3d_loader import load_open3d

_HEADER = re.compile(rb"\Aply[ \t\r]*\n(.*?)^end_header[ \t\r]*\n", re.DOTALL | re.MULTILINE)
_MAX_HEADER = 2**16
_TYPES = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2"},
    **{"uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
Ragged = tuple[np.ndarray, np.ndarray]  # lengths [P] and, one after the other, the numbers of all lists


def read_surface(path: Path | str) -> Surface:
    """A mesh, or a cloud where the file has no faces, as it stands in the file; it may be empty.

    Raises:
        UserError: no such file, of a kind that is not read, not what its name says, cut off, faces of absent vertices.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {found}; expected a mesh or a point cloud in one of {', '.join(_READERS)}")
    if path.suffix.lower() not in _READERS:
        found = f"files ending in {path.suffix}" if path.suffix else "files without an ending"
        raise UserError(f"{path}: {found} are not read; expected one of {', '.join(_READERS)}")
    try:
        surface = _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _Broken as error:
        raise UserError(f"{path}: {error}; download or export it again") from error
    if surface.faces is None or len(surface.faces) == 0:
        return surface
    low, high = surface.faces.min(), surface.faces.max()
    if not 0 <= low <= high < len(surface.vertices):  # false for NaN too
        count = len(surface.vertices)
        raise UserError(
            f"{path}: faces name vertices {low:.0f} to {high:.0f}, the file has {count}; export the mesh again"
        )
    return Surface(surface.vertices, surface.faces.astype(np.int32))


class _Broken(Exception):
    """Why a file is not what it should be."""


def fans(lengths: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """[T, 3] triangles of P polygons of `lengths` corners each, which follow each other in `corners`.

    What has less than three corners has no area and gives none.
    """
    if (lengths == 3).all():
        return corners.reshape(-1, 3)
    counts = np.maximum(lengths - 2, 0)
    first = np.repeat(np.cumsum(lengths) - lengths, counts)
    step = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return corners[np.stack([first, first + step, first + step + 1], axis=1)]


# ------------------------------------------------------------------------------------------------ PLY


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str, str | None]]  # name, numpy type, and type of the length of a list


def _read_ply(path: Path) -> Surface:
    """Positions, normals of a cloud, and polygons."""
    data = path.read_bytes()
    order, elements, offset = _ply_header(data)
    if order == "=":  # a text is a table of doubles
        data, offset = _numbers(data[offset:]).tobytes(), 0
        elements = [
            _Element(e.name, e.count, [(n, "f8", None if of is None else "f8") for n, _, of in e.properties])
            for e in elements
        ]
    found: dict[str, dict[str, np.ndarray | Ragged]] = {}
    for element in elements:
        found[element.name], offset = _rows(data, offset, element, order)
    columns, polygons = found.get("vertex", {}), found.get("face", {})
    if any(not isinstance(columns.get(axis), np.ndarray) for axis in "xyz"):
        raise _Broken("has no element 'vertex' with x, y and z")
    vertices = _stacked(columns, "xyz")
    lists = [polygons[name] for name in ("vertex_indices", "vertex_index") if name in polygons]
    if len(polygons) and not lists:
        raise _Broken(f"faces have {', '.join(polygons)}, expected vertex_indices")
    if lists and len(lists[0][0]):
        return Surface(vertices, fans(lists[0][0].astype(np.int64), lists[0][1]))
    if any(element.name == "tristrips" and element.count for element in elements):
        raise _Broken("holds triangle strips, expected faces")
    normals = ("nx", "ny", "nz")
    return Surface(vertices, None, _stacked(columns, normals) if set(normals) <= set(columns) else None)


def _stacked(columns: dict, names: Sequence[str]) -> np.ndarray:
    return np.stack([columns[name] for name in names], axis=1).astype(np.float64)


def _ply_header(data: bytes) -> tuple[str, list[_Element], int]:
    """Byte order ("=" for text), elements, and where the rows begin."""
    header = _HEADER.match(data[:_MAX_HEADER])
    if header is None:
        raise _Broken("is not PLY: expected a header from 'ply' to 'end_header'")
    order, elements = None, []
    for line in header[1].decode("latin-1").splitlines():
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, _] if name in _ORDERS:
                order = _ORDERS[name]
            case ["element", name, count] if count.isascii() and count.isdigit():
                elements.append(_Element(name, int(count[:18]), []))
            case ["property", "list", length, kind, name] if elements and length in _TYPES and kind in _TYPES:
                elements[-1].properties.append((name, _TYPES[kind], _TYPES[length]))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].properties.append((name, _TYPES[kind], None))
            case _:
                raise _Broken(f"has the PLY header line {line.strip()[:80]!r}")
    if order is None:
        raise _Broken(f"has a PLY header without a format, expected one of {', '.join(_ORDERS)}")
    return order, elements, header.end()


def _rows(data: bytes, offset: int, element: _Element, order: str) -> tuple[dict[str, np.ndarray | Ragged], int]:
    """The columns of an element, and where the next one begins."""
    if element.count == 0 or not element.properties:
        return {name: (np.empty(0), np.empty(0)) if of else np.empty(0) for name, _, of in element.properties}, offset
    row = _first_row(data, offset, element, order)
    end = offset + element.count * row.itemsize
    if end <= len(data):
        table = np.frombuffer(data, row, element.count, offset)
        lists = [name for name, _, of in element.properties if of]
        if all((table[f"length of {name}"] == table[name].shape[1]).all() for name in lists):
            columns = {name: table[name] for name, *_ in element.properties}
            lengths = {name: table[f"length of {name}"] for name in lists}
            return columns | {name: (lengths[name], columns[name].reshape(-1)) for name in lists}, end
    elif not any(of for *_, of in element.properties):
        raise _cut_off(element, (len(data) - offset) // row.itemsize)
    return _ragged_rows(data, offset, element, order)


def _first_row(data: bytes, offset: int, element: _Element, order: str) -> np.dtype:
    """The type of rows with lists as long as those of the first."""
    fields: list[tuple] = []
    for name, kind, of in element.properties:
        if of:
            at = offset + np.dtype(fields).itemsize
            if at + np.dtype(of).itemsize > len(data):
                raise _cut_off(element, 0)
            length = _whole(np.frombuffer(data, order + of, 1, at)[0], element, 0)
            fields += [(f"length of {name}", order + of), (name, order + kind, (length,))]
        else:
            fields.append((name, order + kind))
    try:
        return np.dtype(fields)
    except ValueError as error:
        raise _Broken(f"has two properties of one name in '{element.name}'") from error


def _ragged_rows(data: bytes, offset: int, element: _Element, order: str) -> tuple[dict[str, Ragged], int]:
    """The lists of an element, where they differ in length, and where the next element begins."""
    plan = [
        (name, np.dtype(kind).itemsize, of and struct.Struct(order + np.dtype(of).char))
        for name, kind, of in element.properties
    ]
    found: dict[str, list[tuple[int, int]]] = {name: [] for name, _, of in plan if of}  # begin and length of each list
    for row in range(element.count):
        for name, size, of in plan:
            if of is not None and offset + of.size <= len(data):
                length = _whole(of.unpack_from(data, offset)[0], element, row)
                offset += of.size
                found[name].append((offset, length))
                offset += length * size
            else:
                offset += size
            if offset > len(data):
                raise _cut_off(element, row)
    buffer, columns = np.frombuffer(data, np.uint8), {}
    for name, kind, _ in (p for p in element.properties if p[2]):
        begins, lengths = np.array(found[name], np.int64).T
        size = np.dtype(kind).itemsize
        place = np.repeat(begins - size * (np.cumsum(lengths) - lengths), lengths) + size * np.arange(lengths.sum())
        numbers = buffer[place[:, None] + np.arange(size)].reshape(-1).view(order + kind)
        columns[name] = lengths, numbers
    return columns, offset


def _whole(length: float, element: _Element, row: int) -> int:
    """The length of a list, checked: texts may hold anything."""
    if not 0 <= length < 2**31 or length != int(length):
        raise _Broken(f"has a list of {length:g} numbers in row {row} of '{element.name}'")
    return int(length)


def _cut_off(element: _Element, rows: int) -> _Broken:
    return _Broken(f"is cut off: it has {rows:,} of {element.count:,} rows of '{element.name}'")


# ------------------------------------------------------------------------------------------------ OBJ, OFF


def _read_obj(path: Path) -> Surface:
    """Positions and polygons."""
    vertices: list[tuple[float, float, float]] = []
    lengths, corners = [], []
    for number, line in enumerate(path.read_bytes().replace(b"\\\n", b" ").split(b"\n"), start=1):
        words = line.partition(b"#")[0].split()
        try:
            if words[:1] == [b"v"]:
                x, y, z = words[1:4]
                vertices.append((float(x), float(y), float(z)))
            elif words[:1] == [b"f"]:
                lengths.append(len(words) - 1)
                for word in words[1:]:
                    index = int(word.partition(b"/")[0])
                    if index == 0:
                        raise ValueError("corners are counted from 1")
                    corners.append(index - 1 if index > 0 else len(vertices) + index)
        except ValueError as error:
            raise _Broken(f"line {number} is not OBJ ({error})") from error
    positions = np.array(vertices, np.float64).reshape(-1, 3)
    if not lengths:
        return Surface(positions)
    if not -(2**62) < min(corners) <= max(corners) < 2**62:
        raise _Broken(f"faces name vertices {min(corners)} to {max(corners)}")
    return Surface(positions, fans(np.array(lengths), np.array(corners, np.int64)))


def _read_off(path: Path) -> Surface:
    """Positions and polygons; colours and normals of vertices and faces are passed over."""
    lines = [line for raw in path.read_bytes().split(b"\n") if (line := raw.partition(b"#")[0].split())]
    if not lines or not lines[0][0].endswith(b"OFF"):
        raise _Broken("is not OFF: expected the word OFF at its beginning")
    if lines[0][0] not in (b"OFF", b"COFF", b"NOFF", b"CNOFF", b"STOFF"):
        raise _Broken(f"is {lines[0][0].decode('latin-1')}, expected OFF with three coordinates")
    lines = [lines[0][1:], *lines[1:]] if len(lines[0]) > 1 else lines[1:]
    try:
        count, polygons = (int(word) for word in lines[0][:2])
        rows = lines[1 : 1 + count + polygons]
        if count < 0 or polygons < 0 or len(rows) < count + polygons:
            raise _Broken(f"is cut off: {count} vertices and {polygons} faces are stated, it has {len(rows)} rows")
        positions = np.array([[float(word) for word in row[:3]] for row in rows[:count]]).reshape(count, 3)
        faces = [[int(word) for word in row[1 : 1 + int(row[0])]] for row in rows[count:]]
        if any(len(face) != int(row[0]) for face, row in zip(faces, rows[count:], strict=True)):
            raise _Broken("has a face with fewer corners than it states")
    except (IndexError, ValueError) as error:
        raise _Broken(f"is not OFF ({error})") from error
    if not faces:
        return Surface(positions)
    lengths = np.array([len(face) for face in faces])
    return Surface(positions, fans(lengths, np.array([corner for face in faces for corner in face], np.int64)))


# ------------------------------------------------------------------------------------------------ the rest


def _read_xyz(path: Path) -> Surface:
    """A cloud, three numbers a line; further columns are passed over."""
    points = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        words = line.partition(b"#")[0].split()
        try:
            if words:
                x, y, z = words[:3]
                points.append((float(x), float(y), float(z)))
        except ValueError as error:
            raise _Broken(f"line {number} is not XYZ ({error})") from error
    return Surface(np.array(points, np.float64).reshape(-1, 3))


def _read_by_open3d(path: Path) -> Surface:
    """A mesh with all its parts in place. What open3d cannot read it returns empty."""
    open3d = load_open3d()
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        mesh = open3d.io.read_triangle_mesh(str(path))
    if not len(mesh.triangles):
        raise _Broken("open3d finds no mesh in it")
    return Surface(np.array(mesh.vertices), np.array(mesh.triangles, np.int64))


def _numbers(text: bytes) -> np.ndarray:
    """All numbers of a text, [N] float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy's word for what is no number
        try:
            return np.fromstring(text, np.float64, sep=" ") if text.strip() else np.empty(0)
        except (DeprecationWarning, ValueError) as error:
            raise _Broken("has something that is no number among its rows") from error


_READERS = {
    ".ply": _read_ply,
    ".obj": _read_obj,
    ".off": _read_off,
    ".stl": _read_by_open3d,
    ".glb": _read_by_open3d,
    ".gltf": _read_by_open3d,
    ".xyz": _read_xyz,
}
