"""Meshes by formula: patches, boxes, rounded boxes, lathes and tubes.

Symbols: V vertices, T triangles, and a surface's parameter grid of U x W points. Lengths are in metres, z is up, and
triangles are counter-clockwise seen from outside. `uvs` are metres along the surface, so that one texture has one size
everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Vector = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with what shading needs.

    Attributes:
        vertices: [V, 3] float64 metres.
        triangles: [T, 3] int64, counter-clockwise from outside.
        normals: [V, 3] float64 unit, outward, for shading.
        uvs: [V, 2] float64 texture coordinates in metres.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray

    def moved(self, offset: Vector = (0, 0, 0), *, yaw: float = 0.0, pitch: float = 0.0) -> "Mesh":
        """Turned by `pitch` about x, then by `yaw` about z (radians), then shifted."""
        turn = _turn_z(yaw) @ _turn_x(pitch)
        return replace(self, vertices=self.vertices @ turn.T + np.asarray(offset), normals=self.normals @ turn.T)

    def stretched(self, factors: Vector) -> "Mesh":
        """Scaled along the axes by positive `factors`; texture coordinates stay."""
        factors = np.asarray(factors, dtype=np.float64)
        return replace(self, vertices=self.vertices * factors, normals=_unit(self.normals / factors))

    def with_uvs(self, change: Callable[[np.ndarray], np.ndarray]) -> "Mesh":
        """With texture coordinates `change(uvs)`."""
        return replace(self, uvs=change(self.uvs))


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many."""
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        triangles=np.concatenate([mesh.triangles + start for mesh, start in zip(meshes, starts, strict=False)]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        uvs=np.concatenate([mesh.uvs for mesh in meshes]),
    )


def surface(points: np.ndarray, *, uvs: np.ndarray | None = None, flip: bool = False) -> Mesh:
    """The mesh of a parameter grid.

    Args:
        points: [U, W, 3]. Rows or columns that coincide (the seam of a tube, a pole) stay separate vertices at equal
            positions; triangles without area are left out.
        uvs: [U, W, 2], or None for arc lengths along the middle row and column.
        flip: outside is the other side. The default has outside along d/du x d/dw.
    """
    height, width = points.shape[:2]
    if uvs is None:
        uvs = np.stack(np.meshgrid(_arc(points[:, width // 2]), _arc(points[height // 2]), indexing="ij"), axis=-1)
    index = np.arange(height * width).reshape(height, width)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    triangles = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
    if flip:
        triangles = triangles[:, ::-1]
    vertices = points.reshape(-1, 3).astype(np.float64)
    corners = vertices[triangles]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)
    triangles = triangles[areas > 1e-12]
    return Mesh(vertices, triangles, smooth_normals(vertices, triangles), uvs.reshape(-1, 2).astype(np.float64))


def smooth_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[V, 3] area-weighted vertex normals; vertices at one position share theirs, so that seams do not show."""
    _, group = np.unique(np.round(vertices, 7), axis=0, return_inverse=True)
    group = group.reshape(-1)
    corners = vertices[triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    members = group[triangles].ravel()
    sums = [np.bincount(members, np.repeat(faces[:, axis], 3), group.max() + 1) for axis in range(3)]
    return _unit(np.stack(sums, axis=-1))[group]


def patch(corner: Vector, along_u: Vector, along_w: Vector, spacing: float = 0.05) -> Mesh:
    """A flat parallelogram, tessellated every `spacing` metres; outside is along_u x along_w."""
    corner, along_u, along_w = (np.asarray(vector, dtype=np.float64) for vector in (corner, along_u, along_w))
    s = np.linspace(0, 1, _steps(np.linalg.norm(along_u), spacing))[:, None, None]
    t = np.linspace(0, 1, _steps(np.linalg.norm(along_w), spacing))[None, :, None]
    return surface(corner + s * along_u + t * along_w)


def box(center: Vector, size: Vector, spacing: float = 0.05, *, faces: str = "xXyYzZ") -> Mesh:
    """An axis-aligned box. `faces` names those present: `x` is the face towards -x, `X` the one towards +x."""
    half = np.asarray(size, dtype=np.float64) / 2
    unit = np.eye(3)
    sides = []
    for name in faces:
        axis = "xyz".index(name.lower())
        sign = 1.0 if name.isupper() else -1.0
        u, w = unit[(axis + 1) % 3], unit[(axis + 2) % 3]
        if sign < 0:
            u, w = w, u
        # Upright faces carry uv = (horizontal, up), so that grain, bricks and spines stand upright.
        corner = unit[axis] * sign * half - u * half - w * half
        side = patch(np.asarray(center) + corner, 2 * u * half, 2 * w * half, spacing)
        if abs(u[2]) == 1.0:
            side = side.with_uvs(lambda uvs: uvs[:, ::-1])
        sides.append(side)
    return merge(sides)


def rounded_box(center: Vector, size: Vector, radius: float, spacing: float = 0.04) -> Mesh:
    """A box whose edges and corners have `radius`; closed."""
    half = np.asarray(size, dtype=np.float64) / 2
    if radius > half.min():
        raise ValueError(f"radius {radius} exceeds half the smallest side of {tuple(size)}")
    rough = box((0, 0, 0), size, min(spacing, radius / 2))
    inner = np.clip(rough.vertices, radius - half, half - radius)
    vertices = inner + radius * _unit(rough.vertices - inner)
    return replace(rough, vertices=vertices + np.asarray(center), normals=smooth_normals(vertices, rough.triangles))


def lathe(profile: Vector, segments: int = 64, *, ripple: float = 0.0, flutes: int = 0, twist: float = 0.0) -> Mesh:
    """A surface of revolution about z.

    Args:
        profile: [U, 2] pairs (radius, z), from the bottom's centre outwards and up; outside is to the right of it.
        ripple: depth of the flutes as a fraction of the radius.
        flutes: how many, around.
        twist: by how many radians per metre of height they wind.
    """
    profile = np.asarray(profile, dtype=np.float64)
    turn = np.linspace(0, 2 * np.pi, segments + 1)
    turn[-1] = 0.0  # the seam closes exactly
    radius, z = profile[:, :1], profile[:, 1:]
    bend = 1 + ripple * np.cos(flutes * turn[None, :] + twist * z) if flutes else np.ones((len(profile), len(turn)))
    points = np.stack([radius * bend * np.cos(turn), radius * bend * np.sin(turn), z + 0 * turn], axis=-1)
    around = np.linspace(0, 2 * np.pi * profile[:, 0].max(), segments + 1)
    uvs = np.stack(np.meshgrid(_arc(profile), around, indexing="ij"), axis=-1)[..., ::-1]
    return surface(points, uvs=uvs, flip=True)


def tube(path: np.ndarray, radius: float, segments: int = 16) -> Mesh:
    """A round tube along a closed `path` [U, 3] (without a repeated last point)."""
    following, leading = np.roll(path, -1, axis=0), np.roll(path, 1, axis=0)
    tangent = _unit(following - leading)
    # A frame that bends as little as possible; what it has turned by when the path closes is undone along the way.
    side = np.empty_like(path)
    side[0] = _unit(np.cross(tangent[0], _any_other(tangent[0])))
    for i in range(1, len(path)):
        side[i] = _unit(side[i - 1] - (side[i - 1] @ tangent[i]) * tangent[i])
    last = _unit(side[-1] - (side[-1] @ tangent[0]) * tangent[0])
    excess = np.arctan2(np.cross(side[0], last) @ tangent[0], side[0] @ last)
    other = np.cross(tangent, side)
    lag = -excess * np.arange(len(path)) / len(path)
    turn = np.linspace(0, 2 * np.pi, segments + 1)
    turn[-1] = 0.0
    angle = lag[:, None] + turn[None, :]
    ring = np.cos(angle)[..., None] * side[:, None] + np.sin(angle)[..., None] * other[:, None]
    points = path[:, None] + radius * ring
    points = np.concatenate([points, points[:1]])
    lengths = np.linspace(0, np.linalg.norm(following - path, axis=1).sum(), len(path) + 1)
    around = np.linspace(0, 2 * np.pi * radius, segments + 1)
    return surface(points, uvs=np.stack(np.meshgrid(lengths, around, indexing="ij"), axis=-1), flip=True)


def cylinder(radius: float, z0: float, z1: float, segments: int = 32, *, top: float | None = None) -> Mesh:
    """A closed cylinder about z; with `top`, a frustum with that radius above."""
    upper = radius if top is None else top
    wall = lathe(np.linspace((radius, z0), (upper, z1), _steps(z1 - z0, 0.05)), segments)
    rings = _steps(max(radius, upper), 0.05)
    lid = lathe(np.linspace((upper, z1), (0, z1), rings), segments)
    floor = lathe(np.linspace((0, z0), (radius, z0), rings), segments)
    return merge([replace(end, uvs=end.vertices[:, :2]) if end is not wall else end for end in (floor, wall, lid)])


def sphere(radius: float, segments: int = 48) -> Mesh:
    """A sphere about the origin."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    profile = radius * np.stack([np.cos(latitude), np.sin(latitude)], axis=-1)
    profile[[0, -1], 0] = 0.0
    return lathe(profile, segments)


def torus_knot(p: int, q: int, radius: float, thickness: float, points: int = 240) -> Mesh:
    """A (p, q) torus knot as a tube; (1, 0) is a plain ring in the xy plane."""
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    reach = radius * (1 + 0.5 * np.cos(q * t)) if q else np.full(points, radius)
    path = np.stack([reach * np.cos(p * t), reach * np.sin(p * t), radius * 0.5 * np.sin(q * t)], axis=-1)
    return tube(path, thickness)


def _steps(length: float, spacing: float) -> int:
    return max(2, int(np.ceil(length / spacing)) + 1)


def _arc(points: np.ndarray) -> np.ndarray:
    """Cumulative length along a polyline."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=-1))])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _any_other(vector: np.ndarray) -> np.ndarray:
    """An axis that is not parallel to `vector`."""
    return np.eye(3)[np.argmin(np.abs(vector))]


def _turn_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _turn_x(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])
