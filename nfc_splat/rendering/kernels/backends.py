"""Which implementations can run on this machine, why the others cannot, and saying once which one was taken.

Whether CUDA can be used is asked of `torch.cuda.is_available()` before gsplat is touched. That an import succeeds
proves nothing: `import gsplat` works without a GPU, and with a compiler but a CPU-only torch it starts a build that
must fail.
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfc_splat.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("nfc_splat")

INSTALL_GSPLAT = "pip install 'nfc-splat[gpu]'"
DEFAULT_CUDA_HOME = "/usr/local/cuda"
_announced: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used here.

    Attributes:
        usable: it can.
        reason: one line: what it runs with, or what is missing and how to get it.
    """

    usable: bool
    reason: str


def available_backends() -> dict[str, Availability]:
    """The rasterisation backends, best first ("cuda", "cpu", "reference"), without compiling or running anything."""
    return {"cuda": _cuda(), "cpu": _cpu(), "reference": Availability(True, "plain torch; slow, for tests")}


def announce(operation: str, backend: str) -> None:
    """Say, once per process, which backend an operation runs on: one INFO line of the logger "nfc_splat"."""
    if (operation, backend) not in _announced:
        _announced.add((operation, backend))
        logger.info("%s: %s backend (%s)", operation, backend, available_backends()[backend].reason)


def choose_kernel(
    operation: str, functions: Mapping[str, tuple[str, str]], tensor: "Tensor", backend: str
) -> Callable[..., Any]:
    """The function that serves tensors like this one. Its module is imported now: numba costs nothing until then.

    Args:
        operation: what is computed, in the plural: "voxel grids".
        functions: module and function by backend, "reference", "cpu" and "cuda". All but "reference" take float32.
        backend: one of these, or "auto", the one of the tensor's device.

    Raises:
        ValueError: no such backend.
        UserError: the backend cannot serve this tensor; the message says what to do.
    """
    if backend not in ("auto", *functions):
        raise ValueError(f"backend must be one of auto, {', '.join(functions)}; got {backend!r}")
    chosen = backend if backend != "auto" else ("cuda" if tensor.device.type == "cuda" else "cpu")
    if chosen != "reference":
        if tensor.device.type != chosen:
            raise UserError(
                f"{operation} on {chosen} cannot serve tensors on {tensor.device}: move them with .to({chosen!r}), or "
                'leave backend="auto"'
            )
        if str(tensor.dtype) != "torch.float32":
            raise UserError(
                f"{operation} on {chosen} are computed in float32, and these tensors are {tensor.dtype}: convert them "
                'with .float(), or ask for backend="reference" (slow, any float dtype)'
            )
    if chosen == "cpu":
        announce(operation, chosen)
    module, function = functions[chosen]
    return getattr(importlib.import_module(module), function)


def _cpu() -> Availability:
    version = _version("numba")
    if version is None:
        return Availability(False, "numba is not installed: pip install numba")
    return Availability(True, f"numba {version}")


def _cuda() -> Availability:
    import torch

    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        return Availability(False, f"{why}: torch.cuda.is_available() is False")
    device = torch.cuda.get_device_name()
    version = _version("gsplat")
    if version is None:
        return Availability(False, f"gsplat is not installed ({device} is there): {INSTALL_GSPLAT}")
    built = _gsplat_build()
    if built is None:
        return Availability(
            False,
            f"gsplat {version} has no compiled kernels and there is no nvcc to compile them with: install the CUDA "
            f"toolkit {torch.version.cuda} and set CUDA_HOME, or install a gsplat wheel built for torch "
            f"{torch.__version__}",
        )
    return Availability(True, f"gsplat {version}, {built}, on {device}")


def _gsplat_build() -> str | None:
    """How gsplat gets its kernels: shipped compiled, compiled on first use, or not at all (None)."""
    package = importlib.util.find_spec("gsplat")
    folders = package.submodule_search_locations if package else None
    if any(path.suffix in (".so", ".pyd") for folder in folders or () for path in Path(folder).glob("csrc*")):
        return "kernels shipped compiled"
    # Where torch's extension builder looks, without importing it: that needs setuptools.
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), DEFAULT_CUDA_HOME)
    if shutil.which("nvcc") or any(home and (Path(home) / "bin" / "nvcc").is_file() for home in homes):
        return "kernels compiled on first use"
    return None


def _version(package: str) -> str | None:
    """The installed version of `package`, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
