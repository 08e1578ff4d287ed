"""A model alone in a file: the command, the same pictures and metrics from it as from its run, and what is refused."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from moving_toys import moving_config, write_moving_scene
from safetensors import safe_open
from safetensors.torch import save_file
from test_fields_dnerf_training import training

from nfc_splat import render
from nfc_splat.chosen_run import load_named
from nfc_splat.data import DataConfig
from nfc_splat.errors import UserError
from nfc_splat.eval import speed
from nfc_splat.eval.__main__ import main as evaluate
from nfc_splat.export.__main__ import main as export
from nfc_splat.fields import find_method
from nfc_splat.train import train
from nfc_splat.training.config import default_config, resolve
from nfc_splat.training.model_file import METADATA


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene, and what runs on it left: Gaussians that move, in the fine stage, and a hash grid that is deformed."""
    root = tmp_path_factory.mktemp("models")
    scene = write_moving_scene(root / "disc")
    config = default_config(scene, method="4dgs", preset="quick", steps=2, device="cpu")
    model = moving_config(steps=8, coarse_steps=4, refine_stop=4)
    data = DataConfig(background="black", allow_missing=True)
    config = dataclasses.replace(config, out=root / "4dgs", threads=1, quiet=True, model=model, data=data)
    assert train(resolve(config)) == 0
    assert train(training(scene, root / "dnerf", steps=4)) == 0
    for name in ("4dgs", "dnerf"):
        assert export(["model", str(root / name)]) == 0
        (root / name / "exported/model.safetensors").rename(root / f"{name}-model.safetensors")
    return root


def opened(path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[METADATA])


@pytest.mark.parametrize("name", ["4dgs", "dnerf"])
def test_the_model_draws_the_same_from_the_file_and_from_the_run(folder, name):
    run = load_named(folder / name, "cpu")
    file = load_named(folder / f"{name}-model.safetensors", "cpu", folder / "disc")
    assert (file.config.method, file.step, file.config.model) == (name, run.step, run.config.model)
    assert torch.equal(file.scene.background, run.scene.background)
    for index in range(2):
        camera = run.scene.splits["test"].cameras[index]
        with torch.no_grad():
            drawn, again = (one.model.render(camera, background=one.scene.background) for one in (run, file))
        assert drawn.color.std() > 0.01
        for kind in ("color", "alpha", "depth"):
            assert torch.equal(getattr(drawn, kind), getattr(again, kind))


def test_the_file_holds_the_model_alone_and_no_path(folder):
    tensors, record = opened(folder / "4dgs-model.safetensors")
    model = load_named(folder / "4dgs", "cpu").model
    assert set(tensors) == set(model.state_dict())
    checkpoint = folder / "4dgs/checkpoints/step_00000008.safetensors"
    path = folder / "4dgs-model.safetensors"
    assert path.stat().st_size < 0.6 * checkpoint.stat().st_size
    assert path.stat().st_mode == (folder / "4dgs/config.json").stat().st_mode
    assert record["config"]["scene"] == "disc"
    assert str(folder) not in json.dumps(record)
    # What the reader's machine allows is not the file's to decide.
    assert record["config"]["data"]["allow_missing"] is False
    assert record["config"]["data"]["background"] == "black"


def test_a_model_without_primitives_is_timed_too(folder, tmp_path, capsys):
    record = tmp_path / "drawing.json"
    assert (
        speed.main(["--render", str(folder / "dnerf"), "--steps", "2", "--threads", "1", "--record", str(record)]) == 0
    )
    head = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"disc, dnerf: step 4, 2 test views of 24x24 drawn 1 times each, cpu, 1 threads", head)
    assert json.loads(record.read_text())["primitives"] is None


def test_the_commands_take_the_file_in_place_of_the_run(folder, tmp_path, capsys):
    file, scene = str(folder / "4dgs-model.safetensors"), ["--scene", str(folder / "disc")]
    assert evaluate(["images", file, *scene]) == 0
    here, there = (json.loads((folder / name / "eval/summary.json").read_text()) for name in ("4dgs", "4dgs-model"))
    assert (there["psnr"], there["ssim"]) == (here["psnr"], here["ssim"])
    words = ["--path", "still", "--frames", "2", "--outputs", "color"]
    for source, out in ((file, tmp_path / "a"), (str(folder / "4dgs"), tmp_path / "b")):
        assert render.main([source, *scene, *words, "--out", str(out)]) == 0
    for index in range(2):
        pictures = [(tmp_path / run / f"color/{index:05d}.png").read_bytes() for run in "ab"]
        assert pictures[0] == pictures[1]
    assert export(["splats", file, *scene, "--frames", "2", "--out", str(tmp_path / "s.ply")]) == 0
    assert (tmp_path / "s-frames/00001.ply").is_file()
    capsys.readouterr()
    assert speed.main(["--render", file, *scene, "--steps", "2", "--threads", "1"]) == 0
    assert capsys.readouterr().out.startswith("disc, 4dgs: step 8, ")


def changed(folder, path, name="4dgs", *, tensors=None, without=(), **facts):
    """A copy of a file with other tensors and with other values in its record, by names with dots."""
    found, record = opened(folder / f"{name}-model.safetensors")
    found = {key: value for key, value in found.items() if key not in without} | (tensors or {})
    for key, value in facts.items():
        part = record
        *outer, last = key.split("__")
        for word in outer:
            part = part[word]
        part[last] = value
    save_file(found, path, metadata={METADATA: json.dumps(record)})
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config__method": "5dgs"}, "--method 5dgs: expected one of 3dgs"),
        ({"config__method": "ngp"}, "config: model: unknown key"),
        ({"config__model__deformation_width": "8"}, "config: model: deformation_width: '8', expected int"),
        ({"config__model__plane_levels": []}, "--plane-levels"),
        ({"schema": 99}, "is not of schema 1; was it written by a newer version?"),
        ({"step": "8"}, "is not of schema 1"),
        ({"without": ["means"]}, "not a model of 4dgs: the tensor means is missing"),
        ({"without": ["deformation.trunk.bias"]}, "the tensor trunk.bias is missing"),
        ({"without": ["deformation.planes.temporal.1"]}, "the tensor temporal.1 is missing"),
        ({"tensors": {"extra": torch.zeros(2)}}, "the tensor extra is unknown"),
        ({"tensors": {"means": torch.zeros(5, 3)}}, "not a model of 4dgs: "),
        ({"tensors": {"opacities": torch.zeros(7, 1)}}, "not a model of 4dgs: "),
        ({"tensors": {"deformation.planes.spatial.0": torch.zeros(3, 2, 9, 5)}}, "spatial must be [3, R, R, 5]"),
        ({"tensors": {"deformation.planes.low": torch.zeros(3)}}, "low and high must be [4]"),
        ({"tensors": {"deformation.trunk.weight": torch.zeros(8, 7)}}, "size mismatch"),
        ({"tensors": {"means": torch.full((5, 3), torch.nan)}}, "the tensor means holds values that are not finite"),
        ({"tensors": {"deforming": torch.ones(2)}}, "not a model of 4dgs: "),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_file_that_was_tampered_with_is_refused_in_a_line(folder, tmp_path, changes, said):
    path = changed(folder, tmp_path / "bad.safetensors", **changes)
    with pytest.raises(UserError) as refused:
        load_named(path, "cpu", folder / "disc")
    assert str(refused.value).startswith(f"{path}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_hash_grid_that_is_too_small_is_refused(folder, tmp_path):
    path = changed(folder, tmp_path / "bad.safetensors", "dnerf", tensors={"canonical.table": torch.zeros(8, 2)})
    with pytest.raises(UserError, match="not a model of dnerf: "):
        load_named(path, "cpu", folder / "disc")


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("dnerf", "deformation_width", 200_000), ("dnerf", "width", 2**40), ("dnerf", "grid", 1000)],
)
def test_a_small_file_cannot_ask_for_much_memory(folder, tmp_path, name, setting, value):
    path = changed(folder, tmp_path / "bad.safetensors", name, **{f"config__model__{setting}": value})
    with pytest.raises(UserError, match="the configuration asks for a model much larger") as said:
        load_named(path, "cpu", folder / "disc")
    assert str(said.value).startswith(f"{path}: ")
    run = shutil.copytree(folder / name, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["train"]["model"][setting] = value
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="the configuration asks for a model much larger") as said:
        load_named(run, "cpu")
    assert str(said.value).startswith(f"{run / 'checkpoints/step_00000004.safetensors'}: ")


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("nerf", "depth"),
        ("nerf", "coarse_samples"),
        ("nerf", "fine_samples"),
        ("neus", "color_depth"),
        ("neus", "background_samples"),
        ("neus", "march_steps"),
        ("ngp", "color_layers"),
        ("dnerf", "deformation_depth"),
    ],
)
def test_layers_and_samples_of_a_ray_are_bounded(method, setting):
    with pytest.raises(UserError, match=f"--{setting.replace('_', '-')} 1000000000: expected"):
        find_method(method).load().preset("paper", **{setting: 10**9})


def test_other_refusals(folder, tmp_path):
    path = folder / "4dgs-model.safetensors"
    with pytest.raises(UserError, match="is a file of a model; name the scene whose views to draw with --scene"):
        load_named(path, "cpu")
    with pytest.raises(UserError, match=r"--checkpoint 8: .*4dgs-model.safetensors is a file, not a run; leave it out"):
        load_named(path, "cpu", folder / "disc", 8)
    still = write_moving_scene(tmp_path / "still", times="none")
    with pytest.raises(UserError, match=r"4dgs moves, but the frames of .*still have no times"):
        load_named(path, "cpu", still)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(UserError, match=r"its metadata has no nfc_splat.model; expected a file of"):
        load_named(foreign, "cpu", folder / "disc")
    foreign.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a safetensors file"):
        load_named(foreign, "cpu", folder / "disc")
    with pytest.raises(UserError, match=r"nowhere.safetensors: not a safetensors file"):
        load_named(tmp_path / "nowhere.safetensors", "cpu", folder / "disc")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "{there}"], "exists: pass --overwrite to replace it"),
        (["--out", "{tmp}/a.ply"], "expected a name that ends with .safetensors"),
        (["--out", "{tmp}/step_00000001.safetensors"], "is what checkpoints are called; choose another name"),
        (["--checkpoint", "3"], "has no checkpoint of that step, it has 8"),
    ],
)
def test_the_command_refuses(folder, tmp_path, words, said):
    words = [word.format(there=folder / "dnerf-model.safetensors", tmp=tmp_path) for word in words]
    with pytest.raises(UserError, match=said):
        export(["model", str(folder / "4dgs"), *words])
    assert not list(tmp_path.iterdir())
