"""Numba kernel: which points lie in the view of at least one of many pinhole cameras.

Cameras are read in blocks of `LANES`, so that the inner loop vectorises; a point is done with the first block that
sees it, and the search starts with the block that saw the point before: neighbours in a mesh are seen together.

Symbols: V points, C cameras padded to whole blocks, W and H the image's size in pixels.
"""

import numba
import numpy as np

from nfc_splat.rendering.kernels.numba_tools import f32, parallel_kernel

LANES = 16
_RUN = 4096  # points that share a start


@parallel_kernel
def points_in_views(
    points,  # [V, 3] float32
    poses,  # [C / LANES, 12, LANES] float32: rows of [R | t] of world to camera, OpenCV axes
    lens,  # [5] float32: cx / fx, (W - cx) / fx, cy / fy, (H - cy) / fy, what is taken off the depth
    seen,  # [V] bool, filled
):
    """A point is seen by a camera when its depth z, less lens[4], is positive and 0 < u < W and 0 < v < H, strictly.

    With u = fx x / z + cx the bounds of u are -(cx / fx) z < x < ((W - cx) / fx) z.
    """
    left, right, top, bottom, nearer = lens[0], lens[1], lens[2], lens[3], lens[4]
    blocks = poses.shape[0]
    count = points.shape[0]
    for run in numba.prange((count + _RUN - 1) // _RUN):
        start = 0
        inside = np.empty(LANES, np.int32)
        for i in range(run * _RUN, min(count, (run + 1) * _RUN)):
            px, py, pz = points[i, 0], points[i, 1], points[i, 2]
            found = False
            for turn in range(blocks):
                block = start + turn
                if block >= blocks:
                    block -= blocks
                pose = poses[block]
                for k in range(LANES):
                    x = pose[0, k] * px + pose[1, k] * py + pose[2, k] * pz + pose[3, k]
                    y = pose[4, k] * px + pose[5, k] * py + pose[6, k] * pz + pose[7, k]
                    z = pose[8, k] * px + pose[9, k] * py + pose[10, k] * pz + pose[11, k] - nearer
                    sides = np.int32(x > -left * z) & np.int32(x < right * z)
                    sides &= np.int32(y > -top * z) & np.int32(y < bottom * z)
                    inside[k] = sides & np.int32(z > f32(0.0))
                any_inside = np.int32(0)
                for k in range(LANES):
                    any_inside |= inside[k]
                if any_inside != 0:
                    found = True
                    start = block
                    break
            seen[i] = found
