"""`python -m nfc_splat.eval splats FILE.ply SCENE`: another tool's Gaussians on a scene's test views, by this project's
metrics.

The file must be in the frame of the scene's files. It is drawn as 3dgs draws its own, and measured by what measures
runs, so that its numbers stand beside theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from nfc_splat.chosen_run import splat_model
from nfc_splat.data.config import DataConfig
from nfc_splat.errors import UserError
from nfc_splat.files import expect_writable
from nfc_splat.options import parse_options
from nfc_splat.terminal import progress

PROGRAM = "python -m nfc_splat.eval splats"


@dataclass(frozen=True)
class Options:
    """Draw Gaussians of any tool on a scene's views, compare them with the photographs, write the metrics."""

    file: Path
    """A PLY in INRIA's layout."""
    scene: Path
    """The scene's folder."""
    split: Literal["test", "train", "val"] = "test"
    """Which views."""
    protocol: Literal["default", "graphdeco", "nerfbaselines", "dnerf", "4dgs"] = "default"
    """Bit depth, SSIM window and LPIPS net."""
    near_plane: float = 0.01
    """Gaussians whose centre is nearer than this are not drawn, in world units (0.2 in graphdeco's rasteriser)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to render."""
    out: Path | None = None
    """Folder for metrics and pictures; by default FILE-eval, beside the file."""
    download_lpips: bool = False
    """Fetch absent LPIPS weights (up to 760 MB)."""
    data: DataConfig = field(default_factory=DataConfig)


def main(arguments: Sequence[str]) -> int:
    """Measure the file as the command line says; returns the exit code."""
    from nfc_splat.data import load_scene
    from nfc_splat.eval.images import PROTOCOLS
    from nfc_splat.eval.summary import print_summary
    from nfc_splat.eval.views import evaluate_views
    from nfc_splat.fields.gaussians import Config
    from nfc_splat.files import read_json
    from nfc_splat.rendering.kernels.threads import set_threads
    from nfc_splat.training.config import choose_device

    options = _parse(arguments)
    folder = options.out or options.file.with_name(f"{options.file.stem}-eval")
    expect_writable(folder)
    set_threads(None)
    device = choose_device(options.device)
    model, dropped = splat_model(options.file, Config(near_plane=options.near_plane), device)
    scene = load_scene(options.scene, options.data, undistort=True)
    split = scene.splits.get(options.split)
    if not split:
        there = ", ".join(f"{name} ({len(views)})" for name, views in scene.splits.items())
        raise UserError(f"--split {options.split}: {scene.name} has no such views, it has {there}; choose another")
    protocol = PROTOCOLS[options.protocol]
    with progress(len(split) - protocol.left_out, "views") as advance:
        summary = evaluate_views(
            model,
            split,
            background=scene.background,
            protocol=protocol,
            device=device,
            folder=folder,
            extra=facts(options, scene, model.primitives, dropped),
            split_name=options.split,
            download_lpips=options.download_lpips,
            on_view=lambda name, score: advance(),
        )
    print_summary(summary, read_json(folder / "eval" / "per_view.json"), {})
    for path in ("eval/summary.json", "eval/per_view.json", "renders", "contact_sheet.png"):
        print(f"  wrote {folder / path}")
    return 0


def _parse(arguments: Sequence[str]) -> Options:
    default = Options(file=tyro.MISSING, scene=tyro.MISSING)
    positional = {"file": "FILE.ply", "scene": "SCENE"}
    return parse_options(
        Options, arguments, PROGRAM, default=default, positional=positional, expected="FILE.ply, SCENE and flags"
    )


def facts(options: Options, scene: Any, primitives: int, dropped: int) -> dict[str, Any]:
    """What the metric file says besides the metrics."""
    return {
        "title": f"{scene.name}, {options.file.name}",
        "file": str(options.file),
        "primitives": primitives,
        "left_out": dropped,
        "near_plane": options.near_plane,
        "protocol": {
            "views": {name: len(split) for name, split in scene.splits.items()},
            "test_every": options.data.test_every,
            "format": scene.format,
            "downscale": options.data.downscale,
            "resampler": scene.resampler,
            "undistorted": scene.undistorted,
        },
    }
