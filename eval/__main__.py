"""`python -m nfc_splat.eval {images,splats,mesh,speed,cost} ...`: measure runs, splats, meshes, and speed."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from nfc_splat.chosen_run import SPLITS, add_run_arguments, chosen_split, is_splat_file, load_chosen_run, run_folder
from nfc_splat.errors import UserError, run_command
from nfc_splat.eval.images import PROTOCOLS
from nfc_splat.eval.summary import print_summary
from nfc_splat.files import read_json
from nfc_splat.terminal import progress

if TYPE_CHECKING:
    from nfc_splat.training.load import LoadedRun

# What only the end of training knows; a later evaluation of the same step keeps it.
_KEPT = ("train_seconds", "peak_memory_mb", "peak_gpu_memory_mb")


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch to a subcommand; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m nfc_splat.eval", description=__doc__.partition(": ")[2])
    commands = {
        "images": "PSNR, SSIM and LPIPS of a run's views",
        "splats": "the same of Gaussians in a file, of any tool, on a scene's views",
        "mesh": "accuracy, completeness, Chamfer distance and F-score of a mesh or cloud, beside the truth",
        "speed": "time of rendering and training steps",
        "cost": "time of a training step by classification, beside one by regression",
    }
    listing = "; ".join(f"{name}: {what}" for name, what in commands.items())
    parser.add_argument("command", choices=list(commands), help=listing)
    options = parser.parse_args(arguments[:1])
    if options.command != "images":
        return import_module(f"nfc_splat.eval.{options.command}").main(arguments[1:])
    return images(arguments[1:])


def images(arguments: Sequence[str]) -> int:
    """Recompute the metrics of a run from its checkpoint, write them, and print them."""
    options = _images_parser().parse_args(arguments)

    if is_splat_file(options.run):
        raise UserError(f"{options.run}: is no run; eval splats measures Gaussians in a file")
    from nfc_splat.eval.views import evaluate_views
    from nfc_splat.training.load import evaluation_facts

    run, device = load_chosen_run(options)
    protocol = PROTOCOLS[options.protocol or run.config.protocol]
    name = options.split or run.config.split
    split = chosen_split(run, "--split", name)
    folder, tables = destination(run_folder(options), run, protocol.name, name)
    before = read_json(tables / "summary.json") if (tables / "summary.json").is_file() else {}
    kept = {key: before[key] for key in _KEPT if key in before and before.get("step") == run.step}
    with progress(len(split) - protocol.left_out, "views") as advance:
        summary = evaluate_views(
            run.model,
            split,
            background=run.scene.background,
            protocol=protocol,
            device=device,
            folder=folder,
            extra=evaluation_facts(run) | kept,
            split_name=name,
            tables=tables,
            download_lpips=options.download_lpips,
            on_view=lambda name, score: advance(),
        )
    print_summary(summary, read_json(tables / "per_view.json"), before)
    for path in (tables / "summary.json", tables / "per_view.json", folder / "renders", folder / "contact_sheet.png"):
        print(f"  wrote {path}")
    return 0


def _images_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfc_splat.eval images",
        description="Render a run's views from its checkpoint, compare them with the photographs, write the metrics.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--protocol", choices=list(PROTOCOLS), help="bit depth, SSIM window and LPIPS net (default: the run's own)"
    )
    parser.add_argument("--split", choices=SPLITS, help="which views (default: those of the run, usually test)")
    parser.add_argument("--download-lpips", action="store_true", help="fetch absent LPIPS weights (up to 760 MB)")
    return parser


def destination(folder: Path, run: "LoadedRun", protocol: str, split: str) -> tuple[Path, Path]:
    """Where pictures and tables go: what training wrote is replaced by its equal, anything else gets its own folder."""
    from nfc_splat.training.checkpoint import checkpoint_files

    newest = max(checkpoint_files(folder / "checkpoints"), default=run.step)
    if (protocol, split, run.step) == (run.config.protocol, run.config.split, newest):
        return folder, folder / "eval"
    name = f"{protocol}-{split}" + ("" if run.step == newest else f"-step_{run.step:08d}")
    return folder / "eval" / name, folder / "eval" / name


if __name__ == "__main__":
    run_command(main)
