"""What belongs to this process of a batch that several processes train on together.

All processes hold the same model and draw the same batch; each draws its `Share` of it and multiplies its loss terms so
that those of all processes add up to the terms of the whole batch. So do the gradients, once they are added up. A loss
that is a mean over rays, or that depends on the parameters alone, needs nothing for that. A method uses this module
where it

- draws random numbers for every ray: `rand`, `randn` give the rows that one process alone would have drawn for them;
- adds up over rays, or takes a mean over something else than rays: `part_of_sum`, with `total`;
- remembers something of what was drawn, or decides by it: `total`, `add_up`.

With one process, and outside of a training step, all of them do nothing, and no process group is asked.
Symbols: R rays or images of the whole batch.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nfc_splat.errors import UserError


class ProcessLost(UserError):
    """Another process has ended or does not answer: nothing can be done together any more."""


@dataclass(frozen=True)
class Share:
    """The rows `first` to `stop` (not included) of a batch's R `rows`.

    A batch with fewer rays than there are processes is drawn whole by each of them.

    Attributes:
        processes: how many share the batch.
        weight: what a mean over these rays counts in that over all; the weights of all processes add up to 1.
        counted: the same for means over the pixels that count, where a mask gives them different weights.
    """

    first: int = 0
    stop: int = 0
    rows: int = 0
    processes: int = 1
    weight: float = 1.0
    counted: float = 1.0

    @property
    def chosen(self) -> slice:
        """Of what has a row for each ray or image of the batch, this process's rows."""
        return slice(self.first, self.stop) if self.processes > 1 else slice(None)

    @property
    def times(self) -> float:
        """How many times as large the batch is as the share."""
        return self.rows / (self.stop - self.first) if self.processes > 1 else 1.0

    def of_rays(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms that are means over rays, as this process's parts of those of the whole batch."""
        return self._parts(terms, self.weight)

    def of_pixels(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms that are means over the pixels that count, as parts of those of the whole batch."""
        return self._parts(terms, self.counted)

    def _parts(self, terms: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
        return dict(terms) if self.processes == 1 else {name: weight * value for name, value in terms.items()}


WHOLE = Share()
_current = WHOLE


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """While this is entered, what is drawn is `share`."""
    global _current
    before, _current = _current, share
    try:
        yield
    finally:
        _current = before


def rand(*shape: int, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), of the device and dtype of `like`, for a shape whose first size is that of the share's
    rays or a multiple of it. Every process draws those of the whole batch, so that all generators stay alike."""
    return _rows_of(torch.rand, shape, like)


def randn(*shape: int, like: Tensor) -> Tensor:
    """Standard normal numbers; the rest as `rand`."""
    return _rows_of(torch.randn, shape, like)


def _rows_of(draw, shape: tuple[int, ...], like: Tensor) -> Tensor:
    options = {"device": like.device, "dtype": like.dtype}
    if _current.processes == 1:
        return draw(shape, **options)
    share = _current
    each = shape[0] // (share.stop - share.first)
    whole = draw((each * share.rows, *shape[1:]), **options)
    return whole[each * share.first : each * share.stop]


def part_of_sum(value: Tensor) -> Tensor:
    """A sum over what belongs to the share's rays, as a loss term that counts like a mean over rays."""
    return value if _current.processes == 1 else value * _current.times


def total(count: int) -> int:
    """How many there are in the whole batch, of which the share has `count`. Every process must ask."""
    if _current.processes == 1:
        return count
    # Where every process has the whole batch, each counts for its part of it.
    own = torch.tensor(count * _current.weight * _current.times, dtype=torch.float64)
    return round(float(add_up(own)))


def add_up(tensor: Tensor) -> Tensor:
    """The sum of the processes' `tensor`, in its place, the same bits everywhere. Every process must ask.

    Raises:
        ProcessLost: another process has ended.
    """
    return tensor if _current.processes == 1 else reduced(tensor, "sum")


def reduced(tensor: Tensor, how: str) -> Tensor:
    """The processes' `tensor`, contiguous and without a gradient, combined in its place: "sum", "max" or "min".

    Raises:
        ProcessLost: another process has ended.
    """
    from torch import distributed

    operation = {"sum": distributed.ReduceOp.SUM, "max": distributed.ReduceOp.MAX, "min": distributed.ReduceOp.MIN}
    try:
        distributed.all_reduce(tensor, op=operation[how])
    except RuntimeError as error:
        raise ProcessLost(
            f"another process has ended or does not answer ({error}); its own message says why"
        ) from error
    return tensor
