"""`python -m nfc_splat.render RUN`: draw a trained model, or Gaussians of any tool, from views or along a camera path.

Writes below RUN/rendered/PATH: color/, alpha/, depth/ and, on request, normal/ (00000.png, 00001.png, ...),
depth_preview/, frames.json with the cameras and the meaning of the values, and videos on request.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfc_splat.chosen_run import SPLITS, add_run_arguments, at_time, chosen_split, load_chosen_run, run_folder
from nfc_splat.errors import UserError, run_command
from nfc_splat.files import write_json
from nfc_splat.rendering.paths import PATHS, camera_path, camera_to_world
from nfc_splat.rendering.video import FRAME_PATTERN, VIDEOS, check_video, write_video
from nfc_splat.terminal import progress

if TYPE_CHECKING:
    from torch import Tensor

    from nfc_splat.cameras import Cameras
    from nfc_splat.rendering import SceneModel
    from nfc_splat.training.load import LoadedRun

OUTPUTS = ("color", "depth", "alpha", "normal")
DEFAULT_OUTPUTS = ["color", "depth", "alpha"]
OPAQUE = 0.5
MOST_FRAMES = 99_999
DEFAULT_FRAMES = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Render as the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    _check(options)

    run, device = load_chosen_run(options)
    cameras, names = choose_cameras(run, options)
    options.fps = options.fps or 30.0
    if options.time is not None:
        cameras = at_time(run, cameras, options.time)
    if options.video:
        check_video(options.video, len(cameras), *_one_size(cameras))
    path = options.path if options.path in (*SPLITS, *PATHS) else f"path-{Path(options.path).stem}"
    folder = options.out or run_folder(options) / "rendered" / path
    background = _background(run, options.background).to(device)
    _ask_for_normals(run, options)
    with progress(len(cameras), options.path) as advance:
        saturated = 0
        for index in range(len(cameras)):
            saturated += draw_frame(run.model, cameras[index].to(device), background, folder, index, options)
            advance()
    _remove_later_frames(folder, len(cameras))
    write_json(folder / "frames.json", _describe(run, cameras, names, background, options))
    written = [folder / output for output in options.outputs]
    if "depth" in options.outputs:
        write_depth_previews(folder, len(cameras))
        written.append(folder / "depth_preview")
    _report(run, options, len(cameras), saturated)
    for path in [*written, folder / "frames.json", *_write_videos(folder, options)]:
        print(f"  wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfc_splat.render",
        description="Draw a trained model from its own views or along a camera path: colours, depth, alpha, videos.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--path",
        type=_path,
        metavar="PATH",
        default="test",
        help="test, train or val: a split's views; orbit: around what the cameras look at; interpolate: a smooth curve "
        "through training cameras; spiral: around the middle camera; still: the first training camera, while time "
        "passes; FILE.json: a camera path of nerfstudio's viewer (default: test)",
    )
    parser.add_argument(
        "--time",
        type=float,
        metavar="T",
        help="draw every frame at this time, 0 to 1, with a method that models motion (default: a view's own time; "
        "0 to 1 along a path)",
    )
    parser.add_argument(
        "--frames", type=int, metavar="N", help=f"frames of {', '.join(PATHS)} (default: {DEFAULT_FRAMES})"
    )
    parser.add_argument("--fps", type=float, help="frames per second of a video (default: the file's, or 30)")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="(default: the photographs', or the file's)")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="(default: the photographs', or the file's)")
    parser.add_argument(
        "--video", nargs="?", choices=VIDEOS, const="mp4", help="also write videos; mp4 unless webp is asked for"
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        choices=OUTPUTS,
        default=DEFAULT_OUTPUTS,
        help="normal: for ray-marched methods (default: color depth alpha)",
    )
    parser.add_argument(
        "--depth-scale", type=float, default=1000.0, help="value of one world unit in the depth images (default: 1000)"
    )
    parser.add_argument("--background", choices=("scene", "white", "black"), default="scene")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(default: RUN/rendered/PATH)")
    return parser


def _path(text: str) -> str:
    """A value of --path."""
    if text in (*SPLITS, *PATHS) or text.lower().endswith(".json"):
        return text
    names = ", ".join((*SPLITS, *PATHS))
    raise argparse.ArgumentTypeError(f"{text!r}: expected one of {names}, or a file whose name ends with .json")


def _check(options: argparse.Namespace) -> None:
    """Refuse numbers that make no sense and flags that would do nothing."""
    limits = {"frames": MOST_FRAMES, "fps": 1000, "width": 32768, "height": 32768, "depth_scale": 1e9}
    for name, most in limits.items():
        value = getattr(options, name)
        least = 1e-9 if name == "depth_scale" else 1
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: expected {least:g} to {most:g}")
    if options.frames is not None and options.path not in PATHS:
        raise UserError(f"--frames {options.frames}: means nothing with --path {options.path}; leave it out")
    if options.video and "color" not in options.outputs and "depth" not in options.outputs:
        raise UserError("--video: only color and depth make videos; add one of them to --outputs")


def choose_cameras(run: "LoadedRun", options: argparse.Namespace) -> tuple["Cameras", list[str] | None]:
    """The cameras to draw from, and what their photographs are called, if they have any."""
    import torch

    if options.path in SPLITS:
        split = chosen_split(run, "--path", options.path)
        sizes = torch.tensor([_scaled(size, options) for size in split.cameras.sizes.tolist()])
        return split.cameras.resized(sizes), list(split.names)
    cameras = run.scene.splits["train"].cameras
    if options.path not in PATHS:
        return _cameras_of_file(Path(options.path), cameras.times is not None, options), None
    width, height = _scaled(cameras.sizes.median(0).values.tolist(), options)
    return camera_path(options.path, cameras, options.frames or DEFAULT_FRAMES, width, height), None


def _cameras_of_file(path: Path, moves: bool, options: argparse.Namespace) -> "Cameras":
    """The cameras of a file, at its own times, else from 0 to 1, where the scene moves; settles the frame rate."""
    import torch

    from nfc_splat.rendering.camera_path_file import TRANSFORMS, read_camera_path

    found = read_camera_path(path)
    options.fps = options.fps or found.fps
    print(f"{path}: {f'{TRANSFORMS} beside it is undone' if found.moved else 'taken to be in the frame of the scene'}")
    cameras = found.cameras(*_scaled((found.width, found.height), options))
    times = found.times if found.times is not None else torch.linspace(0, 1, len(cameras))
    return replace(cameras, times=times if moves else None)


def _scaled(size: Sequence[int], options: argparse.Namespace) -> tuple[int, int]:
    """The size asked for; where only one side is, the other follows the proportions of `size`."""
    width, height = size
    if options.width and options.height:
        return options.width, options.height
    if options.width:
        return options.width, max(1, round(height * options.width / width))
    if options.height:
        return max(1, round(width * options.height / height)), options.height
    return width, height


def _one_size(cameras: "Cameras") -> tuple[int, int]:
    sizes = {tuple(size) for size in cameras.sizes.tolist()}
    if len(sizes) > 1:
        raise UserError(f"--video: the views have {len(sizes)} different sizes; give --width and --height")
    return sizes.pop()


def _ask_for_normals(run: "LoadedRun", options: argparse.Namespace) -> None:
    """Make the model draw normals if they are wanted; a `UserError` when it cannot."""
    if "normal" not in options.outputs:
        return
    if not hasattr(run.model, "draw_normals"):
        raise UserError(f"--outputs normal: {run.config.method} draws none; leave it out")
    run.model.draw_normals = True


def _background(run: "LoadedRun", name: str) -> "Tensor":
    import torch

    return run.scene.background if name == "scene" else torch.full((3,), 1.0 if name == "white" else 0.0)


def draw_frame(
    model: "SceneModel",
    camera: "Cameras",
    background: "Tensor",
    folder: Path,
    index: int,
    options: argparse.Namespace,
) -> int:
    """Render one camera and write the pictures asked for; returns how many depth values did not fit in 16 bits."""
    import numpy as np
    import torch

    from nfc_splat.eval.pictures import to_bytes, write_png
    from nfc_splat.eval.views import render_view

    drawn = render_view(model, camera, background)
    file = FRAME_PATTERN % index
    if "color" in options.outputs:
        write_png(folder / "color" / file, to_bytes(drawn.color[0]))
    if "alpha" in options.outputs:
        write_png(folder / "alpha" / file, to_bytes(drawn.alpha[0, ..., 0]))
    if "normal" in options.outputs:
        write_png(folder / "normal" / file, to_bytes(0.5 + 0.5 * drawn.normal[0]))
    if "depth" not in options.outputs:
        return 0
    solid = drawn.alpha[0, ..., 0] >= OPAQUE
    values = torch.where(solid, drawn.depth[0, ..., 0].double() * options.depth_scale, 0.0)
    values = torch.nan_to_num(values, nan=0.0).round()
    write_png(folder / "depth" / file, values.clamp(0, 65535).cpu().numpy().astype(np.uint16))
    return int((values > 65535).sum())


def _remove_later_frames(folder: Path, count: int) -> None:
    """Remove what an earlier, longer path left, which would end up in the videos."""
    for output in (*OUTPUTS, "depth_preview"):
        for path in (folder / output).glob("[0-9][0-9][0-9][0-9][0-9].png"):
            if int(path.stem) >= count:
                path.unlink()


def write_depth_previews(folder: Path, count: int) -> None:
    """Colour the depth images, near bright and far dark, with one range of 1 / depth for the whole path."""
    import numpy as np
    import torch
    from PIL import Image

    from nfc_splat.eval.pictures import colorize, write_png

    def disparity(index: int) -> "Tensor":
        with Image.open(folder / "depth" / (FRAME_PATTERN % index), formats=("PNG",)) as image:
            values = torch.from_numpy(np.asarray(image).astype(np.float64))
        return torch.where(values > 0, 1 / values.clamp_min(1), 0.0)

    # The median over frames of each frame's range: a frame with something right before the camera does not decide.
    seen = [(found := disparity(index))[found > 0] for index in range(0, count, max(1, count // 20))]
    levels = torch.tensor([0.02, 0.98]).double()
    ranges = [found[:: 1 + len(found) // 10_000].quantile(levels) for found in seen if len(found)]
    low, high = torch.stack(ranges).median(0).values.tolist() if ranges else (0.0, 1.0)
    # Leave room below the far end, so that surfaces there differ from nothing at all.
    low -= 0.15 * (high - low)
    for index in range(count):
        write_png(folder / "depth_preview" / (FRAME_PATTERN % index), colorize(disparity(index), low, high))


def _write_videos(folder: Path, options: argparse.Namespace) -> list[Path]:
    """One video of the colours and one of the depth previews, whichever were drawn."""
    if not options.video:
        return []
    videos = []
    for output, frames in (("color", "color"), ("depth", "depth_preview")):
        if output in options.outputs:
            path = folder / f"{output}.{options.video}"
            write_video(path, folder / frames, options.video, options.fps)
            videos.append(path)
    return videos


def _describe(
    run: "LoadedRun",
    cameras: "Cameras",
    names: list[str] | None,
    background: "Tensor",
    options: argparse.Namespace,
) -> Mapping[str, Any]:
    """The content of frames.json."""
    poses, Ks, sizes = camera_to_world(cameras).tolist(), cameras.Ks.tolist(), cameras.sizes.tolist()
    frames = []
    for index in range(len(cameras)):
        frame: dict[str, Any] = {"file": FRAME_PATTERN % index}
        if names is not None:
            frame["name"] = names[index]
        frame |= {"width": sizes[index][0], "height": sizes[index][1], "camera_to_world": poses[index], "K": Ks[index]}
        if cameras.times is not None:
            frame["time"] = float(cameras.times[index])
        if cameras.model != "pinhole":
            frame |= {"model": cameras.model, "distortion": cameras.distortion[index].tolist()}
        frames.append(frame)
    return {
        "method": run.config.method,
        "step": run.step,
        "path": options.path,
        "fps": options.fps,
        "background": background.tolist(),
        "axes": "camera_to_world in OpenCV axes (x right, y down, z forward), in the input scene's frame and units; "
        "K in pixels for pixel centres at +0.5; distortion k1 k2 k3 p1 p2 k4 (opencv) or k1 k2 k3 k4 (opencv_fisheye)",
        "depth": {
            "file": "16-bit grey PNG",
            "meaning": "expected z-depth: distance along the camera's viewing axis, not along the pixel's ray",
            "scale": options.depth_scale,
            "unit": "value / scale is in the input scene's units",
            "zero": f"nothing there: alpha below {OPAQUE}",
        },
        "normal": "8-bit RGB, 127.5 (1 + n), n the unit normal in world axes facing the camera; grey where nothing is",
        "frames": frames,
    }


def _report(run: "LoadedRun", options: argparse.Namespace, count: int, saturated: int) -> None:
    """Say what was drawn, and what did not fit."""
    print(f"{run.scene.name}, {run.config.method}: step {run.step}, {count} frames, path {options.path}")
    if saturated:
        print(
            f"warning: {saturated} depth values exceed {65535 / options.depth_scale:g} units, the most that 16 bits "
            f"hold at --depth-scale {options.depth_scale:g}; give a smaller one",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_command(main)
