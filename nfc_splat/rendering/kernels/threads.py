"""How many threads the numeric pools (torch's and numba's) may use, decided in one place.

A container may show 64 processors and be given two of them: the affinity mask and the control group's quota both
count. Two pools that each take every core slow each other down, so both get the same number and run one at a time.
"""

import os
import sys
from pathlib import Path

_chosen: int | None = None


def available_cores(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may really use, at least 1: the affinity mask, cut by the CPU quota of its control groups.

    Args:
        groups: the list of this process's control groups (Linux); absent elsewhere.
        mount: where control groups are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _quota_folders(groups, mount) if (quota := _quota(folder)) is not None]
    return max(1, int(min([cores, *quotas])))


def set_threads(count: int | None = None) -> int:
    """Give torch's pool, and numba's once it is used, `count` threads.

    Args:
        count: None for every available core. More than that is cut down to it.

    Returns:
        The number in force.
    """
    import torch

    global _chosen
    _chosen = min(count or available_cores(), available_cores())
    torch.set_num_threads(_chosen)
    if "numba" in sys.modules:
        numba_threads()
    return _chosen


def numba_threads() -> int:
    """Give numba's pool the chosen number of threads and return it; call it before launching a parallel kernel.

    The threading layer is OpenMP unless NUMBA_THREADING_LAYER says otherwise, and numba's own work queue where there is
    no OpenMP. torch's wheels bring that library, and as torch is loaded first the two share one pool: with the work
    queue, torch's threads spin on the cores that numba's want, and a second core gains almost nothing. TBB, numba's
    first choice, is left out because open3d replaces it by an older one that numba refuses.
    """
    import numba
    import torch  # before numba looks for OpenMP

    global _chosen
    if _chosen is None:
        _chosen = available_cores()  # reads a dozen files: once, not before every launch
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]
    count, torch_count = min(_chosen, numba.config.NUMBA_NUM_THREADS), torch.get_num_threads()
    numba.set_num_threads(count)
    # numba's first launch gives the shared pool as many threads as there are cores.
    if torch.get_num_threads() != torch_count:
        torch.set_num_threads(torch_count)
    return count


def _quota_folders(groups: Path, mount: Path) -> list[Path]:
    """Folders whose CPU quota binds this process: its own groups and all their parents, versions 1 and 2."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside a container the listed path may not exist below the mount; the root then is the container's group.
        relative = Path(path.lstrip("/"))
        for root in [mount / name for name in (controllers, "cpu")] if controllers else [mount, mount / "unified"]:
            folders += [root / part for part in (relative, *relative.parents)]
    return folders


def _quota(folder: Path) -> float | None:
    """Cores allowed by the quota in `folder`, or None when there is none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max", no such file, or not readable: no limit that we can know of
