"""LPIPS through torchmetrics, which needs torchvision and backbone weights that are downloaded once.

Either may be absent or broken (a torchvision built for another torch raises RuntimeError on import, and then
`import torchmetrics` does too). Then the network is None and the reason is kept: it stands in every metric file.
Nothing is downloaded unless asked for. Images are [H, W, 3] in [0, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# torchvision's name for a backbone, its size on disk, and the smallest side that its pooling layers leave a pixel of.
_BACKBONES = {"alex": ("AlexNet", 233, 31), "vgg": ("VGG16", 528, 16)}


class Lpips:
    """One backbone, ready to compare images on `device` in float32.

    Args:
        net: "alex" or "vgg".
        signed: map images to [-1, 1] first, as LPIPS was trained; otherwise feed them as they are.
        device: where to run.
    """

    def __init__(self, net: str, *, signed: bool, device: torch.device | str):
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.net, self.device = net, device
        self.metric = LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=signed).to(device)

    @torch.no_grad()
    def __call__(self, pred: Tensor, target: Tensor) -> float:
        """Distance of two images; a ValueError says so when they are too small for the backbone."""
        smallest = _BACKBONES[self.net][2]
        height, width = pred.shape[:2]
        if min(height, width) < smallest:
            raise ValueError(f"{width}x{height} is too small for the {self.net} network, which needs {smallest} pixels")
        self.metric.reset()
        self.metric.update(*(image.movedim(-1, 0)[None].float().to(self.device) for image in (pred, target)))
        return float(self.metric.compute())


@dataclass(frozen=True)
class Networks:
    """What could be had of a protocol's networks.

    Attributes:
        ready: by name, in the protocol's order.
        missing: by name, why the others are not there, in one line that ends with the remedy.
    """

    ready: Mapping[str, Lpips]
    missing: Mapping[str, str]


def load_networks(
    nets: tuple[str, ...], *, signed: bool, device: torch.device | str, download: bool = False
) -> Networks:
    """Build the backbones `nets`; whatever prevents one is reported in `missing`, never raised."""
    ready: dict[str, Lpips] = {}
    missing: dict[str, str] = {}
    for net in nets:
        reason = obstacle(net, download)
        if reason is None:
            try:
                ready[net] = Lpips(net, signed=signed, device=device)
            except Exception as error:
                # The build runs third-party code over a downloaded file: whatever it raises means "no LPIPS".
                reason = f"building the {net} network failed ({_one_line(error)})"
        if reason is not None:
            missing[net] = reason
    return Networks(ready, missing)


def weights_path(net: str) -> Path:
    """Where torch keeps the weights of `net` once they were downloaded. Imports torchvision."""
    from torchvision import models

    url = getattr(models, f"{_BACKBONES[net][0]}_Weights").DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def obstacle(net: str, download: bool = False) -> str | None:
    """Why the network `net` cannot be built here, or None; absent weights are no obstacle if they may be downloaded."""
    try:
        path = weights_path(net)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed; install the torchvision that matches torch {torch.__version__}"
    except Exception as error:
        # A torchvision built for another torch fails in many ways (RuntimeError, OSError, AttributeError).
        return f"torchvision does not load beside torch {torch.__version__} ({_one_line(error)}); install its match"
    if not download and not path.is_file():
        size = _BACKBONES[net][1]
        return f"the {net} weights ({size} MB) are not at {path}; pass --download-lpips once to fetch them"
    return None


def _one_line(error: Exception) -> str:
    text: Any = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
