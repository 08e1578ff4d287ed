"""Input encodings of coordinate networks: what a point or a direction becomes before the first linear layer.

Symbols: N points of D coordinates, L octaves, F features. Every encoding is a module with `in_dim` (D) and `out_dim`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from nfc_splat.errors import UserError
from nfc_splat.rendering.hash_encoding import HashLevels, hash_encode

Encoding = Literal["identity", "positional", "fourier", "hash"]


class Identity(nn.Module):
    """The coordinates themselves."""

    def __init__(self, in_dim: int):
        super().__init__()
        self.in_dim = self.out_dim = in_dim

    def forward(self, x: Tensor) -> Tensor:
        """x: [*, D]; the same."""
        return x


class Positional(nn.Module):
    """Sines and cosines of the coordinates at octaves, after the coordinates (Mildenhall et al. 2020, Eq. 4).

    As in the released code, and unlike the paper's text, the coordinates are kept and there is no factor pi.

    Attributes:
        octaves: frequencies are 2^0 ... 2^(octaves - 1).
        axis_major: False orders NeRF's way, per frequency the sines of all axes and then their cosines. True orders
            DVGO's way: all sines (frequencies of the first axis, then of the second, ...) and then all cosines.
    """

    def __init__(self, in_dim: int, octaves: int, axis_major: bool = False):
        super().__init__()
        self.in_dim, self.octaves, self.axis_major = in_dim, octaves, axis_major
        self.out_dim = in_dim * (1 + 2 * octaves)
        self.register_buffer("frequencies", 2.0 ** torch.arange(octaves), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [*, D] -> [*, D (1 + 2 L)]."""
        frequencies = self.frequencies.to(x.dtype)
        if self.axis_major:
            angles = (x[..., :, None] * frequencies).flatten(-2)  # [*, D L]
            return torch.cat([x, angles.sin(), angles.cos()], -1)
        angles = x[..., None, :] * frequencies[:, None]  # [*, L, D]
        waves = torch.stack([angles.sin(), angles.cos()], -2).flatten(-3)
        return torch.cat([x, waves], -1)


class FourierFeatures(nn.Module):
    """Sines and cosines of random projections (Tancik et al. 2020, Eq. 5): [cos(2 pi B x), sin(2 pi B x)].

    The rows of B [features, D] are drawn once from N(0, scale^2) with torch's global generator, and never trained; B
    travels with the checkpoint.
    """

    def __init__(self, in_dim: int, features: int = 128, scale: float = 1.0):
        super().__init__()
        self.in_dim, self.out_dim = in_dim, 2 * features
        self.register_buffer("projection", torch.randn(features, in_dim) * scale)

    def forward(self, x: Tensor) -> Tensor:
        """x: [*, D] -> [*, 2 features]."""
        angles = 2 * torch.pi * (x @ self.projection.to(x.dtype).T)
        return torch.cat([angles.cos(), angles.sin()], -1)


class HashEncoding(nn.Module):
    """Trained features in hash tables of several resolutions (Mueller et al. 2022), over a box.

    `table` [rows, F] is the parameter. Points outside the box count as the nearest ones inside.
    """

    def __init__(self, box: Tensor, levels: HashLevels):
        """box: [2, 3] lower and upper corner."""
        super().__init__()
        self.in_dim, self.out_dim, self.levels = 3, levels.out_features, levels
        self.table = nn.Parameter(levels.table(device=box.device))
        self.register_buffer("box", box.clone())

    def forward(self, x: Tensor) -> Tensor:
        """x: [*, 3] -> [*, L F]."""
        lower, upper = self.box
        unit = (x - lower) / (upper - lower)
        return hash_encode(unit.reshape(-1, 3), self.table, self.levels).view(*x.shape[:-1], self.out_dim)


def make_encoding(
    encoding: Encoding,
    in_dim: int = 3,
    *,
    octaves: int = 10,
    axis_major: bool = False,
    features: int = 128,
    scale: float = 1.0,
    box: Tensor | None = None,
    levels: HashLevels | None = None,
) -> nn.Module:
    """The encoding that a method's configuration names.

    Args:
        encoding: "identity", "positional", "fourier" or "hash" (Mueller et al. 2022; three coordinates only).
        in_dim: D.
        octaves, axis_major: of "positional".
        features, scale: of "fourier".
        box, levels: of "hash": [2, 3] what is encoded, and its tables.

    Raises:
        UserError: an unknown name, or "hash" of other than three coordinates.
        ValueError: "hash" without a box or levels.
    """
    if encoding == "identity":
        return Identity(in_dim)
    if encoding == "positional":
        return Positional(in_dim, octaves, axis_major)
    if encoding == "fourier":
        return FourierFeatures(in_dim, features, scale)
    if encoding == "hash":
        if in_dim != 3:
            raise UserError(f"--encoding hash: it encodes 3 coordinates, not {in_dim}; choose another encoding")
        if box is None or levels is None:
            raise ValueError("the hash encoding needs a box and levels")
        return HashEncoding(box, levels)
    raise UserError(f"--encoding {encoding}: expected one of identity, positional, fourier, hash")
