"""`python -m nfc_splat.view RUN`: look at a trained model in a browser."""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nfc_splat.errors import run_command
from nfc_splat.options import parse_options

if TYPE_CHECKING:
    from nfc_splat.training.load import LoadedRun
    from nfc_splat.view.page import Subject

PROGRAM = "python -m nfc_splat.view"


@dataclass(frozen=True)
class ViewConfig:
    """Look at a trained model in a browser: Gaussians are drawn there, everything else here, coarse first. Ctrl-C ends
    it."""

    run: Path
    """Run folder, or one of its checkpoints, or Gaussians of any tool in a PLY with --scene."""
    checkpoint: int | None = None
    """Step of the checkpoint; by default the newest."""
    scene: Path | None = None
    """Where the scene is now, if it was moved."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model draws."""
    host: str = "127.0.0.1"
    """Address to listen at. Others than 127.0.0.1 let other machines in."""
    port: int | None = None
    """Port to listen at; by default the first free one from 8080 on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Show a run until Ctrl-C; returns the exit code."""
    import tyro

    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parse_options(
        ViewConfig,
        words,
        PROGRAM,
        default=ViewConfig(run=tyro.MISSING),
        positional={"run": "RUN"},
        expected="one RUN and flags",
    )
    from nfc_splat.view import address

    address.load_viser()
    port = address.choose_port(options.host, options.port)
    from nfc_splat.chosen_run import load_chosen_run

    run, _ = load_chosen_run(options)
    from nfc_splat.training.signals import Signals
    from nfc_splat.view.page import Viewer

    # Asked for between two pieces: raised in the middle of one, where a destructor or a library's callback may be
    # running, Python can lose a KeyboardInterrupt.
    with Signals() as signals, closing(Viewer(_subject(run, options), options.host, port)) as viewer:
        for line in address.introduction(options.host, port):
            print(line, flush=True)
        viewer.model_changed(_said(run, options))
        while signals.stop is None:
            if not viewer.work(run.model):
                viewer.wait(1.0)
    print("viewer closed")
    return 0


def _said(run: "LoadedRun", options: ViewConfig) -> str:
    """A line about the model."""
    from nfc_splat.chosen_run import is_splat_file
    from nfc_splat.view.watching import describe

    if is_splat_file(options.run):
        return f"{options.run.name}, {run.model.primitives:,} primitives"
    return describe(run.step, run.config.steps, run.model.primitives)


def _subject(run: "LoadedRun", options: ViewConfig) -> "Subject":
    from nfc_splat.chosen_run import run_folder
    from nfc_splat.fields import find_method
    from nfc_splat.view.page import Subject
    from nfc_splat.view.splats import draws_splats

    config, scene, splats = run.config, run.scene, draws_splats(run.model)
    points = run.model.means.detach() if splats else scene.points
    title = f"{scene.name}, {config.method}, {config.loss}"
    return Subject(scene, title, run_folder(options), splats, find_method(config.method).dynamic, points)


if __name__ == "__main__":
    run_command(main)
