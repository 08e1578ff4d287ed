"""HexPlane in plain torch: the oracle of the tests, any float dtype and device, twice differentiable.

Symbols: R nodes along an axis of space, T along time, C channels, M points; u, v a place in units of nodes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

SPACE = ((0, 1), (0, 2), (1, 2))  # axes (column, row) of the spatial planes
TIME = ((0, 3), (1, 3), (2, 3))  # and of the temporal ones


def hexplane_reference(
    levels: Sequence[tuple[Tensor, Tensor]], points: Tensor, time: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """See `nfc_splat.rendering.hexplane.interpolate_hexplane`."""
    events = torch.cat([points, time.expand(len(points), 1)], dim=1)
    share = (events - low) / (high - low)  # 0 to 1 inside the box
    features = []
    for spatial, temporal in levels:
        product = torch.ones_like(spatial[0, :1, 0])
        for plane, (column, row) in zip((*spatial, *temporal), (*SPACE, *TIME), strict=True):
            product = product * _bilinear(plane, share[:, column], share[:, row])
        features.append(product)
    return torch.cat(features, dim=1)


def _bilinear(plane: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Values [M, C] of `plane` [H, W, C] at shares [M] of its width and height."""
    (i, u), (j, v) = _node(column, plane.shape[1]), _node(row, plane.shape[0])
    near = plane[j, i] * (1 - u) + plane[j, i + 1] * u
    far = plane[j + 1, i] * (1 - u) + plane[j + 1, i + 1] * u
    return near * (1 - v) + far * v


def _node(share: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The node [M] before a place and how far beyond it [M, 1] the place lies."""
    inside = (share > 0) & (share < 1)  # False for NaN
    # Not a clamp, whose gradient is 1 on the border itself; grid_sample's is 0 there.
    edge = (share >= 1).to(share)
    place = torch.where(inside, share, edge) * (count - 1)
    node = place.detach().floor().clamp(max=count - 2)
    return node.long(), (place - node)[:, None]


def hexplane_grid_sample(
    levels: Sequence[tuple[Tensor, Tensor]], points: Tensor, time: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The same by torch's own operation, on views of the planes: what runs on a GPU.

    Its backward pass adds up with atomics, so that the last bits of the planes' gradients vary from run to run.
    """
    events = torch.cat([points, time.expand(len(points), 1)], dim=1)
    place = (events - low) * (2 / (high - low)) - 1
    features = []
    for spatial, temporal in levels:
        product = 1.0
        for planes, pairs in ((spatial, SPACE), (temporal, TIME)):
            at = torch.stack([place[:, pair] for pair in pairs])[:, :, None]  # [3, M, 1, 2]
            images = planes.permute(0, 3, 1, 2)  # [3, C, rows, columns]
            values = grid_sample(images, at, align_corners=True, padding_mode="border")  # [3, C, M, 1]
            product = product * values.prod(dim=0)
        features.append(product[..., 0].T)
    return torch.cat(features, dim=1)
