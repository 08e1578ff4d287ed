"""DTU in IDR's and NeuS's form: projections taken apart, the sphere, and hostile archives."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_scenes import (
    COUNT,
    SPHERE,
    Known,
    assert_refused,
    dtu_matrices,
    intrinsics,
    link_out,
    write_dtu,
    write_png,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nfc_splat.data import DataConfig, detect_format, load_scene
from nfc_splat.data.projection import decompose


@pytest.fixture
def root(known, tmp_path):
    write_dtu(tmp_path / "scene", known)
    return tmp_path / "scene"


def load(root, **options):
    return load_scene(root, DataConfig(format="dtu", **options), undistort=True)


def refuse(root, needle, **options):
    assert_refused(root, needle, format="dtu", **options)


def cameras_by_number(scene) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """World-to-camera matrix and K by the number in the image's name."""
    return {
        int("".join(filter(str.isdigit, name))): (split.cameras.viewmats[i], split.cameras.Ks[i])
        for split in scene.splits.values()
        for i, name in enumerate(split.names)
    }


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    focal=st.floats(20, 1e4),
    aspect=st.floats(0.5, 2),
    center=st.tuples(st.floats(-2e3, 2e3), st.floats(-2e3, 2e3)),
    skew=st.floats(-10, 10),
    factor=st.floats(1e-6, 1e6),
    sign=st.sampled_from([-1, 1]),
    distance=st.floats(0, 1e4),
)
def test_a_projection_is_taken_apart_again(seed, focal, aspect, center, skew, factor, sign, distance):
    """P = c K [R | t] for a random rotation and any c: K, R and the position come back."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    position = distance * rng.normal(size=3)
    K = np.array([[focal, skew, center[0]], [0, focal * aspect, center[1]], [0, 0, 1]])
    P = sign * factor * K @ rotation @ np.concatenate([np.eye(3), -position[:, None]], 1)
    found, pose = decompose(P)
    np.testing.assert_allclose(found, K, rtol=0, atol=1e-8 * np.abs(K).max())
    np.testing.assert_allclose(pose[:3, :3].T, rotation, rtol=0, atol=1e-8 * np.abs(K).max() / focal)
    np.testing.assert_allclose(pose[:3, 3], position, rtol=0, atol=1e-8 * np.abs(K).max() / focal * (1 + distance))
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


@pytest.mark.parametrize(
    "left",
    [np.zeros((3, 3)), np.ones((3, 3)), np.diag([1.0, 1, 0]), [[1, 2, 3], [4, 5, 6], [5, 7, 9]], np.diag([1e-200] * 3)],
)
def test_what_is_no_projection_has_no_parts(left):
    P = np.concatenate([np.array(left, float), np.ones((3, 1))], 1)
    parts = decompose(P)
    if np.linalg.matrix_rank(left) == 3:
        np.testing.assert_array_equal(parts[0], np.eye(3))
        assert not np.isfinite(parts[1]).all() or np.abs(parts[1]).max() > 1e100  # far away, to be refused as a pose
    else:
        assert parts is None


@pytest.mark.parametrize("factor", [1.0, -1.0, 7e-4, -3e5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_cameras_do_not_depend_on_the_factor(tmp_path, known, factor, dtype):
    write_dtu(tmp_path, known)
    matrices = dtu_matrices(known, factor=factor)
    np.savez(tmp_path / "cameras_sphere.npz", **{name: array.astype(dtype) for name, array in matrices.items()})
    scene = load_scene(tmp_path, undistort=True)
    for number, (viewmat, K) in cameras_by_number(scene).items():
        expected = torch.from_numpy(np.linalg.inv(known.poses[number])).float()
        torch.testing.assert_close(viewmat, expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(K, torch.from_numpy(intrinsics()[:3, :3]).float(), rtol=0, atol=1e-4)


def test_three_rows_and_other_arrays_do_as_well(root, known):
    matrices = {name: array[:3] if "world" in name else array for name, array in dtu_matrices(known).items()}
    more = {"camera_mat_0": np.eye(4), "world_mat_inv_0": np.eye(4), "readme": np.array(["text"])}
    np.savez_compressed(root / "cameras_sphere.npz", **matrices, **more)
    assert len(cameras_by_number(load(root))) == COUNT


def test_the_principal_point_gains_half_a_pixel(root):
    """world_mat has the centre of the first pixel at 0: what it sends to (0, 0) is now seen at (0.5, 0.5)."""
    scene = load(root)
    assert scene.principal_point_shift == 0.5
    projection = np.load(root / "cameras_sphere.npz")["world_mat_0"][:3]
    depth = 2.5
    point = np.linalg.solve(projection[:, :3], depth * np.array([0.0, 0, 1]) - projection[:, 3])
    pixel, depths = scene.splits["test"].cameras[0].project(torch.from_numpy(point).float()[None])
    torch.testing.assert_close(pixel[0, 0], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    assert depths[0, 0] == pytest.approx(depth, abs=1e-5)


def test_the_sphere_is_where_scale_mat_sends_the_unit_sphere(root, known):
    """Cameras stay in the world; normalising with the sphere gives NeuS's cameras, world_mat @ scale_mat."""
    scene = load(root)
    torch.testing.assert_close(scene.sphere, torch.from_numpy(SPHERE).float())
    torch.testing.assert_close(scene.bounds, torch.from_numpy(SPHERE[:3] + SPHERE[3] * np.array([[-1], [1]])).float())
    assert torch.equal(scene.world_to_gt, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(
        scene.splits["train"].cameras.centers[0], torch.from_numpy(known.poses[1, :3, 3]).float(), atol=1e-5, rtol=0
    )
    arrays = np.load(root / "cameras_sphere.npz")
    _, normalised = decompose((arrays["world_mat_1"] @ arrays["scale_mat_1"])[:3])
    by_sphere = (known.poses[1, :3, 3] - SPHERE[:3]) / SPHERE[3]
    np.testing.assert_allclose(normalised[:3, 3], by_sphere, atol=1e-9)
    np.testing.assert_allclose(normalised[:3, :3], known.poses[1, :3, :3], atol=1e-9)


def test_a_turned_sphere_is_the_same_sphere(root, known):
    matrices = dtu_matrices(known)
    turn = np.eye(4)
    turn[:3, :3] = known.poses[2, :3, :3]
    np.savez(root / "cameras_sphere.npz", **{n: a @ turn if "scale" in n else a for n, a in matrices.items()})
    torch.testing.assert_close(load(root).sphere, torch.from_numpy(SPHERE).float())


def test_without_scale_mat_there_is_no_sphere(root, known):
    matrices = {name: array for name, array in dtu_matrices(known).items() if "world" in name}
    np.savez(root / "cameras_sphere.npz", **matrices)
    scene = load(root)
    assert scene.sphere is None
    assert scene.bounds is None
    assert any("no scale_mat" in notice for notice in scene.notices)


def test_neus_file_goes_before_idrs(root, known):
    assert "cameras_sphere.npz" in detect_format(root)[1]
    (root / "cameras_sphere.npz").rename(root / "cameras.npz")
    first = load(root)
    assert "cameras.npz" in load_scene(root / "cameras.npz", undistort=True).reason
    matrices = dtu_matrices(known)
    matrices |= {name: array * [3, 3, 3, 1] for name, array in matrices.items() if "scale" in name}
    np.savez(root / "cameras_sphere.npz", **matrices)
    assert load(root).sphere[3] == pytest.approx(3 * float(first.sphere[3]))


@pytest.mark.parametrize("folder", ["rgb", "images"])
def test_the_folder_may_have_another_name(root, folder):
    (root / "image").rename(root / folder)
    assert load_scene(root, undistort=True).splits["test"].names[0] == f"{folder}/000000.png"


# --- which camera belongs to which image ------------------------------------------------------------------------------


def test_some_of_the_images_are_paired_by_their_number(root, known):
    for i in range(1, COUNT, 2):
        (root / "image" / f"{i:06d}.png").unlink()
    scene = load(root)
    assert any("6 of 12 cameras have an image, by the number in its name" in notice for notice in scene.notices)
    for number, (viewmat, _) in cameras_by_number(scene).items():
        expected = torch.from_numpy(np.linalg.inv(known.poses[number])).float()
        torch.testing.assert_close(viewmat, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["view_{:02d}.png", "{:03d}.png"])
def test_other_names_go_by_their_order(root, known, name):
    """Names that are no numbers, or count from 1: as in NeuS, the sorted names take the cameras in turn."""
    for i in reversed(range(COUNT)):
        (root / "image" / f"{i:06d}.png").rename(root / "image" / name.format(i + 1))
    for number, (viewmat, _) in cameras_by_number(load(root)).items():
        expected = torch.from_numpy(np.linalg.inv(known.poses[number - 1])).float()
        torch.testing.assert_close(viewmat, expected, rtol=0, atol=2e-6)


def test_names_that_say_nothing_and_counts_that_differ_are_refused(root):
    (root / "image" / "000003.png").rename(root / "image" / "spare.png")
    shutil.copy(root / "image" / "spare.png", root / "image" / "spare2.png")
    refuse(root, "12 cameras for 13 images, whose names are not the numbers of cameras")


# --- MonoSDF's squares ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("whole", "focal"), [((1600, 1200), 2890.0), ((1200, 680), 600.0), ((960, 540), 580.0)])
def test_squares_cut_from_the_middle_are_recognised(tmp_path, known, whole, focal):
    """Squares of 48 pixels from photographs of `whole` pixels: points fall where cutting and reducing brings them."""
    K = np.array([[focal, 0, whole[0] / 2 + 11], [0, focal - 3, whole[1] / 2 - 7], [0, 0, 1]])
    matrices = {}
    for i in range(0, COUNT, 2):
        matrices[f"world_mat_{i}"] = K @ np.linalg.inv(known.poses[i])[:3]
        matrices[f"scale_mat_{i}"] = np.eye(4)
        write_png(tmp_path / f"{i:06d}_rgb.png", np.full((48, 48, 3), i, np.uint8))
    np.savez(tmp_path / "cameras.npz", **matrices)
    scene = load_scene(tmp_path, undistort=True)
    assert scene.splits["test"].names == ["000000_rgb.png"]
    assert any(f"cut from {whole[0]}x{whole[1]} photographs" in notice for notice in scene.notices)
    camera = scene.splits["train"].cameras[0]
    pixels, _ = camera.project(torch.from_numpy(known.points).float())
    local = (known.points - known.poses[2, :3, 3]) @ known.poses[2, :3, :3]
    full = (local @ K.T)[:, :2] / local[:, 2:] + 0.5
    cut = (full - [(whole[0] - whole[1]) / 2, 0]) * 48 / whole[1]
    np.testing.assert_allclose(pixels[0].numpy(), cut, atol=1e-3)


def test_squares_with_cameras_of_their_own_are_left_alone(tmp_path, known):
    K = np.array([[70, 0, 23.5], [0, 70, 23.5], [0, 0, 1.0]])
    for i in range(4):
        write_png(tmp_path / f"{i:06d}_rgb.png", np.full((48, 48, 3), i, np.uint8))
    np.savez(tmp_path / "cameras.npz", **{f"world_mat_{i}": K @ np.linalg.inv(known.poses[i])[:3] for i in range(4)})
    scene = load_scene(tmp_path, undistort=True)
    torch.testing.assert_close(scene.splits["train"].cameras.Ks[0, :2, 2], torch.tensor([24.0, 24.0]))
    K[0, 2] = 300
    np.savez(tmp_path / "cameras.npz", **{f"world_mat_{i}": K @ np.linalg.inv(known.poses[i])[:3] for i in range(4)})
    refuse(tmp_path, "(300.5, 24.0), which does not belong to 48x48 images")


# --- hostile ----------------------------------------------------------------------------------------------------------


def test_cameras_that_look_away_from_the_sphere_are_said(root, known):
    """Projections made with OpenGL's axes: everything would lie behind the cameras."""
    flip = np.diag([1.0, -1, -1, 1])
    matrices = dtu_matrices(known)
    for i in range(COUNT):
        K = intrinsics()
        K[:2, 2] -= 0.5
        matrices[f"world_mat_{i}"] = K @ flip @ np.linalg.inv(known.poses[i])
    np.savez(root / "cameras_sphere.npz", **matrices)
    (warning,) = [notice for notice in load(root).notices if "look away" in notice]
    assert warning.startswith("Warning: 12 of 12 cameras look away from the sphere")


def test_one_matrix_that_is_not_finite_is_left_out(root, known):
    matrices = dtu_matrices(known)
    matrices["world_mat_3"][0, 0] = np.nan
    np.savez(root / "cameras_sphere.npz", **matrices)
    scene = load(root)
    assert 3 not in cameras_by_number(scene)
    assert any("1 of 12 poses are unusable: 'image/000003.png'" in notice for notice in scene.notices)


def arrays(**changes):
    def spoil(root):
        matrices = dtu_matrices(Known())
        for name, change in changes.items():
            matrices[name] = change(matrices[name]) if callable(change) else change
        np.savez(root / "cameras_sphere.npz", **{name: array for name, array in matrices.items() if array is not None})

    return spoil


def every(kind, change):
    return arrays(**{f"{kind}_mat_{i}": change for i in range(COUNT)})


def entry(row, column, value):
    def change(matrix):
        matrix = matrix.copy()
        matrix[row, column] = value
        return matrix

    return change


LEAVES = "leaves the scene folder"
SKEWED = np.array([[60, 9, 32, 0], [0, 60, 24, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
CASES = {
    "cut": (lambda root: os.truncate(root / "cameras_sphere.npz", 2000), "cannot be read as an .npz archive"),
    "empty": (lambda root: os.truncate(root / "cameras_sphere.npz", 0), "cannot be read as an .npz archive"),
    "an array in place of an archive": (
        lambda root: np.save(root / "a", np.eye(4)) or os.replace(root / "a.npy", root / "cameras_sphere.npz"),
        "cannot be read as an .npz archive",
    ),
    "objects": (arrays(world_mat_2=np.array([None])), "world_mat_2: holds 'object'"),
    "text": (arrays(world_mat_2=np.array(["eye"])), "world_mat_2: holds '<U3'"),
    "one camera twice": (arrays(world_mat_02=np.eye(4)), "world_mat_02 and another array are both world_mat_2"),
    "a long vector": (arrays(world_mat_2=np.ones(17)), "world_mat_2: 17 numbers, expected one matrix"),
    "a number in another script": (
        arrays(**{"world_mat_2": None, "world_mat_\u0662": np.eye(4)}),
        "11 cameras for 12 images",
    ),
    "a line break in a name": (
        lambda root: (root / "image/000004.png").rename(root / "image/000004\n.png"),
        "rename it",
    ),
    "a matrix 3x3": (arrays(world_mat_2=np.eye(3)), "world_mat_2 is 3x3, expected 4x4 or 3x4"),
    "a vector": (arrays(world_mat_2=np.ones(16)), "world_mat_2 is 16, expected 4x4"),
    "a scale 3x4": (arrays(scale_mat_2=np.eye(4)[:3]), "scale_mat_2 is 3x4, expected 4x4"),
    "a large matrix": (arrays(world_mat_2=np.ones((100, 100))), "world_mat_2 claims 80128 bytes"),
    "no camera": (every("world", None), "0 arrays world_mat_0"),
    "a camera lacking": (arrays(world_mat_2=None), "11 cameras for 12 images"),
    "two not finite": (arrays(world_mat_2=lambda m: m * np.nan, world_mat_3=lambda m: m + np.inf), "2 of 12 poses"),
    "singular": (arrays(world_mat_2=np.ones((4, 4))), "world_mat_2: its left 3x3 part has no inverse"),
    "zero": (arrays(world_mat_2=np.zeros((4, 4))), "world_mat_2: its left 3x3 part has no inverse"),
    "skewed": (arrays(world_mat_2=SKEWED), "world_mat_2: the intrinsics have skew 9"),
    "centre far away": (arrays(world_mat_2=entry(0, slice(0, 4), 9e4)), "world_mat_2: "),
    "beyond float32": (every("world", entry(slice(0, 3), 3, 1e300)), "12 of 12 poses are unusable"),
    "scale not finite": (arrays(scale_mat_2=entry(0, 0, np.nan)), "scale_mat_2 is not finite"),
    "scale with perspective": (arrays(scale_mat_2=entry(3, 0, 0.1)), "does not end in the row 0 0 0 1"),
    "scale of nothing": (every("scale", entry(slice(0, 3), slice(0, 3), 0.0)), "makes no sphere"),
    "scale differs by axis": (every("scale", entry(1, 1, 0.5)), "scale_mat_0 makes no sphere"),
    "scale shears": (every("scale", entry(0, 1, 0.3)), "scale_mat_0 makes no sphere"),
    "scale differs by view": (arrays(scale_mat_7=entry(0, 3, 0.5)), "scale_mat_7 differs from scale_mat_0"),
    "archive leaves the scene": (link_out("cameras_sphere.npz"), LEAVES),
    "image leaves the scene": (link_out("image/000004.png"), LEAVES),
    "mask leaves the scene": (link_out("mask/004.png"), LEAVES),
    "masks leave the scene": (link_out("mask"), LEAVES),
    "no image": (lambda root: [path.unlink() for path in (root / "image").iterdir()], "holds no photograph"),
    "no folder": (lambda root: shutil.rmtree(root / "image"), "but neither image/ nor rgb/"),
    "mask of another size": (
        lambda root: write_png(root / "mask/004.png", np.zeros((9, 9), np.uint8)),
        "the mask is 9x9",
    ),
    "mask is no picture": (lambda root: (root / "mask/004.png").write_bytes(b"white"), "004.png: cannot be decoded"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_scenes(root, case):
    spoil, needle = CASES[case]
    spoil(root)
    refuse(root, needle)


# --- the real thing ---------------------------------------------------------------------------------------------------


def patches(scene, split, count, size=9):
    """Middles (row, column) of textured squares of an image, strongest contrast first on a coarse grid."""
    grey = split.image(0).float().mean(-1)
    half, found = size // 2, []
    for row in range(40, 344, 16):
        for column in range(40, 344, 16):
            patch = grey[row - half : row + half + 1, column - half : column + half + 1]
            found.append((float(patch.std()), row, column))
    return [(row, column) for _, row, column in sorted(found, reverse=True)[:count]]


def best_agreement(scene, depths, shift=0.0) -> torch.Tensor:
    """For textured squares of one view, the largest correlation with a neighbouring view over all `depths`."""
    split = scene.splits["train"]
    here, there = split.cameras[0], split.cameras[1]
    if shift:
        K = here.Ks.clone()
        K[:, 0, 2] += shift
        here = replace(here, Ks=K)
    images = [split.image(i).float().mean(-1) for i in (0, 1)]
    offsets = torch.cartesian_prod(torch.arange(-4, 5), torch.arange(-4, 5))
    scores = []
    for middle in patches(scene, split, 60):
        places = torch.tensor(middle) + offsets
        rays = here.rays(torch.cat([torch.zeros(81, 1, dtype=torch.long), places], 1))
        points = rays.origins + depths[:, None, None] * rays.directions
        pixels, _ = there.project(points.reshape(-1, 3))
        grid = (pixels[0] / 384 * 2 - 1).reshape(1, len(depths), 81, 2)
        seen = torch.nn.functional.grid_sample(images[1][None, None], grid, align_corners=False)[0, 0]
        wanted = images[0][places[:, 0], places[:, 1]]
        a, b = wanted - wanted.mean(), seen - seen.mean(1, keepdim=True)
        scores.append(((b @ a) / (a.norm() * b.norm(dim=1) + 1e-6)).max())
    return torch.stack(scores)


def test_scan24(data_root):
    """The photographs agree with each other along the rays of these cameras, and not along those of shifted ones."""
    folder = data_root / "dtu_scan24"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set NFC_SPLAT_DATA to the folder that holds it")
    scene = load_scene(folder, undistort=True)
    assert scene.format == "dtu"
    assert {name: len(split) for name, split in scene.splits.items()} == {"train": 21, "test": 4}
    torch.testing.assert_close(scene.sphere, torch.tensor([43.391823, -18.587917, 613.8096, 223.3332]))
    train = scene.splits["train"]
    torch.testing.assert_close(train.cameras.Ks[0, 0, 0], torch.tensor(2892.33 * 0.32), atol=1e-2, rtol=0)
    torch.testing.assert_close(train.cameras.Ks[0, 0, 2], torch.tensor((823.205 + 0.5 - 200) * 0.32), atol=1e-2, rtol=0)
    pixels, depth = train.cameras.project(scene.sphere[None, :3])
    assert ((pixels - 192).abs() < 120).all()
    middle, radius = float(depth[0, 0]), float(scene.sphere[3])
    depths = torch.linspace(middle - radius, middle + radius, 160)
    assert best_agreement(scene, depths).median() > 0.9
    assert best_agreement(scene, depths, shift=5.0).median() < 0.85
