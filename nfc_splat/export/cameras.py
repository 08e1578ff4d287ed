"""`python -m nfc_splat.export cameras RUN`: the cameras that a run was trained and tested on, for other tools.

They are the cameras as the run saw them: without the lens where its method takes that away, and for images of the size
that was trained on, so that they fit the images that `--images` writes. In the frame and units of the scene.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from nfc_splat.chosen_run import add_run_arguments, load_chosen_run, run_folder
from nfc_splat.errors import UserError
from nfc_splat.export.destination import add_destination_arguments, output_file, output_folder
from nfc_splat.terminal import progress

if TYPE_CHECKING:
    from nfc_splat.data import Scene
    from nfc_splat.export.camera_formats import NamedCameras

FORMATS = ("graphdeco", "nerfstudio", "colmap", "colmap-text")
POINTS = "points.ply"


def main(arguments: Sequence[str]) -> int:
    """Write the cameras as the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.images and options.format == "graphdeco":
        raise UserError("--images: cameras.json refers to no images; use --format nerfstudio or colmap")
    if options.format == "graphdeco":
        path = output_file(options, "exported/cameras.json", (".json",))
    else:
        path = output_folder(options, options.out or run_folder(options) / "exported" / options.format)

    run, _ = load_chosen_run(options)
    views = named_cameras(run.scene)
    facts = write(path, views, options.format)
    if options.images:
        _write_images(run.scene, path, views)
        facts.append("images and masks as the run saw them")
    elif options.format != "graphdeco":
        facts.append("no images: --images writes those that these cameras fit")
    print(f"{run.scene.name}: {len(views.names)} cameras, in the scene's frame")
    for fact in facts:
        print(f"  {fact}")
    print(f"  wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfc_splat.export cameras",
        description="Write the cameras of a run, as it saw them, in the layout of another tool.",
    )
    add_run_arguments(parser)
    add_destination_arguments(
        parser, "a file ending .json for graphdeco, else a folder (default: RUN/exported/cameras.json, or /FORMAT)"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="graphdeco",
        help="graphdeco: cameras.json, which splat viewers read; nerfstudio: transforms.json; colmap: a binary model "
        "in sparse/0; colmap-text: the same as text (default: graphdeco)",
    )
    parser.add_argument("--images", action="store_true", help="write the images and masks, too, as PNG")
    return parser


def named_cameras(scene: "Scene") -> "NamedCameras":
    """All views of a scene, split by split, under names that every tool can read."""
    import numpy as np

    from nfc_splat.cameras import Cameras
    from nfc_splat.export.camera_formats import NamedCameras

    splits = {name: split for name, split in scene.splits.items() if len(split)}
    names = file_names([name for split in splits.values() for name in split.names])
    masked = any(split.mask(index) is not None for split in splits.values() for index in range(len(split)))
    return NamedCameras(
        Cameras.concatenate([split.cameras for split in splits.values()]),
        names,
        masked,
        [name for name, split in splits.items() for _ in range(len(split))],
        np.zeros((0, 3), np.float32) if scene.points is None else scene.points.numpy(),
        None if scene.colors is None else scene.colors.numpy(),
    )


def file_names(names: Sequence[str]) -> list[str]:
    """`names` as PNG files below one folder: without what leads out of it or is odd in a name, and no two alike."""
    safe = []
    for name in names:
        parts = [part for part in PurePosixPath(name).parts if part.strip("/") not in ("", "..", "images")]
        stem = "/".join(parts).rpartition(".")[0] or "_".join(parts) or "image"
        safe.append(re.sub(r"[^A-Za-z0-9._/-]+", "_", stem))
    if len({name.lower() for name in safe}) < len(safe):
        safe = [f"{index:05d}/{name}" for index, name in enumerate(safe)]
    return [f"{name}.png" for name in safe]


def write(path: Path, views: "NamedCameras", format: str) -> list[str]:
    """Write `views` in one of `FORMATS`; returns what there is to say."""
    from nfc_splat.export import camera_formats

    if format == "graphdeco":
        return camera_formats.write_graphdeco(path, views)
    if format == "nerfstudio":
        if len(views.points):
            _write_points(path / POINTS, views)
        said = camera_formats.write_nerfstudio(path, views, POINTS if len(views.points) else None)
        return [f"{len(views.points):,} points in {POINTS}", *said] if len(views.points) else said
    camera_formats.write_colmap(path / "sparse" / "0", views, binary=format == "colmap")
    said = [f"{len(views.points):,} points"]
    if views.cameras.times is not None:
        said.append("COLMAP has no times: --time-from names gives them back where names are in order")
    if not views.split_is_usual():
        said.append("COLMAP has no split: its readers test on every 8th image by name; nerfstudio's format keeps it")
    return said


def _write_points(path: Path, views: "NamedCameras") -> None:
    import torch

    from nfc_splat.fields.point_cloud_file import write_point_cloud

    points = torch.from_numpy(views.points)
    colors = torch.full_like(points, 0.5) if views.colors is None else torch.from_numpy(views.colors)
    write_point_cloud(path, points, colors)


def _write_images(scene: "Scene", folder: Path, views: "NamedCameras") -> None:
    """Every image under its name in `views`, and where there are masks its own, or a white one if it has none."""
    import torch

    from nfc_splat.eval.pictures import to_bytes, write_png

    places = [(split, index) for split in scene.splits.values() for index in range(len(split))]
    with progress(len(places), "images") as advance:
        for (split, index), name in zip(places, views.names, strict=True):
            image = split.image(index)
            write_png(folder / "images" / name, image.numpy())
            if views.masked:
                mask = split.mask(index)
                write_png(folder / "masks" / name, to_bytes(torch.ones(image.shape[:2]) if mask is None else mask))
            advance()
