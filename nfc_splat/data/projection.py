"""Cameras out of projection matrices, in plain arithmetic that gives the same bits on every machine.

Symbols: P [3, 4] projection, K [3, 3] intrinsics (upper triangular), R [3, 3] world-to-camera rotation, t [3].
"""

import math

import numpy as np

# Volume spanned by the rows of P[:, :3], relative to their lengths; float32 leaves less of a singular matrix.
SINGULAR = 1e-6


def decompose(P: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """K [3, 3] and camera-to-world [4, 4] of a finite P = c K [R | t] [3, 4], c not 0; None if P is no such product.

    K has a positive diagonal and 1 in its corner, R is a rotation: with these the answer is unique, since the sign of c
    is that of det P[:, :3]. That is the RQ decomposition, here by orthogonalising the rows from the last to the first
    (Hartley and Zisserman 2004, section 6.2.4). The position may overflow to infinity.
    """
    largest = np.abs(P[:, :3]).max()
    if not largest > 0:
        return None
    with np.errstate(over="ignore"):
        P = P / largest
    first, second, third = P[:, :3]
    volume = dot(first, cross(second, third))
    if not abs(volume) > SINGULAR * length(first) * length(second) * length(third):
        return None
    if volume < 0:
        P = -P
        first, second, third = P[:, :3]
    K = np.zeros((3, 3))
    K[2, 2] = length(third)
    forward = third / K[2, 2]
    K[1, 2] = dot(second, forward)
    rest = second - K[1, 2] * forward
    K[1, 1] = length(rest)
    down = rest / K[1, 1]
    right = cross(down, forward)
    K[0] = dot(first, right), dot(first, down), dot(first, forward)
    # Back-substitution: K t = P[:, 3], then the centre is -R^T t.
    z = P[2, 3] / K[2, 2]
    y = (P[1, 3] - K[1, 2] * z) / K[1, 1]
    x = (P[0, 3] - K[0, 1] * y - K[0, 2] * z) / K[0, 0]
    pose = np.eye(4)
    with np.errstate(over="ignore", invalid="ignore"):
        pose[:3] = np.stack([right, down, forward, -(x * right + y * down + z * forward)], 1)
    return K / K[2, 2], pose


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def length(a: np.ndarray) -> float:
    return math.sqrt(dot(a, a))


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])
