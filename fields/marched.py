"""What most ray-marched methods share in training: rays of all images in a shuffled order, and the mean squared error.

Symbols: P pixels of a batch.
"""

import logging
from typing import Any, ClassVar

from torch import Tensor

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


def warn_of_misses(hit: Tensor, what: str, remedy: str) -> None:
    """Warn when fewer than `FEW_HITS` of the rays `hit` [P] bool meet `what`, such as "the box of the scene"."""
    share = float(hit.float().mean())
    if share < FEW_HITS:
        log.warning("only %.1f %% of the rays meet %s: %s", 100 * share, what, remedy)
