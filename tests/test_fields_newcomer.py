"""A method written outside the package: a solid ball of one colour, registered, trained and drawn by the commands."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from nfc_splat.errors import UserError
from nfc_splat.fields import METHODS, Method, find_method
from nfc_splat.fields.marched import MarchedRecipe
from nfc_splat.render import main as render
from nfc_splat.rendering.march import MarchedModel, alpha_from_density, composite
from nfc_splat.rendering.samplers import stratified
from nfc_splat.train import main as train
from nfc_splat.training.load import load_run

TRUE_RADIUS, TRUE_COLOR = 0.8, (0.9, 0.4, 0.2)


@dataclass(frozen=True)
class Config:
    """A ball."""

    steps: int = 150
    """Training steps."""

    def scaled_to(self, steps):
        return replace(self, steps=steps)


def preset(name, **chosen):
    return Config(**chosen)


class Model(MarchedModel):
    def __init__(self, radius, color):
        super().__init__()
        self.radius, self.logits = torch.nn.Parameter(radius.clone()), torch.nn.Parameter(color.clone())

    @classmethod
    def initialise(cls, config, geometry):
        return cls(torch.tensor(0.4), torch.zeros(3))

    @classmethod
    def from_tensors(cls, config, tensors):
        return cls(tensors["radius"], tensors["logits"])

    def march(self, rays, background):
        return composite(self, stratified(rays, 2.0, 6.0, 64, jitter=self.training), background)

    def alpha(self, samples):
        outside = samples.positions.norm(dim=-1) - self.radius
        return alpha_from_density(100 * torch.sigmoid(-60 * outside), samples.widths), None

    def color(self, samples, features):
        return self.logits.sigmoid().expand(len(samples), 3)


class Recipe(MarchedRecipe):
    rays = 256

    def optimizers(self, model):
        return {"ball": torch.optim.Adam(model.parameters(), lr=0.02)}


def export(model, folder):
    return []


def write_ball(folder, size=24):
    """Photographs of the true ball from six sides, in Blender's format: analytic, so nothing here draws them."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    focal = 0.5 * size / math.tan(0.35)
    toward = np.stack([(columns - size / 2) / focal, (rows - size / 2) / focal, np.ones_like(rows)], -1)
    along = 4 * toward[..., 2] / np.linalg.norm(toward, axis=-1)
    hit = 16 - along**2 < TRUE_RADIUS**2
    image = np.where(hit[..., None], TRUE_COLOR, 1.0)
    pose = np.eye(4)
    frames = {"train": [], "test": []}
    for index in range(6):
        angle = index * math.pi / 3
        backward = np.array([math.cos(angle), math.sin(angle), 0.0])
        pose[:3, :3] = np.stack([np.cross([0, 0, 1], backward), [0, 0, 1], backward], 1)
        pose[:3, 3] = 4 * backward
        split = "test" if index == 5 else "train"
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).round().astype(np.uint8)).save(folder / split / f"{index}.png")
        frames[split].append({"file_path": f"{split}/{index}", "transform_matrix": pose.tolist()})
    for split, listed in frames.items():
        text = json.dumps({"camera_angle_x": 0.7, "frames": listed})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder


def test_a_made_up_field_trains_and_renders_through_the_commands(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "ball", Method("ball", "a solid ball", __name__))
    scene, out = write_ball(tmp_path / "ball"), tmp_path / "run"
    arguments = [str(scene), "--method", "ball", "--out", str(out), "--quiet", "--threads", "1"]
    assert train([*arguments, "--loss", "classification"]) == 0
    model = load_run(out).model
    assert abs(model.radius.item() - TRUE_RADIUS) < 0.1  # the fog reaches beyond it
    assert torch.allclose(model.logits.sigmoid(), torch.tensor(TRUE_COLOR), atol=0.03)
    assert json.loads((out / "eval" / "summary.json").read_text())["psnr"] > 28
    assert render([str(out), "--outputs", "color", "depth", "normal"]) == 0
    drawn = {
        name: np.asarray(Image.open(out / "rendered" / "test" / name / "00000.png")) for name in ("depth", "normal")
    }
    middle, size = (12, 12), 24
    assert abs(drawn["depth"][middle] / 1000 - (4 - TRUE_RADIUS)) < 0.1
    toward_camera = np.array([math.cos(5 * math.pi / 3), math.sin(5 * math.pi / 3), 0])
    assert np.abs(drawn["normal"][middle] / 127.5 - 1 - toward_camera).max() < 0.1
    assert drawn["depth"].shape == (size, size)


def test_an_installed_package_brings_its_method(tmp_path, monkeypatch):
    """As pip leaves it: metadata beside the module."""
    metadata = tmp_path / "their_balls-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-balls\nVersion: 1.0\n")
    points = "[nfc_splat.methods]\nballs = their_balls:METHOD\nnumber = their_balls:NUMBER\n"
    (metadata / "entry_points.txt").write_text(points)
    text = "from nfc_splat.fields import Method\nMETHOD = Method('balls', 'balls', 'their_balls')\nNUMBER = 5\n"
    (tmp_path / "their_balls.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_method("balls").load().NUMBER == 5
    with pytest.raises(UserError, match=r"expected one of 3dgs.* balls, number"):
        find_method("ball")
    with pytest.raises(UserError, match=r"their_balls:NUMBER is 5, expected a nfc_splat\.fields\.Method"):
        find_method("number")
