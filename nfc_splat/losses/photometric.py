"""Regression losses between images: L1, MSE, SSIM and the 3DGS mixture.

Symbols: `pred` and `target` are `[..., H, W, C]`, channels last, in [0, 1] as a rule. `mask` is described at
`nfc_splat.losses.reduction.element_weights`. Half precision is widened to float32 and float64 stays float64, under
autocast too.

- `l1(pred, target)`, `mse(pred, target)`: any shape.
- `ssim(pred, target)`: structural similarity, 1 for equal images.
- `dssim(pred, target)`: 1 - SSIM.
- `l1_dssim(pred, target)`: 0.8 L1 + 0.2 (1 - SSIM).
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nfc_splat.losses.reduction import (
    Reduction,
    check_reduction,
    check_same_shape,
    element_weights,
    reduce,
    without_ignored,
    working_precision,
)

Padding = Literal["zero", "valid"]

WINDOW_RADIUS = 5
WINDOW_SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def l1(pred: Tensor, target: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """Absolute error `|pred - target|`.

    Args:
        pred: [*shape] any range; its gradient is `sign(pred - target)`, and 0 where they are equal.
        target: [*shape].
        mask: [*pixels], [*pixels, 1] or [*shape] weights; a masked "mean" is over what counts.
        reduction: "none", "mean" or "sum".

    Returns:
        [*shape] for "none", otherwise a scalar.

    Raises:
        ValueError: the shapes differ, an input is not floating-point, or the reduction is unknown.
    """
    pred, target, weights = _prepare(pred, target, mask, reduction)
    return reduce((pred - target).abs(), weights, reduction)


def mse(pred: Tensor, target: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """Squared error `(pred - target)^2`; its gradient is `2 (pred - target)`. Arguments and errors as in `l1`."""
    pred, target, weights = _prepare(pred, target, mask, reduction)
    return reduce((pred - target).square(), weights, reduction)


def ssim(
    pred: Tensor,
    target: Tensor,
    *,
    padding: Padding = "zero",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Structural similarity (Wang et al. 2004, Eq. 13) per channel, with the 11x11 Gaussian window of sigma 1.5.

    .. math:: \frac{(2 \mu_x \mu_y + C_1) (2 \sigma_{xy} + C_2)}
                   {(\mu_x^2 + \mu_y^2 + C_1) (\sigma_x^2 + \sigma_y^2 + C_2)}

    with `C1 = 0.01^2`, `C2 = 0.03^2` (data range 1) and moments weighted by the window; variances are not clipped.

    Args:
        pred: [..., H, W, C] in [0, 1].
        target: [..., H, W, C] in [0, 1].
        padding: "zero" pads both images with 5 zeros, as 3DGS does (Kerbl et al. 2023): every pixel has a value, those
            within 5 pixels of the border are damped. "valid" keeps the windows that lie inside the image, as the
            original paper and most evaluation protocols do.
        mask: [..., H, W], [..., H, W, 1] or [..., H, W, C] weights of the SSIM map. Where a weight is 0 both images are
            set to 0 first, so that an ignored pixel does not reach its neighbours' windows.
        reduction: "none" (the map), "mean" or "sum".

    Returns:
        [..., H, W, C] ("valid": [..., H - 10, W - 10, C]) for "none", otherwise a scalar. Equal images give 1, and
        images in [0, 1] give values in [-1, 1].

    Raises:
        ValueError: the shapes differ or are not images; an image is smaller than the window under "valid".

    Example:
        >>> black, grey = torch.zeros(16, 16, 3), torch.full((16, 16, 3), 0.5)
        >>> round(ssim(black, grey, padding="valid").item(), 7)  # C1 / (0.5^2 + C1)
        0.0003998
    """
    similarity, weights = _similarity(pred, target, padding, mask, reduction)
    return reduce(similarity, weights, reduction)


def dssim(
    pred: Tensor,
    target: Tensor,
    *,
    padding: Padding = "zero",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`1 - SSIM`, which 3DGS calls D-SSIM (the older definition halves it). Arguments and errors as in `ssim`.

    For images in [0, 1] it lies in [0, 2], is 0 where they are equal, and has a finite gradient everywhere, because
    C1 and C2 keep the denominators away from 0.
    """
    similarity, weights = _similarity(pred, target, padding, mask, reduction)
    return reduce(1 - similarity, weights, reduction)


def l1_dssim(
    pred: Tensor,
    target: Tensor,
    *,
    dssim_weight: float = 0.2,
    padding: Padding = "zero",
    mask: Tensor | None = None,
) -> Tensor:
    """`(1 - w) L1 + w (1 - SSIM)` with `w = dssim_weight`: the loss of 3DGS (Kerbl et al. 2023, Eq. 7, w = 0.2).

    Args:
        pred: [..., H, W, C] in [0, 1].
        target: [..., H, W, C] in [0, 1].
        dssim_weight: share of the structural term, in [0, 1].
        padding: see `ssim`.
        mask: see `ssim`; both terms are means over what counts.

    Returns:
        A scalar.

    Raises:
        ValueError: as `ssim`, or `dssim_weight` lies outside [0, 1].
    """
    if not 0 <= dssim_weight <= 1:
        raise ValueError(f"dssim_weight must lie in [0, 1], got {dssim_weight}")
    structural = dssim(pred, target, padding=padding, mask=mask)
    return (1 - dssim_weight) * l1(pred, target, mask=mask) + dssim_weight * structural


def _prepare(pred: Tensor, target: Tensor, mask: Tensor | None, reduction: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked arguments in the working precision, ignored elements set to 0 in both, and the weights."""
    check_reduction(reduction)
    check_same_shape(pred, target)
    pred, target = working_precision(pred, target)
    weights = element_weights(mask, pred)
    return without_ignored(pred, weights, 0.0), without_ignored(target, weights, 0.0), weights


def _similarity(
    pred: Tensor, target: Tensor, padding: Padding, mask: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor | None]:
    """The SSIM map and the weights that belong to it."""
    pred, target, weights = _prepare(pred, target, mask, reduction)
    _check_images(pred, padding)
    moments = torch.stack([pred, target, pred * pred, target * target, pred * target])
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _window_mean(_window_mean(moments, -3, padding), -2, padding)
    squares, product = mean_x.square() + mean_y.square(), mean_x * mean_y
    luminance = (2 * product + C1) / (squares + C1)
    structure = (2 * (mean_xy - product) + C2) / (mean_xx + mean_yy - squares + C2)
    if weights is not None and padding == "valid":
        inside = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
        weights = weights[..., inside, inside, :]
    return luminance * structure, weights


def _check_images(images: Tensor, padding: str) -> None:
    if padding not in get_args(Padding):
        raise ValueError(f"padding must be one of {', '.join(get_args(Padding))}, got {padding!r}")
    if images.ndim < 3:
        raise ValueError(f"SSIM needs images [..., H, W, C], got shape {tuple(images.shape)}")
    height, width = images.shape[-3:-1]
    if padding == "valid" and min(height, width) <= 2 * WINDOW_RADIUS:
        raise ValueError(
            f"images of {height}x{width} pixels (rows x columns) are smaller than SSIM's 11x11 window: "
            "use larger images or padding='zero'"
        )


def _window_mean(images: Tensor, axis: Literal[-3, -2], padding: Padding) -> Tensor:
    """Gaussian mean along one axis (the window is separable).

    It is written as eleven shifted additions rather than a convolution: as fast on a CPU, and neither autocast nor
    TF32 rounds it, which the differences of moments above would not survive.
    """
    taps = [math.exp(-0.5 * (offset / WINDOW_SIGMA) ** 2) for offset in range(-WINDOW_RADIUS, WINDOW_RADIUS + 1)]
    taps = [tap / math.fsum(taps) for tap in taps]
    if padding == "zero":
        images = F.pad(images, [0, 0] * (-axis - 1) + [WINDOW_RADIUS, WINDOW_RADIUS])
    length = images.shape[axis] - 2 * WINDOW_RADIUS
    mean = taps[WINDOW_RADIUS] * images.narrow(axis, WINDOW_RADIUS, length)
    for start, tap in enumerate(taps[:WINDOW_RADIUS]):
        mirrored = images.narrow(axis, 2 * WINDOW_RADIUS - start, length)
        mean = torch.add(mean, images.narrow(axis, start, length) + mirrored, alpha=tap)
    return mean
