"""Direct voxel grid optimisation, DVGO (Sun et al. 2022, arXiv 2111.11215 and 2206.05085): the model, how it is
trained, and what it leaves behind.

A density grid says where the scene is, a feature grid and a small network what colour it has. Bounded scenes train in
two stages, in one run: a coarse one with plain colours finds the box and the empty space, a fine one starts in them
with few voxels and doubles their number several times. Unbounded scenes have the fine stage alone, in contracted space.

Differences from the released code: gradients of the compositing are exact where it adds 1e-10 to a denominator; the
distortion loss is a mean over all rays, not up to the last one that meets something; epochs keep the batch that is left
over at their end; transparent images of unbounded scenes are composited over the random colours, not over white first;
the classification loss clamps at 1e-3 from below, not at 0 (`--loss-eps-low`); a bounded scene whose mask has become
empty ends the run; captures in LLFF's format take --near-clip from the distances between their cameras too, not nine
tenths of the nearest stated depth.

Symbols: R rays, M samples, P pixels, X, Y, Z nodes of a grid, K pixels, L logits per colour channel.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nfc_splat.cameras import Rays
from nfc_splat.errors import UserError
from nfc_splat.fields.color_head import ColorHead
from nfc_splat.fields.dvgo_bounds import enlarged, inner_cube, scene_box, tight_box
from nfc_splat.fields.dvgo_config import (
    COARSE_ALPHA,
    COARSE_REGULARIZATION,
    COARSE_THRESHOLD,
    is_bounded,
    settled,
    settled_for,
    thresholds,
    voxels_at,
)
from nfc_splat.fields.dvgo_config import Config as Config
from nfc_splat.fields.dvgo_config import preset as preset
from nfc_splat.fields.dvgo_space import Box, Contracted, Space, contracted_step, inner_steps
from nfc_splat.fields.dvgo_views import crossing_pixels, image_rays, near_camera, view_counts
from nfc_splat.fields.encodings import Positional
from nfc_splat.fields.marched import MarchedRecipe, packed_pixels, unpacked_pixels, warn_of_misses
from nfc_splat.fields.masked_adam import MaskedAdam
from nfc_splat.fields.mlp import MLP
from nfc_splat.fields.occupancy_mask import OccupancyMask
from nfc_splat.fields.point_cloud_file import write_point_cloud
from nfc_splat.fields.recipe import Batch, Sampling, SceneGeometry
from nfc_splat.fields.voxel_grid import VoxelGrid, grid_nodes, grid_size, voxel_size
from nfc_splat.files import write_json
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.density_grid import activation_shift, opacity, visible_samples
from nfc_splat.rendering.grids import add_total_variation_grad, max_pool_grid
from nfc_splat.rendering.level_set import LevelSet
from nfc_splat.rendering.march import MarchedModel, composite
from nfc_splat.rendering.packed import distortion_loss
from nfc_splat.rendering.samples import Samples, unit_directions
from nfc_splat.rendering.sharing import part_of_sum, total

STOP = 1e-3  # a ray ends once less than this of it goes on
OCCUPIED = 1e-3  # opacity from which the coarse stage's findings count
FINE_MARGIN = 1.05  # the fine stage's box, relative to what the coarse one found
OCTAVES = 4  # of the viewing direction
FEW_VIEWS = 2  # nodes seen by so few images or fewer are taken for empty
NEAR_DENSITY = -100.0  # raw density of nodes close to a camera
SURFACE = 0.5  # opacity of a voxel from which export takes it for a surface
LARGEST_MASK = 256**3  # nodes up to which the mask grows with the grids

log = logging.getLogger("nfc_splat")


class Numbers(NamedTuple):
    """What every step asks of a model's buffers and its box. A GPU is waited for whenever one is read."""

    voxels: int
    act_shift: float
    threshold: float
    voxel_size: float


class Model(MarchedModel):
    """Two grids, and in the fine stage a network.

    Attributes:
        density: raw densities [X, Y, Z, 1].
        features: [X, Y, Z, F]: what the network reads, in the coarse stage logits of the colours themselves.
        mask: where rays may meet something.
        net: None in the coarse stage.
        voxels: how many the grids were made for.
        act_shift: added to raw densities.
        threshold: samples with less opacity or weight are left out.
        numbers: the last three as numbers of the host, read when they change.
        seen: [X, Y, Z] how many images see a node, in the coarse stage; else None.
    """

    ray_bytes = 2**15

    def __init__(
        self, config: Config, space: Space, density: VoxelGrid, features: VoxelGrid, mask: OccupancyMask, coarse: bool
    ) -> None:
        super().__init__()
        self.config, self.space, self.embedding = config, space, Positional(3, OCTAVES, axis_major=True)
        self.register_buffer("voxels", torch.tensor(0))
        self.register_buffer("act_shift", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("threshold", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("seen", None)
        self.net: MLP | None = None
        self._fill(density, features, mask, coarse)

    def _fill(self, density: VoxelGrid, features: VoxelGrid, mask: OccupancyMask, coarse: bool) -> None:
        self.density, self.features, self.mask = density, features, mask
        self.head = _head(self.config, coarse).to(density.box.device)
        self.encoding = self.head.encoding
        if not coarse:
            inputs = self.config.color_channels + self.embedding.out_dim
            net = MLP(inputs, self.head.out_features, self.config.width, 2, bf16=self.config.bf16)
            nn.init.zeros_(net.layers[-1].bias)
            self.net = net.to(density.box.device)

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> Self:
        """The coarse stage of a bounded scene (the fine one if `config` has no coarse steps), or the fine stage of an
        unbounded one: empty grids, apart from what the cameras tell."""
        config = settled_for(config, geometry)
        if config.bounded == "no":
            center, radius, near_clip = inner_cube(geometry, config.unbounded_inner_r, config.near_clip)
            space, box = Contracted(center, radius, near_clip, config.contraction), Contracted.box(center.device)
        else:
            near, box = scene_box(geometry)
            space = Box(torch.tensor(near, device=box.device))
        coarse = config.coarse_steps > 0
        if config.bounded == "yes" and not coarse:
            box = enlarged(box, FINE_MARGIN)
        voxels = config.coarse_voxels if coarse else voxels_at(config, 0)
        density, features, mask = _empty(config, box, voxels, coarse)
        model = cls(config, space, density, features, mask, coarse)
        model._start(voxels)
        log.info("scene:  %s", model.described())
        if config.bounded == "yes":
            hit = [model.sample(rays).offsets.diff() > 0 for view in image_rays(geometry.cameras, 8) for rays in view]
            remedy = "correct the depth range or bounds that its files state, or choose --bounded no"
            warn_of_misses(torch.cat(hit), "the scene's box", remedy)
        if coarse:
            model._look_from(geometry)
        return model

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a checkpoint, whatever stage and size it is of."""
        part = lambda name: {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}  # noqa: E731
        facts = part("space.")
        config = settled(config, "near" in facts)
        space = Box(facts["near"]) if "near" in facts else Contracted(**facts, norm=config.contraction)
        density, features = (VoxelGrid(**part(f"{name}.")) for name in ("density", "features"))
        coarse = "net.layers.0.weight" not in tensors
        model = cls(config, space, density, features, OccupancyMask(**part("mask.")), coarse)
        if coarse:
            model.seen = tensors["seen"]
        model.load_state_dict(dict(tensors))
        model._read_numbers()
        return model

    def _start(self, voxels: int) -> None:
        """Begin a stage whose grids were made for `voxels`."""
        alpha, threshold = self.config.alpha_init, thresholds(self.config)[0]
        self.voxels.fill_(voxels)
        self.act_shift.fill_(activation_shift(COARSE_ALPHA if self.coarse else alpha))
        self.set_threshold(COARSE_THRESHOLD if self.coarse else threshold)

    def set_threshold(self, threshold: float) -> None:
        """Leave out samples with less opacity or weight from now on."""
        self.threshold.fill_(threshold)
        self._read_numbers()

    def _read_numbers(self) -> None:
        voxels = int(self.voxels)
        side = voxel_size(self.density.box, voxels)
        self.numbers = Numbers(voxels, float(self.act_shift), float(self.threshold), side)

    def _look_from(self, geometry: SceneGeometry) -> None:
        """Use what the training cameras tell of the coarse grid: nothing stands close to them, and nodes that hardly
        any of them sees stay empty."""
        box, size, near = self.density.box, self.density.size, float(self.space.near)
        with torch.no_grad():
            self.density.values[near_camera(geometry.cameras, box, size, near)] = NEAR_DENSITY
        step = 0.5 * self.numbers.voxel_size
        self.seen = view_counts(geometry.cameras, box, size, step, near, self.config.view_stride)
        self.mask.prune(self.seen > FEW_VIEWS)
        if not self.mask.occupied.any():
            raise UserError(
                f"no voxel is seen by more than {FEW_VIEWS} of the {len(geometry.cameras)} training images, and the "
                "coarse stage believes no others: train on more images, or choose --coarse-steps 0"
            )

    @property
    def coarse(self) -> bool:
        """Whether this is the coarse stage."""
        return self.net is None

    @property
    def voxel_ratio(self) -> float:
        """Side of a voxel in base voxels, those of the coarse stage being its own: the length over which a node's
        opacity is asked."""
        base = self.config.coarse_voxels if self.coarse else self.config.base_voxels
        return (base / self.numbers.voxels) ** (1 / 3)

    def described(self) -> str:
        """One line on the scene's space and the grids."""
        size = " x ".join(map(str, self.density.size))
        if isinstance(self.space, Contracted):
            return f"unbounded, {size} voxels, contracted outside of radius {float(self.space.radius):.4g}"
        sides = " x ".join(f"{side:.4g}" for side in (self.density.box[1] - self.density.box[0]).tolist())
        return f"bounded, {'coarse' if self.coarse else 'fine'} stage with {size} voxels in a box of {sides}"

    def march(self, rays: Rays, background: Tensor) -> Rendering:
        """See `MarchedModel.march`."""
        samples = visible_samples(
            self.sample(rays),
            self.density.values,
            *self.density.box,
            shift=self.numbers.act_shift,
            interval=self.config.stepsize * self.voxel_ratio,
            threshold=self.numbers.threshold,
            stop=0.99 * STOP,  # whatever the last bits are, not earlier than the compositing
            **self.space.grid_coordinates(),
        )
        return composite(self, samples, background, weight_threshold=self.numbers.threshold, stop=STOP)

    def sample(self, rays: Rays) -> Samples:
        """Where to look along rays."""
        stepsize, length = self.config.stepsize, self.density.size[0]
        if isinstance(self.space, Contracted):
            return self.space.sample(rays, self.mask, contracted_step(length, stepsize), inner_steps(length, stepsize))
        return self.space.sample(rays, self.mask, stepsize * self.numbers.voxel_size)

    def alpha(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Opacities and raw densities [M]."""
        raw = self.density(self.space.to_grid(samples.positions))[:, 0]
        return opacity(raw, self.numbers.act_shift, self.config.stepsize * self.voxel_ratio), raw

    def color(self, samples: Samples, features: Tensor) -> Tensor:
        """Decoded colours [M, 3], with the bits' probabilities behind them if `draw_bits`. `features` is not used."""
        values = self.features(self.space.to_grid(samples.positions))
        if self.net is not None:
            directions = self.embedding(unit_directions(samples.rays))[samples.ray]
            values = self.net(torch.cat([values, directions], 1))
        return self.head(values, bits=self.draw_bits)

    def colors_at(self, points: Tensor) -> Tensor:
        """Mean over the six axes of the colours [M, 3] seen at points [M, 3] of the grids."""
        values = self.features(points)
        if self.net is None:
            return self.head(values)
        axes = torch.cat([torch.eye(3), -torch.eye(3)]).to(values)
        views = [self.embedding(axis).expand(len(points), -1) for axis in axes]
        return torch.stack([self.head(self.net(torch.cat([values, view], 1))) for view in views]).mean(0)

    def level_set(self) -> LevelSet:
        """Where the length of a voxel is half opaque; in a contracted space, of the cube left as it is."""
        space = self.space
        sides = self.act_shift.new_tensor([[-1.0], [1.0]], dtype=torch.float32)
        bounds = self.density.box if isinstance(space, Box) else space.center + space.radius * sides

        def alpha(points: Tensor) -> Tensor:
            return opacity(self.density(space.to_grid(points))[:, 0], self.numbers.act_shift, self.voxel_ratio)

        return LevelSet(alpha, SURFACE, bounds.clone())

    def surface_colors(self, points: Tensor, normals: Tensor) -> Tensor:
        """Colours [N, 3] seen at world points [N, 3] of a surface, looking against its normals [N, 3]."""
        values = self.features(self.space.to_grid(points))
        return self.head(values if self.net is None else self.net(torch.cat([values, self.embedding(-normals)], 1)))

    @torch.no_grad()
    def node_alpha(self, size: tuple[int, int, int]) -> Tensor:
        """[X, Y, Z] opacity of a voxel's length at `size` nodes of the box."""
        if size == self.density.size:
            raw = self.density.values[..., 0]
        else:
            slabs = grid_nodes(self.density.box, size).split(8)
            raw = torch.cat([self.density(slab.reshape(-1, 3)).view(slab.shape[:3]) for slab in slabs])
        return opacity(raw, self.numbers.act_shift, self.voxel_ratio)

    def update_mask(self, step: int) -> None:
        """Take out of the mask what has become empty; `step` is for the message.

        Raises:
            UserError: nothing is left of a bounded scene. An unbounded one goes on, as the background alone.
        """
        self._prune(self.node_alpha(self.mask.size), step)

    def grow(self, voxels: int, step: int) -> None:
        """Change to grids of `voxels`, and the mask with them while it is not too large; new parameters."""
        self.voxels.fill_(voxels)
        self._read_numbers()
        size = grid_size(self.density.box, voxels)
        self.density.resize(size)
        self.features.resize(size)
        if math.prod(size) <= LARGEST_MASK:
            self.mask = self.mask.resampled(self.density.box, size)
            self._prune(self.node_alpha(size), step)
        self.act_shift -= self.config.act_shift_decay
        self._read_numbers()

    @torch.no_grad()
    def begin_fine_stage(self, step: int) -> None:
        """Replace the coarse grids by empty ones in the box of what was found, and the mask by what was found."""
        config, raw, shift = self.config, self.density.values[..., 0], self.numbers.act_shift
        nodes = grid_nodes(self.density.box, self.density.size)
        box = enlarged(tight_box(nodes, opacity(raw, shift, self.voxel_ratio), OCCUPIED), FINE_MARGIN)
        found = opacity(max_pool_grid(raw), shift, self.voxel_ratio)
        voxels = voxels_at(config, 0)
        density, features, mask = _empty(config, box, voxels, coarse=False)
        mask.prune(OccupancyMask(found >= OCCUPIED, self.density.box).resampled(box, mask.size).occupied)
        self._fill(density, features, mask, coarse=False)
        self.seen = None
        self._start(voxels)
        self._note_emptiness(found, step)

    def _prune(self, alpha: Tensor, step: int) -> None:
        """Take nodes of the mask out that have no more opacity than the threshold around them."""
        before = bool(self.mask.occupied.any())
        self.mask.prune(max_pool_grid(alpha) > self.numbers.threshold)
        if before:
            self._note_emptiness(alpha, step)

    def _note_emptiness(self, alpha: Tensor, step: int) -> None:
        if self.mask.occupied.any():
            return
        message = (
            f"step {step}: no voxel is occupied any more: opacities lie from {float(alpha.min()):.3g} to "
            f"{float(alpha.max()):.3g}, more than {self.numbers.threshold:.3g} is needed; raise --steps, lower "
            "--alpha-threshold or check the poses with nfc_splat.doctor"
        )
        if isinstance(self.space, Box):
            raise UserError(message)
        log.warning("%s; training goes on, but nothing is drawn from here on", message)

    def regularizers(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Rays shall be opaque or clear ("entropy"), each sample's own colour right ("rgbper"); in unbounded scenes
        rays shall stop at once ("distortion") and nothing stand close to a camera ("nearclip")."""
        config, extras = self.config, rendering.extras
        samples, weights = extras["samples"], extras["weights"]
        scale = COARSE_REGULARIZATION if self.coarse else 1.0
        counts = batch.mask if batch.mask is not None else torch.ones_like(extras["transmittance"])
        terms = {}
        if config.entropy > 0:
            clear = extras["transmittance"].clamp(1e-6, 1 - 1e-6)
            entropy = -(clear * clear.log() + (1 - clear) * (1 - clear).log())
            terms["entropy"] = scale * config.entropy * (entropy * counts).mean()
        if config.rgbper > 0:
            error = (extras["colors"] - batch.target[samples.ray]).square().sum(-1)
            share = weights.detach() * counts[samples.ray]
            terms["rgbper"] = scale * config.rgbper * (share * error).sum() / len(counts)
        if config.distortion > 0:
            table = self.space.distances(inner_steps(self.density.size[0], config.stepsize))
            middle = (1 - 1 / (1 + table))[samples.steps]
            spread = distortion_loss(weights, middle, 1 / len(table), samples.offsets)
            terms["distortion"] = config.distortion * (spread * counts).mean()
        if config.nearclip > 0:
            lengths = samples.rays.directions.norm(dim=-1)[samples.ray]
            raw = extras["features"][samples.t * lengths < self.space.near_clip]
            terms["nearclip"] = config.nearclip * part_of_sum((raw - raw.detach()).sum())
        return terms


class Recipe(MarchedRecipe):
    """Masked Adam, whose moments and learning rates start anew at every doubling of the voxels."""

    def __init__(self, config: Config, geometry: SceneGeometry) -> None:
        config = settled(config, is_bounded(config, geometry))
        super().__init__(config, geometry)
        self.rays = config.rays
        self.candidates: Tensor | None = None  # [K] int64, the pixels that the fine stage of a bounded scene draws from

    def stage(self, step: int) -> str:
        return "coarse" if step <= self.config.coarse_steps else "fine"

    def sampling(self, step: int) -> Sampling:
        """Coarse: any pixels. Fine: each pixel whose ray crosses the mask once per epoch. Unbounded: each pixel once
        per epoch, over random colours."""
        if self.config.bounded == "no":
            return Sampling("shuffled_rays", rays=self.rays, background="random")
        if step <= self.config.coarse_steps:
            return Sampling("random_rays", rays=self.rays)
        return Sampling("shuffled_rays", rays=self.rays, candidates=self.candidates)

    def optimizers(self, model: Model) -> dict[str, Optimizer]:
        """Coarse: densities move in proportion to how many images see them. Fine: voxels without a gradient rest."""
        config = self.config
        density = {"params": [model.density.values], "lr": config.lr_density, "name": "density"}
        features = {"params": [model.features.values], "lr": config.lr_color, "name": "features"}
        if model.coarse:
            density["per_voxel_lr"] = (model.seen / model.seen.max())[..., None]
            groups = [density, features]
        else:
            density["skip_zero_grad"] = features["skip_zero_grad"] = True
            groups = [density, features, {"params": list(model.net.parameters()), "lr": config.lr_net, "name": "net"}]
        return {"field": MaskedAdam(groups, betas=(0.9, 0.99), eps=config.adam_eps)}

    def after_backward(self, model: Model, step: int) -> None:
        """Add the total variation's gradient."""
        if model.coarse:
            return
        dense = step - self.config.coarse_steps < self.config.tv_dense_until
        for grid, weight in ((model.density, self.config.tv_density), (model.features, self.config.tv_color)):
            if weight > 0 and grid.values.grad is not None:
                scaled = weight / self.rays * max(model.density.size) / 128
                add_total_variation_grad(grid.values, grid.values.grad, scaled, dense)

    def after_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """Let the learning rates fall, and make the model ready for the next step."""
        config = self.config
        for group in optimizers["field"].param_groups:
            group["lr"] *= 0.1 ** (1 / config.lr_decay_steps)
        if step < config.steps:
            self._prepare(model, optimizers, step + 1)
        return {"voxels": model.numbers.voxels, "samples": total(len(rendering.extras["samples"]))}

    def _prepare(self, model: Model, optimizers: dict[str, Optimizer], step: int) -> None:
        """What the released code does at the start of `step`, in its order: prune, double, set the threshold."""
        config = self.config
        if model.coarse and step > config.coarse_steps:
            self._begin_fine_stage(model, step)
            optimizers.update(self.optimizers(model))
        own = step if model.coarse else step - config.coarse_steps
        if (own + config.mask_every // 2) % config.mask_every == 0:
            model.update_mask(step)
        if model.coarse:
            return
        growth, rest = divmod(own, config.grow_every)
        if rest == 0 and 1 <= growth <= config.growths:
            model.grow(voxels_at(config, growth), step)
            optimizers.update(self.optimizers(model))
        if own in (schedule := thresholds(config)):
            model.set_threshold(schedule[own])

    def _begin_fine_stage(self, model: Model, step: int) -> None:
        model.begin_fine_stage(step)
        cameras = self.geometry.cameras
        self.candidates = crossing_pixels(cameras, model.sample)
        pixels = int(cameras.sizes.prod(1).sum())
        hit = torch.zeros(pixels, dtype=torch.bool).index_fill_(0, self.candidates, True)
        warn_of_misses(hit, "what the coarse stage found", "it may have missed the scene; raise --coarse-steps")
        share = 100 * len(self.candidates) / pixels
        log.info("step %d: %s; %.0f %% of the rays cross it", step, model.described(), share)

    def state_dict(self) -> dict[str, Tensor]:
        """The candidates as one bit per pixel."""
        return {} if self.candidates is None else {"candidates": packed_pixels(self.candidates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if "candidates" in state:
            self.candidates = unpacked_pixels(state["candidates"])


@torch.no_grad()
def export(model: Model, folder: Path) -> list[Path]:
    """Write `point_cloud.ply`, a coloured point for every opaque voxel, and `bounds.json`, where the grids lie; both in
    the scene's frame and units. The colour is the mean of those seen along the six axes."""
    alpha = model.node_alpha(model.mask.size)
    opaque = model.mask.occupied & (alpha > SURFACE)
    points = grid_nodes(model.mask.box, model.mask.size)[opaque]
    parts = [model.colors_at(part) for part in points.split(2**16)]
    colors = torch.cat(parts) if parts else points
    path = Path(folder) / "point_cloud.ply"
    write_point_cloud(path, model.space.to_world(points), colors)
    if not len(points):
        log.warning("no voxel is opaque: %s is empty", path)
    facts = {"stage": "coarse" if model.coarse else "fine", "voxels": list(model.density.size)} | model.space.facts(
        model.density.box
    )
    write_json(Path(folder) / "bounds.json", facts)
    return [path, Path(folder) / "bounds.json"]


def _head(config: Config, coarse: bool) -> ColorHead:
    """The colour head. The coarse stage keeps logits per voxel: eight per channel, as NFC's code, but not hundreds."""
    head = ColorHead(config.target_encoding)
    return ColorHead("none") if coarse and head.n_logits > 8 else head


def _empty(config: Config, box: Tensor, voxels: int, coarse: bool) -> tuple[VoxelGrid, VoxelGrid, OccupancyMask]:
    """Grids of zeros and a full mask."""
    size = grid_size(box, voxels)
    channels = _head(config, coarse).out_features if coarse else config.color_channels
    return VoxelGrid.zeros(box, size, 1), VoxelGrid.zeros(box, size, channels), OccupancyMask.full(box, size)
