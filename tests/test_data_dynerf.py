"""DyNeRF: cameras and moments, videos not taken apart, reduced frames, and hostile folders."""

import shutil

import numpy as np
import pytest
import torch
from data_scenes import COUNT, FOCAL, HEIGHT, WIDTH, assert_refused, link_out, llff_rows, write_dynerf, write_png

from nfc_splat.data import DataConfig, detect_format, load_scene
from nfc_splat.data.motion import scene_moves

FRAMES = 3


@pytest.fixture
def root(known, tmp_path):
    write_dynerf(tmp_path / "scene", known, frames=FRAMES)
    return tmp_path / "scene"


def as_videos(root):
    """What the authors give away."""
    for camera in root.glob("cam*"):
        shutil.rmtree(camera)
        (root / f"{camera.name}.mp4").write_bytes(b"\0\0\0\x20ftypisom")


def test_cameras_stand_still_and_share_their_moments(root, known):
    scene = load_scene(root, undistort=True)
    train, test = scene.splits["train"], scene.splits["test"]
    assert test.names == [f"cam00/images/{i:04d}.png" for i in range(FRAMES)]
    assert len(train) == (COUNT - 1) * FRAMES
    torch.testing.assert_close(test.cameras.times, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(train.cameras.times, torch.tensor([0.0, 0.5, 1.0]).repeat(COUNT - 1))
    expected = torch.from_numpy(np.linalg.inv(known.poses)).float().repeat_interleave(FRAMES, 0)
    found = torch.cat([test.cameras.viewmats, train.cameras.viewmats])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert scene.near_far == pytest.approx((1.0, 5.11))
    assert any("12 cameras; cam00 is the test view" in notice for notice in scene.notices)
    assert scene_moves(root, DataConfig())


def test_the_number_in_a_name_is_the_moment_whatever_was_left_out(root):
    """Every tenth frame, counted from 1, and one camera without the second of them."""
    for camera in root.glob("cam*"):
        for i in reversed(range(FRAMES)):
            (camera / "images" / f"{i:04d}.png").rename(camera / "images" / f"frame_{1 + 10 * i}.png")
    (root / "cam03" / "images" / "frame_11.png").unlink()
    scene = load_scene(root, undistort=True)
    train = scene.splits["train"]
    times = dict(zip(train.names, train.cameras.times.tolist(), strict=True))
    assert times["cam03/images/frame_21.png"] == 1.0
    assert times["cam04/images/frame_11.png"] == 0.5
    assert any("Warning: 'cam03' have fewer frames than the others, which have 3" in n for n in scene.notices)


def test_frames_of_half_the_size_have_half_the_focal_length(root, known):
    rows = llff_rows(known)
    rows[:, [4, 9, 14]] *= 2
    np.save(root / "poses_bounds.npy", rows)
    cameras = load_scene(root, undistort=True).splits["train"].cameras
    assert cameras.Ks[0].tolist() == [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]


def test_reduced_copies_lie_beside_every_cameras_frames(root, known):
    for i in range(COUNT):
        for moment in range(FRAMES):
            image = known.image(i)[::2, ::2]
            write_png(root / f"cam{i:02d}" / "images_2" / f"{moment:04d}.png", image)
    scene = load_scene(root, DataConfig(downscale=2), undistort=True)
    assert scene.resampler == "images_2"
    assert scene.splits["test"].cameras.width == WIDTH // 2


def test_a_single_camera_holds_frames_out(known, tmp_path):
    write_dynerf(tmp_path, known, frames=9)
    for i in range(1, COUNT):
        shutil.rmtree(tmp_path / f"cam{i:02d}")
    np.save(tmp_path / "poses_bounds.npy", llff_rows(known)[:1])
    scene = load_scene(tmp_path, undistort=True)
    assert scene.splits["test"].names == ["cam00/images/0000.png", "cam00/images/0008.png"]


def test_videos_are_recognised_and_refused_with_the_command_that_takes_them_apart(root):
    as_videos(root)
    format, reason, _ = detect_format(root)
    assert format == "dynerf"
    assert "poses_bounds.npy and cam00.mp4" in reason
    assert_refused(root, "only cam00.mp4; take the videos apart, in")
    assert_refused(root, 'ffmpeg -i "$v" -vf scale=iw/2:ih/2 -start_number 0 "${v%.mp4}/images/%04d.png"; done')


def test_one_video_beside_the_frames_of_others_is_not_forgotten(root):
    shutil.rmtree(root / "cam05")
    assert_refused(root, "12 rows for 11 cameras")
    (root / "cam05.mp4").write_bytes(b"")
    assert_refused(root, "cam05: there is no image in images/, only cam05.mp4")
    assert_refused(root, f"in {root}: for v in cam05.mp4; do")  # the others' frames are left as they are
    (root / "cam04.mp4").write_bytes(b"")  # what cam04's frames were taken from may stay
    assert_refused(root, "for v in cam05.mp4; do")


def rename(root, name):
    for camera in sorted(root.glob("cam*")):
        camera.rename(root / name(int(camera.name[3:])))


def test_names_without_leading_zeros_go_by_name_and_say_so(root, known):
    """As sorted names do in the published tools: 0, 1, 10, 11, 2, ..."""
    rename(root, lambda number: f"cam{number}")
    scene = load_scene(root, undistort=True)
    assert scene.splits["test"].names == [f"cam0/images/{i:04d}.png" for i in range(FRAMES)]
    order = sorted(range(COUNT), key=str)
    assert scene.splits["train"].names[::FRAMES] == [f"cam{number}/images/0000.png" for number in order[1:]]
    found = torch.cat([scene.splits[name].cameras.viewmats[::FRAMES] for name in ("test", "train")])
    torch.testing.assert_close(found, torch.from_numpy(np.linalg.inv(known.poses)).float(), rtol=0, atol=1e-6)
    said = "Warning: rows go by names, so they are those of 'cam0', 'cam1', 'cam10', 'cam11', 'cam2'"
    assert any(said in notice for notice in scene.notices)


def test_videos_without_leading_zeros_are_recognised(root):
    as_videos(root)
    for video in root.glob("cam*.mp4"):
        video.rename(root / f"cam{int(video.stem[3:])}.mp4")
    assert "poses_bounds.npy and cam0.mp4" in detect_format(root)[1]
    assert_refused(root, "cam0: there is no image in images/, only cam0.mp4; take the videos apart")
    assert_refused(root, "for v in cam*.mp4; do")


def test_a_camera_by_two_names_is_refused(root):
    (root / "cam3.mp4").write_bytes(b"")
    assert_refused(root, "'cam03' and 'cam3' are both camera 3; keep one")


def test_frames_that_lie_in_the_cameras_own_folder_are_to_be_moved(root):
    for camera in root.glob("cam*"):
        for image in (camera / "images").iterdir():
            image.rename(camera / image.name)
        (camera / "images").rmdir()
    assert detect_format(root)[0] == "dynerf"
    assert_refused(root, "cam00: there is no image in images/, but 3 images beside it; move them into cam00/images/")


def test_other_videos_and_folders_are_no_cameras(root):
    (root / "cam99.mp4").mkdir()
    (root / "camera").mkdir()
    (root / "cam_extra").mkdir()
    (root / "preview.mp4").write_bytes(b"")
    assert len(load_scene(root, undistort=True).splits["test"]) == FRAMES


def row(index, column, value):
    def spoil(root):
        rows = np.load(root / "poses_bounds.npy")
        rows[index, column] = value
        np.save(root / "poses_bounds.npy", rows)

    return spoil


LEAVES = "leaves the scene folder"
CASES = {
    "a row too few": (
        lambda root: np.save(root / "poses_bounds.npy", np.load(root / "poses_bounds.npy")[:-1]),
        "11 rows for 12 cameras ('cam00', 'cam01', 'cam02', 'cam03', 'cam04', ... (12 in all))",
    ),
    "a camera without frames": (
        lambda root: [image.unlink() for image in (root / "cam02" / "images").iterdir()],
        "cam02: there is no image in images/; expected the frames of its video",
    ),
    "a frame without number": (
        lambda root: (root / "cam02" / "images" / "0001.png").rename(root / "cam02" / "images" / "last.png"),
        "last.png: its name does not end with a number",
    ),
    "a frame of another size": (
        lambda root: write_png(root / "cam02" / "images" / "0001.png", np.zeros((20, 40, 3), np.uint8)),
        "20, but the intrinsics in",
    ),
    "focal is negative": (row(7, 14, -60.0), "row 7: the focal length is -60"),
    "near behind far": (row(4, 15, 6.0), "row 4 has the depths 6 and 5.04"),
    "two poses not finite": (row(slice(2, 4), 0, np.nan), "6 of 36 poses are unusable"),
    "rows leave the scene": (link_out("poses_bounds.npy"), LEAVES),
    "a camera leaves the scene": (link_out("cam02"), LEAVES),
    "a frame leaves the scene": (link_out("cam02/images/0001.png"), LEAVES),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_scenes(root, case):
    spoil, needle = CASES[case]
    spoil(root)
    assert_refused(root, needle, format="dynerf")
