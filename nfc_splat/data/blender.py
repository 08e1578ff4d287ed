"""Blender scenes: `transforms_train.json`, `transforms_val.json`, `transforms_test.json` (NeRF-synthetic, D-NeRF).

One field of view `camera_angle_x` for all images, principal point in the middle, camera-to-world matrices with OpenGL's
camera axes, file names usually without extension, straight-alpha RGBA, and in D-NeRF a `time` per frame. Explicit
intrinsics (`fl_x`, `cx`, ...), which some exporters add, are honoured.
"""

from dataclasses import replace
from pathlib import Path

from nfc_splat.data.capture import Capture, Frame
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import scene_file
from nfc_splat.data.parsing import image_path, number, read_frames, read_object
from nfc_splat.data.transforms import read_lens, read_name, read_pose

SPLITS = ("train", "val", "test")
# Documented by those who evaluate on it: ingra14m/Deformable-3D-Gaussians and fudan-zvg/4d-gaussian-splatting.
BROKEN_LEGO = (
    "Warning: D-NeRF's lego shows its bucket at another angle in the test views than in the training views: 25 dB is "
    "about the most that any method reaches there. Published numbers are of these test views; --split val measures on "
    "views that fit."
)


def read(root: Path, config: DataConfig) -> Capture:
    """Read all splits that have a file."""
    source = root / "transforms_train.json"
    capture = Capture(source=source, frames=[])
    for split in SPLITS:
        path = root / f"transforms_{split}.json"
        if path.is_file():
            capture.frames += _read_split(root, path, split, config)
    if not (root / "transforms_test.json").is_file():
        # Numbers are never taken from `val`; without a test file the usual hold-out applies to the training images.
        for_training = [frame for frame in capture.frames if frame.split == "train"]
        capture.frames = [replace(frame, split=None) for frame in for_training]
        capture.notices.append("There is no transforms_test.json; test images are held out of the training images.")
    elif "lego" in root.name.lower() and any(frame.time is not None for frame in capture.frames):
        capture.notices.append(BROKEN_LEGO)
    return capture


def _read_split(root: Path, path: Path, split: str, config: DataConfig) -> list[Frame]:
    meta = read_object(scene_file(root, path.name, config))
    frames = []
    for index, entry in enumerate(read_frames(meta, path)):
        name = read_name(entry, index, path)
        where = f"{path}: frame {name[:200]!r}"
        image = image_path(root, name, allow_external=config.allow_external_paths, source=path)
        frames.append(
            Frame(
                name=name if name.lower().endswith(image.suffix.lower()) else name + image.suffix,
                image=image,
                lens=read_lens(meta, entry, where),
                camera_to_world=read_pose(entry, where),
                split=split,
                time=number(entry, "time", where),
            )
        )
    return frames
