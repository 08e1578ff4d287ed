"""The binary colour head on the CPU: sigmoid and weighted sum of the bits in one pass, and their gradient in another.

The same function as `nfc_splat.losses.TargetEncoding("binary")`, tested equal to it in value and gradient.

Symbols: M samples, 3 channels of 8 logits each, most significant bit first. G = 3 M values of 8 logits are worked on.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.kernels.numba_tools import exp2_negative, f32, inlined, kernel, parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads

BITS = 8
BLOCK = 128  # values worked on at a time
LOG2_E = f32(1.4426950408889634)
_shares = [2 ** (BITS - 1 - bit) / 255 for bit in range(BITS)]
SHARES = np.array(_shares, f32)  # what each bit is worth


@inlined
def _shares_of(z):
    """(p, 1 - p) of the likelier outcome of a logit: 1 / (1 + exp(-|z|)), accurate to rounding for any z."""
    small = exp2_negative(-abs(z) * LOG2_E)
    likely = f32(1) / (f32(1) + small)
    return likely, small * likely


@kernel
def _sigmoids(logits, probabilities):
    """BLOCK * BITS probabilities; NaN for NaN, which the exponential above would lose."""
    for i in range(BLOCK * BITS):
        z = logits[i]
        likely, unlikely = _shares_of(z)
        p = likely if z > f32(0) else unlikely
        probabilities[i] = p if z == z else z


@kernel
def _slopes(logits, slopes):
    """p (1 - p) of BLOCK * BITS logits."""
    for i in range(BLOCK * BITS):
        z = logits[i]
        likely, unlikely = _shares_of(z)
        slopes[i] = likely * unlikely if z == z else z


@kernel
def _block(logits, block):
    """The logits of one block; the last one is filled up with zeros."""
    part = logits[block * BLOCK * BITS : (block + 1) * BLOCK * BITS]
    if part.size == BLOCK * BITS:
        return part
    padded = np.zeros(BLOCK * BITS, f32)
    padded[: part.size] = part
    return padded


@kernel
def _weighted_sums(probabilities, values):
    for g in range(values.size):
        total = f32(0)
        for bit in range(BITS):
            total += SHARES[bit] * probabilities[g * BITS + bit]
        values[g] = total


@kernel
def _weighted_sums_backward(v_values, slopes, v_logits):
    for g in range(v_values.size):
        for bit in range(BITS):
            v_logits[g * BITS + bit] = v_values[g] * SHARES[bit] * slopes[g * BITS + bit]


@parallel_kernel
def decode_forward(logits, values):
    """Values [G], filled in, of logits [G * 8]."""
    for block in prange(-(-values.size // BLOCK)):
        probabilities = np.empty(BLOCK * BITS, f32)
        _sigmoids(_block(logits, block), probabilities)
        _weighted_sums(probabilities, values[block * BLOCK : (block + 1) * BLOCK])


@parallel_kernel
def decode_backward(logits, v_values, v_logits):
    """Gradient of the logits [G * 8], filled in, from that of the values [G]."""
    for block in prange(-(-v_values.size // BLOCK)):
        slopes = np.empty(BLOCK * BITS, f32)
        _slopes(_block(logits, block), slopes)
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        v_part = v_logits[block * BLOCK * BITS : (block + 1) * BLOCK * BITS]
        _weighted_sums_backward(v_values[part], slopes, v_part)


class _DecodeBinary(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        numba_threads()
        ctx.save_for_backward(logits)
        colors = logits.new_empty(len(logits), 3)
        decode_forward(logits.detach().contiguous().view(-1).numpy(), colors.view(-1).numpy())
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors: Tensor):
        numba_threads()
        (logits,) = ctx.saved_tensors
        v_logits = torch.empty(logits.shape)
        arrays = (tensor.detach().contiguous().view(-1).numpy() for tensor in (logits, v_colors, v_logits))
        decode_backward(*arrays)
        return v_logits


def decode_binary(logits: Tensor) -> Tensor:
    """Colours [M, 3] in [0, 1] of float32 logits [M, 24] in main memory, channel-major and most significant bit first;
    once differentiable."""
    return _DecodeBinary.apply(logits)
