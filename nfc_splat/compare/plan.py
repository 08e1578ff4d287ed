"""From a comparison to the commands that it takes.

A case is one run: a chain of commands, each with the file that it leaves behind when all went well. A command whose
file is there is not run again; that is all there is to continuing a comparison.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfc_splat.compare.experiments import Experiment, Variant
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method

MESH_FOLDER = "mesh-eval"


@dataclass(frozen=True)
class Command:
    """What follows `python -m`, and the file that says that it is done."""

    words: tuple[str, ...]
    product: Path

    @property
    def text(self) -> str:
        """As typed into a shell."""
        return f"python -m {shlex.join(self.words)}"


@dataclass(frozen=True)
class Case:
    """One run of a comparison.

    Attributes:
        name: of the run, and of its folder.
        scene: name of its folder.
        method, variant, seed: what it is; the variant by its label.
        folder: the run's.
        commands: in order, the training first.
    """

    name: str
    scene: str
    method: str
    variant: str
    seed: int
    folder: Path
    commands: tuple[Command, ...]

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(command.product.exists() for command in self.commands)


@dataclass(frozen=True)
class Budget:
    """What all runs have in common.

    Attributes:
        preset: of every method.
        flags: further ones of `python -m nfc_splat.train`.
    """

    preset: str
    flags: tuple[str, ...] = ()

    def of(self, method: str) -> tuple[str, ...]:
        """Flags of a method: bfloat16, which speeds some presets up, is off unless asked for."""
        asked = {"--bf16", "--no-bf16"} & set(self.flags)
        rounded = "bf16" in find_method(method).load().Config.__dataclass_fields__
        return ("--preset", self.preset, *(("--no-bf16",) if rounded and not asked else ()), *self.flags)


@dataclass(frozen=True)
class MeasuredScene:
    """A scene and what its surface is compared to.

    Attributes:
        folder: the scene.
        truth: the mesh of its true surface, None where none is measured.
        protocol: of `python -m nfc_splat.eval mesh`.
    """

    folder: Path
    truth: Path | None = None
    protocol: str = "plain"


def with_truth(scene: Path, truth: Path | None) -> MeasuredScene:
    """The scene with its true surface: the one that is named, else the one beside it as Replica has it, or in it as
    the built-in scenes do. Where a trajectory is, the protocol is Replica's.

    Raises:
        UserError: there is no such file.
    """
    name = scene.resolve().name
    known = (scene / f"{name}_mesh.ply", scene.resolve().parent / f"{name}_mesh.ply")
    found = truth or next((path for path in (*known, *sorted(scene.glob("*_mesh.ply"))) if path.is_file()), None)
    if found is None or not found.is_file():
        looked = found or " or ".join(map(str, known))
        raise UserError(f"{scene}: no true surface at {looked}, which this experiment measures against; give --truth")
    return MeasuredScene(scene, found, "replica" if (scene / "traj.txt").is_file() else "plain")


def plan(
    experiments: Sequence[Experiment],
    scenes: Sequence[MeasuredScene],
    methods: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    out: Path,
) -> list[Case]:
    """Every combination, scene by scene; what several experiments have in common once.

    Args:
        methods: of every experiment, or none of them for each experiment's own.

    Raises:
        UserError: an unknown method, or two scenes of the same name.
    """
    names = [scene.folder.resolve().name for scene in scenes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two scenes are called {twice[0]}; their runs would have the same folder: rename one")
    cases: dict[str, Case] = {}
    for scene in scenes:
        for experiment in experiments:
            for method in methods or experiment.methods:
                for variant in variants_of(experiment, method, budget.preset):
                    for seed in seeds:
                        case = _case(experiment, scene, method, variant, seed, budget, out)
                        if case.name not in cases or len(case.commands) > len(cases[case.name].commands):
                            cases[case.name] = case
    return list(cases.values())


def variants_of(experiment: Experiment, method: str, preset: str) -> tuple[Variant, ...]:
    """The experiment's variants that the method has, without those that are the same training as an earlier one: a
    setting may be the preset's own."""
    module = find_method(method).load()
    own = module.preset(preset)
    found: dict[Any, Variant] = {}
    for variant in experiment.variants:
        if variant.settings.keys() <= module.Config.__dataclass_fields__.keys():
            changed = {name: value for name, value in variant.settings.items() if getattr(own, name) != value}
            found.setdefault((variant.flags, variant.line, tuple(changed.items())), variant)
    return tuple(found.values())


def _case(
    experiment: Experiment,
    scene: MeasuredScene,
    method: str,
    variant: Variant,
    seed: int,
    budget: Budget,
    out: Path,
) -> Case:
    label = re.sub(r"[^A-Za-z0-9.-]+", "_", variant.label)
    name = f"{scene.folder.resolve().name}-{method}-{label}-{seed}"
    run = out / name
    train = ("nfc_splat.train", str(scene.folder), "--out", str(run), "--resume", "auto", "--method", method)
    train += (*budget.of(method), *variant.arguments, "--seed", str(seed))
    commands = [Command(train, run / "eval" / "summary.json")]
    if experiment.surfaces:
        mesh, measured = run / "mesh.ply", run / MESH_FOLDER
        commands.append(Command(("nfc_splat.export", "mesh", str(run)), mesh))
        compared = ("nfc_splat.eval", "mesh", str(mesh), str(scene.truth), "--protocol", scene.protocol)
        compared += ("--scene", str(scene.folder)) if scene.protocol == "replica" else ()
        commands.append(Command((*compared, "--out", str(measured)), measured / "metrics.json"))
    return Case(name, scene.folder.resolve().name, method, variant.label, seed, run, tuple(commands))
