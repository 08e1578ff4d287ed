"""Rasterise 3D Gaussians: one function, three implementations, gsplat's conventions.

    "reference"  plain torch, any float dtype: the oracle of the tests, slow, never chosen unless asked for
    "cpu"        numba, float32
    "cuda"       gsplat, float32

Symbols: N Gaussians, C cameras, H rows, W columns, K spherical-harmonics coefficients, D channels.
"""

import importlib
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.rendering.kernels.backends import announce

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]
Backend = Literal["auto", "reference", "cpu", "cuda"]

# Modules are imported when a backend is first used: numba and gsplat cost nothing until then.
IMPLEMENTATIONS = {
    "reference": ("nfc_splat.rendering.kernels.gaussians_reference", "rasterize_reference"),
    "cpu": ("nfc_splat.rendering.kernels.gaussians_cpu", "rasterize_cpu"),
    "cuda": ("nfc_splat.rendering.kernels.gaussians_cuda", "rasterize_cuda"),
}
HIGHEST_SH_DEGREE = 3


@dataclass(frozen=True)
class RasterInfo:
    """What densification and the tests need of a rasterisation.

    Entries of culled Gaussians (radii 0) are 0, except that gsplat leaves its own of `means2d`, `depths` and `conics`
    undefined: select by `radii` before reading them.

    Attributes:
        means2d: [C, N, 2] projected centres in pixels, in the autograd graph: `retain_grad()` it to read the
            screen-space gradient. With `absgrad`, `means2d.absgrad` [C, N, 2] exists after the backward pass.
        radii: [C, N, 2] int32 extent in pixels along x and y; 0 where the Gaussian was culled.
        depths: [C, N] camera-space z.
        conics: [C, N, 3] upper triangle of the inverse 2D covariance.
        opacities: [C, N] opacities as used (compensated when antialiased).
        width, height: of the images in pixels.
    """

    means2d: Tensor
    radii: Tensor
    depths: Tensor
    conics: Tensor
    opacities: Tensor
    width: int
    height: int


def rasterize(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4] wxyz, normalised inside
    scales: Tensor,  # [N, 3] standard deviations
    opacities: Tensor,  # [N] in [0, 1]
    colors: Tensor | tuple[Tensor, Tensor],  # [N, D], or SH [N, K, 3], or the pair (sh0 [N, 1, 3], shN [N, K-1, 3])
    viewmats: Tensor,  # [C, 4, 4] world to camera, OpenCV axes
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: RenderMode = "RGB",
    rasterize_mode: RasterizeMode = "classic",
    absgrad: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, RasterInfo]:
    """Draw Gaussians; see gsplat's `rasterization`, whose argument names, shapes and conventions these are.

    Source: Kerbl et al. 2023, "3D Gaussian Splatting for Real-Time Radiance Field Rendering"; gsplat 1.5.3 for the
    exact rules (written out in `kernels/gaussians_reference.py`). Gradients reach means, quats, scales, opacities,
    colors and backgrounds, with "reference" and "cuda" also viewmats; Ks never. Rows that hold NaN, Inf or absurd
    values are culled (`kernels/usable.py`).

    Args:
        sh_degree: active degree, 0 to 3, when `colors` are spherical harmonics; None when they are colours as they are.
        near_plane, far_plane: Gaussians whose camera-space z lies outside are not drawn.
        eps2d: variance in square pixels that every projected Gaussian gets.
        backgrounds: colours behind the Gaussians; the depth channel's is always 0.
        render_mode: "D" accumulated depth sum(w z), "ED" expected depth sum(w z) / alpha.
        rasterize_mode: "antialiased" dims Gaussians by what `eps2d` widened them.
        absgrad: also collect the sums of absolute screen-space gradients.
        backend: "auto" is "cuda" for tensors on a CUDA device and "cpu" for those in main memory.

    Returns:
        colors [C, H, W, D (+1 for depth, last)], alphas [C, H, W, 1], and the `RasterInfo`.

    Raises:
        ValueError: an argument's shape, dtype, device or value does not fit; the message names it.
        UserError: the backend asked for cannot serve these tensors on this machine; the message says what to do.
    """
    sh0_or_colors, sh_rest = _split_colors(colors, sh_degree)
    _check_shapes(means, quats, scales, opacities, sh0_or_colors, sh_rest, viewmats, Ks, backgrounds, render_mode)
    _check_alike(means, quats, scales, opacities, sh0_or_colors, sh_rest, viewmats, Ks, backgrounds)
    _check_options(width, height, near_plane, far_plane, eps2d, render_mode, rasterize_mode)
    chosen = choose_backend(means.device, means.dtype, backend)
    module, function = IMPLEMENTATIONS[chosen]
    drawn = getattr(importlib.import_module(module), function)(
        means, quats, scales, opacities, sh0_or_colors, sh_rest, viewmats, Ks, width, height,
        sh_degree=sh_degree, near_plane=near_plane, far_plane=far_plane, eps2d=eps2d, backgrounds=backgrounds,
        render_mode=render_mode, rasterize_mode=rasterize_mode, absgrad=absgrad,
    )  # fmt: skip
    announce("rasterisation", chosen)
    return drawn


def choose_backend(device: torch.device, dtype: torch.dtype, backend: Backend = "auto") -> str:
    """The implementation that draws tensors of `device` and `dtype`.

    Raises:
        ValueError: `backend` is no backend.
        UserError: the one asked for cannot draw such tensors; the message says how to make it.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}; got {backend!r}")
    chosen = backend if backend != "auto" else ("cuda" if device.type == "cuda" else "cpu")
    if chosen == "reference":
        return chosen
    if device.type != chosen:
        raise UserError(
            f"the {chosen} rasteriser cannot draw tensors on {device}: move them with .to({chosen!r}), "
            'or leave backend="auto"'
        )
    if dtype != torch.float32:
        raise UserError(
            f"the {chosen} rasteriser computes in float32, and these tensors are {dtype}: convert them with .float(), "
            'or ask for backend="reference" (slow, any float dtype)'
        )
    return chosen


def _split_colors(colors: Tensor | tuple[Tensor, Tensor], sh_degree: int | None) -> tuple[Tensor, Tensor | None]:
    """Plain colours and None, or the constant and the further spherical-harmonics terms."""
    if sh_degree is None:
        if not isinstance(colors, Tensor):
            raise ValueError("colors is a pair, which means spherical harmonics: give sh_degree too")
        return colors, None
    if isinstance(colors, Tensor):
        if colors.dim() != 3:
            raise ValueError(f"colors must be [N, K, 3] when sh_degree is given; got {list(colors.shape)}")
        colors = colors[:, :1], colors[:, 1:]
    sh0, sh_rest = colors
    if not 0 <= sh_degree <= HIGHEST_SH_DEGREE:
        raise ValueError(f"sh_degree must be 0 to {HIGHEST_SH_DEGREE}; got {sh_degree}")
    coefficients = sh0.shape[1] + sh_rest.shape[1] if sh0.dim() == sh_rest.dim() == 3 else 0
    if coefficients and coefficients < (sh_degree + 1) ** 2:
        raise ValueError(f"colors hold {coefficients} coefficients; sh_degree {sh_degree} needs {(sh_degree + 1) ** 2}")
    return sh0, sh_rest


def _check_shapes(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    sh_rest: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    backgrounds: Tensor | None,
    render_mode: str,
) -> None:
    """Raise ValueError with the name, the expected and the actual shape of the first tensor that does not fit."""
    n = means.shape[0] if means.dim() else 0
    c = viewmats.shape[0] if viewmats.dim() else 0
    d = 3 if sh_rest is not None else (colors.shape[-1] if colors.dim() else 0)
    expected = {
        "means": (means, "[N, 3]", (n, 3)),
        "quats": (quats, "[N, 4]", (n, 4)),
        "scales": (scales, "[N, 3]", (n, 3)),
        "opacities": (opacities, "[N]", (n,)),
        "viewmats": (viewmats, "[C, 4, 4]", (c, 4, 4)),
        "Ks": (Ks, "[C, 3, 3]", (c, 3, 3)),
    }
    if sh_rest is None:
        expected["colors"] = (colors, "[N, D]", (n, d))
    else:
        expected["colors (constant term)"] = (colors, "[N, 1, 3]", (n, 1, 3))
        terms = sh_rest.shape[1] if sh_rest.dim() == 3 else 0
        expected["colors (further terms)"] = (sh_rest, "[N, K-1, 3]", (n, terms, 3))
    if backgrounds is not None:
        expected["backgrounds"] = (backgrounds, "[C, D]", (c, d))
    for name, (tensor, symbols, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {symbols} = {list(shape)}; got {list(tensor.shape)}")
    if c == 0:
        raise ValueError("viewmats hold no camera")
    if d == 0 and render_mode not in ("D", "ED"):
        raise ValueError("colors have no channel")


def _check_alike(means: Tensor, *others: Tensor | None) -> None:
    """Raise ValueError unless all tensors share a device and a float dtype."""
    if not means.is_floating_point():
        raise ValueError(f"means must be floating point; got {means.dtype}")
    for other in others:
        if other is not None and (other.device != means.device or other.dtype != means.dtype):
            raise ValueError(
                f"all tensors must be {means.dtype} on {means.device}, like means; "
                f"one of shape {list(other.shape)} is {other.dtype} on {other.device}"
            )


def _check_options(
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    render_mode: str,
    rasterize_mode: str,
) -> None:
    """Raise ValueError for a size, a plane, a blur or a mode that means nothing."""
    if width < 1 or height < 1:
        raise ValueError(f"width and height must be at least 1 pixel; got {width} x {height}")
    if not 0 < near_plane < far_plane:
        raise ValueError(f"0 < near_plane < far_plane must hold; got {near_plane} and {far_plane}")
    if not 0 < eps2d < float("inf"):
        raise ValueError(f"eps2d must be positive (it keeps projected covariances invertible); got {eps2d}")
    for name, value, known in (
        ("render_mode", render_mode, get_args(RenderMode)),
        ("rasterize_mode", rasterize_mode, get_args(RasterizeMode)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
