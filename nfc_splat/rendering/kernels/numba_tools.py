"""What every numba kernel here shares: how it is compiled, and an exp2 that vectorises.

Kernels are compiled on first use and cached beside this package, or, where that folder is read-only, in numba's own
per-user folder (NUMBA_CACHE_DIR moves it). Fast-math flags are given one by one: "nnan" and "ninf" stay off, because the
kernels' guards against non-finite input are comparisons that those flags would remove.
"""

import numba
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

CONTRACT = {"contract", "nsz"}  # fused multiply-add; keeps the order of every sum
REDUCE = {"contract", "nsz", "reassoc"}  # also lets a sum be split over vector lanes

kernel = njit(cache=True, fastmath=CONTRACT, error_model="numpy", boundscheck=False)
reduction = njit(cache=True, fastmath=REDUCE, error_model="numpy", boundscheck=False)
parallel_kernel = njit(cache=True, parallel=True, nogil=True, fastmath=CONTRACT, error_model="numpy", boundscheck=False)

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


@njit(fastmath=CONTRACT, inline="always", error_model="numpy")
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


def threads() -> int:
    """How many threads numba will use for the next kernel."""
    return numba.get_num_threads()
