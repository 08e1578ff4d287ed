"""What is found and what is suspect in a loaded scene, as short findings for a person to read.

Symbols: C cameras, M points. Nothing here changes the scene or stops anything.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vecdot

from nfc_splat.cameras import Cameras
from nfc_splat.data.capture import counted, naming
from nfc_splat.data.scene import Scene, Split

Level = Literal["ok", "note", "warn", "bad"]

WARNING = "Warning: "

# A splat has 59 parameters; each is held with its gradient and two moments of Adam, in float32.
_BYTES_PER_GAUSSIAN = 59 * 4 * 4
_GAUSSIANS_OF_A_RUN = 200_000
_BASE_MEMORY = 0.6e9

_NEARLY_SAME_PLACE = 1e-3
_NEARLY_SAME_DIRECTION = math.radians(0.2)
_MOST_CAMERAS = 3000
_MOST_POINTS = 20_000


@dataclass(frozen=True)
class Finding:
    """One line: how bad it is ("ok", "note", "warn", "bad"), what it is about, and what was found."""

    level: Level
    subject: str
    text: str


def scene_findings(scene: Scene, available_memory: int | None) -> dict[str, list[Finding]]:
    """Everything worth saying about `scene`, by section.

    Args:
        scene: loaded.
        available_memory: bytes that training may use, or None when unknown.
    """
    cameras = Cameras.concatenate([split.cameras for split in scene.splits.values()])
    sections = {
        "Views": _views(scene, cameras) + _memory(scene, cameras, available_memory),
        "Cameras": _cameras(scene, cameras),
        "Extent": _extent(scene, cameras),
        "Initial points": _points(scene.points, cameras),
        "Images": _images(scene),
    }
    sections = {title: found for title, found in sections.items() if found}
    sections["Said while loading"] = [notice_finding(notice) for notice in scene.notices]
    return sections


def notice_finding(notice: str) -> Finding:
    """A reader's notice as a finding."""
    if notice.startswith(WARNING):
        return Finding("warn", "reader", notice.removeprefix(WARNING))
    return Finding("note", "reader", notice)


def _views(scene: Scene, cameras: Cameras) -> list[Finding]:
    """Splits, sizes, lenses, times."""
    counts = ", ".join(f"{counted(len(split), 'image')} for {name}" for name, split in scene.splits.items())
    empty = not len(scene.splits.get("test", ()))
    advice = "; without test images nothing is measured: lower --test-every" if empty else ""
    findings = [Finding("warn" if empty else "ok", "splits", counts + advice)]
    sizes = sorted({tuple(size) for size in cameras.sizes.tolist()})
    listed = [f"{width}x{height}" for width, height in sizes]
    size = listed[0] if len(sizes) == 1 else f"{len(sizes)} sizes from {listed[0]} to {listed[-1]}"
    findings.append(Finding("ok", "image size", f"{size} (resampler: {scene.resampler})"))
    focal = cameras.Ks[:, 0, 0] / cameras.sizes[:, 0]
    angle = [math.degrees(2 * math.atan(0.5 / float(value))) for value in (focal.max(), focal.min())]
    view = f"{angle[0]:.0f} degrees" if angle[1] - angle[0] < 1 else f"{angle[0]:.0f} to {angle[1]:.0f} degrees"
    lens = "pinhole after undistortion" if scene.undistorted else cameras.model
    odd = angle[0] < 5 or angle[1] > 150
    findings.append(
        Finding("warn" if odd else "ok", "lens", f"{lens}, {view} wide" + ("; check the focal length" if odd else ""))
    )
    if cameras.times is not None:
        findings.append(_times(cameras.times))
    return findings


def _times(times: Tensor) -> Finding:
    distinct = len(times.unique())
    if distinct == 1:
        return Finding("warn", "time", "the same for every image: a moving scene cannot be learned from it")
    return Finding("ok", "time", f"{distinct} distinct times from {float(times.min()):g} to {float(times.max()):g}")


def _memory(scene: Scene, cameras: Cameras, available: int | None) -> list[Finding]:
    """What training will take, beside what there is."""
    images = float(cameras.sizes.prod(-1).sum()) * (4 if scene.has_alpha else 3)
    gaussians = max(_GAUSSIANS_OF_A_RUN, 0 if scene.points is None else len(scene.points))
    needed = _BASE_MEMORY + images + gaussians * _BYTES_PER_GAUSSIAN
    text = f"about {needed / 1e9:.1f} GB to train with {gaussians:,} Gaussians; {images / 1e6:,.0f} MB of it are images"
    if available is not None and needed > available:
        return [Finding("warn", "memory", f"{text}, and {available / 1e9:.1f} GB are free; use --downscale")]
    return [Finding("ok", "memory", text)]


def _cameras(scene: Scene, cameras: Cameras) -> list[Finding]:
    """How the cameras stand, and which stand in each other's place."""
    centers = cameras.centers.double()
    axes = cameras.viewmats[:, 2, :3].double()
    extent = float((centers - centers.mean(0)).norm(dim=-1).max())
    if extent < 1e-9:
        return [Finding("warn", "extent", "all cameras stand in the same place: no depth can be learned")]
    low, high = centers.amin(0).tolist(), centers.amax(0).tolist()
    box = " x ".join(f"[{a:.3g}, {b:.3g}]" for a, b in zip(low, high, strict=True))
    findings = [Finding("ok", "extent", f"centres in {box}")]
    findings.append(_arrangement(centers, axes))
    names = [name for split in scene.splits.values() for name in split.names]
    if len(centers) <= _MOST_CAMERAS:
        findings.append(_near_duplicates(centers, axes, extent, names, cameras.times))
    return findings


def _arrangement(centers: Tensor, axes: Tensor) -> Finding:
    """Whether the cameras look at something between them, outwards, or all the same way."""
    if float(axes.mean(0).norm()) > 0.9:
        return Finding("ok", "arrangement", "all look the same way (forward-facing)")
    # The point closest to all optical axes; the pseudo-inverse answers for parallel ones too.
    across = torch.eye(3, dtype=axes.dtype) - axes[:, :, None] * axes[:, None, :]
    focus = torch.linalg.pinv(across.sum(0)) @ (across @ centers[:, :, None]).sum(0)[:, 0]
    towards = vecdot(axes, torch.nn.functional.normalize(focus - centers, dim=-1))
    if float((towards > 0.7).double().mean()) > 0.8:
        place = ", ".join(f"{value:.3g}" for value in focus.tolist())
        return Finding("ok", "arrangement", f"all look at about ({place})")
    if float((towards < 0).double().mean()) > 0.8:
        return Finding("ok", "arrangement", "they stand inside and look outwards")
    return Finding("ok", "arrangement", "they look in many directions, as when walking through a place")


def _near_duplicates(
    centers: Tensor, axes: Tensor, extent: float, names: Sequence[str], times: Tensor | None
) -> Finding:
    """Pairs of views that show the same thing from the same place at the same time."""
    same = torch.cdist(centers, centers) < _NEARLY_SAME_PLACE * extent
    same &= (axes @ axes.transpose(0, 1)).clamp(-1, 1).acos() < _NEARLY_SAME_DIRECTION
    if times is not None:
        same &= times[:, None] == times[None]
    first, second = same.triu(1).nonzero(as_tuple=True)
    if not len(first):
        return Finding("ok", "duplicates", "no two views from the same pose")
    pair = f"{names[int(first[0])]!r} and {names[int(second[0])]!r}"
    return Finding("warn", "duplicates", f"{counted(len(first), 'pair')} of views from almost the same pose: {pair}")


def _extent(scene: Scene, cameras: Cameras) -> list[Finding]:
    """What the files say of where the scene is, and whether the cameras see it."""
    findings = []
    if scene.near_far is not None:
        near, far = scene.near_far
        findings.append(Finding("ok", "depth range", f"{near:.3g} to {far:.3g}"))
    if scene.sphere is not None:
        center = ", ".join(f"{value:.3g}" for value in scene.sphere[:3].tolist())
        findings.append(Finding("ok", "sphere", f"radius {float(scene.sphere[3]):.3g} around ({center})"))
    if scene.collider is not None:
        place = "depth range" if scene.collider == "near_far" else scene.collider
        findings.append(Finding("ok", "rays end", f"at the {place}, as the files have it"))
    if scene.bounds is not None:
        box = " x ".join(f"[{low:.3g}, {high:.3g}]" for low, high in scene.bounds.T.tolist())
        findings.append(Finding("ok", "bounds", box))
        steps = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
        low, high = scene.bounds.double()
        grid = low + torch.cartesian_prod(steps, steps, steps) * (high - low)
        findings.append(_visibility(grid, cameras, "box"))
    return findings


def _points(points: Tensor | None, cameras: Cameras) -> list[Finding]:
    """How the initial points lie, and whether the cameras see them: the test that catches wrong axes."""
    if points is None:
        return [Finding("note", "points", "none: training starts from random ones between the cameras")]
    finite = points[torch.isfinite(points).all(-1)].double()
    findings = [Finding("ok", "points", f"{len(points):,}")]
    if len(finite) < len(points):
        findings.append(Finding("warn", "points", f"{len(points) - len(finite)} hold NaN or Inf"))
    if not len(finite):
        return findings
    sample = finite[torch.linspace(0, len(finite) - 1, min(len(finite), _MOST_POINTS)).long()]
    box = torch.quantile(sample, torch.tensor([0.02, 0.98], dtype=torch.float64), dim=0).tolist()
    span = " x ".join(f"[{a:.3g}, {b:.3g}]" for a, b in zip(*box, strict=True))
    findings.append(Finding("ok", "extent", f"96 % in {span}"))
    distances = (sample - sample.median(0).values).norm(dim=-1)
    far = int((distances > 50 * distances.median()).sum())
    if far:
        share = 100 * far / len(sample)
        findings.append(Finding("warn", "outliers", f"{share:.2g} % lie over 50 times farther out than the median"))
    return [*findings, _visibility(sample, cameras, "points")]


def _visibility(points: Tensor, cameras: Cameras, what: str) -> Finding:
    """Share of the points that a camera sees, on average over some cameras; `what` they are."""
    chosen = cameras[torch.linspace(0, len(cameras) - 1, min(len(cameras), 50)).long()].to(dtype=torch.float64)
    shares = []
    for index in range(len(chosen)):
        pixels, depth = chosen[index].project(points)
        size = chosen.sizes[index].to(pixels)
        inside = (depth[0] > 0) & (pixels[0] >= 0).all(-1) & (pixels[0] < size).all(-1)
        shares.append(float(inside.double().mean()))
    share, blind = 100 * sum(shares) / len(shares), sum(value == 0 for value in shares)
    text = f"a camera sees {share:.0f} % of the {what} on average"
    if share < 2:
        return Finding("bad", "visibility", f"{text}: cameras and {what} do not fit together; check axes and units")
    if blind:
        return Finding("warn", "visibility", f"{text}; {blind} of {len(shares)} cameras see none")
    return Finding("ok", "visibility", text)


@dataclass(frozen=True)
class _Look:
    """Statistics of one image, levels in [0, 1]."""

    split: str
    name: str
    brightness: float
    contrast: float
    opaque: float
    digest: bytes


def _looks(scene: Scene) -> Iterator[_Look]:
    for split_name, split in scene.splits.items():
        for index, name in enumerate(split.names):
            yield _look(split_name, name, split, index)


def _look(split_name: str, name: str, split: Split, index: int) -> _Look:
    image = split.image(index)
    digest = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest()
    colors, opaque = image[..., :3].double() / 255, 1.0
    if image.shape[-1] == 4:
        alpha = image[..., 3].double() / 255
        opaque = float(alpha.mean())
        colors = colors[alpha > 0.5]
    if colors.numel() == 0:
        return _Look(split_name, name, 0.0, 0.0, opaque, digest)
    return _Look(split_name, name, float(colors.mean()), float(colors.std()), opaque, digest)


def _images(scene: Scene) -> list[Finding]:
    """Blank, repeated and oddly exposed images; transparency and masks."""
    looks = list(_looks(scene))
    findings = []
    blank = [look.name for look in looks if look.contrast < 1.5 / 255]
    if blank:
        findings.append(Finding("warn", "blank", f"{counted(len(blank), 'image')} of one colour: {naming(blank)}"))
    findings += _repeated(looks)
    brightness = torch.tensor([look.brightness for look in looks], dtype=torch.float64)
    middle, low, high = (float(value) for value in (brightness.median(), brightness.min(), brightness.max()))
    distance = (brightness - middle).abs()
    usual = max(0.2, 4 * float(distance.median()))
    odd = [look.name for look, far in zip(looks, distance > usual, strict=True) if far and look.name not in blank]
    spread = f"mean brightness {middle:.2f}, from {low:.2f} to {high:.2f}"
    if odd:
        which = f"{counted(len(odd), 'image')} far from the others: {naming(odd)}"
        findings.append(Finding("warn", "exposure", f"{spread}; {which}"))
    else:
        findings.append(Finding("ok", "exposure", spread))
    if scene.has_alpha:
        opaque = 100 * sum(look.opaque for look in looks) / len(looks)
        level = "warn" if opaque < 1 else "ok"
        findings.append(Finding(level, "alpha", f"{opaque:.0f} % of the pixels are opaque on average"))
    return findings + _masks(scene)


def _repeated(looks: Sequence[_Look]) -> list[Finding]:
    """Equal pictures; worse where one of them is for testing and the other for training."""
    first: dict[bytes, _Look] = {}
    twice, leaked = [], []
    for look in looks:
        if (other := first.setdefault(look.digest, look)) is not look:
            (leaked if {other.split, look.split} == {"train", "test"} else twice).append(look.name)
    findings = []
    if twice:
        findings.append(
            Finding("warn", "repeated", f"{counted(len(twice), 'image')} equal to another: {naming(twice)}")
        )
    if leaked:
        text = f"{counted(len(leaked), 'test image')} equal to a training image: {naming(leaked)}"
        findings.append(Finding("warn", "leak", f"{text}; the test numbers will be too good"))
    return findings


def _masks(scene: Scene) -> list[Finding]:
    findings = []
    views = [(split, index) for split in scene.splits.values() for index in range(len(split))]
    for subject, kind, meaning in (("masks", "mask", "kept"), ("foreground", "foreground", "of the object")):
        masks = (getattr(split, kind)(index) for split, index in views)
        shares = [float(mask.mean()) for mask in masks if mask is not None]
        if shares:
            share = 100 * sum(shares) / len(shares)
            text = f"{counted(len(shares), 'image')} with a mask, {share:.0f} % of the pixels {meaning}"
            findings.append(Finding("ok", subject, text))
    return findings
