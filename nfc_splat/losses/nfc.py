"""The losses of Neural Field Classifiers (NFC, ICLR 2024, arXiv 2403.01058).

NFC trains colours as probabilities. Its two parts are independent of each other: a *classification loss* added to the
regression loss (here; the usual one takes decoded colours and float labels, nothing is encoded), and a *target
encoding* in the colour head (`nfc_splat.losses.encoding`).

Symbols: `*shape` is the shape of decoded values, as a rule `[..., 3]`; L the logits per value of an encoding; p a
probability or a predicted colour, t its target in [0, 1], lambda the weight of the classification term.

- `channelwise_classification_loss(pred, target)`: Eq. 4 and 5, on decoded values.
- `bitwise_classification_loss(bit_probabilities, target)`: Eq. 3, on the bits.
- `nfc_loss(pred, target)`, `NFCLoss()`: Eq. 6, regression + lambda * channel-wise classification.

Every loss computes in float32 (float64 when given float64), under autocast too, and NaN in gives NaN out, for a
gradient scaler to see: torch's own binary cross-entropy trips a device-side assertion, which no CUDA process survives.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nfc_splat.losses.encoding import STEPS, Kind, TargetEncoding
from nfc_splat.losses.photometric import l1, mse
from nfc_splat.losses.reduction import (
    Reduction,
    check_reduction,
    check_same_shape,
    element_weights,
    reduce,
    without_ignored,
    working_precision,
)

Base = Literal["mse", "l1"]

EPS = 1e-3
EPS_LOW = 1e-3


def channelwise_classification_loss(
    pred: Tensor,
    target: Tensor,
    *,
    eps: float = EPS,
    eps_low: float = EPS_LOW,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Binary cross-entropy between decoded values and float labels (NFC, Eq. 4 and 5).

    .. math:: l_c = -t \log p - (1 - t) \log(1 - p), \quad p = \mathrm{clamp}(\hat C, \epsilon_{low}, 1 - \epsilon)

    The label t is a soft one, the image as a float: it is never encoded. The minimum over p is not 0 but the label's
    entropy, 0.69 at t = 1/2, so the value says little about convergence.

    Gradient: `(p - t) / (p (1 - p))` inside the clamp and on its two ends; exactly 0 outside, where only a regression
    term beside this one still acts. With the default bounds its magnitude is at most 1000.

    The paper clamps above only (Eq. 5) and its code at 0 below, where the gradient is unbounded: -3e11 for a black
    pixel whose target is 0.3 (torch floors `log` at -100 and the denominator at 1e-12, and so does this function with
    `eps_low=0`). Sigmoid colours over a bright background never get there; Gaussians and black backgrounds do. The
    default mirrors `eps`: dark and bright are treated alike, and p = 0.001 is a quarter of an 8-bit level, so what the
    clamp hides is below what an 8-bit target can tell apart.

    Args:
        pred: [*shape] decoded, composited values. Any range: what exceeds the bounds is clamped.
        target: [*shape] in [0, 1]; not checked, because that would make the host wait for the device.
        eps: distance of the upper bound from 1; the paper's 1e-3.
        eps_low: lower bound; 0 is the authors' code, 1e-3 the default, at least 1e-5 is advised.
        mask: [*pixels], [*pixels, 1] or [*shape] weights; a masked "mean" is `sum(w l) / sum(w)`, the mean over what
            counts, and 0 when nothing does. Where the weight is 0 the inputs may hold anything, NaN included.
        reduction: "none", "mean" or "sum".

    Returns:
        [*shape] for "none", otherwise a scalar; float32 or wider.

    Raises:
        ValueError: shapes that differ, an input that is not floating-point, bounds without room between them, or an
            unknown reduction.

    Example:
        >>> dark, bright = torch.tensor([0.3]), torch.tensor([1.02])
        >>> round(channelwise_classification_loss(bright, dark).item(), 3)
        4.836
    """
    check_reduction(reduction)
    _check_bounds(eps, eps_low)
    check_same_shape(pred, target)
    pred, target = working_precision(pred, target)
    weights = element_weights(mask, pred)
    pred, target = without_ignored(pred, weights, 0.5), without_ignored(target, weights, 0.5)
    cross_entropy = _ClampedCrossEntropy.apply(pred, target, eps_low, 1 - eps)
    return reduce(cross_entropy, weights, reduction)


def bitwise_classification_loss(
    bit_probabilities: Tensor,
    target: Tensor,
    *,
    encoding: TargetEncoding | Kind = "binary",
    eps: float = EPS,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy between predicted bits and the bits of the target's grey level (NFC, Eq. 3).

    .. math:: l_b = \frac{1}{255} \sum_{j=1}^{8} 2^{j-1} \mathrm{BCE}(\hat y_j, y_j), \quad y = \mathrm{bits}(255 t)

    j = 8 is the most significant bit, index 0 here. The paper gives the binary code only. For the others each logit
    weighs as much as flipping its bit changes the level on average, divided by 255, which is the same rule:
    "gray" (128, ..., 1) / 255 as well, "thermometer" 1 / 255 for each of its 255. "one_hot" has one answer among 256
    and takes the categorical cross-entropy `-log p_level`. The weights sum to 1: undecided bits (p = 1/2) give
    log 2, an undecided softmax log 256.

    Gradient: with q the probability of the right answer, `-log q` has gradient -1/q. Below q = `eps` the logarithm is
    continued by its tangent, so that the gradient stays at -1/eps: bounded where compositing left no probability at
    all, and never 0 while the answer is wrong. Wherever q >= eps this is Eq. 3 to the letter.

    Args:
        bit_probabilities: [*shape, L] probabilities (not logits), per sample or composited.
        target: [*shape] values in [0, 1]; clamped to it and rounded to 256 levels.
        encoding: which code; a `TargetEncoding` or its kind.
        eps: where the tangent takes over, in (0, 1).
        mask: weights of the values: [*pixels], [*pixels, 1] or [*shape]; see `channelwise_classification_loss`.
        reduction: "none", "mean" or "sum".

    Returns:
        [*shape] for "none", otherwise a scalar; float32 or wider.

    Raises:
        ValueError: shapes that do not belong together, an input that is not floating-point, `eps` outside (0, 1), or an
            unknown encoding or reduction.

    Example:
        >>> bits = torch.full((3, 8), 0.5)
        >>> round(bitwise_classification_loss(bits, torch.rand(3)).item(), 4)  # log 2
        0.6931
    """
    check_reduction(reduction)
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie in (0, 1), got {eps}")
    encoding = encoding if isinstance(encoding, TargetEncoding) else TargetEncoding(encoding)
    _check_bits(bit_probabilities, target, encoding)
    bits, target = working_precision(bit_probabilities, target)
    weights = element_weights(mask, target)
    if weights is not None:
        bits = bits.where(weights[..., None] != 0, 0.5)
    if encoding.kind == "one_hot":
        right = bits.gather(-1, encoding.levels(target)[..., None])
        return reduce(_negative_log(right, eps).squeeze(-1), weights, reduction)
    right = torch.where(encoding.encode(target) == 1, bits, 1 - bits)
    per_value = (_negative_log(right, eps) * encoding.weights.to(bits)).sum(-1) / STEPS
    return reduce(per_value, weights, reduction)


def _check_bits(bits: Tensor, target: Tensor, encoding: TargetEncoding) -> None:
    if bits.shape != (*target.shape, encoding.n_logits):
        raise ValueError(
            f"bit_probabilities must have the shape of target and {encoding.n_logits} {encoding.kind} logits, "
            f"got {tuple(bits.shape)} for target {tuple(target.shape)}"
        )


def nfc_loss(
    pred: Tensor,
    target: Tensor,
    *,
    base: Base | None = "mse",
    weight: float = 2.0,
    eps: float = EPS,
    eps_low: float = EPS_LOW,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Regression plus classification (NFC, Eq. 6).

    .. math:: L = \mathrm{base}(\hat C, t) + \lambda \, l_c, \quad l_c \text{ from } channelwise\_classification\_loss

    Gradient for base "mse", inside the clamp: `2 (p - t) (1 + lambda / (2 p (1 - p)))`, that is the regression gradient
    times 5 at mid-grey and times 52 at p = 0.02 for lambda = 2. Whatever is balanced against the photometric loss
    (regularisers, densification thresholds) feels that factor. Outside the clamp only the base acts: it sees the
    prediction as it is.

    Args:
        pred: [*shape] decoded, composited colours, any range.
        target: [*shape] in [0, 1].
        base: "mse" (NeRF, DVGO), "l1" (NeuS, Gaussians), or None for the weighted classification term alone, to be
            added to a loss that is already there. Alone it cannot move a prediction that left the clamp's range.
        weight: lambda, at least 0: the authors use 2 for DVGO (MSE) and 20 for NeuS (L1).
        eps: see `channelwise_classification_loss`.
        eps_low: see `channelwise_classification_loss`.
        mask: see `channelwise_classification_loss`; applies to both terms.
        reduction: "none", "mean" or "sum", of the sum of both terms.

    Returns:
        [*shape] for "none", otherwise a scalar; float32 or wider.

    Raises:
        ValueError: as `channelwise_classification_loss`, or an unknown base, or a negative or non-finite weight.
    """
    _check_nfc(base, weight)
    loss = weight * channelwise_classification_loss(
        pred, target, eps=eps, eps_low=eps_low, mask=mask, reduction=reduction
    )
    if base is None:
        return loss
    regression = {"mse": mse, "l1": l1}[base]
    return regression(pred, target, mask=mask, reduction=reduction) + loss


class NFCLoss(nn.Module):
    """`nfc_loss` as a module: `NFCLoss()(pred, target)` in place of `nn.MSELoss()(pred, target)`.

    Arguments, shapes, gradients and errors are those of `nfc_loss`; what can be checked is checked here, once.

    Example:
        >>> criterion = NFCLoss(base="l1", weight=20.0)
        >>> criterion
        NFCLoss(base='l1', weight=20.0, eps=0.001, eps_low=0.001, reduction='mean')
        >>> round(criterion(torch.tensor([0.5]), torch.tensor([1.0])).item(), 4)  # 0.5 + 20 log 2
        14.3629
    """

    def __init__(
        self,
        base: Base | None = "mse",
        weight: float = 2.0,
        eps: float = EPS,
        eps_low: float = EPS_LOW,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        _check_bounds(eps, eps_low)
        _check_nfc(base, weight)
        self.base, self.weight, self.eps, self.eps_low, self.reduction = base, weight, eps, eps_low, reduction

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of `pred` [*shape] against `target` [*shape]; see `nfc_loss`."""
        return nfc_loss(
            pred,
            target,
            base=self.base,
            weight=self.weight,
            eps=self.eps,
            eps_low=self.eps_low,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        settings = ("base", "weight", "eps", "eps_low", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in settings)


class _ClampedCrossEntropy(torch.autograd.Function):
    """torch's binary cross-entropy of a clamped prediction, floors included: log at -100 and p (1 - p) at 1e-12.

    It differs at NaN alone, which it hands on, in the gradient too: comparisons with NaN are false, so NaN is inside.
    """

    @staticmethod
    def forward(pred: Tensor, target: Tensor, low: float, high: float) -> Tensor:
        p = pred.clamp(low, high)
        return -(target * _floored_log(p) + (1 - target) * _floored_log1p(-p))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, float], output: Tensor) -> None:
        pred, target, ctx.low, ctx.high = inputs
        ctx.save_for_backward(pred, target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        pred, target = ctx.saved_tensors
        p = pred.clamp(ctx.low, ctx.high)
        outside = (pred < p) | (pred > p)
        to_pred = (grad * (p - target) / (p * (1 - p)).clamp_min(1e-12)).masked_fill(outside, 0)
        to_target = grad * (_floored_log1p(-p) - _floored_log(p)) if ctx.needs_input_grad[1] else None
        return to_pred, to_target, None, None


def _floored_log(x: Tensor) -> Tensor:
    return x.log().clamp_min(-100)


def _floored_log1p(x: Tensor) -> Tensor:
    return x.log1p().clamp_min(-100)


def _negative_log(probability: Tensor, eps: float) -> Tensor:
    """`-log p`, continued below `eps` by its tangent there."""
    floored = probability.clamp_min(eps)
    return (floored - probability) / eps - floored.log()


def _check_bounds(eps: float, eps_low: float) -> None:
    if not (0 <= eps_low < 1 - eps <= 1):
        raise ValueError(f"expected 0 <= eps_low < 1 - eps <= 1, got eps={eps}, eps_low={eps_low}")


def _check_nfc(base: str | None, weight: float) -> None:
    if base is not None and base not in get_args(Base):
        raise ValueError(f"base must be one of {', '.join(get_args(Base))} or None, got {base!r}")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be finite and at least 0, got {weight}")
