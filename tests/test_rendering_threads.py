"""How many threads may be used: quotas of both kinds of control groups, and the two pools."""

import os
import subprocess
import sys

import pytest
import torch

from nfc_splat.rendering.kernels.threads import available_cores, numba_threads, set_threads


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A pretended 8-core machine; write its control groups with the returned function."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def write(listing: str, files: dict[str, str]) -> int:
        (tmp_path / "groups").write_text(listing)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return available_cores(tmp_path / "groups", tmp_path / "mount")

    return write


def test_without_control_groups_the_affinity_mask_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert available_cores(tmp_path / "absent", tmp_path) == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)]
)
def test_version_2_quota(groups, quota, cores):
    assert groups("0::/\n", {"cpu.max": quota}) == cores


def test_version_2_parent_binds_too(groups):
    files = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}
    assert groups("0::/a/b\n", files) == 3


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_version_1_quota(groups, controllers):
    files = {f"{controllers}/job/cpu.cfs_quota_us": "400000\n", f"{controllers}/job/cpu.cfs_period_us": "100000\n"}
    assert groups(f"9:memory:/x\n4:{controllers}:/job\n", files) == 4


def test_version_1_without_quota(groups):
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert groups("4:cpu:/\n", files) == 8


def test_path_unknown_inside_a_container_falls_back_to_the_mount(groups):
    assert groups("0::/docker/abc\n", {"cpu.max": "500000 100000"}) == 5


@pytest.mark.parametrize("text", ["", "nonsense", "1 0", "x y"])
def test_unreadable_quota_is_no_limit(groups, text):
    assert groups("0::/\n", {"cpu.max": text}) == 8


def test_both_pools_get_the_number():
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1
        assert torch.get_num_threads() == 1
        assert numba_threads() == 1
        assert set_threads(10_000) == available_cores()
    finally:
        torch.set_num_threads(before)
        set_threads(None)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["open3d", "numba"])
def test_numba_runs_in_its_own_work_queue_whatever_is_imported_first(first):
    code = f"""
import warnings; warnings.simplefilter("error", UserWarning)
import importlib
if {first!r} == "open3d":
    from nfc_splat import open3d_loader
    open3d_loader.load_open3d()
from nfc_splat.rendering.kernels.threads import numba_threads
numba_threads()
import numba, numpy
@numba.njit(parallel=True)
def double(values):
    for i in numba.prange(values.size):
        values[i] *= 2
values = numpy.ones(8)
double(values)
assert values.sum() == 16
print(numba.threading_layer())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.strip() in ("omp", "workqueue"), result.stderr
    assert "TBB" not in result.stderr


def test_the_first_kernel_leaves_torch_its_threads():
    code = """
import torch
from nfc_splat.rendering.kernels.threads import set_threads
from nfc_splat.rendering.packed import render_weights
set_threads(1)
render_weights(torch.rand(4), torch.tensor([0, 4]))
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "1"
