"""`python -m nfc_splat.export model RUN`: the model alone, without what only training needs, of any method.

`render`, `eval images`, `eval speed --render` and `export` take the file in place of a run, with --scene.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nfc_splat.chosen_run import chosen_checkpoint
from nfc_splat.errors import UserError
from nfc_splat.export.destination import add_destination_arguments, output_file

DEFAULT = "exported/model.safetensors"


def main(arguments: Sequence[str]) -> int:
    """Write the file as the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    from nfc_splat.training.checkpoint import CHECKPOINT_NAME
    from nfc_splat.training.load import checkpoint_of
    from nfc_splat.training.model_file import write_model
    from nfc_splat.training.run import find_run, read_config

    source = find_run(chosen_checkpoint(options.run, options.checkpoint))
    path = output_file(options, DEFAULT, (".safetensors",))
    if CHECKPOINT_NAME.fullmatch(path.name):
        raise UserError(f"--out {path}: is what checkpoints are called; choose another name")
    config, checkpoint = read_config(source.folder), checkpoint_of(source)
    tensors = checkpoint.section("model")
    write_model(path, config, checkpoint.header.step, tensors)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    sizes = [f"{file.stat().st_size / 1e6:.2f} MB" for file in (path, checkpoint.path)]
    print(f"{config.scene.name}, {config.method}: step {checkpoint.header.step}, {numbers:,} numbers")
    print(f"  wrote {path}, {sizes[0]} (the checkpoint: {sizes[1]})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfc_splat.export model",
        description="Write a run's model alone, for passing on: tensors, and the settings that draw them.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or one of its checkpoints")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="which checkpoint (default: the newest)")
    add_destination_arguments(parser, f"a file with the ending .safetensors (default: RUN/{DEFAULT})")
    return parser
