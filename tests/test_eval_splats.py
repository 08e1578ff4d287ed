"""Gaussians of another tool, measured on a scene's views and drawn along a path, from the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from splat_toys import BACKGROUND, SIZE, orbit, random_tensors, toy_config

from nfc_splat import render
from nfc_splat.chosen_run import splat_model
from nfc_splat.errors import UserError
from nfc_splat.eval import splats as door
from nfc_splat.eval.__main__ import main as evaluate
from nfc_splat.eval.pictures import to_bytes, write_png
from nfc_splat.fields.gaussians import Model
from nfc_splat.fields.splat_file import Splats, write_splats
from nfc_splat.rendering.paths import camera_to_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene: eight pictures of a dozen Gaussians over white; and these as another tool would leave them."""
    torch.manual_seed(4)
    root = tmp_path_factory.mktemp("eval")
    cameras, tensors = orbit(8), random_tensors(12, 1)
    model = Model(toy_config(), tensors, 1).eval()
    poses = (camera_to_world(cameras) * torch.tensor([1.0, -1, -1, 1])).tolist()
    focal = float(cameras.Ks[0, 0, 0])
    frames = []
    for index, pose in enumerate(poses):
        with torch.no_grad():
            drawn = model.render(cameras[index], background=BACKGROUND).color[0]
        write_png(root / "scene" / "images" / f"{index}.png", to_bytes(drawn))
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": pose})
    content = {"fl_x": focal, "fl_y": focal, "w": SIZE, "h": SIZE, "frames": frames}
    (root / "scene" / "transforms.json").write_text(json.dumps(content))
    write_splats(root / "other.ply", Splats(**tensors))
    path = [{"camera_to_world": pose, "fov": 40.0, "render_time": i / 2} for i, pose in enumerate(poses[:3])]
    path = {"render_width": 30, "render_height": 20, "fps": 5, "camera_path": path}
    (root / "path.json").write_text(json.dumps(path))
    return root


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")


def test_the_truth_measures_as_the_truth(folder, tmp_path, capsys):
    arguments = ["splats", str(folder / "other.ply"), str(folder / "scene"), "--background", "white"]
    assert evaluate([*arguments, "--test-every", "4", "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out/eval/summary.json").read_text())
    assert summary["psnr"] > 50  # the pictures have 8 bits
    assert (summary["n_views"], summary["primitives"], summary["left_out"]) == (2, 12, 0)
    assert summary["protocol"]["test_every"] == 4
    assert summary["protocol"]["views"] == {"train": 6, "test": 2}
    printed = capsys.readouterr().out
    assert "scene, other.ply: 2 test views, protocol default" in printed
    names = sorted(path.name for path in (tmp_path / "out/renders").iterdir())
    assert names == ["0000_images_0.png", "0001_images_4.png"]
    for name in names:
        drawn, truth = (
            np.asarray(Image.open(tmp_path / "out" / kind / name)).astype(int) for kind in ("renders", "gt")
        )
        assert np.abs(drawn - truth).max() <= 1


def test_gaussians_moved_or_behind_the_near_plane_measure_worse(folder, tmp_path):
    splats, _ = door_splats(folder)
    write_splats(tmp_path / "moved.ply", Splats(**(splats | {"means": splats["means"] + 0.3})))
    scores = {}
    for name, file, words in (
        ("moved", tmp_path / "moved.ply", []),
        ("cut", folder / "other.ply", ["--near-plane", "100"]),
    ):
        out = tmp_path / name
        words = [str(file), str(folder / "scene"), "--background", "white", "--out", str(out), *words]
        assert door.main(words) == 0
        scores[name] = json.loads((out / "eval/summary.json").read_text())["psnr"]
    assert scores["moved"] < 25
    truth = np.asarray(Image.open(folder / "scene/images/0.png")) / 255
    assert scores["cut"] == pytest.approx(-10 * np.log10(((1 - truth) ** 2).mean()), abs=1e-3)


def door_splats(folder):
    from nfc_splat.fields.splat_file import read_splats

    splats, dropped = read_splats(folder / "other.ply")
    return {name: getattr(splats, name) for name in ("means", "quats", "scales", "opacities", "sh0", "shN")}, dropped


def test_a_file_that_says_antialiased_is_drawn_so(folder, tmp_path):
    tensors, _ = door_splats(folder)
    write_splats(tmp_path / "mip.ply", Splats(**tensors, antialiased=True))
    model, dropped = splat_model(tmp_path / "mip.ply", toy_config(), "cpu")
    assert model.config.antialiased
    assert (model.config.sh_degree, int(model.active_sh_degree), dropped) == (1, 1, 0)


def test_a_file_is_drawn_along_a_path_of_nerfstudio(folder, tmp_path, capsys):
    words = [str(folder / "other.ply"), "--scene", str(folder / "scene"), "--path", str(folder / "path.json")]
    assert render.main([*words, "--outputs", "color", "--background", "white", "--out", str(tmp_path / "out")]) == 0
    assert "taken to be in the frame of the scene" in capsys.readouterr().out
    frames = json.loads((tmp_path / "out/frames.json").read_text())
    assert frames["fps"] == 5
    assert [(frame["width"], frame["height"], "time" in frame) for frame in frames["frames"]] == [(30, 20, False)] * 3


def test_a_path_shows_what_the_photographs_show(folder, tmp_path):
    """As high as these, with their field of view: wider on both sides, and the same between."""
    words = [str(folder / "other.ply"), "--scene", str(folder / "scene"), "--path", str(folder / "path.json")]
    words += ["--outputs", "color", "--background", "white", "--height", str(SIZE)]
    assert render.main([*words, "--out", str(tmp_path / "out")]) == 0
    for index in range(3):
        drawn = np.asarray(Image.open(tmp_path / f"out/color/{index:05d}.png")).astype(int)
        truth = np.asarray(Image.open(folder / f"scene/images/{index}.png")).astype(int)
        assert drawn.shape == (SIZE, SIZE * 3 // 2, 3)
        assert np.abs(drawn[:, SIZE // 4 : -SIZE // 4] - truth).max() <= 1


def test_where_pictures_of_a_file_go(folder):
    words = [str(folder / "other.ply"), "--scene", str(folder / "scene"), "--path", "test", "--outputs", "color"]
    assert render.main([*words, "--width", "8"]) == 0
    assert (folder / "other/rendered/test/color/00000.png").is_file()


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["{ply}"], "SCENE"),
        (["{ply}", "{scene}", "--split", "val"], "--split val: scene has no such views, it has train (7), test (1)"),
        (["{scene}/images/0.png", "{scene}"], "0.png: not a PLY file"),
        (["{ply}", "{scene}/images"], "no scene that any reader knows"),
        (["{ply}", "{scene}", "--protocl", "default"], "did you mean --protocol?"),
    ],
)
def test_refusals(folder, words, needle):
    with pytest.raises(UserError) as caught:
        door.main([word.format(ply=folder / "other.ply", scene=folder / "scene") for word in words])
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cloud_without_what_gaussians_need_is_refused_in_a_line(folder, tmp_path):
    """The header of the file without two properties; nothing is read of the scene, and nothing is written."""
    content = (folder / "other.ply").read_bytes()
    for name in ("opacity", "rot_3"):
        content = content.replace(f"property float {name}\n".encode(), b"")
    (tmp_path / "poor.ply").write_bytes(content)
    with pytest.raises(UserError) as caught:
        evaluate(["splats", str(tmp_path / "poor.ply"), str(tmp_path / "nowhere")])
    assert str(caught.value).endswith(
        "poor.ply: not a Gaussian splat in INRIA's layout: its vertices lack opacity, rot_3"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["poor.ply"]


def test_a_file_is_no_run(folder):
    with pytest.raises(UserError, match="eval splats measures Gaussians in a file"):
        evaluate(["images", str(folder / "other.ply"), "--scene", str(folder / "scene")])


def test_a_path_that_is_none(folder, capsys):
    with pytest.raises(SystemExit):
        render.main([str(folder / "other.ply"), "--path", "round"])
    assert "expected one of test, train, val, orbit" in capsys.readouterr().err
