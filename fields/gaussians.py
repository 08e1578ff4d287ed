"""3D Gaussian splatting (Kerbl et al. 2023): the model, how it is trained, and its file.

Symbols: N Gaussians, C cameras, H rows, W columns, P pixels, K = (degree + 1)^2 spherical-harmonics coefficients.
The model's parameters, before activation:
    means [N, 3], quats [N, 4] wxyz of any length, scales [N, 3] logarithms, opacities [N] logits,
    sh0 [N, 1, 3] and shN [N, K - 1, 3] with colour = 0.5 + SH(direction), at least 0.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nfc_splat.cameras import Cameras
from nfc_splat.fields.densification import SPLAT_TENSORS, DefaultDensification, Densification
from nfc_splat.fields.gaussians_config import Config as Config
from nfc_splat.fields.gaussians_config import preset as preset
from nfc_splat.fields.image_ssim import image_ssim
from nfc_splat.fields.initial_points import initial_points, neighbor_distance
from nfc_splat.fields.mcmc import MCMCDensification
from nfc_splat.fields.recipe import Batch, SceneGeometry
from nfc_splat.fields.recipe import Recipe as BaseRecipe
from nfc_splat.fields.splat_file import Splats, write_splats
from nfc_splat.losses import l1
from nfc_splat.rendering import Rendering, SceneModel
from nfc_splat.rendering.rasterize import RasterInfo, rasterize

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
SMALLEST = 1e-5  # initial standard deviation of coincident points, in units of the extent

log = logging.getLogger("nfc_splat")


class Model(SceneModel):
    """Gaussians in world space, drawn by rasterisation."""

    request: ClassVar = "image"

    def __init__(self, config: Config, tensors: Mapping[str, Tensor], active_sh_degree: int = 0):
        """Args:
        config: what was resolved for this run.
        tensors: the parameters of the module docstring by name.
        active_sh_degree: degree that is drawn; it rises during training.
        """
        super().__init__()
        self.config = config
        for name in SPLAT_TENSORS:
            setattr(self, name, nn.Parameter(tensors[name].detach().clone()))
        self.register_buffer("active_sh_degree", torch.tensor(active_sh_degree))

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> Self:
        """Isotropic Gaussians on the scene's points, or on random ones where the cameras look (with a notice)."""
        return cls(config, initial_gaussians(config, geometry))

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a checkpoint, whatever N has become."""
        return cls(config, tensors, int(tensors["active_sh_degree"]))

    @property
    def primitives(self) -> int:
        return len(self.means)

    def render(self, cameras: Cameras, pixels: Tensor | None = None, *, background: Tensor) -> Rendering:
        """Draw `cameras`, which must be of one size and undistorted.

        Depth costs a fourth channel, so it is drawn in eval mode only: `Rendering.depth` is None while the model is in
        training mode. Colours may exceed 1. `extras["raster"]` is the `RasterInfo`.

        Raises:
            ValueError: cameras of several sizes, or with lens distortion.
        """
        return self.draw(self.splats(), cameras, pixels, background)

    def splats(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {name: getattr(self, name) for name in SPLAT_TENSORS}

    def draw(
        self, splats: Mapping[str, Tensor], cameras: Cameras, pixels: Tensor | None, background: Tensor
    ) -> Rendering:
        """`render` with the parameters `splats` instead of the model's own."""
        if cameras.model != "pinhole":
            raise ValueError(f"Gaussians are rasterised without a lens: undistort the {cameras.model!r} images first")
        means = splats["means"]
        colors, alpha, info = rasterize(
            means,
            splats["quats"],
            splats["scales"].exp(),
            splats["opacities"].sigmoid(),
            (splats["sh0"], splats["shN"]),
            cameras.viewmats.to(means.dtype),
            cameras.Ks.to(means.dtype),
            cameras.width,
            cameras.height,
            sh_degree=int(self.active_sh_degree),
            near_plane=self.config.near_plane,
            far_plane=self.config.far_plane,
            backgrounds=background.to(means).expand(len(cameras), 3),
            render_mode="RGB" if self.training else "RGB+ED",
            rasterize_mode="antialiased" if self.config.antialiased else "classic",
            absgrad=self.config.absgrad and self.training,
            backend=self.config.backend,
        )
        if pixels is not None:
            chosen = pixels.unbind(-1)
            colors, alpha = colors[chosen], alpha[chosen]
        depth = None if self.training else colors[..., 3:]
        return Rendering(colors[..., :3], alpha, depth, extras={"raster": info})

    def regularizers(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Mean opacity and mean standard deviation, which make MCMC's Gaussians disappear where nothing needs them."""
        terms = {}
        if self.config.opacity_reg > 0:
            terms["opacity"] = self.config.opacity_reg * self.opacities.sigmoid().mean()
        if self.config.scale_reg > 0:
            terms["scale"] = self.config.scale_reg * self.scales.exp().mean()
        return terms


def initial_gaussians(config: Config, geometry: SceneGeometry) -> dict[str, Tensor]:
    """The parameters of isotropic Gaussians on `initial_points`, as wide as the points are apart."""
    points, colors = initial_points(geometry, config.init_points, config.max_primitives, config.init_cube)
    scales = (neighbor_distance(points) * config.init_scale).clamp_min(SMALLEST * geometry.extent)
    count, device = len(points), points.device
    return {
        "means": points,
        "quats": torch.tensor([1.0, 0, 0, 0], device=device).repeat(count, 1),
        "scales": scales.log()[:, None].repeat(1, 3),
        "opacities": torch.full((count,), config.init_opacity, device=device).logit(),
        "sh0": ((colors - 0.5) / SH_C0)[:, None],
        "shN": torch.zeros(count, (config.sh_degree + 1) ** 2 - 1, 3, device=device),
    }


class Recipe(BaseRecipe):
    """Adam with a learning rate per parameter, one image at a time, densification by the configured strategy."""

    strategies: ClassVar[Mapping[str, type[Densification]]] = {
        "default": DefaultDensification,
        "mcmc": MCMCDensification,
    }

    def __init__(self, config: Config, geometry: SceneGeometry):
        self.config = config
        self.extent = geometry.extent
        self.densification = self.strategies[config.strategy](config, self.extent)
        self._base_gradients: Tensor | None = None

    def optimizers(self, model: Model) -> dict[str, Optimizer]:
        """One fused Adam with a named group per parameter. The means' learning rate decays log-linearly to its final
        value, and both are per unit of extent."""
        rates = {name: getattr(self.config, f"lr_{name}") for name in SPLAT_TENSORS}
        rates["means"] *= self.extent
        groups = [{"params": [getattr(model, name)], "lr": rates[name], "name": name} for name in SPLAT_TENSORS]
        return {"gaussians": Adam(groups, eps=1e-15, fused=True)}

    def photometric(self, rendering: Rendering, batch: Batch) -> Tensor:
        """0.8 L1 + 0.2 (1 - SSIM), each a mean over the pixels that count."""
        weight = self.config.dssim_weight
        absolute = l1(rendering.color, batch.target, mask=batch.mask)
        if weight == 0:
            return absolute
        return (1 - weight) * absolute + weight * (1 - image_ssim(rendering.color, batch.target, batch.mask))

    def before_backward(self, rendering: Rendering, losses: Mapping[str, Tensor], step: int) -> None:
        """Arrange for the screen-space gradients, of the whole loss or of the base term alone.

        The two differ only by the classification term: the regularisers do not look at the image.
        """
        self._base_gradients = None
        if not self.densification.wants_gradients(step):
            return
        means2d = rendering.extras["raster"].means2d
        if self.config.densify_from == "base" and "classification" in losses:
            (gradients,) = torch.autograd.grad(losses["photometric"], means2d, retain_graph=True)
            self._base_gradients = means2d.absgrad.clone() if self.config.absgrad else gradients
        else:
            means2d.retain_grad()

    def after_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """Densify, let the SH degree rise, set the next step's learning rate."""
        if self.densification.wants_gradients(step):
            info: RasterInfo = rendering.extras["raster"]
            self.densification.observe(self._screen_gradients(info), info)
        (optimizer,) = optimizers.values()
        means = next(group for group in optimizer.param_groups if group["name"] == "means")
        figures = self.densification.after_step(model, optimizer, step, means["lr"])
        self.decay(optimizer, step)
        if step % self.config.sh_degree_every == 0:
            model.active_sh_degree.add_(1).clamp_(max=self.config.sh_degree)
        return {"primitives": model.primitives, **figures}

    def decay(self, optimizer: Optimizer, step: int) -> None:
        """Lower the learning rates for the step after `step`."""
        # A factor, not a value: the trainer may have slowed the optimiser down.
        factor = (self.config.lr_means_final / self.config.lr_means) ** (1 / self.config.steps)
        for group in optimizer.param_groups:
            if group["name"] == "means":
                group["lr"] *= factor

    def _screen_gradients(self, info: RasterInfo) -> Tensor:
        if self._base_gradients is not None:
            return self._base_gradients
        return info.means2d.absgrad if self.config.absgrad else info.means2d.grad

    def state_dict(self) -> dict[str, Tensor]:
        return self.densification.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.densification.load_state_dict(state)


def export(model: Model, folder: Path) -> list[Path]:
    """Write `point_cloud.ply` (INRIA layout) in the scene's frame and units; says how many rows were unusable."""
    path = Path(folder) / "point_cloud.ply"
    write_gaussians(path, model.splats(), model.config.antialiased)
    return [path]


def write_gaussians(path: Path, splats: Mapping[str, Tensor], antialiased: bool) -> None:
    """Write parameters as a PLY; says how many rows were unusable."""
    tensors = {name: tensor.detach().cpu() for name, tensor in splats.items()}
    dropped = write_splats(path, Splats(**tensors, antialiased=antialiased))
    if dropped:
        log.warning("%s: left out %d Gaussians with non-finite values", path, dropped)
