"""What a reader finds in a scene's files before any image is decoded: `Lens`, `Frame` and `Capture`.

Poses are float64 camera-to-world matrices [4, 4] in OpenCV axes (x right, y down, z forward), as given: nothing is
centred or scaled. Intrinsics are in pixels for pixel centres at +0.5.
"""

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from nfc_splat.cameras import CameraModel
from nfc_splat.errors import UserError

# Far beyond any real capture; what matters is that no list of frames can exhaust the memory.
MAX_FRAMES = 100_000

# Focal lengths as shares of the image's size: fields of view from 0.006 to 179 degrees.
FOCAL_SHARES = (1e-2, 1e4)

# Beyond this float32 cannot tell neighbouring cameras apart, whatever the unit.
MAX_COORDINATE = 1e9

# What ends a ray in the format's own methods: its stated depth range, box or sphere.
Collider = Literal["near_far", "box", "sphere"]

NO_DISTORTION = (0.0,) * 6


@dataclass(frozen=True)
class Lens:
    """Intrinsics as the files state them; None where they are silent.

    Attributes:
        width, height: the image size in pixels that the other numbers are for; None: whatever the image has.
        fx, fy, cx, cy: in pixels. fx may be None if `angle_x` or `angle_y` is given, fy if `angle_y` or fx is; cx and
            cy None stand for the middle of the image.
        angle_x, angle_y: fields of view in radians.
        model, distortion: as in `nfc_splat.cameras`.
        origin: where the numbers come from, for messages.
    """

    width: int | None = None
    height: int | None = None
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None
    angle_x: float | None = None
    angle_y: float | None = None
    model: CameraModel = "pinhole"
    distortion: tuple[float, ...] = NO_DISTORTION
    origin: str = ""

    def completed(self, width: int, height: int, name: str) -> "Lens":
        """All numbers filled in; `width` and `height` are used where the files give no size.

        Raises a `UserError` with the `name` of the image where they make no camera.
        """
        width, height = self.width or width, self.height or height
        fx = self.fx if self.fx is not None else _focal(width, self.angle_x) or _focal(height, self.angle_y)
        if fx is None:
            raise UserError(f"{self.origin}: no focal length; expected fl_x, camera_angle_x or camera_angle_y")
        fy = self.fy if self.fy is not None else (_focal(height, self.angle_y) or fx)
        cx = width / 2 if self.cx is None else self.cx
        cy = height / 2 if self.cy is None else self.cy
        if not (fx > 0 and fy > 0):
            raise UserError(f"{self.origin}: focal lengths {fx:g} and {fy:g}, expected positive pixels")
        low, high = FOCAL_SHARES
        if not (low * width <= fx <= high * width and low * height <= fy <= high * height):
            raise UserError(
                f"{self.origin}: focal lengths {fx:g} and {fy:g} pixels for the {width}x{height} {name!r}, expected "
                f"{low:g} to {high:g} times its size; are they in pixels?"
            )
        if not (-width <= cx <= 2 * width and -height <= cy <= 2 * height):
            raise UserError(
                f"{self.origin}: principal point ({cx:g}, {cy:g}) lies far outside the {width}x{height} {name!r}; "
                "check cx, cy and the image size"
            )
        return replace(self, width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy)

    def scaled(self, width: int, height: int) -> "Lens":
        """The completed lens for the same picture resampled to `width` x `height`."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy
        )

    @property
    def distorted(self) -> bool:
        """Whether straight lines are bent. A fisheye is, even with zero coefficients."""
        return self.model == "opencv_fisheye" or (self.model != "pinhole" and any(self.distortion))


def _focal(size: int, angle: float | None) -> float | None:
    return None if angle is None else 0.5 * size / math.tan(0.5 * angle)


@dataclass(frozen=True)
class Frame:
    """One posed photograph.

    Attributes:
        name: what it is called in messages and outputs, with `/` and its extension.
        image: the file; it may be missing.
        folder, below: the folder that reduced copies of all images may sit beside (`reduced_folder`) and the path
            below those folders by which this image's copy is found; None and "" where there is no such folder.
        lens: its intrinsics.
        camera_to_world: [4, 4] float64, not yet checked.
        split: "train", "val" or "test" if the files say so.
        mask: file that says which pixels count (white) and which are ignored by losses and metrics; or None.
        foreground: file that says which pixels show the object (white) and which what lies behind it; or None. The
            background is part of the photograph and counts, unless `DataConfig.ignore_background` asks otherwise.
        depth: file, or None.
        time: as stored, or None.
    """

    name: str
    image: Path
    lens: Lens
    camera_to_world: np.ndarray
    folder: Path | None = None
    below: str = ""
    split: str | None = None
    mask: Path | None = None
    depth: Path | None = None
    time: float | None = None
    foreground: Path | None = None


@dataclass
class Capture:
    """All that a reader found.

    Attributes:
        source: the file that lists the frames, for messages.
        frames: in the order of the files.
        points: [M, 3] float32 in world units, or None.
        colors: [M, 3] float32 in [0, 1], or None.
        hold_out_every: default spacing of test images where the files give no split.
        by_name: whether that spacing counts frames sorted by name, or as listed.
        depth_scale: stored depth value of one world unit.
        principal_point_shift: what the reader added to cx and cy to reach pixel centres at +0.5.
        world_to_gt: [4, 4] from the frame of the poses to that of the ground truth, or None.
        near_far: depth range that the files state, or that the format's own tools take from its cameras; or None.
        bounds: [2, 3] lowest and highest corner of the part of the scene that is wanted, if the files state one.
        sphere: [4] centre and radius of a sphere around the part that is wanted, if the files state one: NeuS works
            in the frame where it is the unit sphere.
        cut_out: whether the images show an object alone, even where they have no transparency.
        collider: which of the three the format's own methods end their rays at, if the files say.
        notices: sentences for the user.

    Everything is in the frame and units of the poses.
    """

    source: Path
    frames: list[Frame]
    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    hold_out_every: int = 8
    by_name: bool = True
    depth_scale: float | None = None
    principal_point_shift: float = 0.0
    world_to_gt: np.ndarray | None = None
    near_far: tuple[float, float] | None = None
    bounds: np.ndarray | None = None
    sphere: np.ndarray | None = None
    cut_out: bool = False
    collider: Collider | None = None
    notices: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 of what the files state: names, image file sizes, lenses, poses, times, points and extent.

        Taken before any call of a linear algebra library, whose last bits depend on the processor, so that a scene is
        known again on another machine. Pixels are not read; a photograph that was edited shows in its file's size.
        """
        digest = hashlib.sha256()
        for frame in self.frames:
            size = frame.image.stat().st_size if frame.image.is_file() else -1
            lens = replace(frame.lens, origin="")
            facts = (frame.name, size, lens, frame.split, frame.mask is None, frame.depth is None, frame.time)
            digest.update(repr(facts).encode())
            if frame.foreground is not None:
                digest.update(b"foreground")
            with np.errstate(over="ignore"):  # poses are judged later
                digest.update(frame.camera_to_world.astype(np.float32).tobytes())
        for array in (self.points, self.colors):
            digest.update(b"none" if array is None else array.tobytes())
        for name, extent in (("near and far", self.near_far), ("bounds", self.bounds), ("sphere", self.sphere)):
            if extent is not None:
                digest.update(name.encode() + np.asarray(extent, np.float64).tobytes())
        if self.collider is not None:
            digest.update(self.collider.encode())
        return digest.hexdigest()


def reduced_folder(folder: Path, factor: int) -> Path:
    """Where copies of the images in `folder`, reduced `factor` times, may lie: `images_4` beside `images`, and `4x`
    beside `1x`, as HyperNeRF calls them."""
    return folder.with_name(f"{factor}x" if folder.name == "1x" else f"{folder.name}_{factor}")


def naming(names: list[str], limit: int = 5) -> str:
    """The first few names, for a message: `'a', 'b', ... (7 in all)`."""
    listed = ", ".join(repr(name if len(name) <= 120 else f"{name[:100]}...") for name in names[:limit])
    return listed if len(names) <= limit else f"{listed}, ... ({len(names)} in all)"


def counted(count: int, noun: str) -> str:
    """`1 image`, `3 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
