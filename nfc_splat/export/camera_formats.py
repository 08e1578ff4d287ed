"""Cameras in the layouts of other tools: graphdeco's `cameras.json`, nerfstudio's `transforms.json`, a COLMAP model.

All three put pixel centres at +0.5, as is done here, and keep the frame and units of the scene. What they know:
    graphdeco    pose, size, focal lengths; the principal point is taken to be the middle, and there is no lens
    nerfstudio   pose (OpenGL's camera axes), size, lens, split, time, points
    COLMAP       pose, size, lens, points
Symbols: C cameras, M points.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.cameras import Cameras
from nfc_splat.data.colmap_model import CAMERA, COUNT, IMAGE, MODELS, POINT
from nfc_splat.errors import UserError
from nfc_splat.files import atomic_path, write_json
from nfc_splat.rendering.paths import camera_to_world, quaternions

OFF_MIDDLE = 1e-3  # of the image's size: a principal point that is nearer to the middle is called the middle
USUAL_EVERY = 8  # graphdeco's, gsplat's and our own readers of COLMAP models test on every 8th image
DISTORTION = {"k1", "k2", "k3", "k4", "p1", "p2"}
COLMAP_NUMBERS = {name: number for number, (name, _) in enumerate(MODELS)}


@dataclass(frozen=True, eq=False)
class NamedCameras:
    """Views to be written.

    Attributes:
        cameras: C of them, on the CPU.
        names: what their images are called, below a folder of images.
        masked: whether they have masks, called like the images; all do or none, which nerfstudio insists on.
        splits: "train", "test" or "val" for each.
        points, colors: [M, 3] float32 and [M, 3] float32 in [0, 1] or None; no points where the scene has none.
    """

    cameras: Cameras
    names: Sequence[str]
    masked: bool
    splits: Sequence[str]
    points: np.ndarray
    colors: np.ndarray | None

    def split_is_usual(self) -> bool:
        """Whether it is the one that readers of files without a split make: every 8th image by name is for testing."""
        by_name = sorted(zip(self.names, self.splits, strict=True))
        usual = ["train" if place % USUAL_EVERY or len(by_name) == 1 else "test" for place in range(len(by_name))]
        return [split for _, split in by_name] == usual

    def poses(self) -> np.ndarray:
        """[C, 4, 4] float64 camera to world, OpenCV axes."""
        return camera_to_world(self.cameras).numpy()

    def lens(self, index: int) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy."""
        K = self.cameras.Ks[index].double()
        return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])

    def size(self, index: int) -> tuple[int, int]:
        width, height = self.cameras.sizes[index].tolist()
        return width, height

    def distortion(self, index: int) -> list[float]:
        """k1, k2, k3, p1, p2, k4 (opencv) or k1, k2, k3, k4, 0, 0 (opencv_fisheye)."""
        return [0.0] * 6 if self.cameras.distortion is None else self.cameras.distortion[index].double().tolist()


def write_graphdeco(path: Path, views: NamedCameras) -> list[str]:
    """Write `cameras.json`; returns what was lost, as sentences."""
    entries, off_middle = [], False
    for index, pose in enumerate(views.poses()):
        (fx, fy, cx, cy), (width, height) = views.lens(index), views.size(index)
        off_middle |= abs(cx / width - 0.5) > OFF_MIDDLE or abs(cy / height - 0.5) > OFF_MIDDLE
        entries.append(
            {
                "id": index,
                "img_name": views.names[index].rpartition(".")[0],
                "width": width,
                "height": height,
                "position": pose[:3, 3].tolist(),
                "rotation": pose[:3, :3].tolist(),
                "fy": fy,
                "fx": fx,
            }
        )
    write_json(path, entries)
    lost = ["principal points that are not in the middle"] if off_middle else []
    lost += ["the distortion of the lens"] if any(map(any, map(views.distortion, range(len(entries))))) else []
    lost += ["times"] if views.cameras.times is not None else []
    lost += [] if views.split_is_usual() else ["the split into training and test images"]
    return [f"cameras.json has no room for {' and '.join(lost)}"] if lost else []


def write_nerfstudio(folder: Path, views: NamedCameras, points_file: str | None) -> list[str]:
    """Write `transforms.json`; `points_file` is the name of the point cloud beside it. Returns what there is to say."""
    opengl = views.poses() * np.array([1.0, -1.0, -1.0, 1.0])
    lenses = [_nerfstudio_lens(views, index) for index in range(len(opengl))]
    shared = {key: value for key, value in lenses[0].items() if all(lens[key] == value for lens in lenses)}
    if not DISTORTION.intersection(lenses[0]) <= set(shared):
        # One coefficient for all is enough for nerfstudio to ignore those of the frames.
        shared = {key: value for key, value in shared.items() if key not in DISTORTION}
    frames = []
    for index, pose in enumerate(opengl):
        frame: dict[str, Any] = {"file_path": f"images/{views.names[index]}"}
        if views.masked:
            frame["mask_path"] = f"masks/{views.names[index]}"
        if views.cameras.times is not None:
            frame["time"] = float(views.cameras.times[index])
        frame |= {key: value for key, value in lenses[index].items() if key not in shared}
        frames.append(frame | {"transform_matrix": pose.tolist()})
    lists = _nerfstudio_lists(views)
    content = {"camera_model": _nerfstudio_model(views), **shared, "frames": frames, **lists}
    if points_file is not None:
        content["ply_file_path"] = points_file
    write_json(folder / "transforms.json", content)
    if lists:
        return []
    return ["nothing was held out, so no split is listed: nerfstudio trains on every image with --eval-mode all"]


def _nerfstudio_lists(views: NamedCameras) -> Mapping[str, list[str]]:
    """The images of every split: nerfstudio asks for "val" while it trains and for "test" afterwards, and refuses a
    file with lists that lacks the one it wants. So each stands in for the other; without both there are no lists."""
    lists: dict[str, list[str]] = {split: [] for split in ("train", "val", "test")}
    for name, split in zip(views.names, views.splits, strict=True):
        lists[split].append(f"images/{name}")
    held_out = lists["test"] or lists["val"]
    return {f"{split}_filenames": names or held_out for split, names in lists.items()} if held_out else {}


def _nerfstudio_model(views: NamedCameras) -> str:
    return {"pinhole": "PINHOLE", "opencv": "OPENCV", "opencv_fisheye": "OPENCV_FISHEYE"}[views.cameras.model]


def _nerfstudio_lens(views: NamedCameras, index: int) -> Mapping[str, Any]:
    (fx, fy, cx, cy), (width, height) = views.lens(index), views.size(index)
    lens = {"w": width, "h": height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    if views.cameras.model == "pinhole":
        return lens
    k1, k2, k3, a, b, c = views.distortion(index)
    names = (
        ("k1", "k2", "k3", "k4") if views.cameras.model == "opencv_fisheye" else ("k1", "k2", "k3", "p1", "p2", "k4")
    )
    return lens | dict(zip(names, (k1, k2, k3, a, b, c), strict=False))


def write_colmap(folder: Path, views: NamedCameras, *, binary: bool) -> None:
    """Write `cameras`, `images` and `points3D`; images without observations, points without tracks.

    Raises:
        UserError: a lens that COLMAP has no model for.
    """
    lenses = [_colmap_lens(views, index) for index in range(len(views.names))]
    numbers = {lens: number for number, lens in enumerate(dict.fromkeys(lenses), start=1)}
    rotations = views.cameras.viewmats[:, :3, :3].double().cpu()
    quats = quaternions(rotations)
    quats = (quats * quats[:, :1].sign().where(quats[:, :1] != 0, 1.0)).tolist()
    translations = views.cameras.viewmats[:, :3, 3].double().tolist()
    cameras = list(zip(quats, translations, map(numbers.get, lenses), views.names, strict=True))
    colors = np.full(views.points.shape, 128) if views.colors is None else (views.colors * 255).round().clip(0, 255)
    points = list(zip(views.points.tolist(), colors.astype(int).tolist(), strict=True))
    contents = (_binary if binary else _text)(numbers, cameras, points)
    for stem, content in contents.items():
        with atomic_path(folder / f"{stem}.{'bin' if binary else 'txt'}") as temporary:
            temporary.write_bytes(content)


Lens = tuple[str, int, int, tuple[float, ...]]


def _colmap_lens(views: NamedCameras, index: int) -> Lens:
    """Model, width, height and parameters."""
    lens, size = views.lens(index), views.size(index)
    k1, k2, k3, a, b, k4 = views.distortion(index)
    if views.cameras.model == "pinhole" or (views.cameras.model == "opencv" and not any((k1, k2, k3, a, b, k4))):
        return ("PINHOLE", *size, lens)
    if views.cameras.model == "opencv_fisheye":
        return ("OPENCV_FISHEYE", *size, (*lens, k1, k2, k3, a))
    if k4:
        raise UserError(f"{views.names[index]}: COLMAP has no lens with k4 {k4:g}; export it as nerfstudio")
    if k3:
        return ("FULL_OPENCV", *size, (*lens, k1, k2, a, b, k3, 0.0, 0.0, 0.0))
    return ("OPENCV", *size, (*lens, k1, k2, a, b))


def _binary(numbers: Mapping[Lens, int], images: Sequence[tuple], points: Sequence[tuple]) -> dict[str, bytes]:
    cameras = COUNT.pack(len(numbers))
    for (model, width, height, parameters), number in numbers.items():
        cameras += CAMERA.pack(number, COLMAP_NUMBERS[model], width, height)
        cameras += struct.pack(f"<{len(parameters)}d", *parameters)
    listed = [COUNT.pack(len(images))]
    for number, (quat, translation, camera, name) in enumerate(images, start=1):
        listed.append(IMAGE.pack(number, *quat, *translation, camera) + name.encode() + b"\0" + COUNT.pack(0))
    cloud = [COUNT.pack(len(points))]
    cloud += [POINT.pack(number, *xyz, *rgb, 0.0, 0) for number, (xyz, rgb) in enumerate(points, start=1)]
    return {"cameras": cameras, "images": b"".join(listed), "points3D": b"".join(cloud)}


def _text(numbers: Mapping[Lens, int], images: Sequence[tuple], points: Sequence[tuple]) -> dict[str, bytes]:
    cameras = ["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"]
    for (model, width, height, parameters), number in numbers.items():
        cameras.append(f"{number} {model} {width} {height} {_numbers(parameters)}")
    listed = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of observations"]
    for number, (quat, translation, camera, name) in enumerate(images, start=1):
        listed += [f"{number} {_numbers(quat)} {_numbers(translation)} {camera} {name}", ""]
    cloud = ["# POINT3D_ID X Y Z R G B ERROR TRACK[]"]
    for number, (xyz, rgb) in enumerate(points, start=1):
        cloud.append(f"{number} {_numbers(xyz)} {rgb[0]} {rgb[1]} {rgb[2]} 0")
    lines = {"cameras": cameras, "images": listed, "points3D": cloud}
    return {stem: ("\n".join(rows) + "\n").encode() for stem, rows in lines.items()}


def _numbers(values: Sequence[float]) -> str:
    return " ".join(repr(float(value)) for value in values)
