"""D-NeRF (Pumarola et al. 2021): a static field and, in front of it, a displacement of its points with time.

The static field is `nfc_splat.fields.nerf`'s with one network, or `nfc_splat.fields.ngp`'s; it shows the scene at time
0. It chooses samples, draws and is trained as it is alone, but is asked at displaced points. Frames join the training
in the order of time. There is no loss on displacements.

As in the released code, but for what `nfc_splat.fields.nerf` names, and: images are reduced with their colours weighted
by alpha (there without, so that the black of what is transparent bleeds into edges); later frames are the later ones,
however they are listed; the network is not asked again about the first pass's samples. Published numbers are of
`--protocol dnerf`, for lego of its broken test views, and for bouncing balls 38.93 dB (the paper's first version prints
another scene's column).

Symbols: R rays, M samples, N points, C training cameras.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from nfc_splat.cameras import Rays
from nfc_splat.fields import nerf, ngp
from nfc_splat.fields.displacement import Displacement
from nfc_splat.fields.dnerf_config import Config as Config
from nfc_splat.fields.dnerf_config import preset as preset
from nfc_splat.fields.marched import MarchedRecipe
from nfc_splat.fields.occupancy_grid import OccupancyGrid
from nfc_splat.fields.recipe import Sampling, SceneGeometry
from nfc_splat.files import atomic_path
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.march import MarchedModel
from nfc_splat.rendering.samples import Samples

FEWEST_FRAMES = 3  # that training starts with


class Model(MarchedModel):
    """What is seen at time t is the canonical field at displaced points.

    Attributes:
        canonical: the scene at time 0, a static model.
        displacement: from where things are at time t to where they are at time 0.
    """

    canonical: nerf.Model | ngp.Model

    def __init__(self, config: Config, canonical: nerf.Model | ngp.Model) -> None:
        super().__init__()
        self.config, self.canonical = config, canonical
        self.encoding = canonical.encoding
        sizes = config.deformation_width, config.deformation_depth, config.deformation_octaves, config.time_octaves
        self.displacement = Displacement(*sizes, bf16=config.bf16, zero_start=config.zero_start)

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> Self:
        """An untrained static field, and random or no displacements."""
        static, settings = _static(config)
        return cls(config, static.Model.initialise(settings, geometry))

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a checkpoint."""
        static, settings = _static(config)
        prefix = "canonical."
        part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        model = cls(config, static.Model.from_tensors(settings, part))
        model.load_state_dict(dict(tensors))
        return model

    @property
    def ray_bytes(self) -> int:
        """Memory that drawing a ray may take; a sample is displaced and drawn by networks of a size."""
        return 2 * self.canonical.ray_bytes

    @property
    def grid(self) -> OccupancyGrid:
        """Of the hash grid: what is filled at some time."""
        return self.canonical.grid

    def march(self, rays: Rays, background: Tensor) -> Rendering:
        """See `MarchedModel.march`.

        Raises:
            ValueError: the rays have no times.
        """
        if rays.times is None:
            raise ValueError("the cameras have no times, and a scene that moves is drawn at one")
        canonical = self.canonical
        canonical.draw_bits, canonical.draw_normals = self.draw_bits, self.draw_normals
        return canonical.march(rays, background, self.moved)

    def moved(self, samples: Samples) -> Samples:
        """Samples where the canonical field knows them."""
        return samples.moved_to(self.moved_points(samples.positions, samples.rays.times, samples.ray))

    def moved_points(self, points: Tensor, times: Tensor, ray: Tensor) -> Tensor:
        """World points [M, 3] at the times [R] of their rays, `ray` [M] int64, where they are at time 0."""
        canonical = self.canonical
        if isinstance(canonical, ngp.Model):
            to_local, unit = canonical.space.to_local, canonical.space.radius
        else:
            to_local, unit = canonical.to_local, canonical.unit
        return points + unit * self.displacement(to_local(points), times, ray)

    def thickness(self, unit: Tensor) -> Tensor:
        """Optical thickness [N] of a step at points [N, 3] of the unit cube, each at a random time."""
        canonical = self.canonical
        points, times = canonical.space.to_world(unit), torch.rand(len(unit), device=unit.device)
        moved = self.moved_points(points, times, torch.arange(len(unit), device=unit.device))
        return canonical.thickness(canonical.space.to_unit(moved))


class Recipe(MarchedRecipe):
    """The static field's, with the displacement as well and with frames that join in the order of time."""

    def __init__(self, config: Config, geometry: SceneGeometry) -> None:
        super().__init__(config, geometry)
        static, settings = _static(config)
        self.static = static.Recipe(settings, geometry)
        # The released code takes the frames as they are listed, and a shuffled list would undo its schedule.
        self.order = geometry.cameras.times.cpu().argsort(stable=True)
        self.first = torch.cat([torch.zeros(1, dtype=torch.int64), geometry.cameras.sizes.cpu().prod(1).cumsum(0)])
        self._candidates = torch.zeros(0, dtype=torch.int64), 0

    def sampling(self, step: int) -> Sampling:
        """The static field's; before `time_steps`, of the earliest frames only."""
        sampling = self.static.sampling(step)
        count = self.frames(step)
        if count == len(self.order):
            return sampling
        if sampling.kind == "image_rays":
            return replace(sampling, views=self.order[:count])
        return replace(sampling, kind="random_rays", candidates=self._pixels(count))

    def frames(self, step: int) -> int:
        """How many frames, the earliest ones, are trained on at `step`."""
        count, until = len(self.order), self.config.time_steps
        return count if step >= until else min(count, max(int(step / until * count), FEWEST_FRAMES))

    def _pixels(self, count: int) -> Tensor:
        """Numbers of the pixels of the first `count` frames; the same tensor for as long as they are the same."""
        if self._candidates[1] != count:
            ranges = [torch.arange(self.first[view], self.first[view + 1]) for view in self.order[:count].sort().values]
            self._candidates = torch.cat(ranges), count
        return self._candidates[0]

    def optimizers(self, model: Model) -> dict[str, Optimizer]:
        """The static field's Adam with the displacement's network in it."""
        optimizers = self.static.optimizers(model.canonical)
        (optimizer,) = optimizers.values()
        group = {"params": list(model.displacement.parameters()), "lr": self.config.lr, "name": "displacement"}
        optimizer.add_param_group(group)
        return optimizers

    def after_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """What the static field does; the learning rates fall to a tenth in `lr_decay_steps`."""
        figures = self.static.after_step(model, optimizers, rendering, step)
        if self.config.canonical == "hash":
            for group in optimizers["field"].param_groups:
                group["lr"] *= 0.1 ** (1 / self.config.lr_decay_steps)
        return figures | {"frames": self.frames(step)}

    def state_dict(self) -> dict[str, Tensor]:
        return self.static.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.static.load_state_dict(state)


def _static(config: Config) -> tuple[Any, Any]:
    """The module of the canonical field, and its configuration."""
    return (ngp, config.hash_grid) if config.canonical == "hash" else (nerf, config.networks)


def published_names(model: Model) -> dict[str, Tensor]:
    """The networks' tensors under the released code's names."""
    tensors = {f"_occ.{name}": value for name, value in nerf.published_names(model.canonical.fine).items()}
    *hidden, last = model.displacement.network.layers
    for index, layer in enumerate(hidden):
        tensors |= {f"_time.{index}.{part}": value for part, value in layer.state_dict().items()}
    return tensors | {f"_time_out.{part}": value for part, value in last.state_dict().items()}


def export(model: Model, folder: Path) -> list[Path]:
    """Write the hash grid's `point_cloud.ply`, the scene at time 0; or the networks as `dnerf.safetensors`, with the
    released code's names, and `dnerf.json` with what their use needs. A point x of the scene's frame enters as
    (x - center) / unit, and a displacement is in these units."""
    if isinstance(model.canonical, ngp.Model):
        return ngp.export(model.canonical, folder)
    tensors = published_names(model)
    weights, facts = Path(folder) / "dnerf.safetensors", Path(folder) / "dnerf.json"
    with atomic_path(weights) as temporary:
        temporary.write_bytes(save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))
    with atomic_path(facts) as temporary:
        temporary.write_text(json.dumps(_description(model), indent=1) + "\n", encoding="utf-8")
    return [weights, facts]


def _description(model: Model) -> dict[str, Any]:
    """What a reader of the networks has to know."""
    names = ("deformation_width", "deformation_depth", "deformation_octaves", "time_octaves")
    facts = {name: getattr(model.config, name) for name in names}
    return nerf.description(model.canonical) | facts | {"canonical_time": 0.0}
