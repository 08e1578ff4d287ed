"""`eval speed --mesh`: the same work on both sides, in turn, printed and recorded."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from geometry_toys import open3d_or_skip

from nfc_splat.eval import speed_mesh
from nfc_splat.eval.speed_mesh import Sizes, compare_meshes, evaluate_by_trimesh, evaluate_room, take_turns, write_room

TINY = Sizes(side=12, poses=40, samples=4000, rounds=2, protocol_rounds=1)


def test_the_table_is_printed_and_recorded(tmp_path, capsys):
    open3d_or_skip()
    assert compare_meshes(2, tmp_path / "speed.json", TINY) == 0
    printed = capsys.readouterr().out
    assert "metrics, 4,000 + 4,000 samples" in printed
    assert "replica protocol, 864 vertices, 40 poses" in printed
    record = json.loads((tmp_path / "speed.json").read_text())
    assert [row["seconds"] > 0 for row in record["rows"]] == [True, True]
    assert record["sizes"]["side"] == 12


def test_the_walk_sees_the_whole_room(tmp_path):
    open3d_or_skip()
    write_room(tmp_path, replace(TINY, poses=400))
    score = evaluate_room(tmp_path, replace(TINY, samples=100_000))
    assert score["accuracy"] == pytest.approx(0.026, abs=0.006)  # waves of 0.03 and 0.01, 0.02 apart on average
    assert score["recall@0.05"] > 0.8


def test_a_side_that_computes_something_else_is_not_timed(tmp_path, monkeypatch):
    open3d_or_skip()
    monkeypatch.setattr(speed_mesh, "score_samples", lambda *_: {"accuracy": 1.0, "completeness": 1.0})
    with pytest.raises(RuntimeError, match="do not agree"):
        speed_mesh.time_metrics(TINY)


def test_without_the_others_our_time_stands_alone(tmp_path, monkeypatch):
    open3d_or_skip()
    monkeypatch.setattr(speed_mesh, "find_spec", lambda name: None)
    write_room(tmp_path, TINY)
    row = speed_mesh.time_protocol(tmp_path, TINY)
    assert row.seconds > 0
    assert row.ratio is None
    assert row.beside == "trimesh and scipy are not installed"


def test_trimesh_and_scipy_give_our_numbers(tmp_path):
    pytest.importorskip("trimesh", reason="trimesh is not installed: pip install trimesh scipy")
    pytest.importorskip("scipy", reason="scipy is not installed: pip install trimesh scipy")
    sizes = replace(TINY, samples=50_000)
    write_room(tmp_path, sizes)
    ours = evaluate_room(tmp_path, sizes)
    for name, value in evaluate_by_trimesh(tmp_path, sizes).items():
        assert ours[name] == pytest.approx(value, rel=0.02), name
    assert "trimesh" in sys.modules


def test_rounds_begin_in_turn():
    calls = []
    seconds = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert "".join(calls) == "abbaab"
    assert seconds.shape == (2, 3)
    assert (np.asarray(seconds) >= 0).all()
