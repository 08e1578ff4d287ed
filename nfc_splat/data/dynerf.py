"""Neural 3D Video scenes (DyNeRF): `poses_bounds.npy` with a row per camera, and `cam00/images/0000.png`, ... for each.

The cameras stand still and film at the same time: the number that a frame's name ends with says when, in all cameras
alike, and the first camera by name, `cam00`, is the test view. Rows belong to cameras in the order of their names and
are those of `llff`; their size and focal length are those of the videos (2704x2028), whatever size the frames have.

Names need no leading zeros, but `cam10` comes before `cam2` then, as it does for those who made the published files.

Videos are not read: a camera that has only `cam00.mp4` or its like is refused with the command that takes it apart.
"""

import re
from pathlib import Path

from nfc_splat.data.capture import Capture, Frame, counted, naming
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import file_names, inside, scene_file
from nfc_splat.data.llff import POSES, depth_range, read_rows, row_camera
from nfc_splat.data.parsing import IMAGE_SUFFIXES
from nfc_splat.errors import UserError

CAMERA = re.compile(r"cam[0-9]{1,6}")
NUMBER = re.compile(r".*?([0-9]{1,12})", re.DOTALL)
# Half the size of the videos is what results are published at.
EXTRACTION = (
    'for v in {videos}; do mkdir -p "${{v%.mp4}}/images" && '
    'ffmpeg -i "$v" -vf scale=iw/2:ih/2 -start_number 0 "${{v%.mp4}}/images/%04d.png"; done'
)


def read(root: Path, config: DataConfig) -> Capture:
    """Read the frames of every camera, each at the number in its name."""
    source = root / POSES
    rows = read_rows(scene_file(root, POSES, config))
    cameras = _cameras(root)
    if len(cameras) != len(rows):
        raise UserError(
            f"{source}: {counted(len(rows), 'row')} for {counted(len(cameras), 'camera')} ({naming(cameras)}); rows go "
            "by the sorted names, so there must be one for each"
        )
    capture = Capture(source=source, frames=[], near_far=depth_range(rows, source))
    counts: dict[str, int] = {}
    for index, (row, camera) in enumerate(zip(rows, cameras, strict=True)):
        lens, pose = row_camera(row, f"{source}: row {index}")
        names = file_names(root, f"{camera}/images", IMAGE_SUFFIXES, config)
        if not names:
            raise UserError(f"{root / camera}: there is no image in images/{_remedy(root, camera, cameras)}")
        counts[camera] = len(names)
        for name in names:
            capture.frames.append(
                Frame(
                    name=f"{camera}/images/{name}",
                    image=inside(root, f"{camera}/images/{name}", config),
                    folder=root / camera / "images",
                    below=name,
                    lens=lens,
                    camera_to_world=pose,
                    split=None if len(cameras) == 1 else "train" if index else "test",
                    time=_moment(root / camera / "images" / name),
                )
            )
    _report(counts, capture)
    return capture


def video_parts(root: Path) -> list[str]:
    """What is there of the videos, as names below `root`: folders of frames, in place or not, and files."""
    found = []
    for entry in sorted(root.iterdir()):
        if CAMERA.fullmatch(entry.name) and (entry / "images").is_dir():
            found.append(f"{entry.name}/images/")
        elif CAMERA.fullmatch(entry.name) and entry.is_dir() and _misplaced(entry):
            found.append(f"{entry.name}/")
        elif entry.suffix == ".mp4" and CAMERA.fullmatch(entry.stem) and entry.is_file():
            found.append(entry.name)
    return found


def _cameras(root: Path) -> list[str]:
    """The names of all cameras, sorted, whether their frames are there or a video."""
    names = sorted({part.partition("/")[0].removesuffix(".mp4") for part in video_parts(root)})
    by_number: dict[int, str] = {}
    for name in names:
        if (other := by_number.setdefault(int(name[3:]), name)) != name:
            raise UserError(f"{root}: {other!r} and {name!r} are both camera {int(name[3:])}; keep one, or rename one")
    return names


def _misplaced(folder: Path) -> int:
    """How many images lie in a camera's folder itself."""
    return sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in folder.iterdir())


def _remedy(root: Path, camera: str, cameras: list[str]) -> str:
    if (root / camera).is_dir() and (count := _misplaced(root / camera)):
        return f", but {counted(count, 'image')} beside it; move them into {camera}/images/"
    if not (root / f"{camera}.mp4").is_file():
        return "; expected the frames of its video"
    whole = [name for name in cameras if (root / f"{name}.mp4").is_file() and not (root / name / "images").is_dir()]
    videos = "cam*.mp4" if whole == cameras else " ".join(f"{name}.mp4" for name in whole or [camera])
    return f", only {camera}.mp4; take the videos apart, in {root}: {EXTRACTION.format(videos=videos)}"


def _moment(path: Path) -> float:
    number = NUMBER.fullmatch(path.name.rpartition(".")[0])
    if number is None:
        raise UserError(f"{path}: its name does not end with a number, which says when it was taken; rename the frames")
    return float(number[1])


def _report(counts: dict[str, int], capture: Capture) -> None:
    """Say which view is for testing, and where frames are lacking."""
    cameras, most = list(counts), max(counts.values())
    if len(cameras) > 1:
        capture.notices.append(f"{counted(len(cameras), 'camera')}; {cameras[0]} is the test view.")
    if cameras != sorted(cameras, key=lambda name: int(name[3:])):
        capture.notices.append(
            f"Warning: rows go by names, so they are those of {naming(cameras)}; if they go by numbers, rename the "
            "cameras to cam00, cam01, ..."
        )
    fewer = [camera for camera, count in counts.items() if count < most]
    if fewer:
        capture.notices.append(f"Warning: {naming(fewer)} have fewer frames than the others, which have {most}.")
