"""`python -m nfc_splat.export mesh` on runs of a ball: both sources, frames, and one line for what is wrong."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import test_fields_newcomer as newcomer
import torch
from export_scenes import area_and_volume, is_closed

from nfc_splat.errors import UserError
from nfc_splat.export.__main__ import main as command
from nfc_splat.export.mesh import COLORS_AT_ONCE, _asked_colors
from nfc_splat.export.mesh_file import Mesh
from nfc_splat.fields import METHODS, Method
from nfc_splat.open3d_loader import load_open3d
from nfc_splat.rendering.level_set import LevelSet
from nfc_splat.train import main as train
from nfc_splat.training.load import load_run

TRUTH = np.array([[0, 2.0, 0, 5], [0, 0, 2.0, 6], [2.0, 0, 0, 7], [0, 0, 0, 1]])


class Model(newcomer.Model):
    """The newcomer's ball, which says where its surface is."""

    def level_set(self):
        box = torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])
        return LevelSet(lambda points: self.radius - points.norm(dim=1), 0.0, box)


Config, preset, Recipe, export = newcomer.Config, newcomer.preset, newcomer.Recipe, newcomer.export


@pytest.fixture(autouse=True)
def _methods(monkeypatch):
    monkeypatch.setitem(METHODS, "ball", Method("ball", "a solid ball", newcomer.__name__))
    monkeypatch.setitem(METHODS, "surface", Method("surface", "a ball with a level set", __name__))


def trained(folder, method, scene):
    arguments = [str(scene), "--method", method, "--out", str(folder), "--quiet", "--threads", "1", "--steps", "60"]
    assert train(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of `ball` and `surface`, and one of a scene that states `worldtogt`."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "ball", Method("ball", "a solid ball", newcomer.__name__))
        patch.setitem(METHODS, "surface", Method("surface", "a ball with a level set", __name__))
        scene = newcomer.write_ball(folder / "scene", size=48)
        moved = as_sdfstudio(scene, folder / "moved")
        return {
            "ball": trained(folder / "ball", "ball", scene),
            "surface": trained(folder / "surface", "surface", scene),
            "moved": trained(folder / "moved-run", "surface", moved),
        }


def as_sdfstudio(scene, folder):
    """The same photographs and cameras in SDFStudio's layout, with a `worldtogt` that turns, doubles and shifts."""
    folder.mkdir()
    described = json.loads((scene / "transforms_train.json").read_text())
    focal = 24 / np.tan(described["camera_angle_x"] / 2)
    intrinsics = [[focal, 0, 24, 0], [0, focal, 24, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    frames = []
    for frame in described["frames"]:
        pose = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        name = frame["file_path"].replace("/", "_") + ".png"
        (folder / name).write_bytes((scene / f"{frame['file_path']}.png").read_bytes())
        frames.append({"rgb_path": name, "camtoworld": pose.tolist(), "intrinsics": intrinsics})
    box = {"aabb": [[-1, -1, -1], [1, 1, 1]], "near": 2.0, "far": 6.0, "radius": 1.0, "collider_type": "near_far"}
    facts = {"camera_model": "OPENCV", "height": 48, "width": 48, "has_mono_prior": False, "has_sensor_depth": False}
    facts |= {"worldtogt": TRUTH.tolist(), "scene_box": box, "frames": frames}
    (folder / "meta_data.json").write_text(json.dumps(facts))
    return folder


def read_surface(path):
    mesh = load_open3d().io.read_triangle_mesh(str(path))
    return Mesh(np.asarray(mesh.vertices), np.asarray(mesh.triangles, np.int64), np.asarray(mesh.vertex_colors))


def radius_of(run):
    return float(load_run(run).model.radius.detach())


def test_a_level_set(runs, tmp_path, capsys):
    """The default of a model with a signed distance; closed, of the radius that was learned."""
    path = tmp_path / "new" / "ball.ply"
    assert command(["mesh", str(runs["surface"]), "--out", str(path), "--resolution", "64"]) == 0
    said = capsys.readouterr().out
    surface, radius = read_surface(path), radius_of(runs["surface"])
    area, volume = area_and_volume(surface.vertices, surface.triangles)
    assert area == pytest.approx(4 * np.pi * radius**2, rel=0.01)
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
    assert is_closed(surface.triangles)
    assert "surface from level-set" in said
    assert "voxels of 0.04688, 64 x 64 x 64" in said
    assert f"{len(surface.triangles):,} triangles, 1 pieces" in said
    assert f"wrote {path}" in said


def test_colours_are_asked_for_in_blocks_that_fit_in_memory():
    """NeuS's published networks take about 1 GB for 2^16 points: a mesh of millions is coloured bit by bit."""

    asked = []

    class Painted(torch.nn.Linear):
        def surface_colors(self, points, normals):
            assert normals.shape == points.shape
            asked.append(len(points))
            return points.abs()

    vertices = np.random.default_rng(0).uniform(-1, 1, (2 * COLORS_AT_ONCE + 5, 3))
    mesh = Mesh(vertices, np.arange(len(vertices) // 3 * 3).reshape(-1, 3))
    colors = _asked_colors(SimpleNamespace(model=Painted(1, 1)), mesh)
    assert asked == [2**15, 2**15, 5]
    np.testing.assert_allclose(colors / 255, np.abs(vertices), atol=0.002 + 1e-6)


@pytest.mark.parametrize("name", ["ball", "surface"])
def test_depth_is_for_every_method(runs, tmp_path, name):
    path = tmp_path / "ball.obj"
    assert command(["mesh", str(runs[name]), "--out", str(path), "--from", "depth"]) == 0
    surface = read_surface(path)
    center, radii = surface.vertices.mean(0), np.linalg.norm(surface.vertices, axis=1)
    assert np.abs(center).max() < 0.1
    assert np.median(radii) == pytest.approx(radius_of(runs[name]), abs=0.08)  # the fog reaches beyond the radius
    assert area_and_volume(surface.vertices, surface.triangles)[1] > 0


@pytest.mark.parametrize("source", ["depth", "level-set"])
def test_pixels_that_are_not_finite_are_counted(runs, tmp_path, capsys, monkeypatch, source):
    plain = newcomer.Model.color

    def color(self, samples, features):
        high = samples.positions[:, 2:] > 0.5
        return plain(self, samples, features).masked_fill(high, torch.nan)

    words = ["mesh", str(runs["surface"]), "--from", source, "--resolution", "32", "--min-triangles", "1"]
    assert command([*words, "--out", str(tmp_path / "a.ply")]) == 0
    assert "not finite" not in capsys.readouterr().out
    monkeypatch.setattr(newcomer.Model, "color", color)
    assert command([*words, "--out", str(tmp_path / "b.ply")]) == 0
    assert re.search(r"\n  left out [1-9][0-9,]* pixels with values that are not finite\n", capsys.readouterr().out)


def test_all_views_voxel_size_and_bounds(runs, tmp_path, capsys):
    path = tmp_path / "half.ply"
    flags = ["--views", "all", "--voxel-size", "0.05", "--truncation", "0.2", "--max-depth", "5"]
    box = ["--bounds", "-1", "-1", "-1", "1", "1", "0"]
    assert command(["mesh", str(runs["ball"]), "--out", str(path), *flags, *box]) == 0
    said = capsys.readouterr().out
    assert "6 views, depth up to 5 (median" in said
    assert "truncation 0.2" in said
    assert "voxels of 0.05, 40 x 40 x 20" in said
    vertices = read_surface(path).vertices
    assert vertices[:, 2].max() < 1e-6
    assert vertices[:, 2].min() < -0.5


def test_frames(runs, tmp_path, capsys):
    """`worldtogt` is applied where the scene has it: turned, twice as large, shifted; on request it is not."""
    paths = [tmp_path / f"{frame}.ply" for frame in ("auto", "truth", "scene")]
    for path in paths:
        words = ["mesh", str(runs["moved"]), "--out", str(path), "--resolution", "48", "--frame", path.stem]
        assert command(words) == 0
    said = capsys.readouterr().out
    assert said.count("in the truth's frame (eval mesh: --to-world identity)") == 2
    assert said.count("in the scene's frame") == 1
    moved, truth, scene = (read_surface(path) for path in paths)
    radius = radius_of(runs["moved"])
    np.testing.assert_array_equal(moved.vertices, truth.vertices)
    np.testing.assert_allclose(np.linalg.norm(scene.vertices, axis=1), radius, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(moved.vertices - [5, 6, 7], axis=1), 2 * radius, atol=4e-3)
    np.testing.assert_allclose(moved.vertices, scene.vertices @ TRUTH[:3, :3].T + TRUTH[:3, 3], atol=1e-9)
    assert area_and_volume(moved.vertices, moved.triangles)[1] > 0


def test_an_existing_file_is_kept_unless_told(runs, tmp_path):
    path = tmp_path / "mesh.ply"
    path.write_text("mine")
    words = ["mesh", str(runs["surface"]), "--out", str(path), "--resolution", "32"]
    with pytest.raises(UserError, match=r"mesh\.ply exists: pass --overwrite"):
        command(words)
    assert path.read_text() == "mine"
    assert command([*words, "--overwrite"]) == 0
    assert path.read_bytes().startswith(b"ply\nformat binary")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mesh.ply"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: expected a run folder"),
        (["SCENE"], "expected a run folder|not a run"),
        (["BALL", "--from", "level-set"], "--from level-set: ball has no field to take it of; use --from depth"),
        (["BALL", "--from", "silhouettes"], "neither the scene nor ball states a box; give --bounds"),
        (["SURFACE", "--from", "silhouettes"], "has neither transparency nor a mask of the object; use --from depth"),
        (["SURFACE", "--from", "silhouettes", "--truncation", "1"], "--truncation: means nothing with --from silh"),
        (["BALL", "--level", "2"], "--level: means nothing with --from depth"),
        (["SURFACE", "--max-depth", "2"], "--max-depth: means nothing with --from level-set"),
        (["SURFACE", "--resolution", "2"], "--resolution 2: expected 8 to 4096"),
        (["SURFACE", "--resolution", "64", "--voxel-size", "0.1"], "give one of them"),
        (["SURFACE", "--voxel-size", "-1"], "--voxel-size -1: expected a positive length"),
        (
            ["SURFACE", "--voxel-size", "1e-6"],
            r"voxels of 1e-06 are 3,000,000 along the longest side",
        ),
        (["SURFACE", "--level", "nan"], "--level nan: expected a finite number"),
        (
            ["SURFACE", "--level", "9"],
            r"--level 9: nothing has this value, .* and 0\.\d+ in the box; try",
        ),
        (["SURFACE", "--bounds", "0", "0", "0", "1", "0", "1"], r"--bounds \(0, 0, 0, 1, 0, 1\): expected X0 < X1"),
        (["BALL", "--bounds", "7", "7", "7", "8", "8", "8"], r"no surface that the 5 views show lies in the box"),
        (["BALL", "--max-depth", "1"], r"--max-depth 1: everything is farther, half of it than 3"),
        (["BALL", "--truncation", "1e-5"], r"--truncation 1e-05: smaller than a voxel"),
        (["BALL", "--frame", "truth"], "--frame truth: scene states no worldtogt"),
        (["SURFACE", "--min-triangles", "0"], "--min-triangles 0: expected at least 1"),
        (["SURFACE", "--resolution", "16", "--min-triangles", "99999"], "none of 1 pieces has as many"),
        (["SURFACE", "--out", "mesh.stl"], r"--out mesh.stl: expected a name that ends with \.ply, \.obj, \.glb"),
        (["SURFACE", "--out", "SCENE/transforms_train.json/mesh.ply"], "transforms_train.json is a file"),
        (["SURFACE", "--out", "FOLDER.ply"], "is a folder, expected a file"),
        (["SURFACE", "--out", "BROKEN/mesh.ply"], "BROKEN is a broken link"),
        (["SURFACE", "--checkpoint", "3"], "--checkpoint 3: .* has no checkpoint of that step"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(runs, tmp_path, arguments, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER.ply").mkdir()
    (tmp_path / "BROKEN").symlink_to("nowhere")
    words = {"BALL": runs["ball"], "SURFACE": runs["surface"], "SCENE": runs["ball"].parent / "scene"}
    for word, path in words.items():
        arguments = [argument.replace(word, str(path)) for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "mesh.ply")]
    with pytest.raises(UserError, match=said) as failed:
        command(["mesh", *arguments])
    assert "\n" not in str(failed.value)
    assert not (tmp_path / "mesh.ply").exists()


def test_help_names_the_subcommands(capsys):
    with pytest.raises(SystemExit):
        command(["--help"])
    assert "mesh: the surface, as triangles" in " ".join(capsys.readouterr().out.split())
