"""The box that a scene lies in, as DVGO finds it: from what the cameras see, then from what the coarse stage found.

Boxes are [2, 3], lowest and highest corner, in world units. Symbols: C cameras, P pixels.
"""

import torch
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.fields.depth_range import depth_range, focus_distances
from nfc_splat.fields.dvgo_views import outline_rays
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.rendering.samples import unit_directions

NEAR_CLIP_SHARE = 0.02  # of the largest distance between two cameras


def scene_box(geometry: SceneGeometry) -> tuple[float, Tensor]:
    """Where rays begin (a depth), and the box of a bounded scene.

    The box holds every training ray from `near` to `far` along its unit direction, or is what the files state where
    they state no depth range.

    Raises:
        UserError: nothing says where the scene lies, or what does leaves it no room.
    """
    if geometry.near_far is None and geometry.bounds is not None:
        return 0.0, _with_room(geometry.bounds.float())
    known = geometry.near_far is not None or (geometry.points is not None and len(geometry.points))
    if not known and focus_distances(geometry) is None:
        raise UserError(
            "--bounded yes: the scene states neither a depth range nor bounds nor points, and its cameras do not look "
            "at a common point; add near and far to its files, or choose --bounded no"
        )
    near, far = depth_range(geometry)
    corners = []
    for rays in outline_rays(geometry.cameras):
        along = unit_directions(rays)
        for distance in (near, far):
            corners += torch.aminmax(rays.origins + along * distance, dim=0)
    corners = torch.stack(corners)
    return near, _with_room(torch.stack([corners.amin(0), corners.amax(0)]))


def _with_room(box: Tensor) -> Tensor:
    """The box, once it is sure to be one."""
    if not ((box[1] - box[0]).isfinite() & (box[1] > box[0])).all():
        low, high = (", ".join(f"{side:g}" for side in corner) for corner in box.tolist())
        raise UserError(
            f"--bounded yes: the scene's box goes from ({low}) to ({high}), expected higher numbers in the second "
            "corner; correct the bounds or the depth range that its files state, or choose --bounded no"
        )
    return box


def inner_cube(geometry: SceneGeometry, scale: float, near_clip: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Centre [3], radius and near-clip depth of an unbounded scene.

    The cube holds the point at depth `near_clip` on every training ray, enlarged `scale` times.

    Raises:
        UserError: all cameras stand at one point and `near_clip` is not given.
    """
    cameras = geometry.cameras
    if near_clip is None:
        centers = cameras.centers
        near_clip = NEAR_CLIP_SHARE * float(torch.cdist(centers[None], centers[None]).max())
        if near_clip <= 0:
            raise UserError(
                "--near-clip: all training cameras stand at one point, so that nothing says how large the scene is; "
                "give a depth in world units that is nearer than everything in it"
            )
    corners = []
    for rays in outline_rays(cameras):
        corners += torch.aminmax(rays.origins + rays.directions * near_clip, dim=0)
    corners = torch.stack(corners)
    low, high = corners.amin(0), corners.amax(0)
    radius = (high - low).max() / 2 * scale
    return (low + high) / 2, radius, torch.as_tensor(near_clip, device=radius.device)


def enlarged(box: Tensor, scale: float) -> Tensor:
    """The box about the same centre with sides `scale` times as long."""
    margin = (box[1] - box[0]) * (scale - 1) / 2
    return torch.stack([box[0] - margin, box[1] + margin])


def tight_box(nodes: Tensor, alpha: Tensor, threshold: float) -> Tensor:
    """The box of those nodes [X, Y, Z, 3] whose opacity [X, Y, Z] is above the threshold; flat sides get some depth.

    Raises:
        UserError: there is none.
    """
    kept = nodes[alpha > threshold]
    if not len(kept):
        raise UserError(
            f"the coarse stage found nothing: opacities lie from {float(alpha.min()):.3g} to {float(alpha.max()):.3g}, "
            f"at least {threshold:g} is needed; raise --coarse-steps, check the poses with nfc_splat.doctor, or choose "
            "--bounded no"
        )
    spacing = (nodes[-1, -1, -1] - nodes[0, 0, 0]) / (torch.tensor(alpha.shape, device=nodes.device) - 1)
    low, high = kept.amin(0), kept.amax(0)
    flat = high == low
    return torch.stack([torch.where(flat, low - spacing / 2, low), torch.where(flat, high + spacing / 2, high)])
