"""Structural similarity on the CPU, value and gradient fused: what dominates a training step otherwise.

The same function as `nfc_splat.losses.ssim` with its default zero padding (Wang et al. 2004, Eq. 13; 11x11 Gaussian
window of sigma 1.5, as 3DGS), tested equal to it in value and gradient.

Symbols: H rows, W columns, D channels. Images are [H, W, D] and are worked on as H rows of W * D numbers: a horizontal
neighbour in the same channel is D numbers away, so no channel is ever split off.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.kernels.numba_tools import f32, kernel, parallel_kernel, reduction
from nfc_splat.rendering.kernels.threads import numba_threads

RADIUS = 5
C1, C2 = f32(0.01**2), f32(0.03**2)
_weights = [math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-RADIUS, RADIUS + 1)]
WINDOW = np.array([weight / sum(_weights) for weight in _weights], f32)
BAND = 16  # rows per piece of work
CHUNK = 128  # numbers of a row worked on at a time


@kernel
def _copy(values, target):
    for j in range(target.size):
        target[j] = values[j]


@kernel
def _add_scaled(total, values, scale):
    for j in range(values.size):
        total[j] += scale * values[j]


@kernel
def _add_scaled_sums(total, a, b, scale):
    for j in range(a.size):
        total[j] += scale * (a[j] + b[j])


@kernel
def _blur_down(image, row, blurred):
    """Vertical window at `row` of an image [H, n], zero padded, folded because the window is symmetric."""
    blurred[:] = f32(0)
    for k in range(1, RADIUS + 1):
        above, below = row - k, row + k
        if above >= 0 and below < image.shape[0]:
            _add_scaled_sums(blurred, image[above], image[below], WINDOW[RADIUS - k])
        elif above >= 0:
            _add_scaled(blurred, image[above], WINDOW[RADIUS - k])
        elif below < image.shape[0]:
            _add_scaled(blurred, image[below], WINDOW[RADIUS - k])
    _add_scaled(blurred, image[row], WINDOW[RADIUS])


@kernel
def _products(x, y, squares, products):
    for j in range(x.size):
        squares[j] = x[j] * x[j] + y[j] * y[j]
        products[j] = x[j] * y[j]


@kernel
def _blur(padded, blurred, step):
    """Horizontal window: blurred[j] from padded[j], padded[j + step], ..., folded because the window is symmetric."""
    n = blurred.size
    blurred[:] = f32(0)
    for k in range(RADIUS):
        other = 2 * RADIUS - k
        _add_scaled_sums(blurred, padded[k * step : k * step + n], padded[other * step : other * step + n], WINDOW[k])
    _add_scaled(blurred, padded[RADIUS * step : RADIUS * step + n], WINDOW[RADIUS])


@kernel
def _similarity(buffer):
    """SSIM of CHUNK numbers and its derivatives.

    In: rows 0 to 3 the local means of x, y, x^2 + y^2 (only the sum of the variances enters SSIM) and x y; row 4 the
    weights. Out: row 5 the weighted score; rows 6 to 8 the weighted derivatives with respect to the local means of x,
    x^2 and x y. One buffer and constant offsets, because LLVM does not vectorise a loop over nine separate arrays.
    """
    for j in range(CHUNK):
        mx, my = buffer[j], buffer[CHUNK + j]
        mxy, m2 = mx * my, mx * mx + my * my
        top_mean, top_variance = f32(2) * mxy + C1, f32(2) * (buffer[3 * CHUNK + j] - mxy) + C2
        bottom_mean, bottom_variance = m2 + C1, buffer[2 * CHUNK + j] - m2 + C2
        inverse = buffer[4 * CHUNK + j] / (bottom_mean * bottom_variance)
        score = top_mean * top_variance * inverse
        v_square = -score / bottom_variance
        v_product = f32(2) * top_mean * inverse
        v_mean = f32(2) * (my * top_variance * inverse - mx * score / bottom_mean)
        buffer[5 * CHUNK + j] = score
        buffer[6 * CHUNK + j] = v_mean - f32(2) * mx * v_square - my * v_product
        buffer[7 * CHUNK + j] = v_square
        buffer[8 * CHUNK + j] = v_product


@reduction
def _sum(values):
    total = f32(0)
    for j in range(values.size):
        total += values[j]
    return total


@parallel_kernel
def ssim_forward(x, y, weights, channels):
    """Weighted SSIM sum of two images and the maps that its gradient is made of.

    Args:
        x, y: [H, W * D]. weights: [H, W * D], or [1, W * D] for every row alike.

    Returns:
        the sums per row [H] float64, and maps [3, H, W * D] for `ssim_backward`.
    """
    height, width = x.shape
    margin, chunks = RADIUS * channels, -(-width // CHUNK)
    totals, maps = np.zeros(height, np.float64), np.empty((3, height, width), f32)
    squares, products = np.empty((height, width), f32), np.empty((height, width), f32)
    for row in prange(height):
        _products(x[row], y[row], squares[row], products[row])
    for band in prange(-(-height // BAND)):
        sums, blurred = np.zeros((4, width + 2 * margin), f32), np.zeros((4, chunks * CHUNK), f32)
        buffer = np.zeros(9 * CHUNK, f32)
        for row in range(band * BAND, min(band * BAND + BAND, height)):
            _blur_down(x, row, sums[0, margin : margin + width])
            _blur_down(y, row, sums[1, margin : margin + width])
            _blur_down(squares, row, sums[2, margin : margin + width])
            _blur_down(products, row, sums[3, margin : margin + width])
            for moment in range(4):
                _blur(sums[moment], blurred[moment, :width], channels)
            for chunk in range(chunks):
                first, count = chunk * CHUNK, min(CHUNK, width - chunk * CHUNK)
                for moment in range(4):
                    _copy(blurred[moment, first : first + CHUNK], buffer[moment * CHUNK : (moment + 1) * CHUNK])
                weight = weights[min(row, weights.shape[0] - 1), first : first + count]
                _copy(weight, buffer[4 * CHUNK : 4 * CHUNK + count])
                _similarity(buffer)
                totals[row] += _sum(buffer[5 * CHUNK : 5 * CHUNK + count])
                for part in range(3):
                    _copy(buffer[(6 + part) * CHUNK :], maps[part, row, first : first + count])
    return totals, maps


@parallel_kernel
def ssim_backward(x, y, maps, channels, scale):
    """Gradient of `scale` times the weighted SSIM sum with respect to x: the window is symmetric, so blur the maps."""
    height, width = x.shape
    margin = RADIUS * channels
    gradient = np.empty((height, width), f32)
    for band in prange(-(-height // BAND)):
        sums, blurred = np.zeros((3, width + 2 * margin), f32), np.empty((3, width), f32)
        for row in range(band * BAND, min(band * BAND + BAND, height)):
            for part in range(3):
                _blur_down(maps[part], row, sums[part, margin : margin + width])
                _blur(sums[part], blurred[part], channels)
            for j in range(width):
                value = blurred[0, j] + f32(2) * x[row, j] * blurred[1, j] + y[row, j] * blurred[2, j]
                gradient[row, j] = scale * value
    return gradient


class _Ssim(Function):
    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        numba_threads()
        height, width, channels = pred.shape
        rows = [t.detach().float().contiguous().view(-1, width * channels).numpy() for t in (pred, target, weights)]
        totals, maps = ssim_forward(*rows, channels)
        weight = float(weights.double().sum()) * (height // len(rows[2])) or 1.0  # nothing counts: the mean is 0
        ctx.saved = rows[0], rows[1], maps, channels, weight
        return pred.new_tensor(totals.sum() / weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_ssim: Tensor):
        x, y, maps, channels, weight = ctx.saved
        gradient = ssim_backward(x, y, maps, channels, np.float32(float(v_ssim) / weight))
        return torch.from_numpy(gradient).view(len(x), -1, channels), None, None


def ssim(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean SSIM of two images, zero padded; differentiable in `pred` only.

    Args:
        pred, target: [H, W, D] float32 in [0, 1] on the CPU.
        mask: [H, W] weights; a pixel of weight 0 counts as black in both images.

    Returns:
        A scalar in [-1, 1]; 0 when no pixel counts.
    """
    if pred.shape != target.shape or pred.dim() != 3:
        raise ValueError(f"pred and target must be [H, W, D] alike; got {list(pred.shape)} and {list(target.shape)}")
    if mask is None:
        return _Ssim.apply(pred, target, torch.ones(1, *pred.shape[1:]))
    keep = (mask > 0)[..., None]
    weights = mask.float()[..., None].expand_as(pred)
    return _Ssim.apply(torch.where(keep, pred, 0.0), torch.where(keep, target, 0.0), weights)
