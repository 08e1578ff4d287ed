"""Operations on packed samples in plain torch: the oracle of the tests, and what runs on a CUDA device.

Any float dtype and device, differentiable as often as torch's own operations are. Samples are scattered into rows
[R, S] that are as long as the longest ray, so that a ray's running products and sums never mix with its neighbours'.

Symbols: M samples of R rays; ray r owns the rows `offsets[r]:offsets[r + 1]`; S samples of the longest ray; D values.
"""

import torch
from torch import Tensor


def ray_ids(offsets: Tensor, count: int) -> Tensor:
    """[M] int64: the ray of each of `count` = M samples."""
    rays = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rays, offsets.diff(), output_size=count)


class _Rows:
    """Where packed samples lie in rows [R, S]."""

    def __init__(self, offsets: Tensor, count: int):
        self.rays = len(offsets) - 1
        self.length = int(offsets.diff().max()) if self.rays else 0
        self.ray = ray_ids(offsets, count)
        within = torch.arange(count, device=offsets.device) - offsets[self.ray]
        self.cells = self.ray * self.length + within

    def scatter(self, values: Tensor) -> Tensor:
        """[M] to [R, S], 0 where a ray has no more samples."""
        rows = values.new_zeros(self.rays * self.length).index_copy(0, self.cells, values)
        return rows.view(self.rays, self.length)

    def gather(self, rows: Tensor) -> Tensor:
        """[R, S] to [M]."""
        return rows.reshape(-1)[self.cells]

    def sums(self, values: Tensor) -> Tensor:
        """[M, *] to [R, *]."""
        return values.new_zeros(self.rays, *values.shape[1:]).index_add(0, self.ray, values)


def render_weights(alphas: Tensor, offsets: Tensor, stop: float) -> tuple[Tensor, Tensor]:
    """See `nfc_splat.rendering.packed.render_weights`."""
    rows = _Rows(offsets, len(alphas))
    padded = rows.scatter(alphas)
    ended = _left_before(padded.detach())[:, :-1] < stop
    left = _left_before(torch.where(ended, 0.0, padded))
    weights = torch.where(ended, 0.0, left[:, :-1] * padded)
    return rows.gather(weights), left[:, -1]


def _left_before(alphas: Tensor) -> Tensor:
    """[R, S + 1] transmittance before each sample of rows [R, S], and behind the last one."""
    return torch.cat([alphas.new_ones(len(alphas), 1), 1 - alphas], 1).cumprod(1)


def accumulate(weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """See `nfc_splat.rendering.packed.accumulate`."""
    unseen = (weights[:, None] == 0) & ~values.isfinite()
    terms = weights[:, None] * torch.where(unseen, 0.0, values)
    return terms.new_zeros(len(offsets) - 1, terms.shape[1]).index_add(0, ray_ids(offsets, len(terms)), terms)


def exclusive_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """See `nfc_splat.rendering.packed.exclusive_sum`."""
    rows = _Rows(offsets, len(values))
    return rows.gather(_sums_before(rows.scatter(values)))


def _sums_before(rows: Tensor) -> Tensor:
    """[R, S] sum of what stands before each entry of its row."""
    return torch.cat([rows.new_zeros(len(rows), 1), rows], 1).cumsum(1)[:, :-1]


def distortion_loss(weights: Tensor, midpoints: Tensor, widths: Tensor, offsets: Tensor) -> Tensor:
    """See `nfc_splat.rendering.packed.distortion_loss`."""
    rows = _Rows(offsets, len(weights))
    before = rows.gather(_sums_before(rows.scatter(weights)))
    distances_before = rows.gather(_sums_before(rows.scatter(weights * midpoints)))
    return rows.sums(widths / 3 * weights**2 + 2 * weights * (midpoints * before - distances_before))
