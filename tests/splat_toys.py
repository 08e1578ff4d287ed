"""A tiny splat scene and the loop that trains on it, for the tests of everything around 3D Gaussians."""

import math

import torch
from torch import Tensor

from nfc_splat.cameras import Cameras
from nfc_splat.fields.gaussians import Config, Model, Recipe
from nfc_splat.fields.recipe import Batch, SceneGeometry
from nfc_splat.losses import channelwise_classification_loss
from nfc_splat.rendering import Rendering

SIZE = 24
BACKGROUND = torch.ones(3)


def looking_at(centers: Tensor, targets: Tensor) -> Tensor:
    """World-to-camera matrices [C, 4, 4] of cameras at `centers` [C, 3] that look at `targets` [C, 3], up is +z."""
    forward = torch.nn.functional.normalize(targets - centers, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    viewmats = torch.eye(4).repeat(len(centers), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -(rotation @ centers[:, :, None])[:, :, 0]
    return viewmats


def pinhole_cameras(centers: Tensor, targets: Tensor, size: int = SIZE, field_of_view: float = 40.0) -> Cameras:
    """Square cameras of `size` pixels and `field_of_view` degrees."""
    focal = 0.5 * size / math.tan(math.radians(field_of_view) / 2)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Cameras.pinhole(looking_at(centers, targets), K, size, size)


def orbit(count: int = 6, radius: float = 4.0, size: int = SIZE) -> Cameras:
    """Cameras around the origin, a little above it, looking at it."""
    angles = torch.arange(count) * (2 * math.pi / count)
    centers = torch.stack([radius * angles.cos(), radius * angles.sin(), torch.full((count,), 1.0)], dim=-1)
    return pinhole_cameras(centers, torch.zeros(count, 3), size)


def toy_config(**overrides: object) -> Config:
    """A config that runs in milliseconds a step without compiling anything."""
    settings = dict(steps=40, backend="reference", init_points=40, sh_degree_every=10)
    settings |= dict(refine_start=2, refine_stop=36, refine_every=5, reset_every=0, prune_large_from=10)
    settings |= dict(lr_means=2e-3, lr_means_final=2e-4, lr_sh0=2e-2, lr_scales=1e-2)
    return Config(**(settings | overrides))


def random_tensors(count: int, degree: int = 3) -> dict[str, Tensor]:
    """Parameters of `count` Gaussians in the unit cube."""
    return {
        "means": torch.rand(count, 3) - 0.5,
        "quats": torch.randn(count, 4),
        "scales": torch.full((count, 3), 0.12).log() + 0.3 * torch.randn(count, 3),
        "opacities": torch.full((count,), 0.6).logit(),
        "sh0": torch.randn(count, 1, 3),
        "shN": 0.1 * torch.randn(count, (degree + 1) ** 2 - 1, 3),
    }


def toy_batches(cameras: Cameras) -> list[Batch]:
    """One batch per camera, of pictures of a dozen random Gaussians."""
    truth = Model(toy_config(), random_tensors(12), active_sh_degree=1).eval()
    batches = []
    for index in range(len(cameras)):
        with torch.no_grad():
            drawn = truth.render(cameras[index], background=BACKGROUND)
        batches.append(Batch(cameras[index], None, drawn.color.clamp(0, 1), None, BACKGROUND))
    return batches


def toy_geometry(cameras: Cameras, count: int = 40) -> SceneGeometry:
    """The cameras and a grey cloud around the origin."""
    return SceneGeometry(cameras, 0.8 * (torch.rand(count, 3) - 0.5), None)


class Trainer:
    """The order of calls that `Recipe` documents, and nothing else."""

    def __init__(self, model: Model, recipe: Recipe, batches: list[Batch], classification: float = 0.0):
        self.model, self.recipe, self.batches = model, recipe, batches
        self.classification = classification
        self.optimizers = recipe.optimizers(model)
        model.train()

    def step(self, step: int) -> tuple[float, dict[str, float], Rendering]:
        """One step; the base loss, the recipe's figures and the rendering."""
        batch = self.batches[step % len(self.batches)]
        rendering = self.model.render(batch.cameras, background=batch.background)
        losses = {"photometric": self.recipe.photometric(rendering, batch)}
        if self.classification:
            term = channelwise_classification_loss(rendering.color, batch.target)
            losses["classification"] = self.classification * term
        losses |= self.model.regularizers(rendering, batch, step)
        self.recipe.before_backward(rendering, losses, step)
        sum(losses.values()).backward()
        self.recipe.after_backward(self.model, step)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        figures = self.recipe.after_step(self.model, self.optimizers, rendering, step)
        return losses["photometric"].item(), figures, rendering

    def run(self, first: int, last: int) -> list[float]:
        """Steps first..last; the base losses."""
        return [self.step(step)[0] for step in range(first, last + 1)]
