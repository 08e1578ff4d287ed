"""`python -m nfc_splat.compare SCENE...`: train every combination of methods, variants and seeds under one budget, and
put the results into one table."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nfc_splat.compare.experiments import EXPERIMENTS
from nfc_splat.errors import UserError, run_command
from nfc_splat.options import parse_options

if TYPE_CHECKING:
    from nfc_splat.compare.plan import Case

# Flags of a training that every comparison sets itself.
OWN = {"--method", "--loss", "--seed", "--preset", "--out", "--resume", "--overwrite"}
PROGRAM = "python -m nfc_splat.compare"


@dataclass(frozen=True)
class Options:
    """Train every combination under one budget, and put the results into one table. What follows -- is passed on to
    every training: compare SCENE --preset quick -- --downscale 2."""

    scenes: tuple[Path, ...]
    """Folders of scenes, one or more."""
    preset: Literal["quick", "paper"]
    """Of every method."""
    experiment: Literal["static", "surface", "few-views"] = "static"
    """What is compared. static: images by regression and by classification. surface: meshes too. few-views: images from
    10 to 100 training views, as a table and a plot."""
    methods: tuple[str, ...] = ()
    """Methods, by default those of the experiment."""
    seeds: tuple[int, ...] = (42,)
    """Each combination is trained with each of them."""
    truth: Path | None = None
    """The mesh of the true surface, for experiments that measure it, by default NAME_mesh.ply in the scene or beside
    it."""
    out: Path | None = None
    """Folder of the runs and results, by default runs/compare-EXPERIMENT. What is finished there is not done again."""
    dry_run: bool = False
    """Print the commands, and what is left to do, and do nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, train, measure, print; returns the exit code: 1 where a case failed."""
    options, passed = _parse(sys.argv[1:] if arguments is None else arguments)
    from nfc_splat.compare import plan, results, work
    from nfc_splat.fields import find_method

    experiment = EXPERIMENTS[options.experiment]
    methods = tuple(dict.fromkeys(options.methods or experiment.methods))
    own = OWN | {word for variant in experiment.variants for word in variant.flags if word.startswith("--")}
    _refuse_own(passed, own)
    for name in methods:
        find_method(name)
    if options.truth is not None and not (experiment.surfaces and len(options.scenes) == 1):
        raise UserError(f"--truth {options.truth}: is for one scene and an experiment that measures surfaces")
    find = plan.with_truth if experiment.surfaces else lambda scene, truth: plan.MeasuredScene(scene)
    scenes = [find(scene, options.truth) for scene in options.scenes]
    out = options.out or Path("runs", f"compare-{experiment.name}")
    seeds = tuple(dict.fromkeys(options.seeds))
    cases = plan.plan(experiment, scenes, methods, seeds, plan.Budget(options.preset, passed), out)
    if options.dry_run:
        _show(cases)
        return 0
    failures, code = work.do(cases, out)
    if code:
        return code
    for path in results.report(experiment, cases, failures, out):
        print(f"  wrote {path}")
    return 1 if failures else 0


def _parse(arguments: Sequence[str]) -> tuple[Options, tuple[str, ...]]:
    """The options, and the words after `--`."""
    import tyro

    words = list(arguments)
    passed: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, passed = words[:cut], words[cut + 1 :]
    default = Options(scenes=tyro.MISSING, preset=tyro.MISSING)
    options = parse_options(
        Options, words, PROGRAM, default=default, positional={"scenes": "SCENE"}, expected="scenes and flags only"
    )
    if not options.scenes:
        raise UserError(f"no SCENE; expected folders of scenes, see {PROGRAM} --help")
    for scene in options.scenes:
        if not scene.is_dir():
            raise UserError(f"{scene}: no such folder; expected a scene")
    return options, tuple(passed)


def _refuse_own(passed: Sequence[str], own: set[str]) -> None:
    """Refuse flags after `--` that the comparison sets itself: the last one would win, and belie the table."""
    for word in passed:
        if word.partition("=")[0].replace("_", "-") in own:
            raise UserError(f"-- {word}: is for the comparison to say; after -- come flags that all trainings share")


def _show(cases: Sequence["Case"]) -> None:
    for case in cases:
        for command in case.commands:
            print(f"{'done  ' if command.product.exists() else ''}{command.text}")


if __name__ == "__main__":
    run_command(main)
