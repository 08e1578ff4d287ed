"""Choosing a backend, and what a wrong call is told."""

import logging
import sys

import pytest
import torch

from nfc_splat.errors import UserError
from nfc_splat.rendering.kernels import backends
from nfc_splat.rendering.kernels.backends import announce, available_backends
from nfc_splat.rendering.rasterize import choose_backend, rasterize

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def arguments(**changes):
    """A valid call with 5 Gaussians and 2 cameras, with some arguments replaced."""
    call = {
        "means": torch.rand(5, 3) + torch.tensor([0.0, 0.0, 2.0]),
        "quats": torch.rand(5, 4),
        "scales": torch.rand(5, 3),
        "opacities": torch.rand(5),
        "colors": torch.rand(5, 3),
        "viewmats": torch.eye(4).repeat(2, 1, 1),
        "Ks": torch.tensor([[8.0, 0, 4], [0, 8.0, 3], [0, 0, 1]]).repeat(2, 1, 1),
        "width": 8,
        "height": 6,
        "backend": "reference",
    }
    return {**call, **changes}


# ------------------------------------------------------------------------------------------------ the right one


@pytest.mark.parametrize(
    ("device", "dtype", "asked", "chosen"),
    [
        (CPU, torch.float32, "auto", "cpu"),
        (CUDA, torch.float32, "auto", "cuda"),
        (CPU, torch.float32, "cpu", "cpu"),
        (CPU, torch.float32, "reference", "reference"),
        (CPU, torch.float64, "reference", "reference"),
        (CUDA, torch.float64, "reference", "reference"),
    ],
)
def test_the_backend_follows_the_tensors_unless_told_otherwise(device, dtype, asked, chosen):
    assert choose_backend(device, dtype, asked) == chosen


@pytest.mark.parametrize(
    ("device", "dtype", "asked", "remedy"),
    [
        (CPU, torch.float32, "cuda", r"\.to\('cuda'\)"),
        (CUDA, torch.float32, "cpu", r"\.to\('cpu'\)"),
        (CPU, torch.float64, "auto", r"\.float\(\)"),
        (CUDA, torch.float16, "cuda", r"\.float\(\)"),
    ],
)
def test_a_choice_that_cannot_be_met_says_how_to_meet_it(device, dtype, asked, remedy):
    with pytest.raises(UserError, match=remedy):
        choose_backend(device, dtype, asked)


# ------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": torch.rand(5, 4)}, r"means must be \[N, 3\] = \[5, 3\]; got \[5, 4\]"),
        ({"quats": torch.rand(4, 4)}, r"quats must be \[N, 4\] = \[5, 4\]; got \[4, 4\]"),
        ({"scales": torch.rand(5)}, r"scales must be \[N, 3\]"),
        ({"opacities": torch.rand(5, 1)}, r"opacities must be \[N\] = \[5\]; got \[5, 1\]"),
        ({"colors": torch.rand(4, 3)}, r"colors must be \[N, D\] = \[5, 3\]; got \[4, 3\]"),
        ({"viewmats": torch.eye(4)}, r"viewmats must be \[C, 4, 4\]"),
        ({"viewmats": torch.zeros(0, 4, 4), "Ks": torch.zeros(0, 3, 3)}, "no camera"),
        ({"Ks": torch.eye(3)[None]}, r"Ks must be \[C, 3, 3\] = \[2, 3, 3\]; got \[1, 3, 3\]"),
        ({"backgrounds": torch.rand(3)}, r"backgrounds must be \[C, D\] = \[2, 3\]; got \[3\]"),
        ({"colors": (torch.rand(5, 1, 3), torch.rand(5, 3, 3))}, "give sh_degree"),
        ({"colors": torch.rand(5, 3), "sh_degree": 0}, r"colors must be \[N, K, 3\] when sh_degree is given"),
        ({"colors": torch.rand(5, 4, 3), "sh_degree": 2}, "4 coefficients; sh_degree 2 needs 9"),
        ({"colors": torch.rand(5, 25, 3), "sh_degree": 4}, "0 to 3"),
        ({"colors": (torch.rand(5, 2, 3), torch.rand(5, 3, 3)), "sh_degree": 1}, r"constant term.*\[N, 1, 3\]"),
        ({"colors": (torch.rand(5, 1, 3), torch.rand(4, 3, 3)), "sh_degree": 1}, r"further terms.*\[N, K-1, 3\]"),
        ({"colors": torch.rand(5, 0)}, "no channel"),
        ({"scales": torch.rand(5, 3).double()}, r"all tensors must be torch.float32 on cpu.*\[5, 3\] is torch.float64"),
        ({"means": torch.ones(5, 3, dtype=torch.int64)}, "floating point"),
        ({"width": 0}, "at least 1 pixel; got 0 x 6"),
        ({"near_plane": 0.0}, "near_plane"),
        ({"near_plane": 2.0, "far_plane": 1.0}, "far_plane"),
        ({"eps2d": 0.0}, "eps2d must be positive"),
        ({"render_mode": "RGBD"}, "render_mode must be one of RGB, D, ED"),
        ({"rasterize_mode": "mip"}, "rasterize_mode must be one of classic, antialiased"),
        ({"backend": "gpu"}, "backend must be one of auto, reference, cpu, cuda"),
    ],
)
def test_a_wrong_call_is_told_which_argument_and_what_was_expected(changes, message):
    with pytest.raises(ValueError, match=message):
        rasterize(**arguments(**changes))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_right_call_draws(backend):
    image, alpha, info = rasterize(**arguments(backend=backend))
    assert image.shape == (2, 6, 8, 3)
    assert alpha.max() > 0.1
    assert info.radii.shape == (2, 5, 2)


# -------------------------------------------------------------------------------------- what this machine has


def test_without_cuda_the_reason_is_torchs_and_gsplat_is_not_touched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backends, "_version", lambda package: pytest.fail(package) if package == "gsplat" else "1")
    found = available_backends()
    assert list(found) == ["cuda", "cpu", "reference"]
    assert not found["cuda"].usable
    assert "torch.cuda.is_available() is False" in found["cuda"].reason
    assert found["cpu"].usable
    assert found["reference"].usable


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


def test_a_missing_gsplat_is_reported_with_the_remedy(a_gpu, monkeypatch):
    monkeypatch.setattr(backends, "_version", lambda package: None)
    reason = available_backends()["cuda"].reason
    assert "gsplat is not installed (Some GPU is there)" in reason
    assert "pip install" in reason


def test_a_gsplat_that_cannot_be_compiled_is_reported(a_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "_version", lambda package: "1.5.3")
    monkeypatch.setattr(backends, "_gsplat_build", lambda: None)
    found = available_backends()["cuda"]
    assert not found.usable
    assert "no nvcc" in found.reason
    monkeypatch.setattr(backends, "_gsplat_build", lambda: "kernels compiled on first use")
    found = available_backends()["cuda"]
    assert found.usable
    assert found.reason == "gsplat 1.5.3, kernels compiled on first use, on Some GPU"


def test_how_gsplat_gets_its_kernels(monkeypatch, tmp_path):
    package = tmp_path / "gsplat"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gsplat", raising=False)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(backends, "DEFAULT_CUDA_HOME", str(tmp_path / "nowhere"))
    assert backends._gsplat_build() is None
    compiler = tmp_path / "toolkit" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text("")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert backends._gsplat_build() == "kernels compiled on first use"
    (package / "csrc.so").write_text("")
    assert backends._gsplat_build() == "kernels shipped compiled"


def test_the_choice_is_announced_once(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_announced", set())
    with caplog.at_level(logging.INFO, logger="nfc_splat"):
        announce("rasterisation", "cpu")
        announce("rasterisation", "cpu")
        rasterize(**arguments())
        rasterize(**arguments())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("rasterisation: cpu backend (numba ")
    assert said[1].startswith("rasterisation: reference backend (")
