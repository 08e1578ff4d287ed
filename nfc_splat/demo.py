"""Write a built-in scene: `python -m nfc_splat.demo [OUT]`.

Two kinds: a furnished room seen from inside, in the NICE-SLAM Replica layout (images, depth, poses), and a closed
object seen from around it, in the Blender layout (RGBA). Both come with the exact mesh that was traced, and one seed
gives one set of files, byte for byte.
"""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nfc_splat.errors import UserError, run_command
from nfc_splat.options import parse_options

PROGRAM = "python -m nfc_splat.demo"
MARKER = "demo.json"  # settings of the scene; says that the folder is this command's to replace
PARTIAL = ".partial"  # where a scene grows; a leftover of a killed process is removed
OWN_FILES = {
    "room": {MARKER, "traj.txt", "results", "cam_params.json", "room_mesh.ply"},
    "object": {MARKER, "train", "test", "transforms_train.json", "transforms_test.json", "urn_mesh.ply"},
}
LIMITS = {"views": (2, 100_000), "width": (16, 8192), "height": (16, 8192), "supersample": (1, 16), "seed": (0, 2**32)}


@dataclass(frozen=True)
class Settings:
    """What to write."""

    kind: Literal["room", "object"] = "room"
    """A furnished room seen from inside (Replica layout), or an urn seen from around it (Blender layout)."""

    views: int = 100
    """How many images; of the object, the training images, and a quarter as many test images besides."""

    width: int = 240
    """Width of the images, in pixels."""

    height: int = 180
    """Height of the images, in pixels."""

    supersample: int = 3
    """Rays along each side of a pixel."""

    seed: int = 0
    """Seed of the textures, the books, the plant and the object's views."""

    def check(self) -> None:
        """Raise a `UserError` for a number out of range."""
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"--{name} {value}: expected {low} to {high}")


def write_scene(folder: Path, settings: Settings, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the scene that `settings` describe into `folder`; `demo.json` is written last, when all else is there.

    Args:
        folder: must not exist, or be empty, or hold a scene of this command and nothing else, which is replaced once
            the new one is drawn.
        settings: what to write.
        say: hears each line of progress.

    Returns:
        `folder`.

    Raises:
        UserError: a setting is out of range, the folder holds other things or cannot be written, open3d is missing.
    """
    settings.check()
    folder = Path(folder)
    _refuse_other_content(folder)
    partial = folder / PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _fill(partial, settings, say)
        _take_over(partial, folder)
        record = {"written_by": "nfc_splat.demo", **vars(settings)}
        (folder / MARKER).write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another OUT") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _remove_if_empty(folder)
    return folder


def _refuse_other_content(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: expected a folder that does not exist yet; choose another OUT")
    present = {entry.name for entry in folder.iterdir()} - {PARTIAL}
    own = set().union(*OWN_FILES.values()) if MARKER in present else set()
    if foreign := sorted(present - own):
        raise UserError(f"{folder} holds other things ({', '.join(foreign[:5])}); choose another OUT or empty it first")


def _take_over(partial: Path, folder: Path) -> None:
    """Move what is in `partial` up into `folder`, in the place of an earlier scene."""
    (folder / MARKER).unlink(missing_ok=True)
    for old in list(folder.iterdir()):
        if old.is_dir() and old != partial:
            shutil.rmtree(old)
        elif old != partial:
            old.unlink()
    for new in list(partial.iterdir()):
        new.rename(folder / new.name)


def _remove_if_empty(folder: Path) -> None:
    """Leave no empty folder behind after a failure."""
    if folder.is_dir() and not any(folder.iterdir()) and folder.resolve() != Path.cwd():
        folder.rmdir()


def _fill(folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
    """Build, light and draw the scene into an empty `folder`."""
    from nfc_splat.scenery import export, lighting, room, urn
    from nfc_splat.scenery.drawing import Lens

    say(f"building and lighting the {settings.kind}")
    size = settings.width, settings.height
    started = time.monotonic()

    def report(total: int) -> Callable[[int], None]:
        return lambda done: say(f"view {done}/{total}, {time.monotonic() - started:.0f} s")

    if settings.kind == "room":
        shader = lighting.bake(room.build(settings.seed), seed=settings.seed)
        poses = room.path(settings.views)
        lens = Lens.of_angle(*size, room.FIELD_OF_VIEW)
        export.write_replica(folder, "room", shader, lens, poses, settings.supersample, report(len(poses)))
    else:
        shader = lighting.bake(urn.build(settings.seed), seed=settings.seed)
        tests = max(1, settings.views // 4)
        splits = {"train": urn.training_poses(settings.views, settings.seed), "test": urn.test_poses(tests)}
        lens = Lens.of_angle(*size, urn.FIELD_OF_VIEW)
        total = settings.views + tests
        export.write_blender(folder, "urn", shader, lens, splits, settings.supersample, report(total))


class _ProgressLine:
    """Progress on stderr: one line that rewrites itself on a terminal, a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = -60.0

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if self._live:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif now - self._last >= 5:
            print(line, file=sys.stderr, flush=True)
            self._last = now

    def close(self) -> None:
        """End the live line."""
        if self._live:
            print(file=sys.stderr)


@dataclass(frozen=True)
class _CommandLine:
    """Write a built-in scene and the exact mesh behind it."""

    out: Path | None = None
    """Folder to write; by default scenes/room or scenes/urn."""

    settings: Settings = Settings()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: None for those of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    options = parse_options(
        _CommandLine, words, PROGRAM, positional={"out": "[OUT]"}, expected="at most one OUT and flags"
    )
    settings = options.settings
    settings.check()
    folder = options.out or Path("scenes", "room" if settings.kind == "room" else "urn")
    line = _ProgressLine()
    started = time.monotonic()
    try:
        write_scene(folder, settings, line)
    finally:
        line.close()
    mesh = next(folder.glob("*_mesh.ply"))
    print(f"wrote {folder} in {time.monotonic() - started:.0f} s; its true surface is {mesh}")
    print(f"next: python -m nfc_splat.train {shlex.quote(str(folder))}")
    return 0


if __name__ == "__main__":
    run_command(main)
