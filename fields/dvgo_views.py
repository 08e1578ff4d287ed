"""What DVGO asks of the training views besides their colours: which voxels they see, from how near, through which rays.

Symbols: C cameras, R rays, X, Y, Z nodes of a grid. Boxes are [2, 3] in world units.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nfc_splat.cameras import Cameras, Rays
from nfc_splat.fields.voxel_grid import Size, grid_nodes
from nfc_splat.rendering.grids import interpolate_grid
from nfc_splat.rendering.samplers import box_steps
from nfc_splat.rendering.samples import Samples

RAYS_AT_ONCE = 2**14
SEEN_WEIGHT = 1.0  # a voxel is seen by an image whose samples give it more than this in all


def image_rays(cameras: Cameras, stride: int = 1) -> Iterator[Iterator[Rays]]:
    """For each camera, the rays of every `stride`-th pixel row and column in order, `RAYS_AT_ONCE` at a time."""
    for index in range(len(cameras)):
        width, height = cameras.sizes[index].tolist()
        rows, columns = (torch.arange(0, count, stride) for count in (height, width))
        yield _parts(cameras[index], torch.cartesian_prod(rows, columns))


def outline_rays(cameras: Cameras) -> Iterator[Rays]:
    """For each camera, the rays of its image's border and of every 8th pixel within: among all its rays, the farthest
    in any direction is one of these or next to one."""
    for index in range(len(cameras)):
        width, height = cameras.sizes[index].tolist()
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        row, column = places.unbind(-1)
        border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
        chosen = border | ((row % 8 == 4) & (column % 8 == 4))
        yield from _parts(cameras[index], places[chosen])


def _parts(camera: Cameras, places: Tensor) -> Iterator[Rays]:
    """Rays of one camera through pixels [P, 2] (row, column)."""
    for part in places.split(RAYS_AT_ONCE):
        pixels = torch.nn.functional.pad(part, (1, 0)).to(camera.viewmats.device)
        yield replace(camera.rays(pixels), times=None)


@torch.no_grad()
def view_counts(cameras: Cameras, box: Tensor, size: Size, step: float, near: float, stride: int) -> Tensor:
    """[X, Y, Z] how many images see each node: those whose samples, `step` apart on every ray, share more than
    `SEEN_WEIGHT` of their trilinear weights with it."""
    counts = box.new_zeros(size)
    for parts in image_rays(cameras, stride):
        weight = box.new_zeros(size)
        for rays in parts:
            samples = box_steps(rays, box[0], box[1], step, near=near, offset=0.0)
            weight += _shared_weights(box, size, samples.positions)
        counts += weight > SEEN_WEIGHT
    return counts


def _shared_weights(box: Tensor, size: Size, points: Tensor) -> Tensor:
    """[X, Y, Z] the sum of the trilinear weights that points [M, 3] give to each node."""
    with torch.enable_grad():
        grid = box.new_zeros(*size, 1).requires_grad_()
        values = interpolate_grid(grid, points, box[0], box[1])
        (weights,) = torch.autograd.grad(values, grid, torch.ones_like(values))
    return weights[..., 0]


def near_camera(cameras: Cameras, box: Tensor, size: Size, near: float) -> Tensor:
    """[X, Y, Z] whether a node is at most `near` away from some camera's centre."""
    centers = cameras.centers.to(box)
    slabs = [torch.cdist(slab.reshape(-1, 3), centers).amin(1) for slab in grid_nodes(box, size)]
    return torch.stack(slabs).view(size) <= near


@torch.no_grad()
def crossing_pixels(cameras: Cameras, sample: Callable[[Rays], Samples]) -> Tensor:
    """[K] int64, on the host: numbers of the pixels whose ray has any sample, counted over all images in order."""
    hit = [sample(rays).offsets.diff() > 0 for parts in image_rays(cameras) for rays in parts]
    return torch.cat(hit).nonzero()[:, 0].cpu()
