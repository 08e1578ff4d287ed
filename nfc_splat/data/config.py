"""How a scene folder is to be read: one frozen dataclass whose fields become command-line flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from nfc_splat.errors import UserError

Format = Literal[
    "auto",
    "blender",
    "nerfstudio",
    "colmap",
    "replica",
    "sdfstudio",
    "nsvf",
    "nerfpp",
    "dtu",
    "llff",
    "dynerf",
    "hypernerf",
]

# Pillow itself refuses images of more than twice its warning threshold, whatever is asked for here.
PILLOW_MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class DataConfig:
    """How to read a scene folder."""

    # What --help calls the flags from each of these on.
    FLAG_GROUPS: ClassVar[dict[str, str]] = {
        "format": "data",
        "train_views": "data training images",
        "background": "data images and limits",
    }

    format: Format = "auto"
    """What the scene is. "auto" finds out and says why."""

    downscale: int = 1
    """Divide the images' width and height by this. Uses the folder images_N if the scene has one, else an area filter
    in memory."""

    test_every: int | None = None
    """Hold out every N-th image for testing, the first one included; 0 holds out none. It replaces the scene's own
    split. By default that, else every 8th (Replica: every 10th)."""

    time_from: Literal["files", "names"] = "files"
    """Where the frames' times come from. "files": what the scene's files state. "names": the order of the image names,
    for the frames of a video; images of the same name in several folders are of the same moment."""

    points: Path | None = None
    """Initial points from this file in place of the scene's own: PLY, or text with x, y, z first on each line. In the
    scene's frame and units. A copy stays with the run."""

    train_views: int | None = None
    """Train on this many of the training images only, spread evenly over their order; the test images stay. None for
    all of them."""

    train_share: float | None = None
    """Train on this share of the training images only, 0 to 1, drawn at random; the test images stay. What a smaller
    share holds, a larger one of the same --train-draw holds too. None for all of them."""

    train_draw: int = 0
    """Which random choice --train-share makes."""

    train_noise: float = 0.0
    """Spoil the training images once, before anything is learned, by Gaussian noise of this standard deviation (colours
    are 0 to 1), clipped; the test images stay clean."""

    background: Literal["auto", "white", "black"] = "auto"
    """Behind transparent images. "auto": white for Blender and NSVF, else black."""

    ignore_background: bool = False
    """Leave what foreground masks (DTU, SDFStudio) exclude out of losses and metrics."""

    allow_missing: bool = False
    """Go on even if more than half of the listed images have no file."""

    allow_external_paths: bool = False
    """Follow paths and links that leave the scene folder. Only for scenes that you trust."""

    max_pixels: int = 89_478_485
    """Refuse images with more pixels than this; read from their header, before anything is decoded."""

    image_cache_gb: float = 4.0
    """Memory for decoded images, in GB. What does not fit is decoded again when needed."""

    def check(self) -> None:
        """Raise a `UserError` that names the flag when a value makes no sense."""
        if self.downscale < 1:
            raise UserError(f"--downscale {self.downscale}: expected a whole number, 1 (full size) or more")
        if self.test_every is not None and (self.test_every < 0 or self.test_every == 1):
            raise UserError(
                f"--test-every {self.test_every}: expected 2 or more, or 0 for no test images "
                "(1 would leave none to train on)"
            )
        if self.train_views is not None and self.train_views < 1:
            raise UserError(f"--train-views {self.train_views}: expected 1 or more")
        if self.train_share is not None and not 0 < self.train_share <= 1:
            raise UserError(f"--train-share {self.train_share}: expected more than 0 and at most 1")
        if self.train_share is not None and self.train_views is not None:
            raise UserError("--train-share and --train-views: expected at most one of them")
        if not 0 <= self.train_draw < 2**63:
            raise UserError(f"--train-draw {self.train_draw}: expected 0 or more, less than 2**63")
        if not 0 <= self.train_noise < float("inf"):
            raise UserError(f"--train-noise {self.train_noise}: expected 0 or more")
        if not 1 <= self.max_pixels <= PILLOW_MAX_PIXELS:
            raise UserError(f"--max-pixels {self.max_pixels}: expected 1 to {PILLOW_MAX_PIXELS}, Pillow's own limit")
        if not 0 <= self.image_cache_gb < float("inf"):
            raise UserError(f"--image-cache-gb {self.image_cache_gb}: expected 0 or more")
