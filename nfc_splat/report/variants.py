"""Many runs made few: those that differ only in the seed are one variant, with the mean and the spread of its runs."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nfc_splat.report.folder import Run
from nfc_splat.report.settings import flattened, settings_of
from nfc_splat.report.summary import FORMATS, SPREADS, Block, Cell, Row, Summary, mark_best, measured_under

FEW = 8  # runs that a page shows one by one


@dataclass(frozen=True)
class Variant:
    """Runs that differ only in the seed; `runs` are their indices in the report, at least one."""

    name: str
    runs: tuple[int, ...]


def variants_of(runs: Sequence[Run]) -> list[Variant]:
    """The runs by variants, in the order of their first runs; up to `FEW` runs are each one of its own."""
    if len(runs) <= FEW:
        return [Variant(run.name, (index,)) for index, run in enumerate(runs)]
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(_settings(run) or f"run {index}", []).append(index)
    members = sorted(part for group in groups.values() for part in _by_measurement(runs, group))
    names = _names([_stem([runs[index] for index in part]) for part in members])
    firsts = [runs[part[0]].name for part in members]
    return [
        Variant(name if names.count(name) == 1 else first, tuple(part))
        for name, first, part in zip(names, firsts, members, strict=True)
    ]


def representatives(runs: Sequence[Run], variants: Sequence[Variant]) -> dict[int, str]:
    """The run of each variant whose pictures are shown, the first with views, and what it is called."""
    found = ((next((i for i in one.runs if runs[i].photographs), None), one.name) for one in variants)
    return {index: name for index, name in found if index is not None}


def _settings(run: Run) -> str:
    """Everything that was chosen but the seed, and the threads, which follow the machine; empty where nothing is
    known."""
    chosen = {name: value for name, value in settings_of(run).items() if name not in ("seed", "threads")}
    return json.dumps(flattened(chosen), sort_keys=True) if chosen else ""


def _by_measurement(runs: Sequence[Run], group: Sequence[int]) -> list[list[int]]:
    """The group, apart where runs were measured otherwise; those without metrics are with the first."""
    parts: dict[str, list[int]] = {}
    for index in group:
        if runs[index].summary is not None:
            parts.setdefault(json.dumps(measured_under(runs[index])), []).append(index)
    found = list(parts.values()) or [[]]
    found[0] = sorted([*found[0], *(index for index in group if runs[index].summary is None)])
    return found


def _stem(runs: Sequence[Run]) -> str:
    """What the names of a variant's runs have in common besides the seed."""
    if len(runs) == 1:
        return runs[0].name
    seeds = [re.escape(str(run.told("train", "seed"))) for run in runs]
    patterns = [rf"(?<![A-Za-z0-9])(?:seed[-_]?)?{seed}(?![A-Za-z0-9])" for seed in seeds]
    stems = {re.sub(pattern, "", run.name).strip("-_./ ") for pattern, run in zip(patterns, runs, strict=True)}
    stem = stems.pop()
    return stem if stem and not stems else f"{runs[0].name} and {len(runs) - 1} more"


def _names(names: Sequence[str]) -> list[str]:
    """The names without the parts that all of them begin with."""
    parts = [re.findall(r"[^-/]*[-/]|[^-/]+", name) for name in names]
    shared = 0
    while len(parts) > 1 and min(map(len, parts)) > shared + 1 and len({one[shared] for one in parts}) == 1:
        shared += 1
    return ["".join(one[shared:]) for one in parts]


# ---------------------------------------------------------------------------------------------------- the table


def variant_blocks(summary: Summary, runs: Sequence[Run], variants: Sequence[Variant]) -> tuple[Block, ...]:
    """The blocks of the summary with a row per variant; `Row.run` is the variant's index."""
    rows = {row.run: row for block in summary.blocks for row in block.rows}
    home = {row.run: number for number, block in enumerate(summary.blocks) for row in block.rows}
    found: list[list[Row]] = [[] for _ in summary.blocks]
    for index, variant in enumerate(variants):
        members = [rows[run] for run in variant.runs]
        first = next((row for row in members if row.finished), members[0])
        found[home[first.run]].append(_row(index, variant, members))
    for block, here in zip(summary.blocks, found, strict=True):
        mark_best(here, [runs[row.run] for row in block.rows])
    return tuple(
        Block(block.scene, block.protocol, tuple(here))
        for block, here in zip(summary.blocks, found, strict=True)
        if here
    )


def _row(index: int, variant: Variant, members: Sequence[Row]) -> Row:
    finished = [row for row in members if row.finished]
    cells = {key: _cell(key, [row.cells[key] for row in finished or members]) for key in members[0].cells}
    count = f"{len(finished)} of {len(members)}" if len(finished) < len(members) else f"{len(members)}"
    return Row(index, variant.name, bool(finished), cells | {"runs": Cell(count)})


def _cell(key: str, cells: Sequence[Cell]) -> Cell:
    """The mean of the cells with its spread where all have a value; words and seeds are listed, each once."""
    values = [cell.value for cell in cells if cell.value is not None]
    if key not in FORMATS or not values:
        return Cell(", ".join(dict.fromkeys(cell.text for cell in cells)))
    if len(values) < len(cells):
        return Cell("-")
    if len({cell.text for cell in cells}) == 1 and key not in SPREADS:
        return cells[0]
    mean = statistics.fmean(values)
    spread = f"± {FORMATS[key](statistics.stdev(values))}" if key in SPREADS and len(values) > 1 else ""
    return Cell(FORMATS[key](mean), mean, spread=spread)


def variant_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns of the table of variants: how many runs after the metrics, and no seed."""
    quality = {key: label for key, label in columns.items() if key in SPREADS}
    rest = {key: label for key, label in columns.items() if key not in (*SPREADS, "seed")}
    return quality | {"runs": "Runs"} | rest
