"""The adapter to gsplat, with a stand-in for gsplat: what it is asked, and how its failures are told.

The stand-in answers with our reference rasteriser, so everything but gsplat's own kernels is exercised without a GPU.
The kernels themselves are tested by tests/test_gsplat_gpu.py.
"""

import importlib.metadata
import sys
from types import ModuleType

import pytest
import torch
from rasterize_scenes import random_scene
from test_rasterize_contract import POISONED, spoil

from nfc_splat.errors import UserError
from nfc_splat.rendering.kernels import gaussians_cuda
from nfc_splat.rendering.kernels.gaussians_cuda import load_gsplat, rasterize_cuda
from nfc_splat.rendering.kernels.gaussians_reference import rasterize_reference


class StandIn:
    """Has gsplat 1.5.3's `rasterization` (the arguments used here) and remembers its last call."""

    def rasterization(
        self,
        means,
        quats,
        scales,
        opacities,
        colors,
        viewmats,
        Ks,
        width,
        height,
        near_plane=0.01,
        far_plane=1e10,
        radius_clip=0.0,
        eps2d=0.3,
        sh_degree=None,
        packed=True,
        tile_size=16,
        backgrounds=None,
        render_mode="RGB",
        sparse_grad=False,
        absgrad=False,
        rasterize_mode="classic",
    ):
        self.asked = {key: value for key, value in locals().items() if key != "self"}
        assert not packed
        # Gsplat reads no colour of a culled Gaussian.
        readable = torch.where((opacities > 0).view(-1, *[1] * (colors.dim() - 1)), colors, 0.0)
        images, alphas, info = rasterize_reference(
            means,
            quats,
            scales,
            opacities,
            readable,
            None,
            viewmats,
            Ks,
            width,
            height,
            sh_degree=sh_degree,
            near_plane=near_plane,
            far_plane=far_plane,
            eps2d=eps2d,
            backgrounds=backgrounds,
            render_mode=render_mode,
            rasterize_mode=rasterize_mode,
            absgrad=absgrad,
        )
        names = ("means2d", "radii", "depths", "conics", "opacities")
        return images, alphas, {name: getattr(info, name) for name in names}


@pytest.fixture
def gsplat(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(gaussians_cuda, "load_gsplat", lambda: stand_in)
    return stand_in


def call(draw, scene, **options):
    """Draw a float64 copy of `scene`; returns the results and the leaves."""
    leaves = {name: tensor.double().requires_grad_() for name, tensor in scene.parameters().items()}
    defaults = {
        "sh_degree": 3,
        "near_plane": 0.01,
        "far_plane": 1e10,
        "eps2d": 0.3,
        "render_mode": "RGB",
        "rasterize_mode": "classic",
        "absgrad": False,
    }
    arguments = [leaves[name] for name in ("means", "quats", "scales", "opacities", "sh0", "shN", "viewmats")]
    drawn = draw(
        *arguments,
        scene.Ks.double(),
        scene.width,
        scene.height,
        backgrounds=leaves.get("backgrounds"),
        **{**defaults, **scene.options, **options},
    )
    return drawn, leaves


@pytest.mark.parametrize("mode", ["RGB", "D", "RGB+ED"])
def test_every_argument_arrives_and_the_answer_is_passed_on(gsplat, mode):
    scene = random_scene(50, 30, views=2, near_plane=0.1, far_plane=9.0, eps2d=0.2, rasterize_mode="antialiased")
    (images, alphas, info), leaves = call(rasterize_cuda, scene, render_mode=mode, absgrad=True)
    (expected, expected_alphas, expected_info), exact = call(rasterize_reference, scene, render_mode=mode, absgrad=True)
    assert torch.equal(images, expected)
    assert torch.equal(alphas, expected_alphas)
    assert gsplat.asked["absgrad"] is True
    assert gsplat.asked["radius_clip"] == 0.0
    assert torch.equal(info.radii, expected_info.radii)
    assert (info.width, info.height) == (67, 45)
    info.means2d.retain_grad(), expected_info.means2d.retain_grad()
    images.sum().backward(), expected.sum().backward()
    assert torch.equal(info.means2d.grad, expected_info.means2d.grad)
    assert torch.equal(info.means2d.absgrad, expected_info.means2d.absgrad)
    for name, leaf in leaves.items():
        if exact[name].grad is not None:
            torch.testing.assert_close(leaf.grad, exact[name].grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "value"), [pytest.param(n, v, id=f"{n}-{label}") for n, label, v in POISONED])
def test_poisoned_rows_arrive_transparent_and_with_finite_geometry(gsplat, name, value):
    scene = random_scene(51, 20)
    (images, _, _), leaves = call(rasterize_cuda, spoil(scene, name, value))
    assert gsplat.asked["opacities"][7] == 0
    for key in ("means", "quats", "scales"):
        assert torch.isfinite(gsplat.asked[key]).all()
    images.sum().backward()
    assert torch.isfinite(images).all()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves.values())
    others = torch.arange(20) != 7
    (clean, _, _), _ = call(rasterize_cuda, scene.rows(others))
    torch.testing.assert_close(images, clean, rtol=0, atol=1e-12)


def test_a_row_behind_every_camera_is_left_to_gsplat(gsplat):
    scene = random_scene(52, 10, depth=(-3.0, -1.0))
    call(rasterize_cuda, scene)
    assert (gsplat.asked["opacities"] > 0).all()


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("D", 1), ("RGB+ED", 4)])
def test_no_gaussians_do_not_reach_gsplat(gsplat, mode, channels):
    scene = random_scene(53, 5, views=2).rows(slice(0))
    (images, alphas, info), _ = call(rasterize_cuda, scene, render_mode=mode)
    assert not hasattr(gsplat, "asked")
    assert images.shape == (2, 45, 67, channels)
    if mode != "D":
        assert torch.equal(images[..., :3], scene.backgrounds.double()[:, None, None].expand(-1, 45, 67, -1))
    assert alphas.abs().max() == 0
    assert info.radii.shape == (2, 0, 2)


# ----------------------------------------------------------------------------------------------------- failures


@pytest.fixture
def installed(monkeypatch):
    """Pretend that gsplat 1.5.3 is installed; the test says what its kernels do."""
    load_gsplat.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.5.3")

    def kernels(attribute):
        modules = {name: ModuleType(name) for name in ("gsplat", "gsplat.cuda")}
        backend = ModuleType("gsplat.cuda._backend")
        backend.__getattr__ = lambda name: attribute() if name == "_C" else None
        for name, module in {**modules, "gsplat.cuda._backend": backend}.items():
            monkeypatch.setitem(sys.modules, name, module)

    yield kernels
    load_gsplat.cache_clear()


def raising(error):
    def attribute():
        raise error

    return attribute


def test_a_missing_gsplat_is_one_line_with_the_remedy(monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    load_gsplat.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"not installed: pip install 'nfc-splat\[gpu\]'"):
        load_gsplat()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError(
                "Error building extension 'gsplat_cuda': [1/29] nvcc -O3 ...\nFAILED: Adam.o\n"
                "Common.h:5:10: fatal error: glm/gtc/type_ptr.hpp: No such file or directory\ncompilation terminated."
            ),
            "Common.h:5:10: fatal error: glm/gtc/type_ptr.hpp: No such file or directory",
        ),
        (RuntimeError("Ninja is required to load C++ extensions"), "Ninja is required"),
        (ImportError("gsplat_cuda.so: cannot open shared object file"), "cannot open shared object file"),
        (OSError("CUDA_HOME environment variable is not set."), "CUDA_HOME environment variable is not set"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_a_failed_build_is_one_line_with_its_cause(installed, error, cause):
    installed(raising(error))
    with pytest.raises(UserError) as raised:
        load_gsplat()
    assert cause in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "CUDA_HOME" in str(raised.value)
    assert len(str(raised.value)) < 600


def test_kernels_that_gsplat_gave_up_on_are_reported(installed):
    installed(lambda: None)
    with pytest.raises(UserError, match="found no CUDA toolkit"):
        load_gsplat()


def test_loaded_kernels_are_handed_on(installed):
    installed(lambda: object())
    assert load_gsplat() is sys.modules["gsplat"]
