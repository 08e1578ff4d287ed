"""Where Strivec's tensors are placed, how large they will be, and what to do about too many.

Symbols: P points, N tensors of a scale.
"""

import logging
import math
from collections.abc import Sequence

from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.fields.strivec_config import Config
from nfc_splat.fields.strivec_tensors import parameter_count, place_tensors
from nfc_splat.rendering.tensor_cells import MOST_TENSORS, lattice_size

BYTES_PER_NUMBER = 16  # itself, its gradient, and the optimiser's two moments
BYTES_PER_CELL = 25  # while empty ones are found: its row, its opacity, what is the largest about it, and marks

log = logging.getLogger("nfc_splat")


def placed_centers(config: Config, points: Tensor, unit: float, opacities: Tensor | None = None) -> list[Tensor]:
    """[N, 3] centres about the points, for each scale; says how large the tensors will be.

    Args:
        config: of the model.
        points: [P, 3] of the region, in world units. unit: world length of the unit.
        opacities: [P] those of the coarse stage, where it found the points.

    Raises:
        UserError: more numbers than `max_parameters` allows, or more tensors than can be numbered; names the
            `geometry_threshold` that would do, where there is one.
    """
    centers = [place_tensors(points, spacing * unit) for spacing in config.spacings]
    counts = [len(center) for center in centers]
    first, last = numbers_of(config, counts, 0), numbers_of(config, counts, len(config.grow_at))
    text, megabytes = " + ".join(f"{count:,}" for count in counts), last * BYTES_PER_NUMBER / 2**20
    size = f"{first:,} numbers, after the last growth {last:,} ({megabytes:,.0f} MB in training)"
    log.info("tensors: %s, %s", text, size)
    if not _fits(config, counts):
        raise UserError(
            f"{text} tensors would have {last:,} numbers after the last growth, {megabytes:,.0f} MB in training; "
            f"expected at most {config.max_parameters:,} (--max-parameters) and {MOST_TENSORS:,} tensors a scale: "
            + ("give fewer points, or --spacings" if opacities is None else _remedy(config, points, unit, opacities))
        )
    return centers


def check_cells(config: Config, box: Tensor, unit: float) -> None:
    """Say how large the lattice of cells over a box [2, 3] is and, if no mask shrinks it, how large it becomes.

    Raises:
        UserError: more cells than memory is meant for, to begin with.
    """
    before, after = config.cells_at(0)[0], config.cells_at(len(config.grow_at))[0]
    first = math.prod(lattice_size(box, 2 * config.halves[0] * unit / before))
    last = round(first * (after / before) ** 3)
    megabytes = last * BYTES_PER_CELL / 2**20
    log.info("cells: %s, after the last growth at most %s (%s MB)", f"{first:,}", f"{last:,}", f"{megabytes:,.0f}")


def numbers_of(config: Config, counts: Sequence[int], growth: int) -> int:
    """How many numbers `counts` tensors of each scale have after that many growths."""
    ranks = [rank + config.appearance_rank for rank in config.density_ranks]
    return sum(parameter_count(*scale) for scale in zip(counts, config.cells_at(growth), ranks, strict=True))


def fitting_threshold(config: Config, points: Tensor, unit: float, opacities: Tensor) -> float | None:
    """The lowest `geometry_threshold` of two digits whose tensors are few enough, found by bisection; None where not
    even the most opaque points [P, 3] are."""

    def fits(digits: int) -> bool:
        chosen = points[opacities > _two_digits(digits)]
        return _fits(config, [len(place_tensors(chosen, spacing * unit)) for spacing in config.spacings])

    low, high = _index(config.geometry_threshold), _index(float(opacities.max())) - 1
    if high <= low or not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return _two_digits(high)


def _fits(config: Config, counts: Sequence[int]) -> bool:
    return numbers_of(config, counts, len(config.grow_at)) <= config.max_parameters and max(counts) <= MOST_TENSORS


def _remedy(config: Config, points: Tensor, unit: float, opacities: Tensor) -> str:
    """What to do about too many tensors at what a coarse stage found."""
    threshold = fitting_threshold(config, points, unit, opacities)
    if threshold is None:
        advice = (
            f"no higher --geometry-threshold than {config.geometry_threshold:g} leaves few enough; raise --spacings"
        )
    else:
        left = 100 * float((opacities > threshold).float().mean())
        advice = (
            f"few images leave thick geometry; --geometry-threshold {threshold:g} (now {config.geometry_threshold:g}) "
            f"fits and keeps {left:.2g} % of it, or raise --spacings"
        )
    return f"{advice}, and start again with --overwrite: the coarse stage is trained anew"


def _two_digits(index: int) -> float:
    """The numbers 1.0, 1.1 ... 9.9, 10, 11 ... and below: 0 is 1, -1 is 0.99, 90 is 10."""
    exponent, mantissa = divmod(index, 90)
    return float(f"{mantissa + 10}e{exponent - 1}")


def _index(value: float) -> int:
    """Of the largest number of two digits up to `value` above 0."""
    if value <= 0:
        return _index(1e-12)
    exponent = math.floor(math.log10(value))
    index = 90 * exponent + math.floor(value / 10.0 ** (exponent - 1)) - 10
    return next(i for i in (index + 1, index, index - 1, index - 2) if _two_digits(i) <= value)
