"""`python -m nfc_splat.export {mesh,splats,points,cameras,model} RUN ...`: what a run learned, for other programs."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from nfc_splat.errors import run_command

COMMANDS = {
    "mesh": "the surface, as triangles: from a level set, or fused from rendered depth",
    "splats": "Gaussians, as PLY, .splat or .spz",
    "points": "what is seen, as coloured points",
    "cameras": "the cameras, as cameras.json, transforms.json or a COLMAP model",
    "model": "the model alone, without what only training needs, as safetensors",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch to a subcommand; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m nfc_splat.export", description=__doc__.partition(": ")[2])
    listing = "; ".join(f"{name}: {what}" for name, what in COMMANDS.items())
    parser.add_argument("command", choices=list(COMMANDS), help=listing)
    options = parser.parse_args(arguments[:1])
    return import_module(f"nfc_splat.export.{options.command}").main(arguments[1:])


if __name__ == "__main__":
    run_command(main)
