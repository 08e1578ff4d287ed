"""What `eval mesh` left in RUN/mesh-eval: the numbers as its own table has them, and the picture."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nfc_splat.errors import UserError
from nfc_splat.eval.geometry import GeometryMetrics
from nfc_splat.eval.mesh import label_of, metric_names, shown_as
from nfc_splat.eval.protocols import PROTOCOLS
from nfc_splat.files import read_json
from nfc_splat.report.folder import MAX_BYTES, Run, at, leading, number, read_png
from nfc_splat.report.pictures import Detail, Picture, encoded, missing

FOLDER = "mesh-eval"
DETAIL, LITTLE_DETAIL = Detail(1400), Detail(900)
FEW = 8  # surfaces with pictures in detail
LOWER = ("accuracy", "completeness", "chamfer", "hausdorff", "depth")  # the less the better; ratios are the reverse


@dataclass(frozen=True)
class Entry:
    """The cells of one row, as text: the value, its interval and what a perfect mesh gets; of several runs the means,
    and in place of the interval the standard deviation of the value."""

    value: str
    interval: str
    floor: str
    best: bool = False


@dataclass(frozen=True)
class Surface:
    """The surface of a run, or the surfaces of a variant's runs.

    Attributes:
        variant: its index in the report.
        name: of the variant.
        count: of how many runs the values are means.
        said: how it was measured, in words; variants in which this is equal can be compared.
        rows: by label and unit.
        picture: the errors in colour, of the first run.
        notes: of the evaluation.
    """

    variant: int
    name: str
    count: int
    said: str
    rows: Mapping[tuple[str, str], Entry]
    picture: Picture
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Surfaces:
    """The surfaces of all runs, the labels of their table, and why others have none."""

    found: tuple[Surface, ...]
    labels: tuple[tuple[str, str], ...]
    comparable: bool
    problems: tuple[str, ...]


def surfaces(runs: Sequence[Run], variants: Sequence[tuple[str, Sequence[int]]] | None = None) -> Surfaces:
    """The surfaces that were measured, of each variant: its name and the indices of its runs; by default every run is
    one. Where the runs of a variant were measured otherwise, the first is taken."""
    if variants is None:
        variants = [(run.name, (index,)) for index, run in enumerate(runs)]
    there = [run for run in runs if _path(run).exists()]
    read: dict[int, GeometryMetrics] = {}
    problems = []
    for index, run in enumerate(runs):
        try:
            if _path(run).exists():
                read[index] = _metrics(read_json(_path(run), max_bytes=MAX_BYTES), str(_path(run)))
        except UserError as error:
            problems.append(f"{run.name}: {error}.")
    detail = DETAIL if len(there) <= FEW else LITTLE_DETAIL
    found = []
    for variant, (name, members) in enumerate(variants):
        known = [index for index in members if index in read]
        if known:
            same = [read[index] for index in known if _said(read[index]) == _said(read[known[0]])]
            found.append(_surface(variant, name, runs[known[0]], same, detail))
    comparable = len(found) > 1 and len({surface.said for surface in found}) == 1
    if comparable:
        found = _with_best(found)
    labels = tuple(dict.fromkeys(label for surface in found for label in surface.rows))
    return Surfaces(tuple(found), labels, comparable, tuple(problems))


def _path(run: Run) -> Path:
    return run.folder / FOLDER / "metrics.json"


def _metrics(record: Any, source: str) -> GeometryMetrics:
    """`metrics.json` as what it was made from; a `UserError` where it is something else."""
    blocks = [at(record, name) for name in ("metrics", "interval_95", "sampling_floor")]
    protocol, thresholds = at(record, "protocol"), at(record, "protocol", "thresholds")
    known = all(isinstance(block, Mapping) for block in blocks) and isinstance(thresholds, list)
    limits = [number(value) for value in thresholds] if known else [None]
    name = at(protocol, "name")
    if None in limits or not limits or not isinstance(name, str) or name not in PROTOCOLS:
        raise UserError(f"{source}: expected the metrics of a surface as eval mesh writes them")
    scores = [{str(name): number(value) for name, value in block.items()} for block in blocks]
    notes = tuple(str(note) for note in record["notes"]) if isinstance(record.get("notes"), list) else ()
    return GeometryMetrics(*scores, tuple(limits), protocol, notes)


def _surface(variant: int, name: str, run: Run, each: Sequence[GeometryMetrics], detail: Detail) -> Surface:
    first = each[0]
    shown = shown_as(None, PROTOCOLS[first.protocol["name"]])
    if len(each) == 1:
        blocks = (first.values, first.interval, first.floor)
    else:
        blocks = (
            _reduced(statistics.fmean, [metrics.values for metrics in each]),
            _reduced(statistics.stdev, [metrics.values for metrics in each]),
            _reduced(statistics.fmean, [metrics.floor for metrics in each]),
        )
    rows = {
        (label_of(key, shown), shown.unit_of(key)): Entry(*(shown.value(key, block.get(key)) for block in blocks))
        for key in metric_names(first)
    }
    notes = tuple(dict.fromkeys(note for metrics in each for note in metrics.notes))
    return Surface(variant, name, len(each), _said(first), rows, _picture(run, detail), notes)


def _reduced(
    reduce: Callable[[list[float]], float], blocks: Sequence[Mapping[str, float | None]]
) -> dict[str, float | None]:
    """A number of several, None where that is not known of all."""
    columns = {name: [block.get(name) for block in blocks] for name in blocks[0]}
    return {name: None if None in column else reduce(column) for name, column in columns.items()}


def _said(metrics: GeometryMetrics) -> str:
    """How a surface was measured."""
    protocol = metrics.protocol
    steps = at(protocol, "steps")
    names = [str(at(step, "step")) for step in steps] if isinstance(steps, list) else []
    facts = [f"protocol {protocol['name']} ({at(protocol, 'reproduces')})", f"truth {at(protocol, 'gt', 'name')}"]
    facts += [f"steps: {', '.join(names)}"] if names else []
    facts += [f"aligned by {at(protocol, 'alignment', 'method')}"] if at(protocol, "alignment") else []
    samples, repeats = at(protocol, "samples", "per_mesh"), at(protocol, "samples", "repeats")
    facts += [f"{samples:,} samples of a mesh, {repeats} times"] if number(samples) and number(repeats) else []
    return "; ".join(facts)


def _with_best(found: Sequence[Surface]) -> list[Surface]:
    """The surfaces with the best entry of every row marked; entries that look the same share the mark."""
    marked: list[dict[tuple[str, str], Entry]] = [dict(surface.rows) for surface in found]
    for label in found[0].rows:
        texts = [rows[label].value if label in rows else "-" for rows in marked]
        values = [None if text == "-" else float(text) for text in texts]
        choose = min if label[0].lower().startswith(LOWER) else max
        for rows, best in zip(marked, leading(values, texts, choose), strict=True):
            if best:
                rows[label] = replace(rows[label], best=True)
    return [replace(surface, rows=rows) for surface, rows in zip(found, marked, strict=True)]


def _picture(run: Run, detail: Detail) -> Picture:
    alt = f"Distances between the surface of {run.name} and the true surface, in colour"
    try:
        return encoded(read_png(run.folder / FOLDER / "errors.png", "RGB"), detail, alt)
    except UserError as error:
        return missing(alt, f"{error}.")
