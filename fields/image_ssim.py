"""SSIM as a training loss of whole images: the fused CPU kernel where it applies, else plain torch."""

import torch
from torch import Tensor

from nfc_splat.losses import ssim


def image_ssim(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean SSIM of one or several images, zero padded; differentiable in `pred`.

    Args:
        pred, target: [C, H, W, 3] in [0, 1].
        mask: [C, H, W] weights, or None.

    Returns:
        A scalar in [-1, 1].
    """
    if pred.device.type != "cpu" or pred.dtype != torch.float32 or len(pred) != 1:
        return ssim(pred, target, mask=mask)
    from nfc_splat.rendering.kernels import ssim_cpu

    return ssim_cpu.ssim(pred[0], target[0], None if mask is None else mask[0])
