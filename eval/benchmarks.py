"""Benchmarks with preparations of their own, from the steps of `nfc_splat.eval.preparation`: Tanks and Temples, DTU."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval import dtu
from nfc_splat.eval.geometry import Evaluation, empty_score, nearest_distances, score_distances, without_normals
from nfc_splat.eval.preparation import NOT_MEASURED, Prepared, apply_step, load_surfaces, move_to_truth
from nfc_splat.eval.protocols import Protocol, SceneGeometry
from nfc_splat.eval.surface import Samples, Surface, sample_surface
from nfc_splat.eval.tanks import align_and_crop, align_cameras, read_camera_log, read_tanks_scene


def prepare_tanks(
    pred: Surface | Path | str,
    gt: Surface | Path | str,
    protocol: Protocol,
    scene: SceneGeometry,
    seed: int,
    *,
    force: bool,
) -> tuple[Prepared, Protocol]:
    """Both as voxels inside the crop volume, and the protocol with the scene's threshold. A mesh is sampled densely,
    once (the toolbox would take its vertices). `force` lets a prediction pass of which nothing is in the volume."""
    if scene.folder is None:
        raise UserError(f"--protocol {protocol.name} needs the scene's files: give --scene FOLDER (such as Barn)")
    facts = read_tanks_scene(scene.folder, (protocol.thresholds or (None,))[0])
    prepared = load_surfaces(pred, gt, scene, force=force)
    if scene.to_world is not None:
        start, how = scene.to_world, scene.origin.get("to_world", "the given matrix")
    elif scene.camera_log is not None:
        start, how = align_cameras(read_camera_log(scene.camera_log), facts), str(scene.camera_log)
    else:
        start, how = facts.to_gt, f"{facts.name}_trans.txt (the prediction is in the reference cameras' frame)"
    pred, gt = (
        Surface(np.empty((0, 3)) if surface.is_empty else sample_surface(surface, protocol.samples, own).points)
        for surface, own in ((prepared.pred, 2 * seed), (prepared.gt, 2 * seed + 1))
    )
    prepared.pred, prepared.gt, prepared.record["alignment"] = align_and_crop(pred, gt, facts, start, how)
    prepared.record["origin"]["to_world"] = how
    if prepared.pred.is_empty and not pred.is_empty:
        problem = f"the crop volume of {facts.name} holds nothing of the prediction"
        if not force:
            raise UserError(f"{problem}; check its frame (--to-world), or have it counted as zero with --force")
        prepared.notes.append(f"{problem}: {NOT_MEASURED}")
    return prepared, replace(protocol, thresholds=protocol.thresholds or (facts.threshold,))


def evaluate_dtu(
    pred: Surface | Path | str,
    gt: Surface | Path | str,
    protocol: Protocol,
    scene: SceneGeometry,
    seed: int,
    *,
    force: bool,
) -> Evaluation:
    """DTU's own steps; see `nfc_splat.eval.dtu`. Accuracy and completeness are of different parts of the prediction."""
    if scene.folder is None:
        raise UserError("--protocol dtu needs ObsMask and Plane files: give --scene, DTU's folder that holds ObsMask/")
    scan = scene.scan or dtu.scan_number(gt if not isinstance(gt, Surface) else "the truth")
    observed = dtu.read_observed(scene.folder, scan)
    prepared = load_surfaces(pred, gt, scene, force=force)
    move_to_truth(prepared, scene.to_world, force=force)
    if scene.masked_views is not None:
        facts = {"masks": len(scene.masked_views[0]), "dilation": dtu.DILATION}
        apply_step(
            prepared, "mask culling", facts, force, lambda s: dtu.cull_by_masks(s, *scene.masked_views), truth=False
        )
    empty = prepared.pred.is_empty
    points = np.empty((0, 3)) if empty else dtu.thin_to_radius(dtu.mesh_points(prepared.pred), seed=seed)
    near = points[dtu.in_observed_box(points, observed)]
    counted = near[dtu.in_observation_mask(near, observed)]
    truth = prepared.gt.vertices
    above = truth[dtu.above_ground(truth, observed)]
    if not len(above):
        raise UserError(f"scan {scan}: nothing of the truth is above the ground; check the frame, lengths are in mm")
    if not len(counted) and not empty:
        problem = f"scan {scan}: nothing of the prediction is in the observation mask"
        if not force:
            raise UserError(f"{problem}; check the frame, lengths are in mm, or have it counted as zero with --force")
        prepared.notes.append(f"{problem}: {NOT_MEASURED}")
    parts = {"points": len(points), "in_box": len(near), "in_mask": len(counted), "truth_above_ground": len(above)}
    spacing = {"per_mesh": len(points), "of_clouds": "all points", "repeats": 1, "seed": seed}
    prepared.record |= {"samples": spacing, "observed": {"scan": scan, **parts}, "dropped_beyond": dtu.FARTHEST}
    if not len(counted):
        metrics = prepared.summarize([empty_score(protocol.thresholds)], protocol.thresholds, None, protocol)
        return Evaluation(metrics, Surface(counted), Surface(above), None, Samples(above))
    sides = Samples(counted), Samples(truth), Samples(above), Samples(near)
    to_gt, to_pred = nearest_distances(*sides[:2]), nearest_distances(*sides[2:])
    score = score_distances(to_gt, to_pred, protocol.thresholds, drop_beyond=dtu.FARTHEST) | without_normals()
    if score["chamfer_l1_mean"] is None:
        prepared.notes.append(f"one way all distances are {dtu.FARTHEST:g} mm or more and dropped: they have no mean")
    metrics = prepared.summarize([score], protocol.thresholds, None, protocol)
    return Evaluation(metrics, Surface(counted), Surface(above), sides[0], sides[2])
