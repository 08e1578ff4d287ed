"""Lines over an axis, as an SVG file: what any browser shows, and no plotting library has to be installed for."""

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from nfc_splat.files import atomic_path

WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 36, 48
COLORS = ("#1f5fa8", "#c8442b", "#3d8a45", "#8a5fb0")
STEPS = (1, 2, 5, 10)


def write_plot(
    path: Path, title: str, across: str, upwards: str, lines: Mapping[str, Mapping[float, Sequence[float]]]
) -> None:
    """Write one line per entry: its points are the means of the values at each place, with bars of one standard
    deviation where there are several.

    Args:
        across, upwards: names of the axes.
        lines: by label, the values by place; one or more of each.
    """
    places = sorted({place for line in lines.values() for place in line})
    values = [value for line in lines.values() for group in line.values() for value in group]
    low, high, step = _ticks(min(values), max(values))
    span = max(places[-1] - places[0], 1e-9)
    x = lambda place: LEFT + 20 + (WIDTH - LEFT - RIGHT - 40) * (place - places[0]) / span  # noqa: E731
    y = lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)  # noqa: E731
    parts = [_text(WIDTH / 2, 20, title, "middle")]
    for index in range(round((high - low) / step) + 1):
        value = low + index * step
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:g}", "end"))
    parts += [_text(x(place), HEIGHT - BOTTOM + 18, f"{place:g}", "middle") for place in places]
    parts.append(_text(WIDTH / 2, HEIGHT - 8, across, "middle"))
    parts.append(f'<g transform="translate(16 {HEIGHT / 2}) rotate(-90)">{_text(0, 0, upwards, "middle")}</g>')
    for index, (label, line) in enumerate(lines.items()):
        color = COLORS[index % len(COLORS)]
        points = [(x(place), group) for place, group in sorted(line.items())]
        path_of = " L".join(f"{at:.1f} {y(statistics.fmean(group)):.1f}" for at, group in points)
        parts.append(f'<path d="M{path_of}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [_point(at, group, y, color) for at, group in points]
        parts.append(f'<circle cx="{LEFT + 14}" cy="{TOP + 10 + 18 * index}" r="4" fill="{color}"/>')
        parts.append(_text(LEFT + 24, TOP + 14 + 18 * index, label, "start"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
    head += 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([head, *parts, "</svg>\n"]), encoding="utf-8")


def _ticks(low: float, high: float) -> tuple[float, float, float]:
    """Round numbers at or beyond both ends, and a round step between 4 to 10 of them."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high), 1.0))
    size = 10 ** math.floor(math.log10(span))
    step = next(size * part / 5 for part in STEPS if size * part / 5 >= span / 6)
    return math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step


def _point(x: float, values: Sequence[float], y, color: str) -> str:
    mark = f'<circle cx="{x:.1f}" cy="{y(statistics.fmean(values)):.1f}" r="4" fill="{color}"/>'
    if len(values) < 2:
        return mark
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    bar = f"M{x:.1f} {y(mean - spread):.1f}V{y(mean + spread):.1f}"
    return f'{mark}<path d="{bar}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
