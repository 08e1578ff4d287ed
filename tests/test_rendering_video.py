"""Videos from numbered frames, with and without an ffmpeg program."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nfc_splat.errors import UserError
from nfc_splat.rendering import video


def frames(folder, count=6, width=33, height=21):
    folder.mkdir()
    for index in range(count):
        pixels = np.full((height, width, 3), 25 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05d}.png")
    return folder


@pytest.fixture
def no_ffmpeg(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """A program called ffmpeg that notes how it was called; its exit code is in FAKE_EXIT."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(
        f"""#!{sys.executable}
import os, sys
if "-encoders" in sys.argv:
    print(" V....D mpeg4  MPEG-4 part 2\\n V....D libx264  H.264")
    sys.exit(0)
open({str(tmp_path / "called")!r}, "w").write("\\n".join([os.getcwd(), *sys.argv[1:]]))
open(sys.argv[-1], "wb").write(b"video")
print("frame 3: broken", file=sys.stderr)
sys.exit(int(os.environ.get("FAKE_EXIT", "0")))
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return tmp_path / "called"


def test_webp_holds_every_frame_at_its_rate(tmp_path, no_ffmpeg):
    video.check_video("webp", 6, 33, 21)
    video.write_video(tmp_path / "v.webp", frames(tmp_path / "f"), "webp", 20)
    with Image.open(tmp_path / "v.webp") as movie:
        assert (movie.n_frames, movie.size) == (6, (33, 21))
        for index in range(6):
            movie.seek(index)
            movie.load()
            assert movie.info["duration"] == 50
            assert abs(np.asarray(movie.convert("RGB")).astype(int) - 25 * index).max() <= 4


def test_a_webp_that_would_fill_the_memory_is_refused():
    with pytest.raises(UserError, match=r"1000 frames of 1920x1080 need 5.8 GB"):
        video.check_video("webp", 1000, 1920, 1080)


def test_without_ffmpeg_the_message_names_the_remedies(tmp_path, no_ffmpeg):
    with pytest.raises(UserError, match=r"nfc-splat\[video\].*--video webp"):
        video.check_video("mp4", 6, 33, 21)


def test_ffmpeg_gets_a_list_of_arguments_and_relative_frames(tmp_path, fake_ffmpeg):
    folder = frames(tmp_path / "100%d; touch hacked")
    video.write_video(tmp_path / "v.mp4", folder, "mp4", 29.97)
    directory, *arguments = fake_ffmpeg.read_text().splitlines()
    assert directory == str(folder)
    assert arguments[arguments.index("-i") + 1] == "%05d.png"
    assert arguments[arguments.index("-framerate") + 1] == "29.97"
    assert arguments[arguments.index("-c:v") + 1] == "libx264"
    assert (tmp_path / "v.mp4").read_bytes() == b"video"
    assert not (folder / "hacked").exists()
    assert not list(tmp_path.glob(".v.mp4*"))


def test_a_failing_ffmpeg_leaves_the_old_video_and_quotes_the_reason(tmp_path, fake_ffmpeg, monkeypatch):
    monkeypatch.setenv("FAKE_EXIT", "1")
    (tmp_path / "v.mp4").write_bytes(b"old")
    with pytest.raises(UserError, match=r"failed \(frame 3: broken\)"):
        video.write_video(tmp_path / "v.mp4", frames(tmp_path / "f"), "mp4", 30)
    assert (tmp_path / "v.mp4").read_bytes() == b"old"
    assert not list(tmp_path.glob(".v.mp4*"))


def test_mp4_has_every_frame(tmp_path):
    try:
        program = video.find_ffmpeg()
    except UserError as error:
        pytest.skip(str(error))
    video.write_video(tmp_path / "v.mp4", frames(tmp_path / "f", count=9), "mp4", 30)
    command = [program, "-loglevel", "error", "-i", str(tmp_path / "v.mp4"), "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    raw = subprocess.run(command, capture_output=True, check=True, env=os.environ).stdout
    assert len(raw) == 9 * 34 * 22  # sides made even
