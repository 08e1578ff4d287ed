"""Several processes that train one model together, as torchrun starts them:

    torchrun --nproc-per-node 2 -m nfc_splat.train SCENE ...

`joined` finds out whether torchrun did, from the variables that it sets. `Group` says which of the processes this is
and lets them agree. The first one (rank 0) alone prints and writes. Without torchrun there is one process, no process
group is made, and everything here answers at once.
"""

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from nfc_splat.errors import UserError, tell
from nfc_splat.rendering.kernels.threads import available_cores
from nfc_splat.rendering.sharing import WHOLE, Share, reduced

# What torchrun sets. The last two are often set for other reasons, and say nothing alone.
OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
VARIABLES = (*OWN, "MASTER_ADDR", "MASTER_PORT")
HOW = "start with torchrun --nproc-per-node N -m nfc_splat.train SCENE ..."
TOLD, PATIENCE = "nfc_splat/told", timedelta(seconds=10)  # the store's word that the error is printed


class FailedElsewhere(UserError):
    """One of the processes has failed and says why; this one has only to end, with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("one of the processes has failed, its message says why")
        self.exit_code = exit_code


class Apart(UserError):
    """The processes do not hold the same model any more."""


@dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes:
        rank: which of them this is, from 0.
        size: how many there are.
        local_rank, local_size: the same among those of this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def rays(self, count: int) -> Share:
        """This process's share of a batch of `count` rays: neighbours, as many as the others' give or take one."""
        if self.size == 1:
            return WHOLE
        if count < self.size:
            return Share(0, count, count, self.size, 1 / self.size, 1 / self.size)
        first, stop = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        weight = (stop - first) / count
        return Share(first, stop, count, self.size, weight, weight)

    def images(self, count: int) -> Share:
        """This process's share where each draws `count` images of its own; the loss is the mean over all of them."""
        if self.size == 1:
            return WHOLE
        first, weight = self.rank * count, 1 / self.size
        return Share(first, first + count, self.size * count, self.size, weight, weight)

    def use(self, device: str) -> None:
        """Let "cuda" be this process's own card.

        Raises:
            UserError: fewer cards than processes on this host.
        """
        if device != "cuda" or self.size == 1:
            return
        cards = torch.cuda.device_count()
        if self.local_size > cards:
            raise UserError(
                f"{self.local_size} processes on this host and {cards} CUDA cards: every process needs a card of its "
                f"own; start at most {cards} (torchrun --nproc-per-node {cards}), or train with --device cpu"
            )
        torch.cuda.set_device(self.local_rank)

    def most(self, *values: int) -> tuple[int, ...]:
        """The largest that any process has of each value, for all to do the same."""
        if self.size == 1:
            return tuple(map(int, values))
        return tuple(reduced(torch.tensor(values, dtype=torch.int64), "max").tolist())

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for the others at the end of the block. If one of them fails there with a `UserError`, all do.

        Raises:
            UserError: from the block, in the first of the processes that have one.
            FailedElsewhere: in the others.
        """
        if self.size == 1:
            yield
            return
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        # Of the failing ones the lowest rank, as "most" sees it, with its exit code.
        code = 0 if failure is None else (self.size - self.rank) * 256 + failure.exit_code
        (worst,) = self.most(code)
        if not worst:
            return
        if failure is not None and worst == code:
            raise failure
        raise FailedElsewhere(worst % 256) from failure

    def require_same(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Make sure that all processes hold the same bits.

        Args:
            tensors: model, recipe, samplers, generators, whatever decides how training goes on.
            step: for the message.

        Raises:
            Apart: they do not.
        """
        if self.size == 1:
            return
        sums = [(name, tuple(tensor.shape), _checksum(tensor)) for name, tensor in sorted(tensors.items())]
        fingerprint = zlib.crc32(repr(sums).encode())
        low, high = self.most(-fingerprint, fingerprint)
        if -low != high:
            raise Apart(
                f"step {step}: the processes do not hold the same model any more; they need equal hardware and "
                "libraries, and a method that remembers what it drew must share that (nfc_splat.rendering.sharing)"
            )

    def end(self) -> None:
        """Wait until all have come here, then leave the process group."""
        if self.size == 1:
            return
        from torch import distributed

        self.most(0)
        distributed.destroy_process_group()


ALONE = Group()


@contextmanager
def joined() -> Iterator[Group]:
    """The processes that torchrun has started, joined in a process group until the end of the block; `ALONE` without
    torchrun, or where it has started only one.

    Raises:
        UserError: some of torchrun's variables are there and others are not, or say what cannot be; the others cannot
            be reached; whatever the block raises where there is one process.
        FailedElsewhere: instead of the block's error, which the first of several processes to have one has told.
    """
    group = _announced(os.environ)
    if group.size == 1:
        yield ALONE
        return
    from torch import distributed

    # Small agreements stay on the host: nobody has to wait for a card.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(distributed.rendezvous("env://"))
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(f"the other processes cannot be reached at {where} ({error}); {HOW}") from error
    try:
        yield group
    except UserError as error:
        # What one cannot do the others cannot either, or not without it: one message is enough. torchrun ends all as
        # soon as one has left, so nobody leaves before it is told.
        if not isinstance(error, FailedElsewhere) and store.add("nfc_splat/failed", 1) == 1:
            tell(error)
            store.set(TOLD, "")
        with suppress(RuntimeError):  # the store's host is gone, or nobody has told within the time
            store.wait([TOLD], PATIENCE)
        raise FailedElsewhere(error.exit_code) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def cores_of_process() -> int:
    """How many of this host's cores are for each of the processes that torchrun has started on it, at least 1."""
    return max(1, available_cores() // _announced(os.environ).local_size)


def _announced(environment: Mapping[str, str]) -> Group:
    """The group that torchrun's variables speak of."""
    if not any(name in environment for name in OWN):
        return ALONE
    if missing := [name for name in VARIABLES if name not in environment]:
        present = ", ".join(name for name in VARIABLES if name in environment)
        raise UserError(
            f"the environment says that this is one of several processes ({present}), but {', '.join(missing)} is not "
            f"set: {HOW}, or unset {present}"
        )
    rank, size, local_rank, local_size = (_number(name, environment[name]) for name in OWN)
    if not (rank < size and local_rank < local_size <= size):
        values = ", ".join(f"{name}={environment[name]}" for name in OWN)
        raise UserError(
            f"{values}: expected ranks below their sizes, and a WORLD_SIZE of at least LOCAL_WORLD_SIZE; {HOW}"
        )
    return Group(rank, size, local_rank, local_size)


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name}={text!r}: expected a whole number of at least 0; {HOW}")
    return int(text)


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
