"""Meshes with vertex colours: moved, rid of small pieces, and written as PLY, OBJ or GLB.

The files are written here and not by open3d, whose OBJ has six digits and whose GLB (0.20) its own reader refuses.

Symbols: V vertices, T triangles.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nfc_splat.files import atomic_path
from nfc_splat.open3d_loader import load_open3d

FORMATS = (".ply", ".obj", ".glb")


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with a colour per vertex.

    Attributes:
        vertices: [V, 3] float64.
        triangles: [T, 3] int64, counter-clockwise seen from outside.
        colors: [V, 3] uint8 as in the photographs (sRGB), or None.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    colors: np.ndarray | None = None

    def normals(self) -> np.ndarray:
        """[V, 3] float64 unit normals: means over the triangles around, by area; 0 where these cancel."""
        a, b, c = (self.vertices[self.triangles[:, corner]] for corner in range(3))
        crossed = np.cross(b - a, c - a)
        total = np.stack(
            [
                sum(np.bincount(self.triangles[:, corner], crossed[:, axis], len(self.vertices)) for corner in range(3))
                for axis in range(3)
            ],
            1,
        )
        length = np.linalg.norm(total, axis=1, keepdims=True)
        return total / np.where(length > 0, length, 1)

    def moved(self, matrix: np.ndarray) -> "Mesh":
        """The mesh under an affine map [4, 4], outside still outside where it mirrors."""
        mirrored = np.linalg.det(matrix[:3, :3]) < 0
        triangles = np.ascontiguousarray(self.triangles[:, ::-1]) if mirrored else self.triangles
        return replace(self, vertices=self.vertices @ matrix[:3, :3].T + matrix[:3, 3], triangles=triangles)

    def of_triangles(self, kept: np.ndarray) -> "Mesh":
        """The triangles `kept` [T] bool, and the vertices that they use."""
        triangles = self.triangles[kept]
        used = np.zeros(len(self.vertices), bool)
        used[triangles] = True
        colors = None if self.colors is None else self.colors[used]
        return Mesh(self.vertices[used], (np.cumsum(used) - 1)[triangles], colors)


def large_pieces(mesh: Mesh, min_triangles: int, largest_only: bool) -> tuple[Mesh, int, int]:
    """The pieces of at least `min_triangles` triangles, or the one with the largest area alone.

    A piece is what hangs together by edges. Returns the mesh, how many pieces there were and how many are left.
    """
    open3d = load_open3d()
    vectors = open3d.utility
    shape = open3d.geometry.TriangleMesh(
        vectors.Vector3dVector(mesh.vertices), vectors.Vector3iVector(mesh.triangles.astype(np.int32))
    )
    piece, counts, areas = (np.asarray(part) for part in shape.cluster_connected_triangles())
    good = counts >= min_triangles
    if largest_only:
        good &= np.arange(len(areas)) == areas.argmax()
    return mesh.of_triangles(good[piece]), len(counts), int(good.sum())


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Write `path` atomically, in the format that its name ends with: .ply, .obj or .glb.

    PLY keeps positions in double precision and OBJ in nine digits, GLB has single precision and linear colours, as
    glTF says.
    """
    content = {".ply": _ply, ".obj": _obj, ".glb": _glb}[path.suffix.lower()](mesh)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _ply(mesh: Mesh) -> bytes:
    position, color = [(axis, "<f8") for axis in "xyz"], [(name, "u1") for name in ("red", "green", "blue")]
    vertices = np.empty(len(mesh.vertices), position + (color if mesh.colors is not None else []))
    for index, (name, _) in enumerate(position):
        vertices[name] = mesh.vertices[:, index]
    if mesh.colors is not None:
        for index, (name, _) in enumerate(color):
            vertices[name] = mesh.colors[:, index]
    faces = np.empty(len(mesh.triangles), [("count", "u1"), ("corners", "<i4", (3,))])
    faces["count"], faces["corners"] = 3, mesh.triangles
    words = {"f8": "double", "u1": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    lines += [f"property {words[vertices.dtype[name].str[1:]]} {name}" for name in vertices.dtype.names]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header\n"]
    return "\n".join(lines).encode() + vertices.tobytes() + faces.tobytes()


def _obj(mesh: Mesh) -> bytes:
    """Colours follow the positions, as most programs that know them in OBJ expect."""
    columns, pattern = mesh.vertices, "v" + 3 * " {:.9g}"
    if mesh.colors is not None:
        columns, pattern = np.concatenate([columns, mesh.colors / 255], 1), pattern + 3 * " {:.4g}"
    lines = [pattern.format(*row) for row in columns.tolist()]
    lines += ["f {} {} {}".format(*row) for row in (mesh.triangles + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


def _glb(mesh: Mesh) -> bytes:
    """glTF 2.0 in one binary file."""
    positions = np.ascontiguousarray(mesh.vertices, "<f4")
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    chunks, attributes = [(mesh.triangles.astype("<u4"), 34963), (positions, 34962)], {"POSITION": 1}
    accessors = [
        {"bufferView": 0, "componentType": 5125, "count": mesh.triangles.size, "type": "SCALAR"},
        {"bufferView": 1, "componentType": 5126, "count": len(positions), "type": "VEC3", **bounds},
    ]
    if mesh.colors is not None:
        chunks.append((_linear(mesh.colors), 34962))
        attributes["COLOR_0"] = 2
        accessors.append(
            {"bufferView": 2, "componentType": 5123, "normalized": True, "count": len(positions), "type": "VEC4"}
        )
    views, binary = [], b""
    for array, target in chunks:
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes, "target": target})
        binary += array.tobytes()
    description = {
        "asset": {"version": "2.0", "generator": "nfc_splat"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 0, "material": 0}]}],
        "materials": [{"doubleSided": True, "pbrMetallicRoughness": {"metallicFactor": 0.0}}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(description, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    sizes = np.array([12 + 8 + len(text) + 8 + len(binary), len(text), len(binary)], "<u4")
    header = b"glTF" + np.array([2], "<u4").tobytes() + sizes[:1].tobytes()
    return header + sizes[1:2].tobytes() + b"JSON" + text + sizes[2:].tobytes() + b"BIN\0" + binary


def _linear(colors: np.ndarray) -> np.ndarray:
    """[V, 4] uint16 linear colours with alpha 1 of sRGB ones [V, 3] uint8."""
    levels = np.arange(256) / 255
    table = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    opaque = np.full((len(colors), 1), 65535, "<u2")
    return np.concatenate([(table * 65535).round().astype("<u2")[colors], opaque], 1)
