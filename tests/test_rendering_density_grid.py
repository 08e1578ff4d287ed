"""Opacities of raw densities, and which samples they show: the kernel against plain torch in float64."""

import pytest
import torch

from nfc_splat.cameras import Rays
from nfc_splat.rendering.density_grid import activation_shift, opacity, visible_samples
from nfc_splat.rendering.kernels.threads import set_threads
from nfc_splat.rendering.kernels.visible_cpu import least_density
from nfc_splat.rendering.march import composite
from nfc_splat.rendering.samples import Samples

LOW, HIGH = torch.tensor([-1.0, -1.2, -0.8]), torch.tensor([1.0, 1.2, 0.8])


def scene(rays=40, each=30, seed=0, dtype=torch.float32):
    """Random densities and rays from around a box; some samples lie outside it."""
    generator = torch.Generator().manual_seed(seed)
    grid = 6 * torch.randn(6, 7, 5, 1, generator=generator, dtype=dtype)
    origins = 3 * torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator, dtype=dtype), dim=-1)
    directions = -origins / 3 + 0.2 * torch.randn(rays, 3, generator=generator, dtype=dtype)
    t = torch.linspace(1.4, 4.6, each, dtype=dtype).expand(rays, each)
    samples = Samples.dense(Rays(origins, directions, None, 0.0, 10.0), t, torch.full_like(t, 0.1))
    return grid, samples


OPTIONS = dict(shift=activation_shift(0.05), interval=0.7, threshold=1e-3, stop=1e-2)
SPACES = [{}, dict(center=torch.tensor([0.1, 0.0, -0.2]), radius=1.5), dict(radius=0.9, contraction="l2")]
SPACES += [dict(radius=0.9, contraction="inf", shell=0.3)]


def as_double(samples):
    rays = samples.rays
    rays = Rays(rays.origins.double(), rays.directions.double(), None, rays.near, rays.far)
    return Samples(rays, samples.t.double(), samples.widths.double(), samples.ray, samples.offsets, samples.steps)


@pytest.mark.parametrize("space", SPACES)
def test_the_kernel_keeps_what_torch_keeps_in_float64(space):
    grid, samples = scene()
    samples.__dict__["steps"] = torch.arange(len(samples)) * 3
    ours = visible_samples(samples, grid, LOW, HIGH, **OPTIONS, **space)
    space = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in space.items()}
    theirs = visible_samples(as_double(samples), grid.double(), LOW.double(), HIGH.double(), **OPTIONS, **space)
    assert 0.05 * len(samples) < len(ours) < 0.8 * len(samples)
    assert torch.equal(ours.offsets, theirs.offsets)
    assert torch.equal(ours.steps, theirs.steps)
    assert torch.equal(ours.ray, theirs.ray)
    assert torch.allclose(ours.t.double(), theirs.t)
    assert torch.allclose(ours.widths, torch.full_like(ours.widths, 0.1))
    assert torch.allclose(ours.positions.double(), theirs.positions, atol=1e-5)


class Fog:
    draw_normals, encoding = False, None

    def __init__(self, grid):
        self.grid = grid

    def alpha(self, samples):
        from nfc_splat.rendering.grids import interpolate_grid

        raw = interpolate_grid(self.grid, samples.positions, LOW, HIGH)[:, 0]
        return opacity(raw, OPTIONS["shift"], OPTIONS["interval"]), None

    def color(self, samples, features):
        return samples.positions.sin().abs()


def test_compositing_what_is_visible_gives_the_same_picture_and_gradient():
    pictures = []
    for first in (False, True):
        grid, samples = scene()
        grid.requires_grad_()
        shown = visible_samples(samples, grid, LOW, HIGH, **{**OPTIONS, "stop": 0.0099}) if first else samples
        threshold = 0.0 if first else OPTIONS["threshold"]
        drawn = composite(Fog(grid), shown, torch.ones(3), alpha_threshold=threshold, stop=OPTIONS["stop"])
        drawn.color.square().sum().backward()
        pictures.append((drawn.color, drawn.alpha, grid.grad))
        assert first == (len(shown) < len(samples))
    for one, two in zip(*pictures, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_any_number_of_threads_keeps_the_same():
    grid, samples = scene(rays=500)
    kept = []
    try:
        for threads in (1, 2):
            set_threads(threads)
            kept.append(visible_samples(samples, grid, LOW, HIGH, **OPTIONS))
    finally:
        set_threads()
    for name in ("t", "ray", "offsets", "positions"):
        assert torch.equal(getattr(kept[0], name), getattr(kept[1], name))


def test_no_samples():
    grid, samples = scene(rays=3, each=4)
    none = samples.keep(torch.zeros(12, dtype=torch.bool))[0]
    kept = visible_samples(none, grid, LOW, HIGH, **OPTIONS)
    assert kept.offsets.tolist() == [0, 0, 0, 0]
    assert kept.positions.shape == (0, 3)


def test_the_threshold_on_the_opacity_as_one_on_the_density():
    least = least_density(OPTIONS["shift"], OPTIONS["interval"], OPTIONS["threshold"])
    alpha = opacity(torch.tensor(least, dtype=torch.float64), OPTIONS["shift"], OPTIONS["interval"])
    assert alpha.item() == pytest.approx(OPTIONS["threshold"], rel=1e-9)
    assert least_density(0.0, 1.0, 0.0) == -float("inf")
