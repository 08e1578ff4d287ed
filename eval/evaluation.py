"""Compare a reconstruction with the truth under a protocol: `evaluate_mesh`, and `evaluate` for pictures."""

from dataclasses import replace
from pathlib import Path

from nfc_splat.errors import UserError
from nfc_splat.eval.benchmarks import evaluate_dtu, prepare_tanks
from nfc_splat.eval.depth_views import RAYS, depth_l1
from nfc_splat.eval.geometry import Evaluation, GeometryMetrics, empty_score, score_samples
from nfc_splat.eval.preparation import Prepared, diagonal, prepare
from nfc_splat.eval.protocols import Protocol, SceneGeometry, find_protocol
from nfc_splat.eval.surface import Surface, sample_surface

SEEDS = 2**30  # open3d takes 31 bits, and two are used per sampling


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
        scene: frames, cameras and boxes, where the protocol needs them (`read_scene_geometry` finds them in a folder).
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
    """`evaluate_mesh` with what was measured."""
    protocol, scene = find_protocol(protocol), scene or SceneGeometry()
    if not 0 <= seed < SEEDS - protocol.repeats:
        raise UserError(f"--seed {seed}: expected 0 to {SEEDS - protocol.repeats - 1:,}")
    if protocol.benchmark == "dtu":
        return evaluate_dtu(pred, gt, protocol, scene, seed, force=force)
    if protocol.benchmark == "tanks-and-temples":
        prepared, protocol = prepare_tanks(pred, gt, protocol, scene, seed, force=force)
    else:
        prepared = prepare(pred, gt, protocol, scene, force=force)
    found = measure(prepared, protocol, seed)
    return _with_depth(found, protocol, scene, seed) if protocol.depth_views else found


def measure(prepared: Prepared, protocol: Protocol, seed: int = 0) -> Evaluation:
    """Sample and score, as often as the protocol says; each time with other seeds, never the same for both surfaces."""
    pred, gt = prepared.pred, prepared.gt
    scale = diagonal(gt.bounds())
    if scale == 0 and protocol.thresholds is None:
        raise UserError("the truth is a single place, which gives no scale; give --threshold")
    thresholds = protocol.thresholds or (0.01 * scale,)
    prepared.record["samples"] = {
        "per_mesh": protocol.samples,
        "of_clouds": "all points",
        "repeats": protocol.repeats,
        "seed": seed,
        "normals": "of the faces that the samples lie on, unsigned",
        "of": {"pred": pred.counts(), "gt": gt.counts()},
    }
    if pred.is_empty:
        metrics = prepared.summarize([empty_score(thresholds)], thresholds, None, protocol)
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
    return Evaluation(prepared.summarize(scores, thresholds, floor, protocol), pred, gt, *firsts)


def _with_depth(found: Evaluation, protocol: Protocol, scene: SceneGeometry, seed: int) -> Evaluation:
    """The evaluation with Depth L1 among its values, or the reason why it has none."""
    metrics, value, notes = found.metrics, None, found.metrics.notes
    if found.pred.is_cloud or found.gt.is_cloud or found.pred.is_empty:
        notes = (*notes, "no depth L1: it needs two meshes")
    else:
        value = depth_l1(found.pred, found.gt, views=protocol.depth_views, seed=seed, unseen=scene.unseen)
        if scene.unseen is None:
            notes = (*notes, "depth L1 without --unseen: views may look at what no camera saw, which counts")
    facts = {"views": protocol.depth_views, "rays": RAYS, "seed": seed, "unseen_points": scene.origin.get("unseen")}
    metrics = replace(
        metrics,
        values={**metrics.values, "depth_l1": value},
        interval={**metrics.interval, "depth_l1": None},
        floor={**metrics.floor, "depth_l1": None if value is None else 0.0},
        protocol={**metrics.protocol, "depth": facts},
        notes=notes,
    )
    return replace(found, metrics=metrics)
