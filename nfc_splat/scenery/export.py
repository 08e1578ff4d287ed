"""Scene folders: the NICE-SLAM Replica layout for the room, the Blender layout for the object, and the meshes.

Symbols: V vertices, T triangles, N views. Views are drawn by a few threads at once and written in order, so that the
files are the same bytes every time.
"""

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from nfc_splat.scenery.drawing import Lens, View, draw, encode, tone
from nfc_splat.scenery.shading import Shader

DEPTH_SCALE = 6553.5  # Replica's depth units per metre
JPEG_QUALITY = 97
PNG_LEVEL = 4
WORKERS = 2  # views in hand at once: one is coloured while the other's rays, parallel already, are cast

Progress = Callable[[int], None]


def write_replica(
    folder: Path, name: str, shader: Shader, lens: Lens, poses: np.ndarray, subpixels: int, progress: Progress
) -> None:
    """Write `traj.txt`, `results/`, `cam_params.json` and `<name>_mesh.ply` into `folder`.

    Poses [N, 4, 4] are camera-to-world in OpenCV axes, one row-major matrix per line; depth is camera z; and, as in
    Replica, the principal point is that of pixel centres at whole numbers.
    """
    results = folder / "results"
    results.mkdir()
    camera = {
        "w": lens.width,
        "h": lens.height,
        "fx": lens.focal,
        "fy": lens.focal,
        "cx": (lens.width - 1) / 2,
        "cy": (lens.height - 1) / 2,
        "scale": DEPTH_SCALE,
    }
    (folder / "cam_params.json").write_text(json.dumps({"camera": camera}, indent=4) + "\n")
    np.savetxt(folder / "traj.txt", poses.reshape(-1, 16))
    write_mesh(folder / f"{name}_mesh.ply", shader)

    def save(index: int, view: View) -> None:
        image = Image.fromarray(_bytes(view.color))
        image.save(results / f"frame{index:06d}.jpg", quality=JPEG_QUALITY, subsampling=0)
        units = np.clip(np.rint(view.depth.astype(np.float64) * DEPTH_SCALE), 0, 65535).astype(np.uint16)
        Image.fromarray(units).save(results / f"depth{index:06d}.png", compress_level=PNG_LEVEL)

    _draw_all(shader, lens, poses, subpixels, save, progress)


def write_blender(
    folder: Path,
    name: str,
    shader: Shader,
    lens: Lens,
    splits: dict[str, np.ndarray],
    subpixels: int,
    progress: Progress,
) -> None:
    """Write `transforms_<split>.json` and RGBA images (straight alpha) per split, and `<name>_mesh.ply`.

    Poses [N, 4, 4] come in OpenCV axes and are stored in Blender's (x right, y up, z backwards).
    """
    write_mesh(folder / f"{name}_mesh.ply", shader)
    done = 0
    for split, poses in splits.items():
        (folder / split).mkdir()
        frames = [
            {"file_path": f"./{split}/r_{i}", "transform_matrix": (pose * [1, -1, -1, 1]).tolist()}
            for i, pose in enumerate(poses)
        ]
        angle = 2 * math.atan(0.5 * lens.width / lens.focal)
        text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=2)
        (folder / f"transforms_{split}.json").write_text(text + "\n")

        def save(index: int, view: View, images: Path = folder / split) -> None:
            pixels = np.concatenate([view.color, view.alpha[..., None]], axis=-1)
            Image.fromarray(_bytes(pixels)).save(images / f"r_{index}.png", compress_level=PNG_LEVEL)

        _draw_all(shader, lens, poses, subpixels, save, lambda count, start=done: progress(start + count))
        done += len(poses)


def _draw_all(
    shader: Shader,
    lens: Lens,
    poses: np.ndarray,
    subpixels: int,
    save: Callable[[int, View], None],
    progress: Progress,
) -> None:
    """Draw and save every view; `progress` hears how many are done."""

    def work(index: int) -> None:
        save(index, draw(shader, lens, poses[index], subpixels))

    with ThreadPoolExecutor(WORKERS) as pool:
        for count, _ in enumerate(_in_order(pool, work, len(poses)), start=1):
            progress(count)


def _in_order(pool: ThreadPoolExecutor, work: Callable[[int], None], count: int) -> Iterator[None]:
    """`work(0)` to `work(count - 1)`; after a failure or an interrupt nothing more is started."""
    futures = [pool.submit(work, index) for index in range(count)]
    try:
        for future in futures:
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def write_mesh(path: Path, shader: Shader) -> None:
    """Write the traced triangles as a binary PLY with vertex colours, vertices at one position welded.

    It holds every surface, the hidden ones too: what lies under the furniture is there, as in a CAD model.
    """
    geometry = shader.geometry
    positions, first, index = np.unique(geometry.vertices, axis=0, return_index=True, return_inverse=True)
    shown = tone(shader.exposure * shader.vertex_albedo(0.02) * (shader.irradiance + shader.vertex_emission()))
    vertices = np.empty(len(positions), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = positions, _bytes(encode(shown))[first]
    corners = index.reshape(-1)[geometry.triangles]
    distinct = (corners != np.roll(corners, 1, axis=1)).all(axis=1)
    faces = np.empty(int(distinct.sum()), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, corners[distinct]
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\n"
        f"element face {len(faces)}\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    path.write_bytes(header.encode("ascii") + vertices.tobytes() + faces.tobytes())
