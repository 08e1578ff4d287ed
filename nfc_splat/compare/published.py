"""What NFC printed of its own experiments (arXiv 2403.01058), to stand beside ours. Lengths are in metres, times in
seconds.

Their runs had another budget, mostly larger images, one seed, and hardware that is not ours.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfc_splat.compare.experiments import CLASSIFICATION, CLASSIFICATION_ALONE, REGRESSION

ADVANCED = ("auditorium", "ballroom", "courtroom", "museum")
ROOMS = ("room0", "room1", "room2", "office0", "office1", "office2", "office3", "office4")


@dataclass(frozen=True)
class Row:
    """A printed row.

    Attributes:
        method: the value of `--method` that it is about.
        variant: label of the variant.
        metrics: by the columns' names.
        source: what it is of.
    """

    method: str
    variant: str
    metrics: Mapping[str, float]
    source: str


def name_of(folder: Path) -> str:
    """The name by which the paper's scenes are known here: the folder's own, but scan1 to scan8 of Replica, as MonoSDF
    and SDFStudio number them, are its rooms."""
    folder = folder.resolve()
    scan = re.fullmatch("scan([1-8])", folder.name.lower())
    return ROOMS[int(scan[1]) - 1] if scan and "replica" in folder.parent.name.lower() else folder.name


def published(experiment: str, scene: str) -> list[Row]:
    """What the paper has of a scene, none where it is not one of its scenes.

    Args:
        experiment: its name.
        scene: as `name_of` has it: a room of Replica, or a name with `truck`, `chair`, `lego` or `hook` as a word.
    """
    scene = scene.lower()
    words = set(re.split("[^a-z0-9]+", scene))
    if scene in ROOMS:
        return _replica(experiment, ROOMS.index(scene) + 1)
    if experiment == "static" and scene in ADVANCED:
        source = "means over four scenes of Tanks and Temples Advanced, Table 2"
        return [row for method, rows in TANKS.items() for row in _pair(method, rows, source)]
    if experiment in ("sparse", "noise") and "truck" in words:
        return _lines("dvgo", TRUCK[experiment], "Truck of Tanks and Temples")
    if experiment == "dynamic" and len(known := words & DNERF.keys()) == 1:
        (name,) = known
        return _pair("dnerf", DNERF[name], f"{name}, Table 3")
    if experiment == "few-views" and "chair" in words:
        where = "the Chair of NeRF synthetic at 800x800, from a number of views that the paper does not state"
        return _pair("strivec", CHAIR, where)
    return []


def _replica(experiment: str, number: int) -> list[Row]:
    """What there is of a scene of Replica, by its number from 1 on."""
    if experiment == "cost":
        return _cost(number)
    table = {label: DVGO_REPLICA[label][number - 1] for label in TRAINED.get(experiment, ())}
    rows = [Row("dvgo", label, _images(row), f"scene {number} of Replica, Table 13") for label, row in table.items()]
    if experiment in ("static", "surface"):
        rows += [Row("neus", label, metrics, NEUS_SOURCE) for label, metrics in NEUS_REPLICA.items()]
    return rows


def _images(row: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("psnr", "ssim", "lpips"), row, strict=True))


def _pair(method: str, rows: tuple[Any, Any], source: str) -> list[Row]:
    return [Row(method, label, _images(row), source) for label, row in zip(_BOTH, rows, strict=True)]


def _lines(method: str, rows: Mapping[str, tuple[Any, Any]], source: str) -> list[Row]:
    return [
        Row(method, f"{stem}, {row.variant}", row.metrics, source)
        for stem, pair in rows.items()
        for row in _pair(method, pair, source)
    ]


def published_mean(experiment: str, scenes: Sequence[str]) -> list[Row]:
    """The rows that go with a table of means: the mean of what the paper has of these scenes, none if it lacks one."""
    found = [{(row.method, row.variant): row for row in published(experiment, scene)} for scene in scenes]
    keys = [key for key in found[0] if all(key in rows for rows in found)] if found else []
    rows = []
    for key in keys:
        sources = {rows[key].source for rows in found}
        if len(sources) > 1 and any(source.startswith("means") for source in sources):
            continue  # a scene's row and a row that is a mean already have no mean
        metrics = [rows[key].metrics for rows in found]
        means = {name: statistics.fmean(one[name] for one in metrics) for name in metrics[0]}
        source = sources.pop() if len(sources) == 1 else f"means of the same {len(scenes)} scenes"
        rows.append(Row(*key, means, source))
    return rows


def _cost(number: int) -> list[Row]:
    """Training and drawing, by number of the scene of Replica."""
    return [
        Row(method, label, {"train_seconds": train, "render_seconds": draw}, f"scene {number} of Replica, on a GPU")
        for method, seconds in COSTS.get(number, {}).items()
        for label, train, draw in zip(_ALL, *seconds, strict=True)
    ]


_BOTH = (REGRESSION.label, CLASSIFICATION.label)
_ALL = (REGRESSION.label, CLASSIFICATION_ALONE.label, CLASSIFICATION.label)
# Experiments that Table 13 goes with, and what they have of it.
TRAINED = {"static": _BOTH, "ablation": _ALL, "controls": _BOTH, "encodings": _ALL, "cost": _ALL}
COSTS = {
    6: {"dvgo": ((559.8, 585.6, 595.8), (0.312, 0.312, 0.328))},
    7: {"neus": ((10_224.0, 10_512.0, 10_728.0), (10.27, 10.27, 10.83))},
}
TANKS = {
    "dvgo": ((22.41, 0.776, 0.236), (23.18, 0.810, 0.178)),
    "nerf": ((22.16, 0.679, 0.382), (22.68, 0.717, 0.315)),
    "neus": ((19.97, 0.620, 0.413), (21.67, 0.679, 0.317)),
}
DVGO_REPLICA = {
    REGRESSION.label: (
        (13.03, 0.508, 0.726),
        (14.81, 0.654, 0.640),
        (15.66, 0.661, 0.634),
        (18.17, 0.696, 0.546),
        (15.17, 0.640, 0.504),
        (21.33, 0.854, 0.254),
        (22.54, 0.865, 0.231),
        (15.89, 0.724, 0.519),
    ),
    CLASSIFICATION_ALONE.label: (
        (32.52, 0.929, 0.0718),
        (33.92, 0.951, 0.0615),
        (28.69, 0.954, 0.0715),
        (37.35, 0.976, 0.0329),
        (35.86, 0.970, 0.0595),
        (27.99, 0.935, 0.110),
        (27.66, 0.903, 0.153),
        (36.11, 0.967, 0.0638),
    ),
    CLASSIFICATION.label: (
        (34.63, 0.934, 0.0582),
        (33.82, 0.942, 0.0660),
        (34.04, 0.965, 0.0451),
        (36.52, 0.977, 0.0311),
        (35.93, 0.974, 0.0576),
        (29.75, 0.941, 0.0994),
        (34.77, 0.966, 0.0432),
        (33.40, 0.952, 0.0775),
    ),
}
TRUCK = {
    "sparse": {
        "share 0.2": ((14.87, 0.530, 0.580), (19.38, 0.629, 0.395)),
        "share 0.4": ((18.76, 0.637, 0.426), (21.73, 0.711, 0.340)),
        "share 0.6": ((21.02, 0.682, 0.394), (22.27, 0.728, 0.329)),
        "share 0.8": ((21.72, 0.698, 0.386), (22.46, 0.734, 0.322)),
    },
    "noise": {
        "noise 0.2": ((21.97, 0.694, 0.406), (22.33, 0.719, 0.353)),
        "noise 0.4": ((21.33, 0.663, 0.451), (22.08, 0.692, 0.391)),
        "noise 0.6": ((19.67, 0.615, 0.512), (21.45, 0.662, 0.429)),
    },
}
DNERF = {
    "lego": ((21.64, 0.839, 0.165), (23.11, 0.886, 0.121)),
    "hook": ((29.25, 0.965, 0.118), (29.45, 0.967, 0.0392)),
}
NEUS_SOURCE = "means over eight scenes of Replica, Table 6"
CHAIR = ((28.53, 0.944, 0.0672), (32.10, 0.969, 0.0217))
NEUS_REPLICA = {
    REGRESSION.label: {
        "psnr": 29.38,
        "ssim": 0.873,
        "lpips": 0.145,
        "accuracy": 0.1721,
        "completeness": 0.4326,
        "chamfer_l1_mean": 0.3024,
        "precision": 0.2370,
        "recall": 0.1191,
        "fscore": 0.1487,
        "normal_consistency": 0.6962,
    },
    CLASSIFICATION.label: {
        "psnr": 33.68,
        "ssim": 0.908,
        "lpips": 0.0848,
        "accuracy": 0.07420,
        "completeness": 0.07957,
        "chamfer_l1_mean": 0.07689,
        "precision": 0.5643,
        "recall": 0.5480,
        "fscore": 0.5556,
        "normal_consistency": 0.7691,
    },
}
