"""The report as one HTML file: everything inline, nothing fetched, every text escaped, scripts of others refused."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nfc_splat import __version__
from nfc_splat.files import atomic_path
from nfc_splat.report import curves, pictures, settings, summary, surface, views
from nfc_splat.report.folder import Run, read_runs
from nfc_splat.report.variants import FEW, representatives, variant_blocks, variant_columns, variants_of

TEMPLATES = Path(__file__).parent / "templates"
COLORS, DASHES = 8, 4  # that tell runs apart, and so do both together
DEFINITIONS = (
    ("PSNR", "in dB, the more the better: how small the mean squared error of the colours is."),
    ("SSIM", "at most 1, the more the better: how alike small neighbourhoods are."),
    ("LPIPS", "at least 0, the less the better: how different a network finds them."),
    ("Error", "the mean absolute difference of red, green and blue, each from 0 to 1."),
    ("Depth", "along the camera's viewing axis, in the units of the scene's files; coloured by its inverse."),
)


@dataclass(frozen=True)
class Table:
    """A table of text for the top of the report.

    Attributes:
        title: above it.
        rows: cells, the same number in each row; the first row is the header.
        numbers: columns that are right-aligned. Those before the first of them are shown as one, which names the row
            (its heading "variant" where the header is empty), so that a phone shows numbers beside it.
        notes: sentences below it.
    """

    title: str
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    notes: Sequence[str] = ()

    @property
    def words(self) -> int:
        """How many columns name the row."""
        return max(1, min(self.numbers, default=1))


@dataclass(frozen=True)
class Plot:
    """A picture for the top of the report: `svg` is the text of an SVG file; scripts and links in it do nothing."""

    title: str
    svg: str

    @property
    def uri(self) -> str:
        """As a data URI."""
        data = self.svg.encode("utf-8", "backslashreplace")
        return f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str = "",
    tables: Sequence[Table] = (),
    plots: Sequence[Plot] = (),
    notes: Sequence[str] = (),
    command: str = "",
) -> Path:
    """Write one HTML file about `runs`, that opens offline in any browser; returns `out`.

    Args:
        runs: run folders, one or more, finished or not; of those that are damaged the report says what is.
        out: the file to write, atomically.
        title: of the page, by default what the runs are.
        tables, plots: what a comparison found, shown first.
        notes: sentences shown below those.
        command: what was typed to make the runs, where that was one command.

    Raises:
        UserError: a folder that is no run's, or `out` cannot be written.
    """
    found = read_runs(runs)
    text = _page(found, title or _title(found), tables=tables, plots=plots, notes=notes, command=command)
    with atomic_path(out) as temporary:
        # Names of files may hold bytes that no encoding has a character for.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return out


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return summary.headline(runs[0])
    scenes = list(dict.fromkeys(run.scene for run in runs))
    return f"{len(runs)} runs of {scenes[0] if len(scenes) == 1 else f'{len(scenes)} scenes'}"


def _page(runs: Sequence[Run], title: str, **given: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    style = environment.get_template("style.css").render(
        error_bar=pictures.error_bar()[0], depth_bar=pictures.depth_bar()
    )
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    variants = variants_of(runs)
    crowded = len(runs) > FEW
    logs = [[runs[index].log for index in one.runs] for one in variants]
    charts = curves.charts(logs, [one.name for one in variants], crowded=crowded)
    numbers = summary.summarize(runs)
    colors = [f"c{index % COLORS} d{min(index // COLORS, DASHES - 1)}" for index in range(len(variants))]
    return environment.get_template("page.html").render(
        title=title,
        policy=_policy(style, script),
        style=_trusted(style),
        script=_trusted(script),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        runs=runs,
        variants=variants,
        crowded=crowded,
        colors=colors,
        variant_of={index: number for number, one in enumerate(variants) for index in one.runs},
        summary=numbers,
        variant_blocks=variant_blocks(numbers, runs, variants),
        variant_columns=variant_columns(numbers.columns),
        problems=summary.problems(runs),
        number_columns=summary.NUMBERS,
        charts=charts,
        chart_data=[_chart_data(chart) for chart in charts],
        box=(curves.WIDTH, curves.HEIGHT, curves.LEFT, curves.RIGHT, curves.TOP, curves.BOTTOM),
        kinds_of_loss=len({repr((run.told("train", "method"), run.told("train", "loss"))) for run in runs}),
        groups=views.view_groups(runs, representatives(runs, variants)),
        error_scale=pictures.error_bar()[1],
        surfaces=surface.surfaces(runs, [(one.name, one.runs) for one in variants]),
        differences=settings.differences(runs, [one.runs for one in variants]),
        origins=[settings.origin(run) for run in runs],
        definitions=DEFINITIONS,
        **given,
    )


def _trusted(text: str) -> Any:
    """Text of our own templates, as it is."""
    from markupsafe import Markup

    return Markup(text)


def _breakable(name: str) -> Any:
    """A dotted name that may be broken after dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(str(escape(name)).replace(".", ".<wbr>").replace("_", "_<wbr>"))


def _policy(style: str, script: str) -> str:
    """What the browser may do: run this script, apply this style, show pictures that are in the file, nothing else."""
    digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()  # noqa: E731
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _chart_data(chart: curves.Chart) -> Mapping[str, Any]:
    """What the read-out needs of a chart."""
    axis = lambda a: {"low": a.low, "high": a.high, "start": a.start, "end": a.end, "log": a.log}  # noqa: E731
    return {
        "digits": chart.digits,
        "x": axis(chart.x),
        "y": axis(chart.y),
        "lines": [
            {
                "variant": line.variant,
                "label": line.label,
                "steps": line.points.steps,
                "values": [float(f"{value:.6g}") for value in line.points.values],
            }
            for line in chart.lines
        ],
    }
