"""The CPU rasteriser: numba kernels as differentiable torch functions.

Symbols: N Gaussians, C cameras, H rows, W columns, K spherical-harmonics coefficients, D channels drawn.
Results do not depend on the number of threads. Not differentiable: viewmats, Ks.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.kernels import project_cpu, tiles_cpu
from nfc_splat.rendering.kernels.threads import numba_threads
from nfc_splat.rendering.rasterize import RasterInfo


def _array(tensor: Tensor) -> np.ndarray:
    """A contiguous float32 array over the tensor's memory where possible: the one layout that kernels compile for."""
    return tensor.detach().to(torch.float32).contiguous().numpy()


class _Project(Function):
    """Gaussians -> (means2d [N, 2], splats [N, 4 + D], radii [N, 2], depths [N]) in one camera."""

    @staticmethod
    def forward(ctx: Any, means, quats, scales, opacities, sh0, shN, camera: tuple, options: tuple):
        numba_threads()
        inputs = (means, quats, scales, opacities, sh0, shN)
        arrays = tuple(_array(tensor) for tensor in inputs)
        degree, near, far, eps2d, antialiased, with_depth = options
        means2d, radii, depths, splats = project_cpu.project_forward(
            *arrays, *camera, degree, np.float32(near), np.float32(far), np.float32(eps2d), antialiased, with_depth
        )
        ctx.save_for_backward(*inputs)  # torch then notices if somebody changes them before the backward pass
        ctx.camera, ctx.options, ctx.radii, ctx.splats = camera, options, radii, splats
        outputs = tuple(torch.from_numpy(array) for array in (means2d, splats, radii, depths))
        ctx.mark_non_differentiable(outputs[2], outputs[3])
        ctx.set_materialize_grads(True)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_means2d, v_splats, _radii, _depths):
        degree, _, _, eps2d, antialiased, with_depth = ctx.options
        arrays = (_array(tensor) for tensor in ctx.saved_tensors)
        gradients = project_cpu.project_backward(
            *arrays, *ctx.camera, degree, np.float32(eps2d), antialiased, with_depth, ctx.radii, ctx.splats,
            _array(v_means2d), _array(v_splats),
        )  # fmt: skip
        return *(torch.from_numpy(array) for array in gradients), None, None


class _Composite(Function):
    """(means2d [N, 2], splats [N, 4 + D], background [D]) -> (colors [H, W, D], alphas [H, W, 1])."""

    @staticmethod
    def forward(ctx: Any, means2d, splats, background, radii, depths, size: tuple[int, int], absgrad: Any):
        workers = numba_threads()
        arrays = (_array(means2d), _array(splats))
        binned = tiles_cpu.bin_gaussians(arrays[0], radii.numpy(), depths.numpy(), arrays[1], *size, workers)
        drawn = [
            tiles_cpu.composite_forward(*arrays, group, *binned[1:3], _array(part), *size, workers)
            for group, part in enumerate(background.split(tiles_cpu.CHANNELS))
        ]
        ctx.save_for_backward(means2d, splats)
        ctx.binned, ctx.drawn, ctx.absgrad = binned, drawn, absgrad
        colors = [torch.from_numpy(colors) for colors, _, _ in drawn]
        return torch.cat(colors, -1) if len(colors) > 1 else colors[0], torch.from_numpy(1 - drawn[0][1])[..., None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors, v_alphas):
        workers = numba_threads()
        means2d, splats = (_array(tensor) for tensor in ctx.saved_tensors)
        order, offsets, gaussian_ids, slots, first_slot = ctx.binned
        v_means2d, v_splats = np.zeros_like(means2d), np.zeros_like(splats)
        v_absolute = np.zeros((len(means2d) if ctx.absgrad is not None else 0, 2), np.float32)
        v_alpha = _array(v_alphas[..., 0])
        for group, v_group in enumerate(v_colors.split(tiles_cpu.CHANNELS, -1)):
            colors, transmittances, ends = ctx.drawn[group]
            rows = tiles_cpu.composite_backward(
                means2d, splats, group, offsets, ends, gaussian_ids, colors, transmittances, _array(v_group), v_alpha,
                workers, ctx.absgrad is not None,
            )  # fmt: skip
            tiles_cpu.gather_gradients(
                order, first_slot, slots, rows, splats, group, v_means2d, v_splats, v_absolute, workers
            )
            v_alpha = np.zeros_like(v_alpha)  # the alphas belong to the first group alone
        if ctx.absgrad is not None:
            ctx.absgrad.copy_(torch.from_numpy(v_absolute))
        v_background = None
        if ctx.needs_input_grad[2]:
            v_background = (v_colors * torch.from_numpy(transmittances)[..., None]).sum((0, 1))
        return torch.from_numpy(v_means2d), torch.from_numpy(v_splats), v_background, None, None, None, None


def rasterize_cpu(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, D], or the constant SH term [N, 1, 3], or all of [N, K, 3]
    sh_rest: Tensor | None,  # [N, K-1, 3] or None
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    sh_degree: int | None,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    backgrounds: Tensor | None,  # [C, D]
    render_mode: str,
    rasterize_mode: str,
    absgrad: bool,
) -> tuple[Tensor, Tensor, RasterInfo]:
    """`rasterize` on the CPU; see there. Computes in float32 and answers in the dtype of `means`."""
    if viewmats.requires_grad or Ks.requires_grad:
        raise ValueError(
            'the cpu rasteriser gives no gradient to viewmats or Ks: detach them, or use backend="reference"'
        )
    with_color, with_depth = render_mode.startswith("RGB"), render_mode != "RGB"
    sh0, shN = _coefficients(colors, sh_rest, sh_degree, with_color)
    degree = -1 if sh_degree is None or not with_color else sh_degree
    options = (degree, near_plane, far_plane, eps2d, rasterize_mode == "antialiased", with_depth)
    centers = torch.linalg.inv(viewmats.detach().double())[:, :3, 3]
    projected = []
    for viewmat, K, center in zip(viewmats, Ks, centers, strict=True):
        camera = (_array(viewmat), _array(K), _array(center), width, height)
        projected.append(_Project.apply(means, quats, scales, opacities, sh0, shN, camera, options))
    means2d, splats, radii, depths = (torch.stack(parts) for parts in zip(*projected, strict=True))
    if absgrad and splats.shape[-1] > 4 + tiles_cpu.CHANNELS:
        raise ValueError(f"absgrad takes at most {tiles_cpu.CHANNELS} channels, depth included, on the cpu")
    if absgrad:
        means2d.absgrad = torch.zeros_like(means2d)  # the backward pass fills it
    images = []
    for camera in range(len(viewmats)):
        background = means.new_zeros(splats.shape[-1] - 4)
        if backgrounds is not None and with_color:
            background = torch.cat([backgrounds[camera], background[backgrounds.shape[1] :]])  # depth's and filling: 0
        images.append(
            _Composite.apply(
                means2d[camera], splats[camera], background, radii[camera], depths[camera], (width, height),
                means2d.absgrad[camera] if absgrad else None,
            )
        )  # fmt: skip
    image, alphas = (torch.stack(parts) for parts in zip(*images, strict=True))
    image = image[..., : sh0.shape[2] + with_depth]
    if render_mode.endswith("ED"):
        image = torch.cat([image[..., :-1], image[..., -1:] / alphas.clamp_min(1e-10)], -1)
    a, s, r, used, *_ = splats.detach().unbind(-1)
    info = RasterInfo(means2d, radii, depths, torch.stack([a, a * s, r + a * s * s], -1), used, width, height)
    return image.to(means.dtype), alphas.to(means.dtype), info


def _coefficients(colors: Tensor, sh_rest: Tensor | None, sh_degree: int | None, with_color: bool):
    """What to draw as (sh0 [N, 1, D], shN [N, K - 1, D]), without a copy where the caller gave the pair."""
    if not with_color:
        return colors.new_zeros(len(colors), 1, 0), colors.new_zeros(len(colors), 0, 0)
    if sh_degree is None:
        return colors[:, None, :], colors.new_zeros(len(colors), 0, colors.shape[1])
    if sh_rest is None:
        return colors[:, :1], colors[:, 1:]
    return colors, sh_rest
