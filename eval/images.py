"""Image metrics and the protocols that make their numbers comparable.

Symbols: H rows, W columns. Images are [H, W, 3] in [0, 1] as stored; masks are [H, W] weights in [0, 1], 1 = counts.
Everything is computed in float64 on the images' device.

A metric is a pair, as in torchmetrics: `score_view` turns one view into numbers, `mean_scores` turns the views' numbers
into a summary. A value that does not exist is None and carries its reason; it is never NaN, Infinity or a made-up cap.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5

# k / 255 stored as float32 is off by at most 255 * 2^-24 levels; truncation must give k back.
_TRUNCATION_GUARD = 2e-5


@dataclass(frozen=True)
class Protocol:
    """What is done to a pair of images before and while they are compared.

    Attributes:
        name: the value of `--protocol`.
        quantize: both images are clamped to [0, 1]; then kept in floating point, or put on the 8-bit grid by rounding
            half up or by truncation.
        ssim_padding: "valid" averages over windows that lie inside the image, "zero" pads the image with 5 zeros.
        lpips_nets: the backbones reported; the first one is the summary's `lpips`.
        lpips_signed: whether images are mapped to [-1, 1], which LPIPS was trained on, or fed as [0, 1].
        source: whose numbers it reproduces.
        pooled: PSNR is that of the mean of the views' squared errors, not the mean of their PSNRs. It is never larger.
        left_out: how many views at the start of the split do not count.
    """

    name: str
    quantize: Literal["float", "round", "truncate"]
    ssim_padding: Literal["valid", "zero"]
    lpips_nets: tuple[str, ...]
    lpips_signed: bool
    source: str
    pooled: bool = False
    left_out: int = 0

    def describe(self) -> dict[str, Any]:
        """The part of a metric file's protocol block that does not depend on the scene or the machine."""
        depth = {"float": "float, no quantisation", "round": "8 bits, rounded", "truncate": "8 bits, truncated"}
        mean = "mean over views of -10 log10(MSE); views without error are left out of the mean and counted"
        return {
            "name": self.name,
            "reproduces": self.source,
            "clamp": [0.0, 1.0],
            "bit_depth": depth[self.quantize],
            "psnr": "-10 log10 of the views' mean MSE" if self.pooled else mean,
            "left_out": self.left_out,
            "ssim": {
                "window": SSIM_WINDOW,
                "sigma": SSIM_SIGMA,
                "kernel": "gaussian",
                "padding": self.ssim_padding,
                "k1": 0.01,
                "k2": 0.03,
                "data_range": 1.0,
                "channels": "mean of R, G, B",
            },
            "lpips": {
                "nets": list(self.lpips_nets),
                "headline": self.lpips_nets[0],
                "input_range": [-1.0, 1.0] if self.lpips_signed else [0.0, 1.0],
            },
            "mask": {
                "psnr": "mean over kept pixels",
                "ssim": "map averaged over kept window centres; the rendering is replaced by the truth elsewhere",
                "lpips": "the rendering is replaced by the truth outside the mask",
            },
        }


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol("default", "float", "valid", ("alex", "vgg"), True, "Wang et al. 2004; Zhang et al. 2018"),
            Protocol("graphdeco", "round", "zero", ("vgg",), False, "graphdeco-inria/gaussian-splatting metrics.py"),
            Protocol("nerfbaselines", "truncate", "valid", ("alex", "vgg"), True, "nerfbaselines, protocol nerf"),
            # D-NeRF's notebook reads its own 8-bit pictures and skips the first one, at time 0.
            Protocol(
                "dnerf", "truncate", "valid", ("vgg",), True, "D-NeRF metrics.ipynb; NFC", pooled=True, left_out=1
            ),
            Protocol("4dgs", "round", "zero", ("vgg", "alex"), False, "hustvl/4DGaussians metrics.py"),
        )
    }
)

Perceptual = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class ViewScore:
    """The metrics of one view.

    Attributes:
        psnr: dB; None when it does not exist, and when it is infinite (`identical`).
        mse: the mean squared error; None when it does not exist.
        ssim: in [-1, 1], or None.
        lpips: by backbone, each a float or None.
        identical: the two images agree in every kept pixel.
        notes: why a value is None, by metric name.
    """

    psnr: float | None
    ssim: float | None
    lpips: Mapping[str, float | None]
    identical: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)
    mse: float | None = None


def quantize(image: Tensor, how: Literal["float", "round", "truncate"]) -> Tensor:
    """Clamp to [0, 1], put on the 8-bit grid as a protocol says, and return float64 in [0, 1], any shape."""
    image = image.double().clamp(0.0, 1.0)
    if how == "float":
        return image
    return torch.floor(255.0 * image + (0.5 if how == "round" else _TRUNCATION_GUARD)) / 255.0


def mean_squared_error(
    pred: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    mask: Tensor | None = None,  # [H, W]
) -> Tensor:
    """Mean over the kept pixels and the channels, a float64 scalar. NaN when the mask keeps nothing."""
    error = (pred.double() - target.double()).square().mean(-1)
    if mask is None:
        return error.mean()
    return (error * mask).sum() / mask.double().sum()


def psnr(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB of images with peak 1, a float64 scalar; inf when they are identical."""
    return -10.0 * torch.log10(mean_squared_error(pred, target, mask))


def _blur(image: Tensor, padding: int) -> Tensor:
    """Gaussian window statistics of [N, 1, H, W], separably."""
    offsets = torch.arange(SSIM_WINDOW, dtype=image.dtype, device=image.device) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SSIM_SIGMA).square())
    weights = weights / weights.sum()
    rows = F.conv2d(image, weights.view(1, 1, -1, 1), padding=(padding, 0))
    return F.conv2d(rows, weights.view(1, 1, 1, -1), padding=(0, padding))


def ssim_map(
    pred: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    padding: Literal["valid", "zero"] = "valid",
) -> Tensor:
    """Structural similarity per window centre (Wang et al. 2004, Eq. 13), data range 1, averaged over channels.

    Returns:
        [H, W] with zero padding, [H - 10, W - 10] with "valid".

    Raises:
        ValueError: "valid" and a side below 11 pixels.
    """
    if padding == "valid" and min(pred.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"{_size(pred)} is smaller than the SSIM window, {SSIM_WINDOW}x{SSIM_WINDOW}")
    x, y = (image.double().movedim(-1, 0) for image in (pred, target))
    moments = torch.stack((x, y, x * x, y * y, x * y)).flatten(0, 1).unsqueeze(1)
    blurred = _blur(moments, SSIM_WINDOW // 2 if padding == "zero" else 0)
    mean_x, mean_y, square_x, square_y, product = blurred.squeeze(1).unflatten(0, (5, 3))
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (numerator / ((mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2))).mean(0)


def ssim(
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    padding: Literal["valid", "zero"] = "valid",
) -> Tensor:
    """Mean structural similarity, a float64 scalar; see `ssim_map` for shapes and errors.

    With a mask, `pred` is replaced by `target` where the mask is 0, so that no window sees an ignored pixel, and the
    map is averaged with the mask at the window centres as weight: NaN when it keeps none of them.
    """
    if mask is None:
        return ssim_map(pred, target, padding).mean()
    similarity = ssim_map(replace_ignored(pred, target, mask), target, padding)
    border = SSIM_WINDOW // 2 if padding == "valid" else 0
    weights = mask[border : mask.shape[0] - border, border : mask.shape[1] - border].double()
    return (similarity * weights).sum() / weights.sum()


def replace_ignored(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """`pred` with `target` where the mask is 0, [H, W, 3]."""
    return pred if mask is None else torch.where(mask[..., None] > 0, pred, target)


def score_view(
    pred: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    mask: Tensor | None,  # [H, W]
    protocol: Protocol,
    perceptual: Mapping[str, Perceptual],
) -> ViewScore:
    """Every metric of one view under `protocol`.

    Args:
        pred: rendered colours; clamped here.
        target: the photograph.
        mask: None when every pixel counts.
        protocol: see `PROTOCOLS`.
        perceptual: LPIPS networks by name, each `(pred, target) -> float`; those of the protocol that are missing
            here are left out, their reason stands in the protocol block.
    """
    if pred.shape != target.shape:
        raise ValueError(f"the rendering is {tuple(pred.shape)}, the truth {tuple(target.shape)}")
    if reason := _unusable(pred, mask):
        nothing = {net: None for net in perceptual}
        return ViewScore(None, None, nothing, notes={"psnr": reason, "ssim": reason, "lpips": reason})
    pred, target = quantize(pred, protocol.quantize), quantize(target, protocol.quantize)
    error = mean_squared_error(pred, target, mask)
    identical = error.item() == 0.0
    notes = {"psnr": "infinite: the images are identical"} if identical else {}
    similarity, why = _guarded_ssim(pred, target, mask, protocol.ssim_padding)
    if why:
        notes["ssim"] = why
    shown = replace_ignored(pred, target, mask)
    distances: dict[str, float | None] = {}
    for net, distance in perceptual.items():
        try:
            distances[net] = distance(shown, target)
        except ValueError as error_:
            distances[net] = None
            notes[f"lpips_{net}"] = str(error_)
    value = None if identical else -10.0 * torch.log10(error).item()
    return ViewScore(value, similarity, distances, identical, notes, error.item())


def _guarded_ssim(pred: Tensor, target: Tensor, mask: Tensor | None, padding: str) -> tuple[float | None, str | None]:
    """SSIM, or None and the reason."""
    try:
        value = ssim(pred, target, mask, padding).item()
    except ValueError as error:
        return None, str(error)
    if value != value:
        return None, "the mask keeps no window centre"
    return value, None


def _unusable(pred: Tensor, mask: Tensor | None) -> str | None:
    """Why no metric of this view exists, or None."""
    bad = int((~torch.isfinite(pred)).sum())
    if bad:
        return f"the rendering holds {bad} values that are NaN or infinite"
    if mask is not None and not bool((mask > 0).any()):
        return "the mask keeps no pixel"
    return None


def _size(image: Tensor) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def mean_scores(scores: Sequence[ViewScore], protocol: Protocol) -> dict[str, Any]:
    """Means over the views that have a value.

    Returns:
        `psnr`, `ssim`, `lpips` (the protocol's first net), `lpips_<net>` for each net, `n_views`, `psnr_infinite_views`
        and `notes`: one line for each reason that left a value out, with the number of views.
    """
    result: dict[str, Any] = {
        "psnr": _pooled_psnr(scores) if protocol.pooled else _mean(score.psnr for score in scores),
        "ssim": _mean(score.ssim for score in scores),
        "lpips": None,
        "n_views": len(scores),
        "psnr_infinite_views": sum(score.identical for score in scores),
    }
    for net in protocol.lpips_nets:
        result[f"lpips_{net}"] = _mean(score.lpips.get(net) for score in scores)
    result["lpips"] = result[f"lpips_{protocol.lpips_nets[0]}"]
    result["notes"] = _tally(scores)
    return result


def _mean(values: Any) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _pooled_psnr(scores: Sequence[ViewScore]) -> float | None:
    """PSNR of the mean squared error of all views; None when it does not exist or is infinite."""
    error = _mean(score.mse for score in scores)
    return -10 * math.log10(error) if error else None


def _tally(scores: Sequence[ViewScore]) -> list[str]:
    """Each reason once, with the number of views it holds for."""
    counts: dict[tuple[str, str], int] = {}
    for score in scores:
        for metric, reason in score.notes.items():
            counts[metric, reason] = counts.get((metric, reason), 0) + 1
    return [f"{metric} is null in {n} of {len(scores)} views: {why}" for (metric, why), n in counts.items()]
