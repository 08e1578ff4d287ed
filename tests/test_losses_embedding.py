"""The README's section on embedding the losses, executed: its loop trains splats drawn by a stand-in for gsplat."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from nfc_splat.losses import NFCLoss, mse, nfc_loss

README = Path(__file__).resolve().parent.parent / "README.md"
HEADING = "## Embed the loss in your own trainer"


def embedding_section() -> str:
    text = README.read_text(encoding="utf-8")
    assert text.count(HEADING) == 1, f"README.md must have one section {HEADING!r}"
    return re.split(r"^## ", text.split(HEADING)[1], maxsplit=1, flags=re.MULTILINE)[0]


def embedding_code() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", embedding_section(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, "the section shows one program"
    return blocks[0]


def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, *, packed):
    """gsplat's arguments and results for a few round splats: blended by opacity and distance, not sorted by depth."""
    assert not packed
    camera = means @ viewmats[:, :3, :3].mT + viewmats[:, None, :3, 3]  # [C, N, 3]
    projected = camera @ Ks.mT
    means2d = projected[..., :2] / projected[..., 2:]
    radii = scales.mean(-1) * Ks[:, None, 0, 0] / camera[..., 2]  # [C, N]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    offsets = torch.stack([columns, rows], -1)[None, :, :, None] - means2d[:, None, None]  # [C, H, W, N, 2]
    coverage = opacities * torch.exp(-0.5 * offsets.square().sum(-1) / radii[:, None, None].square())
    alphas = 1 - (1 - coverage).prod(-1, keepdim=True)
    blended = (coverage[..., None] * colors).sum(-2) / (coverage.sum(-1, keepdim=True) + 1e-6)
    return alphas * blended, alphas, {"means2d": means2d, "width": width, "height": height, "n_cameras": len(viewmats)}


class RecordingStrategy:
    """gsplat's strategy callbacks: keeps what densification would be decided by."""

    def step_pre_backward(self, params, optimizers, state, step, info):
        info["means2d"].retain_grad()

    def step_post_backward(self, params, optimizers, state, step, info, packed=False):
        state.setdefault("grad2d", []).append(info["means2d"].grad.norm(dim=-1).mean().item())


def make_splats(seed):
    generator = torch.Generator().manual_seed(seed)
    count = 12
    tensors = {
        "means": torch.rand(count, 3, generator=generator) * 2 - 1,
        "quats": torch.randn(count, 4, generator=generator),
        "scales": torch.full((count, 3), -1.5),
        "opacities": torch.full((count,), 1.0),
        "colors": torch.randn(count, 3, generator=generator),
    }
    return torch.nn.ParameterDict({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()})


def draw(splats, data):
    """The image [1, 20, 24, 3] of splats from the camera of `data`."""
    with torch.no_grad():
        colors, _, _ = rasterization(
            splats["means"],
            splats["quats"],
            splats["scales"].exp(),
            splats["opacities"].sigmoid(),
            splats["colors"].sigmoid(),
            torch.linalg.inv(data["camtoworld"]),
            data["K"],
            width=24,
            height=20,
            packed=False,
        )
    return colors


def make_data(corruption=None):
    """A camera at (0, 0, -4), its 8-bit image of other splats, and a mask where a corner of it is corrupted."""
    camtoworld = torch.eye(4)[None]
    camtoworld[0, 2, 3] = -4
    data = {"camtoworld": camtoworld, "K": torch.tensor([[[24.0, 0, 12], [0, 24, 10], [0, 0, 1]]])}
    data["image"] = (draw(make_splats(seed=7), data) * 255).round()
    if corruption is not None:
        data["mask"] = torch.ones(1, 20, 24, dtype=torch.bool)
        data["mask"][:, :4, :5] = False
        data["image"][~data["mask"]] = corruption
    return data


@pytest.fixture
def example(monkeypatch):
    """The names that the README's program defines, with the stand-in where gsplat would be."""
    stand_in = types.ModuleType("gsplat")
    stand_in.rasterization = rasterization
    monkeypatch.setitem(sys.modules, "gsplat", stand_in)
    namespace = {"__name__": "readme"}
    exec(compile(embedding_code(), str(README), "exec"), namespace)
    return namespace


def run(example, data, steps=40):
    """Train the README's way; returns the splats and, per step, what densification was told."""
    splats, state = make_splats(seed=1), {}
    optimizers = {name: torch.optim.Adam([splats[name]], lr=0.02) for name in splats}
    example["train"](splats, optimizers, RecordingStrategy(), state, [data] * steps, steps)
    return splats, state["grad2d"]


@pytest.mark.parametrize("corruption", [None, 255.0])
def test_the_loop_learns_the_image(example, corruption):
    data = make_data(corruption)
    splats, grad2d = run(example, data)
    before, after = (
        mse(draw(some, data), data["image"] / 255, mask=data.get("mask")).item()
        for some in (make_splats(seed=1), splats)
    )
    assert after < 0.4 * before
    assert len(grad2d) == 40
    assert all(0 < value < float("inf") for value in grad2d), "densification has its gradients"


def test_what_the_mask_ignores_trains_nothing(example):
    white, _ = run(example, make_data(corruption=255.0), steps=5)
    broken, _ = run(example, make_data(corruption=float("nan")), steps=5)
    for name in white:
        assert torch.equal(white[name], broken[name]), name


def test_the_new_line_is_what_the_text_says(example):
    """It adds the classification term alone, which the densification statistics feel, as the text warns."""
    assert isinstance(example["classification"], NFCLoss)
    assert example["classification"].base is None
    _, with_term = run(example, make_data(), steps=1)
    example["classification"] = NFCLoss(base=None, weight=0.0)
    _, without_term = run(example, make_data(), steps=1)
    assert with_term[0] > 1.5 * without_term[0]


def test_numbers_in_the_text():
    section = embedding_section()
    for p, multiplier in ((0.5, 5), (0.02, 52)):
        assert round(1 + 2 / (2 * p * (1 - p))) == multiplier
        assert str(multiplier) in section
    black = torch.zeros(1, requires_grad=True)
    nfc_loss(black, torch.tensor([0.3]), base=None, weight=1.0, eps_low=0).backward()
    assert black.grad.item() == pytest.approx(float("-3e11"))
    assert "-3e11" in section
    assert f"[{NFCLoss().eps_low}, {1 - NFCLoss().eps}]" in section
