"""`python -m nfc_splat.doctor [SCENE]`: what this machine and this installation can do, and what is suspect in a scene.

Exit code 0 when all is well, 1 when something is wrong, 2 when the command was not understood.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import get_args, get_type_hints

from nfc_splat import __version__, machine
from nfc_splat.data import DataConfig, detect_format, load_scene
from nfc_splat.data.suspects import Finding, scene_findings
from nfc_splat.errors import UserError, run_command

PYTHONS = ((3, 11), (3, 13))
REQUIRED = ("torch", "numpy", "numba", "pillow", "safetensors", "tyro", "rich", "kornia", "torchmetrics")


@dataclass(frozen=True)
class Package:
    """An optional package.

    Attributes:
        name: as pip knows it.
        gives: what works with it.
        remedy: how to get it.
        check: Python code that fails, with a sensible last line on stderr, where it does not work.
    """

    name: str
    gives: str
    remedy: str
    check: str


OPTIONAL = (
    Package("gsplat", "fast Gaussians on a GPU", "pip install 'nfc-splat[gpu]'", "import gsplat"),
    Package(
        "tinycudann",
        "hash grids on a GPU",
        "built from source: pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch",
        "import tinycudann",
    ),
    Package(
        "open3d",
        "the built-in scene, meshes",
        "pip install 'nfc-splat[geometry]'",
        "from nfc_splat.open3d_loader import load_open3d; load_open3d()",
    ),
    Package("viser", "a viewer to come", "pip install 'nfc-splat[view]'", "import viser"),
    Package("torchvision", "LPIPS", "pip install the one that matches your torch", "import torchvision"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every finding; returns the exit code."""
    options = _parser().parse_args(arguments)
    sections = {
        "Machine": machine_findings(),
        "Installation": installation_findings(),
        "Backends": backend_findings(),
        "Optional": [*(package_finding(package) for package in OPTIONAL), _ffmpeg_finding(), *_lpips_findings()],
    }
    for title, findings in sections.items():
        _print_section(title, findings)
    if options.scene is not None:
        found = _examine(options)
        for title, findings in found.items():
            _print_section(title, findings)
        sections |= found
    return _verdict([finding for findings in sections.values() for finding in findings])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfc_splat.doctor",
        description="Show what this machine and installation can do and, given a scene, everything found and suspect "
        "in it.",
    )
    parser.add_argument("scene", nargs="?", type=Path, metavar="SCENE", help="folder of a scene to examine")
    formats = get_args(get_type_hints(DataConfig)["format"])
    parser.add_argument("--format", choices=formats, default="auto", help="what the scene is, if not to be found out")
    parser.add_argument("--downscale", type=int, default=1, metavar="N", help="examine it at this reduction")
    parser.add_argument("--allow-missing", action="store_true", help="go on if most images are missing")
    parser.add_argument("--allow-external-paths", action="store_true", help="follow paths that leave the scene")
    return parser


def machine_findings() -> list[Finding]:
    """Processor, cores, memory, GPUs."""
    import torch

    from nfc_splat.rendering.kernels.threads import available_cores

    cores, shown = available_cores(), os.cpu_count() or 1
    findings = [Finding("ok", "system", f"{platform.system()} {platform.release()} {platform.machine()}")]
    limited = "" if cores == shown else f" of {shown} (the affinity mask or a control group keeps the others)"
    findings.append(Finding("ok", "processor", f"{machine.processor()}, {cores} cores{limited}"))
    findings += [_memory_finding(), _disk_finding()]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            size = f"{device.total_memory / 2**30:.0f} GB, compute capability {device.major}.{device.minor}"
            findings.append(Finding("ok", f"GPU {index}", f"{device.name}, {size}"))
    elif shutil.which("nvidia-smi"):
        build = "is built without CUDA" if torch.version.cuda is None else f"(CUDA {torch.version.cuda}) cannot use it"
        findings.append(
            Finding("warn", "GPU", f"nvidia-smi is there, but torch {torch.__version__} {build}; see pytorch.org")
        )
    else:
        findings.append(Finding("note", "GPU", "none; everything runs on the processor"))
    return findings


def _memory_finding() -> Finding:
    limit, available = machine.memory_limit(), machine.memory_available()
    if limit is None or available is None:
        return Finding("note", "memory", "this system does not say")
    free = min(limit, available) / 2**30
    text = f"{limit / 2**30:.1f} GB, {free:.1f} GB free"
    if free < 1:
        return Finding("warn", "memory", f"{text}; training needs 1 GB and more, close other programs")
    return Finding("ok", "memory", text)


def _disk_finding() -> Finding:
    """Room for runs, which are written below the working folder unless told otherwise."""
    free = shutil.disk_usage(".").free / 2**30
    if free < 1:
        return Finding("warn", "disk", f"{free:.1f} GB free here; a run takes up to 1 GB, give --out elsewhere")
    return Finding("ok", "disk", f"{free:.0f} GB free here")


def installation_findings() -> list[Finding]:
    """Python, this package, what it requires, and where compiled kernels are kept."""
    found = sys.version_info[:2]
    level = "ok" if PYTHONS[0] <= found <= PYTHONS[1] else "warn"
    note = "" if level == "ok" else "; versions 3.11 to 3.13 are tested"
    findings = [Finding(level, "python", f"{platform.python_version()} at {sys.executable}{note}")]
    findings.append(Finding("ok", "nfc-splat", f"{__version__} at {Path(__file__).resolve().parent}"))
    missing = [name for name in REQUIRED if _installed(name) is None]
    if missing:
        findings.append(Finding("bad", "required", f"missing: {', '.join(missing)}; pip install {' '.join(missing)}"))
    present = [f"{name} {_installed(name)}" for name in REQUIRED if name not in missing]
    findings.append(Finding("ok", "required", ", ".join(present)))
    return [*findings, _kernel_cache_finding(), _threads_finding()]


def _threads_finding() -> Finding:
    """Whether the environment starves the thread pools."""
    from nfc_splat.rendering.kernels.threads import available_cores

    cores = available_cores()
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) < cores:
            return Finding("note", "threads", f"{name}={value} leaves {cores - int(value)} of {cores} cores idle")
    return Finding("ok", "threads", f"{cores}")


def _kernel_cache_finding() -> Finding:
    """Where compiled kernels are kept, and whether they can be."""
    remedy = "set NUMBA_CACHE_DIR to a folder that you may write to"
    try:
        from nfc_splat.rendering.kernels import project_cpu
    except (ImportError, RuntimeError) as error:
        return Finding("bad", "kernel cache", f"the kernels cannot be loaded ({error}); {remedy}")
    paths = [getattr(getattr(item, "stats", None), "cache_path", None) for item in vars(project_cpu).values()]
    folder = Path(next(path for path in paths if path is not None))
    kept = list(folder.glob("*.nbc"))
    size = sum(file.stat().st_size for file in kept) / 2**20
    state = f"{len(kept)} compiled kernels, {size:.1f} MB" if kept else "empty: the first run compiles for a while"
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(nearest, os.W_OK):
        return Finding("warn", "kernel cache", f"{folder} is read-only, so every run compiles again; {remedy}")
    return Finding("ok", "kernel cache", f"{folder} ({state})")


def backend_findings() -> list[Finding]:
    """Which rasteriser runs, and why each other one does not."""
    from nfc_splat.rendering.kernels.backends import available_backends

    backends = available_backends()
    chosen = next(name for name, backend in backends.items() if backend.usable and name != "reference")
    findings = []
    for name, backend in backends.items():
        if name == chosen:
            findings.append(Finding("ok", name, f"chosen: {backend.reason}"))
        elif backend.usable:
            findings.append(Finding("note", name, f"can be asked for: {backend.reason}"))
        else:
            findings.append(Finding("note", name, f"refused: {backend.reason}"))
    return findings


def package_finding(package: Package) -> Finding:
    """Whether an optional package is there and loads. It is tried in another process: a broken one may end it."""
    version = _installed(package.name)
    if version is None:
        return Finding("note", package.name, f"not installed ({package.gives}): {package.remedy}")
    try:
        result = subprocess.run([sys.executable, "-c", package.check], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return Finding("warn", package.name, f"{version} is installed but takes over two minutes to load")
    if result.returncode == 0:
        return Finding("ok", package.name, f"{version} ({package.gives})")
    lines = result.stderr.strip().splitlines() or [f"it ended with code {result.returncode}"]
    return Finding("warn", package.name, f"{version} is installed but does not load ({lines[-1]}): {package.remedy}")


def _ffmpeg_finding() -> Finding:
    """Whether MP4 videos can be written."""
    from nfc_splat.rendering.video import find_ffmpeg

    try:
        return Finding("ok", "ffmpeg", f"{find_ffmpeg()} (MP4 videos)")
    except UserError:
        return Finding("note", "ffmpeg", "none found (MP4 videos): pip install 'nfc-splat[video]'; WebP needs none")


def _lpips_findings() -> list[Finding]:
    """Which LPIPS networks could be used, where torchvision is there at all."""
    if _installed("torchvision") is None:
        return []
    from nfc_splat.eval.lpips import obstacle

    obstacles = {net: obstacle(net) for net in ("alex", "vgg")}
    return [
        Finding("ok" if reason is None else "note", f"LPIPS {net}", reason or "weights are there")
        for net, reason in obstacles.items()
    ]


def _installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _examine(options: argparse.Namespace) -> dict[str, list[Finding]]:
    """Everything found in the scene; what prevents loading it is a finding too."""
    config = DataConfig(
        format=options.format,
        downscale=options.downscale,
        allow_missing=options.allow_missing,
        allow_external_paths=options.allow_external_paths,
    )
    sections = {f"Scene {options.scene}": _format_findings(options.scene, options.format)}
    if any(finding.level == "bad" for finding in sections[f"Scene {options.scene}"]):
        return sections
    try:
        scene = load_scene(options.scene, config, undistort=True)
    except UserError as error:
        return sections | {"Loading": [Finding("bad", "error", str(error))]}
    return sections | scene_findings(scene, machine.memory_available())


def _format_findings(path: Path, asked: str) -> list[Finding]:
    """What the folder is, and why it is none of the other formats."""
    try:
        chosen, reason, rejected = detect_format(path)
    except UserError as error:
        if asked == "auto":
            return [Finding("bad", "format", str(error))]
        return [Finding("note", "format", f"--format {asked} was asked for; on its own: {error}")]
    findings = [Finding("ok", chosen, reason)]
    return findings + [Finding("note", name, f"not it: {why}") for name, why in rejected.items()]


_MARKS = {"ok": ("[green]✓[/]", "ok"), "note": ("[dim]·[/]", "note"), "warn": ("[yellow]![/]", "WARN")}
_MARKS |= {"bad": ("[bold red]✗[/]", "BAD")}


def _print_section(title: str, findings: Sequence[Finding]) -> None:
    """A titled list: coloured and wrapped in a terminal, one line per finding elsewhere."""
    if not sys.stdout.isatty():
        print(f"\n{title}")
        for finding in findings:
            print(f"  {_MARKS[finding.level][1]:<5} {finding.subject:<13} {finding.text}")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(style="bold", no_wrap=True, min_width=12)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(_MARKS[finding.level][0], escape(finding.subject), escape(finding.text))
    console = Console(highlight=False)
    console.print(f"\n[bold underline]{escape(title)}[/]")
    console.print(table)


def _verdict(findings: Sequence[Finding]) -> int:
    """The last line and the exit code."""
    bad = sum(finding.level == "bad" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    if not bad and not warned:
        print("\nNothing is wrong.")
    else:
        print(f"\n{bad} wrong (BAD), {warned} suspect (WARN).")
    return 1 if bad else 0


if __name__ == "__main__":
    run_command(main)
