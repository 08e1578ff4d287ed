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

MEASURING = ("protocol", "split")  # settings that a resumed run may change, and a comparison's runs may not


def check(runs: Sequence[Case]) -> list[str]:
    """Sentences about files that cannot be believed, so that their runs are done again from there.

    Raises:
        UserError: a run was begun with other settings, or on a scene that has changed since.
    """
    notices, hashes = [], {}
    for case in runs:
        flaws = [command.flaw for command in case.commands if command.product.exists() and command.flaw]
        notices += [f"{case.run}: not taken as done: {flaw}" for flaw in flaws[:1]]
        if _is_json(case.folder / CONFIG_FILE):
            asked = _refuse_other_settings(case)
            if case.commands[0].done:
                notices += _refuse_other_scene(case, asked, hashes)
    return list(dict.fromkeys(notices))


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
    return _parsed(tuple(word for at, word in enumerate(words) if not {word, words[at - 1]} & set(own)))


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


def _refuse_other_scene(case: Case, asked: TrainConfig, hashes: dict[Any, str | UserError]) -> list[str]:
    """A notice where the scene cannot be read any more; `hashes` keeps what was found of scenes."""
    folder = case.source.folder
    seen = replace(asked, data=replace(asked.data, train_noise=0.0))  # noise is no part of a scene
    key = folder.resolve(), seen.data, find_method(seen.method).load().Model.request == "image"
    if key not in hashes:
        try:
            hashes[key] = scene_hash(load_training_scene(seen, folder))
        except UserError as error:
            hashes[key] = error
    if isinstance(hashes[key], UserError):
        return [f"{case.scene}: cannot be read now, so its finished runs are taken as they are: {hashes[key]}"]
    if read_json(case.folder / CONFIG_FILE)["scene"].get("hash") != hashes[key]:
        raise UserError(
            f"{case.folder}: {folder} has changed since this run was trained on it (cameras, or the names and sizes of "
            "images, or points); choose another --out, or delete the run's folder to train it again"
        )
    return []
