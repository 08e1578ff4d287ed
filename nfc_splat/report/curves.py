"""Lines over training steps: `metrics.jsonl` read, smoothed, thinned and laid out as SVG paths.

A step of training logs its loss and the PSNR of its batch; lines with `test_psnr` and `train_psnr` hold those of whole
views, measured now and then. Positions are in the units of the chart's view box.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfc_splat.errors import UserError
from nfc_splat.files import parse_json

MAX_LOG_BYTES = 256 * 2**20
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 30
RAW_BUCKETS, SMOOTH_POINTS = 160, 200
KEYS = ("loss", "psnr", "test_psnr", "train_psnr", "primitives")
LOG_SPAN = 10.0  # from this ratio on a loss is drawn on a logarithmic axis


@dataclass
class Series:
    """Values by step, steps rising."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: float, value: float) -> None:
        """Append; a step that is not later takes the place of what followed it, as after a roll-back."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Log:
    """What `metrics.jsonl` says: the series by key, the last step in it, and what is wrong with it."""

    series: Mapping[str, Series]
    last_step: float | None
    problems: tuple[str, ...]


def read_log(path: Path) -> Log:
    """Read `metrics.jsonl`; lines that are damaged are counted and passed over."""
    series: dict[str, Series] = {key: Series() for key in KEYS}
    events: dict[str, int] = {}
    damaged = 0
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            return Log({}, None, (f"{path.name} has more than {MAX_LOG_BYTES} bytes and was not read.",))
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                record = _record(line)
                step = _finite(record.get("step")) if record else None
                if step is None or step < 0:
                    damaged += 1
                    continue
                if isinstance(event := record.get("event"), str):
                    events[event] = events.get(event, 0) + 1
                for key in KEYS:
                    if (value := _finite(record.get(key))) is not None:
                        series[key].add(step, value)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        return Log({}, None, (f"{path.name} {reason}: there are no curves.",))
    known = {key: found for key, found in series.items() if len(found)}
    problems = [f"{damaged} line(s) of {path.name} cannot be read and are left out."] if damaged else []
    problems += [f"{path.name} has the event {event!r}, {count} time(s)." for event, count in events.items()]
    if not known and not problems:
        problems.append(f"{path.name} is empty: no step was logged.")
    return Log(known, max((found.steps[-1] for found in known.values()), default=None), tuple(problems))


def _record(line: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line, "a line")
    except UserError:
        return None
    return value if isinstance(value, dict) else None


def _finite(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and abs(value) < 1e300 else None


# ---------------------------------------------------------------------------------------------------- smoothing


def smoothed(series: Series) -> tuple[Series, int]:
    """Centred means over a twentieth of the points, and how many points those are. At the start the window shrinks
    evenly, because values change fast there; at the end it is cut off, so that the last value is no single batch's."""
    count = len(series)
    half = count // 40
    if half == 0:
        return series, 1
    sums = [0.0]
    for value in series.values:
        sums.append(sums[-1] + value)
    means = []
    for index in range(count):
        reach = min(half, index)
        end = min(count, index + reach + 1)
        means.append((sums[end] - sums[index - reach]) / (end - index + reach))
    return Series(series.steps, means), 2 * half + 1


def thinned(series: Series, points: int) -> Series:
    """At most `points` of them, evenly, both ends kept."""
    if len(series) <= points:
        return series
    chosen = [round(index * (len(series) - 1) / (points - 1)) for index in range(points)]
    return Series([series.steps[index] for index in chosen], [series.values[index] for index in chosen])


def extremes(series: Series, buckets: int) -> Series:
    """The least and the greatest value of each bucket of neighbours, which look like all of them."""
    if len(series) <= 2 * buckets:
        return series
    found = Series()
    for bucket in range(buckets):
        range_ = range(bucket * len(series) // buckets, (bucket + 1) * len(series) // buckets)
        for index in sorted({min(range_, key=series.values.__getitem__), max(range_, key=series.values.__getitem__)}):
            found.add(series.steps[index], series.values[index])
    return found


# ---------------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class Axis:
    """From values to positions: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


@dataclass(frozen=True)
class Line:
    """A run's line: SVG paths, and what the read-out needs.

    Attributes:
        run: its index in the report.
        label: what the read-out adds to the run's name.
        raw: path of what was logged, empty where that is the line itself.
        path: of the line.
        dots: positions of single measurements.
        dashed: whether it is the second line of the run.
        points: steps and values of the line.
    """

    run: int
    label: str
    raw: str
    path: str
    dots: tuple[tuple[float, float], ...]
    dashed: bool
    points: Series


@dataclass(frozen=True)
class Chart:
    """Lines of all runs over the same axes. `x_ticks` and `y_ticks` are positions with their labels."""

    key: str
    title: str
    note: str
    lines: tuple[Line, ...]
    x: Axis
    y: Axis
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    description: str
    digits: int


@dataclass(frozen=True)
class Figure:
    """What is drawn in one chart: keys of the log with what the read-out calls them, the first as the full line."""

    title: str
    keys: Mapping[str, str]
    digits: int
    measured: bool = False  # now and then, on whole views: not smoothed, each measurement a dot
    log: bool = False


FIGURES = (
    Figure("Loss", {"loss": ""}, 4, log=True),
    Figure("PSNR of training batches (dB)", {"psnr": ""}, 2),
    Figure("PSNR of test views (dB)", {"test_psnr": "test", "train_psnr": "training views"}, 2, measured=True),
    Figure("Primitives", {"primitives": ""}, 0, measured=False),
)


def charts(logs: Sequence[Log], names: Sequence[str]) -> list[Chart]:
    """The charts for which any run has lines. Primitives are left out where they never change."""
    found = []
    for figure in FIGURES:
        if "primitives" in figure.keys and not any(
            len(set(log.series["primitives"].values)) > 1 for log in logs if "primitives" in log.series
        ):
            continue
        if any(key in log.series for log in logs for key in figure.keys):
            found.append(_chart(figure, logs, names))
    return found


def _chart(figure: Figure, logs: Sequence[Log], names: Sequence[str]) -> Chart:
    chosen = [
        (run, label, index > 0, log.series[key])
        for run, log in enumerate(logs)
        for index, (key, label) in enumerate(figure.keys.items())
        if key in log.series
    ]
    plain = figure.measured or "primitives" in figure.keys
    drawn = [(series, 1) if plain else smoothed(series) for *_, series in chosen]
    kept = [thinned(series, SMOOTH_POINTS) for series, _ in drawn]
    raws = [Series() if plain else extremes(series, RAW_BUCKETS) for *_, series in chosen]
    values = [value for series in (*kept, *raws) for value in series.values]
    last = max(max(series.steps[-1] for *_, series in chosen), 1.0)
    first = min(0.0, min(series.steps[0] for *_, series in chosen))
    log = figure.log and min(values) > 0 and max(values) / min(values) > LOG_SPAN
    x, x_ticks = _linear(first, last, LEFT, WIDTH - RIGHT, 5, tight=True)
    y, y_ticks = (_logarithmic if log else _linear)(min(values), max(values), HEIGHT - BOTTOM, TOP, 5)
    lines = []
    for (run, label, dashed, _), points, raw in zip(chosen, kept, raws, strict=True):
        dots = tuple((x.at(s), y.at(v)) for s, v in zip(points.steps, points.values, strict=True))
        path = _path(raw, x, y) if len(raw) > 1 else ""
        lines.append(Line(run, label, path, _path(points, x, y), dots if figure.measured else (), dashed, points))
    window = max(width for _, width in drawn)
    note = f"Faint: as logged. Line: mean of {window} neighbouring points." if window > 1 else ""
    note += " Logarithmic axis." if log else ""
    if figure.measured and any(line.dashed for line in lines):
        note = "Full: views held out. Dashed: training views."
    said = [f"{names[line.run]} {line.label}".rstrip() + f" ends at {_last(line, figure.digits)}" for line in lines]
    description = f"{figure.title} over steps; {'; '.join(said[:12])}"
    return Chart(
        next(iter(figure.keys)),
        figure.title,
        note.strip(),
        tuple(lines),
        x,
        y,
        tuple((x.at(value), _short(value)) for value in x_ticks),
        tuple((y.at(value), _short(value)) for value in y_ticks),
        description,
        figure.digits,
    )


def _last(line: Line, digits: int) -> str:
    return f"{line.points.values[-1]:,.{digits}f} at step {line.points.steps[-1]:g}"


def _path(series: Series, x: Axis, y: Axis) -> str:
    points = zip(series.steps, series.values, strict=True)
    return "M" + "L".join(f"{x.at(step):.1f} {y.at(value):.1f}" for step, value in points)


def _linear(
    low: float, high: float, start: float, end: float, wanted: int, *, tight: bool = False
) -> tuple[Axis, list[float]]:
    """An axis between round numbers with about `wanted` ticks; a `tight` one ends where the values do."""
    span = max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-12)
    size = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(size * part for part in (1, 2, 5, 10) if size * part >= 0.999 * span / wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    ticks = [index * step for index in range(first, last + 1)]
    if tight:
        return Axis(low, max(high, low + span), start, end), [tick for tick in ticks if low <= tick <= high]
    return Axis(ticks[0], ticks[-1], start, end), ticks


def _logarithmic(low: float, high: float, start: float, end: float, wanted: int) -> tuple[Axis, list[float]]:
    """A logarithmic axis, its ticks at 1, 2 and 5 of every decade where those are few, else at decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [part * 10.0**decade for decade in decades for part in (1, 2, 5)]
    bottom = max(tick for tick in fine if tick <= low * (1 + 1e-9))
    top = min((tick for tick in fine if tick >= high * (1 - 1e-9)), default=high)
    ticks = [tick for tick in fine if bottom <= tick <= top]
    if len(ticks) > wanted + 3:
        every = -(-len(decades) // (wanted + 2))
        ticks = [10.0**decade for decade in decades[::every] if bottom <= 10.0**decade <= top]
    return Axis(bottom, top, start, end, log=True), ticks


def _short(value: float) -> str:
    """A tick's label: 20k, 0.05, 1e-05."""
    value = 0.0 if abs(value) < 1e-300 else value
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size == 1e6):
            return f"{value / size:g}{letter}"
    return f"{value:g}"
