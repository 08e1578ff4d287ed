"""One small scene of known geometry, and writers that put it on disk in every format a reader takes.

Everything here is written from the formats' descriptions in plain numpy and shares no code with the readers. The
pictures are grey but for one pixel per visible point, which has the point's colour: the pixel that contains the
projection u = f X/Z + W/2, v = f Y/Z + H/2 with pixel squares [0, 1), [1, 2), ...
"""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.errors import UserError

WIDTH, HEIGHT, FOCAL = 64, 48, 60.0
COUNT = 12


def look_at(center: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Camera-to-world, OpenCV axes: x right, y down, z towards the target."""
    forward = (target - center) / np.linalg.norm(target - center)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = center
    return pose


def result_or_refusal(read: Callable[[], Any]) -> tuple[Any, str]:
    """What `read` returns and "", or None and the message of its `UserError`; any other exception passes through."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)


def assert_refused(root: Path, needle: str, **options) -> None:
    """Reading the scene with these `DataConfig` options ends in one short line that holds `needle`."""
    with pytest.raises(UserError) as caught:
        load_scene(root, DataConfig(**options), undistort=True)
    message = str(caught.value)
    assert needle in message
    assert "\n" not in message
    assert len(message) < 2000


def link_out(name: str) -> Callable[[Path], None]:
    """Spoils a scene: its file or folder `name` becomes a link to one beside the scene."""

    def spoil(root: Path) -> None:
        outside = root.parent / "outside"
        shutil.move(root / name, outside)
        os.symlink(outside, root / name)

    return spoil


@dataclass
class Known:
    """Poses [COUNT, 4, 4] camera-to-world (OpenCV axes), points [P, 3] with colours [P, 3] uint8, and the pictures."""

    poses: np.ndarray = field(init=False)
    points: np.ndarray = field(init=False)
    colors: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(7)
        angles = np.arange(COUNT) * 2 * np.pi / COUNT
        centers = np.stack([3 * np.cos(angles), 3 * np.sin(angles), 0.6 + 0.2 * np.arange(COUNT) / COUNT], 1)
        self.poses = np.stack([look_at(center, np.array([0.1, -0.05, 0.2])) for center in centers])
        self.points = rng.uniform(-0.6, 0.6, (25, 3))
        self.colors = rng.integers(0, 128, (25, 3)).astype(np.uint8) * 2

    def project(self, index: int, points: np.ndarray | None = None) -> np.ndarray:
        """[P, 2] pixels (x, y) in camera `index`."""
        pose = self.poses[index]
        local = ((self.points if points is None else points) - pose[:3, 3]) @ pose[:3, :3]
        return FOCAL * local[:, :2] / local[:, 2:] + [WIDTH / 2, HEIGHT / 2]

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3]; a camera-dependent grey, points as single pixels (odd values occur in no point)."""
        picture = np.full((HEIGHT, WIDTH, 3), 101 + 2 * index, np.uint8)
        for (x, y), color in zip(self.project(index), self.colors, strict=True):
            picture[int(np.floor(y)), int(np.floor(x))] = color
        return picture

    def visible(self, index: int) -> np.ndarray:
        """Points that no other point overwrote in the picture of camera `index`."""
        cells = np.floor(self.project(index)).astype(int)
        return np.array([not (cells[i + 1 :] == cells[i]).all(1).any() for i in range(len(cells))])


def write_png(path: Path, pixels: np.ndarray) -> None:
    """uint8 or uint16 [H, W] or [H, W, C] as a PNG of that depth, without Pillow."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    bits = 8 * pixels.dtype.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunk = lambda tag, data: struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")
    )


def opengl(pose: np.ndarray) -> list[list[float]]:
    """The pose with OpenGL's camera axes, for JSON."""
    return (pose @ np.diag([1.0, -1.0, -1.0, 1.0])).tolist()


def write_blender(root: Path, known: Known, *, test_every: int = 4, times: bool = False) -> None:
    """transforms_{train,test}.json with RGBA pictures whose file names are given without extension."""
    angle = 2 * np.arctan(0.5 * WIDTH / FOCAL)
    frames = {"train": [], "test": []}
    for i in range(COUNT):
        split = "test" if i % test_every == 0 else "train"
        opaque = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
        write_png(root / split / f"r_{i:02d}.png", np.concatenate([known.image(i), opaque], 2))
        frame = {"file_path": f"./{split}/r_{i:02d}", "rotation": 0.1, "transform_matrix": opengl(known.poses[i])}
        if times:
            frame["time"] = i / (COUNT - 1)
        frames[split].append(frame)
    for split, entries in frames.items():
        content = {"camera_angle_x": angle, "frames": entries}
        (root / f"transforms_{split}.json").write_text(json.dumps(content))


def nerfstudio_content(known: Known, **extra) -> dict:
    frames = [
        {"file_path": f"images/{i:03d}.png", "transform_matrix": opengl(known.poses[i])} for i in reversed(range(COUNT))
    ]
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
    return {**lens, "frames": frames, **extra}


def write_images(folder: Path, known: Known) -> None:
    for i in range(COUNT):
        write_png(folder / f"{i:03d}.png", known.image(i))


def write_nerfstudio(root: Path, known: Known, **extra) -> None:
    """transforms.json, its frames listed last to first."""
    write_images(root / "images", known)
    (root / "transforms.json").write_text(json.dumps(nerfstudio_content(known, **extra)))


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """w, x, y, z of a rotation matrix, by the eigenvector of the symmetric 4x4 form (Bar-Itzhack)."""
    r = rotation
    form = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ]
    )
    x, y, z, w = np.linalg.eigh(form)[1][:, -1]
    return np.array([w, x, y, z])


def colmap_poses(known: Known) -> list[tuple[np.ndarray, np.ndarray]]:
    """Quaternion and translation, world to camera."""
    result = []
    for pose in known.poses:
        rotation = pose[:3, :3].T
        result.append((quaternion(rotation), -rotation @ pose[:3, 3]))
    return result


COLMAP_CAMERA = ("PINHOLE", 1, [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2])


def write_colmap_binary(folder: Path, known: Known, camera=COLMAP_CAMERA, size=(WIDTH, HEIGHT)) -> None:
    """cameras.bin, images.bin (two observations each, last image first) and points3D.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    _, number, parameters = camera
    cameras = struct.pack("<QIiQQ", 1, 7, number, *size) + struct.pack(f"<{len(parameters)}d", *parameters)
    images = struct.pack("<Q", COUNT)
    for i, (q, t) in reversed(list(enumerate(colmap_poses(known)))):
        images += struct.pack("<I7dI", i + 1, *q, *t, 7) + f"{i:03d}.png".encode() + b"\0"
        images += struct.pack("<Q", 2) + struct.pack("<ddqddq", 1.0, 2.0, 0, 3.0, 4.0, -1)
    points = struct.pack("<Q", len(known.points))
    for i, (xyz, rgb) in enumerate(zip(known.points, known.colors, strict=True)):
        points += struct.pack("<Q3d3Bd", i, *xyz, *rgb.tolist(), 0.5) + struct.pack("<Qii", 1, 1, 0)
    (folder / "cameras.bin").write_bytes(cameras)
    (folder / "images.bin").write_bytes(images)
    (folder / "points3D.bin").write_bytes(points)


def write_colmap_text(folder: Path, known: Known, camera=COLMAP_CAMERA, size=(WIDTH, HEIGHT)) -> None:
    """The same model as text; images without observations have an empty second line."""
    folder.mkdir(parents=True, exist_ok=True)
    name, _, parameters = camera
    join = lambda values: " ".join(repr(float(value)) for value in values)  # noqa: E731
    (folder / "cameras.txt").write_text(f"# cameras\n7 {name} {size[0]} {size[1]} {join(parameters)}\n")
    lines = ["# images", ""]
    for i, (q, t) in enumerate(colmap_poses(known)):
        lines += [f"{i + 1} {join(q)} {join(t)} 7 {i:03d}.png", "" if i % 2 else "1.0 2.0 -1 3.0 4.0 5"]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [
        f"{i} {join(xyz)} {rgb[0]} {rgb[1]} {rgb[2]} 0.5 1 0"
        for i, (xyz, rgb) in enumerate(zip(known.points, known.colors, strict=True))
    ]
    (folder / "points3D.txt").write_text("\n".join(rows) + "\n")


def write_colmap(root: Path, known: Known, *, binary: bool = True, where: str = "sparse/0", **options) -> None:
    write_images(root / "images", known)
    (write_colmap_binary if binary else write_colmap_text)(root / where, known, **options)


def write_replica(root: Path, known: Known, *, depth: float | None = None) -> None:
    """NICE-SLAM's layout with its integer pixel centres: cx = W/2 - 0.5. `depth` writes constant depth images."""
    for i in range(COUNT):
        write_png(root / "results" / f"frame{i:06d}.png", known.image(i))
        if depth is not None:
            stored = np.full((HEIGHT, WIDTH), round(depth * 1000), np.uint16)
            write_png(root / "results" / f"depth{i:06d}.png", stored)
    rows = [" ".join(repr(float(value)) for value in pose.ravel()) for pose in known.poses]
    (root / "traj.txt").write_text("\n".join(rows) + "\n")
    camera = {"w": WIDTH, "h": HEIGHT, "fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2 - 0.5, "cy": HEIGHT / 2 - 0.5}
    (root / "cam_params.json").write_text(json.dumps({"camera": {**camera, "scale": 1000.0}}))


def sdfstudio_content(known: Known, **extra) -> dict:
    K = np.eye(4)
    K[0, 0] = K[1, 1] = FOCAL
    K[:2, 2] = WIDTH / 2, HEIGHT / 2
    frames = [
        {"rgb_path": f"{i:06d}_rgb.png", "camtoworld": known.poses[i].tolist(), "intrinsics": K.tolist()}
        for i in range(COUNT)
    ]
    ground_truth = np.diag([2.0, 2.0, 2.0, 1.0])
    ground_truth[:3, 3] = 1.0, -2.0, 0.5
    return {
        "camera_model": "OPENCV",
        "width": WIDTH,
        "height": HEIGHT,
        "has_mono_prior": False,
        "pairs": None,
        "worldtogt": ground_truth.tolist(),
        "scene_box": {"aabb": [[-1, -1, -1], [1, 1, 1]], "near": 0.05, "far": 6.0, "collider_type": "near_far"},
        "frames": frames,
        **extra,
    }


def write_sdfstudio(root: Path, known: Known, **extra) -> None:
    for i in range(COUNT):
        write_png(root / f"{i:06d}_rgb.png", known.image(i))
    (root / "meta_data.json").write_text(json.dumps(sdfstudio_content(known, **extra)))


def write_matrix(path: Path, matrix: np.ndarray, *, lines: bool = True) -> None:
    """A matrix as text, a row per line or all in one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [" ".join(repr(float(value)) for value in row) for row in matrix]
    path.write_text(("\n" if lines else " ").join(rows) + "\n")


def intrinsics() -> np.ndarray:
    """[4, 4] for pixel centres at +0.5."""
    K = np.eye(4)
    K[0, 0] = K[1, 1] = FOCAL
    K[:2, 2] = WIDTH / 2, HEIGHT / 2
    return K


BOX = np.array([[-0.7, -0.65, -0.6], [0.6, 0.7, 0.75]])


def write_nsvf(root: Path, known: Known, *, matrix: bool = False, prefixes: str = "012") -> None:
    """NSVF's folders; every third image by turns for train, val and test, or what `prefixes` has."""
    for i in range(COUNT):
        stem = f"{prefixes[i % len(prefixes)]}_{i:04d}"
        write_png(root / "rgb" / f"{stem}.png", known.image(i))
        write_matrix(root / "pose" / f"{stem}.txt", known.poses[i])
    if matrix:
        write_matrix(root / "intrinsics.txt", intrinsics())
    else:
        lines = [f"{FOCAL} {WIDTH / 2} {HEIGHT / 2} 0.", "0. 0. 0.", "0.", "1.", f"{HEIGHT} {WIDTH}"]
        (root / "intrinsics.txt").write_text("\n".join(lines) + "\n")
    (root / "bbox.txt").write_text(" ".join(map(str, BOX.ravel())) + " 0.1\n")


def write_nerfpp(root: Path, known: Known, *, folders: tuple[str, ...] = ("train", "test", "validation")) -> None:
    """NeRF++'s folders: one image in four for test, one for validation; matrices in one line."""
    for i in range(COUNT):
        folder = {0: "test", 1: "validation"}.get(i % 4, "train")
        if folder not in folders:
            continue
        write_png(root / folder / "rgb" / f"{i:05d}.png", known.image(i))
        write_matrix(root / folder / "pose" / f"{i:05d}.txt", known.poses[i], lines=False)
        write_matrix(root / folder / "intrinsics" / f"{i:05d}.txt", intrinsics(), lines=False)


SPHERE = np.array([0.1, -0.05, 0.2, 0.8])


def dtu_matrices(known: Known, *, factor: float = 1.0) -> dict[str, np.ndarray]:
    """world_mat_i, times any `factor`, with pixel centres at 0, and scale_mat_i."""
    K = intrinsics()
    K[:2, 2] -= 0.5
    scale = np.diag([SPHERE[3]] * 3 + [1.0])
    scale[:3, 3] = SPHERE[:3]
    arrays = {}
    for i in range(COUNT):
        projection = K @ np.linalg.inv(known.poses[i])
        projection[:3] *= factor
        arrays |= {f"world_mat_{i}": projection, f"scale_mat_{i}": scale}
    return arrays


def write_dtu(root: Path, known: Known, *, name: str = "cameras_sphere.npz", masks: bool = True) -> None:
    """IDR's layout: image/000012.png, mask/012.png (the left half shows the object)."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 2] = 255
    for i in range(COUNT):
        write_png(root / "image" / f"{i:06d}.png", known.image(i))
        if masks:
            write_png(root / "mask" / f"{i:03d}.png", mask)
    np.savez(root / name, **dtu_matrices(known))


def llff_rows(known: Known) -> np.ndarray:
    """[COUNT, 17]: columns of R are the axes down, right, backwards; depths from 1 to 5, a little more for each row."""
    rows = []
    for i, pose in enumerate(known.poses):
        right, down, forward, center = pose[:3].T
        matrix = np.stack([down, right, -forward, center, [HEIGHT, WIDTH, FOCAL]], 1)
        rows.append([*matrix.ravel(), 1 + 0.01 * i, 5 + 0.01 * i])
    return np.array(rows)


def write_llff(root: Path, known: Known) -> None:
    write_images(root / "images", known)
    np.save(root / "poses_bounds.npy", llff_rows(known))


def write_dynerf(root: Path, known: Known, *, frames: int | None = None) -> None:
    """A folder for every camera. Without `frames` each has one, of the camera's own number; else all are alike."""
    for i in range(COUNT):
        for moment in [i] if frames is None else range(frames):
            write_png(root / f"cam{i:02d}" / "images" / f"{moment:04d}.png", known.image(i))
    np.save(root / "poses_bounds.npy", llff_rows(known))


HYPERNERF_CENTER, HYPERNERF_SCALE = [0.1, -0.2, 0.3], 0.125


def hypernerf_camera(pose: np.ndarray) -> dict:
    return {
        "orientation": pose[:3, :3].T.tolist(),
        "position": pose[:3, 3].tolist(),
        "focal_length": FOCAL,
        "principal_point": [WIDTH / 2, HEIGHT / 2],
        "skew": 0.0,
        "pixel_aspect_ratio": 1.0,
        "radial_distortion": [0.0, 0.0, 0.0],
        "tangential_distortion": [0.0, 0.0],
        "image_size": [WIDTH, HEIGHT],
    }


def write_hypernerf(root: Path, known: Known) -> None:
    """Two cameras side by side: even images are the left one's, to train on, and the odd ones the right one's."""
    ids = [f"{i:06d}" for i in range(COUNT)]
    (root / "camera").mkdir(parents=True)
    for i, name in enumerate(ids):
        (root / "camera" / f"{name}.json").write_text(json.dumps(hypernerf_camera(known.poses[i])))
        write_png(root / "rgb" / "1x" / f"{name}.png", known.image(i))
    split = {"count": COUNT, "num_exemplars": COUNT // 2, "ids": ids, "train_ids": ids[::2], "val_ids": ids[1::2]}
    (root / "dataset.json").write_text(json.dumps(split))
    moments = {name: {"warp_id": i // 2, "appearance_id": i // 2, "camera_id": i % 2} for i, name in enumerate(ids)}
    (root / "metadata.json").write_text(json.dumps(moments))
    scene = {"scale": HYPERNERF_SCALE, "center": HYPERNERF_CENTER, "near": 0.25, "far": 0.75}
    (root / "scene.json").write_text(json.dumps(scene))
    np.save(root / "points.npy", known.points)


WRITERS = {
    "blender": write_blender,
    "nerfstudio": write_nerfstudio,
    "colmap": write_colmap,
    "replica": write_replica,
    "sdfstudio": write_sdfstudio,
    "nsvf": write_nsvf,
    "nerfpp": write_nerfpp,
    "dtu": write_dtu,
    "llff": write_llff,
    "dynerf": write_dynerf,
    "hypernerf": write_hypernerf,
}
