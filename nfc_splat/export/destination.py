"""Where an export goes: looked at before any work is done, and never over what is there unless that is asked for."""

import argparse
from pathlib import Path

from nfc_splat.chosen_run import run_folder
from nfc_splat.errors import UserError
from nfc_splat.files import expect_writable


def add_destination_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --out, described by `what`, and --overwrite."""
    parser.add_argument("--out", type=Path, metavar="PATH", help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def output_name(options: argparse.Namespace, default: str, endings: tuple[str, ...]) -> Path:
    """--out, else `default` in the run's folder; a `UserError` for another ending than `endings`."""
    path = options.out or run_folder(options) / default
    if path.suffix.lower() not in endings:
        raise UserError(f"--out {path}: expected a name that ends with {', '.join(endings)}")
    return path


def output_file(options: argparse.Namespace, default: str, endings: tuple[str, ...]) -> Path:
    """--out, else the file `default` in the run's folder.

    Raises:
        UserError: another ending than `endings`, a folder, a file that is there without --overwrite, or one that cannot
            be written.
    """
    path = output_name(options, default, endings)
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder, expected a file")
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} exists: pass --overwrite to replace it, or --out for another file")
    expect_writable(path.parent)
    return path


def output_folder(options: argparse.Namespace, path: Path) -> Path:
    """`path`, which is to be a folder.

    Raises:
        UserError: a file, or a folder that is not empty without --overwrite, or one that cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path}: is a file, expected a folder")
    if path.is_dir() and any(path.iterdir()) and not options.overwrite:
        raise UserError(f"{path} is not empty: pass --overwrite to write over what it holds, or --out for another one")
    expect_writable(path)
    return path
