"""NeRF++ scenes: `train/`, `test/` and often `validation/`, each with `rgb/`, `pose/` and `intrinsics/`.

Unbounded Tanks and Temples scenes come in this form. For `rgb/000001.png` there are `pose/000001.txt`, a 4x4
camera-to-world matrix with OpenCV's axes, and `intrinsics/000001.txt`, a 4x4 intrinsic matrix for that image. NeRF++
shoots rays through pixel centres at +0.5 with them, so nothing is shifted. The split is that of the folders.

DVGO turns these scenes so that the axis along which the cameras vary least points up. That is not done here: it is a
normalisation like any other, the methods here do not need it, and meshes and splats are to leave in the frame they came
in. The files state no depth range, and the distances between cameras say nothing about an unbounded background.
"""

from dataclasses import replace
from pathlib import Path

from nfc_splat.data.capture import Capture, Frame
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import by_stem, file_names, inside, report_unposed, scene_file, text_matrix
from nfc_splat.data.parsing import IMAGE_SUFFIXES, pinhole_lens
from nfc_splat.errors import UserError

FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def read(root: Path, config: DataConfig) -> Capture:
    """Read the folders that there are."""
    capture = Capture(source=root / "train", frames=[])
    present = [folder for folder in FOLDERS if inside(root, f"{folder}/pose", config).is_dir()]
    for folder in present:
        _read_folder(root, folder, config, capture)
    if "test" not in present:
        # Numbers are never taken from `validation`; without test images the usual hold-out applies.
        for_training = [frame for frame in capture.frames if frame.split == "train"]
        capture.frames = [replace(frame, split=None) for frame in for_training]
        capture.notices.append("There is no test/pose/; test images are held out of the training images.")
    return capture


def _read_folder(root: Path, folder: str, config: DataConfig, capture: Capture) -> None:
    poses = by_stem(file_names(root, f"{folder}/pose", (".txt",), config), root / folder / "pose")
    images = by_stem(file_names(root, f"{folder}/rgb", IMAGE_SUFFIXES, config), root / folder / "rgb")
    if not poses:
        raise UserError(f"{root / folder / 'pose'}: holds no pose; expected a text file for every image in rgb/")
    for stem, pose in poses.items():
        name = f"{folder}/rgb/{images.get(stem, f'{stem}.png')}"
        intrinsics = scene_file(root, f"{folder}/intrinsics/{stem}.txt", config)
        capture.frames.append(
            Frame(
                name=name,
                image=inside(root, name, config),
                lens=pinhole_lens(text_matrix(intrinsics), str(intrinsics)),
                camera_to_world=text_matrix(scene_file(root, f"{folder}/pose/{pose}", config)),
                split=FOLDERS[folder],
            )
        )
    report_unposed(images, poses, f"file in {folder}/pose/", capture, config)
