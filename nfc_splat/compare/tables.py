"""Tables of results: a row is a method and a variant, its cells are means over seeds or scenes, with the standard
deviation where there are several values. Printed, and as LaTeX."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from nfc_splat.compare.experiments import Experiment
from nfc_splat.compare.measured import COSTS, DRAWING, IMAGES, LENGTHS, RATIOS
from nfc_splat.compare.paired import Difference
from nfc_splat.compare.plan import Case
from nfc_splat.compare.published import Row, name_of, published, published_mean
from nfc_splat.compare.rows import Mean, Numbers, Result, in_common, results_of
from nfc_splat.terminal import print_table

HEADINGS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "accuracy": "Acc",
    "completeness": "Comp",
    "chamfer_l1_mean": "Chamfer-L1",
    "precision": "Prec",
    "recall": "Recall",
    "fscore": "F-score",
    "normal_consistency": "NC",
    "primitives": "primitives",
    "train_seconds": "train s",
    "peak_memory_mb": "MB",
    "peak_gpu_memory_mb": "GPU MB",
    "render_seconds": "s / view",
}
DIGITS = {
    "psnr": 2,
    "ssim": 3,
    "lpips": 3,
    "primitives": 0,
    "train_seconds": 0,
    "peak_memory_mb": 0,
    "peak_gpu_memory_mb": 0,
    "render_seconds": 3,
}

CONTRASTS = ("dPSNR", "p", "dPSNR of NFC", "p of NFC")
TEX = {"±": r"$\pm$", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": "$<$", ">": "$>$", "|": "$|$"}


@dataclass
class Table:
    """A table for people.

    Attributes:
        title: one line.
        rows: cells; the first row is the heading, the first two columns are method and variant.
        notes: what the marks and columns mean.
        results: the numbers of the rows, without the paper's.
    """

    title: str
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def print(self) -> None:
        print(f"\n{self.title}")
        print_table(self.rows, numbers=tuple(range(2, len(self.rows[0]))))
        for note in self.notes:
            print(f"  {note}")

    def latex(self) -> str:
        """A table in the style of the paper, without packages."""
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in self.rows]
        lines.insert(1, r"\hline")
        body = "\n".join(lines)
        caption = ". ".join(map(_latex, (self.title, *self.notes)))
        columns = "ll" + "r" * (len(self.rows[0]) - 2)
        tabular = f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}"
        return f"\\begin{{table}}\n\\caption{{{caption}}}\n{tabular}\n\\end{{table}}\n"


def scene_table(experiment: Experiment, scene: str, cases: Sequence[Case], numbers: Numbers) -> Table:
    """One scene's table, with what the paper printed of it."""
    title = f"{scene}: {experiment.summary}"
    return _table(title, experiment, cases, numbers, published(experiment.name, name_of(cases[0].source.folder)))


def mean_table(experiment: Experiment, cases: Sequence[Case], numbers: Numbers) -> Table:
    """The table of all scenes together, beside the mean of what the paper printed of the same ones: those that all rows
    have."""
    common = {scene for scene, _ in in_common(cases, numbers)}
    names = {case.scene: name_of(case.source.folder) for case in cases}
    known = [name for scene, name in names.items() if scene in common]
    count = f"{len(known)} of {len(names)}" if len(known) < len(names) else f"{len(names)}"
    title = f"mean of {count} scenes: {experiment.summary}"
    return _table(title, experiment, cases, numbers, published_mean(experiment.name, known))


def _table(
    title: str, experiment: Experiment, cases: Sequence[Case], numbers: Numbers, printed: Sequence[Row]
) -> Table:
    columns = _columns(experiment, [numbers[case.name] for case in cases])
    results = results_of(experiment, cases, numbers, columns)
    methods = {result.method for result in results}
    printed = [row for row in printed if row.method in methods]
    if _protocols(cases, numbers).keys() != {"replica"}:  # the paper's surfaces, which another protocol's are not like
        printed = [replace(row, metrics=_of_images(row.metrics)) for row in printed]
    rows = []
    for result in results:
        rows.append(_row(result, columns))
        rows += [_printed_row(row, columns) for row in printed if (row.method, row.variant) == _key(result)]
    present = set(map(_key, results))
    rows += [_printed_row(row, columns) for row in printed if (row.method, row.variant) not in present]
    heading = ["method", "variant", *(HEADINGS[name] for name in columns), *CONTRASTS]
    used = [True] * (2 + len(columns)) + [any(row[-k] for row in rows) for k in (4, 3, 2, 1)]
    table = [[cell for cell, keep in zip(row, used, strict=True) if keep] for row in (heading, *rows)]
    notes = _notes(experiment, cases, numbers, results, list(dict.fromkeys(row.source for row in printed)))
    return Table(title, table, notes, results)


def _key(result: Result) -> tuple[str, str]:
    return result.method, result.variant


def _row(result: Result, columns: Sequence[str]) -> list[str]:
    count = f" ({result.finished} of {result.planned})" if result.finished < result.planned else ""
    cells = [_cell(name, result.means[name]) for name in columns]
    contrasts = [text for contrast in (result.differences, result.rival) for text in _contrast(contrast.get("psnr"))]
    return [result.method, result.variant + count, *cells, *contrasts]


def _contrast(difference: Difference | None) -> tuple[str, str]:
    """What is more, and p; "" if unknown."""
    if difference is None:
        return "", ""
    if difference.deviation is None:
        return f"{difference.mean:+.2f}", ""
    p = "n/a" if difference.p is None else f"{difference.p:.2g}"
    return f"{difference.mean:+.2f} ± {difference.deviation:.2f}", p


def _printed_row(row: Row, columns: Sequence[str]) -> list[str]:
    means = [Mean(row.metrics[name], None) if name in row.metrics else None for name in columns]
    return [f"{row.method}*", row.variant, *map(_cell, columns, means), *[""] * len(CONTRASTS)]


def _columns(experiment: Experiment, found: Sequence[Mapping[str, Any] | None]) -> list[str]:
    known = [one for one in found if one]
    columns = [*IMAGES, *(LENGTHS + RATIOS if experiment.surfaces else ()), "primitives", *COSTS]
    columns += [DRAWING] if experiment.cost else []
    optional = ("lpips", "primitives", "peak_gpu_memory_mb")
    return [name for name in columns if name not in optional or any(one.get(name) is not None for one in known)]


def _protocols(cases: Sequence[Case], numbers: Numbers) -> dict[str, list[float]]:
    """The thresholds of precision and recall, by protocol; empty where no surfaces were measured."""
    found: dict[str, list[float]] = {}
    for case in cases:
        run = numbers[case.name] or {}
        if "geometry_protocol" in run:
            thresholds = found.setdefault(run["geometry_protocol"], [])
            thresholds += [run["threshold"]] if run["threshold"] not in thresholds else []
    return found


def _of_images(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in LENGTHS + RATIOS}


def _notes(
    experiment: Experiment,
    cases: Sequence[Case],
    numbers: Numbers,
    results: Sequence[Result],
    sources: Sequence[str],
) -> list[str]:
    notes = _contrast_notes(experiment, results)
    if any(result.finished < result.planned for result in results):
        notes.insert(0, "means are over the scenes and seeds that all rows have of which anything is there")
    notes[:0] = _mean_notes(cases, in_common(cases, numbers))
    if surfaces := _protocols(cases, numbers):
        kinds = (
            f"protocol {name}, precision, recall and F-score within {' or '.join(f'{one:g}' for one in thresholds)}"
            for name, thresholds in surfaces.items()
        )
        notes.append(f"surfaces: {'; '.join(kinds)}; lengths in the truth's units, ratios in %")
        if sum(map(len, surfaces.values())) > 1:
            notes.append("surfaces: those measured in different ways cannot be compared, and their mean says nothing")
    return [
        *notes,
        *_time_notes(experiment, cases, numbers),
        *(f"*: as published, {one} (arXiv 2403.01058)" for one in sources),
    ]


def _mean_notes(cases: Sequence[Case], common: Set[tuple[str, int]]) -> list[str]:
    """What the cells are means of."""
    scenes, seeds = ({unit[k] for unit in common} for k in (0, 1))
    if len(scenes) > 1:
        of_seeds = f", each the mean over {len(seeds)} seeds" if len(seeds) > 1 else ""
        return [f"mean and standard deviation over {len(scenes)} scenes{of_seeds}"]
    if scenes and len({case.scene for case in cases}) > 1:
        return [f"all rows have {scenes.pop()} alone" + (f": means over {len(seeds)} seeds" if len(seeds) > 1 else "")]
    return [f"mean and standard deviation over {len(seeds)} seeds"] if len(seeds) > 1 else []


def _time_notes(experiment: Experiment, cases: Sequence[Case], numbers: Numbers) -> list[str]:
    """A sentence where times were taken under conditions that differ, or disturb times that are the point."""
    found = [run for case in cases if (run := numbers[case.name])]
    names = ("threads", "jobs", "device", "machine")
    conditions = dict.fromkeys(tuple(run.get(name) or "unknown" for name in names) for run in found)
    if len(conditions) > 1:
        listed = "; ".join(f"threads {one[0]}, {one[1]} at a time, {one[2]}, {one[3]}" for one in conditions)
        return [f"train s: runs had different conditions ({listed}), so that times cannot be compared"]
    if experiment.cost and found and (jobs := next(iter(conditions))[1]) != 1:
        return [f"train s: runs at a time: {jobs}; to compare times take another --out, where one goes on at a time"]
    return []


def _contrast_notes(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """What the columns of differences say."""
    notes = []
    if any(result.differences for result in results):
        kinds = {variant.beside != "" for variant in experiment.variants if variant.beside != variant.label}
        first, same = "the method's first row", "regression under the same conditions"
        row = {(False,): first, (True,): same}.get(tuple(kinds), f"{same} where there is such a row, else {first}")
        notes.append(f"dPSNR: beside {row}, pair by pair of the same scene and seed")
    if any(result.rival for result in results):
        notes.append(f"{CONTRASTS[2]}: {experiment.rival} beside the row, in the same way")
    contrasts = [one["psnr"] for result in results for one in (result.differences, result.rival) if "psnr" in one]
    if any(one.p is not None for one in contrasts):
        notes.append("p: paired t-test of no difference, two-sided, each for itself: of many rows some seem different")
    if any(one.count > 1 and one.p is None for one in contrasts):
        notes.append("n/a: all differences are equal, so there is nothing to test")
    return notes


def _cell(name: str, value: Mean | None) -> str:
    """The mean, with the deviation where there is one."""
    if value is None:
        return "-"
    factor, digits = (100, 2) if name in RATIOS else (1, DIGITS.get(name, 4))
    text = f"{factor * value.mean:.{digits}f}"
    return text if value.deviation is None else f"{text} ± {factor * value.deviation:.{digits}f}"


def _latex(cell: str) -> str:
    """A line with TeX's own characters made harmless."""
    safe = re.sub(r"([&%$#_{}])", r"\\\1", " ".join(cell.replace("\\", "/").split()))
    for character, command in TEX.items():
        safe = safe.replace(character, command)
    return re.sub(r"(?<![A-Za-z0-9])-(?=[0-9.])", "$-$", safe)
