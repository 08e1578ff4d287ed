"""`python -m nfc_splat.compare SCENE...`: train every combination of methods, variants and seeds under one budget, and
put the results into tables, plots and a report."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nfc_splat.compare.experiments import EXPERIMENTS, chosen
from nfc_splat.errors import UserError, run_command
from nfc_splat.options import parse_options

if TYPE_CHECKING:
    from nfc_splat.compare.experiments import Experiment
    from nfc_splat.compare.plan import Case

# Flags of a training that every comparison sets itself.
OWN = {"--method", "--loss", "--seed", "--preset", "--out", "--resume", "--overwrite"}
LISTS = {"--experiment", "--losses", "--encodings", "--methods", "--seeds"}
PROGRAM = "python -m nfc_splat.compare"
Name = Literal[
    "static", "dynamic", "sparse", "noise", "surface", "ablation", "few-views", "lambda", "cost", "controls",
    "encodings", "grid", "curves",
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Train every combination under one budget, and put the results into tables, plots and a report. What follows -- is
    passed on to every training: compare SCENE --preset quick -- --downscale 2."""

    scenes: tuple[Path, ...]
    """Folders of scenes, one or more."""
    preset: Literal["quick", "paper"]
    """Of every method."""
    experiment: tuple[Name, ...] = ()
    """What is compared, one or more of NFC's experiments and ours, static unless told; runs that they have in common
    are trained once.
    static, dynamic: regression and classification. sparse, few-views: from fewer training images. noise: from spoiled
    ones. surface: meshes too. ablation: loss and target encoding apart. lambda: weights of the loss. cost: time and
    memory. controls: regression with a larger weight or a smaller epsilon. encodings: other codes, and the loss of
    bits. grid: DVGO's voxels and steps. curves: PSNR along the training."""
    losses: tuple[Literal["regression", "classification", "bitwise"], ...] = ()
    """A comparison of these losses, instead of a named experiment or with it."""
    encodings: tuple[Literal["none", "binary", "gray", "onehot", "thermometer"], ...] = ()
    """Each loss (of --losses, or regression and classification) with each of these target encodings; by default with
    its own: none by regression, else binary."""
    methods: tuple[str, ...] = ()
    """Methods, by default those of the experiment."""
    seeds: tuple[int, ...] = (42,)
    """Each combination is trained with each of them."""
    truth: Path | None = None
    """The mesh of the true surface, for experiments that measure it, by default NAME_mesh.ply in the scene or beside
    it."""
    out: Path = Path("runs/compare")
    """Folder of the runs and results. What is finished there is not done again."""
    jobs: int = 1
    """How many runs at a time; they share the processors. Experiments that compare times want one."""
    cluster: bool = False
    """Hand the runs to Ray: to the cluster that RAY_ADDRESS names, else to this machine; --jobs then is how many should
    fit on a machine."""
    dry_run: bool = False
    """Print the commands, what is left to do, and how long it should take, which a moment of each kind of training
    tells."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, train, measure, print; returns the exit code: 1 where a case failed."""
    options, passed = _parse(sys.argv[1:] if arguments is None else arguments)
    from nfc_splat.compare import results
    from nfc_splat.compare.checks import Scenes, check, with_enough_images
    from nfc_splat.compare.measured import training_images
    from nfc_splat.compare.plan import runs_of

    experiments = _experiments(options)
    methods = tuple(dict.fromkeys(options.methods))
    scenes = Scenes()
    cases, too_many = with_enough_images(_plan(options, experiments, methods, passed), scenes)
    runs, missing = runs_of(cases), [*_left_out(experiments, methods), *too_many]
    if not runs:
        raise UserError("; ".join(["there is nothing to compare", *missing]))
    for line in [*missing, *check(runs, scenes, here=not options.cluster)]:
        print(f"{'# ' if options.dry_run else ''}{line}", flush=True)
    if options.dry_run:
        _show(runs, options)
        return 0
    failed, code = _do(runs, options)
    if code:
        return code
    failures = {case.name: failed[case.run] for case in cases if case.run in failed}
    failures |= training_images(cases)[1]
    groups = [(one, results.cases_of(one, cases, methods, options.preset)) for one in experiments]
    tables, files = results.report(groups, failures, options.out)
    command = f"{PROGRAM} {shlex.join(sys.argv[1:] if arguments is None else arguments)}"
    page = next(iter(files)).with_suffix(".html")
    for path in [*files, *results.write_page(tables, files, runs, failures, page, command)]:
        print(f"  wrote {path}")
    return 1 if failures else 0


def _experiments(options: Options) -> list["Experiment"]:
    """Those that are asked for."""
    asked = [EXPERIMENTS[name] for name in dict.fromkeys(options.experiment)]
    if options.losses or options.encodings:
        losses = options.losses or ("regression", "classification")
        asked.append(chosen(*map(tuple, map(dict.fromkeys, (losses, options.encodings)))))
    return asked or [EXPERIMENTS["static"]]


def _plan(
    options: Options, experiments: Sequence["Experiment"], methods: Sequence[str], passed: tuple[str, ...]
) -> list["Case"]:
    """The cases, after refusing what makes no sense."""
    from nfc_splat.compare import plan
    from nfc_splat.fields import find_method

    variants = [variant for experiment in experiments for variant in experiment.variants]
    own = OWN | {word for variant in variants for word in variant.arguments if word.startswith("--")}
    _refuse_own(passed, own)
    for name in methods:
        find_method(name)
    surfaces = any(experiment.surfaces for experiment in experiments)
    if options.truth is not None and not (surfaces and len(options.scenes) == 1):
        raise UserError(f"--truth {options.truth}: is for one scene and an experiment that measures surfaces")
    for seed in options.seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"--seeds {seed}: expected 0 to 2**63 - 1")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: expected 1 or more")
    shared = "--cluster" if options.cluster else f"--jobs {options.jobs}" if options.jobs > 1 else ""
    if shared and any(experiment.cost for experiment in experiments):
        raise UserError(
            f"{shared}: --experiment cost compares times, which want one machine and one run at a time; leave one of "
            "the two out"
        )
    find = plan.with_truth if surfaces else lambda scene, truth: plan.MeasuredScene(scene)
    scenes = [find(scene, options.truth) for scene in options.scenes]
    budget = plan.Budget(options.preset, passed)
    return plan.plan(experiments, scenes, methods, tuple(dict.fromkeys(options.seeds)), budget, options.out)


def _left_out(experiments: Sequence["Experiment"], methods: Sequence[str]) -> list[str]:
    """Sentences about variants that a method does not have."""
    from nfc_splat.compare.plan import missing_variants

    pairs = [(experiment, method) for experiment in experiments for method in methods or experiment.methods]
    missing = [(experiment.name, method, missing_variants(experiment, method)) for experiment, method in pairs]
    return [f"{name}: {method} has no {'; no '.join(labels)}" for name, method, labels in missing if labels]


def _do(runs: Sequence["Case"], options: Options) -> tuple[dict[str, str], int]:
    from nfc_splat.compare.cluster import do_on_cluster
    from nfc_splat.compare.work import do

    threads = _threads(options)
    return do_on_cluster(runs, options.jobs, threads) if options.cluster else do(runs, options.jobs, threads)


def _threads(options: Options) -> int | None:
    """What a training gets; None where it has the machine to itself."""
    from nfc_splat.rendering.kernels.threads import available_cores

    return max(1, available_cores() // options.jobs) if options.cluster or options.jobs > 1 else None


def _parse(arguments: Sequence[str]) -> tuple[Options, tuple[str, ...]]:
    """The options, and the words after `--`."""
    import tyro

    from nfc_splat.compare.plan import flag_of

    words = list(arguments)
    passed: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, passed = words[:cut], words[cut + 1 :]
    default = Options(scenes=tyro.MISSING, preset=tyro.MISSING)
    options = parse_options(
        Options, words, PROGRAM, default=default, positional={"scenes": "SCENE"}, expected="scenes and flags only"
    )
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if flag_of(word) in LISTS and "=" not in word and after.startswith("--"):
            raise UserError(f"{word}: expected one value or more")
    if not options.scenes:
        raise UserError(f"no SCENE; expected folders of scenes, see {PROGRAM} --help")
    for scene in options.scenes:
        if not scene.is_dir():
            raise UserError(f"{scene}: no such folder; expected a scene")
    return options, tuple(passed)


def _refuse_own(passed: Sequence[str], own: set[str]) -> None:
    """Refuse flags after `--` that the comparison sets itself: the last one would win, and belie the table."""
    from nfc_splat.compare.plan import flag_of

    for word in passed:
        if flag_of(word) in own:
            raise UserError(f"-- {word}: is for the comparison to say; after -- come flags that all trainings share")


def _show(runs: Sequence["Case"], options: Options) -> None:
    """Print the commands and the time that they should take."""
    from nfc_splat.compare.estimate import describe_time

    for case in runs:
        for command in case.commands:
            print(f"{'done  ' if command.done else ''}{command.text}", flush=True)
    for line in describe_time(runs, options.out, options.jobs, _threads(options)):
        print(f"# {line}")


if __name__ == "__main__":
    run_command(main)
