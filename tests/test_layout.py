"""The layout: packages shipped, one identity per class, who imports whom, what an import costs, how long things are."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MAPPED = {"eval": "nfc_splat.eval", "fields": "nfc_splat.fields"}

# Who may import which of our layers. A layer may always import itself.
ALLOWED = {
    "losses": set(),
    "cameras": set(),
    "rendering": {"cameras"},
    "fields": {"cameras", "losses", "rendering"},
    "data": {"cameras"},
    "training": {"cameras", "data", "fields", "losses", "rendering"},
    "eval": {"cameras", "rendering"},
    "scenery": set(),
    # Small services of one module each.
    "errors": set(),
    "files": set(),
    "terminal": set(),
    "open3d_loader": set(),
    "options": set(),
    "machine": {"rendering"},
}
# What every layer but the two that other projects take (losses, cameras) may import besides.
SERVICES = {"errors", "files", "machine", "open3d_loader", "options", "terminal"}
INDEPENDENT = {"losses", "cameras", "errors"}
# Doors may import anything; they are the modules of the package's top that no layer above names, and these.
EVAL_DOORS = {
    f"nfc_splat.eval.{name}"
    for name in (
        "__main__",
        "speed",
        "speed_fields",
        "speed_mesh",
        "speed_nerf",
        "speed_dnerf",
        "speed_moving",
        "cost",
        "splats",
        "speed_phases",
    )
}
# Third-party packages that the independent modules may name, anywhere in their source.
FOREIGN = {"losses": {"torch"}, "cameras": {"torch"}, "errors": set(), "files": set()}
# What costs a second or may be absent: loaded when used, not when a package is imported.
HEAVY = {"gsplat", "tinycudann", "open3d", "torchmetrics", "torchvision", "kornia", "viser", "numba"}

FILE_LINES, FUNCTION_LINES, KERNEL_LINES = 500, 60, 120


def modules() -> dict[str, Path]:
    """Every module of the package by its import name."""
    found = {}
    for folder in ("nfc_splat", *MAPPED):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            name = ".".join([MAPPED.get(parts[0], parts[0]), *parts[1:]])
            found[name.removesuffix(".__init__")] = path
    return found


def layer(module: str) -> str | None:
    """The layer that a module belongs to; None for doors and for the package itself."""
    parts = module.split(".")
    if len(parts) < 2 or module in EVAL_DOORS or parts[1] not in ALLOWED:
        return None
    return parts[1]


def imported(source: str, known: set[str]) -> set[str]:
    """Modules named by the import statements of `source`, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in known)
    return names


def violations(sources: dict[str, str]) -> list[str]:
    """Imports among `sources` (by module name) that go against `ALLOWED`, and foreign ones against `FOREIGN`."""
    found = []
    for module, source in sources.items():
        own = layer(module)
        for target in imported(source, set(sources)):
            if target.startswith("."):
                found.append(f"{module} imports {target} relatively")
            elif target.split(".")[0] in MAPPED:
                found.append(f"{module} imports {target}: the name belongs to other projects")
            elif target.split(".")[0] != "nfc_splat":
                foreign = target.split(".")[0]
                if own in FOREIGN and foreign not in FOREIGN[own] | sys.stdlib_module_names:
                    found.append(f"{module} ({own}) imports {foreign}")
            elif own is not None and target not in ("nfc_splat", "nfc_splat._checkout"):
                other = layer(target)
                permitted = ALLOWED[own] | {own} | (set() if own in INDEPENDENT else SERVICES)
                if other not in permitted:
                    found.append(f"{module} ({own}) imports {target} ({other or 'a door'})")
    return found


def test_import_direction():
    assert not violations({name: path.read_text(encoding="utf-8") for name, path in modules().items()})


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("nfc_splat.losses.nfc", "from nfc_splat.cameras import Cameras"),
        ("nfc_splat.losses.nfc", "import kornia"),
        ("nfc_splat.losses.nfc", "from nfc_splat.errors import UserError"),
        ("nfc_splat.cameras", "def f():\n    import numpy"),
        ("nfc_splat.rendering.march", "from nfc_splat.fields.recipe import Recipe"),
        ("nfc_splat.rendering.march", "def f():\n    import nfc_splat.training.trainer"),
        ("nfc_splat.data.colmap", "from nfc_splat.rendering import SceneModel"),
        ("nfc_splat.fields.nerf", "from nfc_splat.data.scene import Scene"),
        ("nfc_splat.fields.nerf", "from nfc_splat import train"),
        ("nfc_splat.eval.geometry", "from nfc_splat.training.run import Run"),
        ("nfc_splat.eval.geometry", "from nfc_splat.eval.__main__ import main"),
        ("nfc_splat.training.loop", "from nfc_splat.train import main"),
        ("nfc_splat.files", "import numpy"),
        ("nfc_splat.demo", "import fields"),
        ("nfc_splat.demo", "from eval.images import psnr"),
        ("nfc_splat.fields.nerf", "from .recipe import Recipe"),
    ],
)
def test_the_direction_test_sees_a_violation(module, statement):
    others = {"nfc_splat.train": "", "nfc_splat.eval.__main__": "", "nfc_splat.cameras": "", "nfc_splat.errors": ""}
    assert len(violations({**others, module: statement})) == 1


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("nfc_splat.fields.nerf", "from nfc_splat.rendering import SceneModel"),
        ("nfc_splat.training.loop", "from nfc_splat.errors import UserError"),
        ("nfc_splat.eval.speed", "from nfc_splat.training.trainer import train"),
        ("nfc_splat.train", "from nfc_splat.training.trainer import train\nimport tyro"),
        ("nfc_splat.losses.nfc", "import math\nfrom torch import Tensor"),
    ],
)
def test_the_direction_test_accepts_what_is_allowed(module, statement):
    assert not violations({module: statement})


def test_every_package_is_shipped():
    """A package missing from the list would vanish from the wheel without a warning."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == on_disk
    assert settings["package-dir"] == {name: folder for folder, name in MAPPED.items()}
    homes = {path.parent for path in modules().values()}
    assert all((home / "__init__.py").is_file() for home in homes)


def python(code: str, cwd: Path = REPOSITORY) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_class_one_identity(tmp_path):
    """The mapped folders are one package under one name, from the checkout and from elsewhere."""
    code = """
import pickle, sys
from nfc_splat.fields.recipe import Recipe
from nfc_splat.fields import recipe
import nfc_splat.eval
assert recipe.Recipe is Recipe and pickle.loads(pickle.dumps(Recipe)) is Recipe
assert Recipe.__module__ == "nfc_splat.fields.recipe"
assert "fields" not in sys.modules and "eval" not in sys.modules
print(recipe.__file__)
"""
    assert Path(python(code, tmp_path)) == REPOSITORY / "fields" / "recipe.py"
    from nfc_splat.fields import recipe  # this process works in the checkout

    assert Path(recipe.__file__) == REPOSITORY / "fields" / "recipe.py"
    assert recipe.Recipe.__module__ == "nfc_splat.fields.recipe"


def test_the_finder_answers_for_the_mapped_packages_alone():
    code = """
from nfc_splat._checkout import CheckoutFinder
print([CheckoutFinder.find_spec(name) is not None for name in
       ("nfc_splat.fields", "nfc_splat.eval", "fields", "eval", "nfc_splat.tests", "torch")])
"""
    assert python(code) == "[True, True, False, False, False, False]"


def test_importing_the_package_costs_nothing():
    code = """
import sys
before = set(sys.modules)
import nfc_splat
print(*sorted(set(sys.modules) - before - set(sys.stdlib_module_names)))
"""
    loaded = python(code).split()
    assert {name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names} == {
        "nfc_splat",
        "nfc_splat._checkout",
    }


def test_heavy_packages_are_loaded_when_used():
    """One after the other in one process: what none of them loads, each of them does not load."""
    packages = ["losses", "cameras", "rendering.rasterize", "fields", "data", "training", "eval", "demo"]
    code = f"""
import importlib, sys
for name in {packages}:
    importlib.import_module("nfc_splat." + name)
    print(name, *({HEAVY} & set(sys.modules)))
"""
    assert python(code).splitlines() == packages


def lengths() -> list[tuple[int, int, str]]:
    """(lines, limit, place) of every file and function of the package."""
    result = []
    for name, path in modules().items():
        source = path.read_text(encoding="utf-8")
        result.append((len(source.splitlines()), FILE_LINES, str(path.relative_to(REPOSITORY))))
        limit = KERNEL_LINES if ".kernels" in name else FUNCTION_LINES
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                result.append((code_lines(node), limit, f"{name}.{node.name}"))
    return result


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring left out."""
    total = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        total -= first.end_lineno - first.lineno + 1
    return total


def test_files_and_functions_are_short_enough_to_read():
    assert not [f"{place}: {lines} lines, at most {limit}" for lines, limit, place in lengths() if lines > limit]


def test_the_length_test_counts_code():
    function = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n').body[0]
    assert code_lines(function) == 3
