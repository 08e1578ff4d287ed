"""Whether the runs that lie in a comparison's folder are the ones that are asked for. Each one's own `config.json` says
that: settings, and the fingerprint of the scene. Where the scene lies, and the folder, makes no difference."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nfc_splat.compare.plan import Case
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.files import read_json
from nfc_splat.training.checkpoint import differences
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.config import TrainConfig, matching
from nfc_splat.training.load import load_training_scene, scene_hash
from nfc_splat.training.run import CONFIG_FILE, read_config

Hashes = dict[Any, str | UserError]
MEASURING = ("protocol", "split")  # settings that a resumed run may change, and a comparison's runs may not


def check(runs: Sequence[Case]) -> list[str]:
    """Sentences about files that cannot be believed, so that their runs are done again from there.

    Raises:
        UserError: a training would refuse its flags or its scene, a run was begun with other settings, or on a scene
            that has changed since.
    """
    notices, hashes = [], {}
    for case in runs:
        _refuse_unknown(case, hashes)
    for case in runs:
        flaws = [command.flaw for command in case.commands if command.product.exists() and command.flaw]
        notices += [f"{case.run}: not taken as done: {flaw}" for flaw in flaws[:1]]
        if _is_json(case.folder / CONFIG_FILE):
            asked = _refuse_other_settings(case)
            if case.commands[0].done:
                notices += _refuse_other_scene(case, asked, hashes)
    return list(dict.fromkeys(notices))


def with_enough_images(cases: Sequence[Case]) -> tuple[list[Case], list[str]]:
    """The cases whose scene has as many training images as they take, and sentences about the others."""
    counts: dict[Any, int] = {}
    kept, lines = [], []
    for case in cases:
        asked = asked_config(case)
        if (views := asked.data.train_views) is None:
            kept.append(case)
            continue
        data = replace(asked.data, train_views=None, train_noise=0.0)
        key = case.source.folder.resolve(), data
        if key not in counts:
            scene = load_training_scene(replace(asked, data=data), case.source.folder)
            counts[key] = len(scene.splits["train"])
        if views <= counts[key]:
            kept.append(case)
        else:
            lines.append(f"{case.scene} has {counts[key]} training images: no runs from {views}")
    return kept, list(dict.fromkeys(lines))


def _is_json(path: Path) -> bool:
    """Whether it is there and whole; a run whose settings are not is refused by its own training."""
    try:
        read_json(path)
    except UserError:
        return False
    return True


def asked_config(case: Case) -> TrainConfig:
    """What the case's training is told; its scene, run folder and seed are not in it.

    Raises:
        UserError: the flags make no sense.
    """
    words = case.commands[0].words[2:]  # after the module and the scene
    own = ("--out", "--resume", "--seed")
    try:
        return _parsed(tuple(word for at, word in enumerate(words) if not {word, words[at - 1]} & set(own)))
    except UserError as error:
        raise UserError(f"{case.run}: {error}") from None


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


def _refuse_unknown(case: Case, hashes: Hashes) -> None:
    """Refuse flags and scenes that the training would refuse, before any is begun."""
    asked = asked_config(case)
    if not case.commands[0].done and isinstance(found := _hash(case, asked, hashes), UserError):
        raise found


def _hash(case: Case, asked: TrainConfig, hashes: Hashes) -> str | UserError:
    """The scene's fingerprint, or why there is none; `hashes` keeps what was found of scenes."""
    seen = replace(asked, data=replace(asked.data, train_noise=0.0))  # noise is no part of a scene
    key = case.source.folder.resolve(), seen.data, find_method(seen.method).load().Model.request == "image"
    if key not in hashes:
        try:
            hashes[key] = scene_hash(load_training_scene(seen, case.source.folder))
        except UserError as error:
            hashes[key] = error
    return hashes[key]


def _refuse_other_scene(case: Case, asked: TrainConfig, hashes: Hashes) -> list[str]:
    """A notice where the scene cannot be read any more."""
    folder, found = case.source.folder, _hash(case, asked, hashes)
    if isinstance(found, UserError):
        return [f"{case.scene}: cannot be read now, so its finished runs are taken as they are: {found}"]
    if read_json(case.folder / CONFIG_FILE)["scene"].get("hash") != found:
        raise UserError(
            f"{case.folder}: {folder} has changed since this run was trained on it (cameras, or the names and sizes of "
            "images, or points); choose another --out, or delete the run's folder to train it again"
        )
    return []
