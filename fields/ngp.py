"""A hash-grid field (Mueller et al. 2022, "Instant Neural Graphics Primitives", section 5.4): the model, how it is
trained, and its point cloud.

A point's features in the hash grid go through a small network to its density and 16 numbers; these and the spherical
harmonics of the viewing direction go through a second one to its colour. An occupancy grid keeps rays out of empty
space. Densities are per radius of the space (half the side of its box), in contracted space per contracted radius: so
a thin fog is thin as far as one can see, and every part of space can learn from the first step.

Differences from the paper: contraction instead of cascades of occupancy grids for scenes without end; no moving average
of the weights; the base loss is the mean squared error of the stored (gamma-encoded) colours, over random backgrounds
where images are transparent.

Symbols: R rays, M samples, N points, P pixels, L logits per colour channel.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.optim import Adam, Optimizer

from nfc_splat.cameras import Rays
from nfc_splat.fields.color_head import ColorHead
from nfc_splat.fields.marched import MarchedRecipe, probe_rays
from nfc_splat.fields.mlp import MLP
from nfc_splat.fields.ngp_config import Config as Config
from nfc_splat.fields.ngp_config import preset as preset
from nfc_splat.fields.ngp_space import Space, choose_space
from nfc_splat.fields.occupancy_grid import OccupancyGrid
from nfc_splat.fields.point_cloud_file import write_point_cloud
from nfc_splat.fields.recipe import Sampling, SceneGeometry
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.harmonics import spherical_harmonics
from nfc_splat.rendering.hash_encoding import HashLevels, hash_encode
from nfc_splat.rendering.level_set import LevelSet
from nfc_splat.rendering.march import MarchedModel, Move, MovedField, alpha_from_density, composite
from nfc_splat.rendering.samples import Samples, unit_directions
from nfc_splat.rendering.sharing import total

GEOMETRY = 16  # outputs of the density network, the logarithm of the density among them
LARGEST_EXPONENT = 15.0
FEWEST_RAYS = 64
SAMPLE_BYTES, CROWDED = 600, 4  # memory for a sample, and how many more a ray may need than its share of the grid
BANDS = 4  # of the viewing direction's spherical harmonics
SURFACE = 0.5  # opacity of a cell's width from which export takes it for a surface
ROWS_AT_ONCE = 2**17

log = logging.getLogger("nfc_splat")


class Network(MLP):
    """A ReLU network without biases, as tiny-cuda-nn's, which computes it on a CUDA device if it is installed.

    The weights start as tiny-cuda-nn's do (Glorot and Bengio 2010, Eq. 16); the biases of `MLP` stay 0.
    """

    def __init__(self, inputs: int, outputs: int, width: int, hidden: int, bf16: bool) -> None:
        super().__init__(inputs, outputs, width, hidden, bf16=bf16)
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, D] -> [N, O] float32."""
        if x.device.type == "cuda" and len(x):  # tiny-cuda-nn fails on empty batches
            from nfc_splat.rendering.kernels.networks_cuda import fused_network, usable

            if usable(x.shape[1], len(self.layers[0].weight), self.hidden):
                return fused_network(x, [layer.weight for layer in self.layers])
        return super().forward(x)


class Model(MarchedModel):
    """Density and colour of a hash grid over a `Space`.

    Attributes:
        table: [rows, F] the hash grid, in tiny-cuda-nn's layout.
        density, rgb: the two networks, without biases.
    """

    def __init__(self, config: Config, space: Space, table: Tensor) -> None:
        super().__init__()
        self.config, self.space = config, space
        self.levels = _levels(config)
        self.head = ColorHead(config.target_encoding)
        self.encoding = self.head.encoding
        self.table = nn.Parameter(table)
        self.density = Network(self.levels.out_features, GEOMETRY, config.width, 1, config.bf16)
        inputs, outputs = BANDS**2 + GEOMETRY, self.head.out_features
        self.rgb = Network(inputs, outputs, config.width, config.color_layers, config.bf16)
        self.grid = OccupancyGrid(config.grid, config.occupancy_decay, config.occupancy_threshold)

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> Self:
        """An evenly thin fog in the space that suits the scene."""
        space = choose_space(config, geometry)
        log.info("scene:  %s", space.described())
        space.warn_of_misses(probe_rays(geometry.cameras.to("cpu")))
        return cls.over(config, space)

    @classmethod
    def over(cls, config: Config, space: Space) -> Self:
        """An evenly thin fog in `space`."""
        return cls(config, space, _levels(config).table())

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a checkpoint."""
        facts = (float(tensors[f"space.{name}"]) for name in ("radius", "near"))
        space = Space(tensors["space.center"], *facts, bool(tensors["space.contracted"]), config)
        model = cls(config, space, tensors["table"].clone())
        model.load_state_dict(dict(tensors))
        return model

    @property
    def ray_bytes(self) -> int:
        """Memory that drawing a ray may take, by how full the space is."""
        share = min(1.0, CROWDED * self.grid.share)
        return int(SAMPLE_BYTES * (1 + share * self.space.steps_per_ray))

    def march(self, rays: Rays, background: Tensor, move: Move | None = None) -> Rendering:
        """See `MarchedModel.march`. `extras["marched"]` is the number of samples whose density was asked for. `move`
        says where the field knows the samples, for scenes that are deformed."""
        samples = self.space.sample(rays, self.grid.occupied, jitter=self.training)
        config = self.config
        field = MovedField(self, move) if move else self
        drawn = composite(field, samples, background, weight_threshold=config.weight_threshold, stop=config.stop)
        return replace(drawn, extras={**drawn.extras, "marched": len(samples)})

    def alpha(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Opacities [M] and the density network's outputs [M, 16]."""
        unit = self.space.to_unit(samples.positions)
        features = self.features(unit)
        widths = samples.widths / self.space.radius * self.space.shrinkage(unit)
        return alpha_from_density(density_of(features), widths), features

    def color(self, samples: Samples, features: Tensor) -> Tensor:
        """Decoded colours [M, 3], with the bits' probabilities behind them if `draw_bits`."""
        directions = spherical_harmonics(unit_directions(samples.rays), BANDS)[samples.ray]
        return self.head(self.rgb(torch.cat([directions, features], 1)), bits=self.draw_bits)

    def features(self, unit: Tensor) -> Tensor:
        """The density network's outputs [N, 16] at points [N, 3] of the unit cube."""
        return self.density(hash_encode(unit, self.table, self.levels))

    def thickness(self, unit: Tensor) -> Tensor:
        """Optical thickness [N] of a step at points [N, 3] of the unit cube."""
        return density_of(self.features(unit)) * self.space.step_at(unit)

    def level_set(self) -> LevelSet:
        """Where the width of an occupancy cell is half opaque; in a contracted space, of the cube left as it is."""
        space, cell = self.space, self.space.radius.new_tensor(self.space.side / self.grid.size)

        def opacity(points: Tensor) -> Tensor:
            parts = space.to_unit(points).clamp(0, 1).split(ROWS_AT_ONCE)
            return torch.cat([alpha_from_density(density_of(self.features(part)), cell) for part in parts])

        return LevelSet(opacity, SURFACE, torch.stack([space.center - space.radius, space.center + space.radius]))

    def surface_colors(self, points: Tensor, normals: Tensor) -> Tensor:
        """Colours [N, 3] seen at points [N, 3] of a surface, looking against its normals [N, 3]."""
        features = self.features(self.space.to_unit(points).clamp(0, 1))
        return self.head(self.rgb(torch.cat([spherical_harmonics(-normals, BANDS), features], 1)))


class Recipe(MarchedRecipe):
    """Adam; as many rays as give a batch of about `config.samples` samples; the occupancy grid follows the field."""

    def __init__(self, config: Config, geometry: SceneGeometry) -> None:
        super().__init__(config, geometry)
        self.rays = min(FEWEST_RAYS, config.max_rays)

    def sampling(self, step: int) -> Sampling:
        """Pixels of all images in a shuffled order, over random colours where images are transparent."""
        background = "random" if self.geometry.has_alpha else "scene"
        return Sampling("shuffled_rays", rays=self.rays, background=background)

    def optimizers(self, model: Model) -> dict[str, Optimizer]:
        """Adam with the paper's settings; the networks' weights decay, the table does not."""
        networks = [p for p in (*model.density.parameters(), *model.rgb.parameters()) if p.requires_grad]
        groups = [
            {"params": [model.table], "name": "table"},
            {"params": networks, "name": "networks", "weight_decay": self.config.weight_decay},
        ]
        return {"field": Adam(groups, lr=self.config.lr, betas=(0.9, 0.99), eps=1e-15, fused=True)}

    def after_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """Update the occupancy grid, the number of rays and the learning rate."""
        config = self.config
        if step % config.update_every == 0:
            model.grid.update(model.thickness, everywhere=step <= config.warmup)
        if step >= config.decay_start and (step - config.decay_start) % config.decay_every == 0:
            for group in optimizers["field"].param_groups:
                group["lr"] *= config.decay
        marched = total(rendering.extras["marched"])
        figures = {"rays": self.rays, "samples": marched, "occupied": model.grid.share}
        wanted = self.rays * config.samples / max(marched, 1)
        # At most twice as many: one batch that happened to look past the scene must not be followed by a huge one.
        self.rays = int(min(max(wanted, FEWEST_RAYS), 2 * self.rays, config.max_rays))
        return figures

    def state_dict(self) -> dict[str, Tensor]:
        return {"rays": torch.tensor(self.rays)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.rays = int(state["rays"])


class _Exponential(Function):
    """exp, cut off at e^15 in value and gradient alike, but never without a gradient that could bring it back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp(max=LARGEST_EXPONENT).exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, v_y: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return v_y * y.clamp_min(torch.e**-LARGEST_EXPONENT)


def density_of(features: Tensor) -> Tensor:
    """Densities [N] per radius from the density network's outputs [N, 16], the first of which is their logarithm."""
    return _Exponential.apply(features[:, 0])


def _levels(config: Config) -> HashLevels:
    return HashLevels.between(
        config.levels, config.features, config.log2_table_size, config.base_resolution, config.finest_resolution
    )


@torch.no_grad()
def export(model: Model, folder: Path) -> list[Path]:
    """Write `point_cloud.ply`: a coloured point for every opaque cell of the occupancy grid, in the scene's frame and
    units. The colour is the mean of those seen along the six axes."""
    unit = model.grid.centers()
    parts = [_surface(model, part) for part in unit.split(2**16)]
    points, colors = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(points):
        log.warning("no cell of the occupancy grid is opaque: the point cloud is empty")
    path = Path(folder) / "point_cloud.ply"
    write_point_cloud(path, points, colors)
    return [path]


def _surface(model: Model, unit: Tensor) -> tuple[Tensor, Tensor]:
    """World positions [N', 3] and colours [N', 3] of the opaque ones among points [N, 3] of the unit cube."""
    cell = unit.new_tensor(model.space.side / model.grid.size)
    opaque = alpha_from_density(density_of(model.features(unit)), cell) > SURFACE
    points = model.space.to_world(unit[opaque])
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).to(unit)
    return points, torch.stack([model.surface_colors(points, axis.expand_as(points)) for axis in axes]).mean(0)
