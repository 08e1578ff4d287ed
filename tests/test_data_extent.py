"""Where a scene is: depth range, box, sphere, collider and the way to the ground truth's frame, down to the scene."""

import json

import numpy as np
import pytest
import torch
from data_scenes import write_dtu, write_sdfstudio
from PIL import Image

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.projection import decompose
from nfc_splat.data.suspects import scene_findings
from nfc_splat.training.load import describe_scene

BOX = {"aabb": [[-1, -2, -3], [1, 2, 3.5]], "near": 0.05, "far": 2.5, "radius": 1.5}


@pytest.fixture
def load_box(tmp_path, known):
    """Loads a SDFStudio scene with the `scene_box` given."""

    def load(box):
        write_sdfstudio(tmp_path, known, scene_box=box)
        return load_scene(tmp_path, undistort=True)

    return load


def test_an_object_in_a_sphere(load_box):
    scene = load_box({**BOX, "collider_type": "sphere"})
    assert scene.collider == "sphere"
    assert scene.sphere.tolist() == [0, 0, 0, 1.5]
    assert scene.bounds.tolist() == [[-1, -2, -3], [1, 2, 3.5]]
    assert scene.near_far == (0.05, 2.5)


def test_a_room_in_a_box_has_no_sphere(load_box):
    """Its corners lie beyond the radius."""
    scene = load_box({**BOX, "collider_type": "box"})
    assert scene.collider == "box"
    assert scene.sphere is None
    assert scene.bounds is not None


@pytest.mark.parametrize("collider", ["near_far", None])
def test_the_radius_counts_where_the_box_does_not(load_box, collider):
    scene = load_box({**BOX, "collider_type": collider})
    assert scene.collider == collider
    assert scene.sphere.tolist() == [0, 0, 0, 1.5]


@pytest.mark.parametrize("box", [None, {}])
def test_nothing_stated_is_nothing_known(load_box, box):
    scene = load_box(box)
    assert (scene.near_far, scene.bounds, scene.sphere, scene.collider) == (None, None, None, None)


def test_a_change_of_the_extent_is_noticed(load_box):
    stated = {load_box({**BOX, "collider_type": name}).stated for name in ("sphere", "box", "near_far", None)}
    assert len(stated) == 4


def test_the_record_of_a_run_and_the_doctor_say_it(tmp_path, known):
    write_dtu(tmp_path, known)
    scene = load_scene(tmp_path, undistort=True)
    record = json.loads(json.dumps(describe_scene(scene, "abc", DataConfig()), allow_nan=False))
    assert record["sphere"] == pytest.approx([0.1, -0.05, 0.2, 0.8])
    assert record["bounds"] == [pytest.approx([-0.7, -0.85, -0.6]), pytest.approx([0.9, 0.75, 1.0])]
    assert record["world_to_gt"] == np.eye(4).tolist()
    assert record["near_far"] is None
    extent = {finding.subject: finding.text for finding in scene_findings(scene, None)["Extent"]}
    assert extent["sphere"] == "radius 0.8 around (0.1, -0.05, 0.2)"
    assert extent["bounds"] == "[-0.7, 0.9] x [-0.85, 0.75] x [-0.6, 1]"


@pytest.mark.parametrize(
    ("collider", "words"), [("near_far", "at the depth range"), ("box", "at the box"), ("sphere", "at the sphere")]
)
def test_the_doctor_says_where_rays_end(load_box, collider, words):
    scene = load_box({**BOX, "collider_type": collider})
    (finding,) = [f for f in scene_findings(scene, None)["Extent"] if f.subject == "rays end"]
    assert words in finding.text
    assert describe_scene(scene, "abc", DataConfig())["collider"] == collider


# --- real scenes in SDFStudio's form ----------------------------------------------------------------------------------


def cut(path, side, size):
    """The middle square of an image, reduced."""
    with Image.open(path) as image:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BOX)


def write_normalised(root, images, poses, K, to_world, box) -> None:
    """meta_data.json as SDFStudio's converters make it: poses in the frame that `to_world` leads out of."""
    root.mkdir()
    scale = np.cbrt(np.linalg.det(to_world[:3, :3]))
    frames = []
    for i, (image, pose) in enumerate(zip(images, poses, strict=True)):
        name = f"{i:06d}_rgb.png"
        image.save(root / name)
        pose = np.linalg.inv(to_world) @ pose
        pose[:3, :3] *= scale
        frames.append({"rgb_path": name, "camtoworld": pose.tolist(), "intrinsics": K.tolist()})
    width, height = images[0].size
    content = {"camera_model": "OPENCV", "width": width, "height": height, "worldtogt": to_world.tolist()}
    (root / "meta_data.json").write_text(json.dumps({**content, "scene_box": box, "frames": frames}))


def by_image(scene, count) -> torch.Tensor:
    """Camera centres in the order of the files, in the ground truth's frame, [count, 3] float64."""
    places = torch.zeros(count, 3, dtype=torch.float64)
    for split in scene.splits.values():
        for name, center in zip(split.names, split.cameras.centers.double(), strict=True):
            places[int(name[:6])] = center
    return places @ scene.world_to_gt[:3, :3].T + scene.world_to_gt[:3, 3]


def test_room0_normalised_comes_back_to_metres(data_root, tmp_path):
    """The trajectory as NFC's Replica has it (middle square, room within +-1): worldtogt undoes it, and the points that
    the depth images of the original give have the colours that the cut images show there."""
    folder = data_root / "replica_room0" / "room0"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set NFC_SPLAT_DATA to the folder that holds it")
    original = load_scene(folder, undistort=True)
    low, high = torch.quantile(original.points.double(), torch.tensor([0.0, 1.0], dtype=torch.float64), dim=0)
    to_world = np.eye(4)
    to_world[:3, :3] *= 0.55 * float((high - low).max())
    to_world[:3, 3] = (low + high) / 2
    poses = np.loadtxt(folder / "traj.txt").reshape(-1, 4, 4)
    files = sorted((folder / "results").glob("frame*"))
    K = np.eye(4)
    K[0, 0] = K[1, 1] = 600 * 384 / 680
    K[:2, 2] = 192
    box = {"aabb": [[-1, -1, -1], [1, 1, 1]], "near": 0.05, "far": 2.5, "radius": 1.0, "collider_type": "box"}
    numbers = [int(path.stem[5:]) for path in files]
    write_normalised(tmp_path / "scan1", [cut(path, 680, 384) for path in files], poses[numbers], K, to_world, box)
    scene = load_scene(tmp_path / "scan1", undistort=True)
    expected = torch.from_numpy(poses[numbers, :3, 3])
    torch.testing.assert_close(by_image(scene, len(files)), expected, rtol=0, atol=1e-5)
    assert (scene.collider, scene.near_far, scene.sphere) == ("box", (0.05, 2.5), None)
    inverse = torch.linalg.inv(scene.world_to_gt)
    points = (original.points.double() @ inverse[:3, :3].T + inverse[:3, 3]).float()
    assert ((points > scene.bounds[0]) & (points < scene.bounds[1])).all()
    test = scene.splits["test"]
    pixels, depths = test.cameras.project(points)
    inside = (depths[0] > 0) & (pixels[0] >= 0).all(-1) & (pixels[0] < 384).all(-1)
    columns, rows = pixels[0][inside].floor().long().unbind(-1)
    seen = test.target(0, scene.background)[rows, columns]
    assert inside.float().mean() > 0.4
    assert (seen - original.colors[inside]).abs().median() < 0.02


def test_scan24_normalised_has_the_sphere_of_the_archive(data_root, tmp_path):
    """SDFStudio's form of a DTU scan: the unit sphere and worldtogt together are the sphere of scale_mat, and both
    readers put the cameras in the same places."""
    folder = data_root / "dtu_scan24"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set NFC_SPLAT_DATA to the folder that holds it")
    arrays, files = np.load(folder / "cameras.npz"), sorted(folder.glob("*_rgb.png"))[:6]
    parts = [decompose(arrays[f"world_mat_{int(path.name[:6])}"][:3]) for path in files]
    K = np.eye(4)
    K[:3, :3] = parts[0][0]
    K[:2, 2] += 0.5 - np.array([200, 0])
    K[:2] *= 384 / 1200
    box = {"aabb": [[-1, -1, -1], [1, 1, 1]], "near": 0.5, "far": 4.5, "radius": 1.0, "collider_type": "sphere"}
    to_world = np.asarray(arrays["scale_mat_0"], np.float64)
    write_normalised(tmp_path / "scan24", [Image.open(path) for path in files], [p for _, p in parts], K, to_world, box)
    scene, original = (load_scene(path, undistort=True) for path in (tmp_path / "scan24", folder))
    center, radius = scene.sphere[:3].double(), float(scene.sphere[3])
    lengths = scene.world_to_gt[:3, :3].norm(dim=0)
    torch.testing.assert_close(lengths * radius, original.sphere[3].double().expand(3), rtol=1e-6, atol=0)
    moved = scene.world_to_gt[:3, :3] @ center + scene.world_to_gt[:3, 3]
    torch.testing.assert_close(moved, original.sphere[:3].double(), rtol=1e-6, atol=1e-4)
    places = {
        name: center
        for split in original.splits.values()
        for name, center in zip(split.names, split.cameras.centers.double(), strict=True)
    }
    expected = torch.stack([places[path.name] for path in files])
    torch.testing.assert_close(by_image(scene, len(files)), expected, rtol=0, atol=1e-2)
