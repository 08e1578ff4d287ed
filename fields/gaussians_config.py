"""How 3D Gaussians are drawn and trained, in one frozen dataclass, and its two presets.

The dataclass's own defaults are the published ones (Kerbl et al. 2023), for 30,000 steps.
Lengths are in units of the scene's extent (`SceneGeometry.extent`) where a field says so; screen-space gradients are
those of 3DGS, per pixel of normalised device coordinates (pixel gradient times half the image size).
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from nfc_splat.errors import UserError

STEP_FIELDS = ("sh_degree_every", "refine_start", "refine_stop", "refine_every", "reset_every", "prune_large_from")
FEWEST_VIEWS = 10  # a refinement that has seen fewer views than this works on noise


@dataclass(frozen=True)
class Config:
    """3D Gaussian splatting (Kerbl et al. 2023). --help shows the values of the chosen --preset and --strategy."""

    STEP_FIELDS: ClassVar[tuple[str, ...]] = STEP_FIELDS
    # What --help calls the flags from this one to the next that is named here.
    FLAG_GROUPS: ClassVar[dict[str, str]] = {
        "steps": "3dgs drawing and start",
        "dssim_weight": "3dgs loss and learning rate",
        "strategy": "3dgs densification",
        "prune_opacity": "3dgs pruning and MCMC",
    }

    steps: int = 30_000
    """Training steps. The preset's schedule is rescaled to them; what other flags count in steps is taken as given."""

    sh_degree: int = 3
    """Degree of the spherical harmonics that hold the colour, 0 (no view dependence) to 3."""
    sh_degree_every: int = 1000
    """Steps between two degrees; training starts with degree 0."""
    antialiased: bool = False
    """Compensate opacities for the screen-space blur (Mip-Splatting), for viewing at other scales than trained."""
    near_plane: float = 0.01
    """Gaussians whose centre is nearer than this to the camera plane are not drawn, in world units."""
    far_plane: float = 1e10
    """Gaussians whose centre is farther than this are not drawn, in world units."""
    backend: Literal["auto", "reference", "cpu", "cuda"] = "auto"
    """Which rasteriser. "auto" follows the device; "reference" is slow and for checks."""

    init_points: int = 100_000
    """Random Gaussians to start from when the scene has no points."""
    init_cube: float = 0.0
    """They fill the cube from minus to plus this around the origin, in world units, where the cameras look at such a
    cube; 0 for wherever the cameras look. Published for Blender's scenes: 1.3."""
    init_opacity: float = 0.1
    """Opacity at the start."""
    init_scale: float = 1.0
    """Standard deviation at the start, in distances to the nearest three neighbours."""

    dssim_weight: float = 0.2
    """Share of 1 - SSIM in the base loss; the rest is L1."""
    opacity_reg: float = 0.0
    """Weight of the mean opacity in the loss (MCMC wants 0.01)."""
    scale_reg: float = 0.0
    """Weight of the mean standard deviation, in world units, in the loss (MCMC wants 0.01)."""

    lr_means: float = 1.6e-4
    """Learning rate of the positions at the first step, per unit of extent."""
    lr_means_final: float = 1.6e-6
    """Learning rate of the positions at the last step; log-linear from --lr-means."""
    lr_quats: float = 1e-3
    """Learning rate of the rotations."""
    lr_scales: float = 5e-3
    """Learning rate of the logarithms of the standard deviations."""
    lr_opacities: float = 5e-2
    """Learning rate of the opacities' logits."""
    lr_sh0: float = 2.5e-3
    """Learning rate of the base colours."""
    lr_shN: float = 1.25e-4
    """Learning rate of the view-dependent colours."""

    strategy: Literal["default", "mcmc"] = "default"
    """How Gaussians are added and removed: 3DGS's clone, split, prune and opacity reset, or 3DGS-MCMC's relocation."""
    max_primitives: int = 5_000_000
    """Never more Gaussians than this; a notice says when that keeps a Gaussian from being added."""
    refine_start: int = 500
    """Gaussians are added and removed only after this step."""
    refine_stop: int = 15_000
    """Gaussians are added and removed only before this step."""
    refine_every: int = 100
    """Steps from one adding and removing of Gaussians to the next."""
    densify_from: Literal["base", "total"] = "base"
    """Loss whose screen-space gradient decides where the default strategy adds Gaussians. "base" is the photometric
    loss's alone, which no other term then disturbs (one more backward pass while adding); "total" is the whole
    loss's."""
    absgrad: bool = False
    """Add up absolute screen-space gradients over pixels (AbsGS). They are larger: --grow-grad2d wants about 8e-4 with
    them, 2e-4 without."""
    grow_grad2d: float = 2e-4
    """Gaussians with a larger mean screen-space gradient are cloned or split."""
    grow_scale3d: float = 0.01
    """Gaussians to be added to are cloned up to this standard deviation and split above it, in units of the extent."""
    prune_opacity: float = 0.005
    """Gaussians fainter than this are removed (default) or moved to where others are (MCMC)."""
    prune_scale3d: float = 0.1
    """Gaussians with a larger standard deviation than this are removed, in units of the extent."""
    prune_large_from: int = 3000
    """Step after which Gaussians larger than --prune-scale3d are removed."""
    reset_every: int = 3000
    """Steps between two opacity resets, which lower every opacity to at most twice --prune-opacity; 0 for none."""
    mcmc_growth: float = 0.05
    """MCMC: Gaussians added at each refinement, as a share of those there."""
    mcmc_noise: float = 5e5
    """MCMC: strength of the noise on faint Gaussians' positions, times their learning rate."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float:
                require(self, field.name, math.isfinite(value), "a finite number")
            if field.type in (int, float):
                require(self, field.name, value >= 0, "0 or more")
        for name in ("steps", "sh_degree_every", "refine_every", "max_primitives", "init_points"):
            require(self, name, getattr(self, name) >= 1, "1 or more")
        require(self, "init_opacity", 0 < self.init_opacity < 1, "strictly between 0 and 1")
        # A reset sets opacities to twice this at most, which has to stay one.
        require(self, "prune_opacity", 0 < self.prune_opacity < 0.5, "strictly between 0 and 0.5")
        for name in ("init_scale", "lr_means", "lr_means_final", "near_plane"):
            require(self, name, getattr(self, name) > 0, "above 0")
        require(self, "far_plane", self.far_plane > self.near_plane, f"above --near-plane {self.near_plane}")
        require(self, "sh_degree", self.sh_degree <= 3, "0, 1, 2 or 3")
        require(self, "dssim_weight", self.dssim_weight <= 1, "from 0 to 1")

    def scaled_to(self, steps: int) -> Self:
        """The same schedule stretched or squeezed to `steps`: every field counted in steps is rescaled.

        What happens at all still happens, and a refinement still waits for at least `FEWEST_VIEWS` steps.
        """
        factor = steps / self.steps
        values = {name: getattr(self, name) for name in self.STEP_FIELDS}
        scaled = {name: max(1, round(value * factor)) if value else 0 for name, value in values.items()}
        scaled["refine_every"] = max(min(self.refine_every, FEWEST_VIEWS), scaled["refine_every"])
        return replace(self, steps=steps, **scaled)


def require(config: Config, name: str, holds: bool, expected: str) -> None:
    """Raise a `UserError` that names the flag of the field `name` unless its value `holds`."""
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} {getattr(config, name)}: expected {expected}")


def _paper(strategy: str) -> Config:
    """The published recipes: Kerbl et al. 2023, and Kheradmand et al. 2024 (3DGS-MCMC)."""
    if strategy == "default":
        return Config()
    return Config(
        strategy="mcmc",
        init_opacity=0.5,
        init_scale=0.1,
        opacity_reg=0.01,
        scale_reg=0.01,
        refine_stop=25_000,
        max_primitives=1_000_000,
    )


def _quick(strategy: str) -> Config:
    """Minutes on two CPU cores, for images of about 200 to 320 pixels.

    Tuned on synthetic and real scenes of that size: no opacity resets, which cost more steps than such a short run has;
    absolute gradients and early removal of faint Gaussians, which put a small number of them to better use.
    """
    shared = dict(steps=8000, sh_degree_every=500, init_points=10_000, max_primitives=20_000)
    if strategy == "mcmc":
        return replace(_paper("mcmc"), **shared, refine_start=300, refine_stop=6500)
    return Config(
        **shared,
        refine_start=300,
        refine_stop=5000,
        absgrad=True,
        grow_grad2d=8e-4,
        prune_opacity=0.02,
        prune_large_from=1500,
        reset_every=0,
    )


def preset(name: str, **overrides: Any) -> Config:
    """The configuration called `name`, "quick" (two CPU cores) or "paper" (a GPU), with some fields replaced.

    `strategy` selects the preset's values for that strategy. `steps` rescales the preset's schedule; other fields are
    taken as given, so `refine_every=100` means 100 steps whatever `steps` is.

    Raises:
        UserError: unknown preset or strategy, unknown field, or a value out of range.
    """
    presets = {"quick": _quick, "paper": _paper}
    if name not in presets:
        raise UserError(f"--preset {name}: expected one of {', '.join(presets)}")
    unknown = sorted(set(overrides) - set(Config.__dataclass_fields__))
    if unknown:
        raise UserError(f"3dgs has no setting {', '.join(unknown)}: see --help for those it has")
    strategy = overrides.pop("strategy", "default")
    if strategy not in ("default", "mcmc"):
        raise UserError(f"--strategy {strategy}: expected default or mcmc")
    config = presets[name](strategy)
    steps = overrides.pop("steps", None)
    if steps is not None:
        config = config.scaled_to(max(1, steps)) if steps >= 1 else replace(config, steps=steps)
    return replace(config, **overrides)
