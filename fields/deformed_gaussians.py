"""4D Gaussian splatting (Wu et al. 2024, arXiv 2310.08528): static Gaussians and, in front of them, a deformation.

Training has two stages. The coarse one trains static Gaussians on all frames, whatever their time. The fine one deforms
them: it goes on with the same Gaussians, and with a new optimiser and a new clock. Everything that draws and densifies
is `nfc_splat.fields.gaussians`'.

Symbols: N canonical Gaussians, C cameras; parameters as there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.fields import gaussians
from nfc_splat.fields.deformation import Deformation
from nfc_splat.fields.deformed_gaussians_config import Config as Config
from nfc_splat.fields.deformed_gaussians_config import preset as preset
from nfc_splat.fields.densification import DefaultDensification, Densification
from nfc_splat.fields.hexplane import HexPlane
from nfc_splat.fields.recipe import Batch, SceneGeometry
from nfc_splat.rendering import Rendering

FEWEST_ROWS = 4  # of the planes along time
USUAL_EXTENT = 5.0  # of D-NeRF's scenes, about


class Model(gaussians.Model):
    """Canonical Gaussians, and where they are at a time."""

    config: Config

    def __init__(
        self,
        config: Config,
        tensors: Mapping[str, Tensor],
        deformation: Deformation,
        active_sh_degree: int = 0,
        deforming: bool = False,
        reach: float = 1.0,
    ):
        """Args:
        config, tensors, active_sh_degree: as for `gaussians.Model`.
        deformation: of these Gaussians.
        deforming: whether it is in use: in the fine stage.
        reach: world length of a displacement by 1.
        """
        super().__init__(config, tensors, active_sh_degree)
        self.deformation = deformation
        self.register_buffer("deforming", torch.tensor(deforming))
        self.register_buffer("reach", torch.tensor(reach))

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> Self:
        """Gaussians as `gaussians.Model`'s, and planes over the box that their centres fill."""
        tensors = gaussians.initial_gaussians(config, geometry)
        planes = HexPlane.initialise(
            tensors["means"],
            earliest=0.0 if config.time_planes == "normalized" else -1.0,
            channels=config.plane_channels,
            nodes=[config.plane_nodes * level for level in config.plane_levels],
            rows=config.time_rows or max(FEWEST_ROWS, len(geometry.cameras.times.unique()) // 2),
        )
        every = {"means": 3, "scales": 3, "quats": 4, "opacities": 1, "colors": 3 * (config.sh_degree + 1) ** 2}
        sizes = {name: size for name, size in every.items() if name in config.deform}
        deformation = Deformation(planes, config.deformation_width, sizes)
        deformation.initialise(config.zero_heads)
        reach = 1.0 if config.motion_unit == "published" else geometry.extent / USUAL_EXTENT
        return cls(config, tensors, deformation, deforming=config.coarse_steps == 0, reach=reach)

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a checkpoint, whatever N has become."""
        prefix = "deformation."
        part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        state = int(tensors["active_sh_degree"]), bool(tensors["deforming"]), float(tensors["reach"])
        return cls(config, tensors, Deformation.from_tensors(part), *state)

    def splats_at(self, time: Tensor | float) -> dict[str, Tensor]:
        """The Gaussians' parameters by name, before activation, at `time` in [0, 1]; the canonical ones before the fine
        stage."""
        splats = self.splats()
        if not self.deforming:
            return splats
        time = torch.as_tensor(time, dtype=self.means.dtype, device=self.means.device)
        changes = self.deformation(self.means, time, self.config.backend)
        if "means" in changes:
            changes["means"] = self.reach * changes["means"]
        if "colors" in changes:
            shift = changes.pop("colors").view(len(self.means), -1, 3)
            changes |= {"sh0": shift[:, :1], "shN": shift[:, 1:]}
        return splats | {name: splats[name] + shift.view_as(splats[name]) for name, shift in changes.items()}

    def render(self, cameras: Cameras, pixels: Tensor | None = None, *, background: Tensor) -> Rendering:
        """Draw `cameras` as `gaussians.Model` does, each at its time; view-dependent colours follow the moved centres.

        `extras["raster"]` is there only for a single camera.

        Raises:
            ValueError: the cameras have no times; several sizes; lens distortion.
        """
        if cameras.times is None:
            raise ValueError("the cameras have no times, and Gaussians that move are drawn at one")
        views = [
            self.draw(self.splats_at(cameras.times[index]), cameras[index], None, background)
            for index in range(len(cameras))
        ]
        whole = views[0] if len(views) == 1 else _joined(views)
        return whole if pixels is None else _picked(whole, pixels)

    def regularizers(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """In the fine stage, what keeps the planes smooth in space and time and near no motion."""
        config, planes = self.config, self.deformation.planes
        terms = super().regularizers(rendering, batch, step)
        if not self.deforming:
            return terms
        if config.plane_smoothness > 0:
            terms["plane_smoothness"] = config.plane_smoothness * planes.space_roughness(config.plane_roughness)
        if config.time_smoothness > 0:
            terms["time_smoothness"] = config.time_smoothness * planes.time_roughness()
        if config.time_constancy > 0:
            terms["time_constancy"] = config.time_constancy * planes.time_dependence()
        return terms


def _joined(views: list[Rendering]) -> Rendering:
    """Renderings of single cameras as one of all."""
    depths = [view.depth for view in views]
    depth = None if depths[0] is None else torch.cat(depths)
    return Rendering(torch.cat([v.color for v in views]), torch.cat([v.alpha for v in views]), depth)


def _picked(whole: Rendering, pixels: Tensor) -> Rendering:
    """The pixels [P, 3] of whole images."""
    chosen = pixels.unbind(-1)
    depth = None if whole.depth is None else whole.depth[chosen]
    return Rendering(whole.color[chosen], whole.alpha[chosen], depth, extras=whole.extras)


class RarelyPruning(DefaultDensification):
    """3DGS's clone and split, with 4DGS's rule for removing Gaussians: hardly ever."""

    config: Config

    def prunes(self, step: int, total: int) -> bool:
        every, before = self.config.prune_every, step - self.config.refine_every
        return total > self.config.prune_above and step // every > before // every


class Recipe(gaussians.Recipe):
    """Gaussians' recipe in two stages, each with its own clock, with learning rates for planes and networks."""

    config: Config
    strategies: ClassVar[Mapping[str, type[Densification]]] = {
        **gaussians.Recipe.strategies,
        "default": RarelyPruning,
    }

    def stage(self, step: int) -> str:
        return "coarse" if step <= self.config.coarse_steps else "fine"

    def clock(self, step: int) -> int:
        """The step of the stage that `step`, counted from 1 over both stages, belongs to."""
        return step if step <= self.config.coarse_steps else step - self.config.coarse_steps

    def optimizers(self, model: Model) -> dict[str, Optimizer]:
        """The Gaussians' Adam with two groups more, for the planes and for the networks. Neither has gradients in the
        coarse stage, so Adam leaves them alone."""
        optimizers = super().optimizers(model)
        (optimizer,) = optimizers.values()
        rates = self._rates()
        for name, parameters in (
            ("planes", list(model.deformation.planes.parameters())),
            ("deformation", model.deformation.network_parameters()),
        ):
            optimizer.add_param_group({"params": parameters, "lr": rates[name][0], "name": name})
        return optimizers

    def _rates(self) -> dict[str, tuple[float, float]]:
        """First and last learning rate of the groups whose rates fall."""
        config, units = self.config, dict.fromkeys(("means", "planes", "deformation"), self.extent)
        if config.motion_unit == "extent":
            units |= {"planes": USUAL_EXTENT, "deformation": USUAL_EXTENT}
        both = {name: (getattr(config, f"lr_{name}"), getattr(config, f"lr_{name}_final")) for name in units}
        return {name: (first * units[name], last * units[name]) for name, (first, last) in both.items()}

    def decay(self, optimizer: Optimizer, step: int) -> None:
        if step > self.config.decay_steps:
            return
        rates = self._rates()
        for group in optimizer.param_groups:
            if group["name"] in rates:
                first, last = rates[group["name"]]
                group["lr"] *= (last / first) ** (1 / self.config.decay_steps)

    def before_backward(self, rendering: Rendering, losses: Mapping[str, Tensor], step: int) -> None:
        super().before_backward(rendering, losses, self.clock(step))

    def after_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """What `gaussians.Recipe` does at this step of the stage; after the coarse stage's last, begin the fine one."""
        figures = super().after_step(model, optimizers, rendering, self.clock(step))
        if step == self.config.coarse_steps:
            (optimizer,) = optimizers.values()
            self._begin_fine_stage(model, optimizer)
        return figures

    def _begin_fine_stage(self, model: Model, optimizer: Optimizer) -> None:
        model.deforming.fill_(True)
        self.densification.forget()
        optimizer.state.clear()
        rates = self._rates()
        for group in optimizer.param_groups:
            if group["name"] in rates:
                group["lr"] = rates[group["name"]][0]


def write_splats_at(model: Model, time: float, path: Path) -> None:
    """Write the Gaussians as they are at `time` in [0, 1] as a PLY in the INRIA layout, in the scene's frame and units.

    Raises:
        UserError: a time outside [0, 1].
    """
    if not 0 <= time <= 1:
        raise UserError(f"--time {time:g}: expected 0 to 1, the first and the last moment of the scene")
    with torch.no_grad():
        gaussians.write_gaussians(Path(path), model.splats_at(time), model.config.antialiased)


def export(model: Model, folder: Path) -> list[Path]:
    """Write `point_cloud.ply`, the Gaussians at time 0."""
    path = Path(folder) / "point_cloud.ply"
    write_splats_at(model, 0.0, path)
    return [path]
