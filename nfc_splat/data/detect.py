"""Finding out what a scene folder is, from the names of its files alone."""

from collections.abc import Callable
from pathlib import Path

from nfc_splat.data.colmap_model import find_models
from nfc_splat.data.dtu import ARCHIVES, image_folder
from nfc_splat.data.dynerf import video_parts
from nfc_splat.data.llff import POSES, image_folders
from nfc_splat.data.parsing import IMAGE_SUFFIXES
from nfc_splat.data.replica import FRAME
from nfc_splat.errors import UserError

# Files by which a scene is named, besides its folder.
SCENE_FILES = {
    "transforms.json",
    "transforms_train.json",
    "meta_data.json",
    "traj.txt",
    "poses_bounds.npy",
    "cameras_sphere.npz",
    "cameras.npz",
    "intrinsics.txt",
    "dataset.json",
}

# What other tools' data looks like, and what to do about it.
HINTS = {
    "cameras_large.npz": "NeuS keeps the cameras of an object in cameras_sphere.npz; add that file",
    "poses.npy": "it looks like LLFF data half made; run LLFF's imgs2poses, which writes poses_bounds.npy",
    "database.db": "COLMAP has not written a sparse model yet; run `colmap mapper`",
}


def _file(name: str) -> Callable[[Path], tuple[str | None, str]]:
    return lambda root: (name, "") if (root / name).is_file() else (None, f"no {name}")


def _replica(root: Path) -> tuple[str | None, str]:
    if not (root / "traj.txt").is_file():
        return None, "no traj.txt"
    if not (root / "results").is_dir():
        return None, "traj.txt but no results/ folder"
    if not any(FRAME.fullmatch(entry.name) for entry in (root / "results").iterdir()):
        return None, "no results/frame000000.jpg or .png"
    return "traj.txt and results/frame*", ""


def _colmap(root: Path) -> tuple[str | None, str]:
    models = find_models(root)
    if not models:
        return None, "no cameras and images (.bin or .txt) in sparse/0, sparse or colmap/sparse/0"
    return f"a COLMAP model in {models[0].relative_to(root).as_posix()}", ""


def _nsvf(root: Path) -> tuple[str | None, str]:
    if not (root / "intrinsics.txt").is_file():
        return None, "no intrinsics.txt"
    missing = [name for name in ("rgb", "pose") if not (root / name).is_dir()]
    if missing:
        return None, f"intrinsics.txt but no {missing[0]}/ folder"
    return "intrinsics.txt, rgb/ and pose/", ""


def _nerfpp(root: Path) -> tuple[str | None, str]:
    for folder in ("train", "train/rgb", "train/pose", "train/intrinsics"):
        if not (root / folder).is_dir():
            return None, f"no {folder}/ folder"
    return "train/ with rgb/, pose/ and intrinsics/", ""


def _dtu(root: Path) -> tuple[str | None, str]:
    archive = next((name for name in ARCHIVES if (root / name).is_file()), None)
    if archive is None:
        return None, f"no {' or '.join(ARCHIVES)}"
    if image_folder(root) is None:
        return None, f"{archive} but neither image/ nor rgb/"
    return archive, ""


def _llff(root: Path) -> tuple[str | None, str]:
    if not (root / POSES).is_file():
        return None, f"no {POSES}"
    folders = image_folders(root)
    if not folders:
        return None, f"{POSES} but neither images/ nor images_N/"
    return f"{POSES} and {folders[0].name}/", ""


def _dynerf(root: Path) -> tuple[str | None, str]:
    if not (root / POSES).is_file():
        return None, f"no {POSES}"
    parts = video_parts(root)
    if not parts:
        return None, f"{POSES} but neither cam00/images/ nor cam00.mp4"
    return f"{POSES} and {parts[0]}", ""


def _hypernerf(root: Path) -> tuple[str | None, str]:
    if not (root / "dataset.json").is_file():
        return None, "no dataset.json"
    missing = [name for name in ("camera", "rgb") if not (root / name).is_dir()]
    if missing:
        return None, f"dataset.json but no {missing[0]}/ folder"
    return "dataset.json, camera/ and rgb/", ""


# In order of precedence: nerfstudio scenes usually keep the COLMAP model that they were made from, and so do LLFF and
# many DTU scenes, where it brings points and, for LLFF, the distortion of the lens. HyperNeRF's and DyNeRF's go before
# it: what COLMAP makes of them knows no time.
LOOKS = {
    "blender": _file("transforms_train.json"),
    "nerfstudio": _file("transforms.json"),
    "replica": _replica,
    "sdfstudio": _file("meta_data.json"),
    "hypernerf": _hypernerf,
    "dynerf": _dynerf,
    "colmap": _colmap,
    "nsvf": _nsvf,
    "nerfpp": _nerfpp,
    "dtu": _dtu,
    "llff": _llff,
}


def detect_format(path: Path | str) -> tuple[str, str, dict[str, str]]:
    """What the scene at `path` is.

    Args:
        path: a scene folder, a file in it that names its format, or a folder that holds exactly one scene.

    Returns:
        format: a name that `DataConfig.format` takes.
        reason: a sentence: what was found, and where.
        rejected: why each other format was not chosen.

    Raises:
        UserError: nothing fits, with what every format missed, several scenes lie in the folder, or it cannot be read.
    """
    try:
        return _detect(path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from error


def _detect(path: Path | str) -> tuple[str, str, dict[str, str]]:
    root = scene_root(path)
    found, rejected = _look(root)
    if not found:
        missed = "; ".join(f"{name}: {why}" for name, why in rejected.items())
        raise UserError(f"{root}: no scene that any reader knows. {missed}. {_hint(root)}")
    chosen = next(iter(found))
    reason = f"{root.name} is a {chosen} scene because it has {found[chosen]}."
    if len(found) > 1:
        others = " and ".join(f"{name} ({found[name]})" for name in list(found)[1:])
        reason += f" It would also do as {others}; --format chooses."
    if root != absolute_path(path) and not absolute_path(path).is_file():
        reason += f" It is the only scene in {absolute_path(path)}."
    for name in list(found)[1:]:
        rejected[name] = f"{chosen} goes first; --format {name} reads it"
    return chosen, reason, rejected


def missing_parts(root: Path, format: str) -> str | None:
    """What `root` lacks to be read as `format`, or None."""
    evidence, why = LOOKS[format](root)
    return None if evidence else why


def scene_root(path: Path | str, format: str = "auto") -> Path:
    """The scene folder meant by `path`: itself, the parent of a scene file, or its only sub-folder with a scene.

    Given a `format`, only scenes of that format count.
    """
    path = absolute_path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such folder; give the folder of a scene")
    if path.is_file():
        if path.name in SCENE_FILES:
            return path.parent
        raise UserError(f"{path}: is a file; give the folder of a scene (unpack archives first)")
    is_scene = lambda folder: bool(_look(folder)[0] if format == "auto" else LOOKS[format](folder)[0])  # noqa: E731
    if is_scene(path):
        return path
    children = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    scenes = [child for child in children if is_scene(child)]
    if len(scenes) > 1:
        names = ", ".join(scene.name for scene in scenes[:10])
        raise UserError(f"{path}: holds {len(scenes)} scenes ({names}{', ...' if len(scenes) > 10 else ''}); give one")
    return scenes[0] if scenes else path


def _look(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Evidence by format that fits, and what is missing by format that does not."""
    found, rejected = {}, {}
    for name, look in LOOKS.items():
        evidence, why = look(root)
        if evidence:
            found[name] = evidence
        else:
            rejected[name] = why
    return found, rejected


def absolute_path(path: Path | str) -> Path:
    """`path` from the root on, with links followed; a `UserError` for one that cannot be."""
    try:
        whole = Path(path).expanduser().resolve()
        whole.exists()
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, an unknown user after ~, long names
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: the path cannot be followed ({reason}); give the folder of a scene") from error
    return whole


def _hint(root: Path) -> str:
    for name, hint in HINTS.items():
        if (root / name).exists():
            return hint[0].upper() + hint[1:]
    folder = root / "images" if (root / "images").is_dir() else root
    photos = sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in folder.iterdir())
    if photos:
        return f"It holds {photos} images without poses: run COLMAP or ns-process-data first"
    return "Give the folder that holds one of these files, or name the format with --format"
