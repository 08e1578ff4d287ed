"""`eval cost`: what classification costs beside regression, as a command on a small scene."""

import re

import pytest
import training_toy

from nfc_splat.errors import UserError
from nfc_splat.eval.__main__ import main
from nfc_splat.eval.cost import take_turns, variants
from nfc_splat.fields import METHODS
from nfc_splat.training.command_line import parse_command_line


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)
    return training_toy.write_scene(tmp_path / "scene")


def test_the_command_prints_both_losses_and_the_cost(scene, capsys, tmp_path):
    assert main(["cost", str(scene), "--method", "toy", "--steps", "30", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ *regression +\d+\.\d\d ms$", printed, re.MULTILINE)
    assert re.search(r"^ *classification +\d+\.\d\d ms +[+-]\d+\.\d %$", printed, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


def test_a_wrong_flag_is_one_line(scene):
    with pytest.raises(UserError, match="--loss-weight"):
        main(["cost", str(scene), "--method", "toy", "--loss-weight", "3"])


def test_only_the_loss_differs(scene):
    config = parse_command_line([str(scene), "--method", "toy", "--seed", "7", "--steps", "12"])
    found = variants(config)
    assert [other.loss for other in found.values()] == ["regression", "classification"]
    assert found["classification"].loss_weight == training_toy.METHOD.loss_weight
    assert all((other.seed, other.model) == (7, config.model) for other in found.values())


def test_fields_are_also_compared_with_an_encoding(tmp_path):
    config = parse_command_line([str(tmp_path), "--method", "nerf", "--target-encoding", "gray"])
    found = variants(config)
    assert list(found) == ["regression", "classification", "classification, gray encoding"]
    assert [other.model.target_encoding for other in found.values()] == ["none", "none", "gray"]


def test_everyone_takes_every_step_and_begins_in_turn():
    calls = []

    class Stub:
        config = type("Config", (), {"device": "cpu"})

        def __init__(self, name):
            self.name = name

        def step(self):
            calls.append(self.name)

    seconds = take_turns({"a": Stub("a"), "b": Stub("b")}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [len(times) for times in seconds.values()] == [3, 3]
