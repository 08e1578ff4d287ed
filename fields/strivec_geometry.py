"""What Strivec knows of a scene before its tensors: how large it is, where it lies, and where matter is.

Matter is found by DVGO's coarse stage, or given as points. Differences from the released code, whose coarse stage is
DVGO's too: learning rates follow how many images see a voxel, and what hardly any image sees is never matter. By
classification the coarse stage is trained by classification too; the paper says nothing of it.

Symbols: C cameras, P points. Boxes are [2, 3].
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.fields import dvgo
from nfc_splat.fields.depth_range import depth_range, focus_distances
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.fields.strivec_config import Config
from nfc_splat.fields.voxel_grid import grid_nodes

SYNTHETIC_DISTANCE = 4.031  # of the cameras of Synthetic-NeRF from what they look at


class Region(NamedTuple):
    """What is drawn: a box in world units, the depth at which rays begin, and the world length of a unit."""

    box: Tensor
    near: float
    unit: float

    def described(self) -> str:
        """One line."""
        sides = " x ".join(f"{side:.4g}" for side in (self.box[1] - self.box[0]).tolist())
        return f"a region of {sides}, the unit is {self.unit:.4g}"


def choose_region(config: Config, geometry: SceneGeometry) -> Region:
    """The region and the unit that suit the scene."""
    near, far = depth_range(geometry)
    depths = focus_distances(geometry)
    distance = float(depths.mean()) if depths is not None else (near + far) / 2
    unit = config.unit or distance / SYNTHETIC_DISTANCE
    if geometry.bounds is not None:
        return Region(geometry.bounds.float(), near, unit)
    cameras = geometry.cameras
    axes = cameras.viewmats[:, 2, :3]
    if depths is not None:
        center = (cameras.centers + depths.to(axes)[:, None] * axes).mean(0)
    else:
        center = cameras.centers.mean(0)
    half = torch.full_like(center, config.region * unit)
    return Region(torch.stack([center - half, center + half]), near, unit)


def coarse_config(config: Config) -> dvgo.Config:
    """DVGO's settings, with a coarse stage that goes on for as long as it is asked to."""
    settings = dvgo.preset(
        "paper",
        bounded="yes",
        target_encoding=config.target_encoding,
        coarse_voxels=config.coarse_voxels,
        rays=config.coarse_rays,
        lr_density=config.coarse_lr,
        lr_color=config.coarse_lr,
        adam_eps=config.coarse_eps,
        growths=0,
        view_stride=4,
        mask_every=3 * config.coarse_steps,
    )
    return replace(settings, steps=config.coarse_steps + 2, coarse_steps=config.coarse_steps + 1)


def coarse_model(config: Config, geometry: SceneGeometry) -> dvgo.Model:
    """The untrained coarse stage.

    Raises:
        UserError: the scene does not say where it lies, or the cameras see too little of it.
    """
    try:
        return dvgo.Model.initialise(coarse_config(config), geometry)
    except UserError as error:
        raise UserError(f"the coarse stage cannot begin: {error}; or give --geometry points, without it") from error


@torch.no_grad()
def coarse_points(coarse: dvgo.Model, threshold: float) -> tuple[Tensor, Tensor]:
    """[P, 3] the nodes whose voxel is more opaque than the threshold, and these opacities [P].

    Raises:
        UserError: there is none.
    """
    alpha = coarse.node_alpha(coarse.density.size)
    found = (alpha > threshold) & coarse.mask.occupied
    if not found.any():
        raise UserError(
            f"the coarse stage found nothing: opacities lie from {float(alpha.min()):.3g} to {float(alpha.max()):.3g}, "
            f"more than {threshold:g} is needed; raise --coarse-steps, lower --geometry-threshold or check the poses "
            "with nfc_splat.doctor"
        )
    return grid_nodes(coarse.density.box, coarse.density.size)[found], alpha[found]


def given_points(geometry: SceneGeometry) -> Tensor:
    """[P, 3] the scene's points.

    Raises:
        UserError: there are none.
    """
    if geometry.points is None or not len(geometry.points):
        raise UserError("--geometry points: the scene has no initial points; give some with --points, or leave it out")
    return geometry.points.float()


def in_region(points: Tensor, region: Region, margin: float) -> Tensor:
    """[P] bool, which of the points [P, 3] are at most `margin` outside of the region.

    Raises:
        UserError: there is none.
    """
    inside = ((points >= region.box[0] - margin) & (points <= region.box[1] + margin)).all(1)
    if not inside.any():
        raise UserError(
            f"none of the {len(points)} points that tensors could be placed at lies in {region.described()}; raise "
            "--region, or check the poses with nfc_splat.doctor"
        )
    return inside
