"""Everything that changes while training, and its way into a checkpoint and back, bit for bit."""

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.fields.recipe import Recipe, SceneGeometry
from nfc_splat.rendering import SceneModel
from nfc_splat.training.checkpoint import SCHEMA, Checkpoint, Header, differences, join_tensors, split_tensors
from nfc_splat.training.config import TrainConfig, config_from_plain, config_hash, matching
from nfc_splat.training.memory import PeakMemory
from nfc_splat.training.plain import to_plain
from nfc_splat.training.rebuilding import rebuilt_from
from nfc_splat.training.sampling import Sampler

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """A model, how it is trained, and how far that has come.

    Attributes:
        step: optimiser steps done.
        learning_rate_scale: multiplies every learning rate; below 1 after a roll-back.
        skipped: steps that were tried again because something was not finite.
        seconds: spent training.
        losses: the named terms when last logged.
        memory: the most that the processes took that trained it before this one.
    """

    model: SceneModel
    recipe: Recipe
    optimizers: dict[str, Optimizer]
    sampler: Sampler
    step: int = 0
    learning_rate_scale: float = 1.0
    skipped: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    memory: PeakMemory = field(default_factory=PeakMemory)


def fresh_state(config: TrainConfig, geometry: SceneGeometry) -> TrainingState:
    """The state before the first step, on the config's device; everything random comes from the config's seed."""
    torch.manual_seed(config.seed)
    module = find_method(config.method).load()
    model = module.Model.initialise(config.model, geometry).to(config.device)
    return _assemble(config, geometry, model)


def restored_state(
    checkpoint: Checkpoint, config: TrainConfig, geometry: SceneGeometry, scene_hash: str
) -> TrainingState:
    """The state that `checkpoint` holds; the random number generators continue where they were.

    Args:
        checkpoint: verified.
        config: of the run that continues.
        geometry: of the scene at hand.
        scene_hash: of the scene at hand.

    Raises:
        UserError: it belongs to another method, scene or configuration; the first differences are named.
    """
    header = checkpoint.header
    recorded = config_from_plain(header.config, str(checkpoint.path))
    refuse_differences(config, recorded, f"{checkpoint.path} cannot be continued")
    if header.scene_hash != scene_hash:
        raise UserError(
            f"{checkpoint.path} cannot be continued: the cameras, image names or points of {config.scene} are not "
            "those that it was trained on; start a new run with another --out"
        )
    if config.device == "cpu" and (header.threads, header.device) != (config.threads, "cpu"):
        log.warning(
            "the checkpoint was made on %s with %d threads, here are %d on cpu: expect differences in the last bits",
            header.device,
            header.threads,
            config.threads,
        )
    model = rebuilt_from(checkpoint, config).to(config.device)
    state = _assemble(config, geometry, model)
    for name, tree in join_tensors(header.optimizers, checkpoint.tensors).items():
        state.optimizers[name].load_state_dict(tree)
    state.recipe.load_state_dict(checkpoint.section("recipe"))
    state.sampler.load_state_dict(checkpoint.section("sampler"))
    torch.set_rng_state(checkpoint.tensors["rng/cpu"])
    if config.device == "cuda" and "rng/cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["rng/cuda"])
    state.step, state.skipped = header.step, header.skipped
    state.learning_rate_scale, state.seconds = header.learning_rate_scale, header.seconds
    state.losses, state.memory = dict(header.losses), header.memory
    return state


def _assemble(config: TrainConfig, geometry: SceneGeometry, model: SceneModel) -> TrainingState:
    recipe = find_method(config.method).load().Recipe(config.model, geometry)
    model.draw_bits = config.loss == "bitwise"
    return TrainingState(model, recipe, recipe.optimizers(model), Sampler(len(geometry.cameras), config.seed))


def refuse_differences(config: TrainConfig, recorded: TrainConfig, what: str) -> None:
    """Raise a `UserError` that lists the first five settings in which `config` differs from a recorded one."""
    if found := differences(matching(config), matching(recorded)):
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(f"{what} with other settings: {', '.join(found[:5])}{more}; start a new run with another --out")


def captured(state: TrainingState, config: TrainConfig, scene_hash: str) -> tuple[Header, dict[str, Tensor]]:
    """What a checkpoint of `state` holds: its header and its tensors. Changes nothing, draws no random number."""
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"recipe/{name}": tensor for name, tensor in state.recipe.state_dict().items()}
    tensors |= {f"sampler/{name}": tensor for name, tensor in state.sampler.state_dict().items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    if config.device == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    trees = {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()}
    header = Header(
        schema=SCHEMA,
        step=state.step,
        method=config.method,
        config=to_plain(config),
        config_hash=config_hash(config),
        scene_hash=scene_hash,
        threads=config.threads,
        device=config.device,
        learning_rate_scale=state.learning_rate_scale,
        skipped=state.skipped,
        seconds=state.seconds,
        losses=state.losses,
        optimizers=split_tensors(trees, "optimizer", tensors),
        memory=state.memory.with_this_process(),
    )
    return header, tensors
