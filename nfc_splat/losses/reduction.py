"""What every loss of this package does with its arguments: precision, masks and reductions.

Symbols: `*shape` is the shape of a prediction, as a rule `[..., 3]`; `*pixels` is that shape without its last axis.

- `Reduction`: "none" keeps the per-element values, "mean" averages them, "sum" adds them up.
- `check_same_shape(pred, target)`, `check_reduction(reduction)`: `ValueError` when the request makes no sense.
- `working_precision(*tensors)`: the tensors in one dtype, float32 or wider.
- `element_weights(mask, values)`: a mask as `[*shape]` weights.
- `without_ignored(tensor, weights, fill)`: `tensor` with `fill` wherever the weight is 0.
- `reduce(values, weights, reduction)`: the last step of every loss.
"""

from functools import reduce as fold
from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]


def check_same_shape(pred: Tensor, target: Tensor) -> None:
    """Raise `ValueError` unless both have one shape: broadcasting by accident is the classic silent loss bug."""
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have the same shape, got {tuple(pred.shape)} and {tuple(target.shape)}")


def check_reduction(reduction: str) -> None:
    """Raise `ValueError` unless `reduction` is a `Reduction`."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")


def working_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common dtype, but at least float32: half and bfloat16 are widened, float64 stays.

    Raises:
        ValueError: a tensor is not of a floating dtype (an image that was not divided by 255, as a rule).
    """
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"expected floating-point values in [0, 1], got {tensor.dtype}: convert with x / 255")
    dtype = fold(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)


def element_weights(mask: Tensor | None, values: Tensor) -> Tensor | None:
    """Per-element weights from a mask, or None without one.

    Args:
        mask: bool or non-negative numbers, `[*pixels]`, `[*pixels, 1]` or `[*shape]`; 0 ignores an element, 1 counts
            it, 2 counts it twice.
        values: [*shape] what will be weighted.

    Returns:
        [*shape] in the dtype of `values`.

    Raises:
        ValueError: `mask` has none of the three shapes.
    """
    if mask is None:
        return None
    if mask.shape != values.shape and mask.shape == values.shape[:-1]:
        mask = mask[..., None]
    if mask.shape not in (values.shape, (*values.shape[:-1], 1)):
        raise ValueError(
            f"mask must have the shape of the prediction {tuple(values.shape)} or of its pixels "
            f"{tuple(values.shape[:-1])}, got {tuple(mask.shape)}"
        )
    return mask.to(values.dtype).expand_as(values)


def without_ignored(tensor: Tensor, weights: Tensor | None, fill: float) -> Tensor:
    """`tensor` with `fill` where the weight is 0, so that whatever stood there, NaN included, reaches no gradient."""
    return tensor if weights is None else tensor.where(weights != 0, fill)


def reduce(values: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Weight and reduce per-element losses.

    Args:
        values: [*shape] per-element losses.
        weights: [*shape] from `element_weights`, or None.
        reduction: "none" gives `w v`; "sum" gives `sum(w v)`; "mean" gives `sum(w v) / sum(w)`, the mean over the
            elements that count, which does not change when an ignored pixel is added, and 0 when none counts.

    Returns:
        [*shape] for "none", otherwise a scalar.
    """
    if weights is not None:
        values = values * weights
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if weights is None:
        return values.mean()
    return values.sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)
