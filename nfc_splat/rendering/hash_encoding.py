"""The multiresolution hash encoding (Mueller et al. 2022, "Instant Neural Graphics Primitives", section 3).

L grids of growing resolution lie over the unit cube. The features at the eight corners of a point's cell, F numbers
each, are interpolated trilinearly, and the levels' features are joined. A level with few vertices has a row of the
table for each; a finer one is a hash table without collision handling. Conventions are tiny-cuda-nn's to the letter,
so that its flat parameter vector is `table.reshape(-1)`.

Symbols: M points, L levels, F features per level.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

LARGEST_DENSE_RESOLUTION = 1625  # of a level without hashing: the cube of more does not fit 32 bits


@dataclass(frozen=True)
class HashLevels:
    """The levels of a hash encoding, and where each lies in the table.

    Level l samples positions `x * scales[l] + 0.5` with `scales[l] = base_resolution growth^l - 1`, has
    `resolutions[l] = ceil(scales[l]) + 1` vertices along each axis and owns the rows
    `starts[l] : starts[l] + sizes[l]` of the table; `sizes[l]` is the number of vertices, rounded up to a multiple of
    8, or 2^log2_table_size where that is less. Vertex (x, y, z) is row `x + resolution y + resolution^2 z` modulo the
    size where that holds every vertex, and `(x xor 2654435761 y xor 805459861 z) mod size` in 32-bit arithmetic
    otherwise.

    Args:
        n_levels: L, 1 to 128.
        n_features: F, 1 to 8; tiny-cuda-nn knows 1, 2, 4 and 8.
        log2_table_size: most rows of a level, as a power of two, 3 to 28.
        base_resolution: vertices along an axis of the coarsest level, at least 1.
        growth: ratio of resolutions between neighbouring levels, at least 1.

    Raises:
        ValueError: a number lies outside its range; the message names it.
    """

    n_levels: int
    n_features: int
    log2_table_size: int
    base_resolution: int
    growth: float

    def __post_init__(self) -> None:
        ranges = {"n_levels": (1, 128), "n_features": (1, 8), "log2_table_size": (3, 28), "base_resolution": (1, 2**20)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low} to {high}; got {getattr(self, name)}")
        if not 1 <= self.growth < math.inf or self.base_resolution * self.growth ** (self.n_levels - 1) > 2**24:
            raise ValueError(f"growth must be at least 1, and the finest level at most 2^24; got {self.growth}")

    @classmethod
    def between(
        cls, n_levels: int, n_features: int, log2_table_size: int, base_resolution: int, finest_resolution: int
    ) -> "HashLevels":
        """Levels whose resolutions grow geometrically from the first to the last one given (Instant-NGP, Eq. 3)."""
        growth = (finest_resolution / base_resolution) ** (1 / max(n_levels - 1, 1))
        return cls(n_levels, n_features, log2_table_size, base_resolution, growth)

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """float32 numbers, computed as tiny-cuda-nn computes them."""
        exponent = np.log2(np.float32(self.growth))
        powers = (np.exp2(np.float32(level) * exponent) for level in range(self.n_levels))
        return tuple(float(power * np.float32(self.base_resolution) - np.float32(1)) for power in powers)

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        return tuple(math.ceil(scale) + 1 for scale in self.scales)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(min(-(-(n**3) // 8) * 8, 2**self.log2_table_size) for n in self.resolutions)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        return tuple(sum(self.sizes[:level]) for level in range(self.n_levels))

    @cached_property
    def hashed(self) -> tuple[bool, ...]:
        """Which levels are hash tables."""
        pairs = zip(self.resolutions, self.sizes, strict=True)
        return tuple(n > LARGEST_DENSE_RESOLUTION or size < n**3 for n, size in pairs)

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """scales, resolutions, starts, sizes, hashed: [L] each, for the kernels."""
        whole = (np.array(values, np.int64) for values in (self.resolutions, self.starts, self.sizes))
        return np.array(self.scales, np.float32), *whole, np.array(self.hashed, np.bool_)

    @property
    def rows(self) -> int:
        """Rows of the whole table."""
        return sum(self.sizes)

    @property
    def out_features(self) -> int:
        """L * F."""
        return self.n_levels * self.n_features

    def table(self, *, device: torch.device | str = "cpu") -> Tensor:
        """[rows, F] float32 initial table, uniform in +-1e-4 (Instant-NGP, section 4), by torch's global generator."""
        return torch.empty(self.rows, self.n_features, device=device).uniform_(-1e-4, 1e-4)


def hash_encode(points: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
    """Features of points, differentiable once in the table and the points.

    Args:
        points: [M, 3] in [0, 1]; those outside count as the nearest ones inside, without a gradient. NaN gives NaN.
        table: [rows, F].
        levels: what `table` holds.

    Returns:
        [M, L * F] in the dtype of `table`, coarsest level first.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names it.

    float32 in main memory is encoded by numba kernels, whose gradients do not depend on the number of threads; float32
    on a CUDA device by tiny-cuda-nn if it is installed; everything else by plain torch.
    """
    _check(points, table, levels)
    points = points.clamp(0, 1)
    if table.device.type == "cpu" and table.dtype == torch.float32:
        from nfc_splat.rendering.kernels.hash_cpu import hash_encode_cpu

        return hash_encode_cpu(points, table, levels)
    if table.device.type == "cuda" and table.dtype == torch.float32 and len(points):  # it fails on empty batches
        from nfc_splat.rendering.kernels.hash_cuda import hash_encode_cuda, usable

        if usable(levels):
            return hash_encode_cuda(points, table, levels)
    from nfc_splat.rendering.kernels.hash_reference import hash_encode_reference

    return hash_encode_reference(points, table, levels)


def hash_encode_with_jacobian(points: Tensor, table: Tensor, levels: HashLevels) -> tuple[Tensor, Tensor]:
    """Features of points and their derivatives by position, as two outputs.

    A field that needs the gradient of its distance (an eikonal loss) gets it from the Jacobian by the chain rule, and
    an ordinary backward pass then reaches the table: nothing here is differentiated twice.

    Args:
        points, table, levels: as in `hash_encode`.

    Returns:
        features [M, L * F], differentiable in table and points, and jacobian [M, L * F, 3] of them by point,
        differentiable in the table alone. It is piecewise: at a border between cells, that of the upper one; 0 along
        axes on which a point is outside of [0, 1].

    Raises:
        ValueError: as `hash_encode`.
    """
    _check(points, table, levels)
    inside = points.clamp(0, 1)
    if table.device.type == "cpu" and table.dtype == torch.float32:
        from nfc_splat.rendering.kernels.hash_cpu import hash_encode_with_jacobian_cpu as encode
    else:
        from nfc_splat.rendering.kernels.hash_reference import hash_encode_with_jacobian_reference as encode
    features, jacobian = encode(inside, table, levels)
    outside = inside != points
    return features, jacobian.masked_fill(outside[:, None], 0) if outside.any() else jacobian


def _check(points: Tensor, table: Tensor, levels: HashLevels) -> None:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be [M, 3]; got {list(points.shape)}")
    if list(table.shape) != [levels.rows, levels.n_features]:
        raise ValueError(f"table must be [{levels.rows}, {levels.n_features}] for {levels}; got {list(table.shape)}")
    if points.device != table.device or points.dtype != table.dtype or not table.is_floating_point():
        raise ValueError(
            f"points and table must be of one floating dtype and device; got {points.dtype} on {points.device} and "
            f"{table.dtype} on {table.device}"
        )
