"""Whether the runs that lie in a comparison's folder are the ones that are asked for. Each one's own `config.json` says
that: settings, and the fingerprint of the scene. Where the scene lies, and the folder, makes no difference."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nfc_splat.compare.plan import Case, without
from nfc_splat.data import Scene
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.files import read_json
from nfc_splat.train import refuse_unsuited
from nfc_splat.training.checkpoint import differences
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.config import TrainConfig, matching
from nfc_splat.training.load import load_training_scene, scene_hash, with_kept_points
from nfc_splat.training.run import CONFIG_FILE, RunSource, is_run, read_config

MEASURING = ("protocol", "split")  # settings that a resumed run may change, and a comparison's runs may not


class Scenes:
    """The scenes of a comparison as its trainings read them, each once."""

    def __init__(self) -> None:
        self._found: dict[Any, Scene | UserError] = {}

    def of(self, case: Case, asked: TrainConfig) -> Scene | UserError:
        """The scene of a case that is told `asked`, or why it cannot be read."""
        if is_run(case.folder) and _is_json(case.folder / CONFIG_FILE):  # which has the points that it began with
            asked = with_kept_points(asked, RunSource(case.folder))
        asked = replace(asked, data=replace(asked.data, train_noise=0.0))  # noise is no part of a scene
        folder = case.source.folder
        key = folder.resolve(), asked.data, find_method(asked.method).load().Model.request == "image"
        if key not in self._found:
            try:
                self._found[key] = load_training_scene(asked, folder)
            except UserError as error:
                self._found[key] = error
        return self._found[key]


def check(runs: Sequence[Case], scenes: Scenes, *, here: bool = True) -> list[str]:
    """Sentences about files that cannot be believed, so that their runs are done again from there.

    Args:
        runs: a case for each run.
        scenes: read so far.
        here: whether trainings are to be on this machine.

    Raises:
        UserError: a training would refuse its flags or its scene, or would measure nothing; a run was begun with other
            settings, or on a scene that has changed since.
    """
    notices = []
    for case in runs:
        if not case.commands[0].done:
            _refuse_in_vain(case, scenes, here=here)
        flaws = [command.flaw for command in case.commands if command.product.exists() and command.flaw]
        notices += [f"{case.run}: not taken as done: {flaw}" for flaw in flaws[:1]]
        if _is_json(case.folder / CONFIG_FILE):
            asked = _refuse_other_settings(case)
            if case.commands[0].done:
                notices += _refuse_other_scene(case, scenes.of(case, asked))
    return list(dict.fromkeys(notices))


def with_enough_images(cases: Sequence[Case], scenes: Scenes) -> tuple[list[Case], list[str]]:
    """The cases whose scene has as many training images as they take, or cannot be read, and sentences about the
    others."""
    kept, lines = [], []
    for case in cases:
        asked = asked_config(case)
        views = asked.data.train_views
        whole = replace(asked, data=replace(asked.data, train_views=None))
        scene = None if views is None else scenes.of(case, whole)
        if isinstance(scene, Scene) and views > (count := len(scene.splits["train"])):
            lines.append(f"{case.scene} has {count} training images: no runs from {views}")
        else:
            kept.append(case)
    return kept, list(dict.fromkeys(lines))


def _is_json(path: Path) -> bool:
    """Whether it is there and whole; a run whose settings are not is refused by its own training."""
    try:
        read_json(path)
    except UserError:
        return False
    return True


def asked_config(case: Case, *, here: bool = False) -> TrainConfig:
    """What the case's training is told; its scene, run folder and seed are not in it, and unless it is to be on this
    machine, CUDA is not asked for.

    Raises:
        UserError: the flags make no sense.
    """
    words = without(case.commands[0].words[2:], {"--out", "--resume", "--seed"})  # after the module and the scene
    try:
        return _parsed(tuple(words if here else map(_anywhere, ["", *words], words)))
    except UserError as error:
        raise UserError(f"{case.run}: {error}") from None


def _anywhere(before: str, word: str) -> str:
    """A word of a command line, the one before it known, for machines without CUDA."""
    if word == "--device=cuda":
        return "--device=cpu"
    return "cpu" if (before, word) == ("--device", "cuda") else word


@cache
def _parsed(words: tuple[str, ...]) -> TrainConfig:
    return parse_command_line([".", *words])


def _refuse_other_settings(case: Case) -> TrainConfig:
    remedy = f"choose another --out, or delete {case.folder} to train it again"
    try:
        recorded, asked = read_config(case.folder), replace(asked_config(case), seed=case.seed)
    except UserError as error:
        raise UserError(f"{case.folder}: whether this run is the one asked for is unknown: {error}; {remedy}") from None
    mine, found = (matching(one) | {name: getattr(one, name) for name in MEASURING} for one in (asked, recorded))
    if others := differences(mine, found):
        listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise UserError(f"{case.folder}: this run was begun with other flags than now: {listed}; {remedy}")
    return asked


def _refuse_in_vain(case: Case, scenes: Scenes, *, here: bool) -> None:
    """Refuse what the training would refuse, and a training of which nothing would be measured."""
    asked = asked_config(case, here=here)
    scene = scenes.of(case, asked)
    if isinstance(scene, UserError):
        raise scene
    try:
        refuse_unsuited(asked, scene)
    except UserError as error:
        raise UserError(f"{case.run}: {error}") from None
    if not scene.splits.get(asked.split):
        raise UserError(f"{case.source.folder}: has no test views, so there is nothing to compare; keep some")


def _refuse_other_scene(case: Case, scene: Scene | UserError) -> list[str]:
    """A notice where the scene cannot be read any more."""
    folder = case.source.folder
    if isinstance(scene, UserError):
        return [f"{case.scene}: cannot be read now, so its finished runs are taken as they are: {scene}"]
    if read_json(case.folder / CONFIG_FILE)["scene"].get("hash") != scene_hash(scene):
        raise UserError(
            f"{case.folder}: {folder} has changed since this run was trained on it (cameras, or the names and sizes of "
            "images, or points); choose another --out, or delete the run's folder to train it again"
        )
    return []
