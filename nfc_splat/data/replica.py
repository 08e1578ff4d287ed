"""Replica in NICE-SLAM's layout: `traj.txt`, `results/frame000000.jpg`, `results/depth000000.png`, `cam_params.json`.

`traj.txt` holds one row-major 4x4 camera-to-world matrix per line, OpenCV axes; line n belongs to frame number n, so
files are matched by their number, never by their place in a sorted list. NICE-SLAM shoots rays through integer pixel
coordinates, so cx and cy gain 0.5 here (`principal_point_shift`, to be taken off again at export). Depth is
camera-space z in 16-bit PNGs, divided by `scale`.
"""

import re
from pathlib import Path

import numpy as np

from nfc_splat.data.capture import MAX_FRAMES, Capture, Frame, Lens, counted, naming
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import inside, scene_file
from nfc_splat.data.parsing import floats, is_file, number, pixels, read_object, scene_path, text_lines
from nfc_splat.errors import UserError

# NICE-SLAM keeps these in its own configuration, not beside the data.
DEFAULTS = {"w": 1200, "h": 680, "fx": 600.0, "fy": 600.0, "cx": 599.5, "cy": 339.5, "scale": 6553.5}
SHIFT = 0.5
FRAME = re.compile(r"frame([0-9]{1,9})\.(jpg|jpeg|png)", re.IGNORECASE)


def read(root: Path, config: DataConfig) -> Capture:
    """Read the trajectory and pair it with the numbered files; every 10th frame is for testing, as in NFC."""
    source = root / "traj.txt"
    poses = _read_trajectory(scene_file(root, "traj.txt", config))
    capture = Capture(source=source, frames=[], hold_out_every=10, by_name=False, principal_point_shift=SHIFT)
    lens, capture.depth_scale = _read_lens(root, capture, config)
    images = _numbered_images(root)
    for index, pose in enumerate(poses):
        name = images.get(index, f"frame{index:06d}.jpg")
        depth = f"results/depth{re.findall(r'[0-9]+', name)[0]}.png"
        resolve = lambda name: scene_path(  # noqa: E731
            root, name, allow_external=config.allow_external_paths, source=source
        )
        capture.frames.append(
            Frame(
                name=f"results/{name}",
                image=resolve(f"results/{name}"),
                lens=lens,
                camera_to_world=pose,
                depth=resolve(depth),
            )
        )
    _check_surplus([name for index, name in images.items() if index >= len(poses)], len(images), capture, config)
    return capture


def _read_trajectory(path: Path) -> list[np.ndarray]:
    poses = []
    for line_number, line in text_lines(path):
        words = line.split()
        if not words:
            continue
        if len(words) != 16:
            raise UserError(f"{path}: line {line_number} has {counted(len(words), 'number')}, expected 16 (a 4x4 pose)")
        if len(poses) == MAX_FRAMES:
            raise UserError(f"{path}: more than {MAX_FRAMES} poses")
        poses.append(np.array(floats(words, f"{path}: line {line_number}")).reshape(4, 4))
    if not poses:
        raise UserError(f"{path}: holds no pose; expected one line of 16 numbers per frame")
    return poses


def _numbered_images(root: Path) -> dict[int, str]:
    """File name by frame number."""
    images: dict[int, str] = {}
    for name in sorted(entry.name for entry in (root / "results").iterdir()):
        match = FRAME.fullmatch(name)
        if match is None:
            continue
        index = int(match.group(1))
        if index in images:
            raise UserError(f"{root / 'results'}: {images[index]!r} and {name!r} are both frame {index}; keep one")
        images[index] = name
    return images


def _check_surplus(surplus: list[str], total: int, capture: Capture, config: DataConfig) -> None:
    """Images beyond the end of the trajectory."""
    if not surplus:
        return
    if 2 * len(surplus) > total and not config.allow_missing:
        raise UserError(
            f"{capture.source}: {counted(len(capture.frames), 'pose')}, but {len(surplus)} of {total} images have a "
            f"larger number: {naming(surplus)}; give the matching trajectory or pass --allow-missing to leave them out"
        )
    capture.notices.append(f"Warning: images beyond the end of traj.txt are left out: {naming(surplus)}.")


def _read_lens(root: Path, capture: Capture, config: DataConfig) -> tuple[Lens, float]:
    """Intrinsics and depth scale from cam_params.json in the scene or beside it, else NICE-SLAM's."""
    places = (inside(root, "cam_params.json", config), root.parent / "cam_params.json")
    path = next((path for path in places if is_file(path)), None)
    values: dict = {}
    origin = "NICE-SLAM's intrinsics for Replica (there is no cam_params.json)"
    if path is not None:
        meta = read_object(path)
        values = meta["camera"] if isinstance(meta.get("camera"), dict) else meta
        origin = str(path)
    else:
        capture.notices.append("There is no cam_params.json; NICE-SLAM's intrinsics for Replica are used.")
    get = lambda key: number(values, key, origin)  # noqa: E731
    fx, fy, cx, cy, scale = (
        DEFAULTS[key] if get(key) is None else get(key) for key in ("fx", "fy", "cx", "cy", "scale")
    )
    if get("png_depth_scale") is not None:
        scale = get("png_depth_scale")
    if not scale > 0:
        raise UserError(f"{origin}: depth scale {scale:g}, expected a positive number (6553.5 for Replica)")
    width = pixels(values, "w", origin) or DEFAULTS["w"]
    height = pixels(values, "h", origin) or DEFAULTS["h"]
    return Lens(width, height, fx, fy, cx + SHIFT, cy + SHIFT, origin=origin), scale
