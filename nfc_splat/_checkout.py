"""Find `nfc_splat.fields` and `nfc_splat.eval` in an uninstalled checkout.

An installed package carries both inside it. In a clone they are the top-level folders `fields/` and `eval/`, which
`package-dir` in pyproject.toml maps; Python does not read that file, so this finder does the same. It is asked last:
an installed copy always wins.
"""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


class CheckoutFinder:
    """Meta-path finder for the two mapped packages, and for nothing else."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("nfc_splat.fields", "nfc_splat.eval") and (REPOSITORY / "pyproject.toml").is_file():
            return PathFinder.find_spec(name, [str(REPOSITORY)])
        return None


sys.meta_path.append(CheckoutFinder)
