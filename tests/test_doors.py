"""The commands as a user runs them: train once on a small scene, then evaluate, render and examine."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_toys import ring_of_cameras, sphere_picture, write_blender_scene
from PIL import Image

from nfc_splat import doctor, render
from nfc_splat.errors import UserError, run_command
from nfc_splat.eval import __main__ as evaluation
from nfc_splat.training.load import load_run

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def command(*arguments, cwd=None):
    """Run `python -m nfc_splat.<arguments>` in another process."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"}
    words = [sys.executable, "-m", f"nfc_splat.{arguments[0]}", *map(str, arguments[1:])]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=560)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of a few steps: (scene folder, run folder)."""
    folder = tmp_path_factory.mktemp("doors")
    scene = write_blender_scene(folder / "ball", train=10, test=3)
    size = ("--steps", "60", "--init-points", "1500", "--max-primitives", "3000")
    result = command("train", "ball", "--out", "run", "--seed", "1", *size, cwd=folder)
    assert result.returncode == 0, result.stderr
    return scene, folder / "run"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).copy()


def summary_of(run):
    return json.loads((run / "eval/summary.json").read_text())


def test_evaluating_again_gives_what_training_wrote(trained):
    _, run = trained
    before, views = summary_of(run), (run / "eval/per_view.json").read_text()
    pictures = {path: path.read_bytes() for path in [*run.glob("renders/*"), *run.glob("gt/*")]}
    assert len(pictures) == 6
    result = command("eval", "images", run)
    assert result.returncode == 0, result.stderr
    after = summary_of(run)
    assert before["psnr"] > 5
    assert {key: after[key] for key in before if not key.endswith("seconds")} == {
        key: before[key] for key in before if not key.endswith("seconds")
    }
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in json.loads(rows)]  # noqa: E731
    assert strip((run / "eval/per_view.json").read_text()) == strip(views)
    assert all(path.read_bytes() == content for path, content in pictures.items())
    assert f"PSNR    {before['psnr']:.2f}" in result.stdout
    assert f"recorded before: PSNR {before['psnr']:.2f} dB, equal" in result.stdout
    assert "\x1b" not in result.stdout


def test_other_protocols_splits_and_steps_go_elsewhere(trained, capsys):
    _, run = trained
    before = (run / "eval/summary.json").read_bytes()
    assert evaluation.main(["images", str(run), "--protocol", "graphdeco", "--split", "train"]) == 0
    assert "10 train views, protocol graphdeco (8 bits, rounded, SSIM zero)" in capsys.readouterr().out
    found = json.loads((run / "eval/graphdeco-train/summary.json").read_text())
    assert (found["n_views"], found["protocol"]["split"], found["protocol"]["name"]) == (10, "train", "graphdeco")
    assert len(list((run / "eval/graphdeco-train/renders").iterdir())) == 10
    assert evaluation.main(["images", str(run), "--checkpoint", "0"]) == 0
    first = json.loads((run / "eval/default-test-step_00000000/summary.json").read_text())
    assert first["step"] == 0
    assert first["psnr"] < summary_of(run)["psnr"]
    assert (run / "eval/summary.json").read_bytes() == before


def test_a_moved_scene_is_found_with_scene(trained, tmp_path, monkeypatch):
    scene, run = trained
    moved = tmp_path / "elsewhere"
    os.rename(scene, moved)
    try:
        with pytest.raises(UserError):
            evaluation.main(["images", str(run)])
        assert evaluation.main(["images", str(run), "--scene", str(moved)]) == 0
    finally:
        os.rename(moved, scene)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["images", "nowhere"], "nowhere: expected a run folder"),
        (["images", "RUN", "--split", "val"], "--split val: ball has no such views, it has train (10), test (3)"),
        (["images", "RUN", "--checkpoint", "7"], "--checkpoint 7: .* has no checkpoint of that step, it has 60, 0"),
    ],
)
def test_what_cannot_be_evaluated_is_said(trained, arguments, said):
    _, run = trained
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        evaluation.main([argument.replace("RUN", str(run)) for argument in arguments])


def test_errors_are_one_line(trained, capsys):
    _, run = trained
    with pytest.raises(SystemExit) as leaving:
        run_command(lambda: render.main([str(run), "--path", "val"]))
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: --path val:")


@pytest.mark.parametrize(
    ("words", "where"),
    [(["run", "--out", ""], "value after --out"), (["--out="], "in --out="), ([""], "at the start")],
)
def test_an_empty_value_is_no_folder(monkeypatch, capsys, words, where):
    monkeypatch.setattr(sys, "argv", ["render.py", *words])
    with pytest.raises(SystemExit) as left:
        run_command(lambda: pytest.fail("it began"))
    assert left.value.code == 2
    assert where in capsys.readouterr().err


def test_rendered_test_views_are_those_of_the_evaluation(trained):
    _, run = trained
    result = command("render", run)
    assert result.returncode == 0, result.stderr
    folder = run / "rendered/test"
    for index, picture in enumerate(sorted((run / "renders").iterdir())):
        np.testing.assert_array_equal(pixels(folder / "color" / f"{index:05d}.png"), pixels(picture))
    record = json.loads((folder / "frames.json").read_text())
    assert [frame["name"] for frame in record["frames"]] == ["test/r_0.png", "test/r_1.png", "test/r_2.png"]
    expected = torch.linalg.inv(ring_of_cameras(3, phase=0.2).viewmats.double())
    poses = torch.tensor([frame["camera_to_world"] for frame in record["frames"]], dtype=torch.float64)
    torch.testing.assert_close(poses, expected, atol=1e-5, rtol=0)


def test_depth_and_alpha_are_those_of_the_sphere(trained):
    """Crude after so few steps, but in the right units: the sphere's nearest point is 3.3 from each camera."""
    _, run = trained
    assert render.main([str(run), "--outputs", "depth", "alpha"]) == 0
    depth = pixels(run / "rendered/test/depth/00000.png")
    alpha = pixels(run / "rendered/test/alpha/00000.png")
    assert depth.dtype == np.uint16
    assert alpha.dtype == np.uint8
    middle = depth[12:20, 12:20].astype(float) / 1000
    assert 2.5 < np.median(middle) < 4.5
    assert (depth[alpha < 120] == 0).all()
    opaque = sphere_picture(ring_of_cameras(3, phase=0.2)[0])[..., 3].numpy() > 0.5
    assert alpha[opaque].mean() > alpha[~opaque].mean() + 100
    preview = pixels(run / "rendered/test/depth_preview/00000.png")
    assert preview.shape == (32, 32, 3)


def test_depth_that_does_not_fit_is_said(trained, capsys):
    _, run = trained
    assert render.main([str(run), "--outputs", "depth", "--depth-scale", "1e6", "--out", str(run / "deep")]) == 0
    assert "exceed 0.065535 units" in capsys.readouterr().err
    assert pixels(run / "deep/depth/00000.png").max() == 65535


@pytest.mark.parametrize("path", ["orbit", "interpolate", "spiral"])
def test_paths_have_the_frames_and_size_asked_for(trained, path):
    _, run = trained
    assert render.main([str(run), "--path", path, "--frames", "5", "--width", "48", "--outputs", "color"]) == 0
    folder = run / "rendered" / path
    files = sorted(file.name for file in (folder / "color").iterdir())
    assert files == [f"{index:05d}.png" for index in range(5)]
    assert pixels(folder / "color/00000.png").shape == (48, 48, 3)
    record = json.loads((folder / "frames.json").read_text())
    assert record["path"] == path
    assert len(record["frames"]) == 5
    assert "name" not in record["frames"][0]
    # Something is seen from everywhere: the background alone would be white.
    assert all(pixels(folder / "color" / file).min() < 200 for file in files)


def test_a_shorter_path_leaves_no_frames_of_a_longer_one(trained):
    _, run = trained
    out = run / "paths"
    for frames in (6, 3):
        words = [str(run), "--path", "orbit", "--frames", str(frames), "--width", "16", "--out", str(out)]
        assert render.main([*words, "--video", "webp", "--fps", "10"]) == 0
    assert len(list((out / "color").iterdir())) == len(list((out / "depth_preview").iterdir())) == 3
    for name in ("color.webp", "depth.webp"):
        with Image.open(out / name) as movie:
            assert movie.n_frames == 3


def test_frames_json_keeps_lenses_and_times(trained):
    _, folder = trained
    run = load_run(folder)
    distortion = torch.arange(18.0).view(3, 6)
    cameras = replace(
        run.scene.splits["test"].cameras, model="opencv", distortion=distortion, times=torch.tensor([0.0, 0.5, 1.0])
    )
    options = render._parser().parse_args([str(folder)])
    record = render._describe(run, cameras, ["a", "b", "c"], torch.ones(3), options)
    assert record["frames"][1]["model"] == "opencv"
    assert record["frames"][1]["distortion"] == [6, 7, 8, 9, 10, 11]
    assert record["frames"][1]["time"] == 0.5
    json.dumps(record, allow_nan=False)


def test_the_background_can_be_chosen(trained):
    _, run = trained
    assert render.main([str(run), "--background", "black", "--outputs", "color", "--out", str(run / "black")]) == 0
    assert pixels(run / "black/color/00000.png")[0, 0].max() < 80
    assert pixels(run / "renders/0000_test_r_0.png")[0, 0].min() > 150


def test_mp4_without_ffmpeg_is_refused_before_anything_is_drawn(trained, monkeypatch):
    _, run = trained
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="--video webp, which needs neither"):
        render.main([str(run), "--path", "orbit", "--video", "--out", str(run / "never")])
    assert not (run / "never").exists()


@pytest.mark.parametrize(
    "words", [["--frames", "0"], ["--fps", "-1"], ["--width", "0"], ["--depth-scale", "nan"], ["--height", "99999"]]
)
def test_numbers_that_make_no_sense_are_refused(trained, words):
    _, run = trained
    with pytest.raises(UserError, match=words[0]):
        render.main([str(run), *words])


@pytest.mark.parametrize("path", [None, "train", "path.json"])
def test_frames_are_refused_where_the_path_has_its_own(path):
    words = [] if path is None else ["--path", path]
    with pytest.raises(UserError, match=f"--frames 7: means nothing with --path {path or 'test'}; leave it out"):
        render.main(["RUN", "--frames", "7", *words])


def test_the_doctor_likes_a_good_scene(trained):
    scene, _ = trained
    result = command("doctor", scene)
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert any(line.split()[:2] == ["ok", "python"] for line in lines)
    assert any(line.startswith("  ok    cpu           chosen: numba") for line in lines)
    assert "  note  nerfstudio    not it: no transforms.json" in lines
    assert "  ok    splits        10 images for train, 3 images for test" in lines
    assert " BAD " not in result.stdout
    assert "\x1b" not in result.stdout


def test_the_doctor_names_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", ())
    scene = write_blender_scene(tmp_path / "ball")
    (scene / "train/r_2.png").write_bytes((scene / "train/r_2.png").read_bytes()[:90])
    assert doctor.main([str(scene)]) == 1
    assert "r_2.png: cannot be decoded" in capsys.readouterr().out
    assert doctor.main([str(tmp_path)]) == 1
    assert doctor.main([str(tmp_path / "nothing")]) == 1
    assert "there is no such folder" in capsys.readouterr().out
    (tmp_path / "photos").mkdir()
    assert doctor.main([str(tmp_path / "photos")]) == 1
    said = capsys.readouterr().out
    assert "no transforms_train.json" in said
    assert "1 wrong (BAD)" in said


def test_the_doctor_needs_no_scene(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", doctor.OPTIONAL[:1])  # each is loaded in a process of its own
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert all(title in said for title in ("Machine", "Installation", "Backends", "Optional"))
    assert "Scene" not in said.replace("Scenes", "")


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError", "SystemExit"])
def test_the_doctor_says_why_an_optional_package_does_not_load(monkeypatch, error):
    monkeypatch.setattr(doctor, "_installed", lambda name: "9.9")
    package = doctor.Package("broken", "magic", "pip install fixed", f"raise {error}('unknown compute capability')")
    finding = doctor.package_finding(package)
    assert finding.level == "warn"
    assert "9.9 is installed but does not load" in finding.text
    assert "unknown compute capability" in finding.text
    assert finding.text.endswith("pip install fixed")


def test_the_doctor_survives_a_package_that_ends_the_process(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: "9.9")
    package = doctor.Package("fatal", "magic", "pip install fixed", "import os; os.abort()")
    assert "it ended with code" in doctor.package_finding(package).text


def test_the_doctor_offers_the_remedy_for_an_absent_package(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    finding = doctor.package_finding(doctor.OPTIONAL[0])
    assert finding.level == "note"
    assert "pip install 'nfc-splat[gpu]'" in finding.text


def test_the_doctor_shows_a_kernel_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    finding = doctor._kernel_cache_finding()
    assert finding.level == "warn"
    assert "NUMBA_CACHE_DIR" in finding.text
