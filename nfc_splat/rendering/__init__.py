"""The contract between scene models, losses and the trainer: `Rendering` and `SceneModel`.

Symbols: C cameras, H rows, W columns, P pixels. `*request` is the shape of what was asked for: `C, H, W` for whole
images, `P` for a list of pixels. Colours are linear in what is stored in the images, in [0, 1] as a rule (splats may
exceed 1); world coordinates are those of the input scene.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from nfc_splat.cameras import Cameras


@dataclass(frozen=True)
class Rendering:
    """What a model drew. The leading shape of every tensor is the shape of the request.

    Attributes:
        color: [*request, 3] background already composited, decoded (never bits).
        alpha: [*request, 1] in [0, 1].
        depth: [*request, 1] expected camera-space z in world units; 0 where alpha is 0. None while a model is in
            training mode and would have to draw it on purpose.
        normal: [*request, 3] unit world-space normal facing the camera, or None.
        bits: [*request, 3, n_logits] composited probabilities, only when the bit-wise loss asked for them.
        auxiliary: further renderings of the same request that the photometric loss also sees (NeRF's coarse pass).
        extras: what the method's own regularisers and densification need, and nothing else.
    """

    color: Tensor
    alpha: Tensor
    depth: Tensor | None
    normal: Tensor | None = None
    bits: Tensor | None = None
    auxiliary: tuple["Rendering", ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)


class SceneModel(nn.Module, abc.ABC):
    """Something that can be drawn from any camera.

    `request` says how the trainer asks: "image" for rasterised models (whole images), "rays" for marched ones.
    A model is rebuilt from its configuration and its checkpoint's tensors alone (`from_tensors`), whatever it grew to.
    That may make twice as many numbers as the tensors have, and some millions, but not more: files are not trusted.

    Attributes:
        encoding: the `nfc_splat.losses.TargetEncoding` of its colour head, where it has one.
        draw_bits: also composite the probabilities of the bits (`Rendering.bits`), for the bit-wise loss.
    """

    request: ClassVar[Literal["image", "rays"]]
    encoding: Any
    draw_bits: bool = False

    @property
    def primitives(self) -> int | None:
        """How many Gaussians or the like the scene is made of now; None for fields, where that means nothing."""
        return None

    @abc.abstractmethod
    def render(self, cameras: Cameras, pixels: Tensor | None = None, *, background: Tensor) -> Rendering:
        """Draw `cameras`.

        Args:
            cameras: C cameras.
            pixels: [P, 3] int64 (camera, row, column), or None for every pixel of every camera.
            background: [3] colour behind the scene, composited after decoding; models that ask for rays also take
                [P, 3], one for each pixel.
        """

    def regularizers(self, rendering: Rendering, batch: Any, step: int) -> dict[str, Tensor]:
        """Named scalar terms, already weighted, that the trainer adds to the loss. None by default."""
        return {}

    @classmethod
    @abc.abstractmethod
    def from_tensors(cls, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a model from its frozen config and its `state_dict` tensors, taking every size from their shapes."""
