"""Small ReLU networks without biases on a CUDA device, by tiny-cuda-nn where it is installed.

Its fully fused networks multiply in half precision. Their parameters are one flat vector: the weights [outputs, inputs]
of every layer, row by row, the last layer's outputs filled up to a multiple of 16. As in `hash_cuda`, the caller's
weights take the place of the module's own for the length of a call.

Symbols: N rows, D inputs, W width, O outputs.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nfc_splat.rendering.kernels.hash_cuda import tiny_cuda_nn

WIDTHS = (16, 32, 64, 128)
ALIGNMENT = 16


def usable(inputs: int, width: int, hidden: int) -> bool:
    """Whether tiny-cuda-nn is there and has fused networks of this shape."""
    return inputs % ALIGNMENT == 0 and width in WIDTHS and hidden > 0 and tiny_cuda_nn() is not None


@cache
def _network(inputs: int, outputs: int, width: int, hidden: int) -> torch.nn.Module:
    settings = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": width,
        "n_hidden_layers": hidden,
    }
    return tiny_cuda_nn().Network(inputs, outputs, settings)


def fused_network(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """[N, O] float32 outputs, differentiable in everything.

    Args:
        x: [N, D] on a CUDA device.
        weights: [W, D], [W, W], ..., [O, W], at least two.
    """
    *hidden, last = weights
    padded = F.pad(last, (0, 0, 0, -len(last) % ALIGNMENT))
    parameters = torch.cat([weight.reshape(-1) for weight in (*hidden, padded)])
    network = _network(x.shape[1], len(last), len(hidden[0]), len(hidden))
    return torch.func.functional_call(network, {"params": parameters}, (x,)).float()
