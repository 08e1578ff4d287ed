"""What a folder is taken for, and what is said when it is nothing."""

import json
import os
import subprocess
import sys

import pytest
from data_scenes import WRITERS, Known, write_colmap, write_nerfstudio, write_replica

from nfc_splat.data import DataConfig, detect_format, load_scene
from nfc_splat.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("detect")
    for name, write in WRITERS.items():
        write(root / name, Known())
    return root


@pytest.mark.parametrize("format", WRITERS)
def test_each_format_is_recognised_and_the_others_say_what_they_miss(folders, format):
    found, reason, rejected = detect_format(folders / format)
    assert found == format
    assert f"is a {format} scene because" in reason
    assert set(rejected) == set(WRITERS) - {format}
    assert all(rejected.values())


def test_nothing_fits_lists_every_format(tmp_path):
    (tmp_path / "traj.txt").write_text("")
    with pytest.raises(UserError) as caught:
        detect_format(tmp_path)
    message = str(caught.value)
    assert "blender: no transforms_train.json" in message
    assert "nerfstudio: no transforms.json" in message
    assert "replica: traj.txt but no results/ folder" in message
    assert "sdfstudio: no meta_data.json" in message
    assert "colmap: no cameras and images" in message
    assert "nsvf: no intrinsics.txt" in message
    assert "nerfpp: no train/ folder" in message
    assert "dtu: no cameras_sphere.npz or cameras.npz" in message
    assert "llff: no poses_bounds.npy" in message
    assert "dynerf: no poses_bounds.npy" in message
    assert "hypernerf: no dataset.json" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("database.db", "colmap mapper"),
        ("poses.npy", "imgs2poses"),
        ("cameras_large.npz", "NeuS keeps"),
        ("photo.jpg", "1 images without poses"),
    ],
)
def test_other_data_gets_a_hint(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=hint):
        detect_format(tmp_path)


def test_a_scene_that_is_two_things_says_so_and_can_be_told(tmp_path):
    known = Known()
    write_nerfstudio(tmp_path, known)
    write_colmap(tmp_path, known, where="colmap/sparse/0")
    format, reason, rejected = detect_format(tmp_path)
    assert format == "nerfstudio"
    assert "would also do as colmap" in reason
    assert "--format colmap" in rejected["colmap"]
    scene = load_scene(tmp_path, DataConfig(format="colmap"), undistort=True)
    assert scene.format == "colmap"
    assert "--format says so" in scene.reason
    with pytest.raises(UserError, match=r"--format replica does not fit: no traj\.txt"):
        load_scene(tmp_path, DataConfig(format="replica"), undistort=True)


def test_the_only_scene_below_a_folder_is_found(tmp_path):
    write_replica(tmp_path / "room0", Known())
    (tmp_path / "room0" / "cam_params.json").rename(tmp_path / "cam_params.json")
    scene = load_scene(tmp_path, undistort=True)
    assert scene.name == "room0"
    assert "the only scene in" in scene.reason
    write_replica(tmp_path / "room1", Known())
    with pytest.raises(UserError, match=r"holds 2 scenes \(room0, room1\); give one"):
        load_scene(tmp_path, undistort=True)


def test_paths_that_are_no_folders(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        load_scene(tmp_path / "nowhere", undistort=True)
    (tmp_path / "scene.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="unpack archives first"):
        load_scene(tmp_path / "scene.zip", undistort=True)


def loop(root):
    os.symlink("loop", root / "loop")
    return root / "loop"


PATHS = {
    "a loop of links": (loop, "cannot be followed"),
    "a name too long": (lambda root: root / ("x" * 300), "File name too long"),
    "an unknown home": (lambda root: "~nobody-of-this-name/scene", "cannot be followed"),
    "a NUL character": (lambda root: f"{root}/a\0b", "cannot be followed"),
}


@pytest.mark.parametrize("case", PATHS)
def test_paths_that_the_system_refuses(tmp_path, case):
    make, needle = PATHS[case]
    path = make(tmp_path)
    for find in (detect_format, lambda path: load_scene(path, undistort=True)):
        with pytest.raises(UserError, match=needle):
            find(path)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"downscale": 0}, "--downscale 0"),
        ({"downscale": -2}, "--downscale -2"),
        ({"test_every": 1}, "--test-every 1"),
        ({"test_every": -3}, "--test-every -3"),
        ({"max_pixels": 0}, "--max-pixels 0"),
        ({"max_pixels": 10**9}, "--max-pixels 1000000000"),
        ({"image_cache_gb": -1.0}, "--image-cache-gb -1"),
        ({"image_cache_gb": float("nan")}, "--image-cache-gb nan"),
        ({"downscale": 10}, "expected at least 8 pixels"),
    ],
)
def test_values_that_make_no_sense_name_their_flag(folders, options, flag):
    with pytest.raises(UserError, match=flag):
        load_scene(folders / "colmap", DataConfig(**options), undistort=True)


def test_a_folder_with_an_empty_json_is_not_guessed_at(tmp_path):
    (tmp_path / "transforms.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"transforms\.json: expected `frames`"):
        load_scene(tmp_path, undistort=True)


def test_every_field_is_a_flag():
    import tyro

    arguments = "--format colmap --downscale 4 --test-every 5 --background white --allow-missing --image-cache-gb 0.5"
    config = tyro.cli(DataConfig, args=[*arguments.split(), "--time-from", "names"])
    expected = DataConfig("colmap", 4, 5, "names", "white", allow_missing=True, image_cache_gb=0.5)
    assert config == expected


def test_the_package_costs_nothing_until_it_is_used():
    program = (
        "import sys; from nfc_splat.data import DataConfig; DataConfig();"
        "print([name for name in ('torch', 'numpy', 'PIL', 'kornia', 'numba') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
