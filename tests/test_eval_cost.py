"""`eval cost`: what classification costs beside regression, as a command on a small scene."""

import re

import pytest
import training_toy
from moving_toys import write_moving_scene

from nfc_splat.errors import UserError
from nfc_splat.eval.__main__ import main
from nfc_splat.eval.cost import cost_table, take_turns, variants
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


def test_each_stage_has_its_own_cost(tmp_path, capsys):
    scene = write_moving_scene(tmp_path / "disc")
    words = ["cost", str(scene), "--method", "4dgs", "--steps", "8", "--coarse-steps", "3", "--threads", "1"]
    words += ["--backend", "reference", "--init-points", "20", "--refine-start", "9"]
    assert main(words) == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert "8 steps each" in head
    assert columns.split() == ["stage", "loss", "median", "step", "cost"]
    losses = ["regression", "classification"]
    assert [row.split()[:2] for row in rows] == [
        [stage, loss] for stage in ("coarse", "fine", "all") for loss in losses
    ]


def test_stages_are_counted_apart_and_weigh_as_many_steps_as_they_have():
    """Ten steps of which the first does not count, five of which none is left out, and a round of different ones."""
    seconds = {
        "regression": [9.0] + [1.0] * 9 + [3.0] * 5 + [50.0],
        "classification": [99.0] + [1.5] * 9 + [6.0] * 5 + [1.0],
    }
    stages = [{"coarse"}] * 10 + [{"fine"}] * 5 + [{"coarse", "fine"}]
    assert cost_table(seconds, stages)[1:] == [
        ["coarse", "regression", "1000.00 ms", ""],
        ["coarse", "classification", "1500.00 ms", "+50.0 %"],
        ["fine", "regression", "3000.00 ms", ""],
        ["fine", "classification", "6000.00 ms", "+100.0 %"],
        ["all", "regression", "1666.67 ms", ""],
        ["all", "classification", "3000.00 ms", "+80.0 %"],
    ]
    assert cost_table(seconds, [{""}] * 16)[0] == ["loss", "median step", "cost"]


def test_recipes_know_their_stages():
    from dvgo_toys import ball_geometry

    from nfc_splat.fields import dvgo, neus, strivec

    dvgo_config = dvgo.preset("quick", steps=20, coarse_steps=5, bounded="yes")
    strivec_config = strivec.preset("quick", steps=20, coarse_steps=5)
    neus_config = neus.preset("quick", steps=20, shape_steps=5)
    geometry = ball_geometry()
    for module, config, names in (
        (dvgo, dvgo_config, ["coarse", "fine"]),
        (dvgo, dvgo.preset("quick", steps=20, bounded="no"), ["fine", "fine"]),
        (strivec, strivec_config, ["coarse", "tensors"]),
        (strivec, strivec.preset("quick", steps=20, geometry="points"), ["tensors", "tensors"]),
    ):
        recipe = module.Recipe(config, geometry)
        assert [recipe.stage(step) for step in (5, 6)] == names
    recipe = neus.Recipe(neus_config, geometry)
    assert recipe.stage(1) == ("density" if recipe.shaping else "surface") == "density"


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
