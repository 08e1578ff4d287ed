"""A model alone in a file, without the optimisers' state: for passing on, and for drawing.

A safetensors file. Names of tensors are those of the model's `state_dict`; the file's own metadata has one key,
`METADATA`, with JSON:
    schema   version of this layout
    step     optimiser steps done
    config   the training configuration as `config.json` has it, without what says where and how files are read
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nfc_splat.data import DataConfig, Scene
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.files import parse_json
from nfc_splat.rendering import SceneModel
from nfc_splat.training.checkpoint import save_tensors
from nfc_splat.training.config import FREE_DATA, TrainConfig, config_from_plain, resolve
from nfc_splat.training.plain import to_plain
from nfc_splat.training.rebuilding import rebuilt

SCHEMA = 1
METADATA = "nfc_splat.model"
PROBE = 4  # pixels along a side of the picture that a model must be able to draw

# What methods, torch and Python raise of tensors and sizes that do not fit.
UNFIT = (KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError, OverflowError)


@dataclass(frozen=True)
class ModelFile:
    """What a file holds, its configuration checked, its tensors finite but not yet tried."""

    path: Path
    config: TrainConfig
    step: int
    tensors: dict[str, Tensor]


def write_model(path: Path, config: TrainConfig, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the `tensors` of a model atomically. Where files lie on this machine is left out.

    Raises:
        UserError: it cannot be written.
    """
    bare = _bare(config, Path(config.scene.name))
    text = json.dumps({"schema": SCHEMA, "step": step, "config": to_plain(bare)}, allow_nan=False)
    try:
        save_tensors(path, tensors, {METADATA: text})
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}; make room or choose another --out") from error


def _bare(config: TrainConfig, scene: Path) -> TrainConfig:
    """`config` for `scene`, without other paths, and without what only who reads files may decide: what they may refer
    to, and how large they may be."""
    kept = {field.name for field in fields(DataConfig)} - FREE_DATA
    data = DataConfig(**{name: getattr(config.data, name) for name in kept})
    return replace(config, scene=scene, out=None, resume=None, data=data)


def read_model(path: Path, scene: Path, device: str) -> ModelFile:
    """Read a file that nobody vouches for, to be drawn from the views of `scene` on `device`.

    Raises:
        UserError: not such a file, a method that is not there, a configuration that makes no sense, or numbers that are
            not finite.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from error
    if METADATA not in metadata:
        raise UserError(f"{path}: its metadata has no {METADATA}; expected a file of python -m nfc_splat.export model")
    record = parse_json(metadata[METADATA], path)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or type(record.get("step")) is not int:
        raise UserError(f"{path}: its {METADATA} is not of schema {SCHEMA}; was it written by a newer version?")
    try:
        config = config_from_plain(record.get("config"), "config")
        config = resolve(replace(_bare(config, scene), device=device))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{path}: the tensor {name} holds values that are not finite")
    return ModelFile(path, config, record["step"], tensors)


def rebuild(file: ModelFile, scene: Scene) -> SceneModel:
    """The model of a file, in eval mode, once it has drawn a tiny picture of `scene`.

    Raises:
        UserError: its tensors are not those of its method, do not fit each other, or are far fewer than its
            configuration asks for; or it moves and `scene` does not.
    """
    config = file.config
    method = find_method(config.method)
    split = next(views for views in scene.splits.values() if len(views))
    camera = split.cameras[0].resized(torch.tensor([[PROBE, PROBE]])).to(config.device)
    if method.dynamic and camera.times is None:
        raise UserError(f"{file.path}: {config.method} moves, but the frames of {scene.root} have no times")
    with _one_line(file.path, config.method):
        model = rebuilt(config, file.tensors).to(config.device).eval()
        _compare(model.state_dict(), file.tensors)
        with torch.no_grad():
            model.render(camera, background=scene.background.to(config.device))
    return model


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless both have the same names, sizes and types."""
    if unknown := sorted(set(found) ^ set(expected)):
        raise ValueError(f"the tensor {unknown[0]} is {'unknown' if unknown[0] in found else 'missing'}")
    for name, tensor in expected.items():
        if (tensor.shape, tensor.dtype) != (found[name].shape, found[name].dtype):
            sizes = [f"{value.dtype} {list(value.shape)}" for value in (found[name], tensor)]
            raise ValueError(f"the tensor {name} is {sizes[0]}, expected {sizes[1]}")


@contextmanager
def _one_line(path: Path, method: str) -> Iterator[None]:
    """Whatever Python or torch says of tensors that are missing or do not fit, as a `UserError` of one line: methods
    take sizes from tensors and leave it to torch and to the kernels to refuse those that contradict each other."""
    try:
        yield
    except (*UNFIT, UserError) as error:
        said = f"the tensor {error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        said = " ".join(said.split())
        said = said if len(said) <= 200 else f"{said[:197]}..."
        raise UserError(f"{path}: not a model of {method}: {said}") from error
