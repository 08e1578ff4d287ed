"""Checkpoints: exact, complete or not believed, and never spoilt by a crash at any moment."""

import dataclasses
import json
import logging
import os
import resource
import signal
import stat
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfc_splat.errors import UserError
from nfc_splat.files import sha256, write_json
from nfc_splat.training import checkpoint as module
from nfc_splat.training.checkpoint import (
    SCHEMA,
    Header,
    UntrustedCheckpoint,
    checkpoint_files,
    differences,
    join_tensors,
    newest_checkpoint,
    read_checkpoint,
    split_tensors,
    write_checkpoint,
)

HEADER = Header(
    schema=SCHEMA,
    step=0,
    method="toy",
    config={"steps": 10},
    config_hash="c",
    scene_hash="s",
    threads=1,
    device="cpu",
    learning_rate_scale=1.0,
    skipped=0,
    seconds=0.25,
    losses={"photometric": 0.1},
    optimizers={},
)


def save(folder, step, keep=3, numel=64):
    """A checkpoint whose every number says which step it is of."""
    header = dataclasses.replace(HEADER, step=step)
    return write_checkpoint(folder, header, {"model/x": torch.full((numel,), float(step))}, keep=keep)


def belongs(checkpoint):
    """Whether tensors and header are of one save."""
    return bool((checkpoint.tensors["model/x"] == checkpoint.header.step).all())


def test_everything_comes_back_exactly(tmp_path):
    tensors = {
        "model/x": torch.randn(3, 4),
        "model/half": torch.randn(5).bfloat16(),
        "model/empty": torch.zeros(0, 15, 3),
        "recipe/count": torch.tensor(7),
        "rng/cpu": torch.get_rng_state(),
        "sampler/transposed": torch.arange(6).reshape(2, 3).T,
    }
    header = dataclasses.replace(HEADER, step=3, seconds=0.1 + 0.2, losses={"a": 1e-300, "b": 1 / 3})
    read = read_checkpoint(write_checkpoint(tmp_path, header, tensors, keep=1))
    assert read.header == header
    assert read.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read.tensors[name].dtype == value.dtype
        assert torch.equal(read.tensors[name], value)
    assert read.section("recipe").keys() == {"count"}


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    base = torch.arange(4.0)
    read = read_checkpoint(write_checkpoint(tmp_path, HEADER, {"model/a": base, "model/b": base}, keep=1))
    read.tensors["model/a"] += 1
    assert torch.equal(read.tensors["model/b"], base)


def test_others_may_read_it(tmp_path):
    mask = os.umask(0o022)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_trees_survive_json_with_the_types_of_their_keys(tree):
    tensors = {}
    plain = json.loads(json.dumps(split_tensors({"a": tree, 0: torch.ones(2)}, "o", tensors)))
    back = join_tensors(plain, tensors)
    assert back["a"] == tree
    assert torch.equal(back[0], torch.ones(2))


def test_only_the_newest_are_kept_and_a_future_is_forgotten(tmp_path):
    for step in (0, 10, 20, 30):
        save(tmp_path, step, keep=2)
    assert list(checkpoint_files(tmp_path)) == [30, 20]
    save(tmp_path, 25, keep=2)  # as after resuming from 20
    assert list(checkpoint_files(tmp_path)) == [25, 20]
    assert json.loads((tmp_path / "latest.json").read_text())["step"] == 25
    assert sorted(path.suffix for path in tmp_path.glob("step_*")) == [".json"] * 2 + [".safetensors"] * 2


def test_an_incomplete_one_does_not_push_out_a_good_one(tmp_path):
    save(tmp_path, 1, keep=2)
    save(tmp_path, 2, keep=2).with_suffix(".json").unlink()
    save(tmp_path, 3, keep=2)
    assert list(checkpoint_files(tmp_path)) == [3, 1]


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "absent") is None


def _spoil(path, how):
    sidecar = path.with_suffix(".json")
    if how == "no sidecar":
        sidecar.unlink()
    elif how == "sidecar of another":
        sidecar.write_text(path.with_name("step_00000001.json").read_text())
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "sidecar is a list":
        sidecar.write_text("[]")
    elif how == "gone":
        path.unlink()
        path.symlink_to(path.parent / "nowhere.safetensors")


@pytest.mark.parametrize("how", ["no sidecar", "sidecar of another", "empty", "sidecar is a list", "gone"])
def test_the_next_older_one_is_taken_and_said_so(tmp_path, caplog, how):
    save(tmp_path, 1)
    _spoil(save(tmp_path, 2), how)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path).header.step == 1
    assert "step_00000002" in caplog.text


def test_when_none_can_be_believed_it_is_an_error(tmp_path):
    for step in (1, 2):
        _spoil(save(tmp_path, step), "empty")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        newest_checkpoint(tmp_path)


def _rewrite(path, tensors, metadata):
    """Replace a checkpoint by another file with a sidecar that vouches for it."""
    from safetensors.torch import save_file

    save_file(tensors, path, metadata=metadata)
    step = int(path.stem.removeprefix("step_"))
    write_json(path.with_suffix(".json"), {"step": step, "size": path.stat().st_size, "sha256": sha256(path)})


def test_another_schema_is_refused_with_both_numbers(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    header = dataclasses.asdict(dataclasses.replace(HEADER, schema=SCHEMA + 1)) | {"news": 1}
    _rewrite(path, {"model/x": torch.ones(1)}, {"header": json.dumps(header)})
    with pytest.raises(UserError, match=f"schema {SCHEMA + 1}, this version reads {SCHEMA}"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1}', "[" * 100, '{"schema": 1, "schema": 1}', '{"schema": NaN}', "{", "null"]
)
def test_a_damaged_header_is_not_believed_even_if_a_sidecar_vouches(tmp_path, text):
    path = save(tmp_path, 1)
    _rewrite(path, {"model/x": torch.ones(1)}, {"header": text})
    with pytest.raises(UserError):
        read_checkpoint(path)
    _rewrite(path, {"model/x": torch.ones(1)}, {})
    with pytest.raises(UntrustedCheckpoint):
        read_checkpoint(path)


def test_a_model_that_is_not_finite_is_not_believed(tmp_path):
    path = save(tmp_path, 1)
    header = json.dumps(dataclasses.asdict(dataclasses.replace(HEADER, step=1)))
    _rewrite(path, {"model/x": torch.tensor([1.0, float("nan")])}, {"header": header})
    with pytest.raises(UntrustedCheckpoint, match="model/x"):
        read_checkpoint(path)


def _same_json(text, other):
    try:
        return json.loads(text) == json.loads(other)
    except ValueError:
        return False


def test_every_mutation_is_detected(tmp_path, monkeypatch):
    """Byte flips and truncations of the file and of its sidecar: all noticed, none ends in another exception."""
    monkeypatch.setattr(module.log, "disabled", True)
    save(tmp_path, 1, numel=16)
    path = save(tmp_path, 2, numel=16)
    random = torch.Generator().manual_seed(1)
    draw = lambda high: int(torch.randint(high, (), generator=random))  # noqa: E731
    detected = 0
    for target in (path, path.with_suffix(".json")):
        whole = target.read_bytes()
        cuts = [whole[: len(whole) * percent // 100] for percent in range(100)]
        flips = []
        for _ in range(300):
            spoilt = bytearray(whole)
            spoilt[draw(len(whole))] ^= 1 + draw(255)
            flips.append(bytes(spoilt))
        for spoilt in [*cuts, *flips]:
            target.write_bytes(spoilt)
            read = newest_checkpoint(tmp_path)
            assert belongs(read)
            # Only white space between the sidecar's words can change without meaning anything.
            harmless = target.suffix == ".json" and _same_json(spoilt, whole)
            assert read.header.step == (2 if harmless else 1)
            detected += not harmless
        target.write_bytes(whole)
    assert detected >= 790
    assert newest_checkpoint(tmp_path).header.step == 2


def _forked(work):
    """Run `work` in a child process; returns its process id. The child never returns to the test, and ends at the
    latest after a minute, should the test be killed."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and waiting for them would not end
        try:
            work()
        finally:
            os._exit(0)
    return child


def _die_at(moment, monkeypatch):
    """Kill this process when it makes its `moment`-th change to the file system."""
    count = 0

    def deadly(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "unlink", "open", "chmod"):
        monkeypatch.setattr(os, name, deadly(getattr(os, name)))
    monkeypatch.setattr(module, "save_file", deadly(module.save_file))
    monkeypatch.setattr(module, "write_json", deadly(module.write_json))
    monkeypatch.setattr(module, "sha256", deadly(module.sha256))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_every_change_to_the_file_system(tmp_path, monkeypatch):
    """Not at random: at each call that changes a file, in turn, until a save gets through."""
    save(tmp_path, 1, keep=1)
    for moment in range(1, 200):

        def work(moment=moment):
            _die_at(moment, monkeypatch)
            save(tmp_path, 2, keep=1)

        _, status = os.waitpid(_forked(work), 0)
        read = newest_checkpoint(tmp_path)
        assert belongs(read)
        assert read.header.step in (1, 2)
        if os.WIFEXITED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        for path in [*tmp_path.glob("step_00000002*"), *tmp_path.glob(".*")]:
            path.unlink()
        save(tmp_path, 1, keep=1)
    assert moment > 8
    assert newest_checkpoint(tmp_path).header.step == 2
    assert list(checkpoint_files(tmp_path)) == [2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_random_moments(tmp_path):
    """A child saves without end and is killed; what is found is whole and not older than what it had reported."""
    random = torch.Generator().manual_seed(2)
    for round_ in range(30):
        folder = tmp_path / str(round_)
        save(folder, 1, numel=200_000)
        receive, send = os.pipe()

        def work(folder=folder, send=send):
            for step in range(2, 100_000):
                save(folder, step, keep=2, numel=200_000)
                os.write(send, step.to_bytes(4, "little"))

        child = _forked(work)
        os.close(send)
        reported = int.from_bytes(os.read(receive, 4), "little")
        time.sleep(0.03 * float(torch.rand((), generator=random)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := os.read(receive, 4):
            reported = int.from_bytes(rest, "little")
        os.close(receive)
        read = newest_checkpoint(folder)
        assert belongs(read)
        assert read.header.step >= reported


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """The limit on file sizes stands in for a full disk: the write fails in the middle."""
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*step_00000002.*[0-9]+ bytes needed, [0-9]+ free"):
            save(tmp_path, 2, numel=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest_checkpoint(tmp_path).header.step == 1
    assert not list(tmp_path.glob(".*"))
    save(tmp_path, 2, numel=100_000)
    assert newest_checkpoint(tmp_path).header.step == 2


def test_differences_are_named_by_their_path():
    mine = {"a": 1, "b": {"c": [1, 2], "d": None}, "new": 5}
    recorded = {"a": 1, "b": {"c": [1, 3], "d": None}, "old": 6}
    assert differences(mine, recorded) == [
        "b.c [1, 2] (the run: [1, 3])",
        "new 5 (the run: None)",
        "old None (the run: 6)",
    ]
    assert differences(mine, mine) == []
