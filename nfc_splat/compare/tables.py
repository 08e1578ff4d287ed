"""Tables of results: a row is a method and a variant, its cells are means over seeds (and scenes), with the standard
deviation where there are several values. Printed, and as LaTeX."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nfc_splat.compare.experiments import Experiment
from nfc_splat.compare.measured import COSTS, DRAWING, IMAGES, LENGTHS, RATIOS
from nfc_splat.compare.paired import paired
from nfc_splat.compare.plan import Case
from nfc_splat.compare.published import Row, published
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
    "render_seconds": "s / view",
}
DIGITS = {
    "psnr": 2,
    "ssim": 3,
    "lpips": 3,
    "primitives": 0,
    "train_seconds": 0,
    "peak_memory_mb": 0,
    "render_seconds": 3,
}

Numbers = Mapping[str, Mapping[str, Any] | None]  # what was measured, by a case's name


@dataclass
class Table:
    """A table for people.

    Attributes:
        title: one line.
        rows: cells; the first row is the heading, the first two columns are method and variant.
        notes: what the marks and columns mean.
    """

    title: str
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def print(self) -> None:
        print(f"\n{self.title}")
        print_table(self.rows, numbers=tuple(range(2, len(self.rows[0]))))
        for note in self.notes:
            print(f"  {note}")

    def latex(self) -> str:
        """A tabular in the style of the paper, without packages."""
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in self.rows]
        lines.insert(1, r"\hline")
        body = "\n".join(lines)
        notes = "".join(f"% {line}\n" for line in (self.title, *self.notes))
        columns = "ll" + "r" * (len(self.rows[0]) - 2)
        return f"{notes}\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"


def scene_table(experiment: Experiment, scene: str, cases: Sequence[Case], numbers: Numbers) -> Table:
    """One scene's table, with what the paper printed of it."""
    rows, notes = _rows(experiment, cases, numbers, published(experiment.name, scene))
    return Table(f"{scene}: {experiment.summary}", rows, notes)


def mean_table(experiment: Experiment, cases: Sequence[Case], numbers: Numbers) -> Table:
    """The table of all scenes together."""
    count = len({case.scene for case in cases})
    rows, notes = _rows(experiment, cases, numbers, [])
    return Table(f"mean of {count} scenes: {experiment.summary}", rows, notes)


def _rows(
    experiment: Experiment, cases: Sequence[Case], numbers: Numbers, printed: Sequence[Row]
) -> tuple[list[list[str]], list[str]]:
    columns = _columns(experiment, [numbers[case.name] for case in cases])
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.method, case.variant), []).append(case)
    first = {method: variant for method, variant in reversed(groups)}  # each method's first variant
    rows, compared, tested = [], False, False
    for (method, variant), group in groups.items():
        finished = [found for case in group if (found := numbers[case.name])]
        count = f" ({len(finished)} of {len(group)})" if len(finished) < len(group) else ""
        reference = groups[method, first[method]] if variant != first[method] else []
        difference, p = _against(group, reference, numbers)
        compared, tested = compared or bool(difference), tested or bool(p)
        cells = [_cell(name, [found.get(name) for found in finished]) for name in columns]
        rows.append([method, variant + count, *cells, difference, p])
        rows += [_printed_row(row, columns) for row in printed if (row.method, row.variant) == (method, variant)]
    rows += [
        _printed_row(row, columns) for row in printed if row.method in first and (row.method, row.variant) not in groups
    ]
    sources = dict.fromkeys(row.source for row in printed if row.method in first)
    heading = ["method", "", *(HEADINGS[name] for name in columns), "dPSNR", "p"]
    kept = [True] * (2 + len(columns)) + [compared, tested]
    table = [[cell for cell, keep in zip(row, kept, strict=True) if keep] for row in (heading, *rows)]
    return table, _notes(experiment, cases, numbers, compared, tested, list(sources))


def _printed_row(row: Row, columns: Sequence[str]) -> list[str]:
    return [f"{row.method}*", row.variant, *(_cell(name, [row.metrics.get(name)]) for name in columns), "", ""]


def _columns(experiment: Experiment, found: Sequence[Mapping[str, Any] | None]) -> list[str]:
    known = [one for one in found if one]
    columns = [*IMAGES, *(LENGTHS + RATIOS if experiment.surfaces else ()), "primitives", *COSTS]
    columns += [DRAWING] if experiment.cost else []
    optional = ("lpips", "primitives")
    return [name for name in columns if name not in optional or any(one[name] is not None for one in known)]


def _against(group: Sequence[Case], reference: Sequence[Case], numbers: Numbers) -> tuple[str, str]:
    """What `group` has more PSNR than `reference`, over the seeds and scenes that both have, and p; "" if unknown."""
    psnr = lambda cases: {  # noqa: E731
        (case.scene, case.seed): found["psnr"]
        for case in cases
        if (found := numbers[case.name]) and found["psnr"] is not None
    }
    mine, others = psnr(group), psnr(reference)
    pairs = [key for key in mine if key in others]
    if not pairs:
        return "", ""
    difference = paired([mine[key] for key in pairs], [others[key] for key in pairs])
    spread = "" if difference.deviation is None else f" ± {difference.deviation:.2f}"
    return f"{difference.mean:+.2f}{spread}", "" if difference.p is None else f"{difference.p:.2g}"


def _notes(
    experiment: Experiment,
    cases: Sequence[Case],
    numbers: Numbers,
    compared: bool,
    tested: bool,
    sources: Sequence[str],
) -> list[str]:
    notes = []
    counts = {"seeds": len({case.seed for case in cases}), "scenes": len({case.scene for case in cases})}
    if several := [f"{count} {what}" for what, count in counts.items() if count > 1]:
        notes.append(f"mean and standard deviation over {' and '.join(several)}")
    if compared:
        notes.append("dPSNR: beside the method's first row, pair by pair of the same seed" + _test_note(tested))
    known = [found for case in cases if (found := numbers[case.name])]
    if experiment.surfaces and known:
        words = (
            f"protocol {known[0]['geometry_protocol']}, precision, recall and F-score within {known[0]['threshold']:g}"
        )
        notes.append(f"surfaces: {words}; lengths in the truth's units, ratios in %")
    notes += [f"*: as published, {source} (arXiv 2403.01058)" for source in sources]
    return notes


def _test_note(tested: bool) -> str:
    return "; p: paired t-test of no difference, two-sided" if tested else ""


def _cell(name: str, values: Sequence[float | None]) -> str:
    """The mean of what is known, with the deviation where there are several."""
    if not values or any(value is None for value in values):
        return "-"
    factor, digits = (100, 2) if name in RATIOS else (1, DIGITS.get(name, 4))
    text = f"{factor * statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {factor * statistics.stdev(values):.{digits}f}"
    return text


def _latex(cell: str) -> str:
    """A cell with TeX's own characters made harmless."""
    safe = re.sub(r"([&%$#_{}])", r"\\\1", cell.replace("\\", "/"))
    for character, command in (("±", r"$\pm$"), ("^", r"\textasciicircum{}"), ("~", r"\textasciitilde{}")):
        safe = safe.replace(character, command)
    return re.sub(r"(?<![A-Za-z0-9])-(?=[0-9.])", "$-$", safe)
