"""`eval speed`: the scene it writes is what it says, the table has its columns, a peer is started as promised."""

import stat
import sys

import pytest
import torch

from nfc_splat.data import load_scene
from nfc_splat.errors import UserError
from nfc_splat.eval import speed

TINY = speed.Case(48, 32, 300)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(speed, "CASES", (TINY,))


@pytest.fixture
def peer(tmp_path):
    """A stand-in that writes down how it was called and takes 10 ms per iteration."""
    path = tmp_path / "opensplat"
    lines = [
        f"#!{sys.executable}",
        "import os, sys, time",
        "words = sys.argv[1:]",
        f"print(*words, os.environ['OMP_NUM_THREADS'], file=open({str(tmp_path / 'calls')!r}, 'a'))",
        "time.sleep(0.01 * int(words[words.index('-n') + 1]))",
    ]
    path.write_text("\n".join(lines))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_scene_shows_its_points(tmp_path):
    speed.write_scene(tmp_path / "scene", TINY)
    scene = load_scene(tmp_path / "scene", undistort=True)
    views = scene.splits["train"]
    assert scene.format == "colmap"
    assert len(scene.points) == TINY.gaussians
    assert (views.cameras.width, views.cameras.height) == (TINY.width, TINY.height)
    pixels, depths = views.cameras.project(scene.points)
    inside = (depths > 0.1) & (pixels >= 0).all(-1) & (pixels < torch.tensor([TINY.width, TINY.height])).all(-1)
    assert (inside.sum(1) > 20).all()
    error = 0.0
    for k in range(len(views)):
        column, row = pixels[k][inside[k]].long().unbind(-1)
        seen = views.target(k, scene.background)[row, column]
        error += (seen - scene.colors[inside[k]]).abs().mean() / len(views)
    assert error < 0.25  # hidden points and overlaps included; colours of unrelated points differ by about 0.35


def test_one_row_per_case_with_all_phases(tiny, capsys):
    assert speed.main(["--steps", "3", "--threads", "1"]) == 0
    head, columns, row = capsys.readouterr().out.splitlines()[-3:]
    assert "1 threads" in head
    assert columns.split() == [*speed.PHASES, "step"]
    assert row.startswith("48x32, 300 Gaussians")
    figures = [float(word) for word in row[28:].split()]
    assert len(figures) == 5
    assert min(figures) > 0


def test_a_peer_runs_on_the_same_scene_without_densification(tiny, peer, tmp_path, capsys):
    assert speed.main(["--steps", "20", "--threads", "1", "--opensplat", str(peer)]) == 0
    figures = [float(word) for word in capsys.readouterr().out.splitlines()[-1][28:].split()]
    assert figures[5] > 0
    assert figures[6] == pytest.approx(figures[5] / figures[4], rel=0.01, abs=0.01)
    short, long = (line.split() for line in (tmp_path / "calls").read_text().splitlines())
    assert short[0] == long[0]
    assert [words[words.index("-n") + 1] for words in (short, long)] == ["5", "25"]
    assert short[-1] == "1"
    for flag, value in (("--sh-degree", "3"), ("--ssim-weight", "0.2"), ("--densify-from", speed.NEVER)):
        assert long[long.index(flag) + 1] == value


def test_a_peer_that_fails_is_quoted(tiny, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such scene >&2\nexit 7\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match=r"broken: ended with code 7, saying: no such scene"):
        speed.main(["--steps", "1", "--opensplat", str(broken)])
    with pytest.raises(UserError, match=r"missing: cannot be started"):
        speed.main(["--steps", "1", "--opensplat", str(tmp_path / "missing")])


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--steps", "0"], "at least 1"), (["--stepz", "3"], "--steps"), (["--device", "cuda"], "no CUDA device here")],
)
def test_requests_that_cannot_be_met(words, said):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine can")
    with pytest.raises(UserError, match=said):
        speed.main(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mesh", "--kernels"], "--kernels and --mesh: expected at most one of them"),
        (
            ["--fields", "dvgo", "--moving", "r", "--dnerf", "d"],
            "--dnerf and --moving and --fields: expected at most one",
        ),
        (["--nerf-pytorch", "n", "--opensplat", "o"], "--opensplat o: --nerf-pytorch does not heed it; leave it out"),
        (["--mesh", "--steps", "60"], "--steps 60: --mesh does not heed it"),
        (["--kernels", "--scene", "s"], "--scene s: --kernels does not heed it"),
        (["--moving", "r", "--record", "a.json"], "--record a.json: --moving does not heed it"),
        (["--dnerf", "d", "--device", "cuda"], "--device cuda: --dnerf does not heed it"),
        (["--opensplat", "o", "--scene", "s"], "--scene s: it belongs to --fields; leave it out"),
        (["--record", "a.json"], "--record a.json: it belongs to --fields and --kernels and --mesh; leave it out"),
        (["--fields"], "--fields: names no method; expected one or more of dvgo, ngp, nerf"),
    ],
)
def test_what_would_be_ignored_is_refused(words, said):
    with pytest.raises(UserError) as refused:
        speed.main(words)
    assert str(refused.value).startswith(said)
