"""What the commands print: a progress bar and tables that are pretty in a terminal and plain elsewhere; durations."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[], None]]:
    """A bar on stderr while in a terminal, nothing elsewhere; gives the function that advances it by one."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def duration(seconds: float) -> str:
    """4.3 s, 12 s, 2m20s or 3h05m."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def print_table(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> None:
    """Print `rows`, the first of which is the header.

    Args:
        rows: cells, the same number in each row.
        numbers: columns that are right-aligned and never wrapped in a terminal.
    """
    if not sys.stdout.isatty():
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2))
    for column, name in enumerate(rows[0]):
        number = column in numbers
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for label, *cells in rows[1:]:
        table.add_row(f"[bold]{escape(label)}[/]", *(escape(cell) for cell in cells))
    Console(highlight=False).print(table)
