"""`eval mesh` as a user runs it: the table, the record, the coloured files, the picture, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from geometry_toys import box_mesh, joined, moved, open3d_or_skip, panorama, sphere_mesh, write_mesh, write_trajectory
from PIL import Image

from nfc_splat.errors import UserError
from nfc_splat.eval import mesh
from nfc_splat.eval.culling import Frusta
from nfc_splat.eval.error_pictures import (
    UPRIGHT,
    VIEWS,
    Row,
    compacted,
    distance_to_samples,
    distance_to_surface,
    draw_surface,
    error_colors,
)
from nfc_splat.eval.error_pictures import _frame as frame_of
from nfc_splat.eval.mesh import PAPER, Shown, up_axis
from nfc_splat.eval.surface import Samples, Surface, sample_surface

REPOSITORY = Path(__file__).resolve().parent.parent
QUICK = ("--samples", "3000", "--repeats", "2")


@pytest.fixture
def room(tmp_path):
    """A folder with gt.ply, a prediction with a bump in it, and a trajectory."""
    gt = box_mesh(divisions=3)
    write_mesh(tmp_path / "gt.ply", gt)
    write_mesh(tmp_path / "pred.ply", joined(gt, moved(sphere_mesh(0.4, 12), [3, 2.5, 0.5])))
    poses = np.concatenate([panorama((3, 2.5, 1.5), 12, tilt) for tilt in (-1.5, 0.0, 1.5)])
    write_trajectory(tmp_path / "traj.txt", poses)
    return tmp_path


def test_the_command_prints_and_writes_everything(room):
    words = ["mesh", "pred.ply", "gt.ply", "--protocol", "replica", "--scene", ".", "--reference", "paper", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "nfc_splat.eval", *words],
        cwd=room,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "protocol replica: MonoSDF replica_eval; the columns of NFC's Table 6"
    row = next(line.split() for line in lines if line.strip().startswith("F-score < 5 cm"))
    record = json.loads((room / "pred-eval" / "metrics.json").read_text())
    assert float(row[row.index("%") + 1]) == pytest.approx(100 * record["metrics"]["fscore@0.05"], abs=0.01)
    assert row[-2:] == ["14.87", "55.56"]
    assert any("frustum culling, 36 views of 1200x680: keeps 100.0 % of pred" in line for line in lines)
    assert record["protocol"]["steps"][1]["factor"] == 1.05
    assert {"metrics", "interval_95", "sampling_floor", "definitions", "notes", "protocol"} == set(record)
    names = {"accuracy_samples.ply", "accuracy_mesh.ply", "completeness_samples.ply", "completeness_mesh.ply"}
    assert {path.name for path in (room / "pred-eval").iterdir()} == {"metrics.json", "errors.png", *names}
    with Image.open(room / "pred-eval" / "errors.png") as picture:
        assert picture.size[0] > 1000
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000


def test_the_coloured_files_hold_what_was_measured(room, capsys):
    open3d = open3d_or_skip()
    assert mesh.main([str(room / "pred.ply"), str(room / "gt.ply"), "--out", str(room / "out"), *QUICK]) == 0
    record = json.loads((room / "out" / "metrics.json").read_text())
    cloud = open3d.t.io.read_point_cloud(str(room / "out" / "accuracy_samples.ply"))
    distances = cloud.point["distance"].numpy().ravel()
    assert len(distances) == 3000
    close = record["interval_95"]["accuracy"] + 0.05 * record["metrics"]["accuracy"]
    assert distances.mean() == pytest.approx(record["metrics"]["accuracy"], abs=close)
    bump = np.linalg.norm(cloud.point.positions.numpy() - [3, 2.5, 0.5], axis=1) < 0.45
    assert distances[bump].mean() > 5 * distances[~bump].mean()
    colors = cloud.point.colors.numpy().astype(float).sum(1)
    assert colors[bump & (distances > 0.3)].mean() < 0.7 * colors[~bump].mean()
    coloured = open3d.io.read_triangle_mesh(str(room / "out" / "accuracy_mesh.ply"))
    assert coloured.has_vertex_colors()
    assert coloured.get_surface_area() == pytest.approx(126 + 4 * np.pi * 0.16, rel=0.01)


def test_units_and_thresholds_are_those_that_were_asked_for(room, capsys):
    words = [
        str(room / "pred.ply"),
        str(room / "gt.ply"),
        "--threshold",
        "0.1",
        "0.25",
        "--unit",
        "mm",
        "--no-pictures",
    ]
    assert mesh.main([*words, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "F-score < 100 mm" in printed
    assert "recall < 250 mm" in printed
    assert "mm²" in printed
    folder = room / "pred-eval"
    assert [path.name for path in folder.iterdir()] == ["metrics.json"]
    record = json.loads((folder / "metrics.json").read_text())
    assert record["protocol"]["thresholds"] == [0.1, 0.25]
    row = next(line.split() for line in printed.splitlines() if line.strip().startswith("accuracy  "))
    assert float(row[2]) == pytest.approx(1000 * record["metrics"]["accuracy"], rel=1e-3)


def test_the_same_seed_gives_the_same_record(room, capsys):
    records = []
    for seed in ("0", "0", "5"):
        words = [str(room / "pred.ply"), str(room / "gt.ply"), "--seed", seed, "--no-pictures", *QUICK]
        mesh.main(words)
        records.append(json.loads((room / "pred-eval" / "metrics.json").read_text()))
    assert records[0] == records[1]
    assert records[0]["metrics"]["accuracy"] != records[2]["metrics"]["accuracy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pred.ply"], "required"),
        (["pred.ply", "gt.ply", "--protocol", "replica"], "has no cameras: give --scene FOLDER or --trajectory"),
        (["pred.ply", "gt.ply", "--reference", "paper"], "--reference says nothing to --protocol plain"),
        (
            ["pred.ply", "gt.ply", "--box", "box.json"],
            "--box says nothing to --protocol plain; expected one of: replica",
        ),
        (["pred.ply", "gt.ply", "--unseen", "u.npy", "--protocol", "replica"], "expected one of: nice-slam"),
        (["pred.ply", "gt.ply", "--samples", "9", "--protocol", "dtu"], "--samples says nothing to --protocol dtu"),
        (["pred.ply", "gt.ply", "--threshold", "0"], "expected a positive length"),
        (["pred.ply", "gt.ply", "--treshold", "1"], "did you mean --threshold"),
        (["pred.ply", "none.ply"], "none.ply: no such file"),
        (["pred.ply", "gt.ply", "--protocol", "replica", "--scene", ".", "--box", "none.json"], "none.json"),
        (["pred.ply", "gt.ply", "--seed", "-1"], "--seed -1: expected 0 to"),
        (["pred.ply", "absent.ply", "--out", "gt.ply"], "gt.ply is a file; choose another --out"),
        (["pred.ply", "absent.ply", "--out", "gt.ply/deep/er"], "gt.ply is a file; choose another --out"),
        (["pred.ply", "gt.ply", "--to-world", "none.txt"], "none.txt"),
        (["pred.ply", "gt.ply", "--scene", "."], "holds neither meta_data.json nor cameras.npz, so it says nothing"),
        (
            ["pred.ply", "gt.ply", "--scene", ".", "--to-world", "identity"],
            "--scene .: with --to-world it says nothing",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(room, monkeypatch, words, message):
    monkeypatch.chdir(room)
    with pytest.raises(UserError) as refusal:
        mesh.main(words)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_empty_prediction_that_is_forced_is_drawn_beside_the_truth(room, capsys):
    write_mesh(room / "away.ply", moved(box_mesh((0.1, 0.1, 0.1)), [3, 2.5, 40]))
    words = [str(room / "away.ply"), str(room / "gt.ply"), "--protocol", "replica", "--scene", str(room), *QUICK]
    with pytest.raises(UserError, match="the boxes do not meet"):
        mesh.main(words)
    assert mesh.main([*words, "--force"]) == 0
    printed = capsys.readouterr().out
    assert "no distance exists" in printed
    row = next(line.split() for line in printed.splitlines() if line.strip().startswith("Chamfer-L1 (mean)"))
    assert row[3] == "-"
    assert (room / "away-eval" / "errors.png").is_file()


def test_the_papers_rows_obey_their_own_identities():
    for row in PAPER.values():
        assert row["chamfer_l1_mean"] == pytest.approx((row["accuracy"] + row["completeness"]) / 2, abs=1e-4)
        assert max(row.values()) < 1
    # Their F is the mean over scenes, and not that of the mean precision and recall.
    for name, mean, of_means in (("NeuS", 14.87, 15.85), ("NeuS, NFC", 55.56, 55.60)):
        precision, recall, fscore = (100 * PAPER[name][f"{kind}@0.05"] for kind in ("precision", "recall", "fscore"))
        assert fscore == pytest.approx(mean)
        assert 2 * precision * recall / (precision + recall) == pytest.approx(of_means, abs=5e-3)


def test_numbers_are_shown_in_units():
    shown = Shown("cm", 100.0, True)
    assert shown.value("accuracy", 0.01234567) == "1.235"
    assert shown.value("chamfer_l2", 0.0002) == "2"
    assert (shown.value("fscore@0.05", 0.5556), shown.unit_of("fscore@0.05")) == ("55.56", "%")
    assert shown.value("accuracy", None) == "-"
    assert shown.unit_of("chamfer_l2") == "cm²"


# ------------------------------------------------------------------------------------------------ drawing


def drawn(surface, reference, direction, full_scale=0.2):
    return draw_surface(
        Row("", surface, distance_to_samples(reference)), frame_of(direction, surface.bounds(), "z"), full_scale
    ).astype(int)


def test_a_dent_is_dark_where_it_is():
    """Seen along -z, with x to the right: the picture of a plate whose right half is 0.2 too high."""
    open3d_or_skip()
    plate = box_mesh((4.0, 4.0, 0.1), 4)
    bent = Surface(plate.vertices + np.where(plate.vertices[:, :1] > 2, [[0, 0, 0.2]], 0), plate.faces)
    picture = drawn(bent, sample_surface(plate, 40_000, 0), (0, 1e-3, -1))
    brightness = picture.sum(2)
    middle = len(brightness) // 2
    left, right = brightness[middle, 60 : middle - 40], brightness[middle, middle + 40 : -60]
    assert right.mean() < left.mean() - 200


def test_one_looks_into_a_room_and_at_an_object_alike():
    """Faces that look away are left out where something is behind them, and drawn where nothing is."""
    open3d_or_skip()
    outward = box_mesh((2, 2, 2), 2)
    inward = Surface(outward.vertices, outward.faces[:, ::-1].copy())
    floor = Samples(np.stack(np.meshgrid(np.linspace(0, 2, 90), np.linspace(0, 2, 90), [0.0]), -1).reshape(-1, 3))
    from_above = (0, 1e-3, -1)
    middle = slice(150, 270)
    top = drawn(outward, floor, from_above, 2.0)[middle, middle].sum(2).mean()
    inside = drawn(inward, floor, from_above, 2.0)[middle, middle].sum(2).mean()
    assert top < inside - 200  # the lid is 2 from the floor, the floor 0
    lid = Surface(inward.vertices, inward.faces[(inward.vertices[inward.faces][:, :, 2] == 2).all(1)])
    assert drawn(lid, floor, from_above, 2.0)[middle, middle].sum(2).mean() == pytest.approx(top, abs=60)


def test_the_nearest_points_of_a_cloud_are_on_top():
    square = np.stack(np.meshgrid(np.linspace(0, 1, 300), np.linspace(0, 1, 300), [0.0]), -1).reshape(-1, 3)
    cloud = Surface(np.concatenate([square, square + np.array([0, 0, 0.5])]))
    picture = drawn(cloud, Samples(square), (0, 1e-3, -1), 0.5)
    expected = error_colors(np.array([0.5]), 0.5)[0].astype(int)
    np.testing.assert_allclose(picture[180:240, 180:240].reshape(-1, 3).mean(0), expected, atol=4)


@pytest.mark.parametrize("up", UPRIGHT)
def test_every_view_has_an_upright_frame_around_the_whole_box(up):
    bounds = np.array([[-1.0, -2, 0], [3, 5, 9]])
    above = np.zeros(3)
    above["xyz".index(up[-1])] = -1 if up[0] == "-" else 1
    for direction in VIEWS:
        frame = frame_of(direction, bounds, up)
        assert frame.forward @ above == pytest.approx(direction[2] / np.linalg.norm(direction))
        assert frame.right @ above == pytest.approx(0)
        np.testing.assert_allclose(np.cross(frame.right, frame.down), frame.forward, atol=1e-12)  # not a mirror image
        axes = np.stack([frame.right, frame.down, frame.forward])
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
        assert frame.down @ above <= 1e-9
        corners = np.stack(np.meshgrid(*bounds.T, indexing="ij"), -1).reshape(-1, 3) - frame.center
        assert np.abs(corners @ axes[:2].T).max() < frame.width / 2
        assert (frame.pixels().reshape(-1, 3) - frame.center).dot(frame.forward).max() < (corners @ axes[2]).min()


def test_the_axis_that_is_up(room, capsys):
    """Of cameras the one they were held by, whichever; of a bare file the one that is usual for its format."""
    assert [up_axis(Path(name), None) for name in ("a.ply", "a.OBJ", "a.glb", "a.stl")] == ["z", "y", "y", "z"]
    level = panorama((3, 2.5, 1.5), 12)
    for up, axes in UPRIGHT.items():
        turn = np.eye(4)
        turn[:3, :3] = np.array(axes).T
        assert up_axis(room / "gt.obj", Frusta(np.linalg.inv(turn @ level))) == up
    words = [str(room / "pred.ply"), str(room / "gt.ply"), *QUICK]
    pictures = []
    for flags in ((), ("--up", "-y")):
        mesh.main([*words, *flags])
        assert ("with z up; --up names another axis" in capsys.readouterr().out) == (not flags)
        with Image.open(room / "pred-eval" / "errors.png") as picture:
            pictures.append(np.asarray(picture))
    assert not np.array_equal(*pictures)
    with pytest.raises(UserError, match="--up is about the picture"):
        mesh.main([*words, "--up", "y", "--no-pictures"])


def test_compacting_drops_unused_vertices_alone():
    surface = box_mesh(divisions=1)
    padded = Surface(np.concatenate([[[9.0, 9, 9]], surface.vertices]), surface.faces + 1)
    assert np.array_equal(compacted(padded).vertices, surface.vertices)
    assert np.array_equal(compacted(padded).faces, surface.faces)


def test_the_distance_to_a_mesh_has_no_noise_of_sampling():
    sphere = sphere_mesh(1.0, 100)
    points = np.random.default_rng(0).normal(size=(500, 3)) * 2
    expected = np.abs(np.linalg.norm(points, axis=1) - 1)
    np.testing.assert_allclose(distance_to_surface(sphere)(points), expected, atol=2e-3)
    far = Surface(sphere.vertices + 1e5, sphere.faces)
    np.testing.assert_allclose(distance_to_surface(far)(points + 1e5), expected, atol=2e-3)
    cloud = Surface(sphere.vertices)
    assert np.array_equal(distance_to_surface(cloud)(points), distance_to_samples(Samples(cloud.vertices))(points))
