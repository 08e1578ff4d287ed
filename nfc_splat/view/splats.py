"""Gaussians as the browser draws them.

The browser knows one colour per Gaussian: the mean over all directions is what it gets. The model's own pictures
(`nfc_splat.view.drawn`) have the view-dependent part.

Symbols: N Gaussians.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from nfc_splat.rendering.kernels.gaussians_reference import rotation_matrices
from nfc_splat.view.space import Frame

if TYPE_CHECKING:
    from nfc_splat.rendering import SceneModel

SMALLEST_ALPHA = 0.01  # the browser leaves out what is fainter
_LARGEST = 6.0e4  # a covariance travels in half precision


class SplatArrays(NamedTuple):
    """What viser asks for, float32.

    centers [N, 3], covariances [N, 3, 3], rgbs [N, 3] and opacities [N, 1], both in [0, 1].
    """

    centers: np.ndarray
    covariances: np.ndarray
    rgbs: np.ndarray
    opacities: np.ndarray


def draws_splats(model: "SceneModel") -> bool:
    """Whether the model is made of Gaussians."""
    from nfc_splat.fields.gaussians import Model

    return isinstance(model, Model)


def splat_arrays(model: "SceneModel", time: float | None, frame: Frame) -> SplatArrays:
    """The Gaussians of a model as they are at `time`, in the viewer's frame; those that nobody can see are left out."""
    from nfc_splat.fields.gaussians import SH_C0

    with torch.no_grad():
        splats = model.splats() if time is None or not hasattr(model, "splats_at") else model.splats_at(time)
        means, quats = splats["means"].double(), splats["quats"].double()
        scales = splats["scales"].double().exp() * frame.scale
        opacities = splats["opacities"].double().sigmoid()[:, None]
        rgbs = (0.5 + SH_C0 * splats["sh0"][:, 0].double()).clamp(0, 1)
        covariances = covariance_matrices(quats, scales)
        kept = opacities[:, 0] >= SMALLEST_ALPHA
        for values in (means, covariances.flatten(1), rgbs):
            kept = kept & values.isfinite().all(-1)
        means, covariances, rgbs, opacities = (part[kept].cpu() for part in (means, covariances, rgbs, opacities))
    largest = covariances.abs().amax((1, 2))[:, None, None]
    covariances = covariances * (_LARGEST / largest.clamp_min(1e-30)).clamp_max(1)
    arrays = (frame.shown(means.numpy()), covariances.numpy(), rgbs.numpy(), opacities.numpy())
    return SplatArrays(*(array.astype(np.float32) for array in arrays))


def covariance_matrices(quats: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[N, 3, 3] R diag(scales^2) R^T of quaternions [N, 4] wxyz of any length and standard deviations [N, 3]."""
    axes = rotation_matrices(quats) * scales[:, None, :]
    return axes @ axes.transpose(1, 2)
