"""Lines over an axis, as an SVG file: what any browser shows, and no plotting library has to be installed for."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from nfc_splat.files import atomic_path

WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 36, 48
INSET = 20  # between the plot's edges and its first and last place
LEGEND = 18  # height of a line of the legend
COLORS = ("#1f5fa8", "#c8442b", "#3d8a45", "#8a5fb0", "#b07d1f", "#4a4a4a")
STEPS = (1, 2, 5, 10)
MOST_MARKED = 12  # places; more of them are drawn as lines alone, over round numbers

Lines = Mapping[str, Mapping[float, Sequence[float]]]


def write_plot(path: Path, title: str, across: str, upwards: str, lines: Lines, *, even: bool = False) -> None:
    """Write one line per entry: its points are the means of the values at each place, with bars of one standard
    deviation where there are several.

    Args:
        across, upwards: names of the axes.
        lines: by label, the values by place; one or more of each.
        even: draw the places at equal distances.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(draw_plot(title, across, upwards, lines, even=even), encoding="utf-8")


def draw_plot(title: str, across: str, upwards: str, lines: Lines, *, even: bool = False) -> str:
    """The SVG that `write_plot` writes."""
    places = sorted({place for line in lines.values() for place in line})
    marked = len(places) <= MOST_MARKED
    top = TOP + LEGEND * len(lines)
    height = HEIGHT + LEGEND * len(lines)
    x, y, ticks = _scales(places, lines, top, height, even)
    parts = [_text(WIDTH / 2, 20, title, "middle")]
    for value in ticks:
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:g}", "end"))
    named = places if marked else _round_places(places)
    parts += [_text(x(place), height - BOTTOM + 18, f"{place:g}", "middle") for place in named]
    parts.append(_text(WIDTH / 2, height - 8, across, "middle"))
    parts.append(
        f'<g transform="translate(16 {(top + height - BOTTOM) / 2})rotate(-90)">{_text(0, 0, upwards, "middle")}</g>'
    )
    for index, (label, line) in enumerate(lines.items()):
        color = COLORS[index % len(COLORS)]
        points = [(x(place), group) for place, group in sorted(line.items())]
        path_of = " L".join(f"{at:.1f} {y(statistics.fmean(group)):.1f}" for at, group in points)
        parts.append(f'<path d="M{path_of}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [_point(at, group, y, color, marked) for at, group in points]
        at = TOP + LEGEND * index
        parts.append(f'<path d="M{LEFT} {at}h18" stroke="{color}" stroke-width="3"/>')
        parts.append(_text(LEFT + 26, at + 4, label, "start"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
    head += 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, *parts, "</svg>\n"])


def _scales(
    places: Sequence[float], lines: Lines, top: float, height: float, even: bool
) -> tuple[Callable[[float], float], Callable[[float], float], list[float]]:
    """From place and value to pixels, and the values that are written at the left."""
    values = [value for line in lines.values() for group in line.values() for value in _extent(group)]
    low, high, step = _ticks(min(values), max(values))
    span = max(places[-1] - places[0], 1e-9)
    room = WIDTH - LEFT - RIGHT - 2 * INSET

    def x(place: float) -> float:
        share = places.index(place) / max(1, len(places) - 1) if even else (place - places[0]) / span
        return LEFT + INSET + room * share

    def y(value: float) -> float:
        return height - BOTTOM - (height - top - BOTTOM) * (value - low) / (high - low)

    return x, y, [low + index * step for index in range(round((high - low) / step) + 1)]


def _extent(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a point's bar: a standard deviation below and above the mean."""
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return mean - spread, mean + spread


def _round_places(places: Sequence[float]) -> list[float]:
    """Round numbers within the range of many places."""
    low, high, step = _ticks(places[0], places[-1])
    ticks = [low + index * step for index in range(round((high - low) / step) + 1)]
    return [tick for tick in ticks if places[0] <= tick <= places[-1]]


def _ticks(low: float, high: float) -> tuple[float, float, float]:
    """Round numbers at or beyond both ends, and a round step between 4 to 10 of them."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high), 1.0))
    size = 10 ** math.floor(math.log10(span))
    step = next(size * part / 5 for part in STEPS if size * part / 5 >= span / 6)
    return math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step


def _point(x: float, values: Sequence[float], y: Callable[[float], float], color: str, marked: bool) -> str:
    mark = f'<circle cx="{x:.1f}" cy="{y(statistics.fmean(values)):.1f}" r="4" fill="{color}"/>' if marked else ""
    if len(values) < 2:
        return mark
    low, high = _extent(values)
    bar = f"M{x:.1f} {y(low):.1f}V{y(high):.1f}"
    return f'{mark}<path d="{bar}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
