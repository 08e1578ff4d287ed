"""Meshes and point clouds as geometry evaluation needs them: clean, move, crop, sample.

Symbols: V vertices, F faces, N samples. Lengths are in the file's units. open3d fits boxes and samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.open3d_loader import load_open3d

if TYPE_CHECKING:
    from nfc_splat.rendering.neighbors import PointTree

LARGEST = 1e12  # beyond it squares and their sums lose what is measured


@dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh, or a point cloud when `faces` is None.

    Attributes:
        vertices: [V, 3] float64.
        faces: [F, 3] int32 indices of vertices, or None.
        normals: [V, 3] float64 unit vectors of a cloud's points, or None.
    """

    vertices: np.ndarray
    faces: np.ndarray | None = None
    normals: np.ndarray | None = None

    @property
    def is_cloud(self) -> bool:
        return self.faces is None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to measure: no face, or no point of a cloud."""
        return len(self.vertices if self.faces is None else self.faces) == 0

    def used_vertices(self) -> np.ndarray:
        """[V', 3]: the vertices that a face uses; of a cloud all."""
        if self.faces is None:
            return self.vertices
        used = np.zeros(len(self.vertices), bool)
        used[self.faces] = True
        return self.vertices[used]

    def bounds(self) -> np.ndarray:
        """[2, 3]: the lowest and highest corner of what is measured. Raises ValueError when that is nothing."""
        used = self.used_vertices()
        if len(used) == 0:
            raise ValueError("an empty surface has no bounds")
        return np.stack([used.min(0), used.max(0)])

    def areas(self) -> np.ndarray:
        """[F] areas of the faces."""
        a, b, c = (self.vertices[self.faces[:, corner]] for corner in range(3))
        return 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)

    def counts(self) -> dict[str, Any]:
        """Vertices, faces and area, for a record."""
        if self.faces is None:
            return {"points": len(self.vertices)}
        return {"vertices": len(self.vertices), "faces": len(self.faces), "area": float(self.areas().sum())}


@dataclass(frozen=True, eq=False)
class Samples:
    """Points on a surface.

    Attributes:
        points: [N, 3] float64.
        normals: [N, 3] unit normals of the faces they lie on, or of the cloud's points; None where there are none.
    """

    points: np.ndarray
    normals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def tree(self) -> "PointTree":
        """For nearest neighbours. Raises ValueError without points or with one that is not finite."""
        from nfc_splat.rendering.neighbors import point_tree

        return point_tree(self.points)


def clean_surface(surface: Surface) -> tuple[Surface, dict[str, int]]:
    """Without what cannot be measured, and how much of it there was; nothing may be left.

    Vertices that are not finite (or beyond 1e12) go, with the faces that use them; so do faces without area, which
    sampling would never choose. Everything else stays: faces that share an edge by three, that cross or that face
    different ways are surface like any other. Normals of a cloud that are all zero are none.

    Returns:
        The surface, and `bad_vertices`, `faces_with_bad_vertices`, `faces_without_area`.
    """
    good = (np.abs(surface.vertices) <= LARGEST).all(1)  # False for NaN
    counts = {"bad_vertices": int((~good).sum()), "faces_with_bad_vertices": 0, "faces_without_area": 0}
    if surface.faces is None:
        normals = None if surface.normals is None else _unit(surface.normals[good])
        normals = normals if normals is not None and normals.any() else None
        return Surface(surface.vertices[good], None, normals), counts
    faces, vertices = surface.faces, surface.vertices
    if counts["bad_vertices"]:
        kept = faces[good[faces].all(1)]
        counts["faces_with_bad_vertices"] = len(faces) - len(kept)
        faces, vertices = (np.cumsum(good, dtype=np.int32) - 1)[kept], vertices[good]
    thick = Surface(vertices, faces).areas() > 0
    counts["faces_without_area"] = int((~thick).sum())
    return Surface(vertices, faces if thick.all() else faces[thick]), counts


def _unit(normals: np.ndarray) -> np.ndarray:
    """Normals of length one; those without a direction become zero and agree with nothing."""
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    usable = np.isfinite(lengths) & (lengths > 0)
    return np.where(usable, normals, 0.0) / np.where(usable, lengths, 1.0)


# ------------------------------------------------------------------------------------------------ moving and cropping


def transform_surface(surface: Surface, matrix: np.ndarray) -> Surface:  # [4, 4]
    """The surface moved by an affine map, applied to column vectors."""
    moved = surface.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    normals = surface.normals
    if normals is not None:
        normals = _unit(normals @ np.linalg.inv(matrix[:3, :3]))
    return Surface(moved, surface.faces, normals)


def keep_vertices(surface: Surface, keep: np.ndarray, *, corners: Literal["all", "any"] = "all") -> Surface:
    """The part with the vertices in `keep` [V]: of a cloud those points, of a mesh the faces of which all corners, or
    any, are kept. Faces keep their vertices, and vertices their numbers."""
    if surface.faces is None:
        return Surface(surface.vertices[keep], None, None if surface.normals is None else surface.normals[keep])
    kept = keep[surface.faces]
    return replace(surface, faces=surface.faces[kept.all(1) if corners == "all" else kept.any(1)])


@dataclass(frozen=True, eq=False)
class Box:
    """An oriented box: the points x whose image under the rigid `to_box` lies between -extents / 2 and extents / 2.

    The same pair as `trimesh.bounds.oriented_bounds` gives.

    Attributes:
        to_box: [4, 4] from the surface's frame to the box's, whose origin is the box's centre.
        extents: [3] lengths of the sides.
    """

    to_box: np.ndarray
    extents: np.ndarray

    def scaled(self, factor: float) -> "Box":
        """The box with its sides multiplied, about its centre."""
        return replace(self, extents=self.extents * factor)

    def record(self) -> dict[str, Any]:
        """As written in a box file."""
        return {"to_origin": self.to_box.tolist(), "extents": self.extents.tolist()}

    def contains(self, points: np.ndarray) -> np.ndarray:
        """[N] whether points [N, 3] lie strictly inside."""
        inside = points @ self.to_box[:3, :3].T + self.to_box[:3, 3]
        return (np.abs(inside) < 0.5 * self.extents).all(1)


def oriented_box(points: np.ndarray) -> Box:  # [N, 3]
    """open3d's approximately smallest box around points."""
    open3d = load_open3d()
    try:
        box = open3d.geometry.OrientedBoundingBox.create_from_points_minimal(_vectors(points))
        rotation, center, extents = np.array(box.R), np.array(box.center), np.array(box.extent)
    except RuntimeError:  # flat sets and fewer than four points have no hull
        low, high = points.min(0), points.max(0)
        rotation, center, extents = np.eye(3), (low + high) / 2, high - low
    to_box = np.eye(4)
    to_box[:3, :3] = rotation.T
    to_box[:3, 3] = -rotation.T @ center
    return Box(to_box, extents)


def read_box(value: Mapping[str, Any], source: Path | str) -> Box:
    """A box from parsed JSON: `to_origin` and `extents` as trimesh names them, or `low` and `high` corners.

    Raises:
        UserError: neither, wrong shapes, not a rigid transform, a side that is not positive.
    """
    try:
        if "low" in value:
            low, high = (np.array(value[key], np.float64).reshape(3) for key in ("low", "high"))
            to_box, extents = np.eye(4), high - low
            to_box[:3, 3] = -(low + high) / 2
        else:
            to_box = np.array(value["to_origin"], np.float64).reshape(4, 4)
            extents = np.array(value["extents"], np.float64).reshape(3)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: expected 'to_origin' (4x4) and 'extents' (3), or 'low' and 'high' (3 each); {error!r}"
        ) from error
    rotation = to_box[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5):
        raise UserError(f"{source}: the upper 3x3 of 'to_origin' is not a rotation; a box is not scaled or sheared")
    if not (extents > 0).all():
        raise UserError(f"{source}: sides {extents.tolist()}, expected three positive lengths")
    return Box(to_box, extents)


def crop_to_box(surface: Surface, box: Box) -> Surface:
    """What lies strictly inside: points of a cloud, faces of a mesh with all three corners inside."""
    return keep_vertices(surface, box.contains(surface.vertices))


# ------------------------------------------------------------------------------------------------ sampling


def sample_surface(surface: Surface, count: int, seed: int) -> Samples:
    """`count` points spread evenly over a mesh, with the normals of their faces; of a cloud all its points.

    A face is chosen by its area and a point uniformly in it. The same seed gives the same points.

    Raises:
        ValueError: nothing to sample.
    """
    if surface.is_empty:
        raise ValueError("an empty surface cannot be sampled")
    if surface.faces is None:
        return Samples(surface.vertices, surface.normals)
    open3d = load_open3d()
    mesh = to_open3d(surface)
    open3d.utility.random.seed(seed)
    cloud = mesh.sample_points_uniformly(count, use_triangle_normal=True)
    return Samples(np.array(cloud.points), np.array(cloud.normals))


def to_open3d(surface: Surface) -> Any:
    """An `open3d.geometry.TriangleMesh`, or a `PointCloud`."""
    open3d = load_open3d()
    if surface.faces is None:
        return open3d.geometry.PointCloud(_vectors(surface.vertices))
    triangles = open3d.utility.Vector3iVector(np.ascontiguousarray(surface.faces, np.int32))
    return open3d.geometry.TriangleMesh(_vectors(surface.vertices), triangles)


def _vectors(points: np.ndarray) -> Any:
    return load_open3d().utility.Vector3dVector(np.ascontiguousarray(points, np.float64))
