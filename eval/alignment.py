"""Alignment by ICP, for the protocols that have it. It can hide errors: its matrix and residual are always recorded."""

from typing import Any

import numpy as np

from nfc_splat.eval.surface import Surface, to_open3d, transform_surface
from nfc_splat.open3d_loader import load_open3d


def align_by_icp(pred: Surface, gt: Surface, farthest: float) -> tuple[Surface, dict[str, Any]]:
    """Point-to-point ICP on the vertices, rigid, from where the prediction is.

    Args:
        pred: what is moved.
        gt: what it is moved to.
        farthest: correspondences beyond this distance do not count.

    Returns:
        The moved prediction, and a record of what was found.
    """
    icp = load_open3d().pipelines.registration
    clouds = [to_open3d(Surface(surface.vertices)) for surface in (pred, gt)]
    found = icp.registration_icp(*clouds, farthest, np.eye(4), icp.TransformationEstimationPointToPoint())
    matrix = np.array(found.transformation)
    record = {
        "method": "point-to-point ICP on vertices, rigid, from the identity",
        "farthest_correspondence": farthest,
        "matrix": matrix.tolist(),
        "inliers": float(found.fitness),
        "inlier_rmse": float(found.inlier_rmse),
    }
    return transform_surface(pred, matrix), record
