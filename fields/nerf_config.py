"""How NeRF is built and trained, in one frozen dataclass, and its presets.

The dataclass's own defaults are the published ones for the synthetic scenes (Mildenhall et al. 2020, and the released
configuration of nerf-pytorch for lego).
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

from nfc_splat.errors import UserError
from nfc_splat.fields.encodings import Encoding
from nfc_splat.fields.mlp import Activation
from nfc_splat.machine import has_bfloat16

STEP_FIELDS = ("precrop_steps", "lr_decay_steps")
Space = Literal["world", "ndc"]


@dataclass(frozen=True)
class Config:
    """NeRF (Mildenhall et al. 2020). --help shows the values of the chosen --preset and --space."""

    # What --help calls the flags from this one to the next that is named here.
    FLAG_GROUPS: ClassVar[dict[str, str]] = {"steps": "nerf networks", "space": "nerf rays and samples"}

    steps: int = 200_000
    """Training steps. The preset's schedule is rescaled to them; what other flags count in steps is taken as given."""
    target_encoding: Literal["auto", "none", "binary", "gray", "onehot", "thermometer"] = "auto"
    """What the colour networks predict: values ("none") or NFC's code of them. "auto" is "none" for regression and
    "binary" otherwise."""
    bf16: bool = False
    """Multiply the networks' matrices in bfloat16."""
    networks: Literal[1, 2] = 2
    """Two networks, each with a loss of its own, or one for both passes, the first of which then has none (as
    D-NeRF's)."""
    width: int = 256
    """Width of a network, an even number."""
    depth: int = 8
    """Layers of each network before the density."""
    activation: Activation = "relu"
    """Of the networks' layers: relu, sine (SIREN) or gaussian; the latter two with --encoding identity."""
    encoding: Encoding = "positional"
    """How a point enters the networks: as it is (identity), by sines and cosines at octaves (positional) or of random
    projections (fourier), or by trained hash tables (hash)."""
    octaves: int = 10
    """Frequencies of the positional encoding of points."""
    view_octaves: int = 4
    """Frequencies of the positional encoding of viewing directions."""
    fourier_features: int = 128
    """Random projections of --encoding fourier."""
    fourier_scale: float = 1.0
    """Standard deviation of their frequencies, per world unit."""
    lr: float = 5e-4
    """Learning rate at the start."""
    lr_decay_steps: int = 500_000
    """The learning rate falls to a tenth in this many steps."""

    space: Space = "world"
    """Where rays are sampled: in the world, or in the normalised device coordinates of a forward-facing scene."""
    near: float | None = None
    """Depth at which rays start, or the near plane of --space ndc, in world units; None for the scene's own (three
    quarters of it with ndc)."""
    far: float | None = None
    """Depth at which rays end in world units; None for the scene's own. No effect with --space ndc."""
    in_disparity: bool = False
    """Spread the coarse samples evenly in 1/depth."""
    coarse_samples: int = 64
    """Samples of a ray for the first network."""
    fine_samples: int = 128
    """More samples where the first network saw something; the second network gets all of them."""
    density_noise: float = 0.0
    """Standard deviation of what is added to density logits while training."""
    rays: int = 1024
    """Pixels of a batch."""
    batching: Literal["image", "all"] = "image"
    """Draw a batch's pixels from one image, or from all images in a shuffled order."""
    precrop_steps: int = 500
    """With --batching image: up to this step pixels come from the middle of the image only."""
    precrop_share: float = 0.5
    """How much of its width and height the middle is."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                _require(self, field.name, math.isfinite(value), "a finite number")
            if isinstance(value, (int, float)):
                _require(self, field.name, value >= 0, "0 or more")
        for name in ("steps", "fine_samples", "rays", "lr_decay_steps", "fourier_features"):
            _require(self, name, getattr(self, name) >= 1, "1 or more")
        _require(self, "width", self.width >= 2 and self.width % 2 == 0, "an even number from 2 on")
        _require(self, "depth", 2 <= self.depth <= 64, "2 to 64")
        _require(self, "coarse_samples", 3 <= self.coarse_samples <= 4096, "3 to 4096")
        _require(self, "fine_samples", self.fine_samples <= 4096, "1 to 4096")
        _require(self, "octaves", self.octaves <= 16, "0 to 16")
        _require(self, "view_octaves", self.view_octaves <= 16, "0 to 16")
        _require(self, "lr", self.lr > 0, "above 0")
        _require(self, "fourier_scale", self.fourier_scale > 0, "above 0")
        _require(self, "precrop_share", 0 < self.precrop_share <= 1, "above 0 and at most 1")
        if self.near is not None and self.far is not None:
            _require(self, "far", self.far > self.near, f"above --near {self.near}")
        for name in ("near", "far"):
            _require(self, name, getattr(self, name) != 0, "above 0")
        if self.activation != "relu":
            expected = f"identity with --activation {self.activation}, whose layers make frequencies of their own"
            _require(self, "encoding", self.encoding == "identity", expected)

    def scaled_to(self, steps: int) -> "Config":
        """The same schedule stretched or squeezed to `steps`: every field counted in steps is rescaled."""
        scaled = {name: round(getattr(self, name) * steps / self.steps) for name in STEP_FIELDS}
        scaled["lr_decay_steps"] = max(1, scaled["lr_decay_steps"])
        return replace(self, steps=steps, **scaled)


def _require(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} {getattr(config, name)}: expected {expected}")


def _paper(space: Space) -> Config:
    """The published settings of synthetic scenes, and with "ndc" those of forward-facing ones."""
    if space == "world":
        return Config()
    shared = {"density_noise": 1.0, "batching": "all", "precrop_steps": 0}
    return Config(space="ndc", fine_samples=64, lr_decay_steps=250_000, **shared)


def _quick(space: Space) -> Config:
    """Minutes on two CPU cores, for images of about 100 to 200 pixels."""
    sizes = {"width": 128, "depth": 4, "octaves": 8, "coarse_samples": 32, "fine_samples": 32, "rays": 512}
    schedule = {"steps": 3500, "lr": 2e-3, "lr_decay_steps": 3500, "precrop_steps": 50}
    return replace(_paper(space), **sizes, **schedule, bf16=has_bfloat16())


def preset(name: str, **overrides: Any) -> Config:
    """The configuration called `name`, "quick" (two CPU cores) or "paper" (a GPU), with some fields replaced.

    `space` selects the preset's values for forward-facing scenes ("ndc") or others. `steps` rescales the preset's
    schedule; other fields are taken as given.

    Raises:
        UserError: unknown preset or space, unknown field, or a value out of range.
    """
    presets = {"quick": _quick, "paper": _paper}
    if name not in presets:
        raise UserError(f"--preset {name}: expected one of {', '.join(presets)}")
    unknown = sorted(set(overrides) - set(Config.__dataclass_fields__))
    if unknown:
        raise UserError(f"nerf has no setting {', '.join(unknown)}: see --help for those it has")
    space = overrides.pop("space", "world")
    if space not in get_args(Space):
        raise UserError(f"--space {space}: expected world or ndc")
    config = presets[name](space)
    steps = overrides.pop("steps", None)
    if steps is not None:
        config = config.scaled_to(steps) if steps >= 1 else replace(config, steps=steps)
    return replace(config, **overrides)
