"""`python -m nfc_splat.eval mesh PRED GT`: compare a reconstruction with the truth, print it, write it, draw it.

Writes into the folder of `--out`: `metrics.json` with the whole protocol, `errors.png`, and coloured PLY files with the
distance of each point or vertex: `accuracy_samples.ply` and `completeness_samples.ply` are what was measured,
`accuracy_mesh.ply` and `completeness_mesh.ply` are the surfaces, with the exact distances to the other one, as the
picture has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.culling import Frusta
from nfc_splat.eval.evaluation import evaluate
from nfc_splat.eval.geometry import Evaluation, GeometryMetrics, kind_of
from nfc_splat.eval.preparation import ROLES
from nfc_splat.eval.protocols import PROTOCOLS, Protocol, with_choices
from nfc_splat.eval.scene_files import read_scene_geometry
from nfc_splat.files import expect_writable, write_json
from nfc_splat.options import parse_options
from nfc_splat.terminal import print_table

PROGRAM = "python -m nfc_splat.eval mesh"
Y_UP = (".obj", ".glb")
PER_METRE = {"cm": 100.0, "mm": 1000.0, "m": 1.0}


@dataclass(frozen=True)
class Options:
    """Compare a reconstructed mesh or point cloud with the truth, as a published protocol does."""

    pred: Path
    """The reconstruction: a mesh in PLY, OBJ, STL, OFF, GLB, or a cloud in PLY, XYZ."""
    gt: Path
    """The truth, in the same formats."""
    protocol: Literal["plain", "replica", "nice-slam", "tanks-and-temples", "dtu"] = "plain"
    """What is culled, cropped and aligned, and how it is sampled."""
    threshold: tuple[float, ...] = ()
    """Of precision, recall and F-score, in the truth's units; several are possible. By default the protocol's, or a
    hundredth of the truth's diagonal."""
    unit: Literal["cm", "mm"] | None = None
    """Print lengths in it, of files in metres. By default the protocol's unit, or the files' own."""
    scene: Path | None = None
    """A scene's folder in NICE-SLAM's, MonoSDF's or Tanks and Temples' layout, or DTU's with ObsMask/."""
    trajectory: Path | None = None
    """A traj.txt with the cameras, instead of the scene's; for Tanks and Temples the prediction's camera log."""
    intrinsics: Path | None = None
    """A cam_params.json, instead of the scene's or Replica's 1200x680."""
    to_world: str | None = None
    """A file with the 4x4 matrix from the prediction's frame to the truth's (meta_data.json, cameras.npz or 16
    numbers), or "identity". By default the scene's."""
    box: Path | None = None
    """A JSON file with the box to crop to: to_origin and extents as trimesh names them. By default open3d's."""
    unseen: Path | None = None
    """NICE-SLAM's {scene}_pc_unseen.npy: views of depth L1 do not look at these points."""
    masks: Path | None = None
    """DTU: a scan's folder with cameras.npz and mask/, to cull by the object's masks first."""
    samples: int | None = None
    """Samples of each mesh; by default the protocol's."""
    repeats: int | None = None
    """How often to sample, for the intervals; by default the protocol's."""
    seed: int = 0
    """Of the first sampling."""
    reference: Literal["paper"] | None = None
    """Print published numbers beside."""
    out: Path | None = None
    """Where to write; by default PRED-eval beside PRED."""
    pictures: bool = True
    """Draw errors.png and write the coloured PLY files."""
    up: Literal["x", "-x", "y", "-y", "z", "-z"] | None = None
    """The truth's axis that is up in errors.png. By default the one that the cameras were held by, where the protocol
    has some; else y of OBJ and GLB files and z of others."""
    force: bool = False
    """Measure surfaces whose boxes do not meet or whose scales differ by far, and count an empty prediction as 0."""


# NFC, Table 6: NeuS on Replica, means over eight scenes; lengths in metres.
PAPER = {
    "NeuS": {
        "accuracy": 0.1721,
        "completeness": 0.4326,
        "chamfer_l1_mean": 0.3024,
        "precision@0.05": 0.2370,
        "recall@0.05": 0.1191,
        "fscore@0.05": 0.1487,
        "normal_consistency": 0.6962,
    },
    "NeuS, NFC": {
        "accuracy": 0.07420,
        "completeness": 0.07957,
        "chamfer_l1_mean": 0.07689,
        "precision@0.05": 0.5643,
        "recall@0.05": 0.5480,
        "fscore@0.05": 0.5556,
        "normal_consistency": 0.7691,
    },
}

EXPLANATION = "±: 95 % of evaluations with other seeds fall in it; perfect mesh: the truth against itself, sampled anew"
LABELS = {
    "accuracy": "accuracy",
    "completeness": "completeness",
    "chamfer_l1_mean": "Chamfer-L1 (mean)",
    "chamfer_l1_sum": "Chamfer-L1 (sum)",
    "chamfer_l2": "Chamfer-L2 (sum of squares)",
    "normal_consistency": "normal consistency",
    "depth_l1": "depth L1",
    "accuracy_p50": "accuracy, median",
    "accuracy_p95": "accuracy, 95th percentile",
    "completeness_p50": "completeness, median",
    "completeness_p95": "completeness, 95th percentile",
    "hausdorff": "Hausdorff",
}


@dataclass(frozen=True)
class Shown:
    """How the table writes numbers: unit and factor of lengths, and whether ratios are in percent."""

    unit: str
    factor: float
    percent: bool

    def value(self, metric: str, value: float | None) -> str:
        """A cell; "-" for what does not exist."""
        if value is None:
            return "-"
        kind = kind_of(metric)
        if kind == "ratio":
            return f"{100 * value:.2f}" if self.percent else f"{value:.4f}"
        return f"{value * self.factor ** (2 if kind == 'area' else 1):.4g}"

    def unit_of(self, metric: str) -> str:
        kind = kind_of(metric)
        if kind == "ratio":
            return "%" if self.percent else ""
        return f"{self.unit}²" if kind == "area" and self.unit else self.unit


def main(argv: Sequence[str]) -> int:
    """Evaluate, print and write; returns the exit code."""
    import tyro

    default = Options(pred=tyro.MISSING, gt=tyro.MISSING)
    words = {"pred": "PRED", "gt": "GT"}
    options = parse_options(
        Options, argv, PROGRAM, default=default, positional=words, expected="PRED, GT and flags only"
    )
    folder = options.out or options.pred.with_name(f"{options.pred.stem}-eval")
    expect_writable(folder)
    protocol = with_choices(
        PROTOCOLS[options.protocol], thresholds=options.threshold, samples=options.samples, repeats=options.repeats
    )
    _expect_used(options, protocol)
    shown = shown_as(options.unit, protocol)
    scene = read_scene_geometry(
        options.scene,
        trajectory=options.trajectory,
        intrinsics=options.intrinsics,
        to_world=options.to_world,
        box=options.box,
        unseen=options.unseen,
        masks=options.masks,
        cameras_wanted=protocol.cull,
    )
    if options.scene is not None and protocol.name == "plain" and (scene.to_world is None or options.to_world):
        why = "with --to-world it" if options.to_world else "holds neither meta_data.json nor cameras.npz, so it"
        raise UserError(
            f"--scene {options.scene}: {why} says nothing to --protocol plain; leave it out, or choose another protocol"
        )
    found = evaluate(options.pred, options.gt, protocol, scene=scene, seed=options.seed, force=options.force)
    report(found.metrics, shown, PAPER if options.reference else {})
    write_json(folder / "metrics.json", found.metrics.record())
    print(f"  wrote {folder / 'metrics.json'}")
    if options.pictures:
        up = options.up or up_axis(options.gt, scene.frusta)
        for path in write_pictures(found, folder, shown, up):
            print(f"  wrote {path}")
        if options.up is None and scene.frusta is None:
            print(f"  errors.png is drawn with {up} up; --up names another axis")
    return 0


def _uses(protocol: Protocol) -> dict[str, bool]:
    """Which flags a protocol looks at; all do at the others."""
    return {
        "trajectory": protocol.cull or protocol.benchmark == "tanks-and-temples",
        "intrinsics": protocol.cull,
        "box": protocol.crop is not None,
        "unseen": protocol.depth_views > 0,
        "masks": protocol.benchmark == "dtu",
        "samples": protocol.benchmark != "dtu",
        "repeats": protocol.benchmark is None,
        "reference": protocol.name == "replica",
    }


def _expect_used(options: Options, protocol: Protocol) -> None:
    """Refuse a flag that would change nothing."""
    for flag, used in _uses(protocol).items():
        if getattr(options, flag) is not None and not used:
            others = ", ".join(name for name, other in PROTOCOLS.items() if _uses(other)[flag])
            raise UserError(f"--{flag} says nothing to --protocol {protocol.name}; expected one of: {others}")
    if options.up is not None and not options.pictures:
        raise UserError("--up is about the picture, which --no-pictures leaves out; give one of them")


def shown_as(unit: Literal["cm", "mm"] | None, protocol: Protocol) -> Shown:
    """What `--unit` and the protocol make of lengths."""
    if protocol.input_unit == "mm":
        return Shown("cm", 0.1, protocol.percent) if unit == "cm" else Shown("mm", 1.0, protocol.percent)
    unit = unit or protocol.shown_unit
    return Shown(unit or protocol.input_unit or "", PER_METRE[unit or "m"], protocol.percent)


# ------------------------------------------------------------------------------------------------ the table


def report(metrics: GeometryMetrics, shown: Shown, references: Mapping[str, Mapping[str, float]]) -> None:
    """Print what was done and the table: value, interval, sampling floor, and the numbers of `references`."""
    _print_protocol(metrics.protocol)
    rows = [["metric", "", "value", "±", "perfect mesh", *references]]
    for name in metric_names(metrics):
        blocks = (metrics.values, metrics.interval, metrics.floor)
        cells = [shown.value(name, block.get(name)) for block in blocks]
        cells += [shown.value(name, row[name]) if name in row else "" for row in references.values()]
        rows.append([label_of(name, shown), shown.unit_of(name), *cells])
    print_table(rows, numbers=tuple(range(2, len(rows[0]))))
    print(f"  {EXPLANATION}")
    if references:
        print("  NeuS and NeuS, NFC: means over eight Replica scenes as published (arXiv 2403.01058, Table 6)")
    for note in metrics.notes:
        print(f"  note: {note}")


def metric_names(metrics: GeometryMetrics) -> list[str]:
    """The metrics that a table shows, in its order: lengths, ratios, and how far the worst is."""
    names = [name for name in LABELS if not name.startswith(("accuracy_", "completeness_", "hausdorff"))]
    names = [name for name in names if name in metrics.values]
    tails = [name for name in LABELS if name.startswith(("accuracy_", "completeness_", "hausdorff"))]
    ratios = [f"{kind}@{t:g}" for t in metrics.thresholds for kind in ("precision", "recall", "fscore")]
    lengths = [name for name in names if kind_of(name) != "ratio"]
    return [*lengths, *ratios, *(name for name in names if name not in lengths), *tails]


def label_of(metric: str, shown: Shown) -> str:
    """What a table calls a metric."""
    kind, _, threshold = metric.partition("@")
    if not threshold:
        return LABELS[metric]
    return f"{'F-score' if kind == 'fscore' else kind} < {float(threshold) * shown.factor:.4g} {shown.unit}".rstrip()


def _print_protocol(record: Mapping[str, Any]) -> None:
    """What was done, in a few lines."""
    print(f"protocol {record['name']}: {record['reproduces']}")
    for role in ROLES:
        facts = record[role]
        size = f"{facts['points']:,} points" if "points" in facts else f"{facts['faces']:,} faces"
        print(f"  {role:4} {facts['name']}: {size}")
    origin = record["origin"]
    moved = f"moved to the truth's frame by {origin['to_world']}" if "to_world" in origin else "taken as it stands"
    print(f"  frame: the prediction is {moved}")
    for step in record["steps"]:
        detail = f", {step['poses']:,} views of {step['width']}x{step['height']}" if "poses" in step else ""
        detail += f", {step['factor']:g} x the box of {step['by']}" if "factor" in step else ""
        kept = f"keeps {100 * step['pred']['kept']:.1f} % of pred, {100 * step['gt']['kept']:.1f} % of gt"
        print(f"  {step['step']}{detail}: {kept}")
    if record["alignment"]:
        facts = record["alignment"]
        residual = "none" if facts["inlier_rmse"] is None else f"{facts['inlier_rmse']:.4g}"
        print(f"  alignment: {facts['method']}; residual {residual}, inliers {facts['inliers']:.3f}")
        if "voxel" in facts:
            print(f"  crop volume, then the means of voxels of {facts['voxel']:g}")
    facts = record["samples"]
    sampled = [f"{facts['per_mesh']:,} of a mesh"] if any("faces" in record[role] for role in ROLES) else []
    sampled += [f"{facts['of_clouds']} of a cloud"] if any("points" in record[role] for role in ROLES) else []
    print(f"  samples: {', '.join(sampled)}; {facts['repeats']} times from seed {facts['seed']}")


# ------------------------------------------------------------------------------------------------ the pictures


def up_axis(gt: Path, frusta: Frusta | None) -> str:
    """The axis that a person would take for up: the one nearest to what cameras had above them; without cameras, the
    one that most programs put up in files of the truth's format."""
    if frusta is None:
        return "y" if gt.suffix.lower() in Y_UP else "z"
    import torch

    from nfc_splat.rendering.paths import up_direction

    up = up_direction(torch.from_numpy(np.linalg.inv(frusta.world_to_camera))).numpy()
    axis = int(np.abs(up).argmax())
    return f"{'-' if up[axis] < 0 else ''}{'xyz'[axis]}"


def write_pictures(found: Evaluation, folder: Path, shown: Shown, up: str) -> list[Path]:
    """Coloured PLY files and `errors.png`, in which the axis `up` is up; returns what was written."""
    from nfc_splat.eval import error_pictures as drawing
    from nfc_splat.eval.surface import Surface

    sides = (
        ("accuracy", found.pred, found.pred_samples, found.gt, found.gt_samples),
        ("completeness", found.gt, found.gt_samples, found.pred, found.pred_samples),
    )
    exact = [None if other.is_empty else drawing.distance_to_surface(other) for *_, other, _ in sides]
    full_scale = _full_scale(found, exact)
    rows, written = [], []
    for (name, surface, samples, _, others), distance in zip(sides, exact, strict=True):
        if samples is not None and others is not None:
            written.append(folder / f"{name}_samples.ply")
            measured = drawing.distance_to_samples(others)(samples.points)
            noisy_scale = max(full_scale, 1.2 * float(np.percentile(measured, 99)))
            drawing.write_error_ply(written[-1], Surface(samples.points), measured, noisy_scale)
            if not surface.is_cloud:
                written.append(folder / f"{name}_mesh.ply")
                mesh = drawing.compacted(surface)
                drawing.write_error_ply(written[-1], mesh, distance(mesh.vertices), full_scale)
        rows.append(drawing.Row(_row_title(name, found.metrics, shown), surface, distance))
    record = found.metrics.protocol
    title = f"{Path(record['pred']['name']).name} against {Path(record['gt']['name']).name}"
    written.append(folder / "errors.png")
    marks = _marks(found.metrics.thresholds, full_scale, shown)
    drawing.write_distance_picture(written[-1], title, _subtitle(found.metrics, shown), rows, full_scale, marks, up)
    return written


def _full_scale(found: Evaluation, exact: Sequence[Any]) -> float:
    """The distance of the last colour: nineteen of twenty samples are nearer to the other surface. Of surfaces
    that are all but equal, the first threshold."""
    ends = [
        float(np.percentile(distance(samples.points), 95))
        for samples, distance in zip((found.pred_samples, found.gt_samples), exact, strict=True)
        if samples is not None and distance is not None
    ]
    threshold = found.metrics.thresholds[0]
    return 1.2 * max(ends) if ends and max(ends) > 1e-3 * threshold else threshold


def _row_title(name: str, metrics: GeometryMetrics, shown: Shown) -> str:
    what, other = {"accuracy": ("Prediction", "truth"), "completeness": ("Truth", "prediction")}[name]
    if metrics[name] is None:
        return f"{what}; there is no distance to the {other}"
    mean = f"{what}, distance to the {other}: mean of samples ({name}) {shown.value(name, metrics[name])} {shown.unit}"
    floor = metrics.floor.get(name)
    return mean.rstrip() + (
        "" if floor is None else f", of a perfect mesh {shown.value(name, floor)} {shown.unit}".rstrip()
    )


def _subtitle(metrics: GeometryMetrics, shown: Shown) -> str:
    threshold = metrics.thresholds[0]
    f = f"fscore@{threshold:g}"
    parts = [f"protocol {metrics.protocol['name']}"]
    if metrics.chamfer_l1 is not None:
        parts.append(f"Chamfer-L1 {shown.value('chamfer_l1_mean', metrics.chamfer_l1)} {shown.unit}")
    parts.append(f"{label_of(f, shown)}: {shown.value(f, metrics.fscore)} {shown.unit_of(f)}")
    if metrics.normal_consistency is not None:
        name = "normal_consistency"
        parts.append(f"normal consistency {shown.value(name, metrics[name])} {shown.unit_of(name)}")
    return " · ".join(part.rstrip() for part in parts)


def _marks(thresholds: Sequence[float], full_scale: float, shown: Shown) -> list[tuple[float, str]]:
    """Marks of the colour bar: both ends, and the thresholds that lie between and apart."""
    text = lambda value: f"{value * shown.factor:.3g} {shown.unit}".rstrip()  # noqa: E731
    marks = [(0.0, "0"), (full_scale, f"{text(full_scale)} and more")]
    for value in thresholds:
        if value < 0.85 * full_scale and all(abs(value - other) > 0.15 * full_scale for other, _ in marks):
            marks.append((value, f"threshold {text(value)}"))
    return marks
