"""How DVGO is built and trained, in one frozen dataclass, and its presets.

The defaults are the published ones (DirectVoxGO version 2, arXiv 2206.05085, and its released configurations): bounded
scenes as for Synthetic-NeRF, unbounded ones as for Tanks and Temples. What the kinds have different is None here, and
`settled` fills it in, once the scene is known. Steps of the fine stage count from 1 at its start.

The published large model of bounded scenes is `--voxels 16777216 --growths 6` (256^3; --base-voxels stays 160^3).
"""

import logging
import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from nfc_splat.errors import UserError
from nfc_splat.fields.recipe import SceneGeometry

STEP_FIELDS = ("coarse_steps", "grow_every", "mask_every", "lr_decay_steps", "tv_dense_until")
COARSE_THRESHOLD = 1e-7  # opacity that counts in the coarse stage
COARSE_ALPHA = 1e-6  # opacity that the coarse stage starts from
FEWEST_VOXELS = 8
LEAST_STEPSIZE = 0.05  # a batch of the published size takes 1 GB of samples then
PAPER_STEPS = {"yes": 25_000, "no": 30_000}
COARSE_REGULARIZATION = 10.0  # weights of entropy and point colours in the coarse stage, relative to the fine one's

BOUNDED = dict(
    rays=8192,
    voxels=160**3,
    base_voxels=160**3,
    growths=4,
    alpha_init=1e-2,
    alpha_threshold=1e-4,
    lr_density=0.1,
    distortion=0.0,
    tv_density=0.0,
    tv_color=0.0,
)
UNBOUNDED = dict(
    rays=4096,
    voxels=320**3,
    base_voxels=320**3,
    growths=7,
    alpha_init=1e-4,
    alpha_threshold=1e-4,
    lr_density=0.1,
    distortion=0.01,
    tv_density=1e-6,
    tv_color=1e-7,
)
# By Config.defaults and whether the scene is bounded. On two cores, unbounded scenes begin with 16^3 voxels: from 64^3
# on, as published, or with faster learning, matter close to the cameras explains the training views and no others.
FILLED = {
    ("published", True): BOUNDED,
    ("published", False): UNBOUNDED,
    ("quick", True): BOUNDED | dict(rays=2048, voxels=128**3, growths=3, alpha_threshold=1e-3, lr_density=0.2),
    ("quick", False): UNBOUNDED | dict(rays=2048, voxels=128**3, base_voxels=128**3),
}
# What bounded scenes have no use for, and what it is when left out.
UNBOUNDED_ONLY = dict(distortion=0.0, nearclip=0.0, contraction="l2", unbounded_inner_r=1.0, near_clip=None)
# The share of alpha_threshold that acts in unbounded scenes from a step on, which is in units of grow_every.
UNBOUNDED_THRESHOLDS = {0: 0.05, 1.5: 0.1, 2.5: 0.25, 3.5: 1 / 3, 4.5: 0.5, 5.5: 1.0}

log = logging.getLogger("nfc_splat")


@dataclass(frozen=True)
class Config:
    """Direct voxel grid optimisation (Sun et al. 2022). None stands for what suits the kind of scene."""

    FLAG_GROUPS: ClassVar[dict[str, str]] = {
        "steps": "dvgo scene and field",
        "rays": "dvgo schedule",
        "entropy": "dvgo losses and learning rates",
    }

    steps: int = 25_000
    """Training steps, the coarse stage's included. The preset's schedule is rescaled to them; what other flags count in
    steps is taken as given. Published: 25000, and 30000 for unbounded scenes, which takes --bounded no."""
    bounded: Literal["auto", "yes", "no"] = "auto"
    """"yes" for an object with nothing around it (a coarse stage finds its box), "no" for scenes without end (space is
    contracted). "auto" is "yes" where the images show an object alone."""
    defaults: Literal["published", "quick"] = "published"
    """What None stands for below: what was published for the kind of scene, or what suits two CPU cores, which is the
    same unless said."""
    target_encoding: Literal["auto", "none", "binary", "gray", "onehot", "thermometer"] = "auto"
    """What the colour network predicts: values ("none") or NFC's code of them. "auto" is "none" for regression and
    "binary" otherwise."""
    bf16: bool = False
    """Multiply the colour network's matrices in bfloat16."""
    voxels: int | None = None
    """Voxels of the final grid. None is 160^3 in bounded scenes, 320^3 in unbounded ones; quick: 128^3."""
    base_voxels: int | None = None
    """Voxels of the grid whose voxel opacities are calibrated to. None is 160^3 or 320^3; quick: 128^3 in unbounded
    scenes."""
    coarse_voxels: int = 1_024_000
    """Voxels of the coarse stage."""
    color_channels: int = 12
    """Features per voxel that the colour network reads."""
    width: int = 128
    """Width of the colour network's two hidden layers."""
    alpha_init: float | None = None
    """Opacity of a base voxel at the start of the fine stage. None is 1e-2, or 1e-4 in unbounded scenes: there, lower
    --alpha-threshold with it, as the released code does by itself."""
    alpha_threshold: float | None = None
    """Samples with less opacity or weight are left out. Unbounded scenes begin with a twentieth of it. None is 1e-4;
    quick: 1e-3 in bounded scenes."""
    stepsize: float = 0.5
    """Length of a step along a ray in voxels. In unbounded scenes lower --alpha-threshold with it, as the
    released code does by itself."""
    contraction: Literal["l2", "inf"] = "l2"
    """Unbounded scenes: norm by which space is contracted."""
    unbounded_inner_r: float = 1.0
    """Unbounded scenes: size of the uncontracted part, relative to the box around the cameras."""
    near_clip: float | None = None
    """Unbounded scenes: depth, in world units, at which the box around the cameras is taken, and nearer than which
    --nearclip acts. None is 0.02 of the largest distance between two cameras; NFC took 0.05 for Replica, whose rooms it
    scales to the cube from -1 to 1."""

    rays: int | None = None
    """Rays of a batch. None is 8192, or 4096 in unbounded scenes; quick: 2048."""
    coarse_steps: int = 5000
    """Steps of the coarse stage, fewer than --steps; unbounded scenes have none, whatever this says."""
    growths: int | None = None
    """How often the number of voxels is doubled on its way to --voxels, from 8 or more. None is 4, or 7 in unbounded
    scenes; quick: 3 in bounded ones."""
    grow_every: int = 1000
    """Steps of the fine stage from one doubling to the next; the unbounded thresholds follow in the same pace."""
    act_shift_decay: float = 1.0
    """What every doubling lowers raw densities by."""
    mask_every: int = 1000
    """Steps between two prunings of the occupancy mask; the first comes after half as many."""
    view_stride: int = 1
    """Coarse stage: every how many-th row and column of the images the views of a voxel are counted by."""

    entropy: float = 1e-3
    """Weight of the entropy of a ray's transparency; ten times that in the coarse stage."""
    rgbper: float = 1e-2
    """Weight of the squared errors of the samples' own colours; ten times that in the coarse stage."""
    distortion: float | None = None
    """Unbounded scenes: weight of the distortion loss. None is 0.01."""
    nearclip: float = 0.0
    """Unbounded scenes: weight of the pull on the density nearer than --near-clip."""
    tv_density: float | None = None
    """Weight of the density's total variation. None is 0, or 1e-6 in unbounded scenes."""
    tv_color: float | None = None
    """Weight of the colour features' total variation. None is 0, or 1e-7 in unbounded scenes."""
    tv_dense_until: int = 10_000
    """Step of the fine stage from which total variation only acts where there is another gradient."""
    lr_density: float | None = None
    """Learning rate of the densities. None is 0.1; quick: 0.2 in bounded scenes."""
    lr_color: float = 0.1
    """Learning rate of the colour features."""
    lr_net: float = 1e-3
    """Learning rate of the colour network."""
    lr_decay_steps: int = 20_000
    """Steps in which the learning rates fall to a tenth. They start anew at each doubling."""
    adam_eps: float = 1e-8
    """Epsilon of the optimiser, which stands beside the uncorrected second moment."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                _require(self, field.name, math.isfinite(value) and value >= 0, "a finite number, 0 or more")
        for name in ("steps", "width", "color_channels", "grow_every", "mask_every", "lr_decay_steps", "view_stride"):
            _require(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("rays", "near_clip"):
            value = getattr(self, name)
            _require(self, name, value is None or value > 0, "above 0")
        for name in ("voxels", "base_voxels", "coarse_voxels"):
            value = getattr(self, name)
            _require(self, name, value is None or FEWEST_VOXELS <= value <= 2**31, "8 to 2147483648")
        for name in ("unbounded_inner_r", "adam_eps"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        _require(self, "stepsize", self.stepsize >= LEAST_STEPSIZE, f"{LEAST_STEPSIZE} or more")
        _require(self, "alpha_init", self.alpha_init is None or 0 < self.alpha_init < 1, "strictly between 0 and 1")
        _require(self, "alpha_threshold", self.alpha_threshold is None or self.alpha_threshold < 1, "below 1")
        if self.bounded == "yes":  # others may have no coarse stage
            _require(self, "coarse_steps", self.coarse_steps < self.steps, f"fewer than --steps {self.steps}")

    def scaled_to(self, steps: int) -> "Config":
        """The same schedule stretched or squeezed to `steps`: every field counted in steps is rescaled."""
        factor = steps / self.steps
        scaled = {name: max(1, round(getattr(self, name) * factor)) for name in STEP_FIELDS}
        scaled["coarse_steps"] = min(round(self.coarse_steps * factor), steps - 1)
        return replace(self, steps=steps, **scaled)

    @property
    def fine_steps(self) -> int:
        return self.steps - self.coarse_steps


def settled(config: Config, bounded: bool) -> Config:
    """`config` for one kind of scene, with every None filled in.

    Raises:
        UserError: something set that the kind of scene has not, no room for the coarse stage, or too many doublings.
    """
    filled = FILLED[config.defaults, bounded]
    values = {name: value for name, value in filled.items() if getattr(config, name) is None}
    config = replace(config, bounded="yes" if bounded else "no", **values)
    most = (config.voxels // FEWEST_VOXELS).bit_length() - 1
    _require(config, "growths", config.growths <= most, f"at most {most} with --voxels {config.voxels}")
    if not bounded:
        return replace(config, coarse_steps=0)
    for name, absent in UNBOUNDED_ONLY.items():
        if (value := getattr(config, name)) != absent:
            raise UserError(f"{_flag(name)} {value}: has no effect in bounded scenes; leave it out or add --bounded no")
    return config


def is_bounded(config: Config, geometry: SceneGeometry) -> bool:
    """Whether the scene is an object with nothing around it: as `config` says, else if images show it alone."""
    return geometry.cut_out if config.bounded == "auto" else config.bounded == "yes"


def settled_for(config: Config, geometry: SceneGeometry) -> Config:
    """`config` settled for the scene, after saying what follows from that."""
    if config.bounded == "auto":
        kinds = "no image shows an object alone: an unbounded", "images show an object alone: a bounded"
        log.info("scene:  %s scene (--bounded %s)", kinds[geometry.cut_out], ("no", "yes")[geometry.cut_out])
        if not geometry.cut_out and config.steps == PAPER_STEPS["yes"]:
            log.warning("published are %d steps for unbounded scenes: give --bounded no", PAPER_STEPS["no"])
    config = settled(config, is_bounded(config, geometry))
    growths = min(config.growths, config.fine_steps // config.grow_every)
    if growths < config.growths:
        log.warning(
            "--growths %d, --grow-every %d: %d fit into the fine stage's %d steps, and %d of --voxels %d are reached",
            config.growths,
            config.grow_every,
            growths,
            config.fine_steps,
            voxels_at(config, growths),
            config.voxels,
        )
    return config


def thresholds(config: Config) -> dict[int, float]:
    """By step of the fine stage, the opacity that counts from then on; 0 is the start. `config` is settled."""
    if config.bounded == "yes":
        return {0: config.alpha_threshold}
    schedule = UNBOUNDED_THRESHOLDS.items()
    return {round(key * config.grow_every): share * config.alpha_threshold for key, share in schedule}


def voxels_at(config: Config, growth: int) -> int:
    """Voxels of the fine stage after that many doublings. `config` is settled."""
    return config.voxels // 2 ** (config.growths - growth)


def _require(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"{_flag(name)} {getattr(config, name)}: expected {expected}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _quick(bounded: str) -> Config:
    """Minutes on two CPU cores, for images of about 200 to 400 pixels."""
    return Config(
        steps=3000,
        bounded=bounded,
        defaults="quick",
        coarse_voxels=50**3,
        color_channels=6,
        width=64,
        coarse_steps=400,
        grow_every=250,
        mask_every=150,
        view_stride=4,
        lr_decay_steps=2400,
        tv_dense_until=1000,
    )


def _paper(bounded: str) -> Config:
    return Config(bounded=bounded, steps=PAPER_STEPS["no" if bounded == "no" else "yes"])


def preset(name: str, **overrides: Any) -> Config:
    """The configuration called `name`, "quick" (two CPU cores) or "paper" (a GPU), with some fields replaced.

    `bounded` selects the preset's number of steps for that kind of scene. `steps` rescales the preset's schedule; other
    fields are taken as given.

    Raises:
        UserError: unknown preset or kind of scene, unknown field, or a value out of range.
    """
    presets = {"quick": _quick, "paper": _paper}
    if name not in presets:
        raise UserError(f"--preset {name}: expected one of {', '.join(presets)}")
    unknown = sorted(set(overrides) - set(Config.__dataclass_fields__))
    if unknown:
        raise UserError(f"dvgo has no setting {', '.join(unknown)}: see --help for those it has")
    bounded = overrides.pop("bounded", "auto")
    if bounded not in ("auto", "yes", "no"):
        raise UserError(f"--bounded {bounded}: expected auto, yes or no")
    config = presets[name](bounded)
    steps = overrides.pop("steps", None)
    if steps is not None:
        config = config.scaled_to(max(1, steps)) if steps >= 1 else replace(config, steps=steps)
    return replace(config, **overrides)
