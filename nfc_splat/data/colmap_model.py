"""COLMAP's own files: `cameras`, `images` and `points3D`, binary and text.

Nothing is allocated from a count before the rest of the file is known to be long enough for it. All binary numbers are
little endian. Symbols: I images, M points.
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfc_splat.data.capture import MAX_FRAMES, NO_DISTORTION, Lens
from nfc_splat.data.parsing import floats, text_lines
from nfc_splat.errors import UserError

# COLMAP's camera models in the order of their numbers: name and number of parameters.
MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
)
PARAMETERS = dict(MODELS)
COUNT = struct.Struct("<Q")
CAMERA = struct.Struct("<IiQQ")  # id, model, width, height
IMAGE = struct.Struct("<I7dI")  # id, quaternion and translation, camera id
POINT = struct.Struct("<Q3d3BdQ")  # id, position, colour, error, track length
MAX_NAME = 4096
MAX_CAMERAS = MAX_FRAMES


@dataclass(frozen=True)
class ModelImage:
    """One registered image: quaternion (w, x, y, z) and translation, world to camera."""

    name: str
    camera_id: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Model:
    """A sparse reconstruction.

    Attributes:
        folder: where it was read.
        lenses: by camera id.
        images: the registered images, in the order of the file.
        points: [M, 3] float64, or None when there is no points3D file.
        colors: [M, 3] uint8, or None.
    """

    folder: Path
    lenses: dict[int, Lens]
    images: list[ModelImage]
    points: np.ndarray | None
    colors: np.ndarray | None


def model_suffix(folder: Path) -> str | None:
    """ ".bin" or ".txt" if `folder` holds cameras and images in that encoding (binary first), else None."""
    for suffix in (".bin", ".txt"):
        if all((folder / f"{stem}{suffix}").is_file() for stem in ("cameras", "images")):
            return suffix
    return None


def model_files(folder: Path) -> list[Path]:
    """The three files of the model in `folder`; the last, the points, may be missing."""
    suffix = model_suffix(folder)
    return [folder / f"{stem}{suffix}" for stem in ("cameras", "images", "points3D")]


def find_models(root: Path) -> list[Path]:
    """Folders with a model: in `sparse/*` and `sparse`, else in `colmap/sparse/*` and `colmap/sparse`."""
    for base in (root / "sparse", root / "colmap" / "sparse"):
        if not base.is_dir():
            continue
        folders = sorted(child for child in base.iterdir() if child.is_dir())
        if found := [folder for folder in [*folders, base] if model_suffix(folder)]:
            return found
    return []


def image_count(folder: Path) -> int:
    """How many images a model registers, without reading their observations."""
    if model_suffix(folder) == ".bin":
        with _mapped(folder / "images.bin") as data:
            return data.take(COUNT)[0]
    return len(_read_images_text(folder / "images.txt"))


def read_model(folder: Path, remedy: str) -> Model:
    """Read the model in `folder`. `remedy` is the command line offered when a camera model is not supported."""
    cameras, images, points = model_files(folder)
    binary = cameras.suffix == ".bin"
    lenses = (_read_cameras_binary if binary else _read_cameras_text)(cameras, remedy)
    registered = (_read_images_binary if binary else _read_images_text)(images)
    if not registered:
        raise UserError(f"{images}: no registered image; COLMAP found no poses")
    for image in registered:
        if image.camera_id not in lenses:
            raise UserError(f"{images}: {image.name!r} uses camera {image.camera_id}, which {cameras.name} lacks")
    xyz = rgb = None
    if points.is_file():
        xyz, rgb = (_read_points_binary if binary else _read_points_text)(points)
    return Model(folder, lenses, registered, xyz, rgb)


def lens_from_parameters(name: str, width: int, height: int, parameters: list[float], origin: str, remedy: str) -> Lens:
    """A `Lens` from COLMAP's parameters, whose pixel centres already lie at +0.5."""
    if not 1 <= width <= 2**20 or not 1 <= height <= 2**20:
        raise UserError(f"{origin}: image size {width}x{height}, expected 1 to {2**20} pixels")
    if not np.isfinite(parameters).all():
        raise UserError(f"{origin}: a parameter of camera model {name} is not finite")
    shared = name.startswith("SIMPLE") or name in ("RADIAL", "RADIAL_FISHEYE")
    fx, fy = parameters[0], parameters[0] if shared else parameters[1]
    cx, cy, *rest = parameters[1:] if shared else parameters[2:]
    lens = Lens(width, height, fx, fy, cx, cy, origin=origin)
    model, distortion = _distortion(name, rest, origin, remedy)
    if max(abs(value) for value in distortion) > 1e4:
        raise UserError(f"{origin}: a distortion coefficient is beyond 10000; the calibration failed")
    return Lens(**{**vars(lens), "model": model, "distortion": distortion})


def _distortion(name: str, k: list[float], origin: str, remedy: str) -> tuple[str, tuple[float, ...]]:
    """Camera model and coefficients in the order of `nfc_splat.cameras`."""
    if name in ("SIMPLE_PINHOLE", "PINHOLE"):
        return "pinhole", NO_DISTORTION
    if name in ("SIMPLE_RADIAL", "RADIAL"):
        return "opencv", (k[0], k[1] if len(k) > 1 else 0.0, 0.0, 0.0, 0.0, 0.0)
    if name == "OPENCV":
        return "opencv", (k[0], k[1], 0.0, k[2], k[3], 0.0)
    if name == "FULL_OPENCV" and k[5:] == [0.0, 0.0, 0.0]:
        return "opencv", (k[0], k[1], k[4], k[2], k[3], 0.0)
    if name in ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"):
        return "opencv_fisheye", tuple((k + [0.0] * 6)[:6])
    raise UserError(f"{origin}: camera model {name} is not supported; undistort first: {remedy}")


class Bytes:
    """A file mapped into memory, read front to back; running past its end is a `UserError`."""

    def __init__(self, path: Path, data: mmap.mmap | bytes):
        self.path, self.data, self.position = path, data, 0

    def take(self, layout: struct.Struct) -> tuple:
        """The next values of `layout`."""
        if self.position + layout.size > len(self.data):
            raise UserError(
                f"{self.path}: ends at byte {len(self.data)} in the middle of a record; the file is cut off"
            )
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def skip(self, count: int, size: int, what: str) -> None:
        """Step over `count` records of `size` bytes."""
        if count > (len(self.data) - self.position) // size:
            raise UserError(f"{self.path}: claims {count} {what}, more than the rest of the file can hold")
        self.position += count * size

    def count(self, minimum: int, what: str) -> int:
        """A 64-bit count of records of at least `minimum` bytes each, checked against what is left of the file."""
        (count,) = self.take(COUNT)
        if count > (len(self.data) - self.position) // minimum:
            raise UserError(f"{self.path}: claims {count} {what}, more than the rest of the file can hold")
        return count

    def name(self) -> str:
        """Text up to a zero byte."""
        end = self.data.find(b"\0", self.position, self.position + MAX_NAME)
        if end < 0:
            raise UserError(f"{self.path}: an image name is longer than {MAX_NAME} bytes or does not end")
        raw = self.data[self.position : end]
        self.position = end + 1
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: the image name {raw[:80]!r} is not UTF-8") from error


@contextmanager
def _mapped(path: Path) -> Iterator[Bytes]:
    try:
        with open(path, "rb") as handle:
            if path.stat().st_size == 0:
                yield Bytes(path, b"")
                return
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield Bytes(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _read_cameras_binary(path: Path, remedy: str) -> dict[int, Lens]:
    lenses = {}
    with _mapped(path) as data:
        for _ in range(data.count(CAMERA.size + 8 * 3, "cameras")):
            camera_id, number, width, height = data.take(CAMERA)
            origin = f"{path}: camera {camera_id}"
            if not 0 <= number < len(MODELS):
                raise UserError(f"{origin}: camera model number {number} is not supported; undistort first: {remedy}")
            name, parameters = MODELS[number]
            values = list(data.take(struct.Struct(f"<{parameters}d")))
            _add_lens(lenses, camera_id, lens_from_parameters(name, width, height, values, origin, remedy), path)
    return lenses


def _read_cameras_text(path: Path, remedy: str) -> dict[int, Lens]:
    lenses: dict[int, Lens] = {}
    for where, words in _records(path):
        if len(words) < 4 or words[1] not in PARAMETERS:
            known = len(words) >= 2 and f"camera model {words[1][:80]!r} is not supported; undistort first: {remedy}"
            raise UserError(f"{where}: {known or 'expected CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]'}")
        camera_id, width, height = (_integer(word, where) for word in (words[0], words[2], words[3]))
        values = floats(words[4:], where)
        if len(values) != PARAMETERS[words[1]]:
            raise UserError(f"{where}: {len(values)} parameters, {words[1]} has {PARAMETERS[words[1]]}")
        lens = lens_from_parameters(words[1], width, height, values, f"{path}: camera {camera_id}", remedy)
        _add_lens(lenses, camera_id, lens, path)
    return lenses


def _add_lens(lenses: dict[int, Lens], camera_id: int, lens: Lens, path: Path) -> None:
    if camera_id in lenses:
        raise UserError(f"{path}: camera {camera_id} is there twice")
    if len(lenses) == MAX_CAMERAS:
        raise UserError(f"{path}: more than {MAX_CAMERAS} cameras")
    lenses[camera_id] = lens


def _read_images_binary(path: Path) -> list[ModelImage]:
    images = []
    with _mapped(path) as data:
        count = data.count(IMAGE.size + 1 + 8, "images")
        if count > MAX_FRAMES:
            raise UserError(f"{path}: {count} images, expected at most {MAX_FRAMES}")
        for _ in range(count):
            _, *pose, camera_id = data.take(IMAGE)
            name = data.name()
            (observations,) = data.take(COUNT)
            data.skip(observations, 24, f"observations in {name!r}")
            images.append(ModelImage(name, camera_id, tuple(pose[:4]), tuple(pose[4:])))
    return images


def _read_images_text(path: Path) -> list[ModelImage]:
    """Two lines per image, of which the second (observations, possibly empty) is not used."""
    images: list[ModelImage] = []
    observations_next = False
    for number, line in text_lines(path):
        if observations_next:
            observations_next = False
            continue
        words = line.split(maxsplit=9)
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}: line {number}"
        if len(words) < 10:
            raise UserError(f"{where}: expected IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME")
        if len(images) == MAX_FRAMES:
            raise UserError(f"{path}: more than {MAX_FRAMES} images")
        pose = floats(words[1:8], where)
        images.append(ModelImage(words[9].strip(), _integer(words[8], where), tuple(pose[:4]), tuple(pose[4:])))
        observations_next = True
    return images


def _read_points_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with _mapped(path) as data:
        count = data.count(POINT.size, "points")
        xyz, rgb = np.empty((count, 3)), np.empty((count, 3), np.uint8)
        for i in range(count):
            _, x, y, z, r, g, b, _, length = data.take(POINT)
            data.skip(length, 8, "observations of a point")
            xyz[i] = x, y, z
            rgb[i] = r, g, b
    return xyz, rgb


def _read_points_text(path: Path) -> tuple[np.ndarray, np.ndarray]:
    xyz, rgb = [], []
    for where, words in _records(path):
        if len(words) < 8:
            raise UserError(f"{where}: expected POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]")
        xyz.append(floats(words[1:4], where))
        color = [_integer(word, where) for word in words[4:7]]
        if not all(0 <= value <= 255 for value in color):
            raise UserError(f"{where}: colour {color}, expected 0 to 255")
        rgb.append(color)
    return np.array(xyz).reshape(-1, 3), np.array(rgb, np.uint8).reshape(-1, 3)


def _records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Lines of a text model that are not comments, with where they are."""
    for number, line in text_lines(path):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield f"{path}: line {number}", words


def _integer(word: str, where: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        raise UserError(f"{where}: {word[:80]!r} is not a whole number") from error
