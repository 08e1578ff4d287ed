"""The image cache: within its budget, least recently used first, the same pixels whether kept or not."""

import threading

import numpy as np
import pytest
import torch
from data_scenes import COUNT, HEIGHT, WIDTH, Known, write_nerfstudio, write_png

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.store import ImageStore, Job
from nfc_splat.errors import UserError

SIZE = (10, 8)
BYTES = 10 * 8 * 3


@pytest.fixture
def jobs(tmp_path):
    for i in range(6):
        write_png(tmp_path / f"{i}.png", np.full((8, 10, 3), 10 * i, np.uint8))
    return [Job(f"{i}.png", tmp_path / f"{i}.png", SIZE, SIZE, *SIZE) for i in range(6)]


def spoil(job):
    job.path.write_bytes(b"")


def test_what_was_used_last_stays(jobs):
    store = ImageStore(jobs, 3 * BYTES, 10**6)
    for i in (0, 1, 2, 0, 3):  # 1 has to go
        assert store.image(i).unique().tolist() == [10 * i]
    assert store.kept_bytes == 3 * BYTES
    for job in jobs:
        spoil(job)
    for i in (0, 2, 3):
        assert store.image(i).unique().tolist() == [10 * i]
    with pytest.raises(UserError, match=r"1\.png"):
        store.image(1)


def test_the_budget_is_never_exceeded(jobs):
    for budget in (0, BYTES - 1, BYTES, 4 * BYTES + 1):
        store = ImageStore(jobs, budget, 10**6)
        store.check_all()
        assert store.kept_bytes == budget // BYTES * BYTES
        for i in (5, 1, 3, 3, 0, 2, 4):
            assert store.image(i).unique().tolist() == [10 * i]
            assert store.kept_bytes <= budget


def test_checking_decodes_everything_and_counts_failures(jobs):
    for job in jobs[2:4]:
        spoil(job)
    with pytest.raises(UserError, match=r"2\.png: cannot be decoded.*\(and 1 more like it\)"):
        ImageStore(jobs, 10**6, 10**6).check_all()


def test_threads_share_one_store(jobs):
    store = ImageStore(jobs, 2 * BYTES, 10**6)
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, 6, 60).tolist():
            if store.image(i).unique().tolist() != [10 * i]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.kept_bytes <= 2 * BYTES


def test_a_scene_says_what_it_keeps_and_is_the_same_without_a_cache(tmp_path):
    write_nerfstudio(tmp_path, Known(), k1=0.1)
    kept = load_scene(tmp_path, undistort=True)
    megabytes = f"{COUNT * WIDTH * HEIGHT * 3 / 1e6:.1f} MB"
    assert any(f"12 images take {megabytes} decoded and stay in memory" in notice for notice in kept.notices)
    bare = load_scene(tmp_path, DataConfig(image_cache_gb=0.0), undistort=True)
    assert any("more than --image-cache-gb 0: 0.0 MB stay in memory" in notice for notice in bare.notices)
    for name, split in kept.splits.items():
        for i in range(len(split)):
            assert torch.equal(split.image(i), bare.splits[name].image(i))


def test_targets_are_copies(tmp_path, recwarn):
    write_nerfstudio(tmp_path, Known())
    scene = load_scene(tmp_path, undistort=True)
    split = scene.splits["train"]
    target = split.target(0, scene.background)
    target.zero_()
    assert split.target(0, scene.background).max() > 0
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]
