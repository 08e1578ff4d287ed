"""Whether a difference between two ways to train is more than chance: Student's paired t-test."""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9  # of the values: differences that spread less than that are equal


@dataclass(frozen=True)
class Difference:
    """What one variant has more than another, trained with the same seeds on the same scenes.

    Attributes:
        mean: of the differences.
        count: how many pairs.
        deviation: their standard deviation; None of fewer than two.
        p: how probable so large a mean (in either direction) is if the true one is 0 and differences are normal; None
            of fewer than two, or when all of them are equal.
    """

    mean: float
    count: int
    deviation: float | None
    p: float | None


def paired(values: Sequence[float], others: Sequence[float]) -> Difference:
    """The difference `values` - `others`, pair by pair. Pairs must be independent of each other."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Difference(mean, count, None, None)
    deviation = statistics.stdev(differences)
    if deviation <= ROUNDING * max(map(abs, (*values, *others))):
        return Difference(mean, count, 0.0, None)
    return Difference(mean, count, deviation, two_sided_p(mean / deviation * math.sqrt(count), count - 1))


def two_sided_p(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's t with `freedom` >= 1 degrees of freedom.

    With x = atan(T / sqrt(freedom)) the density is proportional to cos(x)^(freedom - 1), which Gauss's rule integrates
    to rounding for any number of seeds that somebody trains.
    """
    nodes, weights = _gauss()

    def area(low: float, high: float) -> float:
        x = low + (high - low) * (nodes + 1) / 2
        return float((high - low) / 2 * (weights * np.cos(x) ** (freedom - 1)).sum())

    return area(math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2) / area(0.0, math.pi / 2)


@functools.cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(100)
