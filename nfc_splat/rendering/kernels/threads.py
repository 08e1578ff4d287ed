"""How many threads the numeric pools (torch's and numba's) may use, decided in one place.

Two pools that each take every core slow each other down, so both get the same number and run one at a time.
"""

import sys

from nfc_splat.machine import cores

_chosen: int | None = None


def available_cores() -> int:
    """Cores this process may really use: the affinity mask, cut by the CPU quota of its control groups. At least 1."""
    return cores().given


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

    The threading layer is numba's own work queue unless NUMBA_THREADING_LAYER says otherwise: it is in every wheel,
    whereas the default asks for TBB, which open3d replaces by an older one, and then for an OpenMP that a bare machine
    lacks. It takes effect if no parallel kernel has run yet.
    """
    import numba

    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "workqueue"
    count = min(_chosen or available_cores(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    return count
