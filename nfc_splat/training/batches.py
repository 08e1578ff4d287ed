"""Training views as batches on the training device: whole images, or pixels and their rays."""

from dataclasses import replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from nfc_splat.data import Split
from nfc_splat.errors import UserError
from nfc_splat.fields.recipe import Batch, Sampling
from nfc_splat.rendering.sharing import Share
from nfc_splat.training.pixels import Pixels
from nfc_splat.training.processes import ALONE, Group
from nfc_splat.training.sampling import Sampler

GPU_SHARE = 0.25  # of the GPU memory that is free at the start
HOST_BYTES = 2**29


class Batches:
    """The training views of a scene as `Batch`es.

    Images kept by the split are 8-bit and on the host. Once used whole, an image stays composited and on the training
    device, as far as `GPU_SHARE` of a GPU's free memory or `HOST_BYTES` go: on a GPU preparing one takes longer than
    drawing it, on a CPU still a tenth of a small step. Pixels for rays are gathered on the host from one 8-bit list.

    Of several processes each draws the same numbers and makes a batch of its share of them.
    """

    def __init__(self, split: Split, background: Tensor, device: str, group: Group = ALONE) -> None:
        self._split = split
        self._cameras = split.cameras.to(device)
        self._background = background.to(device)
        self._device, self._group = device, group
        self._candidates: tuple[Tensor, Tensor] | None = None
        self._kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._room = GPU_SHARE * torch.cuda.mem_get_info()[0] if device == "cuda" else float(HOST_BYTES)

    def draw(self, sampling: Sampling, sampler: Sampler) -> Batch:
        """The next batch: what `sampling` asks for, drawn by `sampler`."""
        if sampling.kind == "images":
            share = self._group.images(sampling.images)
            drawn = sampler.images.draw(sampling.images * self._group.size)[share.chosen]
            return replace(self.load(drawn.tolist()), share=share)
        numbers = self._draw_pixels(sampling, sampler)
        background = self._background
        if sampling.background == "random":
            background = torch.rand(len(numbers), 3, generator=sampler.generator).to(self._device)
        share = self._group.rays(len(numbers))
        own = background[share.chosen] if background.ndim > 1 else background
        batch = self.load_pixels(numbers[share.chosen], own, sampling.colors)
        return replace(batch, share=self._weighted(share, numbers, sampling.colors))

    def load(self, indices: list[int]) -> Batch:
        """The images `indices` as one batch; a `UserError` when their sizes differ."""
        views = [self._view(index) for index in indices]
        sizes = {tuple(target.shape[:2]) for target, _ in views}
        if len(sizes) > 1:
            raise UserError(f"a batch of several images needs one size, found {sorted(sizes)}; train on one at a time")
        targets = torch.stack([target for target, _ in views])
        masks = None
        if any(mask is not None for _, mask in views):
            masks = torch.stack([torch.ones_like(target[..., 0]) if mask is None else mask for target, mask in views])
        return Batch(self._cameras[indices], None, targets, masks, self._background)

    def load_pixels(self, numbers: Tensor, background: Tensor, colors: Literal["all", "object"] = "all") -> Batch:
        """The pixels `numbers` [P] over `background` [3] or [P, 3], which is on the training device."""
        pixels = self._pixels
        weights, foreground = pixels.weights_of(numbers, colors), pixels.foreground_of(numbers)
        return Batch(
            self._cameras,
            pixels.places(numbers).to(self._device),
            pixels.targets(numbers, background.cpu()).to(self._device),
            None if weights is None else weights.to(self._device),
            background,
            None if foreground is None else foreground.to(self._device),
        )

    def _weighted(self, share: Share, numbers: Tensor, colors: Literal["all", "object"]) -> Share:
        """`share` of the pixels `numbers` [P], with what its pixels count by their masks' weights."""
        if share.processes == 1 or (weights := self._pixels.weights_of(numbers, colors)) is None:
            return share
        counted = float(weights[share.chosen].double().sum() / weights.double().sum().clamp_min(1e-30))
        return replace(share, counted=counted * share.weight * share.times)

    @cached_property
    def _pixels(self) -> Pixels:
        return Pixels(self._split)

    def _draw_pixels(self, sampling: Sampling, sampler: Sampler) -> Tensor:
        """Numbers [P] of the pixels that `sampling` asks for."""
        pixels = self._pixels
        if sampling.kind == "image_rays":
            return self._draw_from_image(sampling, sampler)
        usable = pixels.counted if sampling.candidates is None else self._counting(sampling.candidates)
        count = len(pixels) if usable is None else len(usable)
        if count == 0:
            raise UserError("no pixel is left to train on: the masks, or what the method excludes, cover all of them")
        if sampling.kind == "shuffled_rays":
            drawn = sampler.rays.draw(sampling.rays, among=count)
        else:
            drawn = torch.randint(count, (sampling.rays,), generator=sampler.generator)
        return drawn if usable is None else usable[drawn]

    def _counting(self, candidates: Tensor) -> Tensor:
        """The candidates whose pixels count; found once for as long as they are the same."""
        if self._candidates is None or self._candidates[0] is not candidates:
            self._candidates = candidates, self._pixels.counting(candidates)
        return self._candidates[1]

    def _draw_from_image(self, sampling: Sampling, sampler: Sampler) -> Tensor:
        """Different pixels of the central part of the next image that has any which count."""
        pixels = self._pixels
        for _ in range(len(self._split)):
            index = self._draw_view(sampling, sampler)
            width, height = pixels.sizes[index].tolist()
            columns, rows = (max(1, round(side * sampling.crop)) for side in (width, height))
            left, top = (width - columns) // 2, (height - rows) // 2
            grid = torch.arange(rows)[:, None] * width + torch.arange(columns) + top * width + left
            numbers = pixels.first[index] + grid.reshape(-1)
            numbers = pixels.counting(numbers)
            if len(numbers):
                return numbers[torch.randperm(len(numbers), generator=sampler.generator)[: sampling.rays]]
        raise UserError("no pixel is left to train on: the masks cover the middle of every image")

    def _draw_view(self, sampling: Sampling, sampler: Sampler) -> int:
        if sampling.views is None:
            return int(sampler.images.draw(1))
        return int(sampling.views[torch.randint(len(sampling.views), (1,), generator=sampler.generator)])

    def _view(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Target [H, W, 3] and weights [H, W] or None, on the device."""
        if index in self._kept:
            return self._kept[index]
        target = self._split.target(index, self._background.cpu()).to(self._device)
        mask = self._split.mask(index)
        view = target, None if mask is None else mask.to(target)
        size = sum(tensor.nbytes for tensor in view if tensor is not None)
        if size <= self._room:
            self._room -= size
            self._kept[index] = view
        return view
