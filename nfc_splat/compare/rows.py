"""The numbers of a table's rows: means over what was repeated, and differences between rows with a test.

What is repeated and independent is a unit: a scene where there are several of them, its value the mean over its seeds
(seeds of one scene resemble each other more than scenes do); else a seed.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfc_splat.compare.experiments import Experiment
from nfc_splat.compare.measured import IMAGES
from nfc_splat.compare.paired import Difference, paired
from nfc_splat.compare.plan import Case

Numbers = Mapping[str, Mapping[str, Any] | None]  # what was measured, by a case's name
Runs = Mapping[tuple[str, int], Mapping[str, Any]]  # the same of one row, by scene and seed


@dataclass(frozen=True)
class Mean:
    """The mean over units, and their standard deviation, None of a single one."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Result:
    """A row.

    Attributes:
        method, variant: what it is of.
        finished, planned: numbers of runs.
        means: by metric; None where a run has no number.
        beside: the variant that it is compared with, None for none.
        differences: by image metric, what it has more than `beside`.
        rival: by image metric, what the experiment's rival has more than it.
    """

    method: str
    variant: str
    finished: int
    planned: int
    means: Mapping[str, Mean | None]
    beside: str | None
    differences: Mapping[str, Difference]
    rival: Mapping[str, Difference]


def results_of(experiment: Experiment, cases: Sequence[Case], numbers: Numbers, metrics: Sequence[str]) -> list[Result]:
    """One result per method and variant, in the order of the cases."""
    found, common = _by_row(cases, numbers), in_common(cases, numbers)
    runs = {key: {unit: run for unit, run in row.items() if unit in common} for key, row in found.items()}
    planned = Counter((case.method, case.variant) for case in cases)
    several = len({case.scene for case in cases}) > 1
    beside = {variant.label: variant.beside for variant in experiment.variants}
    first: dict[str, str] = {}
    results = []
    for method, variant in found:
        reference = beside.get(variant) or first.setdefault(method, variant)
        mine, rival = runs[method, variant], runs.get((method, experiment.rival), {})
        others = {} if reference == variant else runs.get((method, reference), {})
        results.append(
            Result(
                method,
                variant,
                finished=len(found[method, variant]),
                planned=planned[method, variant],
                means={name: _mean(_values(mine, name, several)) for name in metrics},
                beside=None if reference == variant else reference,
                differences=_differences(mine, others, several),
                rival={} if variant == experiment.rival else _differences(rival, mine, several),
            )
        )
    return results


def in_common(cases: Sequence[Case], numbers: Numbers) -> set[tuple[str, int]]:
    """The scenes and seeds that all rows have of which anything is there. Means and differences are over these, so that
    a difference is that of the means beside it."""
    keys = [set(row) for row in _by_row(cases, numbers).values() if row]
    return set.intersection(*keys) if keys else set()


def _by_row(cases: Sequence[Case], numbers: Numbers) -> dict[tuple[str, str], Runs]:
    """What was measured, by method and variant."""
    rows: dict[tuple[str, str], dict[tuple[str, int], Mapping[str, Any]]] = {}
    for case in cases:
        row = rows.setdefault((case.method, case.variant), {})
        if numbers[case.name]:
            row[case.scene, case.seed] = numbers[case.name]
    return rows


def _values(runs: Runs, name: str, by_scene: bool) -> list[float] | None:
    """A metric's value of each unit, a scene or a seed; None where a run has none."""
    found = {key: run.get(name) for key, run in runs.items()}
    if not found or any(value is None for value in found.values()):
        return None
    if not by_scene:
        return list(found.values())
    scenes: dict[str, list[float]] = {}
    for (scene, _), value in found.items():
        scenes.setdefault(scene, []).append(value)
    return [statistics.fmean(values) for values in scenes.values()]


def _mean(values: Sequence[float] | None) -> Mean | None:
    if values is None:
        return None
    return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _differences(mine: Runs, others: Runs, by_scene: bool) -> dict[str, Difference]:
    """By metric, unit by unit."""
    keys = [key for key in mine if key in others]
    differences = {}
    for name in IMAGES:
        values = [_values({key: runs[key] for key in keys}, name, by_scene) for runs in (mine, others)]
        if None not in values:
            differences[name] = paired(*values)
    return differences
