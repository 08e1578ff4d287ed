"""Where a reconstruction is wrong: coloured clouds and meshes, and a picture that needs no display.

Surfaces are drawn by open3d's ray casting, clouds by projection, both orthographically. A pixel has the colour of its
distance to the other surface, shaded by the angle of the surface. Of a mesh the faces that look away are drawn only
where nothing else is met, so that one looks into a room.

Symbols: H rows, W columns, N points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from nfc_splat.eval.pictures import draw_text, save_image
from nfc_splat.eval.surface import Samples, Surface
from nfc_splat.files import atomic_path
from nfc_splat.open3d_loader import load_open3d

PANEL = 420
_PAPER, _INK, _FAINT = (250, 250, 248), (28, 28, 30), (110, 110, 116)
_LAYERS = 6  # faces that look away, before one gives up
# Grey where nothing is wrong, so that shading still shows the shape; then yellow through red to violet, ever darker.
_RAMP = (
    (0.00, (186, 194, 204)),
    (0.25, (250, 206, 110)),
    (0.50, (240, 122, 50)),
    (0.75, (194, 32, 60)),
    (1.00, (74, 6, 76)),
)
# Directions of looking, z up; from both ends, or a ceiling and the back of what stands along y would not be seen.
VIEWS = ((-1.0, -1.3, -0.9), (1.0, 1.3, -0.9), (0.0, 1e-3, -1.0), (0.0, -1e-3, 1.0))
# For every axis that may be up, the three that x, y and z of `VIEWS` become.
UPRIGHT = {
    "x": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "-x": ((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "-y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
}


Distance = Callable[[np.ndarray], np.ndarray]  # points [N, 3] -> [N]


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the picture: a surface, and what its distance is measured to.

    Attributes:
        title: what is shown.
        surface: what is drawn.
        distance: of points to the other surface; None where there is none.
    """

    title: str
    surface: Surface
    distance: Distance | None


def distance_to_samples(reference: Samples) -> Distance:
    """Distances to the nearest sample, as they are measured."""
    from nfc_splat.rendering.neighbors import nearest_neighbors

    return lambda points: nearest_neighbors(Samples(points).tree, reference.tree)[0] if len(points) else np.empty(0)


def distance_to_surface(surface: Surface) -> Distance:
    """Distances to the nearest place on a mesh, by open3d in float32, free of the noise of sampling; to the nearest
    point of a cloud."""
    if surface.faces is None:
        return distance_to_samples(Samples(surface.vertices))
    center, size = surface.bounds().mean(0), np.ptp(surface.bounds(), axis=0).max()
    scene = _scene(surface, center, size)
    return lambda points: scene.compute_distance(_tensor((points - center) / size, np.float32)).numpy() * float(size)


def _tensor(values: np.ndarray, kind: type) -> Any:
    return load_open3d().core.Tensor(np.ascontiguousarray(values, kind))


def _scene(surface: Surface, center: np.ndarray, size: float) -> Any:
    """An open3d RaycastingScene of a mesh, about the origin and of about unit size, where float32 serves."""
    scene = load_open3d().t.geometry.RaycastingScene()
    scene.add_triangles(_tensor((surface.vertices - center) / size, np.float32), _tensor(surface.faces, np.uint32))
    return scene


def error_colors(distances: np.ndarray, full_scale: float) -> np.ndarray:
    """uint8 [..., 3]: grey for 0, darkest for `full_scale` and more."""
    stops = [full_scale * stop for stop, _ in _RAMP]
    channels = [np.interp(distances, stops, [color[channel] for _, color in _RAMP]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


# ------------------------------------------------------------------------------------------------ files


def write_error_ply(path: Path, surface: Surface, distances: np.ndarray, full_scale: float) -> None:
    """A binary PLY of a mesh or cloud, with a colour and the scalar `distance` per vertex [N]."""
    kinds = [("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    vertices = np.empty(len(surface.vertices), [*kinds, ("distance", "<f4")])
    for axis, name in enumerate("xyz"):
        vertices[name] = surface.vertices[:, axis]
    colors = error_colors(distances, full_scale)
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = colors[:, channel]
    vertices["distance"] = distances
    words = {"<f8": "double", "u1": "uchar", "<f4": "float"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    lines += [f"property {words[kind]} {name}" for name, kind in (*kinds, ("distance", "<f4"))]
    faces = np.empty(0 if surface.faces is None else len(surface.faces), [("count", "u1"), ("corners", "<i4", (3,))])
    if surface.faces is not None:
        faces["count"], faces["corners"] = 3, surface.faces
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write("\n".join([*lines, "end_header\n"]).encode())
        file.write(vertices.tobytes() + faces.tobytes())


def compacted(surface: Surface) -> Surface:
    """A mesh without the vertices that no face uses; a cloud as it is."""
    if surface.faces is None:
        return surface
    used, faces = np.unique(surface.faces, return_inverse=True)
    return Surface(surface.vertices[used], faces.reshape(-1, 3).astype(np.int32))


# ------------------------------------------------------------------------------------------------ drawing


@dataclass(frozen=True, eq=False)
class _Frame:
    """An orthographic camera on a box: image axes and where the picture begins."""

    right: np.ndarray
    down: np.ndarray
    forward: np.ndarray
    center: np.ndarray
    width: float  # of the picture, in the surface's units
    depth: float  # of the box, from its middle

    def pixels(self) -> np.ndarray:
        """[PANEL, PANEL, 3] places on the image plane in front of the box."""
        offsets = ((np.arange(PANEL) + 0.5) / PANEL - 0.5) * self.width
        plane = self.center - self.depth * self.forward
        return plane + offsets[None, :, None] * self.right + offsets[:, None, None] * self.down


def _frame(direction: Sequence[float], bounds: np.ndarray, up: str) -> _Frame:
    """The camera that looks along `direction`, one of `VIEWS` or another with z up, turned so that the axis `up` is up,
    at a box [2, 3] and sees all of it."""
    turned = np.array(UPRIGHT[up], np.float64)
    forward = np.array(direction) @ turned / np.linalg.norm(direction)
    right = np.cross(forward, turned[2])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    corners = np.stack(np.meshgrid(*bounds.T, indexing="ij"), -1).reshape(-1, 3) - bounds.mean(0)
    extent = max(np.abs(corners @ right).max(), np.abs(corners @ down).max(), 1e-12)
    return _Frame(right, down, forward, bounds.mean(0), 2.08 * extent, 1.1 * np.abs(corners @ forward).max() + extent)


def _named(forward: np.ndarray) -> str:
    """A direction of looking in words."""
    signs = [
        f"{'-' if value < 0 else '+'}{axis}" for value, axis in zip(forward, "xyz", strict=True) if abs(value) > 0.01
    ]
    return f"along {' '.join(signs)}"


def draw_surface(row: Row, frame: _Frame, full_scale: float) -> np.ndarray:
    """uint8 [PANEL, PANEL, 3] picture of one surface in the colours of its error."""
    picture = np.broadcast_to(np.array(_PAPER, np.uint8), (PANEL, PANEL, 3)).copy()
    hit, points, shade = (_cast if row.surface.faces is not None else _project)(row.surface, frame)
    if not hit.any():
        return picture
    if row.distance is None:
        colors = np.full((len(points), 3), 120.0)
    else:
        colors = error_colors(row.distance(points), full_scale).astype(float)
    picture[hit] = (colors * shade[:, None]).clip(0, 255).astype(np.uint8)
    return picture


def _cast(surface: Surface, frame: _Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where rays meet a mesh: mask [H, W], points [N, 3] and shade [N] of the pixels in it."""
    scene = _scene(surface, frame.center, frame.width)
    origins = ((frame.pixels().reshape(-1, 3) - frame.center) / frame.width).astype(np.float32)
    forward = frame.forward.astype(np.float32)
    distance, shade = np.full(len(origins), np.inf), np.zeros(len(origins))
    away, away_shade = np.full(len(origins), np.inf), np.zeros(len(origins))
    active, begin = np.arange(len(origins)), np.zeros(len(origins), np.float32)
    for _ in range(_LAYERS):
        rays = np.concatenate([origins[active] + begin[active, None] * forward, np.tile(forward, (len(active), 1))], 1)
        found = scene.cast_rays(_tensor(rays, np.float32))
        reach, cosine = found["t_hit"].numpy(), found["primitive_normals"].numpy() @ -forward
        met = np.isfinite(reach)
        active, depth, cosine = active[met], begin[active[met]] + reach[met], cosine[met]
        facing = cosine > 0
        distance[active[facing]], shade[active[facing]] = depth[facing], cosine[facing]
        first = ~facing & np.isinf(away[active])
        away[active[first]], away_shade[active[first]] = depth[first], -cosine[first]
        active, depth = active[~facing], depth[~facing]
        begin[active] = depth + 1e-4
        if len(active) == 0:
            break
    behind = np.isinf(distance)
    distance, shade = np.where(behind, away, distance), np.where(behind, away_shade, shade)
    hit = np.isfinite(distance)
    points = frame.center + frame.width * (origins[hit] + distance[hit, None] * forward)
    return hit.reshape(PANEL, PANEL), points, 0.55 + 0.45 * shade[hit]


def _project(surface: Surface, frame: _Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest point of a cloud in each pixel, each point as 2x2 pixels; as `_cast`."""
    relative = surface.vertices - frame.center
    depth = relative @ frame.forward
    nearest = np.full((PANEL, PANEL), -1)
    columns, rows = (
        np.floor((relative @ axis / frame.width + 0.5) * PANEL).astype(int) for axis in (frame.right, frame.down)
    )
    order = np.argsort(-depth, kind="stable")  # the nearest is written last
    for dy in (0, 1):
        for dx in (0, 1):
            c, r = columns[order] + dx, rows[order] + dy
            inside = (c >= 0) & (c < PANEL) & (r >= 0) & (r < PANEL)
            cell, index = r[inside] * PANEL + c[inside], order[inside]
            layer = np.full(PANEL * PANEL, -1)
            layer[cell] = index
            layer = layer.reshape(PANEL, PANEL)
            closer = (layer >= 0) & ((nearest < 0) | (depth[layer] < depth[nearest]))
            nearest = np.where(closer, layer, nearest)
    hit = nearest >= 0
    chosen = nearest[hit]
    span = max(np.ptp(depth), 1e-12)
    return hit, surface.vertices[chosen], 1.0 - 0.35 * (depth[chosen] - depth.min()) / span


# ------------------------------------------------------------------------------------------------ the picture


def distance_picture(
    title: str,
    subtitle: str,
    rows: Sequence[Row],
    full_scale: float,
    scale_labels: Sequence[tuple[float, str]],
    up: str,
) -> Image.Image:
    """Every row from the directions of `VIEWS`, all at one scale, above a bar that says what the colours mean.

    Args:
        title, subtitle: the lines on top.
        rows: what to draw.
        full_scale: the distance of the last colour.
        scale_labels: (distance, text) marks of the bar.
        up: the axis that is up, of `UPRIGHT`.
    """
    gap, margin, top, caption, below, bottom = 10, 24, 92, 30, 22, 64
    width = 2 * margin + len(VIEWS) * PANEL + (len(VIEWS) - 1) * gap
    sheet = Image.new("RGB", (width, top + len(rows) * (caption + PANEL + below) + bottom), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw_text(draw, (margin, 18), title, 22, _INK, width - 2 * margin)
    draw_text(draw, (margin, 50), subtitle, 15, _FAINT, width - 2 * margin)
    ends = np.stack([row.surface.bounds() for row in rows if not row.surface.is_empty])
    bounds = np.stack([ends[:, 0].min(0), ends[:, 1].max(0)])
    y = top
    for row in rows:
        draw_text(draw, (margin, y + 6), row.title, 16, _INK, width - 2 * margin)
        y += caption
        for column, direction in enumerate(VIEWS):
            x, frame = margin + column * (PANEL + gap), _frame(direction, bounds, up)
            if not row.surface.is_empty:
                sheet.paste(Image.fromarray(draw_surface(row, frame, full_scale)), (x, y))
            draw_text(draw, (x + 4, y + PANEL), _named(frame.forward), 13, _FAINT, PANEL)
        y += PANEL + below
    _draw_scale(sheet, draw, (margin, y + 8), width - 2 * margin, full_scale, scale_labels)
    return sheet


def _draw_scale(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    width: int,
    full_scale: float,
    labels: Sequence[tuple[float, str]],
) -> None:
    """The colour bar with its marks."""
    bar = error_colors(np.tile(np.linspace(0, full_scale, width), (14, 1)), full_scale)
    sheet.paste(Image.fromarray(bar), at)
    for value, text in labels:
        x = at[0] + round(min(value / full_scale, 1.0) * (width - 1))
        draw.line((x, at[1] + 14, x, at[1] + 20), fill=_INK)
        length = draw.textlength(text, font_size=13)
        place = min(max(x - length / 2, at[0]), at[0] + width - length)
        draw_text(draw, (place, at[1] + 22), text, 13, _FAINT, width)


def write_distance_picture(path: Path, *arguments: object) -> None:
    """`distance_picture` as a PNG file."""
    save_image(path, distance_picture(*arguments))
