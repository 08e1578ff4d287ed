"""NeuS (Wang et al. 2021): a surface as the zero set of a signed distance field, learned by volume rendering.

One network gives the distance, its gradient and features of a point, another one the colour; a ray's sections are as
opaque as the sigmoid of the distance falls within them (`sdf_alpha`). For two CPU cores there are a hash grid for the
points, an occupancy grid that follows the surface, and a first stage that finds the shape to start from
(`shape_from_density`). The base loss is L1.

Differences from both implementations: transmittance is the product of 1 - alpha (there 1 - alpha + 1e-7); the field is
not contracted outside of its region, where no ray asks for it; nothing is drawn nearer than 0.05 radii. And from
SDFStudio's: where its files name the depth range as what ends rays (`collider_type` "near_far"), it takes all samples
between these two depths, and here they are still taken where the ray crosses the region.

Symbols: R rays, M samples, K of them in the region and B behind it, F features, L logits per colour channel. Local
coordinates and lengths are in radii of the region.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam, Optimizer

from nfc_splat.cameras import Rays
from nfc_splat.errors import UserError
from nfc_splat.fields import dvgo
from nfc_splat.fields.color_head import ColorHead
from nfc_splat.fields.distance_grid import DistanceGrid
from nfc_splat.fields.marched import MarchedRecipe, probe_rays
from nfc_splat.fields.neus_config import Config as Config
from nfc_splat.fields.neus_config import preset as preset
from nfc_splat.fields.neus_networks import Background, ColorNetwork
from nfc_splat.fields.neus_pass import Pass
from nfc_splat.fields.neus_region import Region, choose_region, joined
from nfc_splat.fields.point_cloud_file import write_point_cloud
from nfc_splat.fields.recipe import Batch, Sampling, SceneGeometry
from nfc_splat.fields.sdf_alpha import Sharpness
from nfc_splat.fields.sdf_network import HashFeatures, Octaves, SDFNetwork
from nfc_splat.fields.shape_from_density import (
    cell_middles,
    density_config,
    density_model,
    density_recipe,
    find_matter,
    fit,
)
from nfc_splat.losses import l1
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.hash_encoding import HashLevels
from nfc_splat.rendering.level_set import LevelSet
from nfc_splat.rendering.march import MarchedModel, composite
from nfc_splat.rendering.sharing import part_of_sum, total

FEWEST_RAYS = 64
EIKONAL_RADIUS = 1.2
WEIGHT_THRESHOLD = 1e-4  # of a sample's share of its pixel, below which its colour is left out, with even steps
REACH = 5.0  # over s: beyond this distance the sigmoid is within e^-5 of its end
FOUND_SHARPNESS = 0.5  # v, at least, of a surface that starts from a shape
ROWS_AT_ONCE = 2**15  # points; the published networks take about 16 KB for the colour of each
EXPORT_CELLS = 160  # along an axis, for the point cloud
BYTES_PER_ACTIVATION = 12  # of drawing a sample: value, slope and a temporary

log = logging.getLogger("nfc_splat")


class Model(MarchedModel):
    """A signed distance field over a `Region`, negative inside of matter.

    Attributes:
        sdf, colors, sharpness: the two networks and s.
        behind: what is behind the region, or None.
        grid: where the surface may be, for even steps; else None.
        steps_done: [] int64 training steps, which the annealing and the levels follow.
    """

    steps_done: Tensor

    def __init__(self, config: Config, region: Region, behind: str) -> None:
        """behind: "none", "contracted" or "sphere"."""
        super().__init__()
        self.config, self.region = config, region
        self.head = ColorHead(config.target_encoding)
        self.encoding = self.head.encoding
        self.sdf = _sdf_network(config, bool(region.inside_out))
        self.colors = ColorNetwork(config, self.head.out_features, _hash_grid(config))
        self.sharpness = Sharpness(config.sharpness)
        self.behind = None if behind == "none" else Background(behind, config, self.head.out_features)
        self.grid = DistanceGrid(config.grid) if config.sampler == "occupancy" else None
        self.shape: dvgo.Model | None = None
        self.register_buffer("steps_done", torch.tensor(0))
        self.advance(0)

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> Self:
        """About a sphere in the region that suits the scene."""
        region = choose_region(config, geometry)
        log.info("region: %s", region.described())
        region.warn_of_misses(probe_rays(geometry.cameras.to("cpu")))
        behind = _surroundings(config, geometry, region)
        model = cls(config, region, behind)
        if _first_steps(config, geometry, region):
            model.shape = density_model(config, geometry, region)
        return model

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a checkpoint."""
        facts = float(tensors["region.radius"]), bool(tensors["region.inside_out"])
        region = Region(tensors["region.center"], *facts, config)
        kind = "sphere" if "behind.feature.weight" in tensors else "contracted"
        behind = kind if "behind.density.weight" in tensors else "none"
        model = cls(config, region, behind)
        shape = {name.removeprefix("shape."): value for name, value in tensors.items() if name.startswith("shape.")}
        if shape:
            model.shape = dvgo.Model.from_tensors(density_config(config), shape)
        model.load_state_dict(dict(tensors))
        model.advance(int(model.steps_done))
        return model

    def begin_surface(self, geometry: SceneGeometry) -> None:
        """Fit the distances to what the density field has found, which is then forgotten."""
        matter = find_matter(self.shape.level_set(), self.region, geometry.cameras)
        share = float(matter.float().mean())
        self.shape = None
        if not 0 < share < 1:
            log.warning(
                "the density field has found %s; the surface starts as a ball",
                "nothing" if not share else "no empty space",
            )
            return
        log.info("the density field has found matter in %.2g %% of the region; the surface starts there", 100 * share)
        fit(self.sdf, matter)
        with torch.no_grad():  # less blurred than a ball needs to be: thin walls stay opaque
            self.sharpness.v.clamp_(min=FOUND_SHARPNESS)

    def advance(self, steps: int) -> None:
        """Note that `steps` training steps are done, without those of the first stage: the annealing and the levels in
        use follow."""
        config = self.config
        self.steps_done.fill_(steps)
        self.anneal = min(1.0, steps / config.anneal_steps) if config.anneal_steps else 1.0
        if isinstance(self.sdf.encoding, HashFeatures):
            self.sdf.encoding.active = min(config.levels, config.first_levels + steps // config.level_every)

    @property
    def ray_bytes(self) -> int:
        """Memory that drawing a ray may take."""
        config = self.config
        if self.shape is not None:
            return self.shape.ray_bytes
        each = BYTES_PER_ACTIVATION * (config.width * config.depth + config.color_width * config.color_depth)
        share = min(1.0, 4 * self.grid.share) if self.grid else 0.0
        count = share * config.march_steps if self.grid else config.coarse_samples + config.fine_samples
        return int(each * (1 + count + config.background_samples * (self.behind is not None)))

    def march(self, rays: Rays, background: Tensor) -> Rendering:
        """See `MarchedModel.march`. `extras` also has "gradients" [K, 3] and "points" [K, 3], local, of all samples
        that the eikonal term may count, "opacity" [R] of the region alone, and "marched", the number of samples."""
        if self.shape is not None:
            self.shape.draw_bits, self.shape.draw_normals = self.draw_bits, self.draw_normals
            return self.shape.march(rays, background)
        if self.grid is not None:
            s = float(self.sharpness().detach())
            samples, threshold = self.region.steps(rays, self.grid.occupied, s, self.training), WEIGHT_THRESHOLD
            seen = self.grid.in_sight(self.region.to_local(samples.positions), samples.offsets, s)
            samples, _ = samples.keep(seen)
        else:
            samples, threshold = self.region.sections(rays, self.sdf.distance, self.training), 0.0
        outside = beyond = None
        if self.behind is not None:
            samples, outside = joined(samples, self.region.behind(rays, self.behind.kind, self.training))
            if self.behind.kind == "sphere":
                far = self.region.to_local(samples.positions).norm(dim=-1) >= 1
                beyond = samples.positions[far & ~outside]
                outside |= far
        drawing = Pass(self, samples, outside)
        drawn = composite(drawing, samples, background, weight_threshold=threshold)
        points, gradients = drawing.points, drawing.gradients
        if beyond is not None and self.training:  # not drawn, but the field has to be a distance there too
            beyond = self.region.to_local(beyond).detach()
            points, gradients = torch.cat([points, beyond]), torch.cat([gradients, self.sdf(beyond)[2]])
        extras = drawn.extras | {"gradients": gradients, "points": points, "marched": len(samples)}
        extras["opacity"] = drawing.opacity(drawn)
        normal = drawing.normals(drawn) if self.draw_normals else None
        return replace(drawn, normal=normal, extras=extras)

    def regularizers(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """The eikonal term, and the opacities' cross entropy with the masks where there are any."""
        if self.shape is not None:
            return self.shape.regularizers(rendering, batch, step)
        config, extras = self.config, rendering.extras
        gradients = extras["gradients"]
        if config.eikonal_region == "sphere":
            gradients = gradients[extras["points"].norm(dim=-1) < EIKONAL_RADIUS]
        count = total(len(gradients))
        terms = {"eikonal": config.eikonal_weight * part_of_sum(_eikonal(gradients, count))}
        if config.eikonal_points:
            points = 2 * torch.rand(config.eikonal_points, 3, device=gradients.device) - 1
            terms["eikonal"] = terms["eikonal"] + config.eikonal_weight * _eikonal(self.sdf(points)[2], len(points))
        if config.mask_weight and batch.foreground is not None:
            alpha = extras["opacity"].clamp(1e-3, 1 - 1e-3)
            terms["mask"] = config.mask_weight * F.binary_cross_entropy(alpha, batch.foreground)
        return terms

    @torch.no_grad()
    def distance(self, points: Tensor) -> Tensor:
        """Signed distances [N] in world units of world points [N, 3], about; negative inside of matter."""
        parts = self.region.to_local(points).split(ROWS_AT_ONCE)
        return torch.cat([self.sdf.distance(part) for part in parts]) * self.region.radius

    def level_set(self) -> LevelSet:
        """The surface, for mesh extraction."""
        if self.shape is not None:
            return self.shape.level_set()
        return LevelSet(lambda points: -self.distance(points), 0.0, self.region.bounds.clone())

    def surface_colors(self, points: Tensor, normals: Tensor) -> Tensor:
        """Colours [N, 3] seen at points [N, 3] of the surface, looking against its normals [N, 3]."""
        if self.shape is not None:
            return self.shape.surface_colors(points, normals)
        local = self.region.to_local(points)
        _, features, gradient = self.sdf(local)
        return self.decoded(local, -normals, gradient, features)

    def decoded(
        self, points: Tensor, directions: Tensor, gradients: Tensor, features: Tensor, bits: bool = False
    ) -> Tensor:
        """Colours [N, 3] in the region; with `bits`, the bits' probabilities behind them."""
        colors = self.head(self.colors(points, directions, gradients, features), bits=bits)
        padding = self.config.color_padding if self.encoding is None else 0.0
        return colors * (1 + 2 * padding) - padding if padding else colors


class Recipe(MarchedRecipe):
    """Adam with a warm-up and a cosine; the grid of distances follows the field.

    Attributes:
        first: trains the density field of the first stage, if there is one.
        first_steps: how many steps that takes.
        shaping: whether that is now.
    """

    def __init__(self, config: Config, geometry: SceneGeometry) -> None:
        super().__init__(config, geometry)
        if config.mask_weight and not (geometry.object_masks or geometry.has_alpha):
            raise UserError(
                f"--mask-weight {config.mask_weight:g}: expected images whose masks or transparency say where the "
                "object is, and whose background is not ignored; leave --mask-weight or --ignore-background out"
            )
        self.first: dvgo.Recipe | None = None
        self.first_steps = 0
        if config.shape_steps:
            region = choose_region(config, geometry)
            self.first_steps = _first_steps(config, geometry, region)
            self.first = density_recipe(config, geometry, region) if self.first_steps else None
        self.shaping = self.first_steps > 0
        self.adaptive = config.sampler == "occupancy"
        self.rays = min(FEWEST_RAYS, config.rays) if self.adaptive else config.rays

    def stage(self, step: int) -> str:
        return "density" if self.shaping else "surface"

    def sampling(self, step: int) -> Sampling:
        """Pixels of all images or of one; over random colours where images are transparent and nothing is behind. Where
        photographs show more than masks say and nothing is to be behind, colours count within the masks (the
        original's training with masks)."""
        if self.shaping:
            return self.first.sampling(step)
        config, geometry = self.config, self.geometry
        colors = "object" if _masked(config, geometry) else "all"
        if config.batching == "image":
            return Sampling("image_rays", rays=self.rays, colors=colors)
        alone = geometry.has_alpha and config.surroundings in ("auto", "none")
        return Sampling("shuffled_rays", rays=self.rays, background="random" if alone else "scene", colors=colors)

    def photometric(self, rendering: Rendering, batch: Batch) -> Tensor:
        """The absolute error, its mean over rays and its mean or sum over channels. In the first stage the density
        field's own loss."""
        if self.shaping:
            return self.first.photometric(rendering, batch)
        error = l1(rendering.color, batch.target, mask=batch.mask)
        return 3 * error if self.config.l1 == "sum" else error

    def optimizers(self, model: Model) -> dict[str, Optimizer]:
        """Adam over the fields and, where there is one, over the background; the first update has the learning rate of
        step 0."""
        if model.shape is not None:
            return self.first.optimizers(model.shape)
        config, factor = self.config, self.rate(0)
        behind = [] if model.behind is None else list(model.behind.parameters())
        groups = {"networks": [], "sharpness": [], "table": [], "color_table": []}
        kinds = {"sharpness.v": "sharpness", "sdf.encoding.table": "table", "colors.grid.table": "color_table"}
        for name, parameter in model.named_parameters():
            if not name.startswith("behind."):
                groups[kinds.get(name, "networks")].append(parameter)
        rates = self.highest_rates
        fields = [{"params": ps, "name": name, "lr": factor * rates[name]} for name, ps in groups.items() if ps]
        shared = {"eps": config.adam_eps, "fused": True}
        found = {"fields": Adam(fields, **shared)}
        if behind:
            found["background"] = Adam([{"params": behind, "name": "background", "lr": factor * config.lr}], **shared)
        return found

    @property
    def highest_rates(self) -> dict[str, float]:
        """Highest learning rate of every group of parameters."""
        config = self.config
        rates = {"networks": config.lr, "background": config.lr}
        tables = {"table": config.table_lr, "color_table": config.color_table_lr}
        return rates | tables | {"sharpness": config.sharpness_lr}

    def rate(self, step: int) -> float:
        """The share of the highest learning rates that applies after `step` steps, not counting the first stage's."""
        config = self.config
        if step < config.warmup_steps:
            return step / config.warmup_steps
        part = min(1.0, (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps))
        return config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * part))

    def after_backward(self, model: Model, step: int) -> None:
        """The density field's own, in the first stage."""
        if model.shape is not None:
            self.first.after_backward(model.shape, step)

    def after_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """Set the next step's learning rates, annealing, levels, grid and number of rays."""
        if model.shape is not None:
            return self._after_shape_step(model, optimizers, rendering, step)
        step -= self.first_steps
        config, factor = self.config, self.rate(step)
        model.advance(step)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = factor * self.highest_rates[group["name"]]
        figures = {"s": float(model.sharpness().detach())}
        if self.adaptive:
            if step % config.update_every == 0:
                model.grid.update(model.sdf.distance, REACH / figures["s"])
            marched = total(rendering.extras["marched"])
            figures |= {"rays": self.rays, "samples": marched, "occupied": model.grid.share}
            wanted = self.rays * config.samples / max(marched, 1)
            # At most twice as many: one batch that happened to look past the scene must not be followed by a huge one.
            self.rays = int(min(max(wanted, FEWEST_RAYS), 2 * self.rays, config.rays))
        return figures

    def _after_shape_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """The density field's own; after its last step, the surface starts from what it found."""
        try:
            figures = self.first.after_step(model.shape, optimizers, rendering, step)
        except UserError as error:
            reason = str(error).partition(";")[0]  # what follows is advice on dvgo's own flags
            log.warning("step %d: the first stage ends early, the surface starts as a ball: %s", step, reason)
            figures, model.shape = {}, None
        else:
            if step < self.first_steps:
                return figures
            model.begin_surface(self.geometry)
        self.first_steps, self.shaping = step, False
        optimizers.clear()
        optimizers.update(self.optimizers(model))
        return figures

    def state_dict(self) -> dict[str, Tensor]:
        inner = self.first.state_dict() if self.shaping else {}
        first = {f"first.{name}": value for name, value in inner.items()}
        numbers = {"rays": self.rays, "first_steps": self.first_steps, "shaping": self.shaping}
        return {name: torch.tensor(value) for name, value in numbers.items()} | first

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.rays, self.first_steps, self.shaping = (
            int(state["rays"]),
            int(state["first_steps"]),
            bool(state["shaping"]),
        )
        if self.shaping:
            first = {name.removeprefix("first."): value for name, value in state.items() if name.startswith("first.")}
            self.first.load_state_dict(first)


def _surroundings(config: Config, geometry: SceneGeometry, region: Region) -> str:
    """What is behind the region: "none", "contracted" or "sphere"."""
    if config.surroundings != "auto":
        return config.surroundings
    return "none" if geometry.cut_out or region.inside_out else "contracted"


def _first_steps(config: Config, geometry: SceneGeometry, region: Region) -> int:
    """Steps of the first stage, which is for objects with nothing behind them: around cameras, densities become a fog
    before the lenses, from which no surface starts, and of photographs they would explain what is behind, too."""
    alone = _surroundings(config, geometry, region) == "none" and not _masked(config, geometry)
    return config.shape_steps if alone and not region.inside_out else 0


def _masked(config: Config, geometry: SceneGeometry) -> bool:
    """Whether colours count within masks alone: photographs show more than the object, and nothing is to be behind."""
    return config.mask_weight > 0 and config.surroundings == "none" and not geometry.cut_out


def _eikonal(gradients: Tensor, count: int) -> Tensor:
    """Sum of (|g| - 1)^2 over [K, 3], as a share of `count` of them; 0 of none."""
    return (gradients.norm(dim=-1) - 1).square().sum() / max(count, 1)


def _sdf_network(config: Config, inside_out: bool) -> SDFNetwork:
    return SDFNetwork(
        _hash_grid(config) or Octaves(config.octaves, config.spare_inputs),
        width=config.width,
        depth=config.depth,
        features=config.features,
        skip=4 if config.depth >= 8 else None,
        bias=config.bias,
        inside_out=inside_out,
        weight_norm=config.weight_norm,
    )


def _hash_grid(config: Config) -> HashFeatures | None:
    if config.point_encoding != "hash":
        return None
    sizes = config.log2_table_size, config.base_resolution, config.finest_resolution
    levels = HashLevels.between(config.levels, 2, *sizes)
    return HashFeatures(levels, levels.table())


@torch.no_grad()
def export(model: Model, folder: Path) -> list[Path]:
    """Write `point_cloud.ply`: points on the surface, in the scene's frame and units, with the colour that each has
    seen straight on."""
    cells = cell_middles(EXPORT_CELLS, model.region.center.device)
    parts = [_surface(model, part) for part in cells.split(ROWS_AT_ONCE)]
    points, colors = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(points):
        log.warning("the field has no surface in its region: the point cloud is empty")
    path = Path(folder) / "point_cloud.ply"
    write_point_cloud(path, points, colors)
    return [path]


def _surface(model: Model, centers: Tensor) -> tuple[Tensor, Tensor]:
    """World positions [N', 3] and colours [N', 3] of the surface in those of the cells about local `centers` [N, 3]
    that it passes through."""
    cell = 2 / EXPORT_CELLS
    points = centers[model.sdf.distance(centers).abs() < cell]
    starts = points
    for _ in range(3):
        distance, _, gradient = model.sdf(points)
        points = points - (distance / gradient.square().sum(-1).clamp_min(0.01))[:, None] * gradient
    distance, _, gradient = model.sdf(points)
    here = (distance.abs() < 0.1 * cell) & ((points - starts).abs() <= 0.5 * cell).all(-1)
    world = model.region.center + model.region.radius * points[here]
    return world, model.surface_colors(world, F.normalize(gradient[here], dim=-1))
