"""Which views the report shows: the worst, the median and the best of every run, and of runs that were measured on the
same photographs the same views side by side."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from nfc_splat.report.folder import Run, View, leading
from nfc_splat.report.pictures import Depth, Detail, Picture, RunPictures
from nfc_splat.report.variants import FEW

MAX_PICTURES = 240  # of the whole report
LEAST_VIEWS, MAX_VIEWS = 3, 6  # of a group, of many runs and of few; rather fewer runs than no median view
KINDS = ("worst", "median", "best")
DETAILS = ((60, Detail(800, exact=True)), (120, Detail(560)), (MAX_PICTURES, Detail(420)))  # by the number of pictures


@dataclass(frozen=True)
class Column:
    """One run's picture of a view."""

    run: int
    name: str
    tags: tuple[str, ...]
    psnr: float | None
    ssim: float | None
    identical: bool
    best: bool
    render: Picture
    error: Picture
    depth: Picture


@dataclass(frozen=True)
class Shown:
    """A view, as the runs of its group drew it. `depth_range` is near and far of the colours of depth."""

    name: str
    truth: Picture
    columns: tuple[Column, ...]
    depth_range: tuple[float, float] | None


@dataclass(frozen=True)
class Group:
    """Runs that were measured on the same photographs."""

    scenes: tuple[str, ...]
    views: tuple[Shown, ...]
    notes: tuple[str, ...]


def view_groups(runs: Sequence[Run], names: Mapping[int, str] | None = None) -> list[Group]:
    """The views to show, with their pictures: of all runs, or of those whose indices are in `names`, which says what
    they are called."""
    names = {index: run.name for index, run in enumerate(runs)} if names is None else names
    members: dict[str, list[int]] = {}
    for index in names:
        if (photographs := runs[index].photographs) is not None:
            members.setdefault(photographs, []).append(index)
    budget = MAX_PICTURES // max(1, len(members))
    plans = [_plan(runs, indices, budget) for indices in members.values()]
    total = sum(len(names) * (1 + 3 * len(indices)) for names, indices, _ in plans)
    detail = next((detail for most, detail in DETAILS if total <= most), DETAILS[-1][1])
    return [_group(runs, names, *plan, detail) for plan in plans]


def _plan(runs: Sequence[Run], indices: Sequence[int], budget: int) -> tuple[list[str], list[int], list[str]]:
    """Names of the views, the runs and remarks about what is left out, for a group within its budget."""
    notes = []
    shown = list(indices)[: max(1, (budget // LEAST_VIEWS - 1) // 3)]
    if len(shown) < len(indices):
        notes.append(f"Pictures of the first {len(shown)} of these {len(indices)}, so that the file stays small.")
    most = MAX_VIEWS if len(runs) <= FEW else LEAST_VIEWS
    wanted = _wanted([runs[index].views for index in shown])
    names = wanted[: max(1, min(most, budget // (1 + 3 * len(shown))))]
    if len(names) < len(wanted):
        notes.append(f"{len(names)} of the {len(wanted)} views that are the worst, the median or the best of a run.")
    ranks = {view.name: view.rank for view in runs[shown[0]].views}
    return sorted(names, key=lambda name: ranks.get(name, 0.0)), shown, notes


def extremes(views: Sequence[View]) -> dict[str, str]:
    """Names of the worst, the median and the best view by PSNR, by what they are; fewer when there are fewer views."""
    ordered = sorted(views, key=lambda view: view.rank)
    if len(ordered) == 1:
        return {"only": ordered[0].name}
    chosen = {"worst": ordered[0].name, "best": ordered[-1].name}
    return chosen | ({"median": ordered[(len(ordered) - 1) // 2].name} if len(ordered) > 2 else {})


def _wanted(runs: Iterable[Sequence[View]]) -> list[str]:
    """Every run's extremes, each once: first what most runs find worst, what most find the median and the best, then
    what the next most do."""
    found = [extremes(views) for views in runs]
    counts = [Counter(chosen[kind] for chosen in found if kind in chosen) for kind in ("only", *KINDS)]
    ranked = [[name for name, _ in count.most_common()] for count in counts]
    return list(dict.fromkeys(name for row in zip_longest(*ranked) for name in row if name is not None))


def _group(
    runs: Sequence[Run],
    called: Mapping[int, str],
    names: Sequence[str],
    indices: Sequence[int],
    notes: Sequence[str],
    detail: Detail,
) -> Group:
    pictures = {index: RunPictures(runs[index], detail) for index in indices}
    views = tuple(_shown(runs, called, name, pictures) for name in names)
    return Group(tuple(dict.fromkeys(runs[index].scene for index in indices)), views, tuple(notes))


def _shown(runs: Sequence[Run], called: Mapping[int, str], name: str, pictures: dict[int, RunPictures]) -> Shown:
    rows = {index: next(view for view in runs[index].views if view.name == name) for index in pictures}
    depths = {index: pictures[index].depth_of(view) for index, view in rows.items()}
    depth_range = _common_range(depths.values())
    ranks = [None if view.rank == -math.inf else view.rank for view in rows.values()]
    marks = leading(ranks, [f"{view.rank:.2f}" for view in rows.values()], max)
    columns = []
    for (index, view), best in zip(rows.items(), marks, strict=True):
        tags = tuple(kind for kind, chosen in extremes(runs[index].views).items() if chosen == name)
        drawn = pictures[index]
        columns.append(
            Column(
                index,
                called[index],
                tags,
                view.psnr,
                view.ssim,
                view.identical,
                best,
                drawn.render(view),
                drawn.error(view),
                drawn.depth(view, depths[index], depth_range),
            )
        )
    first = next(iter(rows))
    return Shown(name, pictures[first].truth(rows[first]), tuple(columns), depth_range)


def _common_range(found: Iterable[Depth | str]) -> tuple[float, float] | None:
    """The middle of the runs' near and far ends: one run with something right before the camera does not decide."""
    known = [depth.near_far for depth in found if isinstance(depth, Depth)]
    if not known:
        return None
    near, far = (sorted(values)[len(values) // 2] for values in zip(*known, strict=True))
    return (near, max(far, near * (1 + 1e-6)))
