"""Sparse tri-vectors: local tensors, each of three vectors of features per rank, that together are a field.

At a point inside of it, a tensor of C ranks has the values prod_axis line[axis, :, r](x), linear between the nodes of
its three lines. A point asks the nearest tensors of every scale (`TensorCells`); those of one scale are averaged with
the weights 1 / (distance to the tensor's centre + 1e-6), their sum counting as 1 or more.

Lines are [N, 3, D + 1, C], channels last: N tensors, D cells between D + 1 nodes on [-half, half], C ranks. Published
checkpoints keep [N, C, D + 1] per axis.

Source: Gao et al. 2023, "Strivec" (arXiv 2307.13226), sections 3.1 to 3.3.

Symbols: M samples, R rays, L scales, N tensors of a scale, D cells of a line, C ranks.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from nfc_splat.rendering.kernels.backends import choose_kernel
from nfc_splat.rendering.samples import Samples
from nfc_splat.rendering.tensor_cells import TensorCells

Backend = Literal["auto", "reference", "cpu", "cuda"]

_REFERENCE, _CPU = "nfc_splat.rendering.kernels.trivectors_reference", "nfc_splat.rendering.kernels.trivectors_cpu"
QUERIES = {
    "reference": (_REFERENCE, "query_reference"),
    "cpu": (_CPU, "query_cpu"),
    "cuda": (_REFERENCE, "query_in_parts"),
}
DENSITIES = {
    "reference": (_REFERENCE, "densities_reference"),
    "cpu": ("nfc_splat.rendering.kernels.trivector_rays_cpu", "densities_cpu"),
    "cuda": (_REFERENCE, "densities_reference"),
}


def query_trivectors(
    cells: TensorCells,
    lines: Sequence[Tensor],  # L times [N, 3, D + 1, C]
    points: Tensor,  # [M, 3]
    rows: Tensor,  # [M] int32
    *,
    summed: bool,
    clamp: bool,
    backend: Backend = "auto",
) -> Tensor:
    """Values of the tensors at points.

    Gradients reach `lines` (dense) and `points`. The values are not continuous where a tensor begins or ends, or where
    another one becomes the nearest; the gradient is that of the pieces.

    Args:
        rows: which cell each point lies in, `cells.rows_of(points)`; -1 gives 0.
        summed: the sum over ranks and scales; otherwise all ranks of all scales, side by side.
        clamp: a point that a tensor is asked about and that lies outside of it, which happens up to a cell beyond its
            faces, reads the value on the face. Otherwise lines go on there as they end (what the released code does).
        backend: "auto" is "cuda" for tensors on a CUDA device and "cpu" for those in main memory. "reference" is plain
            torch, any float dtype, twice differentiable, slow.

    Returns:
        [M], or [M, sum of C].

    Raises:
        ValueError: an argument's shape, dtype or device does not fit; the message names it.
        UserError: the backend asked for cannot serve these tensors; the message says what to do.
    """
    _check(cells, lines, points)
    if tuple(rows.shape) != (len(points),) or rows.is_floating_point():
        raise ValueError(f"rows must be [{len(points)}] and whole numbers; got {list(rows.shape)} {rows.dtype}")
    function = choose_kernel("tri-vectors", QUERIES, points, backend)
    return function(cells, lines, points, rows, summed, clamp)


def densities_along(
    cells: TensorCells,
    lines: Sequence[Tensor],  # L times [N, 3, D + 1, C]
    samples: Samples,
    *,
    clamp: bool,
    shift: float,
    interval: float,
    stop: float,
    backend: Backend = "auto",
) -> tuple[Samples, Tensor, Tensor]:
    """Raw densities at the samples of rays that are in active cells and not hidden behind opaque ones.

    A raw density d is 1 - (1 + exp(d + shift))^(-interval) opaque. A ray ends behind the sample that brings what is
    left of it below `stop`; what lies there costs nothing. Gradients reach `lines`.

    Returns:
        The samples that are left, M' of them, their raw densities [M'], and the rows [M'] of their cells.

    Raises:
        As `query_trivectors`.
    """
    _check(cells, lines, samples.rays.origins)
    function = choose_kernel("tri-vectors", DENSITIES, samples.rays.origins, backend)
    return function(cells, lines, samples, clamp, shift, interval, stop)


def _check(cells: TensorCells, lines: Sequence[Tensor], points: Tensor) -> None:
    """Raise ValueError with the name of the first argument that does not fit."""
    if points.dim() != 2 or points.shape[1] != 3 or not points.is_floating_point():
        raise ValueError(f"points must be floating point [M, 3]; got {points.dtype} {list(points.shape)}")
    if len(lines) != len(cells.centers):
        raise ValueError(f"lines must be of {len(cells.centers)} scales, as the cells are; got {len(lines)}")
    named = {"the cells' corner": cells.low, "the cells' centres": cells.centers[0]}
    for level, line in enumerate(lines):
        count = len(cells.centers[level])
        if line.dim() != 4 or tuple(line.shape[:2]) != (count, 3) or line.shape[2] < 2 or line.shape[3] < 1:
            raise ValueError(f"lines of scale {level} must be [{count}, 3, D + 1, C]; got {list(line.shape)}")
        named[f"lines of scale {level}"] = line
    for name, tensor in named.items():
        if tensor.dtype != points.dtype or tensor.device != points.device:
            raise ValueError(
                f"{name} must be {points.dtype} on {points.device}, like the points; got {tensor.dtype} on "
                f"{tensor.device}"
            )
