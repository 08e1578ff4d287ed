"""How NeuS is built and trained, in one frozen dataclass, and its presets.

The dataclass's own defaults are those of SDFStudio's `neus`, which NFC used. Where the original implementation differs,
a field says which of them is meant: see `_original`.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from nfc_splat.errors import UserError

STEP_FIELDS = ("warmup_steps", "decay_steps", "anneal_steps", "update_every", "level_every", "shape_steps")


@dataclass(frozen=True)
class Config:
    """A signed distance field (NeuS, Wang et al. 2021). --help shows the values of the chosen --preset."""

    FLAG_GROUPS: ClassVar[dict[str, str]] = {
        "steps": "neus scene",
        "point_encoding": "neus networks",
        "rays": "neus rays",
        "lr": "neus optimisation",
    }

    steps: int = 100_000
    """Training steps, those of the first stage among them. The preset's schedule is rescaled to them; what other flags
    count in steps is taken as given."""
    shape_steps: int = 0
    """Steps of a first stage, in which voxel densities (--method dvgo, quick) find the shape from which the surface
    starts; 0 starts from a ball, and so do rooms and scenes with surroundings. Other flags count their steps from its
    end."""
    target_encoding: Literal["auto", "none", "binary", "gray", "onehot", "thermometer"] = "auto"
    """What the colour network predicts: values ("none") or NFC's code of them. "auto" is "none" for regression and
    "binary" otherwise."""
    variant: Literal["sdfstudio", "original"] = "sdfstudio"
    """Whose details are followed that have no flag of their own: how samples are jittered and drawn again, and how the
    colour network starts."""
    orientation: Literal["auto", "object", "inside_out"] = "auto"
    """What the untrained field is: a ball seen from outside, or a hollow one for cameras within it. "auto" is the
    latter where most cameras stand in the region or do not look at one point."""
    region: Literal["box", "sphere"] = "box"
    """Where the surface may be: a cube (SDFStudio's box collider) or its inscribed sphere (original)."""
    region_scale: float = 1.0
    """Enlarges (above 1) or shrinks the region that is found for the scene."""
    surroundings: Literal["auto", "none", "contracted", "sphere"] = "contracted"
    """What is behind the region: a network in contracted space (SDFStudio), one on inverted spheres (original, NeRF++),
    or nothing. "auto" is nothing around rooms and objects cut out of their images, else "contracted"."""
    bias: float = 0.8
    """Radius of the untrained sphere, in half sides of the region. 0.5 in the original."""
    sharpness: float = 0.1
    """What v starts at, with s = exp(10 v). 0.3 in the original."""

    point_encoding: Literal["octaves", "hash"] = "octaves"
    """What the distance network sees of a point besides the point: sines and cosines, or a hash grid's features. With a
    hash grid the colour network has another one of the same size."""
    octaves: int = 6
    """Frequencies of the points' sines and cosines."""
    spare_inputs: int = 32
    """Zeros at the end of both networks' inputs: SDFStudio keeps room for hash features and appearance. Else 0."""
    width: int = 256
    """Width of the distance network."""
    depth: int = 8
    """Hidden layers of the distance network; from 8 on, the fifth one sees the point again."""
    features: int = 256
    """Numbers that the distance network hands to the colour network."""
    color_width: int = 256
    """Width of the colour network."""
    color_depth: int = 4
    """Hidden layers of the colour network."""
    view_octaves: int = 4
    """Frequencies of the direction's sines and cosines, for the colour of the surface. Few of them force the surface
    into hollows, whose parallax more of them could paint onto a lid."""
    color_padding: float = 0.001
    """Colours reach from minus this to 1 plus this, without a target encoding. 0 in the original and in NFC."""
    weight_norm: bool = True
    """Train length and direction of the rows of weights apart."""
    background_width: int = 256
    """Width of the background's network."""
    background_depth: int = 8
    """Hidden layers of the background's network."""
    levels: int = 16
    """Resolutions of the hash grid."""
    log2_table_size: int = 19
    """Most rows of a level's table, as a power of two; each holds 2 features."""
    base_resolution: int = 16
    """Vertices along a side of the coarsest level."""
    finest_resolution: int = 2048
    """Vertices along a side of the finest level."""
    first_levels: int = 16
    """Levels in use at the start."""
    level_every: int = 1000
    """Steps from the start of one more level to the next."""

    rays: int = 1024
    """Rays of a batch; with --sampler occupancy the most of them."""
    batching: Literal["all", "image"] = "all"
    """Rays of all images (SDFStudio) or of one (original)."""
    sampler: Literal["hierarchical", "occupancy"] = "hierarchical"
    """Fixed numbers of samples on every ray, or even steps near the surface alone."""
    section_point: Literal["start", "middle"] = "start"
    """Where a section's distance is taken: at its start (SDFStudio) or its middle (original)."""
    coarse_samples: int = 64
    """Even samples of a ray."""
    fine_samples: int = 64
    """Samples of a ray near the surface."""
    fine_rounds: int = 4
    """Rounds in which these are drawn; s is 64 in the first one and doubles."""
    background_samples: int = 32
    """Samples of a ray behind the region."""
    march_steps: int = 512
    """Most steps along the diagonal of the region, with --sampler occupancy; a blurred surface gets longer ones."""
    samples: int = 2**15
    """Samples in a batch, with --sampler occupancy: the number of rays follows."""
    grid: int = 64
    """Cells of the grid of remembered distances along an axis, with --sampler occupancy."""
    update_every: int = 16
    """Steps from one update of that grid to the next."""

    lr: float = 5e-4
    """Highest learning rate of the networks."""
    sharpness_lr: float = 5e-4
    """Highest learning rate of v."""
    table_lr: float = 1e-2
    """Highest learning rate of the distances' hash grid."""
    color_table_lr: float = 1e-2
    """Highest learning rate of the colours' hash grid."""
    adam_eps: float = 1e-15
    """Adam's epsilon. 1e-8 in the original."""
    warmup_steps: int = 5000
    """Steps in which learning rates rise from 0."""
    decay_steps: int = 300_000
    """Step at which they have fallen to --lr-floor, by a cosine. SDFStudio keeps the original's 300000 and stops
    before."""
    lr_floor: float = 0.05
    """Share of the learning rates that is left then."""
    anneal_steps: int = 50_000
    """Steps in which surfaces seen from behind fade out of the rays' opacities."""
    l1: Literal["mean", "sum"] = "mean"
    """The base loss: absolute errors' mean over rays and channels (SDFStudio), or channels summed (original)."""
    eikonal_weight: float = 0.1
    """Weight of the term that makes the field a distance."""
    eikonal_region: Literal["all", "sphere"] = "all"
    """Samples that it counts: all (SDFStudio), or those within 1.2 radii (original)."""
    eikonal_points: int = 0
    """Random points of the region that it counts besides."""
    mask_weight: float = 0.0
    """Weight of the region's opacities' cross entropy with the images' foreground masks, or transparency. With
    --surroundings none, colours of photographs then count within their masks (original). SDFStudio takes 0.01, the
    original 0.1."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and field.name != "sharpness":
                _require(self, field.name, math.isfinite(value) and value >= 0, "a finite number, 0 or more")
        at_least_one = ("steps", "width", "depth", "color_width", "color_depth", "background_width", "rays")
        at_least_one += ("background_depth", "first_levels", "fine_rounds", "background_samples", "march_steps")
        at_least_one += ("samples", "update_every", "level_every", "decay_steps")
        for name in at_least_one:
            _require(self, name, getattr(self, name) >= 1, "1 or more")
        _require(self, "shape_steps", self.shape_steps < self.steps, f"less than --steps {self.steps}")
        for name in ("region_scale", "lr", "sharpness_lr", "table_lr", "color_table_lr"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        _require(self, "sharpness", abs(self.sharpness) <= 1.3, "-1.3 to 1.3")
        _require(self, "bias", 0 < self.bias <= 2, "above 0, at most 2")
        for name in ("octaves", "view_octaves"):
            _require(self, name, getattr(self, name) <= 16, "0 to 16")
        for name in ("depth", "color_depth", "background_depth"):
            _require(self, name, getattr(self, name) <= 64, "1 to 64")
        _require(self, "coarse_samples", 3 <= self.coarse_samples <= 4096, "3 to 4096")
        for name in ("fine_samples", "background_samples"):
            _require(self, name, getattr(self, name) <= 4096, "at most 4096")
        _require(self, "march_steps", self.march_steps <= 2**16, "1 to 65536")
        whole = self.fine_samples % self.fine_rounds == 0
        _require(self, "fine_samples", whole, f"a multiple of --fine-rounds {self.fine_rounds}")
        _require(self, "levels", 1 <= self.levels <= 32, "1 to 32")
        _require(self, "log2_table_size", 3 <= self.log2_table_size <= 28, "3 to 28")
        _require(self, "base_resolution", 1 <= self.base_resolution <= 1024, "1 to 1024")
        high = f"{self.base_resolution} (--base-resolution) to 524288"
        _require(self, "finest_resolution", self.base_resolution <= self.finest_resolution <= 2**19, high)
        _require(self, "grid", 1 <= self.grid <= 512, "1 to 512")
        _require(self, "lr_floor", self.lr_floor <= 1, "at most 1")
        least = self.decay_steps > self.warmup_steps
        _require(self, "decay_steps", least, f"more than --warmup-steps {self.warmup_steps}")
        marched = self.sampler == "hierarchical" or self.region == "box"
        _require(self, "sampler", marched, f"hierarchical with --region {self.region}")
        joined = self.width > 3 + 6 * self.octaves + self.spare_inputs
        deep = self.depth < 8 or self.point_encoding == "hash" or joined
        _require(self, "width", deep, "more than the numbers of an encoded point, which join the fifth layer")

    def scaled_to(self, steps: int) -> "Config":
        """The same schedule stretched or squeezed to `steps`: every field counted in steps is rescaled."""
        factor = steps / self.steps
        scaled = {name: max(1, round(getattr(self, name) * factor)) for name in STEP_FIELDS if getattr(self, name)}
        scaled["shape_steps"] = min(scaled.get("shape_steps", 0), steps - 1)
        scaled["decay_steps"] = max(scaled["decay_steps"], scaled["warmup_steps"] + 1)
        return replace(self, steps=steps, **scaled)


def _require(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} {getattr(config, name)}: expected {expected}")


def _original() -> Config:
    """The authors' implementation, without masks (its womask.conf)."""
    return Config(
        steps=300_000,
        variant="original",
        region="sphere",
        surroundings="sphere",
        bias=0.5,
        sharpness=0.3,
        spare_inputs=0,
        color_padding=0.0,
        rays=512,
        batching="image",
        section_point="middle",
        adam_eps=1e-8,
        l1="sum",
        eikonal_region="sphere",
    )


def _quick() -> Config:
    """Minutes on two CPU cores, for images of about 200 to 400 pixels."""
    return Config(
        steps=7500,
        shape_steps=3000,
        surroundings="auto",
        bias=0.6,
        sharpness=0.3,
        point_encoding="hash",
        spare_inputs=0,
        width=64,
        depth=1,
        features=0,
        color_width=64,
        color_depth=2,
        view_octaves=0,
        color_padding=0.0,
        weight_norm=False,
        background_width=64,
        background_depth=3,
        background_samples=16,
        levels=8,
        log2_table_size=17,
        finest_resolution=256,
        first_levels=8,
        rays=4096,
        sampler="occupancy",
        section_point="middle",
        march_steps=384,
        grid=96,
        update_every=32,
        samples=2**14,
        lr=2e-3,
        sharpness_lr=3e-4,
        table_lr=2e-3,
        warmup_steps=100,
        decay_steps=4500,
        anneal_steps=1000,
        eikonal_weight=0.01,  # on the urn F < 0.5 % is 0.81 with 0.3, 0.87 with 0.1, 0.90 with 0.03 and 0.93 with this
        eikonal_points=1024,
    )


PRESETS = {"quick": _quick, "paper": Config, "paper-original": _original}


def preset(name: str, **overrides: Any) -> Config:
    """The configuration called `name` with some fields replaced: "quick" (two CPU cores), "paper" (SDFStudio's, which
    NFC used) or "paper-original" (the authors'), the latter two for a GPU.

    `steps` rescales the preset's schedule; other fields are taken as given.

    Raises:
        UserError: unknown preset, unknown field, or a value out of range.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name}: expected one of {', '.join(PRESETS)}")
    unknown = sorted(set(overrides) - set(Config.__dataclass_fields__))
    if unknown:
        raise UserError(f"neus has no setting {', '.join(unknown)}: see --help for those it has")
    config = PRESETS[name]()
    steps = overrides.pop("steps", None)
    if steps is not None:
        config = config.scaled_to(steps) if steps >= 1 else replace(config, steps=steps)
    return replace(config, **overrides)
