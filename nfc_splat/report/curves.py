"""Lines over training steps: `metrics.jsonl` read, smoothed, thinned and laid out as SVG paths.

A step of training logs its loss and the PSNR of its batch; lines with `test_psnr` and `train_psnr` hold those of whole
views, measured now and then. Positions are in the units of the chart's view box.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.files import parse_json

MAX_LOG_BYTES = 256 * 2**20
MAX_NUMBER = 1e300  # of any file; what is larger is no measurement, and sums of it overflow
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
    return float(value) if known and abs(value) < MAX_NUMBER else None


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
    """The line of a variant, which is one run or several: SVG paths, and what the read-out needs.

    Attributes:
        variant: its index in the report.
        label: what the read-out adds to the variant's name.
        raw: path of what was logged, empty where that is the line itself or too much.
        band: outline from the least to the greatest of several runs, else empty.
        path: of the line.
        dots: positions of single measurements.
        dashed: whether it is the second line of the variant.
        points: steps and values of the line.
    """

    variant: int
    label: str
    raw: str
    band: str
    path: str
    dots: tuple[tuple[float, float], ...]
    dashed: bool
    points: Series


@dataclass(frozen=True)
class Chart:
    """Lines of all variants over the same axes. `x_ticks` and `y_ticks` are positions with their labels."""

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


APART = (
    Figure("PSNR of test views (dB)", {"test_psnr": ""}, 2, measured=True),
    Figure("PSNR of training views (dB)", {"train_psnr": ""}, 2, measured=True),
)
CROWDED = tuple(part for figure in FIGURES for part in (APART if "test_psnr" in figure.keys else (figure,)))


def charts(variants: Sequence[Sequence[Log]], names: Sequence[str], *, crowded: bool = False) -> list[Chart]:
    """The charts for which any run has lines. Primitives are left out where they never change.

    Args:
        variants: the logs of the runs of each variant, which become one line.
        names: of the variants.
        crowded: whether there are many, so that charts have no more than a line for each.
    """
    logs = [log for variant in variants for log in variant]
    found = []
    for figure in CROWDED if crowded else FIGURES:
        if "primitives" in figure.keys and not any(
            len(set(log.series["primitives"].values)) > 1 for log in logs if "primitives" in log.series
        ):
            continue
        if any(key in log.series for log in logs for key in figure.keys):
            found.append(_chart(figure, variants, names, raw=not crowded))
    return found


@dataclass(frozen=True)
class _Drawn:
    """What becomes a line: the line itself, what was logged, and the least and the greatest of several runs."""

    points: Series
    raw: Series
    low: Series
    high: Series
    window: int

    @property
    def all(self) -> tuple[Series, ...]:
        return self.points, self.raw, self.low, self.high


def _drawn(found: Sequence[Series], *, plain: bool, raw: bool) -> _Drawn:
    """One run's series smoothed and thinned, or the mean of several; `plain` ones are not smoothed."""
    kept = [(series, 1) if plain else smoothed(series) for series in found]
    window = max(width for _, width in kept)
    if len(found) > 1:
        return _Drawn(*_together([series for series, _ in kept]), window=window)
    logged = extremes(found[0], RAW_BUCKETS) if raw and not plain else Series()
    return _Drawn(thinned(kept[0][0], SMOOTH_POINTS), logged, Series(), Series(), window)


def _together(found: Sequence[Series]) -> tuple[Series, Series, Series, Series]:
    """Mean, nothing, least and greatest at the steps of the longest series, each over those that reach the step."""
    steps = thinned(max(found, key=lambda series: (series.steps[-1], len(series))), SMOOTH_POINTS).steps
    columns = [np.interp(steps, series.steps, series.values, left=np.nan, right=np.nan) for series in found]
    values = np.stack(columns)  # [runs, steps]
    parts = [reduce(values, axis=0).tolist() for reduce in (np.nanmean, np.nanmin, np.nanmax)]
    mean, low, high = (Series(list(steps), part) for part in parts)
    return mean, Series(), low, high


def _chart(figure: Figure, variants: Sequence[Sequence[Log]], names: Sequence[str], *, raw: bool) -> Chart:
    plain = figure.measured or "primitives" in figure.keys
    chosen = [
        (variant, label, index > 0, _drawn(found, plain=plain, raw=raw))
        for variant, logs in enumerate(variants)
        for index, (key, label) in enumerate(figure.keys.items())
        if (found := [log.series[key] for log in logs if key in log.series])
    ]
    drawn = [part for *_, part in chosen]
    values = [value for part in drawn for series in part.all for value in series.values]
    last = max(max(part.points.steps[-1] for part in drawn), 1.0)
    first = min(0.0, min(part.points.steps[0] for part in drawn))
    log = figure.log and min(values) > 0 and max(values) / min(values) > LOG_SPAN
    x, x_ticks = _linear(first, last, LEFT, WIDTH - RIGHT, 5, tight=True)
    y, y_ticks = (_logarithmic if log else _linear)(min(values), max(values), HEIGHT - BOTTOM, TOP, 5)
    lines = [_line(*one, x, y, dots=figure.measured) for one in chosen]
    said = [f"{names[line.variant]} {line.label}".rstrip() + f" ends at {_last(line, figure.digits)}" for line in lines]
    return Chart(
        next(iter(figure.keys)),
        figure.title,
        _note(figure, drawn, lines, log=log),
        tuple(lines),
        x,
        y,
        tuple((x.at(value), _short(value)) for value in x_ticks),
        tuple((y.at(value), _short(value)) for value in y_ticks),
        f"{figure.title} over steps; {'; '.join(said[:12])}",
        figure.digits,
    )


def _note(figure: Figure, drawn: Sequence[_Drawn], lines: Sequence[Line], *, log: bool) -> str:
    """What the lines are."""
    if figure.measured and any(line.dashed for line in lines):
        return "Full: views held out. Dashed: training views."
    window = max(part.window for part in drawn)
    faint = "Faint: as logged. " if any(line.raw for line in lines) else ""
    note = f"{faint}Line: mean of {window} neighbouring points." if window > 1 else ""
    return (note + (" Logarithmic axis." if log else "")).strip()


def _line(variant: int, label: str, dashed: bool, drawn: _Drawn, x: Axis, y: Axis, *, dots: bool) -> Line:
    points = drawn.points
    raw = _path(drawn.raw, x, y) if len(drawn.raw) > 1 else ""
    back = Series(drawn.low.steps[::-1], drawn.low.values[::-1])
    band = f"{_path(drawn.high, x, y)}L{_path(back, x, y)[1:]}Z" if len(back) > 1 else ""
    places = tuple((x.at(s), y.at(v)) for s, v in zip(points.steps, points.values, strict=True)) if dots else ()
    return Line(variant, label, raw, band, _path(points, x, y), places, dashed, points)


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
