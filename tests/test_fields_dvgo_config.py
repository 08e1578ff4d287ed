"""DVGO's settings: what is published, what follows from the kind of scene and the number of steps, what is refused."""

import math
from dataclasses import fields

import pytest
import torch
from dvgo_toys import ball_geometry, toy_config

from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.fields.dvgo import LARGEST_MASK, Model, preset
from nfc_splat.fields.dvgo_config import BOUNDED, UNBOUNDED, Config, settled, thresholds, voxels_at
from nfc_splat.fields.voxel_grid import grid_size

CUBE = torch.tensor([[-1.2] * 3, [1.2] * 3])


def test_the_unbounded_thresholds_follow_the_doublings():
    published = {0: 5e-6, 1500: 1e-5, 2500: 2.5e-5, 3500: 1e-4 / 3, 4500: 5e-5, 5500: 1e-4}
    assert thresholds(settled(Config(), bounded=False)) == pytest.approx(published)
    assert thresholds(settled(Config(grow_every=10), bounded=False))[15] == pytest.approx(1e-5)
    assert thresholds(settled(Config(), bounded=True)) == {0: 1e-4}
    assert thresholds(settled(Config(alpha_threshold=3e-4), bounded=True)) == {0: 3e-4}


def test_published_settings():
    bounded, unbounded = settled(preset("paper", bounded="yes"), True), settled(preset("paper", bounded="no"), False)
    assert (bounded.steps, bounded.coarse_steps, bounded.rays, bounded.voxels) == (25_000, 5000, 8192, 160**3)
    assert (unbounded.steps, unbounded.coarse_steps, unbounded.rays, unbounded.voxels) == (30_000, 0, 4096, 320**3)
    assert (bounded.distortion, bounded.tv_density, bounded.growths) == (0, 0, 4)
    assert (unbounded.distortion, unbounded.tv_density, unbounded.tv_color, unbounded.growths) == (0.01, 1e-6, 1e-7, 7)
    for config in (bounded, unbounded):
        assert (config.entropy, config.rgbper, config.nearclip) == (1e-3, 1e-2, 0.0)
        assert (config.lr_density, config.lr_color, config.lr_net, config.adam_eps) == (0.1, 0.1, 1e-3, 1e-8)
    # Up to which size the mask grows with the grids: 253^3 of 320^3.
    nodes = [math.prod(grid_size(CUBE, voxels_at(unbounded, growth))) for growth in range(8)]
    assert [count <= LARGEST_MASK for count in nodes] == [True] * 7 + [False]
    large = settled(preset("paper", bounded="yes", voxels=256**3, growths=6), True)
    assert (large.base_voxels, voxels_at(large, 0)) == (160**3, 256**3 // 64)
    assert set(BOUNDED) >= set(UNBOUNDED) <= {field.name for field in fields(Config)}


def test_quick_settings_fit_the_kind_of_scene():
    bounded, unbounded = (settled(preset("quick"), kind) for kind in (True, False))
    for name in ("rays", "voxels"):
        assert getattr(bounded, name) == getattr(unbounded, name) < getattr(settled(preset("paper"), True), name)
    assert voxels_at(bounded, 0) == 64**3
    assert voxels_at(unbounded, 0) == 128**3 // 2**7
    assert unbounded.base_voxels == unbounded.voxels
    assert settled(preset("quick", growths=2, lr_density=0.3), False).growths == 2
    assert settled(preset("quick", lr_density=0.3), False).lr_density == 0.3


@pytest.mark.parametrize(
    ("name", "value"),
    [("distortion", 0.1), ("nearclip", 0.1), ("near_clip", 0.5), ("contraction", "inf"), ("unbounded_inner_r", 2.0)],
)
def test_settings_that_bounded_scenes_have_not(name, value):
    flag = name.replace("_", "-")
    with pytest.raises(UserError, match=rf"--{flag} {value}: has no effect in bounded scenes"):
        Model.initialise(toy_config(**{name: value}), ball_geometry())
    Model.initialise(toy_config(**{name: value}), ball_geometry(has_alpha=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(stepsize=0.01), r"--stepsize 0\.01: expected 0\.05 or more"),
        (dict(bounded="yes", coarse_steps=30_000), "--coarse-steps 30000: expected fewer than --steps 25000"),
        (dict(alpha_init=1.5), "--alpha-init 1.5: expected strictly between 0 and 1"),
        (dict(voxels=1), "--voxels 1: expected 8 to"),
        (dict(entropy=float("nan")), "--entropy nan: expected a finite number"),
        (dict(rays=0), "--rays 0: expected above 0"),
        (dict(adam_eps=0.0), r"--adam-eps 0\.0: expected above 0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        Config(**changes)


def test_the_coarse_stage_must_fit_where_there_is_one():
    assert settled(Config(bounded="no", steps=5000), bounded=False).fine_steps == 5000
    assert settled(Config(steps=5000), bounded=False).fine_steps == 5000
    with pytest.raises(UserError, match="--coarse-steps 5000: expected fewer than --steps 5000"):
        settled(Config(steps=5000), bounded=True)


@pytest.mark.parametrize("bounded", [True, False])
def test_doublings_begin_with_eight_voxels(bounded):
    assert voxels_at(settled(Config(voxels=64**3, growths=15), bounded), 0) == 8
    with pytest.raises(UserError, match=r"--growths 30: expected at most 15 with --voxels 262144"):
        settled(Config(voxels=64**3, growths=30), bounded)


def test_doublings_that_the_steps_leave_no_time_for_are_worth_a_warning(caplog):
    geometry = ball_geometry(has_alpha=False)
    Model.initialise(toy_config(growths=2, grow_every=80), geometry)  # the second one is before step 160, the last
    assert not caplog.records
    Model.initialise(toy_config(growths=2, grow_every=81), geometry)
    assert "1 fit into the fine stage's 160 steps, and 4000 of --voxels 8000 are reached" in caplog.text


def test_every_number_of_steps_scales_with_the_schedule():
    config = preset("paper", bounded="yes").scaled_to(250)
    assert (config.coarse_steps, config.grow_every, config.mask_every, config.lr_decay_steps) == (50, 10, 10, 200)
    assert config.tv_dense_until == 100
    for steps in (1, 2, 3, 7):
        tiny = preset("quick", steps=steps)
        assert tiny.steps == steps
        assert tiny.coarse_steps < steps
        assert min(tiny.grow_every, tiny.mask_every) >= 1
    assert preset("quick", steps=100, grow_every=3).grow_every == 3


def test_the_kind_of_scene_is_said(caplog):
    with caplog.at_level("INFO", "nfc_splat"):
        assert Model.initialise(toy_config(), ball_geometry()).coarse
        assert Model.initialise(toy_config(), ball_geometry(has_alpha=False)).config.bounded == "no"
    assert "images show an object alone: a bounded scene (--bounded yes)" in caplog.text
    assert "no image shows an object alone: an unbounded scene (--bounded no)" in caplog.text
    assert "published" not in caplog.text
    painted = ball_geometry(has_alpha=False, cut_out=True)  # over one colour, as NSVF's Tanks and Temples
    assert Model.initialise(toy_config(), painted).config.bounded == "yes"


def test_the_steps_of_the_wrong_kind_of_scene_are_said(caplog):
    sizes = dict(voxels=8**3, growths=2, coarse_voxels=8**3, target_encoding="none")
    with caplog.at_level("INFO", "nfc_splat"):
        Model.initialise(preset("paper", **sizes), ball_geometry())
        Model.initialise(preset("paper", bounded="no", **sizes), ball_geometry(has_alpha=False))
        assert "published" not in caplog.text
        Model.initialise(preset("paper", **sizes), ball_geometry(has_alpha=False))
    assert "published are 30000 steps for unbounded scenes: give --bounded no" in caplog.text


def test_unknown_presets_and_settings():
    with pytest.raises(UserError, match="--preset huge"):
        preset("huge")
    with pytest.raises(UserError, match="no setting depth"):
        preset("quick", depth=3)
    with pytest.raises(UserError, match="--bounded maybe"):
        preset("quick", bounded="maybe")


def test_it_is_a_method():
    method = find_method("dvgo")
    assert method.load().Model is Model
    assert method.loss_weight == 2.0
