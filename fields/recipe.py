"""How a method is trained: the half of the contract that is not drawing.

The trainer composes a `SceneModel` with a `Recipe` and never asks which method it has. Symbols: C cameras, P pixels,
`*request` the request's shape (`C, H, W` or `P`).
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer

from nfc_splat.cameras import Cameras
from nfc_splat.rendering import Rendering, SceneModel
from nfc_splat.rendering.sharing import WHOLE, Share


@dataclass(frozen=True)
class Batch:
    """One training request and what should come out.

    Attributes:
        cameras: C cameras.
        pixels: [P, 3] int64 (camera, row, column), or None for whole images.
        target: [*request, 3] in [0, 1], composited over `background`.
        mask: [*request] float weights, 1 = counts, 0 = ignored; None when every pixel counts.
        background: [3], or [P, 3] where every ray has its own.
        foreground: [P] float, 1 where a pixel shows the object and 0 where what lies behind it, for rays of scenes that
            say so, by masks or by transparency; else None.
        share: which part of what several processes draw in this step this is.
    """

    cameras: Cameras
    pixels: Tensor | None
    target: Tensor
    mask: Tensor | None
    background: Tensor
    foreground: Tensor | None = None
    share: Share = WHOLE


@dataclass(frozen=True)
class Sampling:
    """What the next batch should be. Pixels that a mask rules out are never drawn as rays.

    Attributes:
        kind: "images": whole images, each once per epoch; "shuffled_rays": pixels of all images, each once per epoch;
            "random_rays": pixels of all images, drawn independently; "image_rays": different pixels of one image, each
            image once per epoch.
        images: how many whole images.
        rays: how many pixels, P.
        crop: the share of an image's width and height, about its middle, that "image_rays" are drawn from.
        background: "scene", or "random": a colour of its own for every ray, behind model and target alike.
        views: [K] int64: "image_rays" draws a random one of these images instead; None for all, in turn.
        candidates: [K] int64 sorted; "shuffled_rays" and "random_rays" draw from these pixels only. A pixel's number
            counts all pixels of the training images in order, row by row.
        colors: "all", or "object": a pixel's colour counts as far as it shows the object; what lies behind is drawn
            too, for terms of the method's own.
    """

    kind: Literal["images", "shuffled_rays", "random_rays", "image_rays"] = "images"
    images: int = 1
    rays: int = 0
    crop: float = 1.0
    background: Literal["scene", "random"] = "scene"
    candidates: Tensor | None = None
    views: Tensor | None = None
    colors: Literal["all", "object"] = "all"


@dataclass(frozen=True)
class SceneGeometry:
    """What a model may know of the scene before training, in the scene's own frame and units.

    Attributes:
        cameras: the training cameras.
        points: [M, 3] float32 initial points, or None.
        colors: [M, 3] float32 in [0, 1], or None.
        near_far: depth range that the scene's files state, along camera z, or None.
        bounds: [2, 3] lowest and highest corner of a box that the files state, or None.
        has_alpha: whether images are transparent where the scene is empty.
        cut_out: whether images show an object with nothing around it, transparent there or of one colour.
        object_masks: whether images have masks of the object, outside of which pixels count all the same.
        sphere: [4] float32, centre and radius of a sphere that the files state around what is wanted, or None.
    """

    cameras: Cameras
    points: Tensor | None
    colors: Tensor | None
    near_far: tuple[float, float] | None = None
    bounds: Tensor | None = None
    has_alpha: bool = False
    sphere: Tensor | None = None
    cut_out: bool = False
    object_masks: bool = False

    @property
    def extent(self) -> float:
        """1.1 times the largest distance of a training camera from their mean: the `scene_scale` of 3DGS."""
        return max(1.1 * self.camera_spread, 1e-6)

    @property
    def camera_spread(self) -> float:
        """The largest distance of a training camera from their mean; 0 where they differ by rounding alone."""
        from torch.linalg import inv, norm

        centers = inv(self.cameras.viewmats.double())[:, :3, 3]
        spread = float(norm(centers - centers.mean(0), dim=-1).max())
        return spread if spread > 1e-6 * float(norm(centers, dim=-1).max()) else 0.0


class Recipe(abc.ABC):
    """Trains one model. Built once per run as `Recipe(config, geometry)`, then driven by the trainer in this order:

        sampling -> model.render -> photometric (+ classification, + model.regularizers) -> before_backward -> backward
        -> after_backward -> every optimiser's step and zero_grad -> after_step

    With several processes, `photometric` must be a mean over the pixels that count, regularisers means over rays
    or depend on the parameters alone; `nfc_splat.rendering.sharing` is for the rest. Gradients have been added up over
    all processes when `after_backward` is called.

    Steps count from 1. `state_dict` holds whatever besides the model and the optimisers must survive a resume.
    """

    @abc.abstractmethod
    def optimizers(self, model: SceneModel) -> dict[str, Optimizer]:
        """The optimisers by name, over the model's current parameters."""

    @abc.abstractmethod
    def photometric(self, rendering: Rendering, batch: Batch) -> Tensor:
        """The base loss, a scalar."""

    def stage(self, step: int) -> str:
        """What the part of the training is called that the step to come, `step`, belongs to; "" where all are alike."""
        return ""

    def sampling(self, step: int) -> Sampling:
        """What to train on at `step`. One whole image by default."""
        return Sampling()

    def before_backward(self, rendering: Rendering, losses: Mapping[str, Tensor], step: int) -> None:
        """Called with the named, weighted loss terms ("photometric", "classification", regularisers)."""

    def after_backward(self, model: SceneModel, step: int) -> None:
        """Called when gradients are there and no optimiser has moved yet."""

    def after_step(
        self, model: SceneModel, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """Change the model's structure and the learning rates; returns figures worth logging. May replace parameters
        inside `model` and inside the optimisers' groups."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
