"""How Gaussians that move are drawn and trained, in one frozen dataclass that extends that of static ones, and its two
presets.

The dataclass's own defaults are the published ones for D-NeRF's scenes (Wu et al. 2024, arXiv 2310.08528, and its
released code, which is followed where the two disagree). Steps are counted from the start of their stage, except in
`steps` and `coarse_steps`. Where the release does something odd, an option names it and its sane alternative.

Published for other scenes, as flags beside --preset paper (--steps counts the coarse stage too, the release does not):
    all of them  --coarse-steps 3000 --decay-steps 20000 --sh-degree-every 1000 --refine-start 500 --refine-every 100
                 --refine-stop 10000 --reset-every 0 --prune-every 100 --prune-large-from 3000
                 --plane-channels 16 --time-rows 150 --deformation-width 128
                 --plane-smoothness 2e-4 --time-smoothness 1e-3 --lr-planes-final 1.6e-4 --lr-deformation-final 1.6e-5
    HyperNeRF    --steps 17000 --plane-levels 1 2 4; batches of 2 views; --time-rows from 80 to 250 for some scenes
    DyNeRF       --steps 17000 --plane-levels 1 2 --deform means scales quats opacities colors; batches of 4 views, for
                 four scenes of 2
    DyCheck      --steps 63000 --plane-levels 1 2 4; batches of 2 views

What the oddities do, measured on D-NeRF's hook at 200x200 (one seed, 1500 steps of an earlier quick preset with 50 rows
along time, "normalized", zero heads and "published" roughness: 26.75 dB):
    --time-planes published              27.73 dB: half of the rows is in use; --time-rows 25 gives 27.64, 12 28.10
    --plane-roughness total-variation    26.72 dB: nothing
    --no-zero-heads                      25.64 dB: the jump costs a short run a decibel
And at 50x50 with 800 steps of quick and 3000 Gaussians, the cameras' positions times 0.1, 1 and 10 (at 1 the extent is
4.75):
    --motion-unit published              20.97, 28.65 and 23.25 dB
    --motion-unit extent                 28.71, 28.29 and 28.46 dB

Differences to the release that remain: a step sees one view, never a batch; the optimiser steps before Gaussians are
added, not after, and at the last step too; the cap is never exceeded; a weight of 0 for --time-smoothness leaves the
other two regularisers on; Gaussians are never pruned for their size in pixels. Heads for opacities and colours that do
not move are not made: with the published settings the networks have 17,290 numbers instead of 28,795.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from nfc_splat.errors import UserError
from nfc_splat.fields import gaussians_config
from nfc_splat.fields.deformation import Deformable
from nfc_splat.fields.gaussians_config import require
from nfc_splat.fields.hexplane import Smoothness


@dataclass(frozen=True)
class Config(gaussians_config.Config):
    """Gaussians that move: a HexPlane deforms static ones (4DGS, Wu et al. 2024). --help shows the values of the chosen
    --preset."""

    STEP_FIELDS: ClassVar[tuple[str, ...]] = (
        *gaussians_config.STEP_FIELDS,
        "coarse_steps",
        "decay_steps",
        "prune_every",
    )
    FLAG_GROUPS: ClassVar[dict[str, str]] = {
        "steps": "4dgs drawing and start",
        "dssim_weight": "4dgs loss and learning rate",
        "strategy": "4dgs densification",
        "prune_opacity": "4dgs pruning and MCMC",
        "coarse_steps": "4dgs stages and deformation",
        "plane_smoothness": "4dgs regularisers and learning rates",
    }

    steps: int = 23_000
    """Training steps of both stages together. The preset's schedule is rescaled to them; what other flags count in
    steps is taken as given."""
    backend: Literal["auto", "reference", "cpu", "cuda"] = "auto"
    """Which rasteriser and which HexPlane. "auto" follows the device; "reference" is slow and for checks."""
    init_points: int = 2000
    """Random Gaussians to start from when the scene has no points."""
    init_cube: float = 1.3
    """They fill the cube from minus to plus this around the origin, in world units, where the cameras look at such a
    cube; 0 for wherever the cameras look."""
    dssim_weight: float = 0.0
    """Share of 1 - SSIM in the base loss; the rest is L1."""
    max_primitives: int = 360_000
    """Never more Gaussians than this; a notice says when that keeps a Gaussian from being added."""

    coarse_steps: int = 3000
    """Steps of the first stage, which trains static Gaussians on all frames. The fine stage, the rest, deforms them and
    starts with a new optimiser and a new clock."""
    prune_every: int = 8000
    """Faint and large Gaussians are removed only at the first refinement from every such step on (published: hardly
    ever; 1 for every refinement, as in 3DGS)."""
    prune_above: int = 200_000
    """And only where there are more Gaussians than this."""
    plane_channels: int = 32
    """Channels of the planes."""
    plane_nodes: int = 64
    """Nodes of the coarsest level's planes along each axis of space."""
    plane_levels: tuple[int, ...] = (1, 2)
    """Levels of the planes, as multiples of --plane-nodes."""
    time_rows: int = 0
    """Nodes of the planes along time, the same on all levels; 0 for half as many as there are training times."""
    time_planes: Literal["published", "normalized"] = "published"
    """What the planes span in time: "published" -1 to 1 although times are 0 to 1, so that one half is never used;
    "normalized" 0 to 1."""
    deformation_width: int = 64
    """Width of the networks that decode the planes."""
    deform: tuple[Deformable, ...] = ("means", "scales", "quats")
    """What moves."""
    motion_unit: Literal["published", "extent"] = "published"
    """What displacements are counted in: "published", world units, with the learning rates of planes and networks per
    unit of extent, so that a scene in other units learns otherwise; "extent", fifths of the extent, about one unit in
    D-NeRF's scenes, with the rates of an extent of 5."""
    zero_heads: bool = False
    """Start the fine stage without deformation. Published: Gaussians jump by random offsets when it begins."""

    plane_smoothness: float = 1e-4
    """Weight of the spatial planes' roughness in the loss."""
    plane_roughness: Smoothness = "published"
    """What that is: "published", second differences along one axis of each plane, or "total-variation", first
    differences along both."""
    time_smoothness: float = 1e-2
    """Weight of the mean square of second differences along time in the loss."""
    time_constancy: float = 1e-4
    """Weight of the temporal planes' mean distance from 1, no motion, in the loss."""
    lr_planes: float = 1.6e-3
    """Learning rate of the planes at the start of the fine stage, per unit of extent."""
    lr_planes_final: float = 1.6e-5
    """And at its --decay-steps; log-linear between."""
    lr_deformation: float = 1.6e-4
    """Learning rate of the networks at the start of the fine stage, per unit of extent."""
    lr_deformation_final: float = 1.6e-6
    """And at its --decay-steps; log-linear between."""
    decay_steps: int = 20_000
    """Steps of a stage over which the learning rates of means, planes and networks fall."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("prune_every", "plane_channels", "deformation_width", "decay_steps"):
            require(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("lr_planes", "lr_planes_final", "lr_deformation", "lr_deformation_final"):
            require(self, name, getattr(self, name) > 0, "above 0")
        require(self, "coarse_steps", self.coarse_steps <= self.steps, f"at most --steps {self.steps}")
        require(self, "plane_nodes", self.plane_nodes >= 2, "2 or more")
        require(self, "plane_levels", min(self.plane_levels, default=0) >= 1, "one or more numbers, each 1 or more")
        require(self, "time_rows", self.time_rows != 1, "0 or 2 or more")
        require(self, "deform", len(set(self.deform)) == len(self.deform) > 0, "one or more, each once")


def _paper() -> Config:
    """Published for D-NeRF's synthetic scenes; --time-rows 0 gives the number published for each of them."""
    return Config()


def _quick() -> Config:
    """Minutes on two CPU cores, for images of about 200 pixels.

    Tuned on D-NeRF's hook: small planes and networks (wider ones learn the training views faster, not the test views),
    few rows along time, faster learning, pruning as in 3DGS so that the capped number of Gaussians is put to use.
    """
    return Config(
        steps=6000,
        coarse_steps=600,
        init_cube=0.0,
        sh_degree_every=200,
        max_primitives=10_000,
        refine_start=150,
        refine_stop=3000,
        refine_every=75,
        reset_every=0,
        prune_every=1,
        prune_above=0,
        prune_large_from=1200,
        plane_channels=16,
        plane_nodes=32,
        time_rows=12,
        time_planes="normalized",
        motion_unit="extent",
        deformation_width=32,
        zero_heads=True,
        lr_planes=5e-3,
        lr_planes_final=5e-5,
        lr_deformation=5e-4,
        lr_deformation_final=5e-6,
        decay_steps=5400,
    )


def preset(name: str, **overrides: Any) -> Config:
    """The configuration called `name`, "quick" (two CPU cores) or "paper" (a GPU), with some fields replaced.

    `steps` rescales the preset's schedule; other fields are taken as given.

    Raises:
        UserError: unknown preset, unknown field, or a value out of range.
    """
    presets = {"quick": _quick, "paper": _paper}
    if name not in presets:
        raise UserError(f"--preset {name}: expected one of {', '.join(presets)}")
    unknown = sorted(set(overrides) - set(Config.__dataclass_fields__))
    if unknown:
        raise UserError(f"4dgs has no setting {', '.join(unknown)}: see --help for those it has")
    config = presets[name]()
    steps = overrides.pop("steps", None)
    if steps is not None:
        config = config.scaled_to(steps) if steps >= 1 else replace(config, steps=steps)
    return replace(config, **overrides)
