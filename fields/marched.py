"""What most ray-marched methods share in training: rays of all images in a shuffled order, and the mean squared error.

Symbols: P pixels of a batch.
"""

import logging
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nfc_splat.cameras import Cameras, Rays
from nfc_splat.fields.recipe import Batch, Sampling, SceneGeometry
from nfc_splat.fields.recipe import Recipe as BaseRecipe
from nfc_splat.losses import mse
from nfc_splat.rendering import Rendering

FEW_HITS = 0.05

log = logging.getLogger("nfc_splat")


class MarchedRecipe(BaseRecipe):
    """Subclasses give the optimisers, and whatever else differs.

    Attributes:
        rays: pixels of a batch, P.
    """

    rays: ClassVar[int] = 4096

    def __init__(self, config: Any, geometry: SceneGeometry):
        self.config, self.geometry = config, geometry

    def sampling(self, step: int) -> Sampling:
        """`rays` pixels, each once per epoch."""
        return Sampling("shuffled_rays", rays=self.rays)

    def photometric(self, rendering: Rendering, batch: Batch) -> Tensor:
        """The mean squared error over pixels and channels, of auxiliary renderings too."""
        drawn = (rendering, *rendering.auxiliary)
        return sum(mse(part.color, batch.target, mask=batch.mask) for part in drawn)


def probe_rays(cameras: Cameras, most: int = 100) -> Rays:
    """Rays [R] through 16 x 16 places of up to `most` of the cameras, to find out what they see."""
    chosen = torch.linspace(0, len(cameras) - 1, min(most, len(cameras)), dtype=torch.float64).round().long()
    share = (torch.arange(16) + 0.5) / 16
    places = torch.cartesian_prod(share, share)
    sizes = cameras.sizes.cpu()[chosen].flip(1)
    within = (places * sizes[:, None]).long()  # [C, 256, 2] row, column
    pixels = torch.cat([chosen[:, None, None].expand(-1, len(places), 1), within], -1)
    return cameras.rays(pixels.view(-1, 3).to(cameras.sizes.device))


def warn_of_misses(hit: Tensor, what: str, remedy: str) -> None:
    """Warn when fewer than `FEW_HITS` of the rays `hit` [P] bool meet `what`, such as "the box of the scene"."""
    share = float(hit.float().mean())
    if share < FEW_HITS:
        log.warning("only %.1f %% of the rays meet %s: %s", 100 * share, what, remedy)


def packed_pixels(numbers: Tensor) -> Tensor:
    """Ascending numbers [K] of pixels as one bit per pixel up to the last of them, uint8, for a checkpoint."""
    chosen = np.zeros(int(numbers[-1]) + 1 if len(numbers) else 0, bool)
    chosen[numbers.numpy()] = True
    return torch.from_numpy(np.packbits(chosen))


def unpacked_pixels(bits: Tensor) -> Tensor:
    """The inverse of `packed_pixels`, [K] int64."""
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy()).nonzero()[0])
