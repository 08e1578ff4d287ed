"""Runs `python -m nfc_splat.train` several times over in one process, for tests that start it with torchrun: starting
Python costs more than these runs.

Its arguments: a JSON list of command lines, each a list of words.
"""

import dataclasses
import json
import sys

from nfc_splat.errors import run_command
from nfc_splat.train import train
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.processes import Group, joined


class Staying(Group):
    """A group that goes on after a run: torch cannot join the same processes twice."""

    def end(self) -> None:
        self.most(0)


def main() -> int:
    """Run the command lines in turn until one fails; returns its exit code, or 0."""
    with joined() as group:
        staying = Staying(**dataclasses.asdict(group))
        runs = (train(parse_command_line(words), staying) for words in json.loads(sys.argv[1]))
        return next((code for code in runs if code), 0)


if __name__ == "__main__":
    run_command(main)
