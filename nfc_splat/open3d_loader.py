"""Import open3d on a machine that lacks the system's libusb.

open3d's Linux wheel links `libusb-1.0.so.0` (for depth cameras, which nothing here uses) and does not carry it. The
PyPI package `libusb-package` does, under the same SONAME: once that copy is in the process, the dynamic loader
is satisfied, and nobody needs root. Other systems' wheels are self-contained.
"""

import ctypes
import sys
from importlib import import_module
from types import ModuleType

from nfc_splat.errors import UserError

LIBUSB = "libusb-1.0.so.0"
REMEDY = "pip install 'nfc-splat[geometry]'"


def load_open3d() -> ModuleType:
    """The `open3d` module, importable or not before.

    Raises:
        UserError: open3d is not installed, or a shared library that it needs cannot be loaded.
    """
    if sys.platform == "linux" and "open3d" not in sys.modules:
        _provide_libusb()
    try:
        return import_module("open3d")
    except ModuleNotFoundError as error:
        if error.name != "open3d":
            raise UserError(f"open3d needs the package {error.name}, which is not installed: {REMEDY}") from error
        raise UserError(f"open3d is not installed: {REMEDY}") from error
    except ImportError as error:
        raise UserError(
            f"open3d is installed but does not load ({error}): install the system package that holds that library "
            f"(apt install libgl1 libgomp1 libx11-6 on Debian and Ubuntu), or reinstall open3d: {REMEDY}"
        ) from error


def _provide_libusb() -> None:
    """Load the system's libusb, or else the one from `libusb-package`, for the whole process to see."""
    try:
        ctypes.CDLL(LIBUSB, mode=ctypes.RTLD_GLOBAL)
        return
    except OSError:
        pass
    try:
        library = import_module("libusb_package").get_library_path()
    except ImportError as error:
        raise UserError(
            f"open3d needs {LIBUSB}, which this system lacks: {REMEDY} brings it (package libusb-package), "
            "or install the system's libusb (apt install libusb-1.0-0)"
        ) from error
    if library is None:
        raise UserError(f"the installed libusb-package carries no {LIBUSB}: apt install libusb-1.0-0")
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UserError(f"{library} does not load ({error}): apt install libusb-1.0-0") from error
