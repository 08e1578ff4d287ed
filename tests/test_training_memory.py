"""The memory that a training took: the most of all processes that continued it, of the GPU beside the processor's."""

import dataclasses
import json

import pytest
import torch
import training_toy
from interrupted_runs import crash_at, newest

from nfc_splat.eval.__main__ import main as measure
from nfc_splat.fields import METHODS
from nfc_splat.train import train
from nfc_splat.training import memory
from nfc_splat.training.checkpoint import Header
from nfc_splat.training.config import CheckpointConfig, default_config, resolve
from nfc_splat.training.memory import PeakMemory, of_this_process
from nfc_splat.training.plain import from_plain, to_plain

MB = 2**20


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)


@pytest.fixture
def config(tmp_path):
    scene = training_toy.write_scene(tmp_path / "scene")
    plain = default_config(scene, method="toy", preset="quick", device="cpu")
    saving = CheckpointConfig(save_steps=10)
    return resolve(dataclasses.replace(plain, out=tmp_path / "run", threads=1, quiet=True, checkpoints=saving))


@pytest.fixture
def took(monkeypatch):
    """Says what a process shall have taken."""

    def took(resident: int, gpu: int = 0) -> None:
        monkeypatch.setattr(memory, "of_this_process", lambda: PeakMemory(resident * MB, gpu * MB))

    return took


def recorded(config) -> tuple[int | None, int | None]:
    summary = json.loads((config.out / "eval/summary.json").read_text())
    return summary["peak_memory_mb"], summary["peak_gpu_memory_mb"]


def test_a_run_that_was_killed_records_the_most_of_its_processes(config, took, monkeypatch, capsys):
    took(700, 40)
    crash_at(monkeypatch, 15, config)  # five steps after a checkpoint
    took(900, 20)
    crash_at(monkeypatch, 25, dataclasses.replace(config, resume=str(config.out)))
    took(300, 30)
    assert train(dataclasses.replace(config, resume=str(config.out))) == 0
    assert recorded(config) == (900, 40)
    assert "peak memory 900 MB + GPU 40 MB" in capsys.readouterr().out
    assert newest(config.out).header.memory == PeakMemory(900 * MB, 40 * MB)


def test_a_run_that_was_killed_in_its_evaluation_records_the_memory_of_training(config, took, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    took(900)
    with monkeypatch.context() as patch:
        patch.setattr("nfc_splat.eval.views.evaluate_views", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    took(300)
    assert train(dataclasses.replace(config, resume=str(config.out))) == 0
    assert recorded(config) == (900, None)


def test_a_later_evaluation_keeps_it(config, took):
    took(900, 40)
    assert train(config) == 0
    took(300)
    assert measure(["images", str(config.out), "--device", "cpu"]) == 0
    assert recorded(config) == (900, 40)


def test_a_checkpoint_written_before_it_was_kept_is_read(config, took):
    took(900)
    assert train(config) == 0
    plain = to_plain(newest(config.out).header)
    assert plain.pop("memory") == {"resident": 900 * MB, "gpu": 0}
    assert from_plain(Header, plain, "header").memory == PeakMemory(0, 0)


def test_the_gpu_counts_where_it_is_used(monkeypatch):
    assert of_this_process().resident > 50 * MB  # torch alone takes that
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7 * MB)
    for used in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        assert of_this_process().gpu == 7 * MB * used
