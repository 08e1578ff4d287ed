"""DVGO's Adam on the CPU, compiled by numba: one pass over the memory, in parallel.

Most of a voxel grid gets no gradient in a step. Blocks of 16 numbers without one are only read; in the others every
number is computed and the untouched ones put back, without branches, so that the loop vectorises.

Symbols: `m`, `v` are the moments; `step_size` is the learning rate with both bias corrections.
"""

import numpy as np
from numba import prange

from nfc_splat.rendering.kernels.numba_tools import f32, inlined, kernel, parallel_kernel

BLOCK = 16
CHUNK = 1 << 14  # numbers per piece of work


@inlined
def _moments(m, v, g, beta1, beta2):
    """Both moments after the gradient `g`."""
    return beta1 * m + (f32(1) - beta1) * g, beta2 * v + (f32(1) - beta2) * g * g


@kernel
def _update_block(p, g, m, v, beta1, beta2, step_size, eps):
    """Sixteen numbers; those whose gradient is 0 keep their value and their moments."""
    for k in range(BLOCK):
        m_new, v_new = _moments(m[k], v[k], g[k], beta1, beta2)
        p_new = p[k] - step_size * m_new / (np.sqrt(v_new) + eps)
        p[k] = p_new if g[k] != 0 else p[k]
        m[k] = m_new if g[k] != 0 else m[k]
        v[k] = v_new if g[k] != 0 else v[k]


@kernel
def _any_gradient(g):
    touched = False
    for k in range(BLOCK):
        touched |= g[k] != 0
    return touched


@kernel
def _update_touched(p, g, m, v, beta1, beta2, step_size, eps):
    whole = len(p) // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        if _any_gradient(g[first : first + BLOCK]):
            end = first + BLOCK
            _update_block(p[first:end], g[first:end], m[first:end], v[first:end], beta1, beta2, step_size, eps)
    for k in range(whole, len(p)):
        if g[k] != 0:
            m[k], v[k] = _moments(m[k], v[k], g[k], beta1, beta2)
            p[k] -= step_size * m[k] / (np.sqrt(v[k]) + eps)


@kernel
def _update_all(p, g, m, v, beta1, beta2, step_size, eps):
    for k in range(len(p)):
        m[k], v[k] = _moments(m[k], v[k], g[k], beta1, beta2)
        p[k] -= step_size * m[k] / (np.sqrt(v[k]) + eps)


@kernel
def _update_scaled(p, g, m, v, scale, beta1, beta2, step_size, eps):
    for k in range(len(p)):
        m[k], v[k] = _moments(m[k], v[k], g[k], beta1, beta2)
        p[k] -= step_size * scale[k] * m[k] / (np.sqrt(v[k]) + eps)


@parallel_kernel
def adam_step(p, g, m, v, scale, touched_only, beta1, beta2, step_size, eps):
    """Update flat arrays [n] in place.

    Args:
        scale: [n] factors of the step size, or empty for none; they overrule `touched_only`.
        touched_only: leave numbers whose gradient is exactly 0 as they are, moments included.
    """
    count = len(p)
    for chunk in prange(-(-count // CHUNK)):
        a, b = chunk * CHUNK, min(chunk * CHUNK + CHUNK, count)
        if len(scale) == count:
            _update_scaled(p[a:b], g[a:b], m[a:b], v[a:b], scale[a:b], beta1, beta2, step_size, eps)
        elif touched_only:
            _update_touched(p[a:b], g[a:b], m[a:b], v[a:b], beta1, beta2, step_size, eps)
        else:
            _update_all(p[a:b], g[a:b], m[a:b], v[a:b], beta1, beta2, step_size, eps)
