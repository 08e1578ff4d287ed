"""Fixtures shared by all tests."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from browser import browser_page, chromium  # noqa: F401  fixtures
from data_scenes import Known

from nfc_splat.rendering.kernels.threads import set_threads

REPOSITORY = Path(__file__).resolve().parent.parent
COMPILING = ("test_rasterize", "test_rendering", "test_fields_hexplane", "test_fields_mlp", "test_fields_ngp")
WORKER = "PYTEST_XDIST_WORKER" in os.environ


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test and its fixtures start with one thread among workers, which would wait for each other; commands that
    an earlier test called may have taken every core."""
    if WORKER:
        set_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the small real scenes; set NFC_SPLAT_DATA to point elsewhere. Tests are skipped where it is absent."""
    root = Path(os.environ.get("NFC_SPLAT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(
            f"real scenes are not at {root}; set NFC_SPLAT_DATA to the folder that holds lego_400, fox_540, ..."
        )
    return root


@pytest.fixture(scope="module")
def known() -> Known:
    """The scene that every format's test writes and reads."""
    return Known()


def pytest_collection_modifyitems(items):
    """Files that compile kernels come first, for the processes of later tests not to compile them all again; then those
    of slow tests, so that no worker is left alone with one at the end. Tests marked `gpu` say why they do not run on
    this machine."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (not item.path.name.startswith(COMPILING), -slow[item.path]))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False"))
