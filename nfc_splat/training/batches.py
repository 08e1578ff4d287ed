"""Training views as batches on the training device."""

import torch
from torch import Tensor

from nfc_splat.data import Split
from nfc_splat.errors import UserError
from nfc_splat.fields.recipe import Batch

GPU_SHARE = 0.25  # of the GPU memory that is free at the start
HOST_BYTES = 2**29


class Batches:
    """Whole images of a split as `Batch`es.

    Images kept by the split are 8-bit and on the host. Once used, an image stays composited and on the training device,
    as far as `GPU_SHARE` of a GPU's free memory or `HOST_BYTES` go: on a GPU preparing one takes longer than drawing
    it, on a CPU still a tenth of a small step.
    """

    def __init__(self, split: Split, background: Tensor, device: str) -> None:
        self._split = split
        self._cameras = split.cameras.to(device)
        self._background = background.to(device)
        self._device = device
        self._kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._room = GPU_SHARE * torch.cuda.mem_get_info()[0] if device == "cuda" else float(HOST_BYTES)

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
