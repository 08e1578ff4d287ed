"""What is done to two surfaces before they are sampled: read, clean, move, cull, align, crop; and the record of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat import machine
from nfc_splat.errors import UserError
from nfc_splat.eval.alignment import align_by_icp
from nfc_splat.eval.culling import cull_by_frusta
from nfc_splat.eval.geometry import GeometryMetrics, Score, summarize_scores
from nfc_splat.eval.protocols import Protocol, SceneGeometry
from nfc_splat.eval.surface import Surface, clean_surface, crop_to_box, oriented_box, transform_surface
from nfc_splat.eval.surface_files import read_surface

WRONG_SCALE = 50.0  # extents that differ by this are of another unit
ODD_SCALE = 2.0
ROLES = {"pred": "the prediction", "gt": "the truth"}
NOT_MEASURED = "no distance exists, precision, recall and F-score are 0"


@dataclass(eq=False)
class Prepared:
    """Two surfaces that are ready to be sampled, and what was done to them."""

    pred: Surface
    gt: Surface
    record: dict[str, Any]
    notes: list[str]

    def summarize(
        self, scores: Sequence[Score], thresholds: Sequence[float], floor: Score | None, protocol: Protocol
    ) -> GeometryMetrics:
        """Metrics of the scores of several samplings, with everything that was done and seen on the way."""
        if scores[0]["normal_consistency"] is None and not self.pred.is_empty:
            self.notes.append("without normals (of faces, or of a cloud's points) there is no normal consistency")
        block = {
            "name": protocol.name,
            "reproduces": protocol.source,
            "unit": protocol.input_unit or "the input's",
            **self.record,
            "thresholds": list(thresholds),
            "versions": machine.versions(),
            "hardware": machine.hardware(),
        }
        return summarize_scores(scores, thresholds, floor=floor, protocol=block, notes=self.notes)


def prepare(
    pred: Surface | Path | str, gt: Surface | Path | str, protocol: Protocol, scene: SceneGeometry, *, force: bool
) -> Prepared:
    """Everything before sampling. The truth is culled as well: one that was culled before stays as it is."""
    if protocol.cull and scene.frusta is None:
        raise UserError(
            f"--protocol {protocol.name} leaves out what no camera sees and has no cameras: give --scene FOLDER or "
            "--trajectory traj.txt (or compare with --protocol plain)"
        )
    prepared = load_surfaces(pred, gt, scene, force=force)
    move_to_truth(prepared, scene.to_world, force=force)
    if protocol.cull:
        apply_step(prepared, "frustum culling", scene.frusta.record(), force, lambda s: cull_by_frusta(s, scene.frusta))
        _expect_most_of_the_truth(prepared)
    if protocol.icp is not None and not prepared.pred.is_empty:
        prepared.pred, prepared.record["alignment"] = align_by_icp(prepared.pred, prepared.gt, protocol.icp)
    if protocol.crop is not None:
        box = scene.box or oriented_box(prepared.gt.vertices)  # as published, around those that culling left unused too
        enlarged = box.scaled(protocol.crop)
        facts = {"factor": protocol.crop, "box": box.record(), "by": scene.origin.get("box", "open3d, minimal")}
        apply_step(prepared, "crop to box", facts, force, lambda s: crop_to_box(s, enlarged), truth=False)
    return prepared


def load_surfaces(
    pred: Surface | Path | str, gt: Surface | Path | str, scene: SceneGeometry, *, force: bool = False
) -> Prepared:
    """Both surfaces, read and cleaned.

    Raises:
        UserError: a file that cannot be read, or nothing in it; `force` lets an empty prediction pass.
    """
    surfaces, record, notes = {}, {}, []
    for role, given in (("pred", pred), ("gt", gt)):
        name = ROLES[role] if isinstance(given, Surface) else str(given)
        surface, dropped = clean_surface(given if isinstance(given, Surface) else read_surface(given))
        found = [f"{what.replace('_', ' ')} left out: {count:,}" for what, count in dropped.items() if count]
        notes += [f"{name}: {note}" for note in found]
        if surface.is_empty:
            problem = f"{name}: holds nothing to measure" + (f" ({', '.join(found)})" if found else "")
            if role == "gt" or not force:
                raise UserError(f"{problem}; expected a mesh with faces or a point cloud")
            notes.append(f"{problem}: {NOT_MEASURED}")
        surfaces[role] = surface
        record[role] = {"name": name, **surface.counts(), **dropped}
    record |= {"origin": dict(scene.origin), "to_world": None, "steps": [], "alignment": None}
    return Prepared(surfaces["pred"], surfaces["gt"], record, notes)


def move_to_truth(prepared: Prepared, to_world: np.ndarray | None, *, force: bool) -> None:
    """Bring the prediction to the truth's frame, and refuse frames that cannot be right.

    Args:
        prepared: changed.
        to_world: [4, 4], None where the frames are one.
        force: measure boxes that do not meet and scales that cannot be of one scene.

    Raises:
        UserError: with both boxes; or no matrix between frames.
    """
    if to_world is not None:
        if to_world.shape != (4, 4) or not np.isfinite(to_world).all() or abs(np.linalg.det(to_world[:3, :3])) < 1e-18:
            raise UserError("--to-world: expected an invertible 4x4 matrix of finite numbers")
        prepared.pred = transform_surface(prepared.pred, to_world)
        prepared.record["to_world"] = to_world.tolist()
    if not prepared.pred.is_empty:
        _check_frames(prepared, moved=to_world is not None, force=force)


def _check_frames(prepared: Prepared, *, moved: bool, force: bool) -> None:
    """Refuse boxes that do not meet and scales of another unit, unless `force`; note scales that are odd."""
    pred, gt = prepared.pred.bounds(), prepared.gt.bounds()
    boxes = f"the prediction lies in {_box_text(pred)}, the truth in {_box_text(gt)}"
    remedy = "check the matrix of --to-world" if moved else "give the prediction's frame with --to-world"
    ratio = diagonal(pred) / diagonal(gt) if diagonal(pred) > 0 and diagonal(gt) > 0 else 1.0  # a point has no scale
    times = f"the prediction is {f'{ratio:,.0f}' if ratio >= 100 else f'{ratio:.3g}'} times as large as the truth"
    problem = None
    if not 1 / WRONG_SCALE < ratio < WRONG_SCALE:
        problem = f"{times}, as if in another unit or frame: {boxes}"
    elif (pred[0] > gt[1]).any() or (gt[0] > pred[1]).any():
        problem = f"the boxes do not meet: {boxes}"
    elif not 1 / ODD_SCALE < ratio < ODD_SCALE:
        prepared.notes.append(f"{times}: {boxes}; if that surprises, {remedy}")
    if problem and not force:
        raise UserError(f"{problem}; {remedy}, or measure them all the same with --force")
    if problem:
        prepared.notes.append(problem)


def _box_text(bounds: np.ndarray) -> str:
    return " to ".join("(" + ", ".join(f"{value:.4g}" for value in corner) + ")" for corner in bounds)


def diagonal(bounds: np.ndarray) -> float:  # [2, 3]
    """The length of a box's diagonal."""
    return float(np.linalg.norm(bounds[1] - bounds[0]))


def apply_step(
    prepared: Prepared,
    name: str,
    facts: Mapping[str, Any],
    force: bool,
    apply: Callable[[Surface], Surface],
    *,
    truth: bool = True,
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
        prepared.notes.append(f"{problem}: {NOT_MEASURED}")


def _expect_most_of_the_truth(prepared: Prepared) -> None:
    """A flip of the axes keeps almost nothing; a truth seen by its own cameras stays almost whole."""
    kept = prepared.record["steps"][-1]["gt"]["kept"]
    if kept < 0.9:
        prepared.notes.append(
            f"frustum culling keeps {100 * kept:.0f} % of the truth; with the scene's own trajectory nearly all stays"
        )
