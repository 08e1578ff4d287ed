"""Scenes kept as folders with a file per image: files found and paired by name, matrices as text."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nfc_splat.data.capture import MAX_FRAMES, Capture, naming
from nfc_splat.data.config import DataConfig
from nfc_splat.data.parsing import floats, is_file, scene_path
from nfc_splat.errors import UserError

MAX_MATRIX_BYTES = 2**14


def inside(root: Path, name: str, config: DataConfig) -> Path:
    """The path called `name` in the scene, links followed; a link that leaves the scene is refused."""
    return scene_path(root, name, allow_external=config.allow_external_paths, source=root)


def file_names(root: Path, folder: str, suffixes: tuple[str, ...], config: DataConfig) -> list[str]:
    """Names of the files in a sub-folder that end in one of `suffixes`, sorted; none if there is no such folder.

    Hidden files are passed over. Refuses more than a scene can have.
    """
    place = inside(root, folder, config)
    names = []
    for entry in place.iterdir() if place.is_dir() else ():
        if entry.name.lower().endswith(suffixes) and not entry.name.startswith("."):
            names.append(entry.name)
        if len(names) > MAX_FRAMES:
            raise UserError(f"{root / folder}: more than {MAX_FRAMES} files, expected at most that many")
    return sorted(names)


def by_stem(names: Iterable[str], where: Path) -> dict[str, str]:
    """File names by their part before the extension; refuses two that share it."""
    found: dict[str, str] = {}
    for name in names:
        stem = name.rpartition(".")[0]
        if stem in found:
            raise UserError(f"{where}: {found[stem]!r} and {name!r} differ in the extension alone; keep one")
        found[stem] = name
    return found


def scene_file(root: Path, name: str, config: DataConfig) -> Path:
    """A file that the scene must have."""
    path = inside(root, name, config)
    if not is_file(path):
        raise UserError(f"{root / name}: there is no such file; the scene needs it")
    return path


def text_numbers(path: Path) -> list[list[float]]:
    """The numbers of a small text file, line by line, empty lines left out; nan and inf pass."""
    try:
        size = path.stat().st_size
        if size > MAX_MATRIX_BYTES:
            raise UserError(f"{path}: {size} bytes, expected a few numbers as text")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    words = [line.split() for line in lines]
    return [floats(line, str(path)) for line in words if line]


def text_matrix(path: Path) -> np.ndarray:
    """A 4x4 matrix as text, however it is broken into lines. Infinities pass: poses are judged later."""
    numbers = [number for line in text_numbers(path) for number in line]
    if len(numbers) != 16:
        raise UserError(f"{path}: holds {len(numbers)} numbers, expected 16 (a 4x4 matrix)")
    return np.array(numbers).reshape(4, 4)


def report_unposed(
    images: Iterable[str], posed: Iterable[str], what: str, capture: Capture, config: DataConfig
) -> None:
    """Images that lack `what`: left out with a warning, but more than half of them are an error."""
    images = list(images)
    unposed = sorted(set(images) - set(posed))
    if not unposed:
        return
    if 2 * len(unposed) > len(images) and not config.allow_missing:
        raise UserError(
            f"{capture.source}: {len(unposed)} of {len(images)} images have no {what}: {naming(unposed)}; "
            "add them or pass --allow-missing to leave these images out"
        )
    capture.notices.append(f"Warning: images without {what} are left out: {naming(unposed)}.")
