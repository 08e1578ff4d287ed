"""How a hash-grid field is built and trained, in one frozen dataclass, and its two presets.

The dataclass's own defaults are the published ones (Mueller et al. 2022, appendix E, and the released configuration).
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from nfc_splat.errors import UserError

STEP_FIELDS = ("decay_start", "decay_every", "update_every", "warmup")


@dataclass(frozen=True)
class Config:
    """A hash-grid field (Instant-NGP, Mueller et al. 2022). --help shows the values of the chosen --preset."""

    FLAG_GROUPS: ClassVar[dict[str, str]] = {
        "steps": "ngp field",
        "march_steps": "ngp rays and occupancy",
        "lr": "ngp learning rate",
    }

    steps: int = 35_000
    """Training steps. The preset's schedule is rescaled to them; what other flags count in steps is taken as given."""
    target_encoding: Literal["auto", "none", "binary", "gray", "onehot", "thermometer"] = "auto"
    """What the colour network predicts: values ("none") or NFC's code of them. "auto" is "none" for regression and
    "binary" otherwise."""
    bf16: bool = False
    """Multiply the networks' matrices in bfloat16."""
    space: Literal["auto", "box", "contracted"] = "auto"
    """"box" for an object with nothing around it, "contracted" for scenes without end. "auto" is "box" where the images
    show an object alone or the files state bounds."""
    box_scale: float = 1.0
    """Enlarges (above 1) or shrinks the box that is found for the scene, or the inner part of a contracted one."""

    levels: int = 16
    """Resolutions of the hash grid."""
    features: int = 2
    """Features per level, 1 to 8."""
    log2_table_size: int = 19
    """Most rows of a level's table, as a power of two."""
    base_resolution: int = 16
    """Vertices along a side of the coarsest level."""
    finest_resolution: int = 2048
    """Vertices along a side of the finest level."""
    width: int = 64
    """Width of the two networks."""
    color_layers: int = 2
    """Hidden layers of the colour network; the density network has one."""

    march_steps: int = 1024
    """Steps along the diagonal of the box."""
    cone: float = 1 / 256
    """In contracted space a step is at least this share of the distance from the camera."""
    samples: int = 2**18
    """Samples in a batch; the number of rays follows from how many each needs."""
    max_rays: int = 2**17
    """Never more rays in a batch than this."""
    stop: float = 1e-4
    """A ray ends when less than this of its light goes on."""
    weight_threshold: float = 1e-4
    """Samples that contribute less than this to their pixel are not asked for their colour."""
    grid: int = 128
    """Cells of the occupancy grid along an axis."""
    occupancy_decay: float = 0.95
    """What a cell's remembered density is multiplied with at every update of the grid."""
    occupancy_threshold: float = 0.01
    """A cell is occupied if a step through it is optically thicker than this, or than the mean of all cells."""
    update_every: int = 16
    """Steps from one update of the occupancy grid to the next."""
    warmup: int = 256
    """Up to this step an update looks at every cell, later at half as many."""

    lr: float = 1e-2
    """Learning rate at the start."""
    decay_start: int = 20_000
    """The learning rate falls for the first time at this step."""
    decay_every: int = 10_000
    """Steps from one fall of the learning rate to the next."""
    decay: float = 0.33
    """What the learning rate is multiplied with then."""
    weight_decay: float = 1e-6
    """Strength of the pull of the networks' weights (not the table's) towards 0."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float):
                _require(self, field.name, math.isfinite(value) and value >= 0, "a finite number, 0 or more")
        for name in ("steps", "width", "march_steps", "samples", "max_rays", "grid", "update_every", "decay_every"):
            _require(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("box_scale", "cone", "lr", "decay"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        _require(self, "levels", 1 <= self.levels <= 32, "1 to 32")
        _require(self, "features", 1 <= self.features <= 8, "1 to 8")
        _require(self, "log2_table_size", 3 <= self.log2_table_size <= 28, "3 to 28")
        _require(self, "base_resolution", 1 <= self.base_resolution <= 1024, "1 to 1024")
        high = f"{self.base_resolution} (--base-resolution) to 524288"
        _require(self, "finest_resolution", self.base_resolution <= self.finest_resolution <= 2**19, high)
        _require(self, "color_layers", self.color_layers <= 64, "0 to 64")
        _require(self, "march_steps", self.march_steps <= 2**16, "1 to 65536")
        _require(self, "grid", self.grid <= 1024, "1 to 1024")
        _require(self, "occupancy_decay", self.occupancy_decay <= 1, "from 0 to 1")
        for name in ("stop", "weight_threshold", "cone"):
            _require(self, name, getattr(self, name) < 1, "below 1")

    def scaled_to(self, steps: int) -> "Config":
        """The same schedule stretched or squeezed to `steps`: every field counted in steps is rescaled."""
        factor = steps / self.steps
        scaled = {name: max(1, round(getattr(self, name) * factor)) for name in STEP_FIELDS}
        return replace(self, steps=steps, **scaled)


def _require(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} {getattr(config, name)}: expected {expected}")


def _quick() -> Config:
    """Minutes on two CPU cores, for images of about 200 to 400 pixels."""
    return Config(
        steps=3500,
        levels=8,
        log2_table_size=16,
        finest_resolution=256,
        march_steps=384,
        cone=1 / 64,
        samples=2**16,
        max_rays=2**14,
        grid=64,
        warmup=256,
        decay_start=1400,
        decay_every=350,
        decay=0.5,
    )


def preset(name: str, **overrides: Any) -> Config:
    """The configuration called `name`, "quick" (two CPU cores) or "paper" (a GPU), with some fields replaced.

    `steps` rescales the preset's schedule; other fields are taken as given.

    Raises:
        UserError: unknown preset, unknown field, or a value out of range.
    """
    presets = {"quick": _quick, "paper": Config}
    if name not in presets:
        raise UserError(f"--preset {name}: expected one of {', '.join(presets)}")
    unknown = sorted(set(overrides) - set(Config.__dataclass_fields__))
    if unknown:
        raise UserError(f"ngp has no setting {', '.join(unknown)}: see --help for those it has")
    config = presets[name]()
    steps = overrides.pop("steps", None)
    if steps is not None:
        config = config.scaled_to(steps) if steps >= 1 else replace(config, steps=steps)
    return replace(config, **overrides)
