"""The last step of every colour network: logits become colours, by a sigmoid or by NFC's target encoding.

Symbols: M samples, L logits per colour channel.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nfc_splat.losses import TargetEncoding
from nfc_splat.losses.reduction import working_precision

Encoding = Literal["none", "binary", "gray", "onehot", "thermometer"]


class ColorHead(nn.Module):
    """Decodes the logits that end a colour network (NFC, arXiv 2403.01058, section 3).

    "none" is the usual head: one logit per channel and a sigmoid. The others are the codes of `TargetEncoding`, with as
    many logits per channel as the code has digits; logits come channel by channel, the most significant digit first.

    Args:
        encoding: "none", "binary" (the paper's), "gray", "onehot" or "thermometer".

    Attributes:
        encoding: the `TargetEncoding`, or None for "none".
        n_logits: L: 1, 8, 8, 256 or 255.
        out_features: 3 L, how wide the network's last layer must be.

    Raises:
        ValueError: the encoding is unknown.
    """

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        if encoding not in get_args(Encoding):
            raise ValueError(f"encoding must be one of {', '.join(get_args(Encoding))}, got {encoding!r}")
        kinds = {"onehot": "one_hot"}
        self.encoding = None if encoding == "none" else TargetEncoding(kinds.get(encoding, encoding))
        self.n_logits = 1 if self.encoding is None else self.encoding.n_logits
        self.out_features = 3 * self.n_logits

    def forward(self, logits: Tensor, bits: bool = False) -> Tensor:
        """Colours of logits.

        Args:
            logits: [M, 3 L] in any floating dtype; half precision is widened to float32.
            bits: also return the digits' probabilities, which the bit-wise loss composites.

        Returns:
            [M, 3] colours in [0, 1], or with `bits` [M, 3 + 3 L]: colours, then probabilities, a `.view(M, 3, L)`.

        Raises:
            ValueError: the last axis is not 3 L long, or there are no digits ("none").
        """
        if logits.ndim != 2 or logits.shape[1] != self.out_features:
            raise ValueError(f"logits must be [M, {self.out_features}]; got {list(logits.shape)}")
        (logits,) = working_precision(logits)
        if self.encoding is None:
            if bits:
                raise ValueError('the bit-wise loss needs bits: a colour head with encoding "none" has no digits')
            return logits.sigmoid()
        if bits:
            probabilities = self.encoding.activate(logits.unflatten(-1, (3, self.n_logits)))
            return torch.cat([self.encoding.decode(probabilities), probabilities.flatten(1)], 1)
        if self.encoding.kind == "binary" and logits.device.type == "cpu" and logits.dtype == torch.float32:
            from nfc_splat.rendering.kernels.decode_cpu import decode_binary

            return decode_binary(logits)
        return self.encoding(logits.unflatten(-1, (3, self.n_logits)))

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}"
