"""The two thread pools get the same number, and numba's runs in its own work queue."""

import subprocess
import sys

import pytest
import torch

from nfc_splat.rendering.kernels.threads import available_cores, numba_threads, set_threads


@pytest.fixture
def _pools():
    before = torch.get_num_threads()
    yield
    set_threads(None)
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_pools")
def test_both_pools_get_the_number():
    assert set_threads(1) == 1
    assert torch.get_num_threads() == 1
    assert numba_threads() == 1


@pytest.mark.usefixtures("_pools")
def test_never_more_than_the_cores_given():
    assert set_threads(10_000) == available_cores() == torch.get_num_threads()
    assert numba_threads() <= available_cores()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["open3d", "numba"])
def test_numba_runs_in_its_own_work_queue_whatever_is_imported_first(first):
    code = f"""
import warnings; warnings.simplefilter("error", UserWarning)
if {first!r} == "open3d":
    from nfc_splat.open3d_loader import load_open3d
    load_open3d()
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
    assert result.stdout.strip() == "workqueue", result.stderr
