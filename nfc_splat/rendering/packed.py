"""Operations on packed samples: what volume rendering does along each ray, for rays of different numbers of samples.

Every function has two implementations, taken by the tensors' device:
    "cpu"        numba, parallel over rays, float32 and float64; gradients once
    "reference"  plain torch, any device and float dtype, differentiable twice; what runs on a CUDA device

Symbols: M samples of R rays together, D values per sample. Ray r owns the rows `offsets[r]:offsets[r + 1]` of every
array of samples, nearest first; `offsets` is [R + 1] int64, from 0 to M.
"""

import importlib
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "cpu"]

# Imported when first used: numba costs nothing until then.
_MODULES = {name: f"nfc_splat.rendering.kernels.packed_{name}" for name in ("reference", "cpu")}


def render_weights(
    alphas: Tensor,  # [M]
    offsets: Tensor,  # [R + 1]
    *,
    stop: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Each sample's share of its ray's colour, and what is left of the ray (NeRF, Eq. 3, with alpha given).

    w_i = T_i alpha_i with T_1 = 1 and T_{i+1} = T_i (1 - alpha_i). Both outputs are differentiable in `alphas`; nothing
    is divided by 1 - alpha, so that opaque samples (alpha = 1) have their exact gradient.

    Args:
        alphas: [M] in [0, 1].
        offsets: [R + 1] int64.
        stop: once T falls below it, behind the sample that brought it there, the ray ends: later samples have weight 0
            and gradient 0.

    Returns:
        weights [M], and transmittance [R], the T behind a ray's last sample or where it ended; 1 on rays without one.
    """
    _check(offsets, alphas=(alphas, 1))
    return _implementation(backend, alphas).render_weights(alphas, offsets, float(stop))


def accumulate(
    weights: Tensor,  # [M]
    values: Tensor,  # [M, D]
    offsets: Tensor,  # [R + 1]
    *,
    backend: Backend = "auto",
) -> Tensor:
    """[R, D]: the sum over each ray's samples of weight times value; differentiable in both.

    A sample of weight exactly 0 is not looked at: its value may be NaN or infinite. Its own gradient is that of a value
    with 0 in the place of such an entry.
    """
    _check(offsets, weights=(weights, 1), values=(values, 2))
    return _implementation(backend, weights).accumulate(weights, values, offsets)


def exclusive_sum(
    values: Tensor,  # [M]
    offsets: Tensor,  # [R + 1]
    *,
    backend: Backend = "auto",
) -> Tensor:
    """[M]: for each sample, the sum of the values before it on its ray; differentiable."""
    _check(offsets, values=(values, 1))
    return _implementation(backend, values).exclusive_sum(values, offsets)


def distortion_loss(
    weights: Tensor,  # [M]
    midpoints: Tensor,  # [M]
    widths: Tensor | float,  # [M]
    offsets: Tensor,  # [R + 1]
    *,
    backend: Backend = "auto",
) -> Tensor:
    """[R]: how spread out each ray's weights are (mip-NeRF 360, Eq. 15), in time linear in M.

    sum_i w_i^2 width_i / 3 + sum_ij w_i w_j |s_i - s_j|. As `midpoints` ascend along a ray, the second sum is twice
    the sum of w_i (s_i W_i - S_i), with W_i and S_i the sums before i of w and of w s. Differentiable in `weights`
    alone.

    Args:
        midpoints: [M] positions s in the ray's normalised distance, ascending on each ray.
        widths: [M] lengths of the intervals in the same units, or one for all.
    """
    if not isinstance(widths, Tensor):
        widths = torch.full_like(midpoints, widths)
    _check(offsets, weights=(weights, 1), midpoints=(midpoints, 1), widths=(widths, 1))
    chosen = _implementation(backend, weights)
    return chosen.distortion_loss(weights, midpoints.detach(), widths.detach(), offsets)


def ray_ids(offsets: Tensor, count: int) -> Tensor:
    """[M] int64: the ray of each of `count` = M samples."""
    from nfc_splat.rendering.kernels.packed_reference import ray_ids

    return ray_ids(offsets, count)


def keep(mask: Tensor, offsets: Tensor) -> Tensor:
    """[R + 1] int64: the offsets of the samples that `mask` [M] bool leaves."""
    before = torch.cat([offsets.new_zeros(1), mask.cumsum(0)])
    return before[offsets]


def _implementation(backend: Backend, tensor: Tensor) -> ModuleType:
    """The module that works on tensors like this one."""
    if backend == "auto":
        backend = "cpu" if tensor.device.type == "cpu" else "reference"
    if backend not in _MODULES:
        raise ValueError(f"backend must be one of auto, {', '.join(_MODULES)}; got {backend!r}")
    if backend == "cpu" and tensor.device.type != "cpu":
        raise ValueError(f'backend "cpu" works in main memory, and these tensors are on {tensor.device}')
    return importlib.import_module(_MODULES[backend])


def _check(offsets: Tensor, **tensors: tuple[Tensor, int]) -> None:
    """Raise ValueError with the name of the first tensor whose shape, dtype or device does not fit.

    That `offsets` ascend from 0 to M is looked at in main memory only, where the kernels would write beyond their
    arrays; on a GPU the question would cost a synchronisation.
    """
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or not len(offsets):
        raise ValueError(f"offsets must be [R + 1] int64; got {list(offsets.shape)} {offsets.dtype}")
    first, dimensions = next(iter(tensors.values()))
    count = len(first) if first.dim() else 0
    for name, (tensor, dimensions) in tensors.items():
        if tensor.dim() != dimensions or len(tensor) != count:
            shape = f"[{count}]" if dimensions == 1 else f"[{count}, D]"
            raise ValueError(f"{name} must be {shape}; got {list(tensor.shape)}")
        if tensor.dtype != first.dtype or tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64 like the others; got {tensor.dtype}")
        if tensor.device != offsets.device:
            raise ValueError(f"{name} is on {tensor.device}, offsets on {offsets.device}")
    if offsets.device.type == "cpu":
        rows = offsets.numpy()
        if rows[0] != 0 or rows[-1] != count or (rows[1:] < rows[:-1]).any():
            raise ValueError(f"offsets must ascend from 0 to the number of samples, {count}")
