"""Surfaces with known distances, and open3d where it can be had."""

import pytest

from nfc_splat.errors import UserError
from nfc_splat.open3d_loader import load_open3d


def open3d_or_skip():
    """The module; the test is skipped, with the reason, where it does not load."""
    try:
        return load_open3d()
    except UserError as error:
        pytest.skip(str(error))
