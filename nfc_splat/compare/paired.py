"""Whether a difference between two ways to train is more than chance: Student's paired t-test over seeds and scenes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """What one variant has more than another, trained with the same seeds on the same scenes.

    Attributes:
        mean: of the differences.
        deviation: their standard deviation; None of fewer than two.
        p: how probable so large a mean (in either direction) is if the true one is 0 and differences are normal; None
            of fewer than two, or when all of them are equal.
    """

    mean: float
    deviation: float | None
    p: float | None


def paired(values: Sequence[float], others: Sequence[float]) -> Difference:
    """The difference `values` - `others`, pair by pair."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Difference(mean, None, None)
    deviation = statistics.stdev(differences)
    if deviation == 0:
        return Difference(mean, deviation, None)
    return Difference(
        mean, deviation, two_sided_p(mean / deviation * math.sqrt(len(differences)), len(differences) - 1)
    )


def two_sided_p(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's t with `freedom` >= 1 degrees of freedom.

    With x = atan(T / sqrt(freedom)) the density is proportional to cos(x)^(freedom - 1), which Gauss's rule integrates
    to rounding for any number of seeds that somebody trains.
    """
    nodes, weights = np.polynomial.legendre.leggauss(100)

    def area(low: float, high: float) -> float:
        x = low + (high - low) * (nodes + 1) / 2
        return float((high - low) / 2 * (weights * np.cos(x) ** (freedom - 1)).sum())

    return area(math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2) / area(0.0, math.pi / 2)
