"""The Tanks and Temples protocol on a made scene: alignment from cameras or a matrix, crop, voxels, what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from geometry_toys import box_mesh, joined, looking_poses, moved, open3d_or_skip, sphere_mesh, write_mesh

from nfc_splat.errors import UserError
from nfc_splat.eval import mesh
from nfc_splat.eval.evaluation import evaluate_mesh
from nfc_splat.eval.protocols import PROTOCOLS, SceneGeometry
from nfc_splat.eval.surface import Surface, sample_surface, transform_surface
from nfc_splat.eval.tanks import (
    align_cameras,
    crop_to_volume,
    read_camera_log,
    read_mapping,
    read_tanks_scene,
    thin_out,
    voxel_downsample,
)

TAU = 0.02
PROTOCOL = replace(PROTOCOLS["tanks-and-temples"], samples=60_000, thresholds=(TAU,))


def similarity(scale, degrees, shift):
    angle, matrix = math.radians(degrees), np.eye(4)
    turn = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    matrix[:3, :3], matrix[:3, 3] = scale * np.array(turn), shift
    return matrix


def write_log(path, poses):
    rows = []
    for index, pose in enumerate(poses):
        rows.append(f"{index} {index} 0")
        rows += [" ".join(f"{value:.9g}" for value in row) for row in pose]
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture
def scene(tmp_path):
    """Folder, truth, and the matrix from the reference cameras' frame to the truth's."""
    open3d_or_skip()
    folder = tmp_path / "Shed"
    folder.mkdir()
    gt = joined(moved(box_mesh((2, 1.5, 1)), [-1, -0.7, 0]), moved(sphere_mesh(0.3, 40), [1.2, 0.9, 0.3]))
    to_gt = similarity(0.5, 40, [0.3, -0.2, 0.1])
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    places = np.stack([3 * np.cos(angles), 3 * np.sin(angles), 1 + 0.3 * np.sin(3 * angles)], axis=1)
    inverse = np.linalg.inv(to_gt)
    poses = looking_poses(places @ inverse[:3, :3].T + inverse[:3, 3], np.tile(inverse[:3, 3], (20, 1)))
    write_log(folder / "Shed_COLMAP_SfM.log", poses)
    np.savetxt(folder / "Shed_trans.txt", to_gt)
    volume = {"class_name": "SelectionPolygonVolume", "version_major": 1, "version_minor": 0}
    volume |= {"orthogonal_axis": "Z", "axis_min": -0.1, "axis_max": 1.2}
    volume["bounding_polygon"] = [[-2.0, -2.0, 0.0], [2.0, -2.0, 0.0], [2.0, 2.0, 0.0], [-2.0, 2.0, 0.0]]
    (folder / "Shed.json").write_text(json.dumps(volume))
    return folder, gt, to_gt, poses


def cloud_of(surface, seed=9):
    return Surface(sample_surface(surface, 60_000, seed).points)


def test_a_prediction_in_the_reference_frame_is_aligned_and_perfect(scene):
    folder, gt, to_gt, _ = scene
    pred = transform_surface(gt, np.linalg.inv(to_gt) @ similarity(1.01, 0.4, [0.01, 0.0, -0.01]))
    metrics = evaluate_mesh(pred, cloud_of(gt), PROTOCOL, scene=SceneGeometry(folder=folder))
    assert metrics.fscore > 0.99
    assert metrics.protocol["alignment"]["scale"] == pytest.approx(0.5 / 1.01, rel=5e-3)
    assert len(metrics.protocol["alignment"]["rounds"]) == 3
    worse = evaluate_mesh(
        transform_surface(joined(gt, moved(sphere_mesh(0.3, 40), [-1.3, 0.4, 0.5])), np.linalg.inv(to_gt)),
        cloud_of(gt),
        PROTOCOL,
        scene=SceneGeometry(folder=folder),
    )
    assert worse["precision@0.02"] < 0.95
    assert worse["recall@0.02"] > 0.99


def test_a_mesh_is_not_sampled_as_the_truth_is(scene):
    """The same points would be at no distance at all."""
    folder, gt, to_gt, _ = scene
    pred = transform_surface(gt, np.linalg.inv(to_gt))
    metrics = evaluate_mesh(pred, gt, PROTOCOL, scene=SceneGeometry(folder=folder))
    assert metrics["accuracy"] > 1e-3


def test_cameras_give_the_frame_of_another_reconstruction(scene, tmp_path):
    folder, gt, to_gt, poses = scene
    frame = similarity(3.0, 70, [5, -4, 2])  # from the reference cameras' frame to the prediction's
    own = poses.copy()
    own[:, :3, 3] = poses[:, :3, 3] @ frame[:3, :3].T + frame[:3, 3]
    own[4, :3, 3] += 30  # one camera is lost
    write_log(tmp_path / "own.log", own)
    matrix = align_cameras(read_camera_log(tmp_path / "own.log"), read_tanks_scene(folder, TAU))
    np.testing.assert_allclose(matrix @ frame, to_gt, atol=1e-4)
    pred = transform_surface(gt, frame @ np.linalg.inv(to_gt))
    scene_geometry = SceneGeometry(folder=folder, camera_log=tmp_path / "own.log")
    assert evaluate_mesh(pred, cloud_of(gt), PROTOCOL, scene=scene_geometry).fscore > 0.99
    write_log(tmp_path / "short.log", own[:7])
    with pytest.raises(UserError, match="7 cameras, the reference of Shed has 20"):
        align_cameras(read_camera_log(tmp_path / "short.log"), read_tanks_scene(folder, TAU))


def test_the_log_of_a_whole_video_is_reduced_by_the_mapping(scene, tmp_path):
    """Of 45 frames the reference's 20 are 1, 3, 5 ..., counted from 1; the others were somewhere else."""
    folder, _, to_gt, poses = scene
    frame = similarity(3.0, 70, [5, -4, 2])
    video = np.tile(np.eye(4), (45, 1, 1))
    video[:, :3, 3] = np.random.default_rng(0).uniform(50, 90, (45, 3))
    video[0:40:2] = frame @ poses
    write_log(tmp_path / "video.log", video)
    facts = read_tanks_scene(folder, TAU)
    centers = read_camera_log(tmp_path / "video.log")
    with pytest.raises(
        UserError, match=r"45 cameras, .* has 20; .*a log of all frames .* needs .*Shed_mapping_reference"
    ):
        align_cameras(centers, facts)
    facts.mapping.write_text("20\n45\n" + "".join(f"{i} {2 * i + 1}\n" for i in range(20)))
    np.testing.assert_allclose(align_cameras(centers, facts) @ frame, to_gt, atol=1e-4)
    own = read_camera_log(folder / "Shed_COLMAP_SfM.log")
    np.testing.assert_allclose(align_cameras(own, facts), to_gt, atol=1e-4)  # as many as the reference: taken as it is


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected two counts, of cameras and of frames"),
        (b"", "is empty; expected 2, as the reference log has"),
        (b"2", "states 2 cameras and lists 0"),
        (b"2 9 1 1 2", "expected two counts"),
        (b"2 9 1 1", "states 2 cameras and lists 1"),
        (b"3 9 1 1 2 5 3 9", "states 3 cameras and lists 3; expected 2"),
        (b"2 9 1 0 2 5", "lists frames 0 to 5, expected 1 to 9"),
        (b"2 9 1 1 2 10", "lists frames 1 to 10, expected 1 to 9"),
        (b"2 9 1 1 2 -5", "lists frames -5 to 1"),
        (b"2 9 1 1 2 5.5", "expected two counts"),
        (b"2 9 1 1 2 nan", "expected two counts"),
        (b"2 9 1 1 2 99999999999999999999", "expected two counts"),
        (b"2 9 1 1 2 \xff\xfe", "expected two counts"),
    ],
)
def test_a_broken_mapping_is_named(tmp_path, content, message):
    path = tmp_path / "Shed_mapping_reference.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_mapping(path, count=2, frames=9)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_knows_the_layout(scene, capsys):
    folder, gt, to_gt, _ = scene
    write_mesh(folder / "Shed.ply", gt)
    write_mesh(folder / "pred.ply", transform_surface(gt, np.linalg.inv(to_gt)))
    words = [
        str(folder / "pred.ply"),
        str(folder / "Shed.ply"),
        "--protocol",
        "tanks-and-temples",
        "--scene",
        str(folder),
    ]
    with pytest.raises(UserError, match="'Shed' is none of Barn"):
        mesh.main(words)
    assert mesh.main([*words, "--threshold", "0.02", "--samples", "30000", "--no-pictures"]) == 0
    printed = capsys.readouterr().out
    assert "Shed_trans.txt" in printed
    assert "samples: 30,000 of a mesh; 1 times from seed 0" in printed
    assert "the means of voxels of 0.01" in printed
    write_mesh(folder / "pred.ply", moved(gt, [500, 0, 0]))
    assert mesh.main([*words, "--threshold", "0.02", "--samples", "30000", "--force"]) == 0
    printed = capsys.readouterr().out
    assert "then 0 rounds of point-to-point ICP with scale; residual none, inliers 0.000" in printed
    assert (folder / "pred-eval" / "errors.png").is_file()


def test_volumes_voxels_and_thinning(scene):
    folder, *_ = scene
    volume = read_tanks_scene(folder, TAU).volume
    points = Surface(np.array([[0.0, 0, 0.5], [3, 0, 0.5], [0, 0, 2], [-1.9, 1.9, 0]]))
    assert crop_to_volume(points, volume).vertices.tolist() == [[0, 0, 0.5], [-1.9, 1.9, 0]]
    pair = Surface(np.array([[0.0, 0, 0], [0.1, 0.1, 0.1], [5, 5, 5]]))
    reduced = voxel_downsample(pair, 1.0).vertices
    assert sorted(reduced.tolist()) == [pytest.approx([0.05] * 3), [5, 5, 5]]
    assert len(thin_out(Surface(np.zeros((100, 3))), 25).vertices) == 25
    assert len(thin_out(Surface(np.zeros((10, 3))), 25).vertices) == 10


def test_a_prediction_outside_the_volume_is_refused(scene):
    folder, gt, *_ = scene
    away, geometry = moved(gt, [500, 0, 0]), SceneGeometry(folder=folder)
    with pytest.raises(UserError, match=r"crop volume of Shed holds nothing of the prediction; .* with --force"):
        evaluate_mesh(away, cloud_of(gt), PROTOCOL, scene=geometry)
    for empty in (away, Surface(np.empty((0, 3)))):
        counted = evaluate_mesh(empty, cloud_of(gt), PROTOCOL, scene=geometry, force=True)
        assert (counted.fscore, counted["accuracy"]) == (0, None)
        assert any("precision, recall and F-score are 0" in note for note in counted.notes)
    with pytest.raises(UserError, match="holds nothing to measure"):
        evaluate_mesh(empty, cloud_of(gt), PROTOCOL, scene=geometry)
    with pytest.raises(UserError, match="give --scene FOLDER"):
        evaluate_mesh(gt, cloud_of(gt), PROTOCOL)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Shed.json", None, "no such file; expected the crop volume"),
        ("Shed.json", "{}", "holds no polygon"),
        ("Shed_trans.txt", "1 2 3", "expected 16 numbers"),
        ("Shed_COLMAP_SfM.log", "0 0 0\n1 2", "expected, per pose"),
        ("Shed_COLMAP_SfM.log", "", "0 poses"),
    ],
)
def test_broken_scene_files_are_named(scene, name, content, message):
    folder, *_ = scene
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_tanks_scene(folder, TAU)
