"""A method small enough to train in milliseconds that has everything a resume can lose: a structure that grows, two
optimisers with state, statistics in the recipe, and noise from torch's global generator.

Run as a program it is `python -m nfc_splat.train` with this method, "toy", registered.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nfc_splat.fields import METHODS, Method
from nfc_splat.fields.recipe import Batch, Sampling, SceneGeometry
from nfc_splat.fields.recipe import Recipe as BaseRecipe
from nfc_splat.rendering import Rendering, SceneModel


@dataclass(frozen=True)
class Config:
    """A picture that all cameras see, tinted by where the camera is."""

    steps: int = 40
    """Training steps."""
    size: int = 4
    """Rows and columns of the picture at the start."""
    grow_at: int = 12
    """Step at which they double."""
    rate: float = 0.05
    """Learning rate."""
    noise: float = 1e-3
    """Strength of the noise added after every step."""
    pause: float = 0.0
    """Seconds to wait in every step."""
    images: int = 1
    """Images in a batch."""

    def scaled_to(self, steps: int) -> "Config":
        return replace(self, steps=steps, grow_at=max(1, round(self.grow_at * steps / self.steps)))


def preset(name: str, **overrides) -> Config:
    base = {"quick": Config(), "paper": Config(steps=400, grow_at=120)}[name]
    return replace(base, **overrides)


class Model(SceneModel):
    request = "image"

    def __init__(self, config: Config, picture: Tensor, tint: Tensor):
        super().__init__()
        self.config = config
        self.picture = nn.Parameter(picture.clone())  # [3, G, G]
        self.tint = nn.Parameter(tint.clone())  # [3, 3]

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> "Model":
        return cls(config, torch.rand(3, config.size, config.size), torch.zeros(3, 3))

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> "Model":
        return cls(config, tensors["picture"], tensors["tint"])

    @property
    def primitives(self) -> int:
        return self.picture[0].numel()

    def render(self, cameras, pixels=None, *, background) -> Rendering:
        height, width = cameras.height, cameras.width
        picture = F.interpolate(self.picture[None], (height, width), mode="bilinear", align_corners=True)[0]
        tint = cameras.viewmats[:, :3, 3].to(self.tint) @ self.tint
        color = picture.permute(1, 2, 0) + 0.01 * tint[:, None, None]
        ones = torch.ones_like(color[..., :1])
        return Rendering(color, ones, ones, extras={"picture": picture})


class Recipe(BaseRecipe):
    def __init__(self, config: Config, geometry: SceneGeometry):
        self.config = config
        self.seen = torch.zeros(())

    def optimizers(self, model):
        return {
            "picture": torch.optim.Adam([{"params": [model.picture], "lr": self.config.rate, "name": "p"}], fused=True),
            "tint": torch.optim.SGD([model.tint], lr=self.config.rate, momentum=0.9),
        }

    def sampling(self, step: int) -> Sampling:
        return Sampling(images=self.config.images)

    def photometric(self, rendering: Rendering, batch: Batch) -> Tensor:
        error = (rendering.color - batch.target).square().mean(-1)
        if batch.mask is None:
            return error.mean()
        return (error * batch.mask).sum() / batch.mask.sum()

    def after_step(self, model, optimizers, rendering, step):
        time.sleep(self.config.pause)
        self.seen = self.seen + rendering.color.detach().mean()
        with torch.no_grad():
            model.picture += self.config.noise * torch.randn_like(model.picture)
        optimizer = optimizers["picture"]
        if step == self.config.grow_at:
            self._grow(model, optimizer)
        # A rate that depends on what the recipe remembers: forgotten statistics show in the weights.
        optimizer.param_groups[0]["lr"] = self.config.rate * (1 + 0.1 * math.tanh(float(self.seen)))
        return {"primitives": model.primitives, "lr_picture": optimizer.param_groups[0]["lr"]}

    def _grow(self, model, optimizer):
        old = model.picture
        larger = lambda value: F.interpolate(value[None], scale_factor=2, mode="nearest")[0]  # noqa: E731
        new = nn.Parameter(larger(old.detach()))
        state = optimizer.state.pop(old)
        optimizer.state[new] = {key: larger(value) if value.ndim == 3 else value for key, value in state.items()}
        optimizer.param_groups[0]["params"] = [new]
        model.picture = new

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def export(model: Model, folder: Path) -> list[Path]:
    path = folder / "picture.txt"
    path.write_text(str(model.primitives))
    return [path]


METHOD = Method("toy", "a tinted picture", "training_toy", loss_weight=0.5)


def write_scene(folder: Path, *, views: int = 5, tests: int = 2, size: int = 16) -> Path:
    """A Blender-format scene of smooth pictures, different in each view."""
    rows, columns = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    for split, count in (("train", views), ("test", tests)):
        frames = []
        (folder / split).mkdir(parents=True)
        for index in range(count):
            level = 0.2 + 0.1 * index / count
            image = np.stack([rows, columns, np.full_like(rows, level)], -1)
            Image.fromarray((255 * (0.1 + 0.8 * image)).astype(np.uint8)).save(folder / split / f"{index}.png")
            angle = 2 * math.pi * (index + 0.5 * (split == "test")) / count
            pose = np.eye(4)
            pose[:3, 3] = [math.cos(angle), math.sin(angle), 3.0]
            frames.append({"file_path": f"{split}/{index}", "transform_matrix": pose.tolist()})
        text = json.dumps({"camera_angle_x": 0.8, "frames": frames})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder


if __name__ == "__main__":
    from nfc_splat.errors import run_command
    from nfc_splat.train import main

    METHODS[METHOD.name] = METHOD
    run_command(main)
