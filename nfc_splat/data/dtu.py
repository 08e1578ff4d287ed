"""DTU scenes in the form of IDR and NeuS: `cameras_sphere.npz` or `cameras.npz`, `image/` (or `rgb/`), often `mask/`.

For view i the archive holds `world_mat_i`, a projection P = K [R | t] from the world to pixels known up to its scale,
and `scale_mat_i`, which maps the unit sphere, where IDR and NeuS expect the object, into the world.

Frame. Cameras stay in the world's frame (millimetres in DTU), which is also that of the ground truth: what is trained
leaves in the frame that it came in. The normalisation is not applied but passed on as `Capture.sphere`, the image of
the unit sphere, and as the box around it; NeuS normalises with it and brings its mesh back.

Principal point. DTU's calibration and the loaders of IDR and NeuS have the centre of the first pixel at 0, so cx and cy
gain 0.5 here (`principal_point_shift`).

Masks show the object, not what may be trusted: the background is part of the photograph. They become
`Frame.foreground`, not `Frame.mask`: every pixel counts in losses and metrics unless `DataConfig.ignore_background`.

MonoSDF keeps such scenes without folders, as `000000_rgb.png`: squares cut out of the middle of the photographs and
reduced, with the cameras of the whole photographs. That is recognised by the principal point and accounted for.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from nfc_splat.data.arrays import read_npz
from nfc_splat.data.capture import MAX_COORDINATE, MAX_FRAMES, Capture, Frame, Lens, counted, naming
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import by_stem, file_names, inside, scene_file
from nfc_splat.data.images import read_size
from nfc_splat.data.parsing import IMAGE_SUFFIXES, is_file, pinhole_lens
from nfc_splat.data.projection import decompose, dot, length
from nfc_splat.errors import UserError
from nfc_splat.files import number_in_name

# NeuS's own file first: where both are there, its sphere is the one around the object alone.
ARCHIVES = ("cameras_sphere.npz", "cameras.npz")
FOLDERS = ("image", "rgb", "images")
MATRIX = re.compile(r"(world|scale)_mat_([0-9]{1,9})")
MONOSDF = re.compile(r"[0-9]+_rgb\.png", re.IGNORECASE)
SHIFT = 0.5

# Photographs whose middle MonoSDF cuts out: DTU, Replica, Tanks and Temples.
WHOLE_SIZES = ((1600, 1200), (1200, 680), (960, 540))
# How far the columns of scale_mat may be from orthogonal and equally long, and scale_mats from each other.
TOLERANCE = 1e-3


def read(root: Path, config: DataConfig) -> Capture:
    """Read the archive and pair its cameras with the images; every 8th image by name is for testing."""
    archive = next((name for name in ARCHIVES if is_file(root / name)), ARCHIVES[0])
    source = root / archive
    projections, scales = _read_matrices(scene_file(root, archive, config))
    capture = Capture(source=source, frames=[], principal_point_shift=SHIFT, world_to_gt=np.eye(4))
    folder = image_folder(root)
    if folder is None:
        raise UserError(f"{root}: there is neither image/ nor rgb/, nor 000000_rgb.png; expected the photographs")
    images = image_names(root, folder, config)
    masks = _masks(images, file_names(root, "mask", IMAGE_SUFFIXES, config), capture)
    for image, index in _pair(images, projections, capture).items():
        name = f"{folder}/{image}" if folder else image
        lens, pose = _camera(projections[index], f"{source}: world_mat_{index}")
        capture.frames.append(
            Frame(
                name=name,
                image=inside(root, name, config),
                lens=lens,
                camera_to_world=pose,
                foreground=inside(root, f"mask/{masks[image]}", config) if image in masks else None,
            )
        )
    _take_sphere(scales, capture)
    if not folder:
        _account_for_cut(capture, config)
    return capture


def image_folder(root: Path) -> str | None:
    """The folder of the photographs: "" for the scene's own, as in MonoSDF, or None."""
    for folder in FOLDERS:
        if (root / folder).is_dir():
            return folder
    return "" if any(MONOSDF.fullmatch(entry.name) for entry in root.iterdir()) else None


def image_names(root: Path, folder: str, config: DataConfig) -> list[str]:
    """The photographs, sorted by name."""
    names = file_names(root, folder, IMAGE_SUFFIXES, config)
    names = names if folder else [name for name in names if MONOSDF.fullmatch(name)]
    if not names:
        raise UserError(f"{root / folder}: holds no photograph")
    by_stem(names, root / folder)
    return names


def _read_matrices(path: Path) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """`world_mat_i` [3, 4] and `scale_mat_i` [4, 4] by i."""
    found: dict[str, dict[int, np.ndarray]] = {"world": {}, "scale": {}}
    for name, array in read_npz(path, MATRIX).items():
        kind, index = MATRIX.fullmatch(name).groups()
        shapes = ((4, 4), (3, 4)) if kind == "world" else ((4, 4),)
        if array.shape not in shapes:
            expected = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
            raise UserError(f"{path}: {name} is {'x'.join(map(str, array.shape))}, expected {expected}")
        if int(index) in found[kind]:
            raise UserError(f"{path}: {name} and another array are both {kind}_mat_{int(index)}; keep one")
        found[kind][int(index)] = array[:3] if kind == "world" else array
    if not 1 <= len(found["world"]) <= MAX_FRAMES:
        raise UserError(f"{path}: {len(found['world'])} arrays world_mat_0, ...; expected 1 to {MAX_FRAMES}")
    return found["world"], found["scale"]


def _pair(images: list[str], projections: dict[int, np.ndarray], capture: Capture) -> dict[str, int]:
    """The camera's number for every image: the number in its name, or else its place among the sorted names."""
    numbers = {name: number_in_name(name) for name in images}
    if len(set(numbers.values())) == len(images) and set(numbers.values()) <= set(projections):
        if len(images) < len(projections):
            capture.notices.append(
                f"{len(images)} of {counted(len(projections), 'camera')} have an image, by the number in its name."
            )
        return numbers
    ordered = sorted(projections)
    if len(images) != len(ordered):
        raise UserError(
            f"{capture.source}: {counted(len(ordered), 'camera')} for {counted(len(images), 'image')}, whose names are "
            f"not the numbers of cameras: {naming(images)}; remove images that have no camera"
        )
    return dict(zip(images, ordered, strict=True))


def _masks(images: list[str], masks: list[str], capture: Capture) -> dict[str, str]:
    """The mask of every image that has one: of its name, of its number (000012.png has 012.png in DTU), or, where
    there are as many whose names say nothing or count from another number, of its place among the sorted names."""
    stems = by_stem(masks, capture.source.parent / "mask")
    numbers = {number: name for name in masks if (number := number_in_name(name)) is not None}
    by_name = {image: stems[stem] for image in images if (stem := image.rpartition(".")[0]) in stems}
    by_number = {image: numbers[number] for image in images if (number := number_in_name(image)) in numbers}
    found = max(by_name, by_number, key=len)
    if len(masks) == len(images) and (not found or _offset(images, masks)):
        capture.notices.append(f"The masks go by their order: {masks[0]!r} is that of {images[0]!r}.")
        return dict(zip(images, masks, strict=True))
    if unused := sorted(set(masks) - set(found.values())):
        capture.notices.append(f"Warning: the names in mask/ are those of no image: {naming(unused)}.")
    return found


def _offset(images: list[str], masks: list[str]) -> int:
    """By how much the numbers of all masks differ from those of the images, place for place; 0 if it varies."""
    numbers = [(number_in_name(image), number_in_name(mask)) for image, mask in zip(images, masks, strict=True)]
    offsets = {None if image is None or mask is None else mask - image for image, mask in numbers}
    return (offsets.pop() or 0) if len(offsets) == 1 else 0


def _camera(P: np.ndarray, where: str) -> tuple[Lens, np.ndarray]:
    """Lens and pose of a projection [3, 4]; that of one that is not finite is not either, and dropped later."""
    if not np.isfinite(P).all():
        return Lens(origin=where), np.full((4, 4), np.nan)
    parts = decompose(P)
    if parts is None:
        raise UserError(f"{where}: its left 3x3 part has no inverse, expected a projection K [R | t]")
    K, pose = parts
    return pinhole_lens(K, where, shift=SHIFT), pose


def _take_sphere(scales: dict[int, np.ndarray], capture: Capture) -> None:
    """The image of the unit sphere under scale_mat, which must be the same sphere for every view."""
    if not scales:
        capture.notices.append("There is no scale_mat, so the extent of the object is not known.")
        return
    spheres = np.stack([_sphere(scale, f"{capture.source}: scale_mat_{i}") for i, scale in scales.items()])
    off = np.abs(spheres - spheres[0]).max(1) > TOLERANCE * spheres[0, 3]
    if off.any():
        one, other = next(iter(scales)), list(scales)[int(off.argmax())]
        raise UserError(f"{capture.source}: scale_mat_{other} differs from scale_mat_{one}; expected one for all views")
    center, radius = spheres[0, :3], spheres[0, 3]
    capture.sphere = spheres[0]
    capture.bounds = np.stack([center - radius, center + radius])
    poses = [frame.camera_to_world for frame in capture.frames if np.isfinite(frame.camera_to_world).all()]
    away = sum(dot(center - pose[:3, 3], pose[:3, 2]) < -radius for pose in poses)
    if away:
        capture.notices.append(
            f"Warning: {away} of {counted(len(poses), 'camera')} look away from the sphere of scale_mat; are the "
            "matrices projections to pixels, with y down?"
        )


def _sphere(scale: np.ndarray, where: str) -> np.ndarray:
    """[4] centre and radius."""
    if not (np.abs(scale) <= MAX_COORDINATE).all() or not np.array_equal(scale[3], [0, 0, 0, 1]):
        raise UserError(f"{where} is not finite or does not end in the row 0 0 0 1")
    radii = np.array([length(scale[:3, column]) for column in range(3)])
    slants = [abs(dot(scale[:3, a], scale[:3, b])) for a, b in ((0, 1), (0, 2), (1, 2))]
    radius = radii[0]
    if not radii.min() > 1e-12 or np.ptp(radii) > TOLERANCE * radius or max(slants) > TOLERANCE * radius**2:
        raise UserError(f"{where} makes no sphere of the unit sphere; expected one scale for all axes, and a shift")
    return np.array([*scale[:3, 3], radius])


def _account_for_cut(capture: Capture, config: DataConfig) -> None:
    """Turn the intrinsics of whole photographs into those of MonoSDF's squares."""
    usable = [frame for frame in capture.frames if frame.lens.fx is not None and is_file(frame.image)]
    if not usable:
        return
    width, height = read_size(usable[0].image, config.max_pixels)
    at = np.median([[frame.lens.cx, frame.lens.cy] for frame in usable], axis=0)
    if (np.abs(at / (width, height) - 0.5) < 0.2).all():
        return
    whole = [size for size in WHOLE_SIZES if (np.abs(at / size - 0.5) < 0.05).all()]
    if width != height or len(whole) != 1:
        raise UserError(
            f"{capture.source}: the principal point is ({at[0]:.1f}, {at[1]:.1f}), which does not belong to "
            f"{width}x{height} images nor to photographs that MonoSDF cuts squares from; correct the cameras"
        )
    whole_width, side = whole[0]
    for index, frame in enumerate(capture.frames):
        if frame.lens.fx is not None:
            lens = replace(frame.lens, width=side, height=side, cx=frame.lens.cx - (whole_width - side) / 2)
            capture.frames[index] = replace(frame, lens=lens.scaled(width, height))
    capture.notices.append(
        f"The images are taken for squares that MonoSDF cut from {whole_width}x{side} photographs and reduced to "
        f"{width}x{height}: the cameras fit those photographs."
    )
