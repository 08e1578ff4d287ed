"""What every numba kernel here shares: how it is compiled and cached, and an exp2 that vectorises.

Kernels are compiled on first use and cached in `cache_folder()`: below this package's `__pycache__`, or, where that is
read-only, below the user's cache folder; NUMBA_CACHE_DIR moves it. Fast-math flags are given one by one: "nnan" and
"ninf" stay off, because the guards against non-finite input are comparisons that those flags would remove.
"""

import hashlib
import os
import re
from functools import cache, partial
from pathlib import Path

import numba
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

CONTRACT = {"contract", "nsz"}  # fused multiply-add; keeps the order of every sum
REDUCE = {"contract", "nsz", "reassoc"}  # also lets a sum be split over vector lanes


@cache
def cache_folder(module: str) -> Path:
    """Where the compiled kernels of `module`, a name such as "tiles_cpu", are kept.

    numba recompiles a function when its own file changed, but not when a constant or a function that it uses from
    another file did. So the folder's name carries a digest of every file that the kernel can be made of.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in _sources(module))).hexdigest()[:16]
    here = Path(__file__).parent
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nfc_splat"
    for base in [Path(numba.config.CACHE_DIR)] if numba.config.CACHE_DIR else [here / "__pycache__", user]:
        folder = base / f"kernels-{module}-{digest}"
        if _writable(folder):
            return folder
    return folder


def _sources(module: str) -> list[Path]:
    """The file of `module` and those of this folder that it names, directly or not."""
    files = {path.stem: path for path in Path(__file__).parent.glob("*.py")}
    found, waiting = set(), {module, "numba_tools"} & files.keys()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= set(re.findall(r"\w+", files[name].read_text())) & files.keys() - found - {"__init__"}
    return [files[name] for name in sorted(found)]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _compiled(function, **options):
    """numba's njit with this package's cache folder, which numba only takes from its global configuration."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder(function.__module__.rpartition(".")[2]))
    try:
        return njit(cache=True, nogil=True, error_model="numpy", boundscheck=False, **options)(function)
    finally:
        numba.config.CACHE_DIR = before


kernel = partial(_compiled, fastmath=CONTRACT)
reduction = partial(_compiled, fastmath=REDUCE, forceinline=True)
parallel_kernel = partial(_compiled, fastmath=CONTRACT, parallel=True)
steady_kernel = partial(_compiled, fastmath={"nsz"}, parallel=True)
inlined = njit(fastmath=CONTRACT, error_model="numpy", inline="always")

f32 = np.float32


@intrinsic
def _bits_to_float(typing_context, bits):
    """Reinterpret an int32 as a float32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen


# Minimax polynomial of 2^f on [-0.5, 0.5], degree 5: relative error 8e-8, 2.3e-7 in float32 arithmetic.
EXP2_C0, EXP2_C1, EXP2_C2 = f32(1.0000001192), f32(0.6931469440), f32(0.2402212024)
EXP2_C3, EXP2_C4, EXP2_C5 = f32(0.0555071346), f32(0.0096755400), f32(0.0013276455)


@inlined
def exp2_negative(x):
    """2^x for float32 x <= 0, without branches so that loops vectorise; x below -126 gives 2^-126."""
    x = max(x, f32(-126.0))
    whole = np.floor(x + f32(0.5))
    fraction = x - whole
    series = EXP2_C5
    series = series * fraction + EXP2_C4
    series = series * fraction + EXP2_C3
    series = series * fraction + EXP2_C2
    series = series * fraction + EXP2_C1
    series = series * fraction + EXP2_C0
    return series * _bits_to_float((np.int32(whole) + np.int32(127)) << np.int32(23))
