"""Protocols: the published table of shifted boxes, culling, crops and frames, and pairs that must be refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from geometry_toys import (
    box_mesh,
    joined,
    looking_poses,
    moved,
    open3d_or_skip,
    panorama,
    sphere_mesh,
    write_trajectory,
)

from nfc_splat.errors import UserError
from nfc_splat.eval.culling import DEPTH_OFFSET, Frusta, cull_by_frusta, read_frusta, read_trajectory, visible_vertices
from nfc_splat.eval.evaluation import evaluate_mesh
from nfc_splat.eval.protocols import PROTOCOLS, Protocol, SceneGeometry, find_protocol, with_choices
from nfc_splat.eval.scene_files import read_matrix, read_scene_geometry
from nfc_splat.eval.surface import Box, Surface, transform_surface
from nfc_splat.rendering.kernels.threads import set_threads

REPLICA = PROTOCOLS["replica"]
FEW = Protocol("few", "tests", thresholds=(0.05,), samples=20_000, repeats=2)


def all_around(place=(3.0, 2.5, 1.5)):
    """Cameras in the middle of the box that see everything."""
    poses = np.concatenate([panorama(place, 12, tilt) for tilt in (-1.5, 0.0, 1.5)])
    return Frusta(np.linalg.inv(poses))


# ------------------------------------------------------------------------------------------------ published numbers


@pytest.mark.parametrize(
    ("shift", "chamfer_cm", "f_percent"),
    [(0.02, 1.53, 100), (0.049, 2.16, 86.0), (0.051, 2.20, 76.9), (0.1, 3.34, 76.3)],
)
def test_a_shifted_box_gives_the_known_numbers(shift, chamfer_cm, f_percent):
    """A room of 6 x 5 x 3 m whose prediction is shifted along x, under MonoSDF's protocol with 200,000 samples."""
    gt = box_mesh()
    metrics = evaluate_mesh(
        moved(gt, [shift, 0, 0]),
        gt,
        replace(REPLICA, repeats=1),
        scene=SceneGeometry(frusta=all_around()),
    )
    assert 100 * metrics.chamfer_l1 == pytest.approx(chamfer_cm, abs=0.03)
    assert 100 * metrics.fscore == pytest.approx(f_percent, abs=0.4)
    assert 100 * metrics.floor["chamfer_l1_mean"] == pytest.approx(50 * math.sqrt(126 / 200_000), rel=0.02)
    if shift == 0.1:
        assert 100 * metrics.normal_consistency == pytest.approx(97.5, abs=0.1)


@pytest.mark.parametrize(("area", "floor_cm"), [(90, 1.06), (126, 1.25), (180, 1.50)])
def test_the_floor_follows_the_area(area, floor_cm):
    gt = box_mesh()
    room = Surface(gt.vertices * math.sqrt(area / 126), gt.faces)
    metrics = evaluate_mesh(room, room, replace(PROTOCOLS["plain"], thresholds=(0.05,), repeats=1))
    for name in ("accuracy", "completeness"):
        assert 100 * metrics[name] == pytest.approx(floor_cm, abs=0.012)
        assert 100 * metrics.floor[name] == pytest.approx(floor_cm, abs=0.012)


def test_a_perfect_mesh_gets_the_sampling_floor():
    gt = box_mesh(divisions=2)
    metrics = evaluate_mesh(gt, gt, REPLICA, scene=SceneGeometry(frusta=all_around()))
    assert 100 * metrics.chamfer_l1 == pytest.approx(1.255, rel=0.01)
    assert metrics.fscore == pytest.approx(1.0, abs=1e-4)
    assert 100 * metrics.normal_consistency == pytest.approx(99.55, abs=0.05)
    for name, value in metrics.values.items():
        assert metrics.floor[name] == pytest.approx(value, rel=0.35 if name.endswith(("_max", "dorff")) else 0.02)


# ------------------------------------------------------------------------------------------------ culling


def slow_visibility(vertices, frusta):
    """Camera by camera with a division, in float32, as published: OpenGL's negative depth plus 1e-5."""
    seen = np.zeros(len(vertices), bool)
    points = vertices.astype(np.float32)
    for matrix in frusta.world_to_camera.astype(np.float32):
        x, y, z = (points @ matrix[:3, :3].T + matrix[:3, 3]).T
        depth = np.float32(-1) * z + np.float32(DEPTH_OFFSET)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = frusta.fx * x / -depth + frusta.cx
            v = frusta.fy * y / -depth + frusta.cy
        seen |= (depth <= 0) & (u > 0) & (u < frusta.width) & (v > 0) & (v < frusta.height)
    return seen


@pytest.mark.parametrize("count", [1, 15, 16, 17, 200])
def test_visibility_equals_a_slow_projection(count):
    random = np.random.default_rng(count)
    places = random.normal(size=(count, 3))
    frusta = Frusta(np.linalg.inv(looking_poses(places, places + random.normal(size=(count, 3)) * 0.3 + [1, 0, 0])))
    vertices = np.concatenate([random.normal(size=(6000, 3)) * 4, places])
    expected = slow_visibility(vertices, frusta)
    assert 0 < expected.sum() < len(vertices)
    result = visible_vertices(vertices, frusta)
    # A point on the edge of a view may round either way.
    assert (result != expected).sum() <= 2


def test_the_edges_of_a_view_are_outside():
    frusta = Frusta(np.eye(4)[None], fx=1.0, fy=1.0, cx=2.0, cy=2.0, width=4, height=4)
    z = 1.0
    rows = [[0, 0, z], [-1.99, 0, z], [-2.01, 0, z], [1.99, 0, z], [2.01, 0, z], [0, 2.01, z], [0, 0, -z], [0, 0, 0]]
    assert visible_vertices(np.array(rows), frusta).tolist() == [True, True, False, True, *[False] * 4]
    behind_all = np.array([[0, 0, 1e9], [0, 0, 5e-6], [0, 0, 2e-5]])
    assert visible_vertices(behind_all, frusta).tolist() == [True, False, True]


def test_the_number_of_threads_changes_no_visibility():
    vertices = np.random.default_rng(0).normal(size=(20_000, 3)) * 4
    frusta = Frusta(np.linalg.inv(panorama([0, 0, 0], 3)))
    results = []
    for threads in (1, 2):
        set_threads(threads)
        results.append(visible_vertices(vertices, frusta))
    set_threads(None)
    assert np.array_equal(*results)


def test_culling_keeps_faces_with_one_visible_corner_and_ignores_occlusion():
    looking_at_x = Frusta(np.linalg.inv(looking_poses([[0, 0, 0]], [[1, 0, 0]])))
    near = Surface(np.array([[2.0, 0, 0], [2, 50, 0], [2, 0, 50]]), np.array([[0, 1, 2]], np.int32))
    hidden = moved(near, [5, 0, 0])
    behind = moved(near, [-10, 0, 0])
    culled = cull_by_frusta(joined(near, hidden, behind), looking_at_x)
    assert culled.faces.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.array_equal(cull_by_frusta(culled, looking_at_x).faces, culled.faces)
    cloud = cull_by_frusta(Surface(joined(near, behind).vertices), looking_at_x)
    assert cloud.vertices.tolist() == [[2, 0, 0]]


def test_what_no_camera_sees_does_not_count_and_what_is_hidden_does():
    room = box_mesh(divisions=4)
    frusta = Frusta(np.linalg.inv(looking_poses([[1, 2.5, 1.5]], [[6, 2.5, 1.5]])))
    scene = SceneGeometry(frusta=frusta)
    protocol = replace(REPLICA, samples=150_000, repeats=1)
    perfect = evaluate_mesh(room, room, protocol, scene=scene)
    sheet = moved(box_mesh((0.2, 4, 2)), [0.05, 0.5, 0.5])  # behind the camera
    unseen = evaluate_mesh(joined(room, sheet), room, protocol, scene=scene)
    assert unseen["precision@0.05"] == pytest.approx(perfect["precision@0.05"], abs=0.005)
    in_view = moved(box_mesh((0.1, 4, 2)), [5.5, 0.5, 0.5])
    seen = evaluate_mesh(joined(room, in_view), room, protocol, scene=scene)
    assert seen["precision@0.05"] < perfect["precision@0.05"] - 0.1
    assert seen["recall@0.05"] == pytest.approx(perfect["recall@0.05"], abs=0.005)
    outside = moved(box_mesh((0.1, 4, 2)), [8.0, 0.5, 0.5])  # in the view, but outside the crop
    cropped = evaluate_mesh(joined(room, outside), room, protocol, scene=scene)
    assert cropped["precision@0.05"] == pytest.approx(perfect["precision@0.05"], abs=0.005)
    steps = {step["step"]: step for step in cropped.protocol["steps"]}
    assert steps["crop to box"]["pred"]["before"] - steps["crop to box"]["pred"]["after"] == 12
    assert steps["frustum culling"]["poses"] == 1
    areas = [cropped.protocol[block]["area"] for block in ("pred", "gt")]
    left = [cropped.protocol["samples"]["of"][block]["area"] for block in ("pred", "gt")]
    assert areas[0] - left[0] == pytest.approx(areas[1] - left[1] + 2 * (4 * 2 + 0.1 * 6))
    assert any("keeps" in note and "of the truth" in note for note in cropped.notes)


# ------------------------------------------------------------------------------------------------ frames and boxes


def test_a_prediction_in_a_normalised_frame_is_brought_to_the_truths():
    gt = box_mesh(divisions=1)
    to_world = np.diag([3.3, 3.3, 3.3, 1.0])
    to_world[:3, 3] = [3, 2.5, 1.5]
    normalised = transform_surface(gt, np.linalg.inv(to_world))
    metrics = evaluate_mesh(normalised, gt, FEW, scene=SceneGeometry(to_world=to_world))
    assert metrics.chamfer_l1 == pytest.approx(0.5 * math.sqrt(126 / 20_000), rel=0.03)
    odd = evaluate_mesh(normalised, moved(gt, [-3, -2.5, -1.5]), FEW)
    assert any("0.303 times as large" in note and "--to-world" in note for note in odd.notes)


def test_a_box_that_is_given_decides_the_crop():
    gt = box_mesh(divisions=4)
    half = Box(np.eye(4), np.array([6.0, 20, 20]))  # x in -3 to 3
    metrics = evaluate_mesh(
        gt, gt, replace(FEW, crop=1.0, thresholds=(0.2,)), scene=SceneGeometry(box=half, origin={"box": "half.json"})
    )
    assert metrics["precision@0.2"] > 0.99
    assert metrics["recall@0.2"] < 0.6
    assert metrics.protocol["steps"][0]["by"] == "half.json"


def test_the_crop_reaches_to_vertices_that_no_face_of_the_truth_uses():
    """MonoSDF's scripts keep them when they cull, and fit the box to all."""
    gt = box_mesh()
    padded = Surface(np.concatenate([gt.vertices, [[9.0, 2, 1]]]), gt.faces)
    beyond = joined(gt, moved(box_mesh((0.1, 1, 1)), [7, 2, 1]))
    extents = []
    for truth, faces in ((gt, 12), (padded, 24)):
        metrics = evaluate_mesh(beyond, truth, replace(FEW, crop=1.05))
        step = metrics.protocol["steps"][0]
        assert step["pred"]["after"] == faces
        extents.append(max(step["box"]["extents"]))
    assert extents == pytest.approx([6, 9], rel=0.05)


@pytest.mark.parametrize(("factor", "message"), [(1000.0, "1,000 times as large"), (0.001, "0.001 times as large")])
def test_a_scale_of_another_unit_is_refused_with_both_boxes(factor, message):
    gt = box_mesh()
    pred = Surface(gt.vertices * factor, gt.faces)
    with pytest.raises(UserError) as refusal:
        evaluate_mesh(pred, gt, FEW)
    assert message in str(refusal.value)
    assert "the truth in (0, 0, 0) to (6, 5, 3)" in str(refusal.value)
    assert "--force" in str(refusal.value)


def test_boxes_that_do_not_meet_are_refused_unless_forced():
    gt = box_mesh()
    apart = moved(gt, [0, 0, 7])
    with pytest.raises(UserError, match=r"do not meet: .*\(0, 0, 7\) to \(6, 5, 10\), the truth in \(0, 0, 0\) to"):
        evaluate_mesh(apart, gt, FEW)
    forced = evaluate_mesh(apart, gt, FEW, force=True)
    assert forced.fscore == 0
    assert forced["accuracy"] > 4
    assert "do not meet" in forced.notes[0]


# ------------------------------------------------------------------------------------------------ next to nothing


def test_a_prediction_that_nothing_sees_is_refused_or_zero_never_perfect():
    gt = box_mesh(divisions=3)
    frusta = Frusta(np.linalg.inv(looking_poses([[1, 2.5, 1.5]], [[6, 2.5, 1.5]])))
    unseen = moved(box_mesh((0.3, 0.3, 0.3)), [0.1, 0.1, 0.1])
    scene, protocol = SceneGeometry(frusta=frusta), replace(REPLICA, samples=5000, repeats=1)
    with pytest.raises(UserError, match="frustum culling leaves nothing of the prediction"):
        evaluate_mesh(unseen, gt, protocol, scene=scene)
    metrics = evaluate_mesh(unseen, gt, protocol, scene=scene, force=True)
    assert metrics.chamfer_l1 is None
    assert metrics.accuracy is None
    assert (metrics.fscore, metrics["recall@0.05"]) == (0.0, 0.0)
    assert any("no distance exists" in note for note in metrics.notes)
    json.dumps(metrics.record(), allow_nan=False)
    away = Frusta(np.linalg.inv(looking_poses([[20, 2.5, 1.5]], [[30, 2.5, 1.5]])))
    with pytest.raises(UserError, match="leaves nothing of the truth"):
        evaluate_mesh(gt, gt, protocol, scene=SceneGeometry(frusta=away), force=True)


def test_one_point_is_measured_against_one_point():
    one, other = Surface(np.array([[0.0, 0, 0]])), Surface(np.array([[0.0, 0, 0]]))
    metrics = evaluate_mesh(one, other, FEW)
    assert (metrics.accuracy, metrics.fscore) == (0.0, 1.0)
    assert metrics.interval["accuracy"] is None
    assert metrics.normal_consistency is None
    assert any("no sampling floor" in note for note in metrics.notes)
    assert not any("times as large" in note for note in metrics.notes)
    with pytest.raises(UserError, match="single place"):
        evaluate_mesh(one, other, replace(FEW, thresholds=None))
    against_mesh = evaluate_mesh(Surface(np.array([[3.0, 2.5, 0]])), box_mesh(), FEW)
    assert against_mesh["precision@0.05"] == 1
    assert against_mesh["recall@0.05"] < 0.01
    assert against_mesh.chamfer_l1 > 1


@pytest.mark.parametrize(
    ("surface", "why"),
    [
        (Surface(np.empty((0, 3)), np.empty((0, 3), np.int32)), ""),
        (Surface(np.empty((0, 3))), ""),
        (Surface(np.full((3, 3), np.nan), np.array([[0, 1, 2]])), "bad vertices left out: 3"),
        (Surface(np.zeros((3, 3)), np.array([[0, 1, 2]])), "faces without area left out: 1"),
        (Surface(np.full((2, 3), np.inf)), "bad vertices left out: 2"),
    ],
    ids=["empty", "empty cloud", "nan", "no area", "infinite cloud"],
)
def test_a_surface_of_nothing_is_refused_or_zero(surface, why):
    gt = box_mesh()
    with pytest.raises(UserError, match=f"the prediction: holds nothing to measure.*{why}"):
        evaluate_mesh(surface, gt, FEW)
    with pytest.raises(UserError, match="the truth: holds nothing to measure"):
        evaluate_mesh(gt, surface, FEW, force=True)
    for protocol in (FEW, replace(REPLICA, samples=2000, repeats=1), replace(PROTOCOLS["nice-slam"], samples=2000)):
        forced = evaluate_mesh(surface, gt, protocol, scene=SceneGeometry(frusta=all_around()), force=True)
        assert forced.chamfer_l1 is None
        assert (forced["precision@0.05"], forced["recall@0.05"], forced.fscore) == (0, 0, 0)
        assert any("no distance exists" in note for note in forced.notes)
        json.dumps(forced.record(), allow_nan=False)


def test_what_was_dropped_is_counted_in_the_record():
    gt = box_mesh(divisions=2)
    spoilt = gt.vertices.copy()
    spoilt[5] = np.nan
    metrics = evaluate_mesh(Surface(spoilt, gt.faces), gt, FEW)
    record = metrics.record()
    assert record["protocol"]["pred"]["bad_vertices"] == 1
    assert record["protocol"]["pred"]["faces_with_bad_vertices"] > 0
    assert any("bad vertices left out: 1" in note for note in metrics.notes)
    assert 0 < metrics.chamfer_l1 < 0.1
    assert {"name", "reproduces", "steps", "samples", "alignment", "versions", "hardware"} <= set(record["protocol"])
    json.dumps(record, allow_nan=False)


def test_the_default_threshold_is_a_hundredth_of_the_truths_diagonal():
    gt = sphere_mesh()
    metrics = evaluate_mesh(gt, gt, replace(FEW, thresholds=None))
    assert metrics.thresholds[0] == pytest.approx(0.01 * math.sqrt(12), rel=1e-3)


# ------------------------------------------------------------------------------------------------ NICE-SLAM


def test_icp_takes_out_a_small_motion_and_says_so():
    gt = joined(box_mesh(divisions=5), moved(sphere_mesh(0.5, 20), [2, 2, 1.5]))
    pred = moved(gt, [0.05, 0.02, -0.03])
    protocol = replace(PROTOCOLS["nice-slam"], samples=20_000, repeats=1, depth_views=20)
    metrics = evaluate_mesh(pred, gt, protocol, scene=SceneGeometry(frusta=all_around()))
    floor = 0.5 * math.sqrt(129 / 20_000)
    assert metrics.accuracy == pytest.approx(floor, rel=0.05)
    shift = np.array(metrics.protocol["alignment"]["matrix"])[:3, 3]
    np.testing.assert_allclose(shift, [-0.05, -0.02, 0.03], atol=5e-3)
    assert metrics.protocol["alignment"]["inlier_rmse"] < 0.01
    assert 0 <= metrics["depth_l1"] < 0.05
    assert metrics.protocol["depth"]["views"] == 20
    assert any("--unseen" in note for note in metrics.notes)
    cloud = evaluate_mesh(Surface(pred.vertices), gt, protocol, scene=SceneGeometry(frusta=all_around()))
    assert cloud["depth_l1"] is None
    assert any("two meshes" in note for note in cloud.notes)


# ------------------------------------------------------------------------------------------------ files and choices


def test_a_protocol_without_its_cameras_says_what_is_missing():
    with pytest.raises(UserError, match="--protocol replica leaves out what no camera sees and has no cameras"):
        evaluate_mesh(box_mesh(), box_mesh(), "replica")


@pytest.mark.parametrize("seed", [-1, 2**30, 5_000_000_000])
def test_seeds_that_open3d_does_not_take_are_refused(seed):
    with pytest.raises(UserError, match=f"--seed {seed}: expected 0 to 1,073,741,8"):
        evaluate_mesh(box_mesh(), box_mesh(), FEW, seed=seed)
    assert evaluate_mesh(box_mesh(), box_mesh(), replace(FEW, samples=10), seed=2**30 - 3).fscore < 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"samples": 0}, "expected at least 1"),
        ({"repeats": 0}, "expected at least 1"),
        ({"thresholds": (0.1, -1.0)}, "--threshold -1"),
        ({"thresholds": (math.nan,)}, "--threshold nan"),
    ],
)
def test_choices_without_meaning_are_refused(choice, message):
    with pytest.raises(UserError, match=message):
        with_choices(REPLICA, **choice)
    with pytest.raises(UserError, match="protocol 'monosdf': expected one of plain, replica"):
        find_protocol("monosdf")


def test_scene_folders_of_both_layouts_are_understood(tmp_path):
    poses = panorama([0, 0, 0], 5)
    nice, mono = tmp_path / "room0", tmp_path / "scan1"
    for folder in (nice, mono):
        folder.mkdir()
        write_trajectory(folder / "traj.txt", poses)
    (tmp_path / "cam_params.json").write_text(
        json.dumps({"camera": {"w": 640, "h": 480, "fx": 500, "fy": 501, "cx": 319.5, "cy": 239.5, "scale": 6553.5}})
    )
    geometry = read_scene_geometry(nice)
    assert geometry.to_world is None
    assert (geometry.frusta.width, geometry.frusta.fy, len(geometry.frusta)) == (640, 501.0, 5)
    np.testing.assert_allclose(geometry.frusta.world_to_camera @ poses, np.tile(np.eye(4), (5, 1, 1)), atol=1e-7)
    (tmp_path / "cam_params.json").unlink()
    matrix = np.diag([2.0, 2, 2, 1])
    np.savez(mono / "cameras.npz", scale_mat_0=matrix, world_mat_0=np.eye(4))
    geometry = read_scene_geometry(mono)
    assert np.array_equal(geometry.to_world, matrix)
    assert (geometry.frusta.width, geometry.frusta.cx) == (1200, 599.5)
    (mono / "meta_data.json").write_text(
        json.dumps({"worldtogt": (3 * np.eye(4) - 2 * np.diag([0, 0, 0, 1])).tolist()})
    )
    assert read_scene_geometry(mono).to_world[0, 0] == 3
    assert read_scene_geometry(mono, to_world="identity").to_world is None
    assert read_scene_geometry(str(mono)).origin["to_world"].endswith("meta_data.json")


def test_a_matrix_is_read_from_a_text(tmp_path):
    (tmp_path / "matrix.txt").write_text("1 0 0 5\n0 1 0 6\n0 0 1 7\n0 0 0 1\n")
    assert read_matrix(tmp_path / "matrix.txt")[:3, 3].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta.json", b"{}"),
        ("short.txt", b"1 2 3"),
        ("bad.npz", b"no archive"),
        ("absent.txt", None),
        ("nan.txt", b"nan 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"),
        ("projective.txt", b"1 0 0 0 0 1 0 0 0 0 1 0 0 0 1 1"),
    ],
)
def test_files_without_a_matrix_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read_matrix(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 poses"),
        ("1 2 3\n", "pose 1 has 3 numbers"),
        (" ".join(["x"] * 16), "expected numbers"),
        (" ".join(["2", "0", "0", "0", "0"] * 3 + ["1"]), "pose 1 is not a rotation"),
        (" ".join(["1", "0", "0", "0", "0"] * 3 + ["1"]) + "\n" + " ".join(["nan"] * 16), "pose 2"),
    ],
)
def test_files_that_are_no_trajectory_are_refused(tmp_path, text, message):
    (tmp_path / "traj.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_trajectory(tmp_path / "traj.txt")


def test_a_lens_without_sizes_is_refused(tmp_path):
    write_trajectory(tmp_path / "traj.txt", panorama([0, 0, 0], 2))
    for camera in ({}, {"w": 0, "h": 1, "fx": 1, "fy": 1, "cx": 1, "cy": 1}):
        (tmp_path / "cam_params.json").write_text(json.dumps({"camera": camera}))
        with pytest.raises(UserError, match="cam_params"):
            read_frusta(tmp_path / "traj.txt", tmp_path / "cam_params.json")
    with pytest.raises(UserError, match="no such folder"):
        read_scene_geometry(tmp_path / "absent")
    (tmp_path / "Replica" / "room0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Replica: holds no traj\.txt; expected one as Replica/room0 is"):
        read_scene_geometry(tmp_path / "Replica")
    assert read_scene_geometry(tmp_path / "Replica", cameras_wanted=False).frusta is None


def test_the_bunny_at_two_resolutions(data_root):
    open3d_or_skip()
    meshes = data_root / "meshes"
    if not meshes.is_dir():
        pytest.skip(f"no meshes at {meshes}")
    coarse, fine = meshes / "bun_zipper_res4.ply", meshes / "bun_zipper_res2.ply"
    metrics = evaluate_mesh(coarse, fine, replace(FEW, thresholds=(0.002,), samples=50_000))
    # The bunny is 0.155 wide; 948 triangles stand off by about 0.4 % of that.
    assert 0.0004 < metrics.chamfer_l1 < 0.0015
    assert 0.8 < metrics.fscore < 0.95
    assert metrics.floor["chamfer_l1_mean"] < metrics.chamfer_l1
