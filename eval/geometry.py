"""Geometry metrics between two sampled surfaces, what sampling does to them, and their means over scenes.

Symbols: N samples of the prediction, M of the truth. The distance of a sample is that to the nearest one of the other
surface, in the units of the points. Ratios are means of comparisons, so they are in [0, 1].

A metric is a pair, as in torchmetrics: `score_samples` turns one sampling into numbers, `summarize_scores` turns those
of several samplings into `GeometryMetrics`. A value that does not exist is None and has its reason in the notes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from nfc_splat.eval.surface import Samples, Surface

PERCENTILES = (50, 90, 95, 99)
Kind = Literal["length", "area", "ratio"]
Score = Mapping[str, float | None]

DEFINITIONS = {
    "accuracy": "mean distance from the prediction's samples to the nearest of the truth's",
    "completeness": "mean distance from the truth's samples to the nearest of the prediction's",
    "chamfer_l1_mean": "(accuracy + completeness) / 2",
    "chamfer_l1_sum": "accuracy + completeness",
    "chamfer_l2": "mean squared distance one way plus the other",
    "precision@t": "share of the prediction's samples nearer than t (strictly) to the truth's",
    "recall@t": "share of the truth's samples nearer than t (strictly) to the prediction's",
    "fscore@t": "2 precision recall / (precision + recall), 0 where both are 0",
    "accuracy_pN, completeness_pN": "the N-th percentile of the distances one way; _max the largest",
    "hausdorff": "the largest distance, either way",
    "normal_accuracy": "mean |cosine| between a prediction's sample's normal and that of the nearest of the truth's",
    "normal_completeness": "the same from the truth's samples",
    "normal_consistency": "(normal_accuracy + normal_completeness) / 2",
    "depth_l1": "mean difference of depth in random views (NICE-SLAM)",
    "interval_95": "half the width of the interval in which 95 % of evaluations with other seeds fall",
    "sampling_floor": "the truth against another sampling of itself",
}


def kind_of(metric: str) -> Kind:
    """Whether a metric is a length, a squared length or a ratio."""
    if metric == "chamfer_l2":
        return "area"
    ratios = ("precision@", "recall@", "fscore@", "normal_")
    return "ratio" if metric.startswith(ratios) else "length"


def score_samples(
    pred: Samples,
    gt: Samples,
    thresholds: Sequence[float],
    *,
    drop_beyond: float | None = None,
) -> dict[str, float | None]:
    """Every metric of one sampling; the names are those of `DEFINITIONS`, with the threshold after the @.

    Args:
        pred: N samples of the prediction.
        gt: M samples of the truth.
        thresholds: of precision, recall and F-score, in the units of the points.
        drop_beyond: distances of this length and more are left out of the means (DTU's rule), not cut.

    Raises:
        ValueError: no sample on a side.
    """
    from nfc_splat.rendering.neighbors import nearest_neighbors

    to_gt, of_gt = nearest_neighbors(pred.tree, gt.tree)
    to_pred, of_pred = nearest_neighbors(gt.tree, pred.tree)
    score = score_distances(to_gt, to_pred, thresholds, drop_beyond=drop_beyond)
    if pred.normals is None or gt.normals is None:
        return score | without_normals()
    ways = {
        "normal_accuracy": _agreement(pred.normals, gt.normals[of_gt]),
        "normal_completeness": _agreement(gt.normals, pred.normals[of_pred]),
    }
    return score | ways | {"normal_consistency": 0.5 * sum(ways.values())}


def nearest_distances(samples: Samples, others: Samples) -> np.ndarray:
    """[N] distance of each sample to the nearest of the others."""
    from nfc_splat.rendering.neighbors import nearest_neighbors

    return nearest_neighbors(samples.tree, others.tree)[0]


def _agreement(normals: np.ndarray, others: np.ndarray) -> float:
    """Mean |cosine| between unit vectors, at most 1 in spite of rounding."""
    return float(np.minimum(np.abs(np.einsum("nc,nc->n", normals, others)), 1.0).mean())


def score_distances(
    to_gt: np.ndarray,  # [N]
    to_pred: np.ndarray,  # [M]
    thresholds: Sequence[float],
    *,
    drop_beyond: float | None = None,
) -> dict[str, float | None]:
    """The metrics that need distances alone. Raises ValueError when a side has none."""
    if len(to_gt) == 0 or len(to_pred) == 0:
        raise ValueError("no sample on a side: the metrics do not exist")
    score: dict[str, float | None] = {}
    near_gt, near_pred = to_gt, to_pred
    if drop_beyond is not None:
        near_gt, near_pred = to_gt[to_gt < drop_beyond], to_pred[to_pred < drop_beyond]
    accuracy, completeness = _mean(near_gt), _mean(near_pred)
    both = accuracy is not None and completeness is not None
    score["accuracy"], score["completeness"] = accuracy, completeness
    score["chamfer_l1_mean"] = 0.5 * (accuracy + completeness) if both else None
    score["chamfer_l1_sum"] = accuracy + completeness if both else None
    score["chamfer_l2"] = _mean(near_gt**2) + _mean(near_pred**2) if both else None
    for threshold in thresholds:
        precision, recall = float((to_gt < threshold).mean()), float((to_pred < threshold).mean())
        score[f"precision@{threshold:g}"] = precision
        score[f"recall@{threshold:g}"] = recall
        score[f"fscore@{threshold:g}"] = harmonic_mean(precision, recall)
    for name, distances in (("accuracy", to_gt), ("completeness", to_pred)):
        for percentile, value in zip(PERCENTILES, np.percentile(distances, PERCENTILES), strict=True):
            score[f"{name}_p{percentile}"] = float(value)
        score[f"{name}_max"] = float(distances.max())
    score["hausdorff"] = max(score["accuracy_max"], score["completeness_max"])
    return score


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def harmonic_mean(precision: float, recall: float) -> float:
    """The F-score, in [0, 1]; 0 where both are 0."""
    return min(1.0, 2.0 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0


def without_normals() -> dict[str, None]:
    """The metrics of normals, for surfaces that have none."""
    return dict.fromkeys(("normal_accuracy", "normal_completeness", "normal_consistency"))


def empty_score(thresholds: Sequence[float]) -> dict[str, float | None]:
    """What can be said of a prediction without surface: no distance exists, and nothing of the truth is covered."""
    names = score_distances(np.ones(1), np.ones(1), thresholds) | without_normals()
    zero = ("precision@", "recall@", "fscore@")
    return {name: 0.0 if name.startswith(zero) else None for name in names}


# ------------------------------------------------------------------------------------------------ several samplings


@dataclass(frozen=True)
class GeometryMetrics:
    """The metrics of a prediction under a protocol.

    Attributes:
        values: mean over the samplings, by the names of `score_samples`.
        interval: half the width of the 95 % interval around `values` in which another evaluation, with other seeds and
            as many samplings, is expected; None where nothing was sampled twice.
        floor: what a perfect prediction gets, the truth against another sampling of itself; None where the truth is not
            sampled.
        thresholds: of precision, recall and F-score.
        protocol: everything that was done, ready for JSON.
        notes: why values are None, and what is odd about the input.
    """

    values: Score
    interval: Score
    floor: Score
    thresholds: tuple[float, ...]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, metric: str) -> float | None:
        return self.values[metric]

    @property
    def accuracy(self) -> float | None:
        return self.values["accuracy"]

    @property
    def completeness(self) -> float | None:
        return self.values["completeness"]

    @property
    def chamfer_l1(self) -> float | None:
        """The mean of accuracy and completeness, as NFC, MonoSDF and ConvONet print it."""
        return self.values["chamfer_l1_mean"]

    @property
    def fscore(self) -> float:
        """At the first threshold."""
        return self.values[f"fscore@{self.thresholds[0]:g}"]

    @property
    def normal_consistency(self) -> float | None:
        return self.values["normal_consistency"]

    def record(self) -> dict[str, Any]:
        """The content of the metric file."""
        blocks = {"metrics": self.values, "interval_95": self.interval, "sampling_floor": self.floor}
        return {
            **{name: dict(block) for name, block in blocks.items()},
            "definitions": DEFINITIONS,
            "notes": list(self.notes),
            "protocol": dict(self.protocol),
        }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics with the surfaces and the first samples that they were measured on; None for what does not exist."""

    metrics: GeometryMetrics
    pred: Surface
    gt: Surface
    pred_samples: Samples | None
    gt_samples: Samples | None


def summarize_scores(
    scores: Sequence[Score],
    thresholds: Sequence[float],
    *,
    floor: Score | None = None,
    protocol: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> GeometryMetrics:
    """Means and intervals of the scores of several samplings, at least one, of the same two surfaces."""
    values: dict[str, float | None] = {}
    interval: dict[str, float | None] = {}
    for name in scores[0]:
        column = [score[name] for score in scores]
        known = [value for value in column if value is not None]
        values[name] = sum(known) / len(known) if len(known) == len(column) else None
        interval[name] = _half_width(known) if len(known) == len(column) and len(column) > 1 else None
    floor = dict.fromkeys(values) if floor is None else dict(floor)
    return GeometryMetrics(values, interval, floor, tuple(thresholds), protocol or {}, tuple(notes))


def _half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval for the difference between the mean of `values` and that of as many new ones."""
    count = len(values)
    return student_quantile(count - 1) * float(np.std(values, ddof=1)) * math.sqrt(2 / count)


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; Abramowitz and Stegun 26.7.5 beyond the first few."""
    exact = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
    z, n = 1.959964, float(freedom)
    return exact.get(freedom) or z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


# ------------------------------------------------------------------------------------------------ several scenes


def mean_over_scenes(scenes: Mapping[str, GeometryMetrics]) -> dict[str, Any]:
    """Plain means and medians over scenes of each metric, the F-score included (never the F of mean P and R).

    A scene whose prediction vanished counts with its zeros; a distance that does not exist is left out and counted.

    Returns:
        `mean`, `median` and `missing` (how many scenes have no value), each by metric, and `scenes`.

    Raises:
        ValueError: no scene, or scenes with other metrics.
    """
    if not scenes:
        raise ValueError("no scene to average")
    if len({frozenset(metrics.values) for metrics in scenes.values()}) > 1:  # which name the thresholds
        raise ValueError("the scenes were measured with other thresholds or protocols and cannot be averaged")
    means, medians, missing = {}, {}, {}
    for name in next(iter(scenes.values())).values:
        known = [metrics[name] for metrics in scenes.values() if metrics[name] is not None]
        means[name] = sum(known) / len(known) if known else None
        medians[name] = float(np.median(known)) if known else None
        missing[name] = len(scenes) - len(known)
    return {"mean": means, "median": medians, "missing": missing, "scenes": list(scenes)}


class GeometrySweep:
    """Collects the metrics of scenes and averages them as published tables do, in the manner of torchmetrics."""

    def __init__(self):
        self.scenes: dict[str, GeometryMetrics] = {}

    def update(self, scene: str, metrics: GeometryMetrics) -> None:
        """Add or replace a scene."""
        self.scenes[scene] = metrics

    def compute(self) -> dict[str, Any]:
        """See `mean_over_scenes`."""
        return mean_over_scenes(self.scenes)

    def reset(self) -> None:
        self.scenes.clear()
