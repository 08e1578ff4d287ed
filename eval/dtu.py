"""The DTU protocol, in millimetres: even points on the mesh, the observation mask, the ground plane, 20 mm at most.

    mesh -> mask culling (optional) -> points 0.2 apart -> greedy thinning at 0.2 -> the observed box -> distances

Accuracy is from the points that the observation mask keeps to the scan, completeness from the scan above the ground
plane to the points in the box. Distances of 20 and more are dropped from the means, not cut; the overall figure is the
mean of the two, which is Chamfer-L1 (mean) here.

Files: `ObsMask{n}_10.mat` and `Plane{n}.mat` of DTU's evaluation set (scipy reads them), and `stl{nnn}_total.ply`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.surface import Surface, keep_vertices

SPACING = 0.2
FARTHEST = 20.0
BELOW, ABOVE = 60.0, 120.0  # how far the box reaches beyond the mask's, on the low and (twice) on the high side
DILATION = 12


@dataclass(frozen=True, eq=False)
class Observed:
    """What DTU says was observed of a scan.

    Attributes:
        mask: [X, Y, Z] bool.
        box: [2, 3] the mask's corners, mm.
        resolution: mm per voxel of the mask.
        plane: [4] of the ground: points with plane . (p, 1) > 0 are above it.
    """

    mask: np.ndarray
    box: np.ndarray
    resolution: float
    plane: np.ndarray


def scan_number(gt: Path | str) -> int:
    """24 from `stl024_total.ply`. Raises a UserError when the name has no number."""
    found = re.search(r"(\d+)", Path(gt).name)
    if found is None:
        raise UserError(f"{gt}: expected the scan's number in the name, as in stl024_total.ply")
    return int(found.group(1))


def read_observed(folder: Path, scan: int) -> Observed:
    """From DTU's `ObsMask` folder, given itself or as the folder that holds it.

    Raises:
        UserError: scipy is missing; a file is, or does not hold what it should.
    """
    root = folder / "ObsMask" if (folder / "ObsMask").is_dir() else folder
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError("DTU's .mat files are read by scipy, which is not installed: pip install scipy") from error
    values: dict[str, np.ndarray] = {}
    for name, keys in ((f"ObsMask{scan}_10.mat", ("ObsMask", "BB", "Res")), (f"Plane{scan}.mat", ("P",))):
        path = root / name
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; --scene is DTU's folder with ObsMask{scan}_10.mat and Plane{scan}.mat"
            )
        try:
            content = loadmat(path)
            values |= {key: np.asarray(content[key]) for key in keys}
        except (ValueError, KeyError, NotImplementedError, TypeError) as error:
            raise UserError(f"{path}: expected a MATLAB file with {', '.join(keys)}; {error!r}") from error
    return Observed(
        values["ObsMask"].astype(bool),
        values["BB"].astype(np.float64).reshape(2, 3),
        float(values["Res"].reshape(-1)[0]),
        values["P"].astype(np.float64).reshape(4),
    )


# ------------------------------------------------------------------------------------------------ the steps


def mesh_points(surface: Surface, spacing: float = SPACING) -> np.ndarray:
    """[N, 3] points about `spacing` apart: a grid on every face, and the vertices; of a cloud its points.

    With edges of lengths l1, l2 and twice the area a, the grid has floor(l / t) cells along an edge, t = spacing
    sqrt(l1 l2 / a), and a point in the middle of each cell of which u + v < 1.
    """
    if surface.faces is None:
        return surface.vertices
    corner, second, third = (surface.vertices[surface.faces[:, k]] for k in range(3))
    edges = np.stack([second - corner, third - corner])  # [2, F, 3]
    lengths = np.linalg.norm(edges, axis=2)
    doubled = np.linalg.norm(np.cross(edges[0], edges[1]), axis=1)
    step = spacing * np.sqrt(lengths[0] * lengths[1] / np.maximum(doubled, 1e-300))
    cells = np.where(doubled > 0, np.floor(lengths / step), 0).astype(np.int64)
    counts = cells[0] * cells[1]
    found = [surface.used_vertices()]
    starts = np.searchsorted(np.cumsum(counts), np.arange(0, counts.sum() + 1, 4_000_000))
    for first, last in zip(starts, [*starts[1:], len(counts)], strict=True):
        face = np.repeat(np.arange(first, last), counts[first:last])
        if len(face) == 0:
            continue
        place = np.arange(len(face)) - np.repeat(np.cumsum(counts[first:last]) - counts[first:last], counts[first:last])
        u, v = (place // cells[1, face] + 0.5) / cells[0, face], (place % cells[1, face] + 0.5) / cells[1, face]
        inside = u + v < 1
        face, u, v = face[inside], u[inside, None], v[inside, None]
        found.append(corner[face] + u * edges[0, face] + v * edges[1, face])
    return np.concatenate(found)


def thin_to_radius(points: np.ndarray, radius: float = SPACING, seed: int = 0) -> np.ndarray:
    """[N', 3]: in random order, every point that has no earlier one of the result within `radius`."""
    from nfc_splat.rendering.kernels.thinning_cpu import thin_points

    if len(points) == 0:
        return points
    cells = np.floor((points - points.min(0)) / radius).astype(np.int64) + 1
    rows, columns = (int(cells[:, axis].max()) + 2 for axis in (1, 2))
    keys = (cells[:, 0] * rows + cells[:, 1]) * columns + cells[:, 2]
    by_cell = np.argsort(keys, kind="stable")
    kept = np.zeros(len(points), bool)
    order = np.random.default_rng(seed).permutation(len(points))
    ordered = np.ascontiguousarray(points[by_cell])
    thin_points(ordered, keys[by_cell], order, rows, columns, radius**2, kept)
    return ordered[kept]


def in_observed_box(points: np.ndarray, observed: Observed) -> np.ndarray:
    """[N] whether points lie in the mask's box, enlarged by 60 below and 120 above (as published, unequally)."""
    low, high = observed.box
    return ((points >= low - BELOW) & (points < high + ABOVE)).all(1)


def in_observation_mask(points: np.ndarray, observed: Observed) -> np.ndarray:
    """[N] whether the voxel nearest to each point was observed; False outside the mask."""
    voxel = np.around((points - observed.box[0]) / observed.resolution).astype(np.int64)
    inside = ((voxel >= 0) & (voxel < observed.mask.shape)).all(1)
    voxel = np.where(inside[:, None], voxel, 0)
    return inside & observed.mask[voxel[:, 0], voxel[:, 1], voxel[:, 2]]


def above_ground(points: np.ndarray, observed: Observed) -> np.ndarray:
    """[N] whether points are on the upper side of the ground plane."""
    return points @ observed.plane[:3] + observed.plane[3] > 0


def cull_by_masks(
    surface: Surface,
    projections: np.ndarray,  # [C, 3, 4] world to pixels
    masks: np.ndarray,  # [C, H, W] bool
    dilation: int = DILATION,
) -> Surface:
    """The part that no view contradicts: a vertex stays when in every view it is outside the picture or inside the
    object's mask, dilated by a disk; a face when all its corners stay."""
    keep = np.ones(len(surface.vertices), bool)
    for projection, mask in zip(projections, masks, strict=True):
        u, v, depth = projection[:, :3] @ surface.vertices.T + projection[:, 3:]
        with np.errstate(divide="ignore", invalid="ignore"):
            column, row = np.around(u / depth), np.around(v / depth)
        height, width = mask.shape
        inside = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        allowed = dilate(mask, dilation)
        at = np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)
        keep &= ~inside | allowed[at]
    return keep_vertices(surface, keep)


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:  # [H, W] bool
    """[H, W] bool: every pixel within `radius` of one of the mask, in a round."""
    wide = np.zeros_like(mask)
    height, width = mask.shape
    for dy in range(-radius, radius + 1):
        reach = int(np.sqrt(radius**2 - dy**2))
        top, bottom = max(0, dy), min(height, height + dy)
        line = mask[top - dy : bottom - dy]
        ends = np.zeros((len(line), width + 1), np.int64)
        at = np.nonzero(line)
        np.add.at(ends, (at[0], np.maximum(at[1] - reach, 0)), 1)
        np.add.at(ends, (at[0], np.minimum(at[1] + reach + 1, width)), -1)
        wide[top:bottom] |= np.cumsum(ends, axis=1)[:, :width] > 0
    return wide
