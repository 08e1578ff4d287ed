"""Ray casting: all parts of a scene as one mesh, and what rays meet.

Symbols: R rays, T triangles, V vertices, A values per corner.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nfc_splat.open3d_loader import load_open3d
from nfc_splat.scenery.scene import Part
from nfc_splat.scenery.shapes import merge

OFFSET = np.float32(2e-4)  # metres that a secondary ray starts above its surface


@dataclass(frozen=True)
class Hits:
    """Where rays met the scene.

    Attributes:
        distance: [R] float32 in lengths of the ray's direction, infinite where it left the scene.
        triangle: [R] int64, 0 where it left the scene.
        u, v: [R] float32 weights of the triangle's second and third corner.
    """

    distance: np.ndarray
    triangle: np.ndarray
    u: np.ndarray
    v: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """[R] bool."""
        return np.isfinite(self.distance)

    def pick(self, index: np.ndarray) -> "Hits":
        """The hits at `index`."""
        return Hits(self.distance[index], self.triangle[index], self.u[index], self.v[index])

    def interpolate(self, corners: np.ndarray) -> np.ndarray:
        """[R, A] values at the hits of per-corner values [T, 3, A]."""
        picked = corners[self.triangle]
        result = picked[:, 0] * (1 - self.u - self.v)[:, None]
        result += picked[:, 1] * self.u[:, None]
        result += picked[:, 2] * self.v[:, None]
        return result


class Geometry:
    """All parts of a scene as one mesh for ray casting."""

    def __init__(self, parts: list[Part]):
        """Join `parts` and build the acceleration structures."""
        mesh = merge([part.mesh for part in parts])
        self.parts = parts
        self.vertices = mesh.vertices.astype(np.float32)  # [V, 3] exactly what is traced and what is saved
        self.triangles = mesh.triangles  # [T, 3]
        self.normals = mesh.normals.astype(np.float32)
        self.uvs = mesh.uvs.astype(np.float32)
        self.vertex_part = np.repeat(np.arange(len(parts)), [len(part.mesh.vertices) for part in parts])
        self.triangle_part = np.repeat(np.arange(len(parts)), [len(part.mesh.triangles) for part in parts])
        self._visible = self._build(np.ones(len(self.triangles), dtype=bool))

    @cached_property
    def _opaque(self) -> tuple[Any, Any, np.ndarray]:
        flags = np.array([part.material.opaque for part in self.parts])
        return self._build(flags[self.triangle_part])

    def _build(self, keep: np.ndarray) -> tuple[Any, Any, np.ndarray]:
        core, scene = load_open3d().core, load_open3d().t.geometry.RaycastingScene()
        scene.add_triangles(core.Tensor(self.vertices), core.Tensor(self.triangles[keep].astype(np.uint32)))
        return core, scene, np.flatnonzero(keep)

    def cast(self, origins: np.ndarray, directions: np.ndarray, *, opaque_only: bool = False) -> Hits:
        """The first surfaces along rays [R, 3] + t [R, 3]; shadowless parts are skipped on request."""
        core, scene, triangles = self._opaque if opaque_only else self._visible
        answer = scene.cast_rays(core.Tensor(_pack(origins, directions)))
        distance = answer["t_hit"].numpy()
        found = np.where(np.isfinite(distance), answer["primitive_ids"].numpy(), 0).astype(np.int64)
        uv = answer["primitive_uvs"].numpy()
        return Hits(distance, triangles[found], np.ascontiguousarray(uv[:, 0]), np.ascontiguousarray(uv[:, 1]))

    def blocked(self, origins: np.ndarray, directions: np.ndarray, limit: float) -> np.ndarray:
        """[R] whether something opaque lies on the rays before `limit` direction lengths."""
        core, scene, _ = self._opaque
        return scene.test_occlusions(core.Tensor(_pack(origins, directions)), 0.0, limit).numpy()


def _pack(origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    rays = np.empty((len(directions), 6), np.float32)
    rays[:, :3], rays[:, 3:] = origins, directions
    return rays
