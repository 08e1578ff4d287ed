"""`python -m nfc_splat.export splats RUN`: a run's Gaussians as a file that viewers and other trainers read.

In the frame and units of the scene. Of Gaussians that move: those of one moment, or a file for each of several.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nfc_splat.chosen_run import add_run_arguments, check_time, load_chosen_run
from nfc_splat.errors import UserError
from nfc_splat.export.destination import add_destination_arguments, output_file, output_folder, output_name
from nfc_splat.terminal import progress

if TYPE_CHECKING:
    from torch import Tensor

    from nfc_splat.fields.splat_file import Splats
    from nfc_splat.training.load import LoadedRun

FORMATS = (".ply", ".splat", ".spz")
DEFAULT = "exported/splats.ply"
MOST_FRAMES = 99_999


def main(arguments: Sequence[str]) -> int:
    """Write the Gaussians as the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    _check(options)
    if options.frames:
        path = output_name(options, DEFAULT, FORMATS)
        folder = output_folder(options, path.with_name(f"{path.stem}-frames"))
    else:
        path, folder = output_file(options, DEFAULT, FORMATS), None

    run, _ = load_chosen_run(options)
    _check_method(run, options)
    if folder is None:
        dropped, facts = write(path, _splats(run, options, options.time or 0.0))
    else:
        dropped, facts = _write_frames(run, options, folder, path.suffix)
    print(f"{run.scene.name}, {run.config.method}: step {run.step}, {run.model.primitives:,} Gaussians")
    for fact in facts:
        print(f"  {fact}")
    if dropped:
        print(f"  left out {dropped:,} with values that are not finite")
    print(f"  wrote {folder or path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfc_splat.export splats",
        description="Write a run's Gaussians, in the frame and units of its scene, for viewers and other trainers.",
    )
    add_run_arguments(parser)
    add_destination_arguments(
        parser, f"a file with the ending .ply (INRIA's layout), .splat or .spz (default: RUN/{DEFAULT})"
    )
    parser.add_argument(
        "--sh-degree",
        type=int,
        choices=range(4),
        help="view-dependent colour up to this degree (default: all that was learned; .splat holds none)",
    )
    parser.add_argument(
        "--time", type=float, metavar="T", help="of a scene that moves, the moment to show, 0 to 1 (default: 0)"
    )
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="of a scene that moves, N files for moments from 0 to 1: 00000.ply and so on, in the folder NAME-frames "
        "for a PATH of NAME.ply",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.time is not None:
        check_time(options.time)
    if options.frames is None:
        return
    if not 2 <= options.frames <= MOST_FRAMES:
        raise UserError(f"--frames {options.frames}: expected 2 to {MOST_FRAMES}")
    if options.time is not None:
        raise UserError("--time and --frames: give one of them, a moment or many")


def _check_method(run: "LoadedRun", options: argparse.Namespace) -> None:
    """Refuse models without Gaussians, and moments of what does not move."""
    from nfc_splat.fields import find_method
    from nfc_splat.fields.gaussians import Model

    method = run.config.method
    if not isinstance(run.model, Model):
        raise UserError(f"{options.run}: {method} has no Gaussians; export mesh or export points writes its surface")
    for flag in ("time", "frames"):
        if getattr(options, flag) is not None and not find_method(method).dynamic:
            raise UserError(f"--{flag}: {method} does not model motion; leave it out")


def _splats(run: "LoadedRun", options: argparse.Namespace, time: float) -> "Splats":
    """The Gaussians at a moment, on the CPU, with the harmonics that were asked for."""
    import torch

    from nfc_splat.fields.splat_file import Splats

    with torch.no_grad():
        moving = hasattr(run.model, "splats_at")
        found: Mapping[str, Tensor] = run.model.splats_at(time) if moving else run.model.splats()
    tensors = {name: tensor.detach().float().cpu() for name, tensor in found.items()}
    if options.sh_degree is not None:
        tensors["shN"] = tensors["shN"][:, : (options.sh_degree + 1) ** 2 - 1]
    return Splats(**tensors, antialiased=run.model.config.antialiased)


def write(path: Path, splats: "Splats") -> tuple[int, list[str]]:
    """Write `splats` in the format of the ending; returns how many were left out and what there is to say.

    Raises:
        UserError: none is finite, or the format cannot hold them.
    """
    splats, dropped = finite(splats)
    if not len(splats.means):
        raise UserError(f"{path}: none of {dropped:,} Gaussians is finite; the training diverged")
    return dropped, _WRITERS[path.suffix.lower()](path, splats)


def finite(splats: "Splats") -> tuple["Splats", int]:
    """The Gaussians all of whose values are finite, standard deviations included, and how many are not."""
    tensors = {field.name: getattr(splats, field.name) for field in fields(splats) if field.name != "antialiased"}
    good = splats.scales.exp().isfinite().all(1) & splats.opacities.isfinite() & (splats.quats.norm(dim=1) > 0)
    for tensor in tensors.values():
        good &= tensor.flatten(1).isfinite().all(1) if tensor.ndim > 1 else tensor.isfinite()
    return replace(splats, **{name: tensor[good] for name, tensor in tensors.items()}), int((~good).sum())


def _ply(path: Path, splats: "Splats") -> list[str]:
    from nfc_splat.fields.splat_file import write_splats

    write_splats(path, splats)
    return [_colors(splats)]


def _splat(path: Path, splats: "Splats") -> list[str]:
    from nfc_splat.export.splat_formats import write_splat

    write_splat(path, splats)
    return ["colours from everywhere alike, in 8 bits, as .splat has them"]


def _spz(path: Path, splats: "Splats") -> list[str]:
    from nfc_splat.export.splat_formats import write_spz

    return [
        _colors(splats),
        f"positions in steps of {write_spz(path, splats):.3g} units, y and z turned as .spz has them",
    ]


_WRITERS: dict[str, Callable[[Path, "Splats"], list[str]]] = {".ply": _ply, ".splat": _splat, ".spz": _spz}


def _colors(splats: "Splats") -> str:
    degree = {0: 0, 3: 1, 8: 2, 15: 3}[splats.shN.shape[1]]
    return f"colours with spherical harmonics of degree {degree}"


def _write_frames(run: "LoadedRun", options: argparse.Namespace, folder: Path, suffix: str) -> tuple[int, list[str]]:
    """A file per moment, even from 0 to 1; what an earlier, longer export left is removed."""
    total, facts = 0, []
    with progress(options.frames, "moments") as advance:
        for index in range(options.frames):
            splats = _splats(run, options, index / (options.frames - 1))
            dropped, facts = write(folder / f"{index:05d}{suffix}", splats)
            total += dropped
            advance()
    for path in folder.glob(f"[0-9][0-9][0-9][0-9][0-9]{suffix}"):
        if int(path.stem) >= options.frames:
            path.unlink()
    return total, [*facts, f"{options.frames} moments from 0 to 1"]
