"""Gaussians in the two compact formats that web viewers read.

`.splat` (antimatter15/splat) holds 32 bytes a Gaussian and no header: position and standard deviations as float32,
colour and opacity as 4 bytes, the quaternion wxyz as 4 bytes (128 is 0, one 128th a step). The largest and most opaque
come first, because viewers draw what they have while they load. View-dependent colour is left out.

`.spz` (Niantic) is written in version 3, which Niantic's library and open3d read: a header of 16 bytes and one array
for each of position (24 bits fixed point), opacity, colour, logarithm of the standard deviations (a byte each),
quaternion (the three smallest components in 10 bits each) and higher harmonics (a byte each, of which 5 and 4 bits
count), compressed by gzip. The format has axes x right, y up, z backwards where a PLY has x right, y down, z
forwards, so everything is turned half around x on the way: whoever turns the file into a PLY again finds the axes of
the scene.

Symbols: N Gaussians, K spherical-harmonics coefficients.
"""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch

from nfc_splat.errors import UserError
from nfc_splat.fields.gaussians import SH_C0
from nfc_splat.fields.splat_file import Splats
from nfc_splat.files import atomic_path

SPZ_MAGIC = 0x5053474E
SPZ_VERSION = 3
ANTIALIASED = 1
MOST_FRACTION_BITS = 20
POSITION_RANGE = 2**23 - 1
COLOR_SPAN = 0.15  # of the constant coefficient, per step of 1 / 255: wider than [0, 1]
# Signs of the harmonics after half a turn around x, which negates y and z.
TURNED_SH = (-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1)
FIRST_BAND = 3


def write_splat(path: Path, splats: Splats) -> None:
    """Write finite `splats` as `.splat`, atomically."""
    rows = np.empty(len(splats.means), [("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])
    opacities = splats.opacities.double().sigmoid()
    colors = torch.cat([0.5 + SH_C0 * splats.sh0[:, 0].double(), opacities[:, None]], 1)
    rows["mean"] = splats.means.numpy()
    rows["scale"] = splats.scales.double().exp().numpy()
    rows["color"] = _bytes(255 * colors)
    rows["quat"] = _bytes(128 + 128 * _unit_quaternions(splats))
    order = torch.argsort(splats.scales.double().sum(1) + opacities.log(), descending=True, stable=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(rows[order.numpy()].tobytes())


def write_spz(path: Path, splats: Splats) -> float:
    """Write finite `splats` as `.spz`, atomically.

    Returns:
        The step between two positions along an axis, in the scene's units.

    Raises:
        UserError: Gaussians farther away than the format can hold.
    """
    bits = _fraction_bits(path, splats)
    turn = torch.tensor([1.0, -1.0, -1.0]).double()
    fixed = (splats.means.double() * turn * 2**bits).round().to(torch.int32).numpy().astype("<i4")
    degree = math.isqrt(splats.shN.shape[1] + 1) - 1
    flags = ANTIALIASED if splats.antialiased else 0
    parts = [
        struct.pack("<IIIBBBB", SPZ_MAGIC, SPZ_VERSION, len(fixed), degree, bits, flags, 0),
        fixed.view("u1").reshape(-1, 3, 4)[..., :3].tobytes(),
        _bytes(255 * splats.opacities.double().sigmoid()).tobytes(),
        _bytes(255 * (0.5 + COLOR_SPAN * splats.sh0.double())).tobytes(),
        _bytes(16 * (splats.scales.double() + 10)).tobytes(),
        _smallest_three(_unit_quaternions(splats)[:, [1, 2, 3, 0]] * torch.tensor([1.0, -1, -1, 1])).tobytes(),
        _harmonics(splats).tobytes(),
    ]
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(b"".join(parts), mtime=0))
    return 2.0**-bits


def _fraction_bits(path: Path, splats: Splats) -> int:
    """As many bits after the point as leave room for the farthest Gaussian."""
    farthest = float(splats.means.abs().max())
    if farthest > POSITION_RANGE:
        raise UserError(f"{path}: a Gaussian lies {farthest:.3g} units away, .spz holds {POSITION_RANGE}; write .ply")
    bits = MOST_FRACTION_BITS
    while farthest * 2**bits > POSITION_RANGE:
        bits -= 1
    return bits


def _bytes(values: torch.Tensor) -> np.ndarray:
    """Rounded and clamped to 0..255."""
    return values.round().clamp(0, 255).to(torch.uint8).numpy()


def _unit_quaternions(splats: Splats) -> torch.Tensor:
    """[N, 4] float64 wxyz."""
    return torch.nn.functional.normalize(splats.quats.double(), dim=-1)


def _smallest_three(quats: torch.Tensor) -> np.ndarray:
    """[N] uint32 of unit quaternions xyzw [N, 4]: which component is the largest, and the others, with its sign made
    positive, as a sign bit and nine bits of their share of 1 / sqrt(2)."""
    quats = quats.numpy()
    largest = np.abs(quats).argmax(1)
    signs = np.where(np.take_along_axis(quats, largest[:, None], 1) < 0, -1.0, 1.0)
    packed = largest.astype(np.uint32)
    for component in range(4):
        value = quats[:, component] * signs[:, 0]
        size = np.floor(511 * np.abs(value) * math.sqrt(2) + 0.5).clip(0, 511).astype(np.uint32)
        code = (np.uint32(1) << np.uint32(9)) * (value < 0).astype(np.uint32) | size
        packed = np.where(largest == component, packed, (packed << np.uint32(10)) | code)
    return packed.astype("<u4")


def _harmonics(splats: Splats) -> np.ndarray:
    """[N, K - 1, 3] uint8, 128 for 0 and 128 steps for 1, in steps of 8 for the first band and 16 for the others."""
    count = splats.shN.shape[1]
    turned = splats.shN.double() * torch.tensor(TURNED_SH[:count]).double()[:, None]
    step = torch.tensor([8.0 if k < FIRST_BAND else 16.0 for k in range(count)]).double()[:, None]
    return _bytes(((128 + 128 * turned) / step).round() * step)
