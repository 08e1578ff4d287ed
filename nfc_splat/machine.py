"""What this machine really gives: cores, memory, devices and library versions. Standard library only.

Containers lie: `os.cpu_count()` and /proc/meminfo describe the host. The affinity mask and the control group say what
this process may use.
"""

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nfc_splat import __version__

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")

# What decides numbers and speed; recorded with every result.
RECORDED_PACKAGES = ("torch", "numpy", "numba", "pillow", "torchmetrics", "torchvision", "kornia", "gsplat", "open3d")


@dataclass(frozen=True)
class Cores:
    """How many cores this process may keep busy, and why.

    Attributes:
        given: what to use, at least 1.
        machine: cores of the host.
        affinity: cores that the affinity mask allows.
        quota: CPU time per wall time that the control group allows, or None.
    """

    given: int
    machine: int
    affinity: int
    quota: float | None


def cores(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> Cores:
    """Cores given to this process: the least of the host's, the affinity mask's and the control group's."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    quota = cpu_quota(cgroup, membership)
    given = min(machine, affinity) if quota is None else min(machine, affinity, max(1, int(quota)))
    return Cores(given, machine, affinity, quota)


def cpu_quota(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float | None:
    """CPU quota of this process's control group or a parent of it (version 1 or 2) in cores, or None."""
    quotas = []
    for folder in _folders(cgroup, membership, "cpu"):
        quotas.append(_ratio(_words(folder / "cpu.max")))
        quotas.append(_ratio(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")))
    present = [quota for quota in quotas if quota is not None]
    return min(present) if present else None


def memory_limit(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes of memory that this process may use: the least of the machine's and the control group's; None if unknown."""
    limits = [total] if (total := _meminfo("MemTotal:", meminfo)) is not None else []
    for folder in _folders(cgroup, membership, "memory"):
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
    """Processor, cores, memory and the CUDA devices that a loaded torch sees, ready for JSON."""
    torch = sys.modules.get("torch")
    gpus = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    limit = memory_limit()
    return {
        "cpu": processor(),
        "cores": cores().given,
        "memory_gb": None if limit is None else round(limit / 2**30, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


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


def _folders(cgroup: Path, membership: Path, controller: str) -> list[Path]:
    """This process's control group and its parents, where `controller` is configured."""
    folders = []
    for line in _lines(membership):
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroup / controller if controllers else cgroup
        group = root / path.strip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return folders


def _ratio(words: list[str]) -> float | None:
    """Quota over period; None when there is no quota ("max", -1) or the file is absent."""
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


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
