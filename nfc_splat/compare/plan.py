"""From a comparison to the commands that it takes.

A case is one row of a table and one seed. It has a run: a chain of commands, each with the file that it leaves behind
when all went well. A command whose file is there is not run again; that is all there is to continuing a comparison.
Cases that are the same training share a run.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from nfc_splat.compare.experiments import CURVE_POINTS, EXPERIMENTS, Experiment, Variant
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.files import read_json

MESH_FOLDER = "mesh-eval"
RECORDING, WEIGHT = "--curve-points", "--loss-weight"


@dataclass(frozen=True)
class Command:
    """What follows `python -m`, and how one sees that it is done.

    Attributes:
        words: of the command line.
        product: the file that it leaves last.
        proofs: JSON files that it leaves too, each with an entry that must be in it.
    """

    words: tuple[str, ...]
    product: Path
    proofs: tuple[tuple[Path, str], ...] = ()

    @property
    def text(self) -> str:
        """As typed into a shell."""
        return f"python -m {shlex.join(self.words)}"

    @property
    def done(self) -> bool:
        """Whether what it leaves is there and can be read."""
        return self.product.exists() and self.flaw is None

    @property
    def flaw(self) -> str | None:
        """Why what it left cannot be believed, in a line."""
        for path, entry in self.proofs:
            try:
                found = read_json(path)
            except UserError as error:
                return str(error)
            if not isinstance(found, dict) or entry not in found:
                return f"{path}: has no {entry!r}"
        return None


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


@dataclass(frozen=True)
class Case:
    """A variant with a seed, and the run that tells what comes of it.

    Attributes:
        name: its own.
        scene: name of its folder.
        method, variant, seed: what it is; the variant by its label.
        folder: the run's, which cases that are the same training have in common.
        commands: in order, the training first.
        source: where the scene lies, and the true surface if that is measured.
    """

    name: str
    scene: str
    method: str
    variant: str
    seed: int
    folder: Path
    commands: tuple[Command, ...]
    source: MeasuredScene

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(command.done for command in self.commands)


def runs_of(cases: Sequence[Case]) -> list[Case]:
    """One case for each run, the first."""
    found: dict[Path, Case] = {}
    for case in cases:
        found.setdefault(case.folder, case)
    return list(found.values())


def flag_of(word: str) -> str:
    """The flag that a word of a command line gives, with or without a value: "--loss" of "--loss=bitwise"."""
    return word.partition("=")[0].replace("_", "-")


def without(words: Sequence[str], flags: set[str]) -> list[str]:
    """`words` without these flags and their values, which may be in the same word."""
    kept: list[str] = []
    skipping = False
    for word in words:
        if skipping:
            skipping = False
        elif flag_of(word) in flags:
            skipping = "=" not in word
        else:
            kept.append(word)
    return kept


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
        asked = {"--bf16", "--no-bf16"} & set(map(flag_of, self.flags))
        rounded = "bf16" in find_method(method).load().Config.__dataclass_fields__
        return ("--preset", self.preset, *(("--no-bf16",) if rounded and not asked else ()), *self.flags)


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
    wanted = [
        (scene, experiment, method, variant)
        for scene in scenes
        for experiment in experiments
        for method in methods or experiment.methods
        for variant in variants_of(experiment, method, budget.preset)
    ]
    recorded, measured = set(), set()  # trainings of which some experiment wants that
    for scene, experiment, method, variant in wanted:
        training = (scene.folder, method, _training(variant, method, budget.preset).label)
        recorded |= {training} if RECORDING in variant.flags else set()
        measured |= {training} if experiment.surfaces else set()
    cases: dict[str, Case] = {}
    for scene, _, method, variant in wanted:
        training = _training(variant, method, budget.preset)
        key = (scene.folder, method, training.label)
        for seed in seeds:
            made = partial(_case, scene, method, seed=seed, budget=budget, out=out, surface=key in measured)
            with_curve = made((variant, _recorded(training)))
            watched = key in recorded or with_curve.commands[0].done  # one that is there already will do
            case = with_curve if watched else made((variant, training))
            cases.setdefault(case.name, case)
    return list(cases.values())


def variants_of(experiment: Experiment, method: str, preset: str) -> tuple[Variant, ...]:
    """The experiment's variants that the method has, without those that are the same training as an earlier one: a
    setting or weight may be the method's own."""
    module = find_method(method).load()
    found: dict[Any, Variant] = {}
    for variant in experiment.variants:
        if _fits(variant, module):
            key = (_essence(variant, method, preset), RECORDING in variant.flags, variant.line)
            found.setdefault(key, variant)
    return tuple(found.values())


def missing_variants(experiment: Experiment, method: str) -> list[str]:
    """Labels of the experiment's variants that the method does not have, for want of a setting."""
    module = find_method(method).load()
    return [variant.label for variant in experiment.variants if not _fits(variant, module)]


def _fits(variant: Variant, module: ModuleType) -> bool:
    """Whether the method has what it sets; the loss of bits needs a head that predicts some."""
    known = module.Config.__dataclass_fields__.keys()
    bits = "target_encoding" in known and variant.settings.get("target_encoding", "binary") in ("binary", "gray")
    return variant.settings.keys() <= known and (bits or _loss_of(variant) != "bitwise")


def _loss_of(variant: Variant) -> str | None:
    return dict(zip(variant.flags[::2], variant.flags[1::2], strict=True)).get("--loss")


def _essence(variant: Variant, method: str, preset: str) -> tuple[Any, ...]:
    """What is learned by a variant: equal where two are the same training, whether or not they are recorded."""
    known = find_method(method)
    own = known.load().preset(preset)
    flags = zip(variant.flags[::2], variant.flags[1::2], strict=True)
    code = "none" if _loss_of(variant) == "regression" else "binary"  # what "auto" comes to
    changed = (
        (name, value)
        for name, value in variant.settings.items()
        if value != getattr(own, name) and (name, value, getattr(own, name)) != ("target_encoding", code, "auto")
    )
    chosen = (pair for pair in flags if pair[0] != RECORDING and pair != (WEIGHT, f"{known.loss_weight:g}"))
    return tuple(sorted(chosen)), tuple(sorted(changed))


def _training(variant: Variant, method: str, preset: str) -> Variant:
    """The first variant of any experiment that is the same training, not recorded: its label names the run, whatever
    was asked for."""
    module, essence = find_method(method).load(), _essence(variant, method, preset)
    for experiment in EXPERIMENTS.values():
        for other in experiment.variants:
            plain = RECORDING not in other.flags and _fits(other, module)
            if plain and _essence(other, method, preset) == essence:
                return other
    return variant


def _recorded(training: Variant) -> Variant:
    """The same training, which is watched as it goes: that changes nothing that is learned."""
    flags = (*training.flags, RECORDING, str(CURVE_POINTS))
    return replace(training, label=f"{training.label}, recorded", flags=flags)


def _case(
    scene: MeasuredScene,
    method: str,
    variants: tuple[Variant, Variant],
    seed: int,
    budget: Budget,
    out: Path,
    *,
    surface: bool,
) -> Case:
    """The case of `variants`, the one that the table names and the one that is trained."""
    place = scene.folder.resolve().name
    name, run = (f"{place}-{method}-{re.sub(r'[^A-Za-z0-9.-]+', '_', one.label)}-{seed}" for one in variants)
    folder = out / run
    train = ("nfc_splat.train", str(scene.folder), "--out", str(folder), "--resume", "auto", "--method", method)
    train += (*budget.of(method), *variants[1].arguments, "--seed", str(seed))
    summary = folder / "eval" / "summary.json"
    commands = [Command(train, summary, ((summary, "psnr"), (folder / "config.json", "scene")))]
    if surface:
        mesh, measured = folder / "mesh.ply", folder / MESH_FOLDER / "metrics.json"
        commands.append(Command(("nfc_splat.export", "mesh", str(folder)), mesh))
        compared = ("nfc_splat.eval", "mesh", str(mesh), str(scene.truth), "--protocol", scene.protocol)
        if scene.protocol == "replica":  # `export mesh` has brought the mesh to the truth's frame
            compared += ("--scene", str(scene.folder), "--to-world", "identity")
        proofs = ((measured, "metrics"), (measured, "protocol"))
        commands.append(Command((*compared, "--out", str(measured.parent)), measured, proofs))
    return Case(name, place, method, variants[0].label, seed, folder, tuple(commands), scene)
