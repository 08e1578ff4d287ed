"""What `eval mesh` left in RUN/mesh-eval: the numbers as its own table has them, and the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """A run's cells of one row: the value, its interval and what a perfect mesh gets, as text."""

    value: str
    interval: str
    floor: str
    best: bool = False


@dataclass(frozen=True)
class Surface:
    """A run's surface.

    Attributes:
        run: its index in the report.
        name: of the run.
        said: how it was measured, in words; runs in which this is equal can be compared.
        rows: by label and unit.
        picture: the errors in colour.
        notes: of the evaluation.
    """

    run: int
    name: str
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


def surfaces(runs: Sequence[Run]) -> Surfaces:
    """The surfaces that were measured."""
    paths = {index: run.folder / FOLDER / "metrics.json" for index, run in enumerate(runs)}
    there = {index: path for index, path in paths.items() if path.exists()}
    detail = DETAIL if len(there) <= FEW else LITTLE_DETAIL
    found, problems = [], []
    for index, path in there.items():
        try:
            metrics = _metrics(read_json(path, max_bytes=MAX_BYTES), str(path))
        except UserError as error:
            problems.append(f"{runs[index].name}: {error}.")
            continue
        found.append(_surface(index, runs[index], metrics, detail))
    comparable = len(found) > 1 and len({surface.said for surface in found}) == 1
    if comparable:
        found = _with_best(found)
    labels = tuple(dict.fromkeys(label for surface in found for label in surface.rows))
    return Surfaces(tuple(found), labels, comparable, tuple(problems))


def _metrics(record: Any, source: str) -> GeometryMetrics:
    """`metrics.json` as what it was made from; a `UserError` where it is something else."""
    blocks = [at(record, name) for name in ("metrics", "interval_95", "sampling_floor")]
    protocol, thresholds = at(record, "protocol"), at(record, "protocol", "thresholds")
    known = all(isinstance(block, Mapping) for block in blocks) and isinstance(thresholds, list)
    limits = [number(value) for value in thresholds] if known else [None]
    if None in limits or not limits or at(protocol, "name") not in PROTOCOLS:
        raise UserError(f"{source}: expected the metrics of a surface as eval mesh writes them")
    scores = [{str(name): number(value) for name, value in block.items()} for block in blocks]
    notes = tuple(str(note) for note in record["notes"]) if isinstance(record.get("notes"), list) else ()
    return GeometryMetrics(*scores, tuple(limits), protocol, notes)


def _surface(index: int, run: Run, metrics: GeometryMetrics, detail: Detail) -> Surface:
    shown = shown_as(None, PROTOCOLS[metrics.protocol["name"]])
    blocks = (metrics.values, metrics.interval, metrics.floor)
    rows = {
        (label_of(name, shown), shown.unit_of(name)): Entry(*(shown.value(name, block.get(name)) for block in blocks))
        for name in metric_names(metrics)
    }
    return Surface(index, run.name, _said(metrics), rows, _picture(run, detail), metrics.notes)


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
