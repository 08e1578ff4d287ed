"""The level sets and surface colours of density fields: the ball that they were trained on."""

import numpy as np
import pytest
import test_fields_newcomer as newcomer
import torch

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.export.__main__ import main as command
from nfc_splat.rendering.paths import look_at
from nfc_splat.train import main as train
from nfc_splat.training.load import load_run

SMALL = {
    "dvgo": ("--steps", "150", "--bounded", "yes", "--coarse-steps", "0", "--voxels", "30000"),
    "ngp": ("--steps", "150", "--space", "box", "--log2-table-size", "12", "--max-rays", "1024"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", SMALL)
def test_a_density_field_has_a_level_set(method, tmp_path, capsys):
    scene, run = newcomer.write_ball(tmp_path / "scene", size=48), tmp_path / "run"
    arguments = [str(scene), "--method", method, "--out", str(run), "--quiet", "--seed", "0", *SMALL[method]]
    assert train(arguments) == 0
    model = load_run(run).model
    surface = model.level_set()
    with torch.no_grad():
        values = surface.values(torch.rand(5000, 3) * (surface.bounds[1] - surface.bounds[0]) + surface.bounds[0])
        assert ((values >= 0) & (values <= 1)).all()
        # What a camera sees first is where the level set begins along the middle ray, to a few voxels.
        pose = look_at(torch.tensor([[4.0, 0, 0]]), torch.zeros(1, 3), torch.tensor([0, 0, 1.0]))
        camera = Cameras.pinhole(torch.linalg.inv(pose), torch.tensor([[50.0, 0, 1.5], [0, 50, 1.5], [0, 0, 1]]), 3, 3)
        drawn = model.render(camera, background=torch.ones(3))
        along = torch.linspace(4, -1, 2000)
        axis = torch.stack([along, 0 * along, 0 * along], 1)
        entry = float(along[(surface.values(axis) > surface.level).nonzero()[0, 0]])
        assert entry == pytest.approx(4 - float(drawn.depth[0, 1, 1]), abs=0.25)
        points, normals = torch.tensor([[entry, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
        assert (model.surface_colors(points, normals)[0] - drawn.color[0, 1, 1]).abs().max() < 0.15
    capsys.readouterr()
    path = tmp_path / "mesh.ply"
    assert command(["mesh", str(run), "--from", "level-set", "--resolution", "64", "--out", str(path)]) == 0
    assert "colours: the field's, seen head-on" in capsys.readouterr().out
    with pytest.raises(UserError, match="--views: surface and colours are the field's own with --from level-set"):
        command(["mesh", str(run), "--from", "level-set", "--views", "all", "--out", str(tmp_path / "other.ply")])
    from nfc_splat.open3d_loader import load_open3d

    mesh = load_open3d().io.read_triangle_mesh(str(path))
    colors = np.asarray(mesh.vertex_colors)
    assert np.abs(np.median(colors, axis=0) - newcomer.TRUE_COLOR).max() < 0.2
