"""Spherical harmonics of directions on the CPU, with the formulas that the Gaussians' projection uses.

Symbols: M directions, B bands.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.kernels.numba_tools import f32, parallel_kernel
from nfc_splat.rendering.kernels.project_cpu import _sh_basis, _sh_direction_gradient
from nfc_splat.rendering.kernels.threads import numba_threads

BLOCK = 256


@parallel_kernel
def harmonics_forward(directions, bands, values):
    """Basis [M, B^2] of directions [M, 3], filled in."""
    count = directions.shape[0]
    for block in prange(-(-count // BLOCK)):
        basis = np.empty(16, f32)
        for m in range(block * BLOCK, min(block * BLOCK + BLOCK, count)):
            _sh_basis(bands - 1, directions[m, 0], directions[m, 1], directions[m, 2], basis)
            for k in range(bands * bands):
                values[m, k] = basis[k]


@parallel_kernel
def harmonics_backward(directions, bands, v_values, v_directions):
    """Gradient of the directions [M, 3], filled in, from that of the basis [M, B^2]."""
    count = directions.shape[0]
    for block in prange(-(-count // BLOCK)):
        for m in range(block * BLOCK, min(block * BLOCK + BLOCK, count)):
            vx, vy, vz = _sh_direction_gradient(
                bands - 1, directions[m, 0], directions[m, 1], directions[m, 2], v_values[m]
            )
            v_directions[m, 0], v_directions[m, 1], v_directions[m, 2] = vx, vy, vz


class _Harmonics(Function):
    @staticmethod
    def forward(ctx: Any, directions: Tensor, bands: int) -> Tensor:
        numba_threads()
        ctx.save_for_backward(directions)
        ctx.bands = bands
        values = directions.new_empty(len(directions), bands**2)
        harmonics_forward(directions.detach().contiguous().numpy(), bands, values.numpy())
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_values: Tensor):
        numba_threads()
        (directions,) = ctx.saved_tensors
        v_directions = torch.empty(len(directions), 3)
        arrays = (tensor.detach().contiguous().numpy() for tensor in (directions, v_values))
        directions, v_values = arrays
        harmonics_backward(directions, ctx.bands, v_values, v_directions.numpy())
        return v_directions, None


def spherical_harmonics_cpu(directions: Tensor, bands: int) -> Tensor:
    """`spherical_harmonics` for float32 tensors in main memory; see there."""
    return _Harmonics.apply(directions, bands)
