"""What other projects rely on: the losses import torch alone, their examples are true, and they compile."""

import ast
import doctest
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nfc_splat.losses import NFCLoss, TargetEncoding, bitwise_classification_loss, l1_dssim

PACKAGE = Path(__file__).resolve().parent.parent / "nfc_splat"
MODULES = ["nfc_splat.losses"] + [
    f"nfc_splat.losses.{path.stem}" for path in sorted((PACKAGE / "losses").glob("*.py")) if path.stem != "__init__"
]

PROBE = """
import sys
import torch
before = set(sys.modules)
import nfc_splat.losses
for name in sorted(set(sys.modules) - before):
    print(name)
"""


def modules_added_by_the_losses(root: Path) -> set[str]:
    """Names of the modules that importing `nfc_splat.losses` from `root` adds to a process that has torch."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def is_foreign(module: str) -> bool:
    """Neither the standard library nor torch nor this package's losses."""
    if module.partition(".")[0] in {*sys.stdlib_module_names, "torch"}:
        return False
    return module not in {"nfc_splat", "nfc_splat._checkout"} and not module.startswith("nfc_splat.losses")


def foreign_imports(source: str) -> set[str]:
    """Foreign modules named by any import statement, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return {name for name in names if is_foreign(name)}


def test_importing_the_losses_adds_only_the_standard_library():
    added = modules_added_by_the_losses(PACKAGE.parent)
    assert "nfc_splat.losses.nfc" in added
    assert {name for name in added if is_foreign(name)} == set()


def test_no_import_statement_names_anything_else():
    """What torch itself has loaded already (numpy) would not show in the process."""
    for path in (PACKAGE / "losses").glob("*.py"):
        assert foreign_imports(path.read_text(encoding="utf-8")) == set(), path


def test_the_check_can_fail(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "nfc_splat", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "foreign_dependency.py").touch()
    with open(tmp_path / "nfc_splat" / "losses" / "nfc.py", "a", encoding="utf-8") as file:
        file.write("\nimport foreign_dependency\nimport nfc_splat.errors\n")
    culprits = {name for name in modules_added_by_the_losses(tmp_path) if is_foreign(name)}
    assert culprits == {"foreign_dependency", "nfc_splat.errors"}


def test_the_statement_check_can_fail():
    assert foreign_imports("def f():\n    import numpy.linalg\n") == {"numpy.linalg"}
    assert foreign_imports("from nfc_splat.cameras import Cameras") == {"nfc_splat.cameras"}
    assert foreign_imports("from . import nfc") == {"."}
    assert foreign_imports("import math, torch.nn\nfrom nfc_splat.losses.nfc import NFCLoss") == set()


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_in_docstrings():
    finder = doctest.DocTestFinder()
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert examples >= 8


@pytest.mark.slow
def test_losses_compile_without_graph_breaks():
    """Traced by dynamo, forward and backward, to the eager values."""
    pred, target, mask = torch.rand(2, 16, 16, 3, requires_grad=True), torch.rand(2, 16, 16, 3), torch.rand(2, 16, 16)
    encoding = TargetEncoding("gray")

    def total(pred, target, mask):
        bits = encoding.activate(pred[..., None] * torch.ones(8))
        loss = NFCLoss(base="l1")(pred, target, mask) + l1_dssim(pred, target, mask=mask)
        return loss + bitwise_classification_loss(bits, target, encoding=encoding) + encoding.decode(bits).mean()

    expected = total(pred, target, mask)
    (expected_grad,) = torch.autograd.grad(expected, pred)
    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)(pred, target, mask)
    (grad,) = torch.autograd.grad(compiled, pred)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(grad, expected_grad)
