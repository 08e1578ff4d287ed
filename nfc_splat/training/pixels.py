"""All pixels of a split as one list, for rays."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from nfc_splat.data import Split


class Pixels:
    """The N pixels of a split's images in order, row by row, as stored (8 bits per channel).

    Attributes:
        sizes: [C, 2] int64 (width, height) of each image.
        first: [C + 1] int64, number of each image's first pixel; the last entry is N.
        values: [N, 3 | 4] uint8, the fourth channel straight alpha, opaque where an image has none.
        weights: [N] uint8, 255 = counts, 0 = ignored; None without masks.
        foreground: [N] uint8, 255 = shows the object, 0 = what lies behind it; None without masks that say so.
        counted: [K] int64, the numbers of the pixels whose weight is not 0; None when that is all of them.
    """

    def __init__(self, split: Split) -> None:
        self.sizes = split.cameras.sizes.cpu()
        self.first = torch.cat([torch.zeros(1, dtype=torch.int64), self.sizes.prod(1).cumsum(0)])
        channels = max(split.image(index).shape[2] for index in range(len(split)))
        self.values = torch.full((len(self), channels), 255, dtype=torch.uint8)
        self.weights: Tensor | None = None
        self.foreground: Tensor | None = None
        for index, (start, stop) in enumerate(pairwise(self.first.tolist())):
            image, mask = split.image(index), split.mask(index)
            self.values[start:stop, : image.shape[2]] = image.reshape(-1, image.shape[2])
            if mask is not None:
                if self.weights is None:
                    self.weights = torch.full((len(self),), 255, dtype=torch.uint8)
                self.weights[start:stop] = (255 * mask).round().to(torch.uint8).reshape(-1)
            if (shown := split.foreground(index)) is not None:
                if self.foreground is None:
                    self.foreground = torch.full((len(self),), 255, dtype=torch.uint8)
                self.foreground[start:stop] = (255 * shown).round().to(torch.uint8).reshape(-1)
        self.counted = None if self.weights is None else self.weights.nonzero()[:, 0]

    def __len__(self) -> int:
        return int(self.first[-1])

    def counting(self, numbers: Tensor) -> Tensor:
        """Those of `numbers` [K] whose pixels count."""
        return numbers if self.weights is None else numbers[self.weights[numbers] > 0]

    def places(self, numbers: Tensor) -> Tensor:
        """Numbers [P] as (camera, row, column) [P, 3]."""
        camera = torch.searchsorted(self.first, numbers, right=True) - 1
        within, width = numbers - self.first[camera], self.sizes[camera, 0]
        return torch.stack([camera, within // width, within % width], -1)

    def numbers(self, places: Tensor) -> Tensor:
        """(camera, row, column) [P, 3] as numbers [P]."""
        camera, row, column = places.unbind(-1)
        return self.first[camera] + row * self.sizes[camera, 0] + column

    def targets(self, numbers: Tensor, background: Tensor) -> Tensor:
        """[P, 3] in [0, 1], composited over `background` [3] or [P, 3]."""
        values = self.values[numbers].float() / 255
        if values.shape[1] == 3:
            return values
        alpha = values[:, 3:]
        return values[:, :3] * alpha + background * (1 - alpha)

    def weights_of(self, numbers: Tensor, colors: Literal["all", "object"] = "all") -> Tensor | None:
        """[P] in [0, 1], or None when every pixel counts; with "object", those behind the object do not."""
        weights = None if self.weights is None else self.weights[numbers].float() / 255
        shown = self.foreground_of(numbers) if colors == "object" else None
        return weights if shown is None else shown if weights is None else weights * shown

    def foreground_of(self, numbers: Tensor) -> Tensor | None:
        """[P] in [0, 1], from the masks or else the transparency of the images; None where a scene has neither."""
        if self.foreground is not None:
            return self.foreground[numbers].float() / 255
        return self.values[numbers, 3].float() / 255 if self.values.shape[1] == 4 else None
