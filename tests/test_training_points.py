"""`--points FILE`: a run keeps what it was given, and goes on and is measured without the file."""

import pytest
import training_toy
from interrupted_runs import assert_same, crash_at, newest

from nfc_splat.errors import UserError
from nfc_splat.eval.__main__ import main as evaluate
from nfc_splat.fields import METHODS
from nfc_splat.train import train
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.load import load_run
from nfc_splat.training.run import read_config


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)


@pytest.fixture
def words(tmp_path):
    """A command line of the toy, with points of ours."""
    scene = training_toy.write_scene(tmp_path / "scene")
    (tmp_path / "mine.txt").write_text("0 0 0\n1 2 3\n4 5 6\n")
    saving = ["--threads", "1", "--quiet", "--save-steps", "5", "--save-minutes", "0"]
    return [str(scene), "--method", "toy", "--steps", "20", "--points", str(tmp_path / "mine.txt"), *saving]


@pytest.mark.parametrize("resume", ["the run", "the same command"])
def test_a_run_goes_on_after_its_points_were_moved(words, tmp_path, monkeypatch, resume):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert train(parse_command_line([*words, "--out", str(straight)])) == 0
    crash_at(monkeypatch, 12, parse_command_line([*words, "--out", str(broken)]))
    points = tmp_path / "mine.txt"
    points.rename(tmp_path / "elsewhere.txt")
    again = ["--resume", str(broken)] if resume == "the run" else [*words, "--out", str(broken), "--resume", "auto"]
    assert train(parse_command_line(again)) == 0
    assert_same(newest(straight), newest(broken))
    assert read_config(broken).data.points == points  # where they came from is still told
    assert load_run(broken).scene.points.tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert evaluate(["images", str(broken)]) == 0


def test_a_file_that_changed_is_not_what_the_run_was_given(words, tmp_path):
    assert train(parse_command_line([*words, "--out", str(tmp_path / "run")])) == 0
    (tmp_path / "mine.txt").write_text("9 9 9\n")
    assert len(load_run(tmp_path / "run").scene.points) == 3
    (tmp_path / "other.txt").write_text("9 9 9\n")
    with pytest.raises(UserError, match=r"points of .* are not those that it was trained on"):
        train(parse_command_line(["--resume", str(tmp_path / "run"), "--points", str(tmp_path / "other.txt")]))
    assert (tmp_path / "run/initial_points.txt").read_text().startswith("0 0 0")


def test_a_fork_has_a_copy_of_its_own(words, tmp_path):
    assert train(parse_command_line([*words, "--out", str(tmp_path / "run")])) == 0
    (tmp_path / "mine.txt").unlink()
    fork = parse_command_line(["--resume", str(tmp_path / "run"), "--out", str(tmp_path / "fork")])
    assert train(fork) == 0
    assert (tmp_path / "fork/initial_points.txt").read_bytes() == (tmp_path / "run/initial_points.txt").read_bytes()


def test_points_are_not_deleted_with_the_run_that_they_are_part_of(words, tmp_path):
    run = tmp_path / "run"
    assert train(parse_command_line([*words, "--out", str(run)])) == 0
    (run / "exported").mkdir()
    for place in ("initial_points.txt", "exported/points.txt"):
        (run / place).write_text("1 1 1\n")
        config = parse_command_line([*words, "--out", str(run), "--overwrite", "--points", str(run / place)])
        with pytest.raises(UserError, match="is part of the run that --overwrite deletes; copy it"):
            train(config)
        assert (run / place).is_file()
        assert newest(run).header.step == 20
