"""A model rebuilt from its tensors, by a configuration that may ask for anything: it takes memory as they justify it.

Networks and tables get their sizes from the configuration before any tensor is looked at, and a file of a kilobyte may
state a width of a million.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.rendering import SceneModel
from nfc_splat.training.checkpoint import Checkpoint
from nfc_splat.training.config import TrainConfig

FACTOR = 2  # what a model is built from may be thrown away once
SPARE = 2**26  # numbers that may be asked for besides, 256 MB of float32
OVERHEAD = 2**10  # numbers that every tensor counts for besides its own: the object around it takes as much


class OutOfProportion(ValueError):
    """A configuration asks for a model much larger than the tensors that there are for it."""


def rebuilt(config: TrainConfig, tensors: Mapping[str, Tensor]) -> SceneModel:
    """The model of `config` on the CPU with these tensors, a `state_dict`.

    Raises:
        OutOfProportion: before memory is taken for it.
        KeyError, ValueError, RuntimeError: whatever the method says of tensors that are missing or do not fit.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    with _Allowance(held):
        return find_method(config.method).load().Model.from_tensors(config.model, tensors)


def rebuilt_from(checkpoint: Checkpoint, config: TrainConfig) -> SceneModel:
    """The model of `config` on the CPU as a checkpoint has it; a `UserError` where it holds far less than that asks
    for."""
    try:
        return rebuilt(config, checkpoint.section("model"))
    except (OutOfProportion, OverflowError) as error:
        raise UserError(f"{checkpoint.path}: {error}") from error


class _Allowance(TorchDispatchMode):
    """While this is entered, tensors that are made from nothing may have so many numbers in all."""

    def __init__(self, held: int) -> None:
        super().__init__()
        self._held, self._left = held, FACTOR * held + SPARE

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if any(argument.name == "device" for argument in func._schema.arguments):
            self._left -= OVERHEAD + self._numbers(func, args, kwargs)
            if self._left < 0:
                raise OutOfProportion(self._said())
        return func(*args, **kwargs)

    def _numbers(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> int:
        """Of the tensor that `func` would make, which takes no memory on the device "meta"."""
        try:
            return func(*args, **kwargs | {"device": "meta"}).numel()
        except RuntimeError as error:  # more bytes than there are addresses
            raise OutOfProportion(self._said()) from error

    def _said(self) -> str:
        return f"the configuration asks for a model much larger than the {self._held:,} numbers that are there"
