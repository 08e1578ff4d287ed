"""How Strivec is built and trained, in one frozen dataclass, and its presets.

The dataclass's defaults are the published ones of Synthetic-NeRF (Gao et al. 2023 and the released configuration of the
Chair). Lengths are in units of the scene (`unit`); steps of the tensors count from 1 where they begin.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from nfc_splat.errors import UserError

MOST_SCALES = 8
LEAST_STEPSIZE = 0.05


@dataclass(frozen=True)
class Config:
    """Strivec (Gao et al. 2023). --help shows the values of the chosen --preset."""

    FLAG_GROUPS: ClassVar[dict[str, str]] = {
        "steps": "strivec geometry",
        "unit": "strivec region",
        "halves": "strivec tensors",
        "border": "strivec drawing",
        "rays": "strivec schedule",
        "lr_lines": "strivec losses and learning rates",
    }

    steps: int = 35_000
    """Training steps, the coarse stage's included. The preset's schedule is rescaled to them; what other flags count in
    steps is taken as given."""
    target_encoding: Literal["auto", "none", "binary", "gray", "onehot", "thermometer"] = "auto"
    """What the colour network predicts: values ("none") or NFC's code of them. "auto" is "none" for regression and
    "binary" otherwise."""
    bf16: bool = False
    """Multiply the colour network's matrices in bfloat16."""
    geometry: Literal["coarse", "points"] = "coarse"
    """Where tensors are placed: at what a coarse stage of voxels (DVGO's) finds, or at the scene's initial points (its
    own, or those of --points)."""
    coarse_voxels: int = 1_024_000
    """Voxels of the coarse stage."""
    coarse_rays: int = 8192
    """Rays of a batch of the coarse stage."""
    coarse_lr: float = 0.1
    """Learning rate of its densities and colours."""
    coarse_eps: float = 1e-8
    """Epsilon of its optimiser. A small one finds matter in fewer steps."""
    geometry_threshold: float = 1e-4
    """Opacity from which a voxel of the coarse stage counts. Few images leave thick geometry: raise it then."""
    unit: float | None = None
    """World length of the unit that lengths are given in. None is the distance from which the cameras look at the
    scene, divided by 4.031: 1 in the scenes of Synthetic-NeRF."""
    region: float = 1.5
    """Half side of the cube that is drawn, about the point that the cameras look at. Bounds that the scene states take
    its place."""
    max_parameters: int = 128_000_000
    """Refuse to place tensors that would have more numbers than this in the end; each takes 16 bytes."""

    halves: tuple[float, ...] = (0.3, 0.15, 0.075)
    """Half side of a tensor, for each scale."""
    spacings: tuple[float, ...] = (0.4, 0.2, 0.1)
    """Distance between the centres of neighbouring tensors, for each scale."""
    cells: tuple[int, ...] = (29, 15, 7, 43, 23, 11, 65, 35, 17, 85, 43, 21, 103, 53, 27, 121, 61, 31)
    """Cells of a tensor's vectors: at first for each scale, then for each scale after every growth."""
    density_ranks: tuple[int, ...] = (32, 24, 16)
    """Ranks of the density, for each scale."""
    appearance_rank: int = 48
    """Ranks of the appearance, of every scale."""
    features: int = 27
    """Features that the colour network reads."""
    nearest: int = 4
    """Tensors of each scale that a point asks at most."""
    width: int = 128
    """Width of the colour network's two hidden layers."""
    octaves: int = 2
    """Octaves of the positional encoding of features and viewing direction."""
    border: Literal["extrapolate", "clamp"] = "extrapolate"
    """What a tensor says just outside of itself, where lookups by cell still ask it: its lines go on as they end (the
    released code), or stay as they end."""
    density_scale: float = 25.0
    """Opacities are those of lengths this much longer."""
    density_shift: float = -10.0
    """Added to raw densities before the softplus."""
    stepsize: float = 0.5
    """Length of a step along a ray, in cells of the first scale."""
    mask_alpha: Literal["unscaled", "rendered"] = "unscaled"
    """Opacity by which cells are masked: of a step's own length (the released code), or as it is drawn, --density-scale
    times as thick."""
    mask_threshold: float = 1e-4
    """Opacity up to which a cell is empty for the mask, with all cells about it."""
    weight_threshold: float = 1e-4
    """Samples that contribute less than this to their pixel are not asked for their colour."""

    rays: int = 4096
    """Rays of a batch."""
    coarse_steps: int = 5000
    """Steps of the coarse stage."""
    grow_at: tuple[int, ...] = (2000, 3000, 4000, 5500, 7000)
    """Steps of the tensors after which their vectors grow. Learning rates and moments start anew."""
    mask_at: tuple[int, ...] = (2000, 4000)
    """Steps of the tensors after which empty cells are masked; at the first one the drawn region shrinks."""
    lr_decay_steps: int = 30_000
    """Steps in which the learning rates fall to a tenth."""

    lr_lines: float = 0.02
    """Learning rate of the tensors' vectors."""
    lr_net: float = 1e-3
    """Learning rate of the colour network and what leads to it."""
    adam_eps: float = 1e-8
    """Epsilon of the optimiser, which stands beside the uncorrected second moment."""
    l1: float = 1e-5
    """Weight of the mean absolute value of the density's vectors."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and field.name != "density_shift":
                _require(self, field.name, math.isfinite(value) and value >= 0, "a finite number, 0 or more")
        for name in ("steps", "coarse_voxels", "coarse_rays", "appearance_rank", "features", "nearest", "width"):
            _require(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("rays", "lr_decay_steps", "max_parameters"):
            _require(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("coarse_lr", "coarse_eps", "region", "density_scale", "lr_lines", "lr_net", "adam_eps"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        _require(self, "coarse_voxels", self.coarse_voxels >= 8, "8 or more")
        _require(self, "density_shift", math.isfinite(self.density_shift), "a finite number")
        _require(self, "unit", self.unit is None or 0 < self.unit < math.inf, "a finite number above 0")
        _require(self, "stepsize", self.stepsize >= LEAST_STEPSIZE, f"{LEAST_STEPSIZE} or more")
        _require(self, "nearest", self.nearest <= 16, "1 to 16")
        for name in ("geometry_threshold", "mask_threshold", "weight_threshold"):
            _require(self, name, getattr(self, name) < 1, "below 1")
        if self.geometry == "coarse":
            _require(self, "coarse_steps", 1 <= self.coarse_steps < self.steps, f"1 to {self.steps - 1}, below --steps")
        self._check_scales()
        for name in ("grow_at", "mask_at"):
            steps = getattr(self, name)
            rising = all(one < other for one, other in zip((0, *steps), steps, strict=False))
            _require(self, name, rising, "rising numbers of 1 or more")

    def _check_scales(self) -> None:
        scales = len(self.halves)
        _require(self, "halves", 1 <= scales <= MOST_SCALES, f"1 to {MOST_SCALES} scales")
        for name in ("spacings", "density_ranks"):
            _require(self, name, len(getattr(self, name)) == scales, f"{scales} numbers, as many as --halves")
        count = scales * (1 + len(self.grow_at))
        expected = f"{count} numbers, for {scales} scales at first and after each of {len(self.grow_at)} growths"
        _require(self, "cells", len(self.cells) == count, expected)
        for name in ("cells", "density_ranks"):
            _require(self, name, all(number >= 1 for number in getattr(self, name)), "numbers of 1 or more")
        _require(self, "halves", all(0 < half < math.inf for half in self.halves), "finite numbers above 0")
        covering = zip(self.spacings, self.halves, strict=True)
        fitting = all(0 < spacing <= 2 * half for spacing, half in covering)
        _require(self, "spacings", fitting, "numbers above 0 and at most twice those of --halves")

    @property
    def scales(self) -> int:
        """How many."""
        return len(self.halves)

    @property
    def first_steps(self) -> int:
        """Steps before the tensors begin."""
        return self.coarse_steps if self.geometry == "coarse" else 0

    def cells_at(self, growth: int) -> tuple[int, ...]:
        """Cells of each scale's vectors after that many growths."""
        return self.cells[growth * self.scales : (growth + 1) * self.scales]

    def scaled_to(self, steps: int) -> "Config":
        """The same schedule stretched or squeezed to `steps`: every field counted in steps is rescaled."""
        factor = steps / self.steps
        decay = max(1, round(self.lr_decay_steps * factor))
        coarse = max(1, min(round(self.coarse_steps * factor), steps - 1))
        grow, mask = _rising(self.grow_at, factor), _rising(self.mask_at, factor)
        return replace(self, steps=steps, lr_decay_steps=decay, coarse_steps=coarse, grow_at=grow, mask_at=mask)


def _rising(steps: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Steps rescaled, and still different from each other."""
    scaled: list[int] = []
    for step in steps:
        scaled.append(max(round(step * factor), scaled[-1] + 1 if scaled else 1))
    return tuple(scaled)


def _require(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        value = getattr(config, name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise UserError(f"--{name.replace('_', '-')} {shown}: expected {expected}")


def _quick() -> Config:
    """Minutes on two CPU cores, for images of about 200 to 400 pixels."""
    return Config(
        steps=2800,
        coarse_voxels=64**3,
        coarse_rays=2048,
        coarse_lr=0.2,
        coarse_eps=1e-15,
        geometry_threshold=1e-2,
        max_parameters=8_000_000,
        halves=(0.3, 0.15),
        spacings=(0.4, 0.2),
        cells=(15, 7, 25, 13, 41, 21),
        density_ranks=(16, 16),
        appearance_rank=24,
        features=12,
        octaves=1,
        width=64,
        rays=2048,
        coarse_steps=300,
        grow_at=(400, 900),
        mask_at=(200, 500, 1000),
        lr_decay_steps=1800,
        lr_lines=0.03,
        lr_net=2e-3,
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
        raise UserError(f"strivec has no setting {', '.join(unknown)}: see --help for those it has")
    config = presets[name]()
    steps = overrides.pop("steps", None)
    if steps is not None:
        config = config.scaled_to(steps) if steps >= 2 else replace(config, steps=steps)
    return replace(config, **overrides)
