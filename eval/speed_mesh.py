"""Geometry evaluation beside the usual tools, in turn in one process: `python -m nfc_splat.eval speed --mesh`.

Two rows. All metrics of 200,000 + 200,000 samples, beside open3d's two nearest-neighbour passes alone; and the Replica
protocol from two files of a million vertices with 2,000 poses, beside the same steps by trimesh, scipy and numpy, where
those are installed. Each round runs both, beginning with another one; a ratio is the median over the rounds.

Symbols: V vertices, C poses, N samples.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.eval.culling import DEPTH_OFFSET, Frusta, read_frusta
from nfc_splat.eval.evaluation import evaluate_mesh
from nfc_splat.eval.geometry import score_samples
from nfc_splat.eval.protocols import PROTOCOLS, SceneGeometry
from nfc_splat.eval.surface import Samples, Surface, sample_surface, to_open3d
from nfc_splat.files import write_json
from nfc_splat.machine import hardware, versions
from nfc_splat.open3d_loader import load_open3d
from nfc_splat.terminal import print_table

THRESHOLD = 0.05


@dataclass(frozen=True)
class Sizes:
    """How much is measured: a Replica room and its trajectory."""

    side: int = 409  # vertices along a wall's edge; six walls make V = 6 side^2
    poses: int = 2000
    samples: int = 200_000
    rounds: int = 5
    protocol_rounds: int = 2


SIZES = Sizes()


@dataclass(frozen=True)
class Row:
    """A line of the table: median seconds, and how many times as long the other takes; None where it is absent."""

    work: str
    beside: str
    seconds: float
    others_seconds: float | None
    ratio: float | None


def compare_meshes(threads: int, record: Path | None, sizes: Sizes = SIZES) -> int:
    """Print the table and write it to `record`; returns the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_room(folder, sizes)
        evaluate_room(folder, sizes)  # compiles, and takes what memory it takes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
        rows = [time_metrics(sizes), time_protocol(folder, sizes)]
    print(f"medians of rounds taken in turn, cpu, {threads} threads; ours held at most {peak:.2f} GB")
    cells = [
        [row.work, f"{row.seconds:.2f} s", row.beside, _cell(row.others_seconds, " s"), _cell(row.ratio)]
        for row in rows
    ]
    print_table([["work", "ours", "beside", "theirs", "ratio"], *cells], numbers=(1, 3, 4))
    if record is not None:
        facts = {"threads": threads, "sizes": asdict(sizes), "hardware": hardware(), "versions": versions()}
        write_json(record, facts | {"peak_memory_gb": peak, "rows": [asdict(row) for row in rows]})
    return 0


def _cell(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{unit}"


# ------------------------------------------------------------------------------------------------ the scene


def write_room(folder: Path, sizes: Sizes) -> None:
    """`pred.ply`, `gt.ply` and `traj.txt`: wavy walls of a room of 6 x 5 x 3 m, and a walk through its middle."""
    for name, waves in (("gt", 0.01), ("pred", 0.03)):
        load_open3d().io.write_triangle_mesh(str(folder / f"{name}.ply"), to_open3d(_walls(sizes.side, waves)))
    step = np.arange(sizes.poses) * 2 * np.pi / sizes.poses
    forward = np.stack([np.cos(7 * step), np.sin(7 * step), 0.4 * np.sin(3 * step)], axis=1)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (sizes.poses, 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=2)
    poses[:, :3, 3] = np.stack([1.5 * np.cos(step), np.sin(step), 0.3 * np.cos(5 * step)], axis=1)
    rows = (" ".join(f"{value:.9g}" for value in pose.reshape(-1)) for pose in poses)
    (folder / "traj.txt").write_text("\n".join(rows) + "\n")


def _walls(side: int, waves: float) -> Surface:
    """Six square grids of `side` x `side` vertices, moved along their normals by waves of that height."""
    unit = np.linspace(-1, 1, side)
    u, v = (grid.reshape(-1) for grid in np.meshgrid(unit, unit, indexing="ij"))
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    squares = np.stack([corner, corner + side, corner + side + 1, corner, corner + side + 1, corner + 1], 1)
    vertices, faces = [], []
    for wall in range(6):
        axis, sign = wall // 2, 1 - 2 * (wall % 2)
        points = np.empty((side * side, 3))
        points[:, axis] = sign
        points[:, (axis + 1) % 3], points[:, (axis + 2) % 3] = u, v
        points *= [3.0, 2.5, 1.5]
        points[:, axis] -= sign * waves * (1 + np.sin(9 * u + wall) * np.cos(7 * v))
        vertices.append(points)
        faces.append(squares.reshape(-1, 3) + wall * side * side)
    return Surface(np.concatenate(vertices), np.concatenate(faces).astype(np.int32))


# ------------------------------------------------------------------------------------------------ the two rows


def time_metrics(sizes: Sizes) -> Row:
    """All metrics of two sample sets, trees included, beside open3d's distances both ways."""
    pred, gt = (sample_surface(_walls(30, waves), sizes.samples, seed) for seed, waves in enumerate((0.03, 0.01)))
    clouds = [to_open3d(Surface(samples.points)) for samples in (pred, gt)]

    def ours() -> dict[str, float | None]:
        return score_samples(Samples(pred.points, pred.normals), Samples(gt.points, gt.normals), [THRESHOLD])

    def theirs() -> list[np.ndarray]:
        return [np.asarray(one.compute_point_cloud_distance(other)) for one, other in (clouds, clouds[::-1])]

    score, distances = ours(), theirs()
    if not np.allclose([score["accuracy"], score["completeness"]], [found.mean() for found in distances], atol=1e-6):
        raise RuntimeError("open3d and the tree of boxes do not agree")
    seconds = take_turns([ours, theirs], sizes.rounds)
    return _row(f"metrics, {sizes.samples:,} + {sizes.samples:,} samples", "open3d, distances alone", seconds)


def time_protocol(folder: Path, sizes: Sizes) -> Row:
    """The Replica protocol from files, one sampling, beside trimesh and scipy."""
    work = f"replica protocol, {6 * sizes.side**2:,} vertices, {sizes.poses:,} poses"
    if find_spec("trimesh") is None or find_spec("scipy") is None:
        seconds = take_turns([lambda: evaluate_room(folder, sizes)], sizes.protocol_rounds)
        return Row(work, "trimesh and scipy are not installed", float(np.median(seconds)), None, None)
    ours, theirs = evaluate_room(folder, sizes), evaluate_by_trimesh(folder, sizes)
    tolerance = 0.01 * np.sqrt(200_000 / sizes.samples)  # ten times what sampling does to the values
    for name, value in theirs.items():
        if not np.isclose(ours[name], value, rtol=tolerance):
            raise RuntimeError(f"{name}: {ours[name]:.6g} here, {value:.6g} by trimesh and scipy")
    both = [lambda: evaluate_room(folder, sizes), lambda: evaluate_by_trimesh(folder, sizes)]
    return _row(work, "trimesh, scipy and numpy", take_turns(both, sizes.protocol_rounds))


def take_turns(functions: list[Callable[[], Any]], rounds: int) -> np.ndarray:
    """[functions, rounds] seconds; each round begins with another function."""
    seconds = np.empty((len(functions), rounds))
    for number in range(rounds):
        for turn in range(len(functions)):
            index = (number + turn) % len(functions)
            started = time.perf_counter()
            functions[index]()
            seconds[index, number] = time.perf_counter() - started
    return seconds


def _row(work: str, beside: str, seconds: np.ndarray) -> Row:
    medians = np.median(seconds, axis=1)
    return Row(work, beside, float(medians[0]), float(medians[1]), float(np.median(seconds[1] / seconds[0])))


def evaluate_room(folder: Path, sizes: Sizes) -> dict[str, float | None]:
    """Ours, with the intervals left out (one sampling) and the sampling floor included."""
    protocol = replace(PROTOCOLS["replica"], samples=sizes.samples, repeats=1)
    scene = SceneGeometry(frusta=read_frusta(folder / "traj.txt"))
    return dict(evaluate_mesh(folder / "pred.ply", folder / "gt.ply", protocol, scene=scene).values)


# ------------------------------------------------------------------------------------------------ the others


def evaluate_by_trimesh(folder: Path, sizes: Sizes) -> dict[str, float]:
    """The steps of MonoSDF's protocol by trimesh and scipy; culling tests only what no camera has seen yet."""
    import trimesh

    frusta = read_frusta(folder / "traj.txt")
    meshes = {}
    for name in ("pred", "gt"):
        mesh = trimesh.load(folder / f"{name}.ply", process=False)
        seen = _seen_by_numpy(mesh.vertices, frusta)
        mesh.update_faces(seen[mesh.faces].any(axis=1))
        meshes[name] = mesh
    to_box, extents = trimesh.bounds.oriented_bounds(meshes["gt"])
    for mesh in meshes.values():
        mesh.apply_transform(to_box)
    inside = (np.abs(meshes["pred"].vertices) < 1.05 * extents / 2).all(axis=1)
    meshes["pred"].update_faces(inside[meshes["pred"].faces].all(axis=1))
    return _scores_by_scipy(*(_sampled_by_trimesh(meshes[name], sizes.samples) for name in ("pred", "gt")))


def _seen_by_numpy(vertices: np.ndarray, frusta: Frusta) -> np.ndarray:
    points, matrices = vertices.astype(np.float32), frusta.world_to_camera.astype(np.float32)
    seen, waiting = np.zeros(len(points), bool), np.arange(len(points))
    for matrix in matrices:
        x, y, z = matrix[:3, :3] @ points[waiting].T + matrix[:3, 3:]
        z -= np.float32(DEPTH_OFFSET)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = frusta.fx * x / z + frusta.cx, frusta.fy * y / z + frusta.cy
        found = (z >= 0) & (u > 0) & (u < frusta.width) & (v > 0) & (v < frusta.height)
        seen[waiting[found]] = True
        waiting = waiting[~found]
    return seen


def _sampled_by_trimesh(mesh: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    points, faces = trimesh.sample.sample_surface(mesh, count)
    return np.asarray(points), mesh.face_normals[faces]


def _scores_by_scipy(pred: tuple[np.ndarray, np.ndarray], gt: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    from scipy.spatial import cKDTree

    to_gt, of_gt = cKDTree(gt[0]).query(pred[0])
    to_pred, of_pred = cKDTree(pred[0]).query(gt[0])
    cosines = (np.abs((pred[1] * gt[1][of_gt]).sum(1)).mean(), np.abs((gt[1] * pred[1][of_pred]).sum(1)).mean())
    precision, recall = (to_gt < THRESHOLD).mean(), (to_pred < THRESHOLD).mean()
    return {
        "accuracy": float(to_gt.mean()),
        "completeness": float(to_pred.mean()),
        f"fscore@{THRESHOLD:g}": float(2 * precision * recall / (precision + recall)),
        "normal_consistency": float(np.mean(cosines)),
    }
