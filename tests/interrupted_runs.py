"""Runs cut short, and whether two runs ended alike: for the resume tests of every method."""

from pathlib import Path

import pytest
import torch

from nfc_splat.train import train
from nfc_splat.training.checkpoint import Checkpoint, newest_checkpoint
from nfc_splat.training.config import TrainConfig
from nfc_splat.training.trainer import Trainer


def newest(folder: Path) -> Checkpoint:
    """The last checkpoint of the run in `folder`."""
    return newest_checkpoint(folder / "checkpoints")


def crash_at(monkeypatch, step: int, config: TrainConfig) -> None:
    """Train, and leave the loop by force before `step` is taken; what the process draws then must not matter."""
    take = Trainer.step

    def crash(self):
        if self.state.step + 1 == step:
            raise KeyboardInterrupt
        return take(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", crash)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    torch.rand(17)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    """Two checkpoints hold the same bits, of model, optimisers, recipe, sampler and random number generator."""
    assert one.header.step == other.header.step
    assert one.tensors.keys() == other.tensors.keys()
    for name, value in one.tensors.items():
        assert torch.equal(value, other.tensors[name]), name
    assert one.header.optimizers == other.header.optimizers
    assert one.header.losses == other.header.losses
