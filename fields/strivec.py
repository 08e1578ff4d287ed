"""Strivec (Gao et al. 2023, arXiv 2307.13226): sparse local tensors, each of three vectors per rank, at several scales.

DVGO's coarse stage finds roughly where matter is, or points say so. Tensors of several sizes are placed there, and a
point's density and appearance are averages over the nearest ones of each size, summed over the sizes; a small network
turns appearance and viewing direction into colours. The vectors grow twice or more, and cells found empty are masked.

Differences from the released code: the mask is asked for at the middle of cells, not between their corners, so that it
ends half a cell nearer; points that no ray can reach get no tensors; the colour is not clamped to [0, 1] before the
loss, as it exceeds 1 by rounding alone; rays do not end at a far depth but with the region.

Symbols: R rays, M samples, A active cells, N tensors of a scale, C ranks, L logits per colour channel.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nfc_splat.cameras import Rays
from nfc_splat.errors import UserError
from nfc_splat.fields import dvgo
from nfc_splat.fields.color_head import ColorHead
from nfc_splat.fields.dvgo_views import crossing_pixels
from nfc_splat.fields.encodings import Positional
from nfc_splat.fields.marched import MarchedRecipe, packed_pixels, unpacked_pixels, warn_of_misses
from nfc_splat.fields.masked_adam import MaskedAdam
from nfc_splat.fields.mlp import MLP
from nfc_splat.fields.point_cloud_file import write_point_cloud
from nfc_splat.fields.recipe import Batch, Sampling, SceneGeometry
from nfc_splat.fields.strivec_config import Config as Config
from nfc_splat.fields.strivec_config import preset as preset
from nfc_splat.fields.strivec_geometry import (
    Region,
    choose_region,
    coarse_config,
    coarse_model,
    coarse_points,
    given_points,
    in_region,
)
from nfc_splat.fields.strivec_size import check_cells, placed_centers
from nfc_splat.fields.strivec_tensors import CellMask, Scale
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.density_grid import opacity
from nfc_splat.rendering.grids import max_pool_grid
from nfc_splat.rendering.level_set import LevelSet
from nfc_splat.rendering.march import MarchedModel, composite
from nfc_splat.rendering.samplers import box_steps
from nfc_splat.rendering.samples import Samples
from nfc_splat.rendering.sharing import total
from nfc_splat.rendering.tensor_cells import TensorCells, find_cells, lattice_size
from nfc_splat.rendering.trivectors import densities_along, query_trivectors

STOP = 1e-3  # a ray ends once less than this of it goes on
SURFACE = 0.5  # opacity of a cell's side from which export takes it for a surface
ROWS_AT_ONCE = 2**16

log = logging.getLogger("nfc_splat")


class Model(MarchedModel):
    """Tensors in a region, and the network that colours them.

    Attributes:
        coarse: DVGO's coarse stage while that is trained, and then None.
        scales: the tensors, the largest first; none in the coarse stage.
        basis: from the appearance of all scales to features; its columns are the scales' own matrices side by side.
        net: from features and viewing direction to logits.
        mask: cells that may hold something; None as long as nobody has looked.
        box: [2, 3] lattice of cells, world units. near: [] where rays begin. unit: [] world length of the unit.
    """

    ray_bytes = 2**16

    def __init__(self, config: Config, region: Region) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("box", region.box.clone())
        self.register_buffer("near", torch.tensor(region.near, dtype=torch.float64))
        self.register_buffer("unit", torch.tensor(region.unit, dtype=torch.float64))
        self.numbers = region.near, region.unit  # of the host: a GPU is waited for whenever one is read
        self.coarse: dvgo.Model | None = None
        self.scales = nn.ModuleList()
        self.mask: CellMask | None = None
        self._cells: TensorCells | None = None
        self.head = ColorHead(config.target_encoding)
        self.encoding = self.head.encoding
        self.basis = _basis(config)
        self.embeddings = nn.ModuleList([Positional(config.features, config.octaves), Positional(3, config.octaves)])
        inputs = sum(embedding.out_dim for embedding in self.embeddings)
        self.net = MLP(inputs, self.head.out_features, config.width, 2, bf16=config.bf16)
        nn.init.zeros_(self.net.layers[-1].bias)

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> Self:
        """The coarse stage, or where points are given, tensors at them."""
        region = choose_region(config, geometry)
        log.info("scene:  %s", region.described())
        if not geometry.cut_out and geometry.bounds is None:
            log.warning("images show more than an object, and what is outside of the region is not drawn: see --region")
        model = cls(config, region).to(geometry.cameras.viewmats.device)
        if config.geometry == "coarse":
            model.coarse = coarse_model(config, geometry)
        else:
            model.place(given_points(geometry))
        return model

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a checkpoint, whatever stage and size it is of."""
        part = lambda name: {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}  # noqa: E731
        model = cls(config, Region(tensors["box"], float(tensors["near"]), float(tensors["unit"])))
        if coarse := part("coarse."):
            model.coarse = dvgo.Model.from_tensors(coarse_config(config), coarse)
        else:
            model.scales = nn.ModuleList(Scale(**part(f"scales.{level}.")) for level in range(config.scales))
        if mask := part("mask."):
            model.mask = CellMask(**mask)
        model.load_state_dict(dict(tensors))
        if model.coarse is None:
            model._lay_out()
        return model

    @property
    def cells(self) -> TensorCells:
        """The lattice of cells, on the tensors' device."""
        if self._cells.low.device != self.box.device:
            self._cells = self._cells.to(self.box.device)
        return self._cells

    @property
    def cell(self) -> float:
        """Side of a cell in world units: that of the first scale's vectors."""
        return 2 * self.config.halves[0] * self.numbers[1] / self.scales[0].cells

    @property
    def step(self) -> float:
        """Length of a step along a ray in world units."""
        return self.config.stepsize * self.cell

    @property
    def primitives(self) -> int | None:
        """How many tensors there are."""
        return sum(len(scale.centers) for scale in self.scales) if len(self.scales) else None

    def place(self, points: Tensor, opacities: Tensor | None = None) -> None:
        """Replace the coarse stage by tensors about points [P, 3]; `opacities` [P] are the coarse stage's there.

        Raises:
            UserError: no point lies in the region, or there would be more tensors than memory is meant for.
        """
        config, (near, unit) = self.config, self.numbers
        within = in_region(points, Region(self.box, near, unit), max(config.halves) * unit)
        points, opacities = points[within].to(self.box), None if opacities is None else opacities[within]
        centers = placed_centers(config, points, unit, opacities)
        check_cells(config, self.box, unit)
        cells, rank = config.cells_at(0), config.appearance_rank
        shapes = zip(centers, cells, config.density_ranks, strict=True)
        self.coarse = None
        self.scales = nn.ModuleList(Scale.random(*shape, rank) for shape in shapes)
        self._lay_out()
        if not len(self.cells.neighbors):
            raise UserError(
                "no place of the region is reached by tensors of every scale: larger --halves, or more points, are "
                "needed"
            )

    def _lay_out(self) -> None:
        """Cells of the present size over the box, and which tensors belong to each."""
        size = lattice_size(self.box, self.cell)
        low, keep = self.box[0].clone(), None
        if self.mask is not None:
            keep = self.mask.overlapping(low, self.cell, size)
        centers = [scale.centers for scale in self.scales]
        unit = self.numbers[1]
        halves = [half * unit for half in self.config.halves]
        self._cells = find_cells(low, self.cell, size, centers, halves, self.config.nearest, keep, unit)
        self.box.copy_(self._cells.box)

    def march(self, rays: Rays, background: Tensor) -> Rendering:
        """See `MarchedModel.march`."""
        if self.coarse is not None:
            self.coarse.draw_bits, self.coarse.draw_normals = self.draw_bits, self.draw_normals
            return self.coarse.march(rays, background)
        drawing = _Pass(self, self.sample(rays))
        return composite(drawing, drawing.samples, background, weight_threshold=self.config.weight_threshold, stop=STOP)

    def sample(self, rays: Rays) -> Samples:
        """Samples of active cells along rays, the same in training and test."""
        cells = self.cells
        return box_steps(rays, *cells.box, self.step, near=self.numbers[0], offset=0.0, occupancy=cells.occupied)

    def densities(self, samples: Samples) -> tuple[Samples, Tensor, Tensor]:
        """The samples that are seen, their raw densities [M'], and the rows of their cells."""
        return densities_along(
            self.cells,
            [scale.density for scale in self.scales],
            samples,
            clamp=self.config.border == "clamp",
            shift=self.config.density_shift,
            interval=self.interval(self.step),
            stop=0.99 * STOP,  # whatever the last bits are, not earlier than the compositing
        )

    def raw_at(self, points: Tensor, rows: Tensor) -> Tensor:
        """Raw densities [M] at points [M, 3] in the cells `rows` [M]."""
        lines = [scale.density for scale in self.scales]
        return query_trivectors(self.cells, lines, points, rows, summed=True, clamp=self.config.border == "clamp")

    def opacity_at(self, points: Tensor, length: float, rows: Tensor | None = None) -> Tensor:
        """Opacities [M] at points [M, 3] of a length in world units; 0 outside of active cells."""
        rows = self.cells.rows_of(points) if rows is None else rows
        alpha = opacity(self.raw_at(points, rows), self.config.density_shift, self.interval(length))
        return torch.where(rows >= 0, alpha, torch.zeros_like(alpha))

    def interval(self, length: float) -> float:
        """What a length in world units counts as when something is drawn."""
        return self.config.density_scale * length / self.numbers[1]

    def logits_at(self, points: Tensor, rows: Tensor, directions: Tensor) -> Tensor:
        """[M, 3 L] at points [M, 3] in the cells `rows` [M], seen along unit directions [M, 3]."""
        lines, clamp = [scale.appearance for scale in self.scales], self.config.border == "clamp"
        appearance = query_trivectors(self.cells, lines, points, rows, summed=False, clamp=clamp)
        features = self.basis(appearance)
        of_features, of_directions = self.embeddings
        return self.net(torch.cat([of_features(features), of_directions(directions)], 1))

    def level_set(self) -> LevelSet:
        """Where the side of a cell is half opaque."""
        if self.coarse is not None:
            return self.coarse.level_set()
        return LevelSet(lambda points: self.opacity_at(points, self.cell), SURFACE, self.cells.box.clone())

    def surface_colors(self, points: Tensor, normals: Tensor) -> Tensor:
        """Colours [N, 3] seen at world points [N, 3] of a surface, looking against its normals [N, 3]."""
        if self.coarse is not None:
            return self.coarse.surface_colors(points, normals)
        return self.head(self.logits_at(points, self.cells.rows_of(points), -normals))

    @torch.no_grad()
    def update_mask(self, step: int) -> None:
        """Take out cells that are empty together with all cells about them; `step` is for the message.

        Raises:
            UserError: nothing is left.
        """
        config, cells = self.config, self.cells
        length = self.step if config.mask_alpha == "rendered" else self.step / config.density_scale
        places = cells.active()
        parts = [
            self.opacity_at(cells.middles(part), length, cells.rows[part.unbind(1)])
            for part in places.split(ROWS_AT_ONCE)
        ]
        alpha = torch.zeros(cells.size, device=self.box.device)
        alpha[places.unbind(1)] = torch.cat(parts)
        occupied = (max_pool_grid(alpha) > config.mask_threshold) & cells.occupied
        if not occupied.any():
            raise UserError(
                f"step {step}: no cell is occupied any more: opacities are at most {float(alpha.max()):.3g}, more than "
                f"{config.mask_threshold:.3g} is needed; raise --steps or --region, lower --mask-threshold or check "
                "the poses with nfc_splat.doctor"
            )
        self.mask = CellMask.of(occupied, cells.low, cells.cell)
        self._lay_out()

    def shrink(self) -> None:
        """Cut the box to what the mask leaves, at the borders of cells."""
        self.box.copy_(self.mask.box())
        self._lay_out()

    def grow(self, growth: int) -> None:
        """Give the vectors the cells of that growth; new parameters, and a lattice of smaller cells."""
        for scale, cells in zip(self.scales, self.config.cells_at(growth), strict=True):
            scale.grow(cells)
        self._lay_out()

    def described(self) -> str:
        """One line on the tensors and cells."""
        counts = " + ".join(f"{len(scale.centers)} of {scale.cells}" for scale in self.scales)
        numbers = sum(parameter.numel() for parameter in self.scales.parameters())
        active, all_cells = len(self.cells.neighbors), self.cells.rows.numel()
        return f"{counts} cells, {numbers:,} numbers; {active:,} of {all_cells:,} cells of the region are active"

    def regularizers(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """The mean absolute value of the density's vectors, summed over axes and scales. The coarse stage's own."""
        if self.coarse is not None:
            return self.coarse.regularizers(rendering, batch, step)
        if not self.config.l1:
            return {}
        return {"l1": self.config.l1 * sum(3 * scale.density.abs().mean() for scale in self.scales)}


class _Pass:
    """The field's answers along the rays of one request, as the marcher's `Field`: densities are found while looking
    for the samples that are seen."""

    def __init__(self, model: Model, samples: Samples) -> None:
        self.model, self.encoding, self.draw_normals = model, model.encoding, model.draw_normals
        self.samples, self.raw, self.rows = model.densities(samples)

    def alpha(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Opacities [M] and the rows of the cells [M]. For other samples than its own, at their positions."""
        raw, rows, config = self.raw, self.rows, self.model.config
        if samples is not self.samples:
            rows = self.model.cells.rows_of(samples.positions)
            raw = self.model.raw_at(samples.positions, rows)
        return opacity(raw, config.density_shift, self.model.interval(self.model.step)), rows

    def color(self, samples: Samples, features: Tensor) -> Tensor:
        """Decoded colours [M, 3] in the cells `features`, with the bits' probabilities behind them if drawn."""
        logits = self.model.logits_at(samples.positions, features, samples.directions)
        return self.model.head(logits, bits=self.model.draw_bits)


class Recipe(MarchedRecipe):
    """Masked Adam, whose moments and learning rates start anew at every growth.

    Attributes:
        first: trains the coarse stage, if there is one.
        candidates: [K] int64, the pixels whose rays meet the tensors; drawn from once these are there.
    """

    def __init__(self, config: Config, geometry: SceneGeometry) -> None:
        super().__init__(config, geometry)
        self.rays = config.rays
        self.first = dvgo.Recipe(coarse_config(config), geometry) if config.geometry == "coarse" else None
        self.candidates: Tensor | None = None

    def stage(self, step: int) -> str:
        return "coarse" if step <= self.config.first_steps else "tensors"

    def sampling(self, step: int) -> Sampling:
        """Coarse: any pixels. Then each pixel whose ray meets the tensors once per epoch."""
        if step <= self.config.first_steps:
            return self.first.sampling(step)
        return Sampling("shuffled_rays", rays=self.rays, candidates=self.candidates)

    def optimizers(self, model: Model) -> dict[str, Optimizer]:
        """The coarse stage's own; then numbers without a gradient rest."""
        if model.coarse is not None:
            return self.first.optimizers(model.coarse)
        config = self.config
        groups = [
            {"params": list(model.scales.parameters()), "lr": config.lr_lines, "name": "lines"},
            {"params": [*model.basis.parameters(), *model.net.parameters()], "lr": config.lr_net, "name": "net"},
        ]
        return {"field": MaskedAdam(groups, betas=(0.9, 0.99), eps=config.adam_eps, skip_zero_grad=True)}

    def after_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """Let the learning rates fall, and change the model as the schedule says."""
        config, own = self.config, step - self.config.first_steps
        if model.coarse is not None:
            figures = self.first.after_step(model.coarse, optimizers, rendering, step)
            if own == 0:
                model.place(*coarse_points(model.coarse, config.geometry_threshold))
                self._begin(model, step)
                optimizers.update(self.optimizers(model))
            return figures
        if self.candidates is None:  # there was no coarse stage
            self._begin(model, step)
        for group in optimizers["field"].param_groups:
            group["lr"] *= 0.1 ** (1 / config.lr_decay_steps)
        if own in config.mask_at:
            model.update_mask(step)
            if own == config.mask_at[0]:
                model.shrink()
        if own in config.grow_at:
            model.grow(1 + config.grow_at.index(own))
            optimizers.update(self.optimizers(model))
        if own in config.mask_at or own in config.grow_at:
            log.info("step %d: %s", step, model.described())
        return {"tensors": model.primitives, "samples": total(len(rendering.extras["samples"]))}

    def _begin(self, model: Model, step: int) -> None:
        """Find the rays that are worth drawing."""
        cameras = self.geometry.cameras
        self.candidates = crossing_pixels(cameras, model.sample)
        pixels = int(cameras.sizes.prod(1).sum())
        hit = torch.zeros(pixels, dtype=torch.bool).index_fill_(0, self.candidates, True)
        remedy = "they may have missed the scene; raise --coarse-steps or lower --geometry-threshold"
        if self.config.geometry == "points":
            remedy = "the points may not be where the cameras look; check their frame and unit, or raise --region"
        warn_of_misses(hit, "the tensors", remedy)
        share = 100 * len(self.candidates) / pixels
        log.info("step %d: %s; %.0f %% of the rays cross them", step, model.described(), share)

    def state_dict(self) -> dict[str, Tensor]:
        """The candidates as one bit per pixel."""
        return {} if self.candidates is None else {"candidates": packed_pixels(self.candidates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if "candidates" in state:
            self.candidates = unpacked_pixels(state["candidates"])


def _basis(config: Config) -> nn.Linear:
    """The scales' matrices side by side, each started as torch would start it alone."""
    basis = nn.Linear(config.scales * config.appearance_rank, config.features, bias=False)
    bound = config.appearance_rank**-0.5
    nn.init.uniform_(basis.weight, -bound, bound)
    return basis


@torch.no_grad()
def export(model: Model, folder: Path) -> list[Path]:
    """Write `point_cloud.ply`: a coloured point for every opaque cell, in the scene's frame and units. The colour is
    the mean of those seen along the six axes."""
    if model.coarse is not None:
        return dvgo.export(model.coarse, folder)
    cells = model.cells
    parts = [_surface(model, cells.middles(part)) for part in cells.active().split(ROWS_AT_ONCE)]
    points, colors = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(points):
        log.warning("no cell is opaque: the point cloud is empty")
    path = Path(folder) / "point_cloud.ply"
    write_point_cloud(path, points, colors)
    return [path]


def _surface(model: Model, points: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [N', 3] and colours [N', 3] of the opaque ones among points [N, 3]."""
    points = points[model.opacity_at(points, model.cell) > SURFACE]
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).to(points)
    return points, torch.stack([model.surface_colors(points, axis.expand_as(points)) for axis in axes]).mean(0)
