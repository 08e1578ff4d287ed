"""`python -m nfc_splat.export mesh RUN`: a run's surface as triangles with colours, in the frame of its scene.

Two ways. "level-set" is for models that say where their surface is, such as NeuS: marching cubes of the field. "depth"
is for every model: depth drawn from the training cameras, fused into one signed distance, and marching cubes of that.
A third one, "silhouettes", takes no shape from the model, and is there to be compared with.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nfc_splat.chosen_run import add_run_arguments, at_time, load_chosen_run
from nfc_splat.errors import UserError
from nfc_splat.export.destination import add_destination_arguments, output_file
from nfc_splat.export.mesh_file import FORMATS, Mesh, large_pieces, write_mesh
from nfc_splat.terminal import progress

if TYPE_CHECKING:
    from nfc_splat.cameras import Cameras
    from nfc_splat.export.fusion import DepthViews
    from nfc_splat.export.marching_cubes import Lattice
    from nfc_splat.rendering.level_set import LevelSet
    from nfc_splat.training.load import LoadedRun

RESOLUTION = (8, 4096)
MOST_CELLS = 4096  # along the lattice's longest side
DEFAULT_RESOLUTION = 512
VOXELS_PER_PIXEL = 1.0
TRUNCATION = 4.0  # in voxels
COLORS_AT_ONCE = 2**15  # vertices; NeuS's published networks take about 16 KB for each
SPECK = {"level-set": 1, "depth": 100, "silhouettes": 1}


@dataclass(frozen=True, eq=False)
class Extracted:
    """A mesh in the scene's frame, and what was done in words."""

    mesh: Mesh
    facts: list[str]


def main(arguments: Sequence[str]) -> int:
    """Extract, clean, move and write the mesh as the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    _check(options)
    path = output_file(options, "mesh.ply", FORMATS)

    run, _ = load_chosen_run(options)
    source = _source(run, options)
    options.time = _moment(run, options)
    found = from_depth(run, options) if source == "depth" else from_level_set(run, source, options)
    least = SPECK[source] if options.min_triangles is None else options.min_triangles
    mesh, pieces, left = large_pieces(found.mesh, least, options.keep_largest)
    if not left:
        raise UserError(f"--min-triangles {least}: none of {pieces:,} pieces has as many; give a smaller number")
    mesh, frame = _in_frame(run, mesh, options.frame)
    write_mesh(path, mesh)
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    print(f"{run.scene.name}, {run.config.method}: step {run.step}, surface from {source}")
    for fact in found.facts:
        print(f"  {fact}")
    dropped = f", {pieces - left:,} smaller pieces left out" if left < pieces else ""
    print(f"  {len(mesh.vertices):,} vertices, {len(mesh.triangles):,} triangles, {left:,} pieces{dropped}")
    print(f"  box from {_numbers(low)} to {_numbers(high)}, in {frame}")
    print(f"  wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfc_splat.export mesh",
        description="Write a run's surface as a triangle mesh with colours, in the frame and units of its scene.",
    )
    add_run_arguments(parser)
    add_destination_arguments(parser, f"a file with the ending {', '.join(FORMATS)} (default: RUN/mesh.ply)")
    parser.add_argument(
        "--from",
        dest="source",
        choices=("auto", "depth", "level-set", "silhouettes"),
        default="auto",
        help="depth: fused from views; level-set: of the field itself (default: level-set for signed distances); "
        "silhouettes: a shape carved from the training images' masks or transparency alone, for comparison",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="N",
        help="voxels along the longest side (default: 512; from depth no voxel is smaller than a pixel)",
    )
    parser.add_argument("--voxel-size", type=float, metavar="LENGTH", help="instead, in the scene's units")
    parser.add_argument(
        "--bounds",
        type=float,
        nargs=6,
        metavar=("X0", "Y0", "Z0", "X1", "Y1", "Z1"),
        help="box to stay in, in the scene's frame (default: what the scene or the model states, else what is seen)",
    )
    cleaning = parser.add_argument_group("cleaning")
    cleaning.add_argument("--keep-largest", action="store_true", help="only the connected piece with the largest area")
    cleaning.add_argument(
        "--min-triangles",
        type=int,
        metavar="N",
        help="leave out pieces with fewer (default: 100 from depth, 1 of a level set)",
    )
    cleaning.add_argument(
        "--frame",
        choices=("auto", "scene", "truth"),
        default="auto",
        help="truth: worldtogt applied (default: truth where the scene has one, else the scene's)",
    )
    level = parser.add_argument_group("--from level-set")
    level.add_argument("--level", type=float, help="value of the field at the surface (default: the model's)")
    depth = parser.add_argument_group("--from depth")
    depth.add_argument("--views", choices=("train", "all"), help="cameras to look from (default: train)")
    depth.add_argument(
        "--time", type=float, metavar="T", help="of a scene that moves, the moment to show, 0 to 1 (default: 0)"
    )
    depth.add_argument("--max-depth", type=float, metavar="LENGTH", help="ignore what is farther (default: 4 medians)")
    depth.add_argument("--truncation", type=float, metavar="LENGTH", help="of distances (default: 4 voxels)")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse numbers that make no sense, by flag."""
    low, high = RESOLUTION
    if options.resolution is not None and not low <= options.resolution <= high:
        raise UserError(f"--resolution {options.resolution}: expected {low} to {high}")
    if options.resolution is not None and options.voxel_size is not None:
        raise UserError("--resolution and --voxel-size say the same thing; give one of them")
    for name in ("voxel_size", "max_depth", "truncation"):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name.replace('_', '-')} {value:g}: expected a positive length")
    if options.level is not None and not math.isfinite(options.level):
        raise UserError(f"--level {options.level:g}: expected a finite number")
    if options.min_triangles is not None and options.min_triangles < 1:
        raise UserError(f"--min-triangles {options.min_triangles}: expected at least 1")
    if options.bounds is not None:
        corners = np.array(options.bounds).reshape(2, 3)
        if not (np.isfinite(corners).all() and (corners[0] < corners[1]).all()):
            raise UserError(f"--bounds {_numbers(options.bounds)}: expected X0 < X1, Y0 < Y1 and Z0 < Z1")


def _source(run: "LoadedRun", options: argparse.Namespace) -> str:
    """What the mesh is made from. A signed distance, whose level is 0, is meshed itself; a density's level is a
    choice, so there depth goes before."""
    offered = getattr(run.model, "level_set", None)
    source = options.source
    if source == "auto":
        source = "level-set" if offered is not None and offered().level == 0 else "depth"
    if source == "level-set" and offered is None:
        raise UserError(f"--from level-set: {run.config.method} has no field to take it of; use --from depth")
    if options.views is not None and source == "level-set" and hasattr(run.model, "surface_colors"):
        raise UserError("--views: surface and colours are the field's own with --from level-set; leave it out")
    for name in ("level",) if source == "depth" else ("max_depth", "truncation", "time"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: means nothing with --from {source}; leave it out")
    return source


def _moment(run: "LoadedRun", options: argparse.Namespace) -> float | None:
    """The one time that all views are drawn at: of a scene that moves, a mesh shows a moment."""
    from nfc_splat.fields import find_method

    if options.time is None and find_method(run.config.method).dynamic:
        return 0.0
    return options.time


# ------------------------------------------------------------------------------------------------ level sets


def from_level_set(run: "LoadedRun", source: str, options: argparse.Namespace) -> Extracted:
    """Marching cubes of the model's own field, or of what silhouettes leave."""
    from nfc_splat.export.level_sets import level_set_mesh
    from nfc_splat.export.marching_cubes import Lattice

    surface: LevelSet = _carved(run, options) if source == "silhouettes" else run.model.level_set()
    if options.level is not None:
        surface = replace(surface, level=options.level)
    bounds = surface.bounds.double().cpu().numpy() if options.bounds is None else np.reshape(options.bounds, (2, 3))
    sides = bounds[1] - bounds[0]
    cell = options.voxel_size or sides.max() / (options.resolution or DEFAULT_RESOLUTION)
    lattice = Lattice.over(bounds, cell)
    _check_cells(lattice)
    with _blocks("marching cubes") as advance:
        vertices, triangles = level_set_mesh(surface, lattice, surface.bounds.device, advance)
    mesh = Mesh(vertices, triangles)
    facts = [f"level {surface.level:g}, {_cells(lattice)}"]
    if source == "level-set" and hasattr(run.model, "surface_colors"):
        return Extracted(replace(mesh, colors=_asked_colors(run, mesh)), [*facts, "colours: the field's, seen head-on"])
    views = _views(run, options)
    colors, seen = _seen_colors(mesh, views, 2 * cell)
    return Extracted(replace(mesh, colors=colors), [*facts, f"colours: {seen}", *views.notices()])


def _carved(run: "LoadedRun", options: argparse.Namespace) -> "LevelSet":
    """The visual hull in the box that the options, the scene or the model states."""
    import torch

    from nfc_splat.export.silhouettes import visual_hull

    bounds = run.scene.bounds if options.bounds is None else torch.tensor(options.bounds).view(2, 3)
    if bounds is None and hasattr(run.model, "level_set"):
        bounds = run.model.level_set().bounds.cpu()
    if bounds is None:
        raise UserError(f"--from silhouettes: neither the scene nor {run.config.method} states a box; give --bounds")
    return visual_hull(run.scene.splits["train"], bounds.float())


def _asked_colors(run: "LoadedRun", mesh: Mesh) -> np.ndarray:
    """[V, 3] uint8 colours that the model sees at the vertices along their normals."""
    import torch

    device = next(run.model.parameters()).device
    parts = []
    asked = (torch.from_numpy(array).float().split(COLORS_AT_ONCE) for array in (mesh.vertices, mesh.normals()))
    for points, normals in zip(*asked, strict=True):
        with torch.no_grad():
            parts.append(run.model.surface_colors(points.to(device), normals.to(device)).float().cpu().numpy())
    return (np.nan_to_num(np.concatenate(parts)).clip(0, 1) * 255).round().astype(np.uint8)


# ------------------------------------------------------------------------------------------------ depth


def from_depth(run: "LoadedRun", options: argparse.Namespace) -> Extracted:
    """Marching cubes of a signed distance fused from depth."""
    from nfc_splat.export.fusion import FAR, OUTLIERS, FusedDepth, seen_box
    from nfc_splat.export.marching_cubes import Lattice, extract_surface

    views = _views(run, options)
    median = views.median_depth()
    farthest = options.max_depth or FAR * median
    views = views.nearer_than(farthest)
    if not views.depth.any():
        raise UserError(f"--max-depth {farthest:g}: everything is farther, half of it than {median:.4g}; raise it")
    stated = run.scene.bounds.double().numpy() if options.bounds is None and run.scene.bounds is not None else None
    bounds = np.reshape(options.bounds, (2, 3)) if options.bounds is not None else stated
    sides = np.diff(seen_box(views, OUTLIERS) if bounds is None else bounds, axis=0)[0]
    cell = _voxel(views, float(sides.max()), options)
    truncation = options.truncation or TRUNCATION * cell
    if truncation < cell:
        raise UserError(f"--truncation {truncation:g}: smaller than a voxel, {cell:.4g}; expected some voxels")
    if bounds is None:
        bounds = seen_box(views) + truncation * np.array([[-1], [1]])
    fused = FusedDepth(views, Lattice.over(bounds, cell), truncation)
    _check_cells(fused.lattice)
    with _blocks("fusing depth") as advance:
        vertices, triangles = extract_surface(fused.lattice, fused, 0.0, fused.touched(), advance)
    if not len(triangles):
        raise UserError(
            f"no surface that the {len(views)} views show lies in the box from {_numbers(bounds[0])} to "
            f"{_numbers(bounds[1])}; give other --bounds"
        )
    mesh = Mesh(vertices, triangles)
    colors, seen = _seen_colors(mesh, views, truncation)
    moment = "" if options.time is None else f" at time {options.time:g}"
    facts = [
        f"{len(views)} views{moment}, depth up to {farthest:.4g} (median {median:.4g}), truncation {truncation:.4g}",
        _cells(fused.lattice),
        f"colours: {seen}",
        *views.notices(),
    ]
    return Extracted(replace(mesh, colors=colors), facts)


def _views(run: "LoadedRun", options: argparse.Namespace) -> "DepthViews":
    """Colour and depth from the cameras that the options choose."""
    from nfc_splat.export.fusion import draw_views

    cameras = _cameras(run, options.views)
    if options.time is not None:
        cameras = at_time(run, cameras, options.time)
    with progress(len(cameras), "views") as advance:
        return draw_views(run.model, cameras, advance)


def _cameras(run: "LoadedRun", which: str | None) -> "Cameras":
    from nfc_splat.cameras import Cameras

    splits = run.scene.splits
    names = [name for name in splits if len(splits[name])] if which == "all" else ["train"]
    return Cameras.concatenate([splits[name].cameras for name in names])


def _voxel(views: "DepthViews", longest: float, options: argparse.Namespace) -> float:
    if options.voxel_size:
        return options.voxel_size
    if options.resolution:
        return longest / options.resolution
    return max(longest / DEFAULT_RESOLUTION, VOXELS_PER_PIXEL * views.pixel_size())


def _seen_colors(mesh: Mesh, views: "DepthViews", tolerance: float) -> tuple[np.ndarray, str]:
    """Colours from the views, and how they were come by."""
    from nfc_splat.export.fusion import colors_from_views

    colors, seen = colors_from_views(mesh.vertices, views, tolerance)
    hidden = int((~seen).sum())
    return colors, f"from {len(views)} views" + (f", {hidden:,} vertices that none sees are grey" if hidden else "")


# ------------------------------------------------------------------------------------------------ both


def _check_cells(lattice: "Lattice") -> None:
    if lattice.cells.max() > MOST_CELLS:
        raise UserError(
            f"voxels of {lattice.cell:.4g} are {lattice.cells.max():,} along the longest side, expected at most "
            f"{MOST_CELLS:,}; raise --voxel-size, or narrow --bounds or --max-depth"
        )


def _cells(lattice: "Lattice") -> str:
    size = " x ".join(map(str, lattice.cells.tolist()))
    return f"voxels of {lattice.cell:.4g}, {size}"


def _in_frame(run: "LoadedRun", mesh: Mesh, frame: str) -> tuple[Mesh, str]:
    """The mesh in the frame wanted, and what that is."""
    matrix = run.scene.world_to_gt
    if frame == "truth" and matrix is None:
        raise UserError(f"--frame truth: {run.scene.name} states no worldtogt; leave it out")
    if matrix is None or frame == "scene":
        return mesh, "the scene's frame"
    return mesh.moved(matrix.double().numpy()), "the truth's frame (eval mesh: --to-world identity)"


@contextmanager
def _blocks(label: str) -> Iterator[Callable[[int, int], None]]:
    """Progress over blocks, whose number grows: on a terminal a line that rewrites itself."""
    live = sys.stderr.isatty()

    def advance(done: int, known: int) -> None:
        if live:
            print(f"\r{label}: {done} of {known} blocks ", end="", file=sys.stderr, flush=True)

    yield advance
    if live:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
