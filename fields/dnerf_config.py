"""How D-NeRF is built and trained, in one frozen dataclass, and its two presets.

The dataclass's own defaults are what produced the published numbers (Pumarola et al. 2021, arXiv 2011.13961): the
released code and its configurations, which the paper's text contradicts.

                        released code       paper
    time's octaves      10                  4
    rays of a step      500, of one image   4096
    samples of a ray    64 + 128            64
    learning rate       falls to 1.3e-5     falls to 5e-5

`time_steps` is 100,000 for hell warrior, hook, jumping jacks, mutant and stand up, and 10,000 for bouncing balls, lego
and t-rex; nothing else differs between the scenes.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from nfc_splat.errors import UserError
from nfc_splat.fields import nerf_config, ngp_config
from nfc_splat.machine import has_bfloat16

STEP_FIELDS = ("time_steps", "precrop_steps", "lr_decay_steps", "update_every", "warmup")


@dataclass(frozen=True)
class Config:
    """A static field behind a deformation (D-NeRF, Pumarola et al. 2021). --help shows the values of the chosen
    --preset."""

    FLAG_GROUPS: ClassVar[dict[str, str]] = {
        "steps": "dnerf deformation and schedule",
        "canonical": "dnerf canonical field",
        "levels": "dnerf canonical field: hash",
    }

    steps: int = 800_000
    """Training steps. The preset's schedule is rescaled to them; what other flags count in steps is taken as given."""
    target_encoding: Literal["auto", "none", "binary", "gray", "onehot", "thermometer"] = "auto"
    """What the colour network predicts: values ("none") or NFC's code of them. "auto" is "none" for regression and
    "binary" otherwise."""
    bf16: bool = False
    """Multiply the networks' matrices in bfloat16."""
    time_steps: int = 100_000
    """Frames join in the order of time until this step: the first three at the start, all at the end."""
    lr: float = 5e-4
    """Learning rate at the start, of the deformation and of --canonical networks."""
    lr_decay_steps: int = 500_000
    """Learning rates fall to a tenth in this many steps."""
    deformation_width: int = 256
    """Width of the deformation's network."""
    deformation_depth: int = 8
    """Hidden layers of the deformation's network."""
    deformation_octaves: int = 10
    """Frequencies of the points' encoding there."""
    time_octaves: int = 10
    """Frequencies of the time's encoding."""
    zero_start: bool = False
    """Begin without deformation instead of with a small random one."""

    canonical: Literal["networks", "hash"] = "networks"
    """What shows the scene at time 0: one NeRF network, sampled coarse and fine (published), or a hash grid with an
    occupancy grid that holds whatever is filled at some time (method ngp)."""
    width: int = 256
    """Width of its networks."""
    depth: int = 8
    """Layers before the density, with --canonical networks."""
    octaves: int = 10
    """Frequencies of the points' encoding, with --canonical networks."""
    view_octaves: int = 4
    """Frequencies of the directions' encoding, with --canonical networks."""
    near: float | None = None
    """Depth at which rays start, with --canonical networks; None for the scene's own."""
    far: float | None = None
    """Depth at which rays end, with --canonical networks; None for the scene's own."""
    coarse_samples: int = 64
    """Samples of a ray that say where to look, with --canonical networks."""
    fine_samples: int = 128
    """More samples there, with --canonical networks; all of them are drawn."""
    rays: int = 500
    """Pixels of a batch, with --canonical networks all of one image; with hash the most of them."""
    precrop_steps: int = 500
    """Up to this step pixels come from the middle of the image only, with --canonical networks."""
    precrop_share: float = 0.5
    """How much of its width and height the middle is."""

    levels: int = 16
    """Resolutions of the hash grid."""
    log2_table_size: int = 19
    """Most rows of a level's table, as a power of two; each holds 2 features."""
    base_resolution: int = 16
    """Vertices along a side of the coarsest level."""
    finest_resolution: int = 2048
    """Vertices along a side of the finest level."""
    color_layers: int = 2
    """Hidden layers of the colour network; the density network has one."""
    field_lr: float = 1e-2
    """Learning rate of the hash grid and its networks at the start."""
    march_steps: int = 1024
    """Steps along the diagonal of the scene's box."""
    samples: int = 2**18
    """Samples in a batch; the number of rays follows from how many each needs."""
    grid: int = 128
    """Cells of the occupancy grid along an axis."""
    occupancy_decay: float = 0.95
    """What a cell's remembered density is multiplied with at every update of the grid."""
    update_every: int = 16
    """Steps from one update of the occupancy grid to the next, which asks at random times."""
    warmup: int = 256
    """Up to this step an update looks at every cell, later at half as many."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float):
                _require(self, field.name, math.isfinite(value) and value >= 0, "a finite number, 0 or more")
        for name in ("deformation_width", "deformation_depth"):
            _require(self, name, getattr(self, name) >= 1, "1 or more")
        _require(self, "deformation_depth", self.deformation_depth <= 64, "1 to 64")
        for name in ("deformation_octaves", "time_octaves"):
            _require(self, name, getattr(self, name) <= 16, "0 to 16")
        _require(self, "field_lr", self.field_lr > 0, "above 0")
        _ = self.networks, self.hash_grid  # both check what is handed on to them

    @property
    def networks(self) -> nerf_config.Config:
        """The canonical field as a NeRF with one network."""
        shared = "steps target_encoding bf16 width depth octaves view_octaves near far coarse_samples fine_samples rays"
        shared += " precrop_steps precrop_share lr lr_decay_steps"
        return nerf_config.Config(networks=1, **self._of(shared))

    @property
    def hash_grid(self) -> ngp_config.Config:
        """The canonical field as a hash grid, whose learning rate does not fall by itself."""
        shared = "steps target_encoding bf16 width color_layers levels log2_table_size base_resolution"
        shared += " finest_resolution march_steps samples grid occupancy_decay update_every warmup"
        return ngp_config.Config(max_rays=self.rays, lr=self.field_lr, decay=1.0, **self._of(shared))

    def _of(self, names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names.split()}

    def scaled_to(self, steps: int) -> "Config":
        """The same schedule stretched or squeezed to `steps`: every field counted in steps is rescaled."""
        scaled = {name: round(getattr(self, name) * steps / self.steps) for name in STEP_FIELDS}
        for name in ("lr_decay_steps", "update_every", "warmup"):
            scaled[name] = max(1, scaled[name])
        return replace(self, steps=steps, **scaled)


def _require(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} {getattr(config, name)}: expected {expected}")


def _quick() -> Config:
    """Minutes on two CPU cores, for images of about 100 to 200 pixels."""
    return Config(
        steps=3000,
        bf16=has_bfloat16(),
        time_steps=1000,
        lr=1e-3,
        lr_decay_steps=3000,
        deformation_width=128,
        deformation_depth=4,
        deformation_octaves=4,
        time_octaves=4,
        zero_start=True,
        canonical="hash",
        width=64,
        rays=2**14,
        levels=8,
        log2_table_size=16,
        finest_resolution=128,
        march_steps=256,
        samples=2**15,
        grid=64,
        warmup=256,
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
        raise UserError(f"dnerf has no setting {', '.join(unknown)}: see --help for those it has")
    config = presets[name]()
    steps = overrides.pop("steps", None)
    if steps is not None:
        config = config.scaled_to(steps) if steps >= 1 else replace(config, steps=steps)
    return replace(config, **overrides)
