"""Numbered PNG frames to one video file: MP4 through an ffmpeg program, or animated WebP through Pillow alone."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from nfc_splat.errors import UserError
from nfc_splat.files import atomic_path

VideoKind = Literal["mp4", "webp"]
VIDEOS = get_args(VideoKind)

FRAME_PATTERN = "%05d.png"
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
_LARGEST_WEBP = 2**31


def find_ffmpeg() -> str:
    """Path of an ffmpeg program: the one on PATH, else the one that the package imageio-ffmpeg carries.

    Raises:
        UserError: there is none; the message says how to get one.
    """
    if program := shutil.which("ffmpeg"):
        return program
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "--video mp4: no ffmpeg on PATH and no imageio-ffmpeg in this environment; install one of them "
            "(pip install 'nfc-splat[video]'), or use --video webp, which needs neither"
        ) from error


def check_video(kind: VideoKind, frames: int, width: int, height: int) -> None:
    """Raise a `UserError` if such a video cannot be written here, before anything is rendered for it."""
    if kind == "mp4":
        find_ffmpeg()
    elif (size := frames * width * height * 3) > _LARGEST_WEBP:
        raise UserError(
            f"--video webp: {frames} frames of {width}x{height} need {size / 2**30:.1f} GB of memory at once, expected "
            f"at most {_LARGEST_WEBP // 2**30} GB; use --video mp4, fewer --frames or a smaller --width"
        )


def write_video(path: Path, folder: Path, kind: VideoKind, fps: float) -> None:
    """Encode `folder`'s frames 00000.png, 00001.png, ... into `path`, atomically.

    Args:
        path: of the video.
        folder: of the frames, all of one size.
        kind: the container.
        fps: frames per second.

    Raises:
        UserError: ffmpeg is absent or fails; the frames stay where they are.
    """
    with atomic_path(path) as temporary:
        if kind == "mp4":
            _encode_mp4(find_ffmpeg(), folder, temporary, fps)
        else:
            _encode_webp(sorted(folder.glob("*.png")), temporary, fps)


def _encode_mp4(program: str, folder: Path, path: Path, fps: float) -> None:
    encoder = _encoder(program)
    quality = ["-crf", "18"] if encoder == "libx264" else ["-q:v", "3"] if encoder == "mpeg4" else ["-b:v", "8M"]
    # The frames are named relative to the working folder: a "%" in its own path would be read as a pattern. Players
    # want 4:2:0 colours, which need even sides.
    command = [program, "-nostdin", "-loglevel", "error", "-y", "-framerate", f"{fps:g}", "-i", FRAME_PATTERN]
    command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", encoder, *quality, "-pix_fmt", "yuv420p"]
    command += ["-movflags", "+faststart", "-f", "mp4", str(path.resolve())]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"{program} failed ({lines[-1]}); the frames are in {folder}; try --video webp")


def _encoder(program: str) -> str:
    """The best H.264 or MPEG-4 encoder that this ffmpeg was built with."""
    listing = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, text=True, errors="replace")
    built = {words[1] for line in listing.stdout.splitlines() if len(words := line.split()) > 1}
    for encoder in _ENCODERS:
        if encoder in built:
            return encoder
    raise UserError(f"{program} has none of the encoders {', '.join(_ENCODERS)}; try --video webp")


def _encode_webp(files: Sequence[Path], path: Path, fps: float) -> None:
    from PIL import Image

    frames = []
    for file in files:
        with Image.open(file, formats=("PNG",)) as image:
            frames.append(image.convert("RGB"))
    frames[0].save(
        path, format="WEBP", save_all=True, append_images=frames[1:], duration=1000 / fps, loop=0, quality=85, method=4
    )
