"""Training images spoiled once by Gaussian noise: NFC's experiment on corrupted images (arXiv 2403.01058, Table 5)."""

import torch
from torch import Tensor

from nfc_splat.data.store import ImageStore


class NoisyStore:
    """The pictures of `store` plus Gaussian noise, clipped and rounded to 8 bits, as if the files held it.

    The noise of an image depends on its place in the store alone: every reading gives the same, whatever the seed of a
    training. Transparent images are composited over `background` first, so that nothing of them stays clean.
    """

    def __init__(self, store: ImageStore, deviation: float, background: Tensor) -> None:
        self._store, self._deviation, self._background = store, deviation, background

    def image(self, index: int) -> Tensor:
        """uint8 [H, W, 3]."""
        clean = composited(self._store.image(index), self._background)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(index))
        return (255 * (clean + self._deviation * noise).clamp(0, 1)).round().to(torch.uint8)

    def mask(self, index: int) -> Tensor | None:
        """uint8 [H, W], 255 = keep, or None."""
        return self._store.mask(index)

    def foreground(self, index: int) -> Tensor | None:
        """uint8 [H, W], 255 = the object, or None."""
        return self._store.foreground(index)


def composited(image: Tensor, background: Tensor) -> Tensor:
    """uint8 [H, W, 3 | 4] as float32 [H, W, 3] in [0, 1], over `background` [3] where it is transparent."""
    values = image.float() / 255
    if values.shape[2] == 3:
        return values
    alpha = values[..., 3:]
    return values[..., :3] * alpha + background.to(values) * (1 - alpha)
