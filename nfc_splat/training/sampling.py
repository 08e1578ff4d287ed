"""Which images and pixels come next: every draw from generators of its own, so that a resumed run draws the same."""

import torch
from torch import Tensor

from nfc_splat.errors import UserError


class EpochSampler:
    """Every item once per epoch, in an order drawn anew each time.

    Only the generator's state before the current epoch and the place in it are saved: an order of a hundred million
    pixels would not fit into a checkpoint.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._begin(count)

    def _begin(self, count: int) -> None:
        self._before = self._generator.get_state()
        dtype = torch.int32 if count < 2**31 else torch.int64
        self._order = torch.randperm(count, generator=self._generator, dtype=dtype)
        self._cursor = 0

    def draw(self, count: int, among: int | None = None) -> Tensor:
        """The next `count` items [count] int64; an epoch's end may lie among them. `among` another number of items than
        before, a new epoch begins."""
        if among is not None and among != len(self._order):
            self._begin(among)
        parts = []
        while count > 0:
            if self._cursor == len(self._order):
                self._begin(len(self._order))
            part = self._order[self._cursor : self._cursor + count]
            self._cursor += len(part)
            count -= len(part)
            parts.append(part)
        return torch.cat(parts).long() if parts else torch.zeros(0, dtype=torch.int64)

    def state_dict(self) -> dict[str, Tensor]:
        facts = torch.tensor([len(self._order), self._cursor])
        return {"epoch": facts, "generator": self._before}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])
        count, cursor = state["epoch"].tolist()
        self._begin(count)
        self._cursor = cursor


class Sampler:
    """All that is random in the choice of training data.

    Attributes:
        images: the order of the training images.
        rays: the order of their pixels; begins when pixels are first asked for.
        generator: for everything that is drawn independently.
    """

    def __init__(self, images: int, seed: int) -> None:
        self._count = images
        self.images = EpochSampler(images, seed)
        self.rays = EpochSampler(0, seed)
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"images_{name}": value for name, value in self.images.state_dict().items()}
        state |= {f"rays_{name}": value for name, value in self.rays.state_dict().items()}
        return state | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        count = int(state["images_epoch"][0])
        if count != self._count:
            raise UserError(f"the checkpoint is of {count} training images, here are {self._count}")
        for name in ("images", "rays"):
            sampler: EpochSampler = getattr(self, name)
            sampler.load_state_dict({key: state[f"{name}_{key}"] for key in ("epoch", "generator")})
        self.generator.set_state(state["generator"])
