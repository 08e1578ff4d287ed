"""Numba kernel: thin a point set until no two points are within a radius, the first in order staying.

Points are sorted by the cells of a grid whose side is the radius, so that the neighbours of a point are in nine runs of
three cells. The kernel is sequential: who stays depends on who stayed before.

Symbols: N points.
"""

from nfc_splat.rendering.kernels.numba_tools import inlined, kernel


@inlined
def _first_at_least(keys, wanted):
    """The first place in sorted `keys` that holds `wanted` or more."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def thin_points(
    points,  # [N, 3] float64, sorted by cell
    keys,  # [N] int64, sorted: (x * rows + y) * columns + z of the cell, counted from 1
    order,  # [N] int64, places in `points` in the order in which they are looked at
    rows,
    columns,
    squared_radius,
    kept,  # [N] bool, all False; filled by place
):
    """A point is kept when no kept point is within the radius."""
    for turn in range(len(order)):
        i = order[turn]
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        free = True
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                middle = keys[i] + (dx * rows + dy) * columns
                j = _first_at_least(keys, middle - 1)
                while free and j < len(keys) and keys[j] <= middle + 1:
                    if kept[j]:
                        gap = (points[j, 0] - x) ** 2 + (points[j, 1] - y) ** 2 + (points[j, 2] - z) ** 2
                        free = gap > squared_radius
                    j += 1
                if not free:
                    break
            if not free:
                break
        kept[i] = free
