"""`python -m nfc_splat.report RUN...`: one HTML file about run folders, to be opened, kept and passed on."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nfc_splat.errors import UserError, run_command
from nfc_splat.options import parse_options

PROGRAM = "python -m nfc_splat.report"
FILE = "report.html"


@dataclass(frozen=True)
class Options:
    """Write one HTML file about run folders, which opens offline: metrics, curves, views, surfaces, differences, and
    the commands that repeat it."""

    runs: tuple[Path, ...]
    """Run folders, finished or not."""
    out: Path | None = None
    """The file to write; by default RUN/report.html of one run, report.html here of several."""
    title: str = ""
    """Title of the page; by default what the runs are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code."""
    import tyro

    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parse_options(
        Options,
        words,
        PROGRAM,
        default=Options(runs=tyro.MISSING),
        positional={"runs": "RUN"},
        expected="run folders and flags only",
    )
    if not options.runs:
        raise UserError(f"no RUN; expected run folders, see {PROGRAM} --help")
    out = options.out or (options.runs[0] / FILE if len(options.runs) == 1 else Path(FILE))
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise UserError(f"--out {out}: expected a file whose name ends with .html")
    from nfc_splat.report.page import write_report

    write_report(options.runs, out, title=options.title, command=f"{PROGRAM} {shlex.join(words)}")
    print(f"  wrote {out} ({out.stat().st_size / 2**20:.1f} MB)")
    return 0


if __name__ == "__main__":
    run_command(main)
