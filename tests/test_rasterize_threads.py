"""The CPU rasteriser's result does not depend on how many threads computed it."""

import pytest
import torch
from rasterize_scenes import SCENES

from nfc_splat.rendering.kernels.threads import available_cores, set_threads
from nfc_splat.rendering.rasterize import rasterize


def drawn_with(threads, scene):
    """Image, alphas and all gradients of one loss."""
    set_threads(threads)
    names = ("means", "quats", "scales", "opacities", "colors")
    leaves = [
        tuple(part.clone().requires_grad_() for part in value)
        if isinstance(value, tuple)
        else value.clone().requires_grad_()
        for value in (getattr(scene, name) for name in names)
    ]
    size = (48, 40)
    image, alphas, info = rasterize(
        *leaves, scene.viewmats, scene.Ks, *size, backgrounds=scene.backgrounds, **scene.options
    )
    info.means2d.retain_grad()
    generator = torch.Generator().manual_seed(3)
    (image * torch.randn(image.shape, generator=generator)).sum().backward()
    flat = [part for leaf in leaves for part in (leaf if isinstance(leaf, tuple) else (leaf,))]
    return [image, alphas, info.means2d.grad, *(leaf.grad for leaf in flat)]


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores to compare one thread with two")
@pytest.mark.parametrize("name", ["plain", "saturated", "absolute gradients"])
def test_one_thread_and_two_give_the_same_bits(name):
    try:
        one, two = (drawn_with(threads, SCENES[name]()) for threads in (1, 2))
    finally:
        set_threads()
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
