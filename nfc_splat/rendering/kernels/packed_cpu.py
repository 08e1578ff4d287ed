"""Operations on packed samples in numba: parallel over rays, float32 and float64, values and gradients.

Each ray is worked through by one thread and in one order, so that results do not depend on the number of threads.

Symbols: M samples of R rays; ray r owns the rows `offsets[r]:offsets[r + 1]`; D values per sample. A gradient of the
loss with respect to x is `v_x`.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.kernels.numba_tools import parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads

ENDED = -1  # in the place of a transmittance: the ray had ended before this sample


@parallel_kernel
def _weights_forward(alphas, offsets, stop, weights, before, left):
    """Fill weights [M], before [M], the transmittance in front of each sample, and left [R], the one behind a ray."""
    for r in prange(offsets.size - 1):
        transmittance = alphas.dtype.type(1)
        for i in range(offsets[r], offsets[r + 1]):
            if transmittance < stop:
                weights[i], before[i] = 0, ENDED
                continue
            weights[i], before[i] = transmittance * alphas[i], transmittance
            transmittance *= 1 - alphas[i]
        left[r] = transmittance


@parallel_kernel
def _weights_backward(alphas, offsets, before, v_weights, v_left, v_alphas):
    """Fill v_alphas [M] from the far end of each ray.

    `behind` is the derivative of the loss by the transmittance behind the sample: S_i = a_i v_i + (1 - a_i) S_{i+1}.
    """
    for r in prange(offsets.size - 1):
        behind = v_left[r]
        for i in range(offsets[r + 1] - 1, offsets[r] - 1, -1):
            if before[i] == ENDED:
                v_alphas[i] = 0
                continue
            v_alphas[i] = before[i] * (v_weights[i] - behind)
            behind = alphas[i] * v_weights[i] + (1 - alphas[i]) * behind


@parallel_kernel
def _accumulate_forward(weights, values, offsets, sums):
    """Fill sums [R, D]."""
    for r in prange(offsets.size - 1):
        sums[r] = 0
        for i in range(offsets[r], offsets[r + 1]):
            if weights[i] != 0:
                for d in range(values.shape[1]):
                    sums[r, d] += weights[i] * values[i, d]


@parallel_kernel
def _accumulate_backward(weights, values, offsets, v_sums, v_weights, v_values):
    """Fill v_weights [M] and v_values [M, D]."""
    for r in prange(offsets.size - 1):
        for i in range(offsets[r], offsets[r + 1]):
            total = weights.dtype.type(0)
            for d in range(values.shape[1]):
                v_values[i, d] = weights[i] * v_sums[r, d]
                if weights[i] != 0 or np.isfinite(values[i, d]):
                    total += v_sums[r, d] * values[i, d]
            v_weights[i] = total


@parallel_kernel
def _sums_before(values, offsets, sums):
    """Fill sums [M]."""
    for r in prange(offsets.size - 1):
        total = values.dtype.type(0)
        for i in range(offsets[r], offsets[r + 1]):
            sums[i] = total
            total += values[i]


@parallel_kernel
def _sums_behind(values, offsets, sums):
    """Fill sums [M]: the gradient of `_sums_before`."""
    for r in prange(offsets.size - 1):
        total = values.dtype.type(0)
        for i in range(offsets[r + 1] - 1, offsets[r] - 1, -1):
            sums[i] = total
            total += values[i]


@parallel_kernel
def _distortion_forward(weights, midpoints, widths, offsets, losses):
    """Fill losses [R]. Sums are kept in float64: s W - S is a difference of nearly equal numbers."""
    for r in prange(offsets.size - 1):
        before, distances, own, between = 0.0, 0.0, 0.0, 0.0
        for i in range(offsets[r], offsets[r + 1]):
            weight, midpoint = np.float64(weights[i]), np.float64(midpoints[i])
            own += widths[i] * weight * weight
            between += weight * (midpoint * before - distances)
            before += weight
            distances += weight * midpoint
        losses[r] = own / 3 + 2 * between


@parallel_kernel
def _distortion_backward(weights, midpoints, widths, offsets, v_losses, v_weights):
    """Fill v_weights [M]: every sample is pulled towards those before it and those behind it."""
    for r in prange(offsets.size - 1):
        behind, distances_behind = 0.0, 0.0
        for i in range(offsets[r], offsets[r + 1]):
            behind += weights[i]
            distances_behind += np.float64(weights[i]) * midpoints[i]
        before, distances = 0.0, 0.0
        for i in range(offsets[r], offsets[r + 1]):
            weight, midpoint = np.float64(weights[i]), np.float64(midpoints[i])
            behind -= weight
            distances_behind -= weight * midpoint
            pull = midpoint * (before - behind) + distances_behind - distances
            v_weights[i] = v_losses[r] * 2 * (widths[i] * weight / 3 + pull)
            before += weight
            distances += weight * midpoint


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


class _RenderWeights(Function):
    @staticmethod
    def forward(ctx: Any, alphas: Tensor, offsets: Tensor, stop: float) -> tuple[Tensor, Tensor]:
        numba_threads()
        weights, before = torch.empty_like(alphas), torch.empty_like(alphas)
        left = alphas.new_empty(len(offsets) - 1)
        _weights_forward(*_arrays(alphas, offsets), stop, *_arrays(weights, before, left))
        ctx.save_for_backward(alphas, offsets, before)
        return weights, left

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_weights: Tensor, v_left: Tensor):
        numba_threads()
        alphas, offsets, before = ctx.saved_tensors
        v_alphas = torch.empty_like(alphas)
        _weights_backward(*_arrays(alphas, offsets, before, v_weights, v_left, v_alphas))
        return v_alphas, None, None


class _Accumulate(Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        numba_threads()
        sums = values.new_empty(len(offsets) - 1, values.shape[1])
        _accumulate_forward(*_arrays(weights, values, offsets, sums))
        ctx.save_for_backward(weights, values, offsets)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_sums: Tensor):
        numba_threads()
        weights, values, offsets = ctx.saved_tensors
        v_weights = torch.empty_like(weights)
        v_values = torch.empty_like(values)
        _accumulate_backward(*_arrays(weights, values, offsets, v_sums, v_weights, v_values))
        return v_weights, v_values, None


class _ExclusiveSum(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, offsets: Tensor) -> Tensor:
        numba_threads()
        sums = torch.empty_like(values)
        _sums_before(*_arrays(values, offsets, sums))
        ctx.save_for_backward(offsets)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_sums: Tensor):
        numba_threads()
        (offsets,) = ctx.saved_tensors
        v_values = torch.empty_like(v_sums)
        _sums_behind(*_arrays(v_sums, offsets, v_values))
        return v_values, None


class _Distortion(Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, midpoints: Tensor, widths: Tensor, offsets: Tensor) -> Tensor:
        numba_threads()
        losses = weights.new_empty(len(offsets) - 1)
        _distortion_forward(*_arrays(weights, midpoints, widths, offsets, losses))
        ctx.save_for_backward(weights, midpoints, widths, offsets)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_losses: Tensor):
        numba_threads()
        weights, midpoints, widths, offsets = ctx.saved_tensors
        v_weights = torch.empty_like(weights)
        _distortion_backward(*_arrays(weights, midpoints, widths, offsets, v_losses, v_weights))
        return v_weights, None, None, None


def render_weights(alphas: Tensor, offsets: Tensor, stop: float) -> tuple[Tensor, Tensor]:
    """See `nfc_splat.rendering.packed.render_weights`."""
    return _RenderWeights.apply(alphas.contiguous(), offsets, stop)


def accumulate(weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """See `nfc_splat.rendering.packed.accumulate`."""
    return _Accumulate.apply(weights.contiguous(), values.contiguous(), offsets)


def exclusive_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """See `nfc_splat.rendering.packed.exclusive_sum`."""
    return _ExclusiveSum.apply(values.contiguous(), offsets)


def distortion_loss(weights: Tensor, midpoints: Tensor, widths: Tensor, offsets: Tensor) -> Tensor:
    """See `nfc_splat.rendering.packed.distortion_loss`."""
    return _Distortion.apply(weights.contiguous(), midpoints.contiguous(), widths.contiguous(), offsets)
