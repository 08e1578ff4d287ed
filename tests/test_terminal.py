"""Tables and progress: plain where piped, drawn in a terminal."""

import io
import re
import sys

import pytest

from nfc_splat.terminal import duration, print_table, progress

ROWS = [["metric", "mean", "view"], ["PSNR", "31.52", "test/[bold]r_0.png"], ["SSIM", "0.9512", "r_1"]]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_piped_table_is_aligned_text(capsys):
    print_table(ROWS, numbers=(1,))
    assert capsys.readouterr().out.splitlines() == [
        "  metric  mean    view",
        "  PSNR    31.52   test/[bold]r_0.png",
        "  SSIM    0.9512  r_1",
    ]


def test_a_table_in_a_terminal_keeps_every_cell_as_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table(ROWS, numbers=(1,))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue())
    assert "test/[bold]r_0.png" in shown
    assert "31.52" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.26, "4.3 s"), (59.4, "59 s"), (59.7, "1m00s"), (83.4, "1m23s"), (3599.9, "1h00m"), (11_100, "3h05m")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_progress_is_silent_when_piped(capsys):
    with progress(3, "views") as advance:
        advance()
    assert capsys.readouterr() == ("", "")


def test_progress_draws_in_a_terminal_and_cleans_up(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(2, "views") as advance:
        advance()
        advance()
    assert "views" in sys.stderr.getvalue()
