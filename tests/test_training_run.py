"""Run folders: whose they are, what may be deleted, and what is written into them."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import training_toy

from nfc_splat.errors import UserError
from nfc_splat.fields import METHODS
from nfc_splat.train import train
from nfc_splat.training.checkpoint import checkpoint_files
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.config import default_config, resolve
from nfc_splat.training.lock import LOCK_FILE, locked
from nfc_splat.training.run import (
    RunFolder,
    RunSource,
    find_run,
    is_run,
    open_run,
    read_config,
    write_record,
)


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)


@pytest.fixture
def config(tmp_path):
    plain = default_config(tmp_path / "scene", method="toy", preset="quick", device="cpu")
    return resolve(dataclasses.replace(plain, out=tmp_path / "run"))


def make_run(config, step=7):
    """A run folder as a finished process leaves it."""
    with open_run(config, None) as run:
        write_record(config, {"format": "blender"})
        run.checkpoints.mkdir()
        (run.checkpoints / f"step_{step:08d}.safetensors").write_bytes(b"")
    return config.out


def test_the_configuration_comes_back_exactly(config):
    folder = make_run(config)
    assert read_config(folder) == config
    record = json.loads((folder / "config.json").read_text())
    assert record["clocks"] == {"steps": 40, "preset_steps": 40}
    assert record["versions"]["torch"]
    assert record["command"] == sys.argv
    assert not (folder / LOCK_FILE).exists()


def test_the_record_never_holds_the_environment(config, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hunter2")
    assert "hunter2" not in (make_run(config) / "config.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "run schema 2, this version reads 1"),
        ({"train": None}, "expected an object"),
        ({"train": {"scene": "x", "colour": 1}}, "unknown key 'colour'"),
        ({"train": {"scene": "x", "method": "unheard"}}, "--method unheard"),
        ({"train": {"scene": "x", "method": "toy", "model": {"sizes": 1}}}, "unknown key 'sizes'"),
        ({"train": {"scene": "x", "method": "toy", "model": {"size": "large"}}}, "size: 'large', expected int"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(config, change, message):
    path = make_run(config) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_config(config.out)


def test_a_run_is_never_overwritten_unasked(config):
    folder = make_run(config)
    with (
        pytest.raises(UserError, match=r"already holds a run at step 7.*--resume.*--overwrite.*--out"),
        open_run(config, None),
    ):
        pass
    assert list(checkpoint_files(folder / "checkpoints")) == [7]
    assert not (folder / LOCK_FILE).exists()


def test_overwriting_deletes_the_run_and_nothing_else(config, caplog):
    folder = make_run(config)
    (folder / "notes.txt").write_text("mine")
    (folder / "renders").mkdir()
    with caplog.at_level(logging.WARNING), open_run(dataclasses.replace(config, overwrite=True), None):
        assert {path.name for path in folder.iterdir()} == {"notes.txt", LOCK_FILE}
    assert "at step 7" in caplog.text


def test_overwriting_does_not_follow_links_out_of_the_folder(config, tmp_path):
    folder = make_run(config)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (folder / "renders").symlink_to(outside)
    with open_run(dataclasses.replace(config, overwrite=True), None):
        assert not (folder / "renders").exists()
    assert (outside / "precious").exists()


def test_a_run_that_got_nowhere_makes_room(config):
    folder = make_run(config, step=0)
    with open_run(config, None):
        assert not (folder / "config.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(config, overwrite):
    config.out.mkdir()
    (config.out / "thesis.tex").write_text("x")
    with (
        pytest.raises(UserError, match=r"no run's \(thesis.tex"),
        open_run(dataclasses.replace(config, overwrite=overwrite), None),
    ):
        pass
    assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way(config):
    config.out.write_text("x")
    with pytest.raises(UserError, match="is a file, expected a folder"), open_run(config, None):
        pass


def test_a_folder_that_cannot_be_created_is_found_out_at_once(config, tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="cannot be created"),
        open_run(dataclasses.replace(config, out=tmp_path / "file" / "run"), None),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_found_out_at_once(config, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot write .*Read-only file system"), open_run(config, None):
        pass


def test_resuming_keeps_everything_and_drops_what_a_dead_process_left(config):
    folder = make_run(config)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    leftover = folder / "checkpoints" / f".step_00000008.safetensors.tmp-{dead.stdout.strip()}"
    mine = folder / f".config.json.tmp-{os.getpid()}"
    for path in (leftover, mine):
        path.write_text("half")
    with open_run(config, RunSource(folder)):
        assert not leftover.exists()
        assert mine.exists()
        assert list(checkpoint_files(folder / "checkpoints")) == [7]
        write_record(config, {})
    earlier = json.loads((folder / "config.json").read_text())["earlier"]
    assert [set(entry) for entry in earlier] == [{"started", "command", "versions", "processes"}]


def test_resuming_into_another_folder_needs_it_free(config, tmp_path):
    make_run(config)
    other = dataclasses.replace(config, out=tmp_path / "other")
    with open_run(other, RunSource(config.out)) as run:
        assert run.folder == tmp_path / "other"


def test_metrics_after_the_resumed_step_are_forgotten(tmp_path):
    lines = ['{"step": 1, "loss": 1}', '{"step": 2}', '{"step": 3}', "[1]", "nonsense", '{"st']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = RunFolder(tmp_path)
    run.start_metrics(2)
    run.log({"step": 3, "loss": float("inf"), "psnr": float("nan"), "name": "x"})
    read = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    run.close()
    assert read[:2] == [{"step": 1, "loss": 1}, {"step": 2}]
    assert read[2:] == [{"step": 3, "loss": None, "psnr": None, "name": "x"}]


def test_what_resume_may_name(config, tmp_path):
    folder = make_run(config)
    checkpoint = folder / "checkpoints" / "step_00000007.safetensors"
    assert find_run(folder) == RunSource(folder)
    assert find_run(checkpoint) == RunSource(folder, checkpoint)
    assert is_run(folder)
    for path in (tmp_path, folder / "config.json", tmp_path / "absent", checkpoint.with_name("step_1.safetensors")):
        with pytest.raises(UserError, match="expected a run folder"):
            find_run(path)


def _hold(folder: Path) -> subprocess.Popen:
    """Another process that holds the lock of `folder` until its stdin closes."""
    code = (
        "import sys; from pathlib import Path; from nfc_splat.training.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_two_processes_do_not_share_a_folder(tmp_path, caplog):
    process = _hold(tmp_path)
    try:
        with pytest.raises(UserError, match=rf"in use by process {process.pid} on "), locked(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        assert f"process {process.pid} died" in caplog.text
    assert not (tmp_path / LOCK_FILE).exists()


def test_the_lock_is_free_again_when_its_holder_ends(tmp_path):
    process = _hold(tmp_path)
    process.communicate()
    with locked(tmp_path):
        pass


def test_a_file_of_another_host_is_not_taken_over(tmp_path):
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "yesterday"}))
    with pytest.raises(UserError, match="left by process 1 on elsewhere"), locked(tmp_path):
        pass
    assert path.exists()


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"pid": 1}'])
def test_a_lock_file_that_says_nothing_is_taken(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_protocol_that_cannot_be_followed_is_refused_before_the_training(tmp_path):
    scene = training_toy.write_scene(tmp_path / "scene", tests=1)
    config = parse_command_line([str(scene), "--method", "toy", "--protocol", "dnerf", "--out", str(tmp_path / "run")])
    with pytest.raises(UserError, match=r"--protocol dnerf leaves out the first 1 of the split's 1 views") as refused:
        train(config)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    assert train(dataclasses.replace(config, protocol="default", quiet=True)) == 0
