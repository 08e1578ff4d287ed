"""The readable rasteriser: plain torch, any float dtype, gradients by autograd. In float64 it is every test's oracle.

It evaluates every Gaussian at every pixel, so it is meant for at most about 5,000 Gaussians and images of about 160x120
(seconds per image there). Nothing selects it silently: ask for `backend="reference"`.

The image model is that of 3D Gaussian splatting (Kerbl et al. 2023) after EWA splatting (Zwicker et al. 2001), with the
conventions of gsplat 1.5.3:
    covariance   A = J W R S, cov2d = A A^T + eps2d I, J the projection's Jacobian at the mean, its x/z and y/z
                 clamped to the image widened by 15 % of its size on each side
    extent       r = min(3.33, sqrt(2 ln(255 o))) standard deviations (Radl et al. 2024, appendix B.2): where alpha
                 reaches 1/255
    alpha        min(0.999, o exp(-sigma)), sigma = (A dx^2 + C dy^2) / 2 + B dx dy; skipped where sigma < 0 or
                 alpha < 1/255
    compositing  nearest first, ties by index; the Gaussian that would bring the transmittance T to 1e-4 or less ends
                 the pixel and is not drawn
    antialiased  o is multiplied by sqrt(det(cov2d without eps2d) / det(cov2d)) (Mip-Splatting, Yu et al. 2024)

Symbols: N Gaussians, C cameras, H rows, W columns, P pixels of a band of rows, V visible Gaussians of a camera,
K spherical-harmonics coefficients, D channels.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nfc_splat.rendering.kernels.usable import usable_footprints, usable_rows, values_read
from nfc_splat.rendering.rasterize import RasterInfo

ALPHA_MIN, ALPHA_MAX, T_STOP = 1.0 / 255.0, 0.999, 1e-4
LARGEST_EXTENT = 3.33
LARGEST_RADIUS = 2.0**30  # pixels; fits the int32 of the result
PAIRS_AT_ONCE = 2**21  # pixel-Gaussian pairs in memory


@dataclass(frozen=True)
class Projection:
    """Gaussians on the image plane; everything is 0 where a Gaussian is culled.

    Attributes:
        means2d: [C, N, 2] pixels.
        depths: [C, N] camera-space z.
        conics: [C, N, 3] upper triangle (xx, xy, yy) of the inverse 2D covariance, 1 / square pixels.
        opacities: [C, N] as used.
        radii: [C, N, 2] int32 pixels.
    """

    means2d: Tensor
    depths: Tensor
    conics: Tensor
    opacities: Tensor
    radii: Tensor


# ------------------------------------------------------------------------------------------------ projection


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotations [N, 3, 3] of quaternions [N, 4] (w, x, y, z), normalised here."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def projection_jacobians(centers: Tensor, Ks: Tensor, width: int, height: int) -> Tensor:
    """d(pixel) / d(camera-space point) at `centers` [C, N, 3] (z > 0): [C, N, 2, 3].

    The ratios x/z and y/z are clamped to the image's own limits plus 0.3 tan(half field of view): farther out the
    linear approximation would smear Gaussians across the image.
    """
    fx, fy, cx, cy = (Ks[:, row, column, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x, y, z = centers.unbind(-1)
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    ratio_x = (x / z).clamp(min=-cx / fx - margin_x, max=(width - cx) / fx + margin_x)
    ratio_y = (y / z).clamp(min=-cy / fy - margin_y, max=(height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    row_x = torch.stack([fx / z, zero, -fx * ratio_x / z], -1)
    row_y = torch.stack([zero, fy / z, -fy * ratio_y / z], -1)
    return torch.stack([row_x, row_y], -2)


def project(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    antialiased: bool,
) -> Projection:
    """Project usable rows (see `usable`) and cull what no pixel can see: behind, beyond, transparent, off the image."""
    centers = torch.einsum("cij,nj->cni", viewmats[:, :3, :3], means) + viewmats[:, None, :3, 3]
    z = centers[..., 2]
    in_range = (z >= near_plane) & (z <= far_plane) & usable_footprints(scales, z, Ks)
    # Culled entries continue with harmless numbers: a NaN would poison the gradients of the others through torch.where.
    centers = torch.where(in_range[..., None], centers, centers.new_tensor([0.0, 0.0, 1.0]))
    scales = torch.where(in_range[..., None], scales, 0.0)  # [C, N, 3]

    turned = viewmats[:, None, :3, :3] @ rotation_matrices(quats)
    spread = projection_jacobians(centers, Ks, width, height) @ turned * scales[..., None, :]  # A: [C, N, 2, 3]
    sharp_xx, xy, sharp_yy = (spread[..., i, :].mul(spread[..., j, :]).sum(-1) for i, j in ((0, 0), (0, 1), (1, 1)))
    xx, yy = sharp_xx + eps2d, sharp_yy + eps2d
    # det(A A^T) is the squared area that A's rows span: as a difference of products it would be lost to rounding.
    sharp_det = torch.linalg.cross(spread[..., 0, :], spread[..., 1, :]).square().sum(-1)
    det = sharp_det + eps2d * (sharp_xx + sharp_yy) + eps2d * eps2d

    opacities = opacities.clamp(max=1.0).expand_as(det)
    if antialiased:
        flat = sharp_det <= 0
        opacities = opacities * torch.where(flat, 0.0, torch.where(flat, 1.0, sharp_det / det).sqrt())
    fx, fy, cx, cy = (Ks[:, row, column, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x, y, z = centers.unbind(-1)
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)

    radii = _radii(means2d, torch.stack([xx, yy], -1), opacities, width, height)
    radii = torch.where(in_range[..., None], radii, 0)
    visible = (radii > 0).all(-1)
    return Projection(
        means2d=torch.where(visible[..., None], means2d, 0.0),
        depths=torch.where(visible, z, 0.0),
        conics=torch.where(visible[..., None], torch.stack([yy, -xy, xx], -1) / det[..., None], 0.0),
        opacities=torch.where(visible, opacities, 0.0),
        radii=radii,
    )


@torch.no_grad()
def _radii(means2d: Tensor, variances: Tensor, opacities: Tensor, width: int, height: int) -> Tensor:
    """Half sizes [C, N, 2] of the boxes outside which alpha is below 1/255; 0 where a box misses every pixel."""
    extent = (2 * (opacities / ALPHA_MIN).clamp(min=1.0).log()).sqrt().clamp(max=LARGEST_EXTENT)
    radii = (extent[..., None] * variances.sqrt()).ceil().clamp(max=LARGEST_RADIUS)
    size = means2d.new_tensor([width, height])
    on_image = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    return torch.where((on_image & (opacities >= ALPHA_MIN))[..., None], radii, 0.0).to(torch.int32)


# ------------------------------------------------------------------------------------------- view-dependent colour


def spherical_harmonics(degree: int, directions: Tensor, coefficients: Tensor) -> Tensor:
    """Sum of real spherical harmonics up to `degree` (0 to 3), in 3DGS's order and signs.

    Args:
        directions: [..., 3] from the camera to the Gaussian, normalised here; gradients flow through them.
        coefficients: [..., K, 3] with K >= (degree + 1)^2; further ones are not read.

    Returns:
        [..., 3]; `rasterize` adds 0.5 and cuts below 0.
    """
    length = directions.norm(dim=-1, keepdim=True)
    x, y, z = (directions / torch.where(length > 0, length, 1.0)).unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    root = lambda number: math.sqrt(number / math.pi)  # noqa: E731
    basis = [torch.full_like(x, root(1) / 2)]
    if degree >= 1:
        c = root(3) / 2
        basis += [-c * y, c * z, -c * x]
    if degree >= 2:
        c = root(15) / 2
        basis += [c * x * y, -c * y * z, root(5) / 4 * (3 * zz - 1), -c * x * z, c / 2 * (xx - yy)]
    if degree >= 3:
        c1, c2, c3 = root(10.5) / 4, root(105) / 4, root(17.5) / 4
        basis += [-c3 * y * (3 * xx - yy), 2 * c2 * x * y * z, -c1 * y * (5 * zz - 1), root(7) / 4 * z * (5 * zz - 3)]
        basis += [-c1 * x * (5 * zz - 1), c2 * z * (xx - yy), -c3 * x * (xx - 3 * yy)]
    return torch.einsum("...k,...kd->...d", torch.stack(basis, -1), coefficients[..., : len(basis), :])


def _channels(
    means: Tensor, colors: tuple[Tensor, ...], viewmats: Tensor, depths: Tensor, sh_degree: int | None, render_mode: str
) -> Tensor:
    """What is composited: [C, N, D], the depth (if asked for) as the last channel."""
    parts = []
    if colors:
        values = torch.cat(colors, 1) if sh_degree is not None else colors[0]
        if sh_degree is not None:
            eyes = torch.linalg.inv(viewmats)[:, None, :3, 3]
            values = (spherical_harmonics(sh_degree, means - eyes, values) + 0.5).clamp(min=0.0)
        parts.append(values.expand(len(viewmats), -1, -1))
    if render_mode != "RGB":
        parts.append(depths[..., None])
    return torch.cat(parts, -1)


# ------------------------------------------------------------------------------------------------ compositing


class _SpreadOverPixels(torch.autograd.Function):
    """One copy of the projected means for every pixel, so that the backward pass sees each pixel's gradient."""

    @staticmethod
    def forward(ctx: Any, means2d: Tensor, pixels: int, absolute: Tensor | None, rows: Tensor) -> Tensor:
        ctx.absolute, ctx.rows = absolute, rows
        return means2d.expand(pixels, -1, -1).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.absolute is not None:
            ctx.absolute.index_add_(0, ctx.rows, gradient.abs().sum(0))
        return gradient.sum(0), None, None, None


def _alphas(offsets: Tensor, conics: Tensor, opacities: Tensor) -> tuple[Tensor, Tensor]:
    """Uncapped alpha [P, V] at `offsets` (mean - pixel) [P, V, 2], and whether gsplat would use it."""
    dx, dy = offsets.unbind(-1)
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = opacities * torch.exp(-sigma)
    return alpha, (sigma >= 0) & (alpha >= ALPHA_MIN)


def _transmittances(alphas: Tensor) -> Tensor:
    """[P, V + 1] transmittance before each Gaussian, and after the last, from alphas [P, V]."""
    return torch.cat([alphas.new_ones(len(alphas), 1), torch.cumprod(1 - alphas, 1)], 1)


def _composite(offsets: Tensor, conics: Tensor, opacities: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Composite V Gaussians, nearest first, in P pixels: channels [P, D] and final transmittance [P, 1]."""
    alphas, used = _alphas(offsets, conics, opacities)
    alphas = torch.where(used, alphas.clamp(max=ALPHA_MAX), 0.0)
    with torch.no_grad():
        drawn = _transmittances(alphas)[:, 1:] > T_STOP  # T only falls: once false, false for good
    alphas = torch.where(drawn, alphas, 0.0)
    transmittances = _transmittances(alphas)
    return (alphas * transmittances[:, :-1]) @ channels, transmittances[:, -1:]


def _band(
    absolute: Tensor | None,  # [N, 2], where absolute gradients are summed
    rows: Tensor,  # [V], the V among the N
    width: int,
    top: int,
    bottom: int,
    means2d: Tensor,  # [V, 2]
    conics: Tensor,  # [V, 3]
    opacities: Tensor,  # [V]
    channels: Tensor,  # [V, D]
) -> tuple[Tensor, Tensor]:
    """Image rows `top` to `bottom`: channels [P, D] and final transmittance [P, 1]."""
    pixels = _pixel_centers(top, bottom, width, means2d)
    offsets = _SpreadOverPixels.apply(means2d, len(pixels), absolute, rows) - pixels[:, None]
    return _composite(offsets, conics, opacities, channels)


def _bands(visible: int, width: int, height: int) -> list[tuple[int, int]]:
    """Row ranges small enough that their pixel-Gaussian pairs fit in memory."""
    rows = max(1, PAIRS_AT_ONCE // max(1, visible * width))
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _pixel_centers(top: int, bottom: int, width: int, like: Tensor) -> Tensor:
    """[P, 2] (x, y) of the pixel centres of rows `top` to `bottom`."""
    rows = torch.arange(top, bottom, dtype=like.dtype, device=like.device) + 0.5
    columns = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return torch.cartesian_prod(rows, columns).flip(-1)


def _nearest_first(depths: Tensor, radii: Tensor) -> Tensor:
    """Indices [V] of one camera's visible Gaussians by depth, ties by index."""
    rows = (radii > 0).all(-1).nonzero()[:, 0]
    return rows[torch.argsort(depths.detach()[rows], stable=True)]


def rasterize_to_pixels(
    projection: Projection,
    channels: Tensor,  # [C, N, D]
    backgrounds: Tensor | None,  # [C, D]
    width: int,
    height: int,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Composite projected Gaussians: channels [C, H, W, D] and alphas [C, H, W, 1].

    With `absgrad`, `projection.means2d.absgrad` [C, N, 2] is set; the backward pass adds to it the sums over pixels of
    the absolute gradient (AbsGS, Ye et al. 2024), as it adds to `.grad`.
    """
    if absgrad:
        projection.means2d.absgrad = torch.zeros_like(projection.means2d, requires_grad=False)
    images, alphas = [], []
    for camera in range(len(channels)):
        rows = _nearest_first(projection.depths[camera], projection.radii[camera])
        splats = (projection.means2d, projection.conics, projection.opacities, channels)
        splats = [tensor[camera, rows] for tensor in splats]
        absolute = projection.means2d.absgrad[camera] if absgrad else None
        # Recomputing each band in the backward pass keeps one band in memory instead of all of them. What checkpoint
        # is given must not change until then, so the sums of absolute gradients are bound beforehand.
        bands = [
            checkpoint(partial(_band, absolute, rows, width, *limits), *splats, use_reentrant=False)
            for limits in _bands(len(rows), width, height)
        ]
        image, transmittance = (torch.cat(parts) for parts in zip(*bands, strict=True))
        images.append(image if backgrounds is None else image + transmittance * backgrounds[camera])
        alphas.append(1 - transmittance)
    shape = (len(channels), height, width)
    return torch.stack(images).view(*shape, -1), torch.stack(alphas).view(*shape, 1)


# ---------------------------------------------------------------------------------------------------- the whole


def rasterize_reference(
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
    """`rasterize` in plain torch, in the dtype of its arguments; see there for shapes and meaning."""
    read = values_read(colors, sh_rest, sh_degree, render_mode)
    usable = usable_rows(means, quats, scales, opacities, read)
    means = torch.where(usable[:, None], means, 0.0)
    quats = torch.where(usable[:, None], quats, quats.new_tensor([1.0, 0.0, 0.0, 0.0]))
    scales = torch.where(usable[:, None], scales, 0.0)
    opacities = torch.where(usable, opacities, 0.0)
    read = tuple(torch.where(usable.view(-1, *[1] * (part.dim() - 1)), part, 0.0) for part in read)
    projection = project(
        means,
        quats,
        scales,
        opacities,
        viewmats,
        Ks,
        width,
        height,
        near_plane=near_plane,
        far_plane=far_plane,
        eps2d=eps2d,
        antialiased=rasterize_mode == "antialiased",
    )
    channels = _channels(means, read, viewmats, projection.depths, sh_degree, render_mode)
    if backgrounds is not None and render_mode != "RGB":
        nothing = backgrounds.new_zeros(len(backgrounds), 1)
        backgrounds = torch.cat([backgrounds, nothing], -1) if read else nothing
    images, alphas = rasterize_to_pixels(projection, channels, backgrounds, width, height, absgrad)
    if render_mode in ("ED", "RGB+ED"):
        expected = images[..., -1:] / alphas.clamp(min=1e-10)
        images = torch.cat([images[..., :-1], expected], -1)
    info = RasterInfo(
        means2d=projection.means2d,
        radii=projection.radii,
        depths=projection.depths,
        conics=projection.conics,
        opacities=projection.opacities,
        width=width,
        height=height,
    )
    return images, alphas, info


@torch.no_grad()
def near_cut_pixels(info: RasterInfo, tolerance: float = 1e-5, depth_tolerance: float = 1e-6) -> Tensor:
    """Pixels [C, H, W] (bool) whose value hangs on rounding, to be left out when implementations are compared.

    A pixel is marked when, among the Gaussians that are reached before it ends, some alpha lies within `tolerance`
    (relative) of 1/255 or 0.999, some transmittance within `tolerance` of 1e-4, or two neighbours in depth order that
    both contribute differ by less than `depth_tolerance` (relative) in depth without being equal.

    Args:
        info: of a reference rasterisation in float64.
    """
    near = lambda values, cut: (values / cut - 1).abs() <= tolerance  # noqa: E731
    cameras = []
    for camera in range(len(info.depths)):
        rows = _nearest_first(info.depths[camera], info.radii[camera])
        depths = info.depths[camera, rows]
        gaps = depths.diff() / depths[1:]
        tied = (gaps > 0) & (gaps < depth_tolerance)
        marked = []
        for top, bottom in _bands(len(rows), info.width, info.height):
            pixels = _pixel_centers(top, bottom, info.width, info.means2d)
            offsets = info.means2d[camera, rows] - pixels[:, None]
            raw, used = _alphas(offsets, info.conics[camera, rows], info.opacities[camera, rows])
            T = _transmittances(torch.where(used, raw.clamp(max=ALPHA_MAX), 0.0))
            # An end that rounding could move leaves what follows it reachable, hence the margin.
            reached = T[:, :-1] > T_STOP * (1 - tolerance)
            cut = near(raw, ALPHA_MIN) | near(raw, ALPHA_MAX) | (used & near(T[:, 1:], T_STOP))
            contributes = used & reached
            swapped = contributes[:, 1:] & contributes[:, :-1] & tied
            marked.append((cut & reached).any(1) | swapped.any(1))
        cameras.append(torch.cat(marked).view(info.height, info.width))
    return torch.stack(cameras)
