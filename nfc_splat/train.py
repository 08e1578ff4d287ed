"""`python -m nfc_splat.train SCENE`: from a folder of posed images to a trained, evaluated and exported model.

The path from here to the loss: `train` -> `training.trainer.Trainer.fit` -> `step` -> `model.render` -> `losses`.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nfc_splat.errors import UserError, run_command

if TYPE_CHECKING:
    from nfc_splat.data import Scene, Split
    from nfc_splat.fields.recipe import SceneGeometry
    from nfc_splat.training.config import TrainConfig
    from nfc_splat.training.load import LoadedRun
    from nfc_splat.training.memory import PeakMemory
    from nfc_splat.training.processes import Group
    from nfc_splat.training.progress import Observer
    from nfc_splat.training.run import RunFolder, RunSource
    from nfc_splat.training.state import TrainingState

log = logging.getLogger("nfc_splat.train")  # under `python -m`, __name__ is "__main__"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit code."""
    from nfc_splat.training.command_line import parse_command_line
    from nfc_splat.training.processes import FailedElsewhere, joined

    try:
        with joined() as group:
            with group.together():
                config = parse_command_line(sys.argv[1:] if arguments is None else arguments)
            return train(config, group)
    except FailedElsewhere as error:
        return error.exit_code


def train(config: "TrainConfig", group: "Group | None" = None) -> int:
    """Train, evaluate and export one run.

    Args:
        config: resolved (`nfc_splat.training.config.resolve`).
        group: the processes that train together, None for this one; the first alone prints, writes and evaluates.

    Returns:
        0; 129, 130 or 143 when a signal stopped it, after saving.

    Raises:
        UserError: anything that the user can mend; its `exit_code` is 3 when training diverged.
    """
    from nfc_splat.rendering.kernels.memory import keep_freed_memory
    from nfc_splat.rendering.kernels.threads import set_threads
    from nfc_splat.training import load
    from nfc_splat.training.batches import Batches
    from nfc_splat.training.processes import ALONE
    from nfc_splat.training.run import find_run
    from nfc_splat.training.saving import Saver
    from nfc_splat.training.trainer import Trainer
    from nfc_splat.view.watching import watching

    group = group or ALONE
    if not group.first:
        config = replace(config, quiet=True)
    _show_log(config.quiet, group.first)
    set_threads(config.threads)
    keep_freed_memory()
    with group.together():
        group.use(config.device)
        source = find_run(Path(config.resume)) if config.resume else None
        scene = _checked_scene(config, source)
        geometry = scene_geometry(scene, config.device)
        _introduce_processes(config, geometry, source, group)
    fingerprint = load.scene_hash(scene)
    with ExitStack() as stack:
        with group.together():
            watchers = stack.enter_context(watching(config, scene)) if group.first else []
            run = stack.enter_context(_opened(config, source, group))
            with _within_memory():
                state = _begin(config, geometry, fingerprint, source)
        saved_step = _record(config, load.describe_scene(scene, fingerprint, config.data), state.step, source, group)
        run.start_metrics(state.step)
        saver = Saver(config, run, geometry, fingerprint, saved_step, group)
        batches = Batches(scene.splits["train"], scene.background, config.device, group)
        observers = [*_observers(config, scene, run), *watchers] if group.first else []
        trainer = Trainer(config, batches, state, saver, run, observers, group)
        with _within_memory():
            code = trainer.fit()
            group.end()
        if code == 0 and group.first:
            state = trainer.state
            finish(load.LoadedRun(config, scene, state.model, state.step), state.seconds, state.memory)
        return code


@contextmanager
def _within_memory() -> Iterator[None]:
    """Turn memory that does not suffice into a `UserError`."""
    import torch

    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        said = str(error).strip().partition("\n")[0].rpartition("Allocator: ")[2]
        lacking = "can't allocate memory", "not enough memory", "Storage size calculation overflowed"
        if not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) and not any(s in said for s in lacking):
            raise
        raise UserError(
            f"the memory does not suffice ({said}); raise --downscale or choose a smaller model (--help lists its "
            "sizes), and start again with --overwrite"
        ) from error


def scene_geometry(scene: "Scene", device: str) -> "SceneGeometry":
    """What a method is told of the scene, on `device`."""
    from nfc_splat.fields.recipe import SceneGeometry

    points, colors, bounds, sphere = (
        None if part is None else part.to(device) for part in (scene.points, scene.colors, scene.bounds, scene.sphere)
    )
    cameras = scene.splits["train"].cameras.to(device)
    stated = {"near_far": scene.near_far, "bounds": bounds, "sphere": sphere}
    said = {name: getattr(scene, name) for name in ("has_alpha", "cut_out", "object_masks")}
    return SceneGeometry(cameras, points, colors, **said, **stated)


def _checked_scene(config: "TrainConfig", source: "RunSource | None") -> "Scene":
    """The scene, after saying what will be done with it; a `UserError` where that makes no sense."""
    from nfc_splat.training.load import load_training_scene, with_kept_points

    scene = load_training_scene(with_kept_points(config, source))
    _introduce(config, scene)
    refuse_unsuited(config, scene)
    _introduce_motion(config.method, scene.splits["train"])
    return scene


def _begin(
    config: "TrainConfig", geometry: "SceneGeometry", fingerprint: str, source: "RunSource | None"
) -> "TrainingState":
    """The state to train from, fresh or resumed."""
    from nfc_splat.training.load import checkpoint_of
    from nfc_splat.training.state import fresh_state, restored_state

    if source is None:
        return fresh_state(config, geometry)
    state = restored_state(checkpoint_of(source), config, geometry, fingerprint)
    log.info("resumed at step %d of %d", state.step, config.steps)
    return state


def _opened(config: "TrainConfig", source: "RunSource | None", group: "Group") -> AbstractContextManager["RunFolder"]:
    """The run folder, taken for the first process; the others only read."""
    from nfc_splat.training.run import OthersRun, open_run

    return open_run(config, source) if group.first else nullcontext(OthersRun(config.out))


def _record(
    config: "TrainConfig", scene: dict[str, object], step: int, source: "RunSource | None", group: "Group"
) -> int:
    """Let the run folder say that training goes on from `step`. Returns the step whose checkpoint it has already, or
    -1."""
    from nfc_splat.training.checkpoint import discard_after
    from nfc_splat.training.load import keep_points, with_kept_points
    from nfc_splat.training.run import write_record

    goes_on = source is not None and source.folder.resolve() == config.out.resolve()
    if group.first:
        if goes_on:
            discard_after(config.out / "checkpoints", step)
        keep_points(with_kept_points(config, source), config.out)
        write_record(config, scene, group.size)
    return step if goes_on else -1


def _introduce_processes(
    config: "TrainConfig", geometry: "SceneGeometry", source: "RunSource | None", group: "Group"
) -> None:
    """Say what several processes do together, and what changes in a run that had more or fewer of them.

    Raises:
        UserError: they are more than a step has work for.
    """
    from nfc_splat.fields import find_method
    from nfc_splat.training.run import processes_of

    count, before = group.size, group.size if source is None else processes_of(source.folder)
    if count == before == 1:
        return
    sampling = find_method(config.method).load().Recipe(config.model, geometry).sampling(1)
    whole, views = sampling.kind == "images", len(geometry.cameras)
    now = count * sampling.images
    if count > 1:
        most, what = (views // sampling.images, "images") if whole else (sampling.rays, "rays")
        if count > most:
            raise UserError(
                f"WORLD_SIZE={count}: a step has work for {most} processes with {what}; start at most {most}"
            )
        if whole:
            log.info(
                "shared: %d processes draw images of their own: a step sees %d, and learns from their mean", count, now
            )
        else:
            log.info("shared: %d processes share the rays of a step, which is the same as with one", count)
    if whole and count != before:
        log.warning(
            "until here a step of this run saw %d images, from here on %d: what it learns in a step changes",
            before * sampling.images,
            now,
        )


def _observers(config: "TrainConfig", scene: "Scene", run: "RunFolder") -> "list[Observer]":
    """Who looks on during the training."""
    if not config.curve_points:
        return []
    from nfc_splat.eval.curves import Curve

    splits = {"train": scene.splits["train"], "test": scene.splits[config.split]}
    shared = {"steps": config.steps, "points": config.curve_points, "device": config.device}
    return [Curve(splits, scene.background, log=run.log, **shared)]


def finish(run: "LoadedRun", seconds: float, before: "PeakMemory") -> None:
    """Export a trained model, measure it on the test views, and print both.

    Args:
        run: at its last step.
        seconds: spent training.
        before: the most memory that the processes took that trained it before this one.
    """
    from nfc_splat.eval.images import PROTOCOLS
    from nfc_splat.eval.views import evaluate_views, format_metrics
    from nfc_splat.fields import find_method
    from nfc_splat.training.load import evaluation_facts

    config, out, memory = run.config, run.config.out, before.with_this_process()
    exported = find_method(config.method).load().export(run.model, out)
    lines = [("trained", f"{run.step} steps in {seconds:.0f} s, peak memory {memory}")]
    if run.model.primitives is not None:
        lines.append(("primitives", f"{run.model.primitives:,}"))
    pictures = []
    views = run.scene.splits[config.split]
    if len(views):
        log.info("measuring %d %s views", len(views), config.split)
        summary = evaluate_views(
            run.model,
            views,
            background=run.scene.background,
            protocol=PROTOCOLS[config.protocol],
            device=config.device,
            folder=out,
            extra=evaluation_facts(run) | {"train_seconds": seconds} | memory.figures(),
            split_name=config.split,
        )
        metrics = format_metrics(summary["psnr"], summary["ssim"], summary["lpips"])
        lines.append((f"{summary['n_views']} {config.split} views", f"{metrics}   (protocol {config.protocol})"))
        lines += [("note", note) for note in summary["notes"]]
        pictures = [out / "contact_sheet.png", out / "renders"]
    else:
        lines.append(("test views", "none: nothing was measured"))
    lines += [("written", str(path)) for path in [*pictures, *exported, out]]
    print("\n".join(f"{label:>14}  {text}" for label, text in lines), flush=True)


def _introduce(config: "TrainConfig", scene: "Scene") -> None:
    """Say what will be done, and why where it was chosen for the user."""
    from nfc_splat.fields import find_method

    method = find_method(config.method)
    log.info("%s", scene.reason)
    for notice in scene.notices:
        log.info("%s", notice)
    loss = config.loss if config.loss == "regression" else f"{config.loss}, weight {config.loss_weight:g}"
    if (encoding := getattr(config.model, "target_encoding", None)) is not None:
        loss += f", target encoding {encoding}"
    counts = ", ".join(f"{len(split)} {name}" for name, split in scene.splits.items())
    log.info("views:  %s", counts)
    log.info("method: %s (%s)", method.name, method.summary)
    log.info("preset: %s, %d steps, on %s with %d threads", config.preset, config.steps, config.device, config.threads)
    log.info("loss:   %s", loss)
    log.info("run:    %s", config.out)


def refuse_unsuited(config: "TrainConfig", scene: "Scene") -> None:
    """Refuse a scene that lacks what the run wants of it. One without test views is not measured at all.

    Raises:
        UserError: the method models motion and there is none; the views to be measured are ones that the scene does
            not have, or too few for the protocol.
    """
    from nfc_splat.eval.images import PROTOCOLS
    from nfc_splat.eval.views import check_protocol
    from nfc_splat.fields import find_method

    times = scene.splits["train"].cameras.times
    if find_method(config.method).dynamic and (times is None or len(times.unique()) < 2):
        why = "the frames have no times" if times is None else "all training frames have the same time"
        raise UserError(
            f"--method {config.method} models motion, and {why}; use --method 3dgs, or give each frame its time "
            "(--time-from names takes it from the order of the images' names)"
        )
    name, views = config.split, scene.splits.get(config.split)
    if name != "test" and not views:
        present = ", ".join(f"{other} ({len(views)})" for other, views in scene.splits.items())
        raise UserError(f"--split {name}: {scene.name} has no such views, it has {present}; choose another")
    if views:
        check_protocol(PROTOCOLS[config.protocol], len(views))


def _introduce_motion(name: str, views: "Split") -> None:
    """Say what the frames' times mean for the method called `name`."""
    from nfc_splat.fields import METHODS, find_method

    times = views.cameras.times
    count = 0 if times is None else len(times.unique())
    if find_method(name).dynamic:
        log.info("time:   the training frames carry %d different times, so the scene moves", count)
    elif count > 1:
        fitting = " or ".join(method.name for method in METHODS.values() if method.dynamic)
        why = "what moves will blur; for motion use --method"
        log.warning("--method %s is static and the frames carry %d different times: %s %s", name, count, why, fitting)


class _Printer(logging.Handler):
    """Prints records as lines: information on stdout, warnings on stderr. Looks the streams up each time, because a
    live progress line redirects them."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr, flush=True)
        else:
            print(record.getMessage(), flush=True)


def _show_log(quiet: bool, first: bool) -> None:
    """Print what the package logs, in the first of several processes, unless the program that uses it has set that up
    itself."""
    package = logging.getLogger("nfc_splat")
    if not package.handlers and not logging.root.handlers:
        package.addHandler(_Printer())
        package.propagate = False
    package.setLevel(logging.CRITICAL if not first else logging.WARNING if quiet else logging.INFO)


if __name__ == "__main__":
    run_command(main)
