"""NSVF scenes: `rgb/0_0000.png`, `pose/0_0000.txt`, `intrinsics.txt`, `bbox.txt` (Synthetic-NSVF, BlendedMVS, and Tanks
and Temples with the background cut away).

The name's first character is the split: 0 train, 1 val, 2 test; where there is no 2 (Tanks and Temples, BlendedMVS) 1
is test. Poses are 4x4 camera-to-world with OpenCV's axes. `intrinsics.txt` is either a matrix, or begins with the line
"f cx cy 0" and usually ends with the line "height width" (the form of Scene Representation Networks).

Intrinsics are used without a shift: those of the synthetic scenes have the principal point at half the width, which is
exact for pixel centres at +0.5, and DVGO and TensoRF take the others in the same way. (NSVF itself counts pixel centres
from 0 and so is half a pixel off.)

`bbox.txt` holds the lowest corner, the highest corner and NSVF's voxel size. The depth range is DVGO's: `far` is the
largest distance between two training cameras, `near` a twentieth of it, or 0 where the file holds a matrix, since DVGO
starts at the camera in Tanks and Temples (in BlendedMVS, which has a matrix too, it takes the twentieth).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from nfc_splat.data.capture import MAX_COORDINATE, Capture, Frame, Lens, counted, naming
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import by_stem, file_names, inside, report_unposed, scene_file, text_matrix, text_numbers
from nfc_splat.data.parsing import IMAGE_SUFFIXES, is_file, pinhole_lens, scene_box
from nfc_splat.errors import UserError

SPLITS = {"0_": "train", "1_": "val", "2_": "test"}
NEAR_SHARE = 0.05
MOST_CAMERAS = 3000


def read(root: Path, config: DataConfig) -> Capture:
    """Read every pose and pair it with the image of its name."""
    capture = Capture(source=root / "pose", frames=[], cut_out=True)
    lens, is_matrix = _read_lens(scene_file(root, "intrinsics.txt", config))
    images = by_stem(file_names(root, "rgb", IMAGE_SUFFIXES, config), root / "rgb")
    poses = by_stem(file_names(root, "pose", (".txt",), config), capture.source)
    if not poses:
        raise UserError(f"{capture.source}: holds no pose; expected a text file for every image in rgb/")
    for stem, pose in poses.items():
        name = images.get(stem, f"{stem}.png")
        capture.frames.append(
            Frame(
                name=f"rgb/{name}",
                image=inside(root, f"rgb/{name}", config),
                lens=lens,
                camera_to_world=text_matrix(scene_file(root, f"pose/{pose}", config)),
                split=SPLITS.get(stem[:2]),
            )
        )
    report_unposed(images, poses, "file in pose/", capture, config)
    _settle_splits(capture)
    capture.near_far = _near_far([frame for frame in capture.frames if frame.split in ("train", None)], is_matrix)
    capture.bounds = _bounds(root, config, capture)
    return capture


def _settle_splits(capture: Capture) -> None:
    """val is test where there is no test; without either, test images are held out as usual."""
    plain = [frame.name for frame in capture.frames if frame.split is None]
    found = {frame.split for frame in capture.frames}
    if plain and found != {None}:
        raise UserError(f"{capture.source}: {naming(plain)} do not begin with 0_, 1_ or 2_, as others do; rename them")
    if "test" not in found and "val" in found:
        capture.frames = [replace(f, split="test" if f.split == "val" else f.split) for f in capture.frames]
        capture.notices.append("No name begins with 2_, so the images that begin with 1_ are the test images.")
    elif found == {"train"}:
        capture.frames = [replace(frame, split=None) for frame in capture.frames]
        capture.notices.append("Every name begins with 0_; test images are held out of the training images.")


def _read_lens(path: Path) -> tuple[Lens, bool]:
    """The intrinsics, and whether they are stored as a matrix."""
    lines = text_numbers(path)
    numbers = [number for line in lines for number in line]
    for size in (4, 3):
        if len(numbers) == size * size and all(len(line) in (size, size * size) for line in lines):
            return pinhole_lens(np.array(numbers).reshape(size, size), str(path)), True
    # The second number is 0 in the first row of a matrix, whatever its shape.
    if not lines or len(lines[0]) not in (3, 4) or lines[0][1] == 0:
        shape = f"{len(numbers)} numbers in {counted(len(lines), 'line')}"
        raise UserError(f"{path}: {shape}, expected a matrix (4x4 or 3x3), or a first line of `f cx cy 0`")
    focal, cx, cy = lines[0][:3]
    K = np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]])
    height, width = _stated_size(lines, path)
    return pinhole_lens(K, str(path), width, height), False


def _stated_size(lines: list[list[float]], path: Path) -> tuple[int | None, int | None]:
    """Height and width from the only line of two numbers, if the file has it: the last, or the last but one."""
    size = next((line for line in lines[1:] if len(line) == 2), None)
    if size is None:
        return None, None
    for value in size:
        if not 1 <= value <= 2**20 or value != round(value):
            raise UserError(f"{path}: a line is {size}, expected height and width in pixels")
    return int(size[0]), int(size[1])


def _near_far(frames: list[Frame], is_matrix: bool) -> tuple[float, float] | None:
    """DVGO's depth range, for at most `MOST_CAMERAS` evenly spaced cameras; None when they stand in one place."""
    centers = np.array([frame.camera_to_world[:3, 3] for frame in frames]).reshape(-1, 3)
    centers = centers[(np.abs(centers) < MAX_COORDINATE).all(1)]
    centers = centers[:: -(-len(centers) // MOST_CAMERAS) or 1]
    squares = [((centers - center) ** 2).sum(1).max() for center in centers]
    far = float(np.sqrt(max(squares, default=0.0)))
    return (0.0 if is_matrix else NEAR_SHARE * far, far) if far > 0 else None


def _bounds(root: Path, config: DataConfig, capture: Capture) -> np.ndarray | None:
    path = inside(root, "bbox.txt", config)
    if not is_file(path):
        capture.notices.append("There is no bbox.txt, so the extent of the object is not known.")
        return None
    numbers = [number for line in text_numbers(path) for number in line]
    if len(numbers) not in (6, 7):
        raise UserError(f"{path}: holds {len(numbers)} numbers, expected 6 (two corners) and the voxel size")
    return scene_box(np.array(numbers[:6]).reshape(2, 3), f"{path}: the box")
