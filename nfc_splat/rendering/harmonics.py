"""Real spherical harmonics of viewing directions: the encoding that colour networks see.

Order and signs are those of 3DGS and tiny-cuda-nn: within band l the terms run from m = -l to l, band 0 first. The
polynomials are homogeneous in (x, y, z), so that they agree with the usual ones where x^2 + y^2 + z^2 = 1.

Symbols: M directions, B bands (degrees 0 to B - 1).
"""

import math

import torch
from torch import Tensor

MOST_BANDS = 4


def spherical_harmonics(directions: Tensor, bands: int) -> Tensor:
    """The first `bands` bands of orthonormal spherical harmonics at unit directions.

    Args:
        directions: [M, 3] of length 1; gradients flow through them.
        bands: 1 to 4; Instant-NGP uses 4.

    Returns:
        [M, bands^2] in the dtype of `directions`.

    Raises:
        ValueError: the shape or the number of bands does not fit.

    float32 in main memory is computed by a numba kernel, everything else by plain torch.
    """
    if directions.ndim != 2 or directions.shape[1] != 3 or not directions.is_floating_point():
        raise ValueError(f"directions must be [M, 3] numbers; got {directions.dtype} {list(directions.shape)}")
    if not 1 <= bands <= MOST_BANDS:
        raise ValueError(f"bands must be 1 to {MOST_BANDS}; got {bands}")
    if directions.device.type == "cpu" and directions.dtype == torch.float32:
        from nfc_splat.rendering.kernels.harmonics_cpu import spherical_harmonics_cpu

        return spherical_harmonics_cpu(directions, bands)
    return spherical_harmonics_reference(directions, bands)


def spherical_harmonics_reference(directions: Tensor, bands: int) -> Tensor:
    """`spherical_harmonics` in plain torch, any floating dtype and device."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    terms = [0 * x + 0.5]  # times 1 / sqrt(pi), below; of x, so that one band has a gradient too
    if bands > 1:
        c = math.sqrt(3) / 2
        terms += [-c * y, c * z, -c * x]
    if bands > 2:
        c = math.sqrt(15) / 2
        terms += [c * x * y, -c * y * z, math.sqrt(5) / 4 * (2 * zz - xx - yy), -c * x * z, c / 2 * (xx - yy)]
    if bands > 3:
        a, b, c = math.sqrt(35 / 2) / 4, math.sqrt(105) / 4, math.sqrt(21 / 2) / 4
        terms += [-a * y * (3 * xx - yy), 2 * b * x * y * z, -c * y * (4 * zz - xx - yy)]
        terms += [math.sqrt(7) / 4 * z * (2 * zz - 3 * xx - 3 * yy), -c * x * (4 * zz - xx - yy)]
        terms += [b * z * (xx - yy), -a * x * (xx - 3 * yy)]
    return torch.stack(terms, -1) / math.sqrt(math.pi)
