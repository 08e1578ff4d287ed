"""How NeuS's quick preset begins: voxel densities find the shape, and the distance network is fitted to it.

A surface that starts as a ball and is drawn with a hash grid hardly digs hollows: before it has moved, what is seen
through an opening is painted onto a lid. A density is a thin fog at first, in which every depth of a ray is tried at
once. So the first steps train `dvgo`; what no camera looks through then is matter; and the signed distance is fitted to
that, by the cross entropy of Phi(-f) with matter and the eikonal term. On the built-in urn's bowl, 3000 steps of voxels
leave 0.1 % of the hollow opaque, and 1000 steps of `ngp`, with the hash grid, 22 %.

For objects with nothing behind them alone: voxels without end would be laid out about the cameras, and around cameras
within a room densities become a fog before the lenses.

Symbols: G lattice points along an axis, N points. Lengths are in radii of the region.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.fields import dvgo
from nfc_splat.fields.neus_config import Config
from nfc_splat.fields.neus_region import Region
from nfc_splat.fields.ngp_space import known_box
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.fields.sdf_network import SDFNetwork
from nfc_splat.rendering.level_set import LevelSet
from nfc_splat.rendering.samplers import box_steps
from nfc_splat.rendering.samples import flat_rays

COARSE_STEPS = 400
ADAM_EPS = 1e-15
LATTICE = 128
SPECK = 5.5  # opaque cells with fewer opaque ones about them, themselves included, are noise
MOST_VIEWS, MOST_PIXELS = 100, 256  # drawn to see what is empty, and along their longer side
VOTES = 2  # or as many as there are views
FIT_STEPS, FIT_POINTS = 400, 2**13
FIT_SHARPNESS = 128.0  # s of the fit: Phi goes from 0.02 to 0.98 within 4 lattice steps
FIT_EIKONAL = 0.3
SPREAD = 2.0  # lattice steps about the surface, within which half of the points lie
ROWS_AT_ONCE = 2**16


def density_config(config: Config) -> dvgo.Config:
    """The settings of the density field: dvgo's quick preset, with a coarse stage that stays long enough, and an
    epsilon that does not hold back the gradients of small voxels."""
    settings = dvgo.preset("quick", bounded="yes", steps=config.shape_steps)
    coarse = min(COARSE_STEPS, config.shape_steps // 2)
    return replace(settings, target_encoding=config.target_encoding, coarse_steps=coarse, adam_eps=ADAM_EPS)


def density_model(config: Config, geometry: SceneGeometry, region: Region) -> dvgo.Model:
    """The untrained density field, over the part of the region that holds the scene.

    Raises:
        UserError: the cameras see too little of the region.
    """
    try:
        return dvgo.Model.initialise(density_config(config), _within(geometry, region))
    except UserError as error:
        raise UserError(f"the first stage cannot begin: {error}; or give --shape-steps 0, without it") from error


def density_recipe(config: Config, geometry: SceneGeometry, region: Region) -> dvgo.Recipe:
    """Trains it."""
    return dvgo.Recipe(density_config(config), _within(geometry, region))


def _within(geometry: SceneGeometry, region: Region) -> SceneGeometry:
    """The same scene, bounded by what its files tell of its size, within the region."""
    low, high = bounds = region.bounds.cpu()
    if (box := known_box(geometry)) is not None:
        box = box.clamp(low, high)
        bounds = box if bool((box[0] < box[1]).all()) else bounds
    return replace(geometry, bounds=bounds.to(geometry.cameras.viewmats.device), near_far=None)


@torch.no_grad()
def find_matter(surface: LevelSet, region: Region, cameras: Cameras) -> Tensor:
    """[G, G, G] bool over the region's cube: all but what is seen to be empty.

    A place is empty if `VOTES` cameras see it with nothing opaque before it, or if no camera has it in view. Specks are
    not opaque. Where nothing is opaque, nothing is matter.
    """
    points = region.center + region.radius * cell_middles(LATTICE, region.center.device)
    values = torch.cat([surface.values(part) for part in points.split(ROWS_AT_ONCE)])
    low, high = surface.bounds
    opaque = (values > surface.level) & ((points >= low) & (points <= high)).all(1)
    opaque &= _company(opaque.view(LATTICE, LATTICE, LATTICE)).view(-1) >= SPECK
    if not opaque.any():
        return opaque.view(LATTICE, LATTICE, LATTICE)
    cameras = replace(cameras, model="pinhole", distortion=None)  # lenses fold what is far outside back into the image
    votes = torch.zeros(len(points), dtype=torch.uint8, device=points.device)
    in_view = torch.zeros_like(opaque)
    chosen = torch.linspace(0, len(cameras) - 1, min(MOST_VIEWS, len(cameras)), dtype=torch.float64).round().long()
    for index in chosen.tolist():
        camera = cameras[index].to(points.device)
        camera = camera.downscaled(max(1.0, int(camera.sizes.max()) / MOST_PIXELS))
        nearest = _nearest(camera, opaque.view(LATTICE, LATTICE, LATTICE), region)
        for start in range(0, len(points), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            pixels, depth = (value[0] for value in camera.project(points[part]))
            x, y = pixels.floor().long().unbind(1)
            seen = (depth > 0) & (x >= 0) & (y >= 0) & (x < nearest.shape[1]) & (y < nearest.shape[0])
            free = depth < nearest[y.clamp(0, len(nearest) - 1), x.clamp(0, nearest.shape[1] - 1)]
            votes[part] += seen & free
            in_view[part] |= seen
    return ((opaque | (votes < min(VOTES, len(cameras)))) & in_view).view(LATTICE, LATTICE, LATTICE)


def _nearest(camera: Cameras, opaque: Tensor, region: Region) -> Tensor:
    """[H, W] the smallest depth at which a ray through a pixel or its neighbours is in an opaque cell, or infinite."""
    rays = camera.rays()
    height, width = rays.origins.shape[1:3]
    samples = box_steps(flat_rays(rays), *region.bounds, float(region.radius) / LATTICE, occupancy=opaque)
    hit = samples.offsets[1:] > samples.offsets[:-1]
    depth = torch.full((height * width,), torch.inf, device=opaque.device)
    depth[hit] = samples.t[samples.offsets[:-1][hit]]
    return -F.max_pool2d(-depth.view(1, 1, height, width), 3, stride=1, padding=1)[0, 0]


def _company(cells: Tensor) -> Tensor:
    """[G, G, G] how many of a cell's 27 neighbours, itself included, are set."""
    return F.avg_pool3d(cells[None].float(), 3, stride=1, padding=1)[0] * 27


def fit(network: SDFNetwork, matter: Tensor) -> None:
    """Train the network until its distances are negative in `matter` [G, G, G] bool and positive elsewhere.

    Adam on random points of [-1, 1]^3, half of them near the border.
    """
    size = len(matter)
    border = (_grown(matter) & _grown(~matter)).nonzero()
    soft = matter.float()[None, None]
    optimizer = Adam(network.parameters(), lr=5e-3, eps=1e-15, fused=True)
    for step in range(FIT_STEPS):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / FIT_STEPS)
        chosen = border[torch.randint(len(border), (FIT_POINTS // 2,), device=border.device)]
        near = (chosen + 0.5 + SPREAD * (torch.rand_like(chosen, dtype=torch.float32) * 2 - 1)) * (2 / size) - 1
        points = torch.cat([near, torch.rand_like(near) * 2 - 1]).clamp(-1, 1)
        share = F.grid_sample(soft, points.flip(1).view(1, 1, 1, -1, 3), padding_mode="border", align_corners=False)
        distance, _, gradient = network(points)
        cross_entropy = F.binary_cross_entropy_with_logits(-FIT_SHARPNESS * distance, share.view(-1))
        eikonal = (gradient.norm(dim=1) - 1).square().mean()
        (cross_entropy + FIT_EIKONAL * eikonal).backward()
        optimizer.step()
        optimizer.zero_grad()


def cell_middles(size: int, device: torch.device) -> Tensor:
    """[size^3, 3] middles of the cells of [-1, 1]^3, with `size` along each axis."""
    middle = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    return torch.cartesian_prod(middle, middle, middle)


def _grown(cells: Tensor) -> Tensor:
    """Cells [G, G, G] and all their neighbours."""
    return F.max_pool3d(cells[None].float(), 3, stride=1, padding=1)[0] > 0
