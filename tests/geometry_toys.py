"""Surfaces with known distances, and open3d where it can be had."""

import numpy as np
import pytest

from nfc_splat.errors import UserError
from nfc_splat.eval.surface import Surface, to_open3d
from nfc_splat.open3d_loader import load_open3d


def open3d_or_skip():
    """The module; the test is skipped, with the reason, where it does not load."""
    try:
        return load_open3d()
    except UserError as error:
        pytest.skip(str(error))


def box_mesh(sides=(6.0, 5.0, 3.0), divisions=0):
    """A closed box with a corner at the origin, outward normals; each division cuts every face in four."""
    mesh = open3d_or_skip().geometry.TriangleMesh.create_box(*sides)
    return as_surface(mesh.subdivide_midpoint(divisions) if divisions else mesh)


def sphere_mesh(radius=1.0, divisions=60):
    """A sphere around the origin."""
    return as_surface(open3d_or_skip().geometry.TriangleMesh.create_sphere(radius, divisions))


def as_surface(mesh):
    return Surface(np.array(mesh.vertices), np.array(mesh.triangles, np.int32))


def moved(surface, shift):
    return Surface(surface.vertices + np.asarray(shift, float), surface.faces)


def joined(*surfaces):
    """All of them as one mesh."""
    starts = np.cumsum([0, *(len(surface.vertices) for surface in surfaces)])
    faces = [surface.faces + start for surface, start in zip(surfaces, starts, strict=False)]
    return Surface(np.concatenate([s.vertices for s in surfaces]), np.concatenate(faces).astype(np.int32))


def write_mesh(path, surface):
    """Save by open3d; returns the path."""
    if not open3d_or_skip().io.write_triangle_mesh(str(path), to_open3d(surface)):
        raise OSError(f"open3d did not write {path}")
    return path


def looking_poses(places, targets):
    """[C, 4, 4] OpenCV camera-to-world matrices at `places`, looking at `targets`, z up in the world."""
    poses = np.tile(np.eye(4), (len(places), 1, 1))
    for pose, place, target in zip(poses, np.asarray(places, float), np.asarray(targets, float), strict=True):
        forward = (target - place) / np.linalg.norm(target - place)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, 3] = place
    return poses


def panorama(place, count=12, tilt=0.0):
    """Poses at one place that look around."""
    angles = 2 * np.pi * np.arange(count) / count
    around = np.stack([np.cos(angles), np.sin(angles), np.full(count, tilt)], axis=1)
    return looking_poses([place] * count, np.asarray(place) + around)


def write_trajectory(path, poses):
    path.write_text("\n".join(" ".join(f"{value:.9g}" for value in pose.reshape(-1)) for pose in poses) + "\n")
    return path
