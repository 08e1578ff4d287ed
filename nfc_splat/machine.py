"""What this machine gives: memory, devices and library versions, as recorded with every result.

Containers lie: /proc/meminfo describes the host. The control group says what this process may use (for cores, see
`nfc_splat.rendering.kernels.threads`).
"""

import platform
from importlib import metadata
from pathlib import Path

from nfc_splat import __version__
from nfc_splat.rendering.kernels.threads import available_cores

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")

# What decides numbers and speed; recorded with every result.
RECORDED_PACKAGES = ("torch", "numpy", "numba", "pillow", "torchmetrics", "torchvision", "kornia", "gsplat", "open3d")


def memory_limit(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes that this process may use: the least of the machine's memory and the control group's, or None."""
    limits = [total] if (total := _meminfo("MemTotal:", meminfo)) is not None else []
    for folder in _memory_folders(cgroup, membership):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in _words(folder / name) if word.isdigit()]
    return min(limits) if limits else None


def memory_available(meminfo: Path = _MEMINFO) -> int | None:
    """Bytes that the system could hand out now, or None where it does not say."""
    return _meminfo("MemAvailable:", meminfo)


def versions() -> dict[str, str | None]:
    """Python's version and that of every package in `RECORDED_PACKAGES`, None where it is not installed."""
    found: dict[str, str | None] = {"nfc-splat": __version__, "python": platform.python_version()}
    return found | {name: _version(name) for name in RECORDED_PACKAGES}


def hardware() -> dict[str, object]:
    """Processor, cores, memory and CUDA devices, ready for JSON."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    limit = memory_limit()
    return {
        "cpu": processor(),
        "cores": available_cores(),
        "memory_gb": None if limit is None else round(limit / 2**30, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself; without, they are slower than float32 ones."""
    import torch

    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def processor() -> str:
    """The processor's name."""
    for row in _rows(Path("/proc/cpuinfo")):
        if row[:2] == ["model", "name"]:
            return " ".join(row[3:])
    return platform.processor() or platform.machine()


def _meminfo(key: str, path: Path) -> int | None:
    """One entry of /proc/meminfo in bytes."""
    for row in _rows(path):
        if row[:1] == [key]:
            return 1024 * int(row[1])
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory_folders(cgroup: Path, membership: Path) -> list[Path]:
    """This process's control group and its parents, where memory is limited (versions 1 and 2)."""
    folders = []
    for line in _lines(membership):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroup / controllers if controllers else cgroup
        group = root / path.strip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return folders


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    """Lines of a small system file; none where it is absent or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
