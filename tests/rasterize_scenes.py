"""Random Gaussian scenes, and the comparison of two rasterisation backends on them.

Every scene is made of float32 numbers, so that a float64 oracle sees exactly the same input as a float32 backend.
Pixels whose value hangs on rounding (`near_cut_pixels`) are left out of the comparison, and get no cotangent, so that
they are left out of the gradients too; they must be rare.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nfc_splat.rendering.kernels.gaussians_reference import near_cut_pixels
from nfc_splat.rendering.rasterize import RasterInfo, rasterize

MOST_NEAR_CUT = 0.005
WITHOUT_GRADIENT = {"cpu": ("viewmats",)}  # what a backend refuses to differentiate
WIDTH, HEIGHT, FOCAL = 67, 45, 60.0  # no multiple of any tile size


@dataclass(frozen=True)
class Scene:
    """The arguments of `rasterize`. `colors` is a tensor or the pair (sh0, shN); `options` its keyword arguments."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor | tuple[Tensor, Tensor]
    viewmats: Tensor
    Ks: Tensor
    backgrounds: Tensor | None = None
    width: int = WIDTH
    height: int = HEIGHT
    options: dict[str, Any] = field(default_factory=dict)

    def parameters(self) -> dict[str, Tensor]:
        """Everything that gradients reach, by name."""
        named = {name: getattr(self, name) for name in ("means", "quats", "scales", "opacities", "viewmats")}
        if isinstance(self.colors, Tensor):
            named["colors"] = self.colors
        else:
            named["sh0"], named["shN"] = self.colors
        if self.backgrounds is not None:
            named["backgrounds"] = self.backgrounds
        return named

    def rows(self, index: Any) -> "Scene":
        """The scene of the Gaussians at `index` alone."""
        pick = lambda tensor: tensor[index]  # noqa: E731
        colors = pick(self.colors) if isinstance(self.colors, Tensor) else tuple(pick(part) for part in self.colors)
        return replace(
            self,
            means=pick(self.means),
            quats=pick(self.quats),
            scales=pick(self.scales),
            opacities=pick(self.opacities),
            colors=colors,
        )

    def with_options(self, **options: Any) -> "Scene":
        """The same scene with other keyword arguments for `rasterize`."""
        return replace(self, options={**self.options, **options})


# ------------------------------------------------------------------------------------------------------ scenes


def cameras(count: int, generator: torch.Generator, width: int = WIDTH, height: int = HEIGHT) -> tuple[Tensor, Tensor]:
    """`count` cameras near the origin that look along +z, and their intrinsics; the first is the identity."""
    angles = 0.3 * torch.rand(count, 3, generator=generator) - 0.15
    angles[0] = 0
    skew = torch.zeros(count, 3, 3)
    skew[:, [2, 0, 1], [1, 2, 0]] = angles
    viewmats = torch.eye(4).repeat(count, 1, 1)
    viewmats[:, :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
    viewmats[1:, :3, 3] = 0.6 * torch.rand(count - 1, 3, generator=generator) - 0.3
    Ks = torch.tensor([[FOCAL, 0, 0.5 * width + 1.3], [0, 1.1 * FOCAL, 0.5 * height - 0.7], [0, 0, 1]])
    return viewmats, Ks.repeat(count, 1, 1)


def random_scene(
    seed: int = 0,
    count: int = 200,
    *,
    views: int = 1,
    sh_degree: int | None = 3,
    channels: int = 3,
    background: bool = True,
    scale: tuple[float, float] = (0.02, 0.25),
    opacity: tuple[float, float] = (0.02, 0.98),
    depth: tuple[float, float] = (2.0, 6.0),
    spread: float = 0.8,
    **options: Any,
) -> Scene:
    """Gaussians in front of the cameras.

    Args:
        scale, opacity, depth: ranges; scales are log-uniform per axis.
        spread: half width of the cloud in units of the image's: beyond 1, Gaussians hang over the border.
        options: keyword arguments of `rasterize`.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(*shape, generator=generator)  # noqa: E731
    z = uniform(*depth, count)
    half = torch.tensor([0.5 * WIDTH / FOCAL, 0.5 * HEIGHT / FOCAL])
    means = torch.cat([uniform(-spread, spread, count, 2) * half * z[:, None], z[:, None]], 1)
    viewmats, Ks = cameras(views, generator)
    if sh_degree is None:
        colors = uniform(0, 1, count, channels)
    else:
        coefficients = 0.3 * torch.randn(count, 16, 3, generator=generator)
        colors = coefficients[:, :1].clone(), coefficients[:, 1:].clone()
    return Scene(
        means=means,
        quats=torch.randn(count, 4, generator=generator),
        scales=uniform(math.log(scale[0]), math.log(scale[1]), count, 3).exp(),
        opacities=uniform(*opacity, count),
        colors=colors,
        viewmats=viewmats,
        Ks=Ks,
        backgrounds=uniform(0, 1, views, channels) if background else None,
        options={"sh_degree": sh_degree, **options},
    )


def _degenerate() -> Scene:
    """Points, discs and needles from a millionth of a unit to a third of one."""
    scene = random_scene(5, 200, scale=(1e-6, 0.3))
    scales = scene.scales.clone()
    scales[:20] = 1e-7
    scales[20:30, 0] = 0.0
    scales[30:40] = torch.tensor([0.2, 0.2, 1e-8])
    return replace(scene, scales=scales)


def _some_behind() -> Scene:
    """A third behind the camera, some exactly in its plane, some at its centre, some beyond `far_plane`."""
    scene = random_scene(6, 240, depth=(-4.0, 8.0), scale=(0.01, 0.1), far_plane=7.0, near_plane=0.2)
    means = scene.means.clone()
    means[:10, 2] = 0.0
    means[10:15] = 0.0
    return replace(scene, means=means)


def _one_point() -> Scene:
    """Equal depths: copies of the same Gaussians in other colours are drawn in the order of their index."""
    scene = random_scene(8, 60, opacity=(0.3, 0.9))
    return scene.rows(torch.arange(60).repeat(3)[torch.randperm(180, generator=torch.Generator().manual_seed(1))])


SCENES: dict[str, Callable[[], Scene]] = {
    "plain": lambda: random_scene(0),
    "colours as they are": lambda: random_scene(1, sh_degree=None),
    "no background": lambda: random_scene(2, background=False, sh_degree=1),
    "saturated": lambda: random_scene(3, 500, opacity=(0.9, 1.0), scale=(0.1, 0.5)),
    "faint": lambda: random_scene(4, opacity=(0.0, 0.02), scale=(0.1, 0.5)),
    "degenerate scales": _degenerate,
    "behind the camera": _some_behind,
    "at the border": lambda: random_scene(7, spread=2.5, scale=(0.05, 0.6)),
    "equal depths": _one_point,
    "antialiased": lambda: random_scene(9, rasterize_mode="antialiased", scale=(0.003, 0.1)),
    "several cameras": lambda: random_scene(10, views=3, sh_degree=2),
    "depth": lambda: random_scene(11, render_mode="D"),
    "expected depth": lambda: random_scene(12, render_mode="ED", opacity=(0.2, 0.98)),
    "colour and depth": lambda: random_scene(13, render_mode="RGB+D", views=2),
    "colour and expected depth": lambda: random_scene(14, render_mode="RGB+ED", sh_degree=0, opacity=(0.2, 0.98)),
    "one channel": lambda: random_scene(15, sh_degree=None, channels=1),
    "seven channels": lambda: random_scene(16, sh_degree=None, channels=7),
    "absolute gradients": lambda: random_scene(17, absgrad=True),
    "other blur": lambda: random_scene(18, eps2d=0.05, scale=(0.01, 0.1)),
    "nothing visible": lambda: random_scene(19, depth=(-5.0, -1.0)),
}


# -------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Drawn:
    """What one backend made of a scene. Gradients are by name; everything is float64 in main memory.

    Attributes:
        images: [C, H, W, D], alphas: [C, H, W, 1].
        gradients: of the parameters, of means2d ("means2d") and, if asked for, its absolute sums ("absgrad").
    """

    images: Tensor
    alphas: Tensor
    info: RasterInfo
    gradients: dict[str, Tensor]


def draw(
    backend: str, scene: Scene, cotangents: tuple[Tensor, Tensor] | None = None, fixed: tuple[str, ...] | None = None
) -> Drawn:
    """Rasterise with "reference" (float64), "reference32" (the same in float32), "cpu" or "cuda".

    Args:
        cotangents: of images and alphas; gradients are computed when given.
        fixed: names of parameters that get no gradient; by default those that the backend refuses.
    """
    fixed = WITHOUT_GRADIENT.get(backend, ()) if fixed is None else fixed
    dtype = torch.float64 if backend == "reference" else torch.float32
    device = "cuda" if backend == "cuda" else "cpu"
    move = lambda tensor: None if tensor is None else tensor.detach().to(device, dtype)  # noqa: E731
    leaves = {name: move(tensor) for name, tensor in scene.parameters().items()}
    learned = {name: leaf.requires_grad_() for name, leaf in leaves.items() if name not in fixed and cotangents}
    images, alphas, info = rasterize(
        leaves["means"],
        leaves["quats"],
        leaves["scales"],
        leaves["opacities"],
        leaves["colors"] if "colors" in leaves else (leaves["sh0"], leaves["shN"]),
        leaves["viewmats"],
        move(scene.Ks),
        scene.width,
        scene.height,
        backgrounds=leaves.get("backgrounds"),
        backend="reference" if backend == "reference32" else backend,
        **scene.options,
    )
    gradients = {}
    if cotangents is not None:
        info.means2d.retain_grad()
        scalar = (images * move(cotangents[0])).sum() + (alphas * move(cotangents[1])).sum()
        scalar.backward()
        zero = torch.zeros(())
        gradients = {
            name: zero.expand(leaf.shape) if leaf.grad is None else leaf.grad for name, leaf in learned.items()
        }
        gradients["means2d"] = info.means2d.grad
        if scene.options.get("absgrad"):
            gradients["absgrad"] = info.means2d.absgrad
    out = lambda tensor: tensor.detach().double().cpu()  # noqa: E731
    projected = {name: out(getattr(info, name)) for name in ("means2d", "depths", "conics", "opacities")}
    info = replace(info, radii=info.radii.cpu(), **projected)
    return Drawn(out(images), out(alphas), info, {name: out(tensor) for name, tensor in gradients.items()})


@dataclass(frozen=True)
class Difference:
    """How far one quantity is from the oracle's: largest element-wise, relative L2, cosine."""

    name: str
    largest: float
    relative: float
    cosine: float
    passed: bool

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.name:12s} max {self.largest:.2e}  L2 {self.relative:.2e}  1-cos {1 - self.cosine:.2e}"


def difference(name: str, ours: Tensor, oracle: Tensor, *, value_tol: float = 0.0, l2_tol: float = 0.0) -> Difference:
    """Compare element-wise (`value_tol`, relative to values above 1) or in relative L2 (`l2_tol`)."""
    error = ours - oracle
    norm, ours_norm = oracle.norm(), ours.norm()
    largest = error.abs().max().item() if error.numel() else 0.0
    relative = (error.norm() / norm).item() if norm > 0 else (0.0 if ours_norm == 0 else math.inf)
    cosine = ((ours * oracle).sum() / (norm * ours_norm)).item() if norm > 0 and ours_norm > 0 else 1.0
    biggest = oracle.abs().max().item() if oracle.numel() else 0.0
    passed = largest <= value_tol * max(1.0, biggest) if value_tol else relative <= l2_tol
    return Difference(name, largest, relative, cosine, passed and bool(torch.isfinite(error).all()))


def assert_parity(
    backend: str, oracle: str, scene: Scene, value_tol: float = 1e-5, gradient_tol: float = 1e-4
) -> list[Difference]:
    """Assert that two backends agree on a scene in values (element-wise) and gradients (relative L2 per parameter).

    Returns:
        Every difference, for those who want to print them.
    """
    with torch.no_grad():
        exact = draw("reference", scene)
    usable = ~near_cut_pixels(exact.info)[..., None]  # [C, H, W, 1]
    left_out = 1 - usable.double().mean().item()
    assert left_out <= MOST_NEAR_CUT, f"{left_out:.2%} of the pixels hang on rounding: the scene is no test"
    generator = torch.Generator().manual_seed(99)
    cotangents = tuple(
        usable * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for tensor in (exact.images, exact.alphas)
    )
    ours = draw(backend, scene, cotangents)
    theirs = draw(oracle, scene, cotangents, fixed=WITHOUT_GRADIENT.get(backend, ()))
    return compare(ours, theirs, usable, value_tol, gradient_tol)


def compare(
    ours: Drawn, oracle: Drawn, usable: Tensor, value_tol: float = 1e-5, gradient_tol: float = 1e-4
) -> list[Difference]:
    """Assert that two drawings agree in the `usable` pixels [C, H, W, 1]; see `assert_parity`."""
    values = [("image", ours.images, oracle.images), ("alpha", ours.alphas, oracle.alphas)]
    found = [difference(name, a * usable, b * usable, value_tol=value_tol) for name, a, b in values]
    found += [_projected(name, ours.info, oracle.info, value_tol) for name in ("means2d", "depths", "opacities")]
    assert ours.gradients.keys() == oracle.gradients.keys()
    found += [
        difference(f"d {name}", ours.gradients[name], gradient, l2_tol=gradient_tol)
        for name, gradient in oracle.gradients.items()
    ]
    report = "\n".join(str(entry) for entry in found)
    assert all(entry.passed for entry in found), f"backends disagree:\n{report}"
    boxes = [info.radii.long() for info in (ours.info, oracle.info)]
    assert (boxes[0] - boxes[1]).abs().max() <= 1 or _visible_differs_rarely(*boxes), "radii differ"
    return found


def _projected(name: str, ours: RasterInfo, oracle: RasterInfo, tolerance: float) -> Difference:
    """Compare a projected quantity where both see the Gaussian."""
    seen = ((ours.radii > 0) & (oracle.radii > 0)).all(-1)
    return difference(name, getattr(ours, name)[seen], getattr(oracle, name)[seen], value_tol=tolerance)


def _visible_differs_rarely(ours: Tensor, oracle: Tensor) -> bool:
    """Rounding may cull a Gaussian at the border or the threshold; other boxes differ by a pixel at most."""
    seen_ours, seen_oracle = (ours > 0).all(-1), (oracle > 0).all(-1)
    both = seen_ours & seen_oracle
    rare = (seen_ours != seen_oracle).double().mean() <= MOST_NEAR_CUT
    return bool(rare and ((ours - oracle)[both].abs() <= 1).all())
