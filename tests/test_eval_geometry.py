"""Geometry metrics: closed forms, open3d's own distances, what sampling does, and surfaces that are hardly any."""

import json
import math

import numpy as np
import pytest
from geometry_toys import box_mesh, joined, moved, open3d_or_skip, sphere_mesh
from hypothesis import given, settings
from hypothesis import strategies as st

from nfc_splat.errors import UserError
from nfc_splat.eval.geometry import (
    GeometrySweep,
    empty_score,
    harmonic_mean,
    kind_of,
    mean_over_scenes,
    score_distances,
    score_samples,
    student_quantile,
    summarize_scores,
    without_normals,
)
from nfc_splat.eval.surface import (
    Box,
    Samples,
    Surface,
    clean_surface,
    crop_to_box,
    oriented_box,
    read_box,
    sample_surface,
    to_open3d,
    transform_surface,
)

MANY = 60_000


def samples_of(surface, seed=0, count=MANY):
    return sample_surface(surface, count, seed)


# ------------------------------------------------------------------------------------------------ the numbers


def test_distances_are_those_of_open3d():
    open3d_or_skip()
    pred, gt = samples_of(box_mesh(), 0, 5000), samples_of(moved(box_mesh(), [0.1, 0, 0]), 1, 4000)
    score = score_samples(pred, gt, [0.1])
    clouds = [to_open3d(Surface(samples.points)) for samples in (pred, gt)]
    to_gt = np.asarray(clouds[0].compute_point_cloud_distance(clouds[1]))
    to_pred = np.asarray(clouds[1].compute_point_cloud_distance(clouds[0]))
    assert score["accuracy"] == pytest.approx(to_gt.mean(), abs=1e-6)
    assert score["completeness"] == pytest.approx(to_pred.mean(), abs=1e-6)
    assert score["chamfer_l2"] == pytest.approx((to_gt**2).mean() + (to_pred**2).mean(), abs=1e-6)
    assert score["hausdorff"] == pytest.approx(max(to_gt.max(), to_pred.max()), abs=1e-6)
    assert score["accuracy_p90"] == pytest.approx(np.percentile(to_gt, 90), abs=1e-6)
    assert score["precision@0.1"] == (to_gt < 0.1).mean()
    assert score["recall@0.1"] == (to_pred < 0.1).mean()


def test_concentric_spheres_are_as_far_apart_as_their_radii():
    """With N samples on the sphere of radius r the nearest one is off by about half a spacing, across the gap."""
    gap = 0.2
    inner, outer = samples_of(sphere_mesh(1.0), 0, 200_000), samples_of(sphere_mesh(1 + gap), 1, 200_000)
    score = score_samples(inner, outer, [0.9 * gap, 1.1 * gap])
    for metric in ("accuracy", "completeness", "chamfer_l1_mean", "accuracy_p50"):
        assert score[metric] == pytest.approx(gap, rel=0.01)
    assert score["chamfer_l1_sum"] == pytest.approx(2 * gap, rel=0.01)
    assert score["chamfer_l2"] == pytest.approx(2 * gap**2, rel=0.01)
    assert score["hausdorff"] == pytest.approx(gap, rel=0.05)
    assert score["normal_consistency"] == pytest.approx(1, rel=0.01)
    assert (score["fscore@0.18"], score["fscore@0.22"]) == (0.0, 1.0)


def test_a_cube_inside_a_cube():
    """From a face of the cube of side 1 it is g to the cube of side 1 + 2 g; back it is g on the part of a face above
    the inner face, and the distance to its edges and corners elsewhere."""
    side, gap = 1.0, 0.25
    inner = moved(box_mesh((side,) * 3), [-side / 2] * 3)
    large = side + 2 * gap
    outer = moved(box_mesh((large,) * 3), [-large / 2] * 3)
    score = score_samples(samples_of(inner, 0, 200_000), samples_of(outer, 1, 200_000), [gap * 1.05])
    assert score["accuracy"] == pytest.approx(gap, rel=0.01)
    u = (np.arange(2000) + 0.5) / 2000 * large - large / 2
    beyond = np.maximum(np.abs(u) - side / 2, 0)
    exact = np.sqrt(gap**2 + beyond[:, None] ** 2 + beyond[None, :] ** 2)
    assert score["completeness"] == pytest.approx(exact.mean(), rel=0.01)
    assert score["hausdorff"] == pytest.approx(math.sqrt(3) * gap, rel=0.02)
    assert score["precision@0.2625"] == 1.0
    assert score["recall@0.2625"] == pytest.approx((exact < 1.05 * gap).mean(), rel=0.01)


@pytest.mark.parametrize("divisions", [0, 5])
def test_two_samplings_of_one_surface_are_half_a_spacing_apart(divisions):
    """The floor, 0.5 sqrt(area / N), whether faces hold many samples or many faces hold none."""
    surface = box_mesh(divisions=divisions)
    score = score_samples(samples_of(surface, 0), samples_of(surface, 1), [0.05])
    floor = 0.5 * math.sqrt(126 / MANY)
    assert score["accuracy"] == pytest.approx(floor, rel=0.02)
    assert score["completeness"] == pytest.approx(floor, rel=0.02)
    assert score["chamfer_l1_mean"] > 0.98 * floor


def test_a_threshold_is_strict():
    score = score_distances(np.array([0.5, 1.0]), np.array([1.0]), [1.0])
    assert (score["precision@1"], score["recall@1"], score["fscore@1"]) == (0.5, 0.0, 0.0)


def test_distances_beyond_a_limit_are_dropped_not_cut():
    score = score_distances(np.array([1.0, 3.0, 20.0]), np.array([2.0, 500.0]), [5.0], drop_beyond=20.0)
    assert (score["accuracy"], score["completeness"], score["chamfer_l1_mean"]) == (2.0, 2.0, 2.0)
    assert score["precision@5"] == pytest.approx(2 / 3)
    nothing = score_distances(np.array([30.0]), np.array([2.0]), [5.0], drop_beyond=20.0)
    assert nothing["accuracy"] is None
    assert nothing["chamfer_l1_mean"] is None


def test_normals_count_without_their_sign():
    random = np.random.default_rng(0)
    points = random.random((500, 3))
    normals = random.normal(size=(500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    flipped = Samples(points, normals * random.choice([-1.0, 1.0], (500, 1)))
    assert score_samples(flipped, Samples(points, normals), [1])["normal_consistency"] == pytest.approx(1)
    across = Samples(points, np.roll(normals, 1, axis=0))
    expected = np.abs((normals * np.roll(normals, 1, axis=0)).sum(1)).mean()
    assert score_samples(across, Samples(points, normals), [1])["normal_accuracy"] == pytest.approx(expected)
    assert score_samples(Samples(points), Samples(points, normals), [1])["normal_consistency"] is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=30),
    st.lists(st.floats(0, 10), min_size=1, max_size=30),
    st.floats(0.001, 11),
)
def test_ratios_stay_between_zero_and_one_and_f_between_its_parts(to_gt, to_pred, threshold):
    score = score_distances(np.array(to_gt), np.array(to_pred), [threshold])
    precision, recall, f = (score[f"{name}@{threshold:g}"] for name in ("precision", "recall", "fscore"))
    assert 0 <= min(precision, recall) <= f + 1e-12 <= max(precision, recall) + 2e-12 <= 1 + 2e-12
    assert f <= 1
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert score["chamfer_l1_sum"] == pytest.approx(2 * score["chamfer_l1_mean"])


def test_metrics_know_what_they_are():
    score = empty_score([0.05])
    assert {name for name in score if kind_of(name) == "area"} == {"chamfer_l2"}
    assert {name.partition("@")[0] for name in score if kind_of(name) == "ratio"} == {
        *("precision", "recall", "fscore"),
        *("normal_accuracy", "normal_completeness", "normal_consistency"),
    }


# ------------------------------------------------------------------------------------------------ several samplings


def test_another_evaluation_falls_into_the_interval():
    """Of 40 evaluations with 3 samplings each, 95 % of the differences to the first are within its interval."""
    pred, gt = moved(box_mesh(), [0.05, 0, 0]), box_mesh()
    scores = [score_samples(samples_of(pred, 2 * k, 500), samples_of(gt, 2 * k + 1, 500), [0.2]) for k in range(120)]
    runs = [summarize_scores(scores[3 * k : 3 * k + 3], [0.2]) for k in range(40)]
    hits = [
        abs(one["accuracy"] - other["accuracy"]) <= one.interval["accuracy"]
        for one in runs
        for other in runs
        if one is not other
    ]
    assert 0.85 < np.mean(hits) < 0.995


def test_students_quantiles():
    assert [round(student_quantile(n), 2) for n in (1, 2, 5, 9, 30, 1000)] == [12.71, 4.3, 2.57, 2.26, 2.04, 1.96]


def test_one_sampling_has_no_interval():
    summary = summarize_scores([score_distances(np.ones(3), np.ones(3), [2.0])], [2.0])
    assert summary["accuracy"] == 1
    assert summary.interval["accuracy"] is None
    assert summary.floor["accuracy"] is None
    json.dumps(summary.record(), allow_nan=False)


def test_the_mean_over_scenes_is_the_mean_of_f_and_counts_what_failed():
    found = score_distances(np.array([0.0, 2.0]), np.array([0.0]), [1.0]) | without_normals()
    good = summarize_scores([found], [1.0])
    failed = summarize_scores([empty_score([1.0])], [1.0])
    sweep = GeometrySweep()
    for name, metrics in (("a", good), ("b", good), ("c", failed)):
        sweep.update(name, metrics)
    result = sweep.compute()
    assert result["mean"]["fscore@1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert result["mean"]["accuracy"] == 1.0
    assert result["missing"]["accuracy"] == 1
    assert result["median"]["fscore@1"] == pytest.approx(2 / 3)
    assert result == mean_over_scenes(sweep.scenes)
    json.dumps(result, allow_nan=False)
    sweep.reset()
    with pytest.raises(ValueError, match="no scene"):
        sweep.compute()
    other = summarize_scores([empty_score([2.0])], [2.0])
    with pytest.raises(ValueError, match="other thresholds"):
        mean_over_scenes({"a": good, "b": other})
    with_depth = summarize_scores([empty_score([1.0]) | {"depth_l1": None}], [1.0])
    with pytest.raises(ValueError, match="other thresholds or protocols"):
        mean_over_scenes({"a": good, "b": with_depth})


# ------------------------------------------------------------------------------------------------ surfaces


def test_samples_are_spread_by_area_and_carry_the_normals_of_their_faces():
    small, large = box_mesh((1, 1, 1)), moved(box_mesh((2, 2, 2)), [5, 0, 0])
    samples = samples_of(joined(small, large))
    assert (samples.points[:, 0] > 3).mean() == pytest.approx(0.8, abs=0.01)
    top = np.isclose(samples.points[:, 2], 2)
    assert np.allclose(np.abs(samples.normals[top & (samples.points[:, 0] > 5)][:, 2]), 1)
    again = samples_of(joined(small, large))
    assert np.array_equal(samples.points, again.points)
    assert not np.array_equal(samples.points, samples_of(joined(small, large), 1).points)


def test_cleaning_drops_and_counts_what_cannot_be_measured():
    surface = box_mesh(divisions=1)
    vertices = np.concatenate([surface.vertices, [[np.nan, 0, 0], [0, np.inf, 0], [1, 1, 1]]])
    vertices = np.roll(vertices, 1, axis=0)  # so that the numbers of the others change
    faces = (surface.faces + 1) % len(vertices)
    good = 0
    nan, infinite = len(surface.vertices) + 1, len(surface.vertices) + 2
    assert np.isnan(vertices[nan, 0])
    spoilt = [[1, 2, nan], [infinite, 2, 3], [5, 5, 6], [good, good, good]]
    cleaned, counts = clean_surface(Surface(vertices, np.concatenate([spoilt, faces]).astype(np.int32)))
    assert counts == {"bad_vertices": 2, "faces_with_bad_vertices": 2, "faces_without_area": 2}
    assert len(cleaned.faces) == len(surface.faces)
    assert np.array_equal(cleaned.vertices[cleaned.faces], surface.vertices[surface.faces])


def test_normals_that_are_all_zero_are_none():
    """As in the PLY files of 3D Gaussian splatting."""
    points = np.random.default_rng(0).random((5, 3))
    assert clean_surface(Surface(points, None, np.zeros((5, 3))))[0].normals is None
    one = np.zeros((5, 3))
    one[2] = [0, 0, -4]
    assert clean_surface(Surface(points, None, one))[0].normals.tolist()[2] == [0, 0, -1]


def test_faces_that_meet_by_three_or_face_both_ways_are_surface():
    page = Surface(np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0.0, -1, 0]]), np.array([[0, 1, 2]]))
    faces = np.array([[0, 2, 1], [0, 3, 2], [4, 0, 2], [1, 2, 0]], np.int32)
    cleaned, counts = clean_surface(Surface(page.vertices, faces))
    assert sum(counts.values()) == 0
    score = score_samples(samples_of(cleaned, 0, 5000), samples_of(cleaned, 1, 5000), [0.1])
    assert score["fscore@0.1"] == 1
    assert score["chamfer_l1_mean"] > 0


# ------------------------------------------------------------------------------------------------ boxes


def turned(surface, degrees=30.0):
    angle = math.radians(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    matrix[:3, 3] = [4, -2, 1]
    return transform_surface(surface, matrix), matrix


def test_the_oriented_box_is_tight_and_crops_by_whole_faces():
    box_surface, matrix = turned(box_mesh(divisions=3))
    box = oriented_box(box_surface.vertices)
    assert sorted(box.extents) == pytest.approx([3, 5, 6], rel=1e-6)
    center = (matrix @ [3, 2.5, 1.5, 1])[:3]
    np.testing.assert_allclose((box.to_box @ [*center, 1])[:3], 0, atol=1e-5)
    assert len(crop_to_box(box_surface, box.scaled(1.05)).faces) == len(box_surface.faces)
    shifted = moved(box_surface, matrix[:3, :3] @ [0.2, 0, 0])  # 5 % of a half side of 6 is 0.15
    kept = crop_to_box(shifted, box.scaled(1.05))
    assert 0 < len(kept.faces) < len(shifted.faces)
    inside = box.scaled(1.05).contains(shifted.vertices)
    assert np.array_equal(kept.faces, shifted.faces[inside[shifted.faces].all(1)])
    assert inside[kept.faces].all()


def test_a_box_file_is_trimeshs_pair_or_two_corners():
    box = Box(np.eye(4), np.array([1.0, 2, 3]))
    again = read_box(json.loads(json.dumps(box.record())), "box.json")
    assert np.array_equal(again.to_box, box.to_box)
    assert np.array_equal(again.extents, box.extents)
    corners = read_box({"low": [1, 1, 1], "high": [2, 3, 4]}, "box.json")
    assert corners.contains(np.array([[1.5, 1.01, 3.9], [0.9, 2, 2], [1, 2, 2]])).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "to_origin"),
        ({"low": [0, 0], "high": [1, 1]}, "expected"),
        ({"low": [0, 0, 0], "high": [1, 0, 1]}, "three positive lengths"),
        ({"to_origin": (2 * np.eye(4)).tolist(), "extents": [1, 1, 1]}, "not a rotation"),
        ({"to_origin": "x", "extents": [1, 1, 1]}, "expected"),
    ],
)
def test_box_files_that_hold_no_box_are_refused(value, message):
    with pytest.raises(UserError, match=message):
        read_box(value, "box.json")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_points_have_a_box_too(count):
    open3d_or_skip()
    points = np.random.default_rng(0).random((count, 3))
    box = oriented_box(points)
    assert box.extents.min() >= 0
    assert np.linalg.norm(box.to_box[:3, :3] @ box.to_box[:3, :3].T - np.eye(3)) < 1e-9
