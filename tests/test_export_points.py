"""`python -m nfc_splat.export points`: what the cameras see of an exact ball, and of Gaussians in a file."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from export_scenes import Ball, cameras_around

from nfc_splat.data.ply import read_ply_points
from nfc_splat.errors import UserError
from nfc_splat.export import points as door


@pytest.fixture
def run(monkeypatch):
    """Stands for a run whose model is an exact ball of radius 1 around the origin."""
    cameras = cameras_around(3)
    splits = {"train": SplitOf(cameras[[0, 1]]), "test": SplitOf(cameras[[2]]), "val": SplitOf(cameras[[]])}
    found = SimpleNamespace(
        scene=SimpleNamespace(splits=splits, name="ball"), config=SimpleNamespace(method="3dgs"), step=7, model=Ball()
    )
    monkeypatch.setattr(door, "load_chosen_run", lambda options: (found, "cpu"))
    return found


class Spoiled(Ball):
    """The ball with a row in three without depth, and one without a colour."""

    def render(self, cameras, pixels=None, *, background):
        drawn = super().render(cameras, pixels, background=background)
        drawn.depth[:, ::3], drawn.color[:, 1::3] = torch.nan, torch.nan
        return drawn


class SplitOf:
    def __init__(self, cameras):
        self.cameras = cameras

    def __len__(self):
        return len(self.cameras)


def exported(path, *words):
    assert door.main(["RUN", "--out", str(path), "--overwrite", *words]) == 0
    return read_ply_points(path)


def test_points_lie_on_the_surface_with_its_colours(run, tmp_path, capsys):
    cloud = exported(tmp_path / "ball.ply")
    assert len(cloud.points) > 1000
    np.testing.assert_allclose(np.linalg.norm(cloud.points, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(cloud.colors, 0.5 + 0.5 * cloud.points, atol=0.51 / 255 + 1e-4)
    assert "points of 2 views" in capsys.readouterr().out


def test_every_pixel_gives_one_point_and_fewer_come_evenly_from_all(run, tmp_path):
    cameras = run.scene.splits["train"].cameras
    seen = sum(int((run.model.render(cameras[i], background=torch.zeros(3)).alpha > 0).sum()) for i in range(2))
    whole = exported(tmp_path / "all.ply").points
    assert len(whole) == seen
    few = exported(tmp_path / "few.ply", "--count", "500").points
    assert len(few) == 500
    assert {tuple(point) for point in few.tolist()} <= {tuple(point) for point in whole.tolist()}
    centres = [cameras.centers[i].numpy() for i in range(2)]
    nearer = (np.linalg.norm(few - centres[0], axis=1) < np.linalg.norm(few - centres[1], axis=1)).mean()
    assert 0.4 < nearer < 0.6


def test_points_that_are_not_finite_are_left_out_and_counted(run, tmp_path, capsys):
    whole = exported(tmp_path / "ball.ply")
    assert "left out" not in capsys.readouterr().out
    run.model = Spoiled()
    cloud = exported(tmp_path / "spoiled.ply")
    assert 0 < len(cloud.points) < len(whole.points)
    left_out = len(whole.points) - len(cloud.points)
    assert f"  left out {left_out:,} pixels with values that are not finite\n" in capsys.readouterr().out
    assert {tuple(point) for point in cloud.points.tolist()} < {tuple(point) for point in whole.points.tolist()}
    assert cloud.colors.any(1).all()


def test_other_views_and_depths(run, tmp_path):
    train, both = exported(tmp_path / "a.ply"), exported(tmp_path / "b.ply", "--views", "all")
    assert len(both.points) > 1.3 * len(train.points)
    near = exported(tmp_path / "c.ply", "--max-depth", "2.5").points
    assert 0 < len(near) < len(train.points)


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--count", "0"], "--count 0: expected 1 to"),
        (["--max-depth", "-1"], "--max-depth -1: expected a positive length"),
        (["--max-depth", "0.1"], "--max-depth 0.1: everything is farther"),
        (["--time", "0.5"], "3dgs does not model motion"),
        (["--out", "a.obj"], "expected a name that ends with .ply"),
    ],
)
def test_refusals(run, tmp_path, words, needle):
    with pytest.raises(UserError) as caught:
        door.main(["RUN", "--out", str(tmp_path / "x.ply"), *words])
    assert needle in str(caught.value)
