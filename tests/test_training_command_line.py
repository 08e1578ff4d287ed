"""From arguments to a resolved configuration."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_toy
from interrupted_runs import newest

from nfc_splat.errors import UserError
from nfc_splat.fields import METHODS
from nfc_splat.options import field_docstrings, flags
from nfc_splat.rendering.kernels.threads import available_cores
from nfc_splat.train import main
from nfc_splat.training import checkpoint
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.config import config_hash, default_config, matching, resolve
from nfc_splat.training.run import open_run, write_record


@pytest.fixture(autouse=True)
def _toy(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)
    monkeypatch.chdir(tmp_path)


def parse(*words: str):
    return parse_command_line(["scene", "--method", "toy", "--device", "cpu", *words])


def make_run(config, step=7) -> Path:
    with open_run(config, None) as run:
        write_record(config, {})
        run.checkpoints.mkdir()
        (run.checkpoints / f"step_{step:08d}.safetensors").write_bytes(b"")
    return config.out


def test_everything_is_settled(tmp_path):
    config = parse()
    assert config.scene == (tmp_path / "scene").resolve()
    assert (config.method, config.device, config.preset) == ("toy", "cpu", "quick")
    assert config.out == Path("runs/scene-toy-regression")
    assert config.threads == available_cores()
    assert config.loss_weight is None
    assert resolve(config) == config


def test_the_default_method_is_gaussians():
    assert parse_command_line(["scene", "--device", "cpu"]).method == "3dgs"


def test_the_run_is_named_after_the_folder_when_a_file_is_given(tmp_path):
    (tmp_path / "garden").mkdir()
    (tmp_path / "garden/transforms.json").write_text("{}")
    config = parse_command_line(["garden/transforms.json", "--method", "toy"])
    assert config.out == Path("runs/garden-toy-regression")


@pytest.mark.parametrize(("words", "weight"), [((), 0.5), (("--loss-weight", "3"), 3.0)])
def test_the_weight_of_the_classification_loss_is_the_methods_unless_given(words, weight):
    config = parse("--loss", "classification", *words)
    assert config.loss_weight == weight
    assert config.out == Path("runs/scene-toy-classification")


def test_a_preset_is_a_starting_point_and_flags_win():
    config = parse("--preset", "paper", "--rate", "0.5", "--downscale", "2", "--save-steps", "0")
    assert config.model == training_toy.Config(steps=400, grow_at=120, rate=0.5)
    assert config.data.downscale == 2
    assert config.checkpoints.save_steps == 0


@pytest.mark.parametrize("words", [("--steps", "80"), ("--steps=80",)])
def test_another_number_of_steps_scales_the_schedule(words):
    assert parse(*words).model == training_toy.Config(steps=80, grow_at=24)


def test_what_is_given_in_steps_is_taken_as_given():
    assert parse("--steps", "80", "--grow-at", "5").model == training_toy.Config(steps=80, grow_at=5)


def test_a_field_that_chooses_a_variant_brings_its_values():
    default = parse_command_line(["scene", "--preset", "paper"]).model
    variant = parse_command_line(["scene", "--preset", "paper", "--strategy", "mcmc"]).model
    assert variant.strategy == "mcmc"
    assert variant == METHODS["3dgs"].load().preset("paper", strategy="mcmc")
    assert dataclasses.replace(variant, strategy="default") != default


@pytest.mark.parametrize("method", METHODS)
def test_no_two_flags_share_a_name(method):
    names = flags(default_config(Path("scene"), method=method, device="cpu"))
    assert len(names) == len(set(names))
    assert {"--method", "--loss", "--loss-weight", "--preset", "--steps", "--downscale", "--out", "--resume"} <= {
        *names
    }
    assert {"--overwrite", "--seed", "--device", "--format", "--threads", "--quiet"} <= {*names}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dwnscale", "2"), "--dwnscale: unknown flag; did you mean --downscale?"),
        (("--dwnscale=2",), "did you mean --downscale?"),
        (("--los_weight", "2"), "did you mean --loss-weight?"),
        (("--qqqq",), "unknown flag; python -m nfc_splat.train --help lists them"),
        (("second",), "'second': expected one SCENE"),
        (("--steps", "many"), "--steps"),
        (("--steps", "0"), "--steps 0: expected 1 or more"),
        (("--loss", "focal"), "'focal' for argument '--loss'"),
        (("--method", "5dgs"), "--method 5dgs: expected one of 3dgs"),
        (("--preset", "fast"), "--preset fast: expected auto, quick or paper"),
        (("--loss-weight", "2"), "--loss-weight 2.0: has no effect with --loss regression"),
        (("--loss", "classification", "--loss-weight", "-1"), "--loss-weight -1.0: expected 0 or more"),
        (("--loss", "classification", "--loss-weight", "nan"), "--loss-weight nan"),
        (("--loss-eps", "0.6", "--loss-eps-low", "0.6"), "--loss-eps 0.6"),
        (("--keep", "0"), "--keep 0: expected 1 or more"),
        (("--save-minutes", "-1"), "--save-minutes -1.0"),
        (("--threads", "0"), "--threads 0"),
        (("--save-minutes", "nan"), "--save-minutes nan: expected 0 or more"),
        (("--save-minutes", "inf"), "--save-minutes inf"),
        (("--loss-eps", "nan"), "--loss-eps nan"),
        (("--loss-eps-low", "-0.1"), "--loss-eps-low -0.1"),
        (("--loss", "classification", "--loss-weight", "inf"), "--loss-weight inf"),
        (("--seed", "-3"), "--seed -3"),
        (("--seed", "9223372036854775808"), "--seed 9223372036854775808: expected less than 2**63"),
        (("--downscale", "0"), "--downscale 0"),
        (("--resume", "auto", "--overwrite"), "--resume and --overwrite"),
        (("--resume",), "there is no run in runs/scene-toy-regression"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(words, message, capsys):
    with pytest.raises(UserError) as caught:
        parse(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert capsys.readouterr() == ("", "")


def test_a_scene_is_required():
    with pytest.raises(UserError, match="SCENE"):
        parse_command_line([])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_gpu_is_an_error_that_says_so():
    with pytest.raises(UserError, match=r"--device cuda: torch .* sees no CUDA device"):
        parse_command_line(["scene", "--device", "cuda"])


def test_help_is_grouped_and_names_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert not caught.value.code
    text = capsys.readouterr().out
    for name in [*flags(parse(), {"scene": "SCENE"}), "SCENE"]:
        assert name in text
    for group in ("run options", "checkpoints options", "data options", "model options"):
        assert group in text


def test_each_group_of_the_help_fits_a_screen():
    environment = os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "nfc_splat.train", "--help"]
    repository = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, env=environment, cwd=repository, capture_output=True, timeout=120, check=True)
    lines = done.stdout.decode("utf-8").splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("╭")]
    assert len(starts) >= 8
    assert max(end - start for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)) <= 34
    assert max(map(len, lines[starts[0] :])) <= 80


def test_the_help_shows_the_values_of_the_chosen_preset(capsys):
    shown = {}
    for preset in ("quick", "paper"):
        with pytest.raises(SystemExit):
            parse_command_line(["--preset", preset, "--help"])
        shown[preset] = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--max-primitives INT Never more Gaussians than this" in shown["quick"]
    assert "(default: 20000)" in shown["quick"]
    assert "(default: 5000000)" not in shown["quick"]
    assert "(default: 5000000)" in shown["paper"]
    assert "values of the chosen --preset" in shown["quick"]


def test_every_help_text_stands_alone():
    config = default_config(Path("scene"), method="3dgs", device="cpu")
    for part in (config, config.checkpoints, config.data, config.model):
        texts = field_docstrings(type(part))
        for name, text in texts.items():
            assert text[0].isupper() or text[0] == '"', name
            assert text.endswith("."), name
            assert not {"\n", "`"} & set(text), name
        plain = {item.name for item in dataclasses.fields(part)} - {"checkpoints", "data", "model"}
        assert plain <= set(texts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--grow-grad2d", "inf"), "--grow-grad2d inf: expected a finite number"),
        (("--lr-quats", "-1"), "--lr-quats -1.0: expected 0 or more"),
        (("--opacity-reg", "nan"), "--opacity-reg nan: expected a finite number"),
        (("--designed-steps", "10"), "--designed-steps: unknown flag"),
    ],
)
def test_a_wrong_model_setting_is_said_in_one_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_command_line(["scene", "--device", "cpu", *words])
    assert "\n" not in str(caught.value)


def test_resume_alone_continues_the_run_that_the_same_command_made():
    first = parse("--loss", "classification", "--rate", "0.3", "--threads", "1")
    make_run(first)
    again = parse("--loss", "classification", "--resume")
    assert again.model == first.model
    assert again.resume == str(first.out)
    assert config_hash(again) == config_hash(first)


def test_the_same_command_resumes_whatever_its_flags():
    words = "--quiet --allow-missing --steps 80 --preset paper --loss classification --loss-weight 1 --save-steps 9"
    words += " --test-every 4 --downscale 2 --background white --noise 0.5 --log-every 1"
    make_run(parse(*words.split()))
    assert parse(*words.split(), "--resume").quiet
    assert not parse(*words.split(), "--resume", "--no-quiet").quiet


@pytest.mark.parametrize("where", ["folder", "checkpoint"])
def test_resume_with_a_path_needs_nothing_else(where):
    first = parse("--seed", "5", "--out", "elsewhere")
    folder = make_run(first)
    path = folder if where == "folder" else folder / "checkpoints" / "step_00000007.safetensors"
    again = parse_command_line(["--resume", str(path)])
    assert again == dataclasses.replace(first, resume=str(path))


def test_a_moved_run_continues_where_it_is(tmp_path):
    folder = make_run(parse())
    folder.rename(tmp_path / "moved")
    assert parse_command_line(["--resume", "moved"]).out == Path("moved")


def test_resume_before_the_scene():
    make_run(parse())
    assert parse_command_line(["--method", "toy", "--resume", "scene"]).resume == "runs/scene-toy-regression"


def test_resume_auto_starts_afresh_where_there_is_nothing():
    assert parse("--resume", "auto").resume is None
    make_run(parse())
    assert parse("--resume", "auto").resume == "runs/scene-toy-regression"


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("killed", ["while writing", "before the sidecar"])
def test_resume_auto_starts_a_run_afresh_whose_first_checkpoint_was_not_completed(tmp_path, monkeypatch, killed):
    words = [str(training_toy.write_scene(tmp_path / "scene")), "--method", "toy", "--threads", "1", "--quiet"]
    words += ["--steps", "3", "--out", "run", "--resume", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", no_room)
        with pytest.raises(UserError, match="No space left"):
            main(words)
    if killed == "before the sidecar":
        Path("run/checkpoints/step_00000000.safetensors").write_bytes(b"whole or not")
    assert main(words) == 0
    assert newest(Path("run")).header.step == 3


@pytest.mark.parametrize("left", ["step_00000000.json", "latest.json", "step_00000003.safetensors", "metrics.jsonl"])
def test_resume_auto_does_not_start_a_run_afresh_that_was_saved(left):
    """Whatever was damaged or deleted since."""
    folder = make_run(parse(), step=0)
    (folder / ("." if left == "metrics.jsonl" else "checkpoints") / left).write_text("{}")
    assert parse("--resume", "auto").resume == str(folder)


def test_what_touches_the_result_cannot_change_when_resuming():
    folder = make_run(parse())
    words = ["--resume", str(folder), "--seed", "1", "--loss", "classification", "--rate", "1", "--downscale", "2"]
    with pytest.raises(UserError) as caught:
        parse_command_line([*words, "--size", "8", "--noise", "0"])
    message = str(caught.value)
    assert "seed 1 (the run: 42)" in message
    assert "data.downscale 2 (the run: 1)" in message
    assert message.count("(the run:") == 5
    assert "and 1 more" in message


def test_what_does_not_touch_the_result_may_change():
    first = parse()
    folder = make_run(first)
    words = [
        "--quiet",
        "--keep",
        "5",
        "--threads",
        "1",
        "--image-cache-gb",
        "1",
        "--out",
        "fork",
        "--protocol",
        "graphdeco",
    ]
    again = parse_command_line(["--resume", str(folder), *words])
    assert (again.out, again.quiet, again.checkpoints.keep) == (Path("fork"), True, 5)
    assert matching(again) == matching(first)


@pytest.mark.parametrize("name", ["loop", "a" * 300, "~no-such-user/scene"])
@pytest.mark.parametrize("method", ["toy", "auto"])
def test_a_scene_path_that_cannot_be_followed(tmp_path, name, method):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    scene = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(UserError, match="the path cannot be followed"):
        parse_command_line([scene, "--method", method])
