"""open3d loads without the system's libusb, and says what to do when it cannot."""

import os
import subprocess
import sys

import pytest

from nfc_splat.open3d_loader import load_open3d

pytest.importorskip("libusb_package", reason="open3d's optional dependencies are not installed")

# Makes the system's libusb unfindable for ctypes, as on a bare machine, and then loads open3d.
WITHOUT_SYSTEM_LIBUSB = """
import ctypes
real = ctypes.CDLL
def without_libusb(name, *args, **kwargs):
    if name == "libusb-1.0.so.0":
        raise OSError("libusb-1.0.so.0: cannot open shared object file")
    return real(name, *args, **kwargs)
ctypes.CDLL = without_libusb
"""
HIDE = """
import sys
sys.modules[{name!r}] = None  # an import of it fails as if it were not installed
"""
LOAD = """
from nfc_splat.errors import UserError
from nfc_splat.open3d_loader import load_open3d
try:
    print("loaded", load_open3d().__name__)
except UserError as error:
    print("refused", error)
"""


def run(code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux wheels of open3d lack libusb")


def test_open3d_loads():
    assert load_open3d().__name__ == "open3d"


@linux
def test_the_packaged_libusb_stands_in_for_the_system_one():
    maps = "\nprint([line.split()[-1] for line in open('/proc/self/maps') if 'libusb_package' in line][:1])"
    first, second = run(WITHOUT_SYSTEM_LIBUSB + LOAD + maps).splitlines()
    assert first == "loaded open3d"
    assert "libusb-1.0" in second


@linux
def test_without_either_libusb_the_remedy_is_named():
    text = run(WITHOUT_SYSTEM_LIBUSB + HIDE.format(name="libusb_package") + LOAD)
    assert text.startswith("refused")
    assert "pip install 'nfc-splat[geometry]'" in text
    assert "libusb" in text
    assert "\n" not in text


@linux
def test_a_libusb_package_without_the_library_is_refused():
    fake = """
import sys, types
sys.modules["libusb_package"] = types.SimpleNamespace(get_library_path=lambda: None)
"""
    assert "apt install libusb-1.0-0" in run(WITHOUT_SYSTEM_LIBUSB + fake + LOAD)


@pytest.mark.parametrize("missing", ["open3d", "dash"])
def test_missing_packages_are_named_with_the_remedy(missing):
    lines = HIDE.format(name=missing)
    if missing == "dash":
        # A package of open3d's that is absent, seen from inside `import open3d`.
        lines = """
import sys, importlib
class Broken:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "open3d":
            raise ModuleNotFoundError("No module named 'dash'", name="dash")
sys.meta_path.insert(0, Broken)
"""
    text = run(lines + LOAD)
    assert text.startswith("refused")
    assert missing in text
    assert "pip install 'nfc-splat[geometry]'" in text
