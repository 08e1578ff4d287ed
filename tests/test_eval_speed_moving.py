"""`eval speed --moving`: a step of a 4dgs run beside one of its Gaussians standing still, as a command."""

import dataclasses
import re

import pytest
import torch
from moving_toys import moving_config, write_moving_scene

from nfc_splat.errors import UserError
from nfc_splat.eval import speed
from nfc_splat.eval.__main__ import main
from nfc_splat.eval.speed_moving import make_pair
from nfc_splat.train import train
from nfc_splat.training.config import default_config, resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs on one scene: `moving`, of both stages, and `static`, of 3dgs."""
    root = tmp_path_factory.mktemp("moving")
    scene = write_moving_scene(root / "disc")
    model = moving_config(steps=12, coarse_steps=6, refine_stop=4, dssim_weight=0.1)
    for name, method, changes in (("moving", "4dgs", {"model": model}), ("static", "3dgs", {})):
        config = default_config(scene, method=method, preset="quick", steps=2, device="cpu")
        if not changes:
            changes = {"model": dataclasses.replace(config.model, backend="reference", init_points=20)}
        config = dataclasses.replace(config, out=root / name, threads=1, quiet=True, loss="classification", **changes)
        assert train(resolve(config)) == 0
    return root


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_command_prints_both_steps_and_their_ratio_and_writes_nothing(folder, capsys):
    before = files(folder)
    assert main(["speed", "--moving", str(folder / "moving"), "--steps", "5", "--threads", "1"]) == 0
    head, columns, still, moving = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{folder / 'moving'}: \d+ Gaussians, 5 steps each in turn, 1 threads, on cpu", head)
    assert columns.split() == ["step", "of", "median", "ratio"]
    assert re.fullmatch(r" +3dgs +\d+\.\d\d ms +1\.00", still)
    assert re.fullmatch(r" +4dgs +\d+\.\d\d ms +\d+\.\d\d", moving)
    assert files(folder) == before


def test_only_the_motion_differs(folder):
    pair = make_pair(folder / "moving", 1)
    still, moving = (pair[name].state.model for name in ("3dgs", "4dgs"))
    assert moving.deforming
    for name, tensor in moving.splats().items():
        assert torch.equal(still.splats()[name], tensor)
    assert still.active_sh_degree == moving.active_sh_degree
    for field in dataclasses.fields(still.config):
        if field.name not in ("refine_start", "refine_stop", "reset_every"):
            assert getattr(still.config, field.name) == getattr(moving.config, field.name)
    assert [trainer.state.step for trainer in pair.values()] == [12, 12]
    assert [trainer.config.loss for trainer in pair.values()] == ["classification"] * 2
    before = still.means.detach().clone()
    for trainer in pair.values():
        assert trainer.step() is not None
    assert not torch.equal(still.means, before)
    assert len(still.means) == len(moving.means) == len(before)


def test_runs_that_do_not_move_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"is 3dgs at step 2 of 2; expected a finished run of --method 4dgs"):
        speed.main(["--moving", str(folder / "static"), "--steps", "1"])
    with pytest.raises(UserError, match="expected a run folder"):
        speed.main(["--moving", str(tmp_path), "--steps", "1"])
