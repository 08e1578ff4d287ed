"""Keeping the memory that a training step frees for the next step."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LIMIT, OLD_LIMIT = 2**30, 2**25  # before 2.35 glibc refused a larger threshold than 32 MiB


def keep_freed_memory() -> bool:
    """Ask the C library to reuse large blocks instead of returning them to the system.

    A step allocates the same tens of megabytes as the one before. glibc gives such blocks back at once, and the system
    hands out fresh ones page by page, each cleared first: a sixth of a small training step. The process keeps its peak
    memory until it ends.

    Returns:
        Whether the C library took it; False where it is not glibc, which changes nothing else.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    kept = mallopt(M_MMAP_THRESHOLD, LIMIT) or mallopt(M_MMAP_THRESHOLD, OLD_LIMIT)
    return bool(mallopt(M_TRIM_THRESHOLD, LIMIT) and kept)
