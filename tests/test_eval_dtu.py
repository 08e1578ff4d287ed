"""The DTU protocol: grids on faces, thinning, the observed part, masks, the 20 mm rule, files."""

import json

import numpy as np
import pytest
from geometry_toys import box_mesh, joined, moved, open3d_or_skip, sphere_mesh, write_mesh
from PIL import Image

from nfc_splat.errors import UserError
from nfc_splat.eval import mesh
from nfc_splat.eval.dtu import (
    Observed,
    above_ground,
    cull_by_masks,
    dilate,
    in_observation_mask,
    in_observed_box,
    mesh_points,
    read_observed,
    scan_number,
    thin_to_radius,
)
from nfc_splat.eval.evaluation import evaluate_mesh
from nfc_splat.eval.protocols import PROTOCOLS, SceneGeometry
from nfc_splat.eval.scene_files import read_masked_views
from nfc_splat.eval.surface import Surface, to_open3d

OBSERVED = Observed(np.ones((30, 30, 30), bool), np.array([[-15.0] * 3, [15.0] * 3]), 1.0, np.array([0, 0, 1.0, 100]))


def test_points_on_faces_are_a_grid_and_the_vertices():
    triangle = Surface(np.array([[0.0, 0, 0], [2, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]], np.int32))
    # t = 0.25 sqrt(2 * 1 / 2), so 8 cells along x and 4 along y.
    expected = [
        [2 * (i + 0.5) / 8, (j + 0.5) / 4, 0] for i in range(8) for j in range(4) if (i + 0.5) / 8 + (j + 0.5) / 4 < 1
    ]
    points = mesh_points(triangle, 0.25)
    np.testing.assert_allclose(points[:3], triangle.vertices)
    np.testing.assert_allclose(points[3:], expected)
    assert len(mesh_points(triangle, 10.0)) == 3
    cloud = Surface(np.zeros((5, 3)))
    assert mesh_points(cloud) is cloud.vertices


def test_many_small_faces_have_their_points_too():
    sphere = sphere_mesh(5.0, 40)
    points = mesh_points(sphere, 0.05)
    assert len(points) == pytest.approx(4 * np.pi * 25 / 0.05**2, rel=0.2)  # floors leave some out
    assert np.abs(np.linalg.norm(points, axis=1) - 5).max() < 0.05


@pytest.mark.parametrize("radius", [0.05, 0.2, 3.0])
def test_thinning_leaves_no_two_within_the_radius_and_no_gap(radius):
    points = np.random.default_rng(0).random((1500, 3)) * [2, 1, 0.3] - 5
    kept = thin_to_radius(points, radius, seed=3)
    gaps = np.linalg.norm(kept[:, None] - kept[None], axis=2) + 10 * np.eye(len(kept))
    assert gaps.min() > radius
    assert np.linalg.norm(points[:, None] - kept[None], axis=2).min(1).max() <= radius
    assert np.array_equal(kept, thin_to_radius(points, radius, seed=3))
    assert len(thin_to_radius(points[:0], radius)) == 0


def test_the_observed_part_has_its_published_edges():
    points = np.array([[-75.0, 0, 0], [-75.1, 0, 0], [134.9, 0, 0], [135.0, 0, 0]])
    assert in_observed_box(points, OBSERVED).tolist() == [True, False, True, False]
    mask = np.zeros((30, 30, 30), bool)
    mask[3, 4, 5] = True
    partly = Observed(mask, OBSERVED.box, 1.0, OBSERVED.plane)
    near = np.array([[-12.0, -11, -10], [-12.4, -11.4, -9.6], [-12.6, -11, -10], [400, 0, 0]])
    assert in_observation_mask(near, partly).tolist() == [True, True, False, False]
    assert above_ground(np.array([[0, 0, -99.0], [0, 0, -101]]), OBSERVED).tolist() == [True, False]


def test_a_disk_dilates_in_a_round():
    mask = np.zeros((40, 50), bool)
    mask[5, 7] = mask[30, 49] = True
    rows, columns = np.mgrid[:40, :50]
    expected = ((rows - 5) ** 2 + (columns - 7) ** 2 <= 144) | ((rows - 30) ** 2 + (columns - 49) ** 2 <= 144)
    assert np.array_equal(dilate(mask, 12), expected)
    assert not dilate(np.zeros((4, 4), bool), 2).any()


def test_masks_cut_what_a_view_contradicts():
    projection = np.array([[100.0, 0, 50, 0], [0, 100, 50, 0], [0, 0, 1, 0]])
    mask = np.zeros((100, 100), bool)
    mask[:, :50] = True  # x < 0 is the object
    left, right = moved(box_mesh((0.1, 0.1, 0.1)), [-0.5, 0, 2]), moved(box_mesh((0.1, 0.1, 0.1)), [0.5, 0, 2])
    outside = moved(box_mesh((0.1, 0.1, 0.1)), [30, 0, 2])
    behind = moved(box_mesh((0.1, 0.1, 0.1)), [0.5, 0, -2])
    kept = [len(cull_by_masks(s, projection[None], mask[None], 2).faces) for s in (left, right, outside, behind)]
    assert kept == [12, 0, 12, 12]
    assert len(cull_by_masks(right, projection[None], mask[None], 40).faces) == 12


def savemat_or_skip():
    return pytest.importorskip("scipy.io", reason="scipy is not installed: pip install scipy").savemat


def write_observed(folder, observed=OBSERVED, scan=24):
    savemat = savemat_or_skip()
    folder.mkdir(exist_ok=True)
    savemat(
        folder / f"ObsMask{scan}_10.mat",
        {"ObsMask": observed.mask.astype(np.uint8), "BB": observed.box, "Res": observed.resolution},
    )
    savemat(folder / f"Plane{scan}.mat", {"P": observed.plane.reshape(4, 1)})


def test_the_protocol_drops_what_is_twenty_away_and_means_the_two_ways(tmp_path):
    write_observed(tmp_path / "ObsMask")
    sphere = sphere_mesh(10.0, 60)
    scan = Surface(mesh_points(sphere, 0.2))
    pred = sphere_mesh(10.5, 60)
    scene = SceneGeometry(folder=tmp_path, scan=24)
    metrics = evaluate_mesh(pred, scan, PROTOCOLS["dtu"], scene=scene)
    assert metrics.accuracy == pytest.approx(0.5, rel=0.05)
    assert metrics.completeness == pytest.approx(0.5, rel=0.05)
    assert metrics.chamfer_l1 == pytest.approx((metrics.accuracy + metrics.completeness) / 2)
    far = Surface(np.concatenate([scan.vertices, [[0.0, 0, 60]] * 500]))
    dropped = evaluate_mesh(pred, far, PROTOCOLS["dtu"], scene=scene)
    assert dropped.completeness == pytest.approx(metrics.completeness, rel=1e-3)
    nothing = evaluate_mesh(pred, moved(scan, [60, 0, 0]), PROTOCOLS["dtu"], scene=scene, force=True)
    assert nothing.chamfer_l1 is None
    assert any("they have no mean" in note for note in nothing.notes)


def test_a_prediction_of_which_nothing_counts_is_refused_or_zero(monkeypatch, tmp_path):
    """In the box of what was observed, but where the mask has nothing; or without a point at all."""
    mask = np.ones((30, 30, 30), bool)
    mask[15:] = False
    partly = Observed(mask, OBSERVED.box, 1.0, OBSERVED.plane)
    monkeypatch.setattr("nfc_splat.eval.dtu.read_observed", lambda folder, scan: partly)
    scan, pred = Surface(mesh_points(sphere_mesh(8.0, 30), 0.5)), moved(sphere_mesh(3.0, 20), [6, 0, 0])
    asked = {"protocol": PROTOCOLS["dtu"], "scene": SceneGeometry(folder=tmp_path, scan=24)}
    with pytest.raises(UserError, match=r"nothing of the prediction is in the observation mask; .* with --force"):
        evaluate_mesh(pred, scan, **asked)
    for nothing in (pred, Surface(np.empty((0, 3)))):
        metrics = evaluate_mesh(nothing, scan, **asked, force=True)
        assert (metrics.fscore, metrics.accuracy) == (0, None)
        assert any("precision, recall and F-score are 0" in note for note in metrics.notes)
    buried = Surface(scan.vertices - [0, 0, 200])
    with pytest.raises(UserError, match="nothing of the truth is above the ground"):
        evaluate_mesh(pred, buried, **asked, force=True)


def test_the_command_culls_by_masks_and_says_what_counted(tmp_path, capsys):
    write_observed(tmp_path / "ObsMask")
    sphere = moved(sphere_mesh(5.0, 40), [0, 0, 5])
    write_mesh(tmp_path / "pred.ply", joined(sphere, moved(sphere, [18, 0, 0])))
    cloud = Surface(mesh_points(sphere, 0.2))
    open3d_or_skip().io.write_point_cloud(str(tmp_path / "stl024_total.ply"), to_open3d(cloud))
    world = np.array([[100.0, 0, 100, 4000], [0, 100, 100, 4000], [0, 0, 1, 40], [0, 0, 0, 1]])  # camera at z = -40
    np.savez(tmp_path / "cameras.npz", world_mat_0=world)
    mask = np.zeros((200, 200), np.uint8)
    mask[85:115, 85:115] = 255
    (tmp_path / "mask").mkdir()
    Image.fromarray(mask).save(tmp_path / "mask" / "000.png")
    words = [str(tmp_path / "pred.ply"), str(tmp_path / "stl024_total.ply"), "--protocol", "dtu"]
    assert mesh.main([*words, "--scene", str(tmp_path), "--to-world", "identity", "--no-pictures"]) == 0
    uncut = json.loads((tmp_path / "pred-eval" / "metrics.json").read_text())
    words += ["--masks", str(tmp_path), "--to-world", "identity"]
    assert mesh.main([*words, "--scene", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mask culling: keeps 50.0 % of pred" in printed
    record = json.loads((tmp_path / "pred-eval" / "metrics.json").read_text())
    assert record["metrics"]["accuracy"] < 0.2 < uncut["metrics"]["accuracy"]
    assert record["protocol"]["observed"]["scan"] == 24
    assert record["protocol"]["unit"] == "mm"
    assert (tmp_path / "pred-eval" / "errors.png").is_file()
    with pytest.raises(UserError, match="needs ObsMask and Plane files"):
        mesh.main(words)
    (tmp_path / "mask" / "000.png").unlink()
    with pytest.raises(UserError, match=r"no mask/\*\.png"):
        mesh.main([*words, "--scene", str(tmp_path)])


def test_masks_go_by_the_numbers_in_their_names(tmp_path):
    """A scan of which some views are kept has their numbers; else there is a mask for every camera, in order."""
    worlds = {f"world_mat_{number}": np.full((4, 4), float(number)) for number in range(5)}
    np.savez(tmp_path / "cameras.npz", **worlds, scale_mat_0=np.eye(4))
    (tmp_path / "mask").mkdir()

    def kept(*names):
        for path in (tmp_path / "mask").iterdir():
            path.unlink()
        for name in names:
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "mask" / name)
        return read_masked_views(tmp_path)[0][:, 0, 0].tolist()

    assert kept("000000.png", "000002.png", "000004.png") == [0, 2, 4]
    assert kept("000_rgb.png", "003_rgb.png") == [0, 3]
    assert kept(*(f"view{letter}.png" for letter in "abcde")) == [0, 1, 2, 3, 4]
    assert kept(*(f"{number:03d}.png" for number in range(1, 6))) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="2 masks for 5 cameras, and the names are not the cameras' numbers"):
        kept("000.png", "007.png")


def test_files_of_another_kind_are_refused(tmp_path):
    savemat = savemat_or_skip()
    with pytest.raises(UserError, match=r"ObsMask24_10\.mat: no such file"):
        read_observed(tmp_path, 24)
    savemat(tmp_path / "ObsMask24_10.mat", {"BB": np.zeros((2, 3))})
    with pytest.raises(UserError, match="expected a MATLAB file with ObsMask, BB, Res"):
        read_observed(tmp_path, 24)
    assert scan_number("x/stl105_total.ply") == 105
    with pytest.raises(UserError, match="scan's number"):
        scan_number("truth.ply")
