"""Which views the report shows: the worst, the median and the best of every run, and of runs that were measured on the
same photographs the same views side by side."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nfc_splat.report.folder import Run, View, leading
from nfc_splat.report.pictures import Depth, Detail, Picture, RunPictures

MAX_PICTURES = 240  # of the whole report
MAX_VIEWS = 6  # of a group
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


def view_groups(runs: Sequence[Run]) -> list[Group]:
    """The views to show, with their pictures."""
    members: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        if run.photographs is not None:
            members.setdefault(run.photographs, []).append(index)
    budget = MAX_PICTURES // max(1, len(members))
    plans = [_plan(runs, indices, budget) for indices in members.values()]
    total = sum(len(names) * (1 + 3 * len(indices)) for names, indices, _ in plans)
    detail = next((detail for most, detail in DETAILS if total <= most), DETAILS[-1][1])
    return [_group(runs, *plan, detail) for plan in plans]


def _plan(runs: Sequence[Run], indices: Sequence[int], budget: int) -> tuple[list[str], list[int], list[str]]:
    """Names of the views, the runs and remarks about what is left out, for a group within its budget."""
    notes = []
    shown = list(indices)[: max(1, (budget - 1) // 3)]
    if len(shown) < len(indices):
        notes.append(f"Pictures of the first {len(shown)} of {len(indices)} runs, so that the file stays small.")
    wanted = _wanted([runs[index].views for index in shown])
    names = wanted[: max(1, min(MAX_VIEWS, budget // (1 + 3 * len(shown))))]
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
    """Every run's extremes, each once: what most runs find worst first, then the best, then the medians."""
    found = [extremes(views) for views in runs]
    names: dict[str, None] = {}
    for kind in ("only", "worst", "best", "median"):
        counts = Counter(chosen[kind] for chosen in found if kind in chosen)
        names |= dict.fromkeys(name for name, _ in counts.most_common())
    return list(names)


def _group(
    runs: Sequence[Run], names: Sequence[str], indices: Sequence[int], notes: Sequence[str], detail: Detail
) -> Group:
    pictures = {index: RunPictures(runs[index], detail) for index in indices}
    views = tuple(_shown(runs, name, pictures) for name in names)
    return Group(tuple(dict.fromkeys(runs[index].scene for index in indices)), views, tuple(notes))


def _shown(runs: Sequence[Run], name: str, pictures: dict[int, RunPictures]) -> Shown:
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
                runs[index].name,
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
