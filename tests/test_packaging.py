"""What is shipped: constraints that fit, an archive that builds, a wheel beside a project with our folders' names."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import training_toy
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[str]:
    """What is pinned: what the Makefile installs, the base and the extras that it names, and videos."""
    extras = PROJECT["optional-dependencies"]
    chosen = (name for extra in ("geometry", "view", "video", "dev") for name in extras[extra])
    return [*PROJECT["dependencies"], *chosen]


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_direct_dependency_is_pinned_within_its_range():
    wanted = {requirement.name: requirement.specifier for requirement in map(Requirement, requirements())}
    assert set(pins()) == set(wanted)
    for name, versions in wanted.items():
        assert ">=" in str(versions), name
        assert versions.contains(pins()[name]), name


def test_the_makefile_installs_the_extras_that_are_pinned():
    assert "--editable '.[geometry,view,dev]'" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def test_the_licence_is_the_whole_apache_licence():
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    for passage in ("Version 2.0, January 2004", "Grant of Patent License", "END OF TERMS AND CONDITIONS"):
        assert passage in text


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    """A folder with the source archive of this tree, and the wheel built from that archive."""
    pytest.importorskip("build", reason="building needs the dev extra")
    pytest.importorskip("setuptools", reason="building needs the dev extra")
    tree = tmp_path_factory.mktemp("tree") / "source"
    leave = shutil.ignore_patterns(
        ".git", ".venv", "__pycache__", "*.egg-info", "build", "dist", "runs", "scenes", ".*_cache"
    )
    shutil.copytree(REPOSITORY, tree, ignore=leave)
    out = tmp_path_factory.mktemp("archives")
    # Without --sdist or --wheel, build makes the archive first and the wheel from it.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree), cwd=out)
    return out


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory) -> Path:
    """A folder that holds the wheel's content, to be put on the path."""
    target = tmp_path_factory.mktemp("site")
    wheel = next(archives.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run(*pip, "--target", str(target), str(wheel), cwd=target)
    return target


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A user's project with an eval.py and a fields/ of its own."""
    (tmp_path / "eval.py").write_text("ANSWER = 42\n")
    (tmp_path / "fields").mkdir()
    (tmp_path / "fields" / "__init__.py").write_text("MINE = True\n")
    return tmp_path


@pytest.mark.slow
def test_the_wheel_holds_the_package_under_one_name(archives):
    names = zipfile.ZipFile(next(archives.glob("*.whl"))).namelist()
    assert {name.split("/")[0] for name in names} == {"nfc_splat", f"nfc_splat-{PROJECT['version']}.dist-info"}
    shipped = {name for name in names if name.startswith("nfc_splat/") and name.endswith(".py")}
    inside = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "nfc_splat").rglob("*.py")}
    mapped = {
        f"nfc_splat/{path.relative_to(REPOSITORY)}"
        for folder in ("eval", "fields")
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    assert shipped == inside | mapped
    assert "nfc_splat/py.typed" in names
    templates = (REPOSITORY / "nfc_splat" / "report" / "templates").iterdir()
    assert {f"nfc_splat/report/templates/{path.name}" for path in templates} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_source_archive_can_be_worked_with(archives):
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("Makefile", "constraints.txt", "LICENSE", "README.md", "CHANGELOG.md", "fields/recipe.py", ".ci/run"):
        assert name in names
    assert {f"tests/{path.name}" for path in (REPOSITORY / "tests").glob("*.py")} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("scenes/", "runs/"))]


@pytest.mark.slow
def test_the_wheel_works_beside_a_project_that_has_our_folder_names(installed, foreign):
    code = """
import eval, fields
import nfc_splat, nfc_splat.eval, nfc_splat.fields
from nfc_splat.fields.recipe import Recipe
assert eval.ANSWER == 42 and fields.MINE
print(nfc_splat.__file__, nfc_splat.eval.__file__, nfc_splat.fields.__file__, sep="\\n")
"""
    files = run(sys.executable, "-c", code, cwd=foreign, PYTHONPATH=str(installed)).split("\n")
    home = installed / "nfc_splat"
    assert [Path(file) for file in files if file] == [
        home / "__init__.py",
        home / "eval" / "__init__.py",
        home / "fields" / "__init__.py",
    ]


@pytest.mark.slow
def test_the_wheel_trains_beside_such_a_project(installed, foreign, tmp_path):
    scene = training_toy.write_scene(tmp_path / "scene", size=24)
    words = ["--out", str(tmp_path / "run"), "--steps", "10", "--init-points", "50", "--max-primitives", "100"]
    words += ["--backend", "reference", "--dssim-weight", "0"]  # a wheel has compiled no kernel yet, which takes long
    text = run(sys.executable, "-m", "nfc_splat.train", str(scene), *words, cwd=foreign, PYTHONPATH=str(installed))
    assert "test views  PSNR" in text
    assert (tmp_path / "run" / "point_cloud.ply").is_file()
    run(sys.executable, "-m", "nfc_splat.report", str(tmp_path / "run"), cwd=foreign, PYTHONPATH=str(installed))
    assert "</html>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheels_commands_start_beside_such_a_project(installed, foreign):
    """As `python -m` starts them, but in one process: torch is loaded once."""
    commands = ["train", "eval", "eval images", "render", "demo", "doctor", "report", "export", "compare", "view"]
    code = f"""
import runpy, sys
for command in {commands}:
    name, *words = command.split()
    sys.argv = [name, *words, "--help"]
    print("===")
    try:
        runpy.run_module("nfc_splat." + name, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        assert not leaving.code, command
"""
    _, *texts = run(sys.executable, "-c", code, cwd=foreign, PYTHONPATH=str(installed)).split("===\n")
    for command, text in zip(commands, texts, strict=True):
        assert f"python -m nfc_splat.{command}" in text
