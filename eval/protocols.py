"""The published ways to compare a reconstruction with its truth: `evaluate_mesh` and the steps it is made of.

    clean -> to the truth's frame -> frustum culling -> alignment -> crop -> sample -> score, several times

A protocol switches steps on and sets their numbers. Everything that was done stands in the record of the metrics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from nfc_splat import machine
from nfc_splat.errors import UserError
from nfc_splat.eval.alignment import align_by_icp
from nfc_splat.eval.culling import Frusta, cull_by_frusta
from nfc_splat.eval.depth_views import depth_l1
from nfc_splat.eval.geometry import GeometryMetrics, empty_score, score_samples, summarize_scores
from nfc_splat.eval.surface import (
    Box,
    Samples,
    Surface,
    clean_surface,
    crop_to_box,
    oriented_box,
    read_surface,
    sample_surface,
    transform_surface,
)

WRONG_SCALE = 50.0  # extents that differ by this are of another unit
ODD_SCALE = 2.0


@dataclass(frozen=True)
class Protocol:
    """What is done to two surfaces before and while they are compared.

    Attributes:
        name: the value of `--protocol`.
        source: whose numbers it reproduces.
        thresholds: of precision, recall and F-score, in the units of the truth; None for a hundredth of the diagonal of
            the truth's box.
        input_unit: what the files are measured in, None when any will do.
        shown_unit: what the table is in, None for the input's.
        percent: whether the table has ratios in percent.
        cull: whether to leave out what no camera sees; needs frusta.
        crop: by how much the truth's box is enlarged before the prediction is cropped to it, None for no crop.
        icp: farthest correspondence of a rigid alignment by ICP, None for no alignment.
        samples: of each mesh.
        repeats: samplings, for the interval.
        depth_views: random views of Depth L1, 0 for none.
        benchmark: whose own preparation replaces culling, alignment and crop.
    """

    name: str
    source: str
    thresholds: tuple[float, ...] | None = None
    input_unit: Literal["m", "mm"] | None = None
    shown_unit: Literal["cm", "mm"] | None = None
    percent: bool = False
    cull: bool = False
    crop: float | None = None
    icp: float | None = None
    samples: int = 200_000
    repeats: int = 3
    depth_views: int = 0
    benchmark: Literal["tanks-and-temples", "dtu"] | None = None


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol("plain", "the two surfaces as they are"),
            Protocol(
                "replica",
                "MonoSDF replica_eval; the columns of NFC's Table 6",
                thresholds=(0.05,),
                input_unit="m",
                shown_unit="cm",
                percent=True,
                cull=True,
                crop=1.05,
            ),
            Protocol(
                "nice-slam",
                "NICE-SLAM eval_recon",
                thresholds=(0.05,),
                input_unit="m",
                shown_unit="cm",
                percent=True,
                cull=True,
                icp=0.1,
                depth_views=1000,
            ),
            Protocol(
                "tanks-and-temples",
                "isl-org/TanksAndTemples, training scenes",
                input_unit="m",
                percent=True,
                samples=4_000_000,
                repeats=1,
                benchmark="tanks-and-temples",
            ),
            Protocol(
                "dtu",
                "jzhangbs/DTUeval-python; mask culling of UNISURF and MonoSDF",
                thresholds=(1.0,),
                input_unit="mm",
                repeats=1,
                benchmark="dtu",
            ),
        )
    }
)


@dataclass(frozen=True, eq=False)
class SceneGeometry:
    """What a protocol needs to know besides the two surfaces.

    Attributes:
        to_world: [4, 4] from the prediction's frame to the truth's; None where they are one.
        frusta: the cameras of frustum culling.
        box: what the crop enlarges instead of open3d's box around the truth.
        unseen: [U, 3] points of the truth that no camera saw, for Depth L1.
        folder: of the scene, for benchmarks with files of their own.
        camera_log: the prediction's cameras in Tanks and Temples' format.
        scan: DTU's number of the scene; by default that in the name of the truth's file.
        masked_views: projections [C, 3, 4] and object masks [C, H, W] of DTU's mask culling, None to leave it out.
        origin: where each of these came from, for the record.
    """

    to_world: np.ndarray | None = None
    frusta: Frusta | None = None
    box: Box | None = None
    unseen: np.ndarray | None = None
    folder: Path | None = None
    camera_log: Path | None = None
    scan: int | None = None
    masked_views: tuple[np.ndarray, np.ndarray] | None = None
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Prepared:
    """Two surfaces that are ready to be sampled, and what was done to them."""

    pred: Surface
    gt: Surface
    record: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics with the surfaces and the first samples that they were measured on; None for what does not exist."""

    metrics: GeometryMetrics
    pred: Surface
    gt: Surface
    pred_samples: Samples | None
    gt_samples: Samples | None


def evaluate_mesh(
    pred: Surface | Path | str,
    gt: Surface | Path | str,
    protocol: Protocol | str = "plain",
    *,
    scene: SceneGeometry | None = None,
    seed: int = 0,
    force: bool = False,
) -> GeometryMetrics:
    """Compare a reconstructed mesh or cloud with the truth.

    Args:
        pred: the reconstruction, or its file.
        gt: the truth, or its file.
        protocol: one of `PROTOCOLS` or its name, or another.
        scene: frames, cameras and boxes, where the protocol needs them.
        seed: of the first sampling.
        force: measure surfaces whose boxes do not meet or whose scales differ by far, and give a prediction of which
            nothing is left its zeros; refused otherwise.

    Raises:
        UserError: a file that cannot be read, nothing in it, what `force` would allow, a missing camera.
    """
    return evaluate(pred, gt, protocol, scene=scene, seed=seed, force=force).metrics


def evaluate(
    pred: Surface | Path | str,
    gt: Surface | Path | str,
    protocol: Protocol | str = "plain",
    *,
    scene: SceneGeometry | None = None,
    seed: int = 0,
    force: bool = False,
) -> Evaluation:
    """`evaluate_mesh` with what was measured, for pictures."""
    from nfc_splat.eval import benchmarks  # which are made of the steps below

    protocol, scene = find_protocol(protocol), scene or SceneGeometry()
    if protocol.benchmark == "dtu":
        return benchmarks.evaluate_dtu(pred, gt, protocol, scene, seed, force=force)
    if protocol.benchmark == "tanks-and-temples":
        prepared, protocol = benchmarks.prepare_tanks(pred, gt, protocol, scene, seed)
    else:
        prepared = prepare(pred, gt, protocol, scene, force=force)
    found = measure(prepared, protocol, seed)
    return _with_depth(found, protocol, scene, seed) if protocol.depth_views else found


def find_protocol(protocol: Protocol | str) -> Protocol:
    """A protocol by name; one that is given is checked."""
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise UserError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[protocol]
    if protocol.samples < 1 or protocol.repeats < 1:
        raise UserError(
            f"{protocol.samples} samples, {protocol.repeats} times: expected at least 1 (--samples, --repeats)"
        )
    for threshold in protocol.thresholds or ():
        if not 0 < threshold < float("inf"):
            raise UserError(f"--threshold {threshold:g}: expected a positive length")
    return protocol


# ------------------------------------------------------------------------------------------------ before sampling


def prepare(
    pred: Surface | Path | str, gt: Surface | Path | str, protocol: Protocol, scene: SceneGeometry, *, force: bool
) -> Prepared:
    """Everything before sampling. The truth is culled as well: one that was culled before stays as it is."""
    if protocol.cull and scene.frusta is None:
        raise UserError(
            f"--protocol {protocol.name} leaves out what no camera sees and has no cameras: give --scene FOLDER or "
            "--trajectory traj.txt (or compare with --protocol plain)"
        )
    prepared = load_surfaces(pred, gt)
    if scene.to_world is not None:
        check_matrix(scene.to_world)
        prepared.pred = transform_surface(prepared.pred, scene.to_world)
    prepared.record["to_world"] = None if scene.to_world is None else scene.to_world.tolist()
    check_frames(prepared, moved=scene.to_world is not None, force=force)
    if protocol.cull:
        apply_step(prepared, "frustum culling", scene.frusta.record(), force, lambda s: cull_by_frusta(s, scene.frusta))
        _expect_most_of_the_truth(prepared)
    if protocol.icp is not None and not prepared.pred.is_empty:
        prepared.pred, aligned = align_by_icp(prepared.pred, prepared.gt, protocol.icp)
        prepared.record["alignment"] = aligned
    else:
        prepared.record["alignment"] = None
    if protocol.crop is not None:
        box = scene.box or oriented_box(prepared.gt)
        enlarged = box.scaled(protocol.crop)
        facts = {"factor": protocol.crop, "box": box.record(), "by": scene.origin.get("box", "open3d, minimal")}
        apply_step(prepared, "crop to box", facts, force, lambda s: crop_to_box(s, enlarged), truth=False)
    prepared.record["origin"] = dict(scene.origin)
    return prepared


def load_surfaces(pred: Surface | Path | str, gt: Surface | Path | str) -> Prepared:
    """Both surfaces, cleaned."""
    surfaces, record, notes = {}, {}, []
    for role, given in (("pred", pred), ("gt", gt)):
        name = {"pred": "the prediction", "gt": "the truth"}[role] if isinstance(given, Surface) else str(given)
        surface, dropped = clean_surface(given if isinstance(given, Surface) else read_surface(given), name)
        surfaces[role] = surface
        record[role] = {"name": name, **surface.counts(), **dropped}
        notes += [f"{name}: {count} {what.replace('_', ' ')} left out" for what, count in dropped.items() if count]
    return Prepared(surfaces["pred"], surfaces["gt"], record | {"steps": []}, notes)


def check_matrix(matrix: np.ndarray) -> None:
    """Refuse what is no map between frames."""
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-18:
        raise UserError("--to-world: expected an invertible 4x4 matrix of finite numbers")


def check_frames(prepared: Prepared, *, moved: bool, force: bool) -> None:
    """Refuse boxes that do not meet and scales that cannot be of one scene; note scales that are odd.

    Raises:
        UserError: with both boxes, unless `force`.
    """
    pred, gt = prepared.pred.bounds(), prepared.gt.bounds()
    boxes = f"the prediction lies in {_box_text(pred)}, the truth in {_box_text(gt)}"
    ratio = _diagonal(pred) / max(_diagonal(gt), 1e-300)
    problem = None
    if _diagonal(gt) > 0 and _diagonal(pred) > 0 and not 1 / WRONG_SCALE < ratio < WRONG_SCALE:
        problem = f"the prediction is {ratio:.3g} times as large as the truth, as if in another unit or frame: {boxes}"
    elif (pred[0] > gt[1]).any() or (gt[0] > pred[1]).any():
        problem = f"the boxes do not meet: {boxes}"
    elif not 1 / ODD_SCALE < ratio < ODD_SCALE:
        prepared.notes.append(f"the prediction is {ratio:.3g} times as large as the truth: {boxes}")
    if problem and not force:
        remedy = "check the matrix of --to-world" if moved else "give the prediction's frame with --to-world"
        raise UserError(f"{problem}; {remedy}, or measure them all the same with --force")
    if problem:
        prepared.notes.append(problem)


def _box_text(bounds: np.ndarray) -> str:
    return " to ".join("(" + ", ".join(f"{value:.4g}" for value in corner) + ")" for corner in bounds)


def _diagonal(bounds: np.ndarray) -> float:
    return float(np.linalg.norm(bounds[1] - bounds[0]))


def apply_step(
    prepared: Prepared, name: str, facts: Mapping[str, Any], force: bool, apply: Any, *, truth: bool = True
) -> None:
    """Apply a step that leaves things out, record how much, and refuse one that leaves nothing."""
    before = {"pred": prepared.pred, "gt": prepared.gt}
    prepared.pred = prepared.pred if prepared.pred.is_empty else apply(prepared.pred)
    prepared.gt = apply(prepared.gt) if truth else prepared.gt
    entry: dict[str, Any] = {"step": name, **facts}
    for role, old in before.items():
        new = getattr(prepared, role)
        sizes = [len(s.vertices if s.faces is None else s.faces) for s in (old, new)]
        entry[role] = {"before": sizes[0], "after": sizes[1], "kept": sizes[1] / sizes[0] if sizes[0] else 0.0}
    prepared.record["steps"].append(entry)
    if prepared.gt.is_empty:
        raise UserError(f"{name} leaves nothing of the truth: the cameras or the box are of another frame")
    if prepared.pred.is_empty and not before["pred"].is_empty:
        problem = f"{name} leaves nothing of the prediction ({_box_text(before['pred'].bounds())})"
        if not force:
            raise UserError(f"{problem}; check its frame (--to-world), or have it counted as zero with --force")
        prepared.notes.append(f"{problem}: no distance exists, recall and F-score are 0")


def _expect_most_of_the_truth(prepared: Prepared) -> None:
    """A flip of the axes keeps almost nothing; a truth seen by its own cameras stays almost whole."""
    kept = prepared.record["steps"][-1]["gt"]["kept"]
    if kept < 0.9:
        prepared.notes.append(
            f"frustum culling keeps {100 * kept:.0f} % of the truth; with the scene's own trajectory nearly all stays"
        )


# ------------------------------------------------------------------------------------------------ sampling and scoring


def measure(prepared: Prepared, protocol: Protocol, seed: int = 0) -> Evaluation:
    """Sample and score, as often as the protocol says; each time with other seeds, never the same for both surfaces."""
    pred, gt = prepared.pred, prepared.gt
    thresholds = protocol.thresholds or (0.01 * _diagonal(gt.bounds()),)
    if _diagonal(gt.bounds()) == 0 and protocol.thresholds is None:
        raise UserError("the truth is a single place, which gives no scale; give --threshold")
    prepared.record["samples"] = {
        "per_mesh": protocol.samples,
        "of_clouds": "all points" if protocol.benchmark is None else "voxels",
        "repeats": protocol.repeats,
        "seed": seed,
        "normals": "of the faces that the samples lie on, unsigned",
    }
    prepared.record["thresholds"] = list(thresholds)
    if pred.is_empty:
        metrics = summarize([empty_score(thresholds)], thresholds, None, prepared, protocol)
        return Evaluation(metrics, pred, gt, None, sample_surface(gt, protocol.samples, 2 * seed + 1))
    repeats = 1 if pred.is_cloud and gt.is_cloud else protocol.repeats
    scores, firsts, truths = [], None, []
    for repeat in range(seed, seed + repeats):
        samples = sample_surface(pred, protocol.samples, 2 * repeat)
        if not gt.is_cloud or not truths:
            truths.append(sample_surface(gt, protocol.samples, 2 * repeat + 1))
        scores.append(score_samples(samples, truths[-1], thresholds))
        firsts = firsts or (samples, truths[-1])
        truths = truths[:2]
    floor = None
    if gt.is_cloud:
        prepared.notes.append("the truth is a cloud, which is not sampled: there is no sampling floor")
    else:
        others = truths[1] if len(truths) > 1 else sample_surface(gt, protocol.samples, 2 * (seed + repeats) + 1)
        floor = score_samples(truths[0], others, thresholds)
    metrics = summarize(scores, thresholds, floor, prepared, protocol)
    return Evaluation(metrics, pred, gt, *firsts)


def _with_depth(found: Evaluation, protocol: Protocol, scene: SceneGeometry, seed: int) -> Evaluation:
    """The evaluation with Depth L1 among its values, or the reason why it has none."""
    metrics, value, notes = found.metrics, None, found.metrics.notes
    if found.pred.is_cloud or found.gt.is_cloud or found.pred.is_empty:
        notes = (*notes, "no depth L1: it needs two meshes")
    else:
        value = depth_l1(found.pred, found.gt, views=protocol.depth_views, seed=seed, unseen=scene.unseen)
        if scene.unseen is None:
            notes = (*notes, "depth L1 without --unseen: views may look at what no camera saw, which counts")
    facts = {"views": protocol.depth_views, "seed": seed, "unseen_points": scene.origin.get("unseen")}
    metrics = replace(
        metrics,
        values={**metrics.values, "depth_l1": value},
        interval={**metrics.interval, "depth_l1": None},
        floor={**metrics.floor, "depth_l1": None if value is None else 0.0},
        protocol={**metrics.protocol, "depth": facts},
        notes=notes,
    )
    return replace(found, metrics=metrics)


def summarize(
    scores: Sequence[Mapping[str, float | None]],
    thresholds: Sequence[float],
    floor: Mapping[str, float | None] | None,
    prepared: Prepared,
    protocol: Protocol,
) -> GeometryMetrics:
    """Metrics of the scores with everything that was done and seen on the way."""
    if scores[0]["normal_consistency"] is None and not prepared.pred.is_empty:
        prepared.notes.append("a cloud without normals has no normal consistency")
    block = {
        "name": protocol.name,
        "reproduces": protocol.source,
        "unit": protocol.input_unit or "the input's",
        **prepared.record,
        "versions": machine.versions(),
        "hardware": machine.hardware(),
    }
    return summarize_scores(scores, thresholds, floor=floor, protocol=block, notes=prepared.notes)


def with_choices(
    protocol: Protocol, *, thresholds: Sequence[float] = (), samples: int | None = None, repeats: int | None = None
) -> Protocol:
    """The protocol with other numbers, where they are given; checked."""
    changed = replace(
        protocol,
        thresholds=tuple(dict.fromkeys(thresholds)) or protocol.thresholds,
        samples=protocol.samples if samples is None else samples,
        repeats=protocol.repeats if repeats is None else repeats,
    )
    return find_protocol(changed)
