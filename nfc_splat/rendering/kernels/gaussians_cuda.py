"""The CUDA rasteriser: an adapter to gsplat (written for 1.5.3; 1.6 is called the same way).

gsplat compiles its kernels when they are first needed, which is where most of its installations fail, so they are
loaded here explicitly and a failure becomes one line. gsplat 1.6 caps alpha at 0.99 where 1.5.3 and our other
implementations cap it at 0.999, and never dims an antialiased Gaussian below 0.005: its images differ slightly.

Symbols: N Gaussians, C cameras, H rows, W columns, D channels.
"""

import functools
import importlib.metadata
import re
from subprocess import CalledProcessError
from types import ModuleType

import torch
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.rendering.kernels.backends import INSTALL_GSPLAT
from nfc_splat.rendering.kernels.usable import usable_footprints, usable_rows, values_read
from nfc_splat.rendering.rasterize import RasterInfo


@functools.cache
def load_gsplat() -> ModuleType:
    """gsplat with its kernels loaded, compiled now if they have to be (minutes, once per installation).

    Raises:
        UserError: gsplat is missing, or its kernels cannot be loaded or compiled; the line says why and what helps.
    """
    try:
        version = importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"drawing Gaussians on CUDA needs gsplat, which is not installed: {INSTALL_GSPLAT}") from None
    try:
        import gsplat
        from gsplat.cuda._backend import _C as kernels
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError, CalledProcessError) as error:
        raise UserError(
            f"gsplat {version} could not load its CUDA kernels: {_first_complaint(error)}; usual remedies: a CUDA "
            f"toolkit of torch's version ({torch.version.cuda}) in CUDA_HOME, pip install ninja setuptools, MAX_JOBS=4 "
            "where memory is short, VERBOSE=1 to see the compiler's output (.github/GPU.md has the whole procedure)"
        ) from error
    if kernels is None:
        raise UserError(
            f"gsplat {version} found no CUDA toolkit to compile its kernels with: install the toolkit of torch's "
            f"version ({torch.version.cuda}) and set CUDA_HOME to it, or install a gsplat wheel built for torch "
            f"{torch.__version__}"
        )
    return gsplat


def _first_complaint(error: BaseException) -> str:
    """The line of a failure that names the cause: the compiler's first error if there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = (line for line in lines if re.search(r"error:|fatal|No such file|cannot open", line))
    return next(named, lines[0])[:200]


def rasterize_cuda(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    sh_rest: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int | None,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    backgrounds: Tensor | None,
    render_mode: str,
    rasterize_mode: str,
    absgrad: bool,
) -> tuple[Tensor, Tensor, RasterInfo]:
    """`rasterize` by gsplat; see there for shapes and meaning.

    A row too large for one of several cameras (rule 4 of `usable`) is left out of all of them: gsplat takes one set of
    Gaussians for all cameras.

    Raises:
        UserError: gsplat is missing or its kernels cannot be had.
    """
    gsplat = load_gsplat()
    if len(means) == 0:  # gsplat divides by N on the host
        return _empty(means, colors, viewmats, width, height, backgrounds, render_mode)
    usable = usable_rows(
        means, quats, scales, opacities, values_read(colors, sh_rest, sh_degree, render_mode)
    ) & _small_enough(means, scales, viewmats, Ks, near_plane, far_plane)
    # A row with opacity 0 is culled before its colour is looked at; its geometry must be finite until then.
    keep = usable[:, None]
    images, alphas, meta = gsplat.rasterization(
        means=torch.where(keep, means, 0.0),
        quats=torch.where(keep, quats, 1.0),
        scales=torch.where(keep, scales, 0.0),
        opacities=torch.where(usable, opacities.clamp(max=1.0), 0.0),
        colors=colors if sh_rest is None else torch.cat([colors, sh_rest], 1),
        viewmats=viewmats,
        Ks=Ks,
        width=width,
        height=height,
        near_plane=near_plane,
        far_plane=far_plane,
        eps2d=eps2d,
        sh_degree=sh_degree,
        packed=False,
        backgrounds=backgrounds,
        render_mode=render_mode,
        absgrad=absgrad,
        rasterize_mode=rasterize_mode,
    )
    info = RasterInfo(
        means2d=meta["means2d"],
        radii=meta["radii"],
        depths=meta["depths"],
        conics=meta["conics"],
        opacities=meta["opacities"],
        width=width,
        height=height,
    )
    return images, alphas, info


@torch.no_grad()
def _small_enough(
    means: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor, near_plane: float, far_plane: float
) -> Tensor:
    """Rows [N] whose footprint no camera that sees them finds too large."""
    depths = means @ viewmats[:, 2, :3].T + viewmats[:, 2, 3]  # [N, C]
    unseen = ~((depths >= near_plane) & (depths <= far_plane))
    return (usable_footprints(scales, depths.T, Ks) | unseen.T).all(0)


def _empty(
    means: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    width: int,
    height: int,
    backgrounds: Tensor | None,
    render_mode: str,
) -> tuple[Tensor, Tensor, RasterInfo]:
    """The image of no Gaussians: the background."""
    c = len(viewmats)
    channels = 0 if render_mode in ("D", "ED") else colors.shape[-1]
    image = means.new_zeros(c, height, width, channels)
    if backgrounds is not None and channels:
        image = image + backgrounds[:, None, None, :]
    if render_mode != "RGB":
        image = torch.cat([image, image.new_zeros(c, height, width, 1)], -1)
    info = RasterInfo(
        means2d=means.new_zeros(c, 0, 2),
        radii=torch.zeros(c, 0, 2, dtype=torch.int32, device=means.device),
        depths=means.new_zeros(c, 0),
        conics=means.new_zeros(c, 0, 3),
        opacities=means.new_zeros(c, 0),
        width=width,
        height=height,
    )
    return image, means.new_zeros(c, height, width, 1), info
