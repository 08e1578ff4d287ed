"""Runs `python -m nfc_splat.train` several times over in one process, for tests that start it with torchrun: starting
Python costs more than these runs.

Its argument: a JSON list of command lines, each a list of words. The method "toy" is known to it.
"""

import dataclasses
import json
import sys

from training_toy import METHOD

from nfc_splat.errors import run_command
from nfc_splat.fields import METHODS
from nfc_splat.train import train
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.processes import FailedElsewhere, Group, joined


class Staying(Group):
    """A group that goes on after a run: torch cannot join the same processes twice."""

    def end(self) -> None:
        self.most(0)


def main() -> int:
    """Run the command lines in turn until one fails; returns its exit code, or 0."""
    try:
        with joined() as group:
            staying = Staying(**dataclasses.asdict(group))
            runs = (train(parse_command_line(words), staying) for words in json.loads(sys.argv[1]))
            return next((code for code in runs if code), 0)
    except FailedElsewhere as error:
        return error.exit_code


if __name__ == "__main__":
    METHODS[METHOD.name] = METHOD
    run_command(main)
