"""The command line of `python -m nfc_splat.train`, made from the config dataclasses by tyro.

It is read twice: a first look finds the method, the preset and the number of steps, whose values then are the defaults
of the full parse. A resumed run takes its defaults from the run's own config.json.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro

from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.options import parse_options
from nfc_splat.training.config import (
    AUTO_METHOD,
    AUTO_MOVING_METHOD,
    TrainConfig,
    auto_method,
    choose_device,
    default_config,
    resolve,
)
from nfc_splat.training.run import find_run, is_run, read_config, was_saved
from nfc_splat.training.state import refuse_differences

PROGRAM = "python -m nfc_splat.train"


def parse_command_line(arguments: Sequence[str]) -> TrainConfig:
    """The resolved configuration that `arguments` ask for. Its `resume` is None or a path that `find_run` accepts.

    Raises:
        UserError: an unknown flag (with the nearest one), a wrong value, nothing to resume.
        SystemExit: after `--help`.
    """
    arguments = _complete_resume(arguments)
    resume = _early(arguments, "resume")
    if resume in (None, "latest", "auto"):
        config = resolve(_parse_fresh(arguments))
        if config.resume is None:
            return config
        if config.resume == "auto" and not was_saved(config.out):
            return replace(config, resume=None)
        if not is_run(config.out):
            raise UserError(f"--resume: there is no run in {config.out}; name one with --resume PATH")
        resume = str(config.out)
    source = find_run(Path(resume))
    recorded = read_config(source.folder)
    asked = _parse(arguments, replace(recorded, out=source.folder, resume=resume, overwrite=False))
    refuse_differences(asked, recorded, f"--resume: {source.folder} cannot be continued")
    return resolve(replace(asked, resume=resume))


def _complete_resume(arguments: Sequence[str]) -> list[str]:
    """`--resume` alone becomes `--resume latest`, whatever follows it, unless that names a run."""
    result: list[str] = []
    for index, argument in enumerate(arguments):
        result.append(argument)
        if argument == "--resume" and not any(map(_can_follow_resume, arguments[index + 1 : index + 2])):
            result.append("latest")
    return result


def _can_follow_resume(word: str) -> bool:
    if word in ("latest", "auto"):
        return True
    try:
        find_run(Path(word))
    except UserError:
        return False
    return True


def _early(arguments: Sequence[str], name: str) -> str | None:
    """The value given to the flag `name`, seen before the full parse, which checks it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest="value", nargs="?")
    return parser.parse_known_args(arguments)[0].value


def _parse_fresh(arguments: Sequence[str]) -> TrainConfig:
    """The parse of a run that starts. What `--method auto` is depends on the scene, which a parse tells: the command
    line is read as that of the one method, and if need be as that of the other."""
    name = _early(arguments, "method") or "auto"
    if name != "auto":
        return _parse(arguments, _preset_defaults(arguments, name))
    failures = []
    for name in (AUTO_METHOD, AUTO_MOVING_METHOD):
        try:
            config = _parse(arguments, _preset_defaults(arguments, name))
        except UserError as error:
            failures.append(error)
            continue
        if auto_method(config.scene, config.data) == name:
            return replace(config, method=name)
    raise failures[0]


def _preset_defaults(arguments: Sequence[str], name: str) -> TrainConfig:
    """What the preset of the method `name` gives that `arguments` choose, to be overridden by the other flags."""
    try:
        steps = int(_early(arguments, "steps") or "")
    except ValueError:
        steps = None  # absent, or the full parse will say what is wrong with it
    choose_device(device := _early(arguments, "device") or "auto")
    method = find_method(name)
    encoding = _early(arguments, "target-encoding")
    if encoding is not None and "target_encoding" not in method.load().Config.__dataclass_fields__:
        raise UserError(
            f"--target-encoding {encoding}: {method.name} has no colour network whose last layer could predict a code; "
            "leave it out (--loss classification alone is what NFC does with it)"
        )
    chosen = {field: value for field in method.preset_fields if (value := _early(arguments, field)) is not None}
    return default_config(
        tyro.MISSING,
        method=method.name,
        preset=_early(arguments, "preset") or "auto",
        steps=steps,
        device=device,
        **chosen,
    )


def _parse(arguments: Sequence[str], default: TrainConfig) -> TrainConfig:
    """The full parse; what is not given is taken from `default`."""
    expected = "one SCENE and flags; what follows --resume must be a run folder or one of its checkpoints"
    positional = {"scene": "SCENE"}
    return parse_options(TrainConfig, arguments, PROGRAM, default=default, positional=positional, expected=expected)
