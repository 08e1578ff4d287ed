"""A scene in closed form for the tests of evaluation and rendering: a coloured disc that faces the camera."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nfc_splat.cameras import Cameras
from nfc_splat.rendering import Rendering, SceneModel


class Disc(SceneModel):
    """Coloured by the viewing direction, `brightness` times; opaque within half a unit of the optical axis."""

    request: ClassVar[Literal["image", "rays"]] = "image"

    def __init__(self, brightness: float = 1.0):
        super().__init__()
        self.brightness = nn.Parameter(torch.tensor(brightness))
        self.dropout = nn.Dropout(0.9)  # spoils the picture unless the model is in eval mode

    def render(self, cameras: Cameras, pixels: Tensor | None = None, *, background: Tensor) -> Rendering:
        directions = cameras.rays(pixels).directions
        alpha = (directions[..., :2].norm(dim=-1, keepdim=True) < 0.5).to(directions)
        color = self.dropout(self.brightness * (0.5 + 0.5 * torch.sin(4 * directions)))
        return Rendering(color * alpha + (1 - alpha) * background, alpha, 2.5 * alpha)

    @classmethod
    def from_tensors(cls, config: Any, tensors: Mapping[str, Tensor]) -> "Disc":
        return cls(float(tensors["brightness"]))


def cameras(count: int, width: int = 40, height: int = 30) -> Cameras:
    """`count` pinhole cameras, moved sideways a little."""
    viewmats = torch.eye(4).repeat(count, 1, 1)
    viewmats[:, 0, 3] = torch.linspace(-0.2, 0.2, count)
    K = torch.tensor([[40.0, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]])
    return Cameras.pinhole(viewmats, K, width, height)


class ToySplit:
    """Photographs of `Disc`, the later the noisier."""

    def __init__(self, count: int = 5, *, noise: float = 0.02, masked: bool = False, size: tuple[int, int] = (40, 30)):
        self.names = [f"images/view {i}.png" for i in range(count)]
        self.cameras = cameras(count, *size)
        self.noise, self.masked = noise, masked

    def __len__(self) -> int:
        return len(self.names)

    def target(self, index: int, background: Tensor) -> Tensor:
        clean = Disc().eval().render(self.cameras[index], background=background).color[0].detach()
        generator = torch.Generator().manual_seed(index)
        return (clean + self.noise * index * torch.randn(clean.shape, generator=generator)).clamp(0, 1)

    def mask(self, index: int) -> Tensor | None:
        if not self.masked:
            return None
        mask = torch.zeros(self.cameras.height, self.cameras.width)
        mask[5:-5, 5:-5] = 1
        return mask
