"""What stands in the scene beside the model: photographs where they were taken, meshes and clouds of the run folder.

Symbols: V vertices, F faces.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from nfc_splat.errors import UserError
from nfc_splat.view.space import Frame

if TYPE_CHECKING:
    from nfc_splat.cameras import Cameras
    from nfc_splat.data import Scene
    from nfc_splat.view.drawn import Photograph

MOST_VIEWS = 150  # of a split: more frusta hide each other, and every thumbnail is sent
THUMBNAIL = 128  # longest side
MOST_FACES, MOST_POINTS = 1_000_000, 400_000
SURFACES = ("mesh.ply", "mesh.obj", "mesh.glb", "mesh-eval/*.ply")  # below a run folder
_GREY = (170, 172, 178)

log = logging.getLogger("nfc_splat")


@dataclass(frozen=True, eq=False)
class View:
    """One photograph.

    Attributes:
        split, index: which one.
        name: what a visitor calls it.
        camera: one.
    """

    split: str
    index: int
    name: str
    camera: "Cameras"


def chosen_views(scene: "Scene") -> list[View]:
    """The views that are shown: of each split all, or `MOST_VIEWS` spread evenly over its order."""
    views = []
    for split, content in scene.splits.items():
        count = min(len(content), MOST_VIEWS)
        for index in np.linspace(0, len(content) - 1, count).round().astype(int).tolist():
            views.append(View(split, index, f"{split}: {content.names[index]}", content.cameras[index]))
    return views


def thumbnail(scene: "Scene", view: View) -> np.ndarray:
    """The photograph over the scene's background, uint8 [H, W, 3], no side longer than `THUMBNAIL`."""
    from nfc_splat.eval.pictures import to_bytes

    image = Image.fromarray(to_bytes(scene.splits[view.split].target(view.index, scene.background)))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(image)


def photograph(scene: "Scene", view: View, longest: int) -> "Photograph":
    """What the model's picture at a view is compared with, reduced so that no side exceeds `longest`."""
    from nfc_splat.view.drawn import Photograph

    split = scene.splits[view.split]
    found = Photograph(view.camera, split.target(view.index, scene.background), split.mask(view.index))
    width, height = view.camera.sizes[0].tolist()
    scale = longest / max(width, height)
    return found if scale >= 1 else found.at(max(1, round(width * scale)), max(1, round(height * scale)))


def frustum_size(cameras: "Cameras") -> float:
    """How far a frustum reaches, in world units: so far that neighbours do not meet, and a tenth of the rig at most."""
    centers = cameras.centers.double().cpu()
    spread = float((centers - centers.mean(0)).norm(dim=-1).max())
    if len(centers) < 2 or spread == 0:
        return 0.1 * (spread or 1.0)
    some = centers[:: 1 + len(centers) // 500]
    distances = torch.cdist(some, centers)
    nearest = torch.where(distances > 1e-6 * spread, distances, torch.inf).amin(1)
    return float(min(0.5 * nearest.median(), 0.1 * spread))


@dataclass(frozen=True, eq=False)
class Shape:
    """A mesh, or a cloud where `faces` is None, in the viewer's frame.

    Attributes:
        vertices: [V, 3] float32.
        faces: [F, 3] int32, or None.
        colors: [V, 3] uint8.
    """

    vertices: np.ndarray
    faces: np.ndarray | None
    colors: np.ndarray


def shape_files(folder: Path) -> list[Path]:
    """The meshes and clouds that `export mesh` and `eval mesh` left in a run folder."""
    return sorted(path for pattern in SURFACES for path in folder.glob(pattern))


def read_shape(path: Path, frame: Frame, world_to_truth: torch.Tensor | None) -> Shape:
    """A mesh or a cloud, thinned out where it is too large to be sent.

    Args:
        path: one of `shape_files`.
        frame: the viewer's.
        world_to_truth: [4, 4] where the scene states one: `export mesh` has applied it, and here it is undone.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    from nfc_splat.eval.surface_files import read_surface

    surface = read_surface(path)
    vertices, faces, colors = surface.vertices, surface.faces, _vertex_colors(path, len(surface.vertices))
    if surface.is_empty or not np.isfinite(vertices).all():
        raise UserError(f"{path}: holds nothing, or coordinates that are not finite; export it again")
    if world_to_truth is not None:
        back = np.linalg.inv(world_to_truth.double().numpy())
        vertices = vertices @ back[:3, :3].T + back[:3, 3]
    if faces is not None and len(faces) > MOST_FACES:
        log.info("%s: has %d triangles; its vertices are shown as a cloud", path, len(faces))
        faces = None
    if faces is None:
        step = 1 + (len(vertices) - 1) // MOST_POINTS
        vertices, colors = vertices[::step], colors[::step]
    return Shape(frame.shown(vertices).astype(np.float32), faces, colors)


def _vertex_colors(path: Path, count: int) -> np.ndarray:
    """[V, 3] uint8 of a PLY that has them, else grey."""
    if path.suffix == ".ply":
        from nfc_splat.data.ply import read_ply_points

        colors = read_ply_points(path).colors
        if colors is not None and len(colors) == count:
            return np.round(255 * colors).astype(np.uint8)
    return np.tile(np.array(_GREY, np.uint8), (count, 1))
