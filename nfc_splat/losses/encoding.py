"""The target encoding of Neural Field Classifiers (NFC, ICLR 2024, arXiv 2403.01058), and three others.

Symbols: `*shape` is the shape of decoded values, as a rule `[..., 3]`; L is `n_logits`, the logits per value; p_k the
probability of logit k; n a grey level in 0..255.

- `TargetEncoding(kind)`: [*shape, L] logits -> probabilities -> [*shape] values in [0, 1], and values -> code.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nfc_splat.losses.reduction import working_precision

Kind = Literal["binary", "gray", "one_hot", "thermometer"]

LEVELS = 256
STEPS = LEVELS - 1  # between black and white: a value is its level / STEPS


class TargetEncoding(nn.Module):
    """A code for 256 grey levels, and the soft decoding that makes a colour head of it.

    | kind | logits | code of level n | `activate` | `decode(p)` |
    |---|---|---|---|---|
    | "binary" | 8 | bits of n, most significant first | sigmoid | sum of p_k (128, 64, ..., 1)_k / 255 |
    | "gray" | 8 | bits of n xor (n >> 1), most significant first | sigmoid | expected level of independent bits / 255 |
    | "one_hot" | 256 | 1 at n | softmax | sum of p_k k / 255 |
    | "thermometer" | 255 | n ones, then zeros | sigmoid | sum of p_k / 255 |

    Each `decode` is the expected level divided by 255, exact on codes, and in [0, 1] for probabilities. All but "gray"
    are linear, so that decoding each sample and compositing the values, or compositing probabilities and decoding
    those, is the same; decoding first moves less memory. Gray-coded samples must be decoded first.

    The Gray decode: binary bit i is the parity of Gray bits 0..i, and the parity of independent bits has
    `E[(-1)^parity] = prod (1 - 2 p_k)`, hence `P(bit i) = (1 - prod_{k <= i} (1 - 2 p_k)) / 2`. Where several p_k are
    1/2 (a head with zero weights) only the first of them receives a gradient through it; `bitwise_classification_loss`
    has no such saddle.

    As a head: a layer with `3 * n_logits` outputs, then `encoding(x.unflatten(-1, (3, encoding.n_logits)))`, which is
    channel-major and most significant bit first, as in the authors' code.

    Args:
        kind: "binary" (the paper's), "gray", "one_hot" or "thermometer".

    Attributes:
        kind: as given.
        n_logits: logits per value, L.
        weights: [L] buffer that follows `.to()` and is not saved: how many levels each probability is worth. The
            numbers are whole, hence exact in every floating dtype.

    Raises:
        ValueError: the kind is unknown.

    Example:
        >>> encoding = TargetEncoding("binary")
        >>> encoding.encode(torch.tensor(203 / 255)).tolist()
        [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
        >>> encoding(torch.zeros(4, 3, 8)).unique().item()
        0.5
    """

    weights: Tensor

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        self.kind = kind
        if kind == "one_hot":
            weights = torch.arange(LEVELS, dtype=torch.float32)
        elif kind == "thermometer":
            weights = torch.ones(STEPS)
        else:
            weights = torch.tensor([128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0])
        self.n_logits = len(weights)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Values of logits: `decode(activate(logits))`, [*shape, L] -> [*shape] in [0, 1]."""
        return self.decode(self.activate(logits))

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities of logits, [*shape, L] -> [*shape, L]: softmax for "one_hot", sigmoid for the others."""
        return logits.softmax(-1) if self.kind == "one_hot" else logits.sigmoid()

    def levels(self, values: Tensor) -> Tensor:
        """Grey levels of values: `round(255 v)` clamped to 0..255 (NaN is 0), [*shape] -> [*shape] int64.

        Raises:
            ValueError: the values are not floating-point.
        """
        (values,) = working_precision(values)
        return (values.detach() * STEPS).nan_to_num(0.0).round().clamp(0, STEPS).long()

    def encode(self, values: Tensor) -> Tensor:
        """The code of each value, without a gradient.

        Args:
            values: [*shape] in [0, 1]; clamped to it, and rounded to the nearest of the 256 levels.

        Returns:
            [*shape, L] zeros and ones, in the dtype of `values`. `decode(encode(n / 255)) == n / 255` exactly.

        Raises:
            ValueError: the values are not floating-point (divide 8-bit images by 255 first).
        """
        level = self.levels(values)[..., None]
        steps = torch.arange(self.n_logits, device=values.device)
        if self.kind == "one_hot":
            code = level == steps
        elif self.kind == "thermometer":
            code = level > steps
        else:
            word = level ^ (level >> 1) if self.kind == "gray" else level
            code = (word >> (self.n_logits - 1 - steps)) & 1
        return code.to(values.dtype)

    def decode(self, probabilities: Tensor) -> Tensor:
        """The expected value under the probabilities; differentiable, and never rounded.

        Args:
            probabilities: [*shape, L] in [0, 1]; those of "one_hot" sum to one as a rule. Composited ones are welcome:
                where nothing was hit they are all 0 and decode to 0.

        Returns:
            [*shape] in [0, 1], float32 or wider.

        Raises:
            ValueError: the last axis is not L long.
        """
        if probabilities.shape[-1:] != (self.n_logits,):
            raise ValueError(
                f"{self.kind} probabilities must have shape [..., {self.n_logits}], got {tuple(probabilities.shape)}"
            )
        (probabilities,) = working_precision(probabilities)
        weights = self.weights.to(probabilities)
        if self.kind == "gray":
            return _expected_gray_level(probabilities, weights) / STEPS
        # not a matrix product: autocast would round the probabilities to 8 bits of mantissa before it
        return (probabilities * weights).sum(-1) / STEPS

    def extra_repr(self) -> str:
        return f"{self.kind!r}, n_logits={self.n_logits}"


def _expected_gray_level(probabilities: Tensor, weights: Tensor) -> Tensor:
    """Expected level of independent Gray bits, [*shape, 8] -> [*shape] in [0, 255].

    Twice the level is `255 - sum_i w_i prod_{k <= i} s_k` with `s = 1 - 2 p`; Horner's rule from the last bit gives the
    sum without dividing by a sign that may be 0.
    """
    total = torch.zeros_like(probabilities[..., 0])
    for sign, weight in zip((1 - 2 * probabilities).flip(-1).unbind(-1), weights.flip(-1).unbind(-1), strict=True):
        total = sign * (weight + total)
    return (STEPS - total) / 2
