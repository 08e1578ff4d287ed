"""`train --view`: nothing that is learned depends on it, it takes its share of the time and ends with the training."""

import re
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import training_toy
from dvgo_toys import toy_config
from eval_toys import write_blender_scene
from moving_toys import moving_config, write_moving_scene
from view_toys import Visitor, let_in

from nfc_splat.errors import UserError
from nfc_splat.fields import METHODS
from nfc_splat.train import main, train
from nfc_splat.training.checkpoint import newest_checkpoint
from nfc_splat.training.config import default_config, resolve
from nfc_splat.view import watching
from nfc_splat.view.page import Viewer


@pytest.fixture
def ball(tmp_path):
    return write_blender_scene(tmp_path / "ball", train=6, test=2)


def spying(mode, monkeypatch):
    """Lets a visitor in that wants `mode` as soon as there is a viewer, which then works every few steps; gives a
    function that returns the visitor."""
    visitors = []

    class Watched(Viewer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            visitors.append(Visitor())
            let_in(self, visitors[0])
            self._mode.value = mode

        def close(self):
            visitors[0].splats = self._splats
            super().close()

    monkeypatch.setattr(watching, "Viewer", Watched)
    monkeypatch.setattr(watching, "SHARE", 0.9)
    monkeypatch.setattr(watching, "REFRESH_SECONDS", 0.1)
    return lambda: visitors[0]


MODELS = {
    "3dgs": dict(init_points=200, max_primitives=300, steps=25),
    "4dgs": vars(moving_config(steps=20, coarse_steps=8)),
    "dvgo": vars(toy_config(steps=80)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "mode"), [("3dgs", "normal"), ("4dgs", "splats"), ("dvgo", "color")])
def test_a_watched_training_learns_the_same_bits(tmp_path, monkeypatch, capsys, ball, method, mode):
    scene = write_moving_scene(tmp_path / "disc") if method == "4dgs" else ball
    visitor = spying(mode, monkeypatch)
    monkeypatch.setattr(watching, "SHARE", 0.99)  # so that it draws between any two steps
    monkeypatch.setattr(watching, "REFRESH_SECONDS", 0.0)
    config = default_config(scene, method=method, preset="quick", device="cpu")
    config = replace(config, model=replace(config.model, **MODELS[method]), threads=1, quiet=True)
    tensors = []
    for out, view in (("alone", False), ("watched", True)):
        assert train(resolve(replace(config, view=view, out=tmp_path / out))) == 0
        tensors.append(newest_checkpoint(tmp_path / out / "checkpoints").tensors)
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    if mode == "splats":
        assert len(visitor().splats.centers) > 20
    else:
        assert len(visitor().pictures) > 2
    assert "viewer: http://127.0.0.1:" in capsys.readouterr().out


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Costly:
    """A viewer whose pieces of work take so many seconds, the last number for ever."""

    watched = True

    def __init__(self, clock, *seconds, fails=False):
        self.clock, self.seconds, self.fails, self.worked, self.said = clock, seconds or (2.0,), fails, 0, []

    def model_changed(self, said):
        self.said.append(said)

    def work(self, model):
        if self.fails:
            raise RuntimeError("no picture")
        self.worked += 1
        self.clock.now += self.seconds[min(self.worked, len(self.seconds)) - 1]
        return True


def steps_of(watcher, clock, count):
    for step in range(1, count + 1):
        clock.now += 0.1
        watcher.after_step(SimpleNamespace(step=step, model=SimpleNamespace(primitives=7)), {})


def test_it_takes_a_tenth_of_the_time_at_most():
    clock = Clock()
    viewer = Costly(clock)
    watcher = watching.Watching(viewer, 10_000, clock)
    began = clock.now
    steps_of(watcher, clock, 2000)
    assert 2 * viewer.worked == pytest.approx(0.1 * (clock.now - began), abs=2.1)
    assert viewer.said[0] == "step 1 of 10,000, 7 primitives"
    viewer.watched = False
    worked = viewer.worked
    steps_of(watcher, clock, 2000)
    assert viewer.worked == worked  # nobody looks: nothing is drawn


def test_pieces_that_take_long_are_as_rare_but_for_the_first():
    clock = Clock()
    viewer = Costly(clock, 0.1, 60.0, 10.0)  # the second compiles
    watcher = watching.Watching(viewer, 100_000, clock)
    while viewer.worked < 2:
        steps_of(watcher, clock, 1)
    compiled = clock.now
    while viewer.worked < 3:
        steps_of(watcher, clock, 1)
    assert clock.now - compiled == pytest.approx(30 + 10, abs=0.2)
    began = clock.now
    while viewer.worked < 23:
        steps_of(watcher, clock, 1)
    assert clock.now - began == pytest.approx(20 * (90 + 10), rel=0.01)


def test_the_last_step_is_always_shown():
    clock = Clock()
    viewer = Costly(clock)
    watcher = watching.Watching(viewer, 3, clock)
    steps_of(watcher, clock, 3)
    assert viewer.said == ["step 1 of 3, 7 primitives", "step 3 of 3, 7 primitives"]


def test_a_viewer_that_fails_ends_and_the_training_does_not(caplog):
    clock = Clock()
    watcher = watching.Watching(Costly(clock, fails=True), 100, clock)
    steps_of(watcher, clock, 50)
    assert [record.getMessage() for record in caplog.records] == [
        "the viewer shows nothing new any more, training goes on: RuntimeError: no picture"
    ]


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)
    monkeypatch.chdir(tmp_path)
    return [str(training_toy.write_scene(tmp_path / "scene")), "--method", "toy", "--steps", "10", "--out", "run"]


def test_the_command_says_where_it_is_and_ends_with_the_training(toy, capsys, tmp_path):
    assert main([*toy, "--view"]) == 0
    out, err = capsys.readouterr()
    port = int(re.search(r"viewer: http://127\.0\.0\.1:(\d+)", out)[1])
    assert f"ssh -L {port}:127.0.0.1:{port}" in out
    assert "viser" not in (out + err).lower()  # its banner and its farewell
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert (tmp_path / "run/eval/summary.json").is_file()
    assert main([*toy, "--overwrite"]) == 0
    assert "viewer" not in capsys.readouterr().out


def test_what_stops_the_viewer_is_known_before_anything_is_written(toy, tmp_path, monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} at 127.0.0.1: Address already in use"):
            main([*toy, "--view", "--view-port", str(port)])
    with pytest.raises(UserError, match="--view-port 80: has no effect without --view"):
        main([*toy, "--view-port", "80"])
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(UserError, match=r"pip install 'nfc-splat\[view\]'"):
        main([*toy, "--view"])
    assert not (tmp_path / "run").exists()
