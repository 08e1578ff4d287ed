"""Signed distance networks: distance, features and the distance's gradient at points, in one pass.

The gradient is part of the network's output, computed by hand (a sweep back through the layers, written with ordinary
operations), so that a loss of it needs one ordinary backward pass and no second differentiation by autograd: the
encoding of the points may therefore be one that is differentiable only once, as the hash grid's kernels are.

Geometric initialisation (Atzmon and Lipman 2020, "SAL", Theorem 1, as in IDR and NeuS) makes the untrained network
about |x| - bias, or bias - |x| turned inside out.

Symbols: N points, E numbers of an encoded point, W width, F features beside the distance. Points are in [-1, 1]^3.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.fields.encodings import Positional
from nfc_splat.rendering.hash_encoding import HashLevels, hash_encode, hash_encode_with_jacobian

BETA = 100.0  # sharpness of the softplus
SKIP_SCALE = 1 / math.sqrt(2)


class Octaves(nn.Module):
    """[x, sin, cos at octaves, zeros]: `Positional` and its transposed Jacobian.

    Args:
        octaves: frequencies are 2^0 ... 2^(octaves - 1), without a factor pi.
        spare: zeros at the end, which SDFStudio reserves for hash features.
    """

    def __init__(self, octaves: int, spare: int = 0) -> None:
        super().__init__()
        self.waves, self.spare = Positional(3, octaves), spare
        self.out_dim = self.waves.out_dim + spare

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, 3] -> [N, E]."""
        return F.pad(self.waves(x), (0, self.spare))

    def with_pullback(self, x: Tensor) -> tuple[Tensor, "_WavesPullback"]:
        """The encoding, and what takes gradients by it [N, E] to gradients by x [N, 3]."""
        encoded = self(x)
        return encoded, _WavesPullback(encoded, self.waves.frequencies.to(x))


class _WavesPullback:
    def __init__(self, encoded: Tensor, frequencies: Tensor) -> None:
        self.encoded, self.frequencies = encoded, frequencies

    def __call__(self, v: Tensor) -> Tensor:
        shape = (len(v), len(self.frequencies), 2, 3)
        stop = 3 + 6 * len(self.frequencies)
        (sine, cosine), (v_sine, v_cosine) = (
            part[:, 3:stop].reshape(shape).unbind(2) for part in (self.encoded, v)
        )  # [N, octaves, 3] each
        slopes = (v_sine * cosine - v_cosine * sine) * self.frequencies[:, None]
        return v[:, :3] + slopes.sum(1)


class HashFeatures(nn.Module):
    """[x, hash features of x]: the grid lies over [-1, 1]^3.

    Attributes:
        table: [rows, features per level] the parameter.
        active: how many levels are in use, the coarsest ones; the features of the others are 0.
    """

    def __init__(self, levels: HashLevels, table: Tensor) -> None:
        super().__init__()
        self.levels, self.active = levels, levels.n_levels
        self.out_dim = 3 + levels.out_features
        self.table = nn.Parameter(table)

    def _used(self) -> tuple[Tensor, HashLevels, int]:
        """The table's rows and the levels in use, and the number of features that are not."""
        levels = self.levels
        if self.active >= levels.n_levels:
            return self.table, levels, 0
        sizes = levels.n_features, levels.log2_table_size, levels.base_resolution, levels.growth
        used = HashLevels(self.active, *sizes)
        return self.table[: used.rows], used, levels.out_features - used.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, 3] -> [N, E]."""
        table, levels, rest = self._used()
        return F.pad(torch.cat([x, hash_encode(0.5 * x + 0.5, table, levels)], 1), (0, rest))

    def with_pullback(self, x: Tensor) -> tuple[Tensor, "_HashPullback"]:
        """The encoding, and what takes gradients by it [N, E] to gradients by x [N, 3]."""
        table, levels, rest = self._used()
        features, jacobian = hash_encode_with_jacobian(0.5 * x + 0.5, table, levels)
        return F.pad(torch.cat([x, features], 1), (0, rest)), _HashPullback(jacobian)


class _HashPullback:
    def __init__(self, jacobian: Tensor) -> None:
        self.jacobian = jacobian

    def __call__(self, v: Tensor) -> Tensor:
        through = v[:, 3 : 3 + self.jacobian.shape[1], None].mul(self.jacobian).sum(1)
        return v[:, :3] + 0.5 * through


class NormalizedLinear(nn.Module):
    """A linear map whose rows are g v / |v| (Salimans and Kingma 2016, Eq. 2), with g and v trained.

    Attributes:
        length: g, [O, 1]. direction: v, [O, I]. bias: [O].
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """weight: [O, I], bias: [O]: what the map starts as."""
        super().__init__()
        self.length = nn.Parameter(weight.norm(dim=1, keepdim=True))
        self.direction = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())

    @property
    def weight(self) -> Tensor:
        return torch._weight_norm(self.direction, self.length, 0)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, I] -> [N, O]."""
        return F.linear(x, self.weight, self.bias)


class _Softplus(Function):
    """log(1 + exp(BETA z)) / BETA and its slope, sigmoid(BETA z): [N, W] each."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        slope = (BETA * z).sigmoid()
        ctx.save_for_backward(slope)
        return F.softplus(z, BETA), slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_value: Tensor, v_slope: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return slope * torch.addcmul(v_value, v_slope * BETA, 1 - slope)


class SDFNetwork(nn.Module):
    """Signed distance, features and gradient at points.

    `depth` hidden layers of `width` with softplus 100 between, then a linear one to 1 + `features` numbers. With
    `skip`, the layer of that index gets [h, encoded point] / sqrt(2), and the one before it has as many outputs less.

    Attributes:
        encoding: `Octaves` or `HashFeatures`; the first three numbers that it gives are the point.
        layers: `depth + 1` linear maps, with weight norm or without.
    """

    def __init__(
        self,
        encoding: Octaves | HashFeatures,
        *,
        width: int = 256,
        depth: int = 8,
        features: int = 256,
        skip: int | None = 4,
        bias: float = 0.5,
        inside_out: bool = False,
        weight_norm: bool = True,
    ) -> None:
        """Args:
        features: F.
        bias: radius of the sphere that the network starts as, about.
        inside_out: positive inside of the sphere: for rooms.
        weight_norm: train length and direction of the layers' rows apart.
        """
        super().__init__()
        self.encoding, self.skip, self.out_features = encoding, skip, features
        inputs = [encoding.out_dim] + [width] * depth
        outputs = [width] * depth + [1 + features]
        if skip is not None:
            outputs[skip - 1] -= encoding.out_dim
        weights = _geometric(inputs, outputs, encoding.out_dim, skip, bias, inside_out)
        make = NormalizedLinear if weight_norm else _plain_linear
        self.layers = nn.ModuleList(make(weight, b) for weight, b in weights)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [N, 3] -> distance [N], features [N, F] and gradient [N, 3]; differentiable once in the parameters."""
        encoded, pullback = self.encoding.with_pullback(x)
        weights = [layer.weight for layer in self.layers]
        h, slopes = encoded, []
        for index, (weight, layer) in enumerate(zip(weights, self.layers, strict=True)):
            if index == self.skip:
                h = torch.cat([h, encoded], 1) * SKIP_SCALE
            h = F.linear(h, weight, layer.bias)
            if index < len(weights) - 1:
                h, slope = _Softplus.apply(h)
                slopes.append(slope)
        return h[:, 0], h[:, 1:], pullback(self._sweep(weights, slopes))

    def _sweep(self, weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
        """[N, E] gradient of the distance by the encoded points."""
        v: Tensor = weights[-1][:1]
        skipped: Tensor | float = 0.0
        last = len(weights) - 1
        for index in range(last, -1, -1):
            if index < last:
                v = (v * slopes[index]) @ weights[index]
            if index == self.skip:
                v = v * SKIP_SCALE
                v, skipped = v.split([v.shape[1] - self.encoding.out_dim, self.encoding.out_dim], 1)
        return v + skipped

    def distance(self, x: Tensor) -> Tensor:
        """x: [N, 3] -> distance [N] alone; without a gradient of its own."""
        encoded = h = self.encoding(x)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if index == self.skip:
                h = torch.cat([h, encoded], 1) * SKIP_SCALE
            if index == last:
                return F.linear(h, layer.weight[:1], layer.bias[:1])[:, 0]
            h = F.softplus(layer(h), BETA)


def _plain_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer


def _geometric(
    inputs: list[int], outputs: list[int], encoded: int, skip: int | None, bias: float, inside_out: bool
) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of every layer, by torch's global generator."""
    layers = []
    last = len(inputs) - 1
    for index, (i, o) in enumerate(zip(inputs, outputs, strict=True)):
        b = torch.zeros(o)
        if index == last:
            sign = -1.0 if inside_out else 1.0
            weight = sign * math.sqrt(math.pi / i) + 1e-4 * torch.randn(o, i)
            b -= sign * bias
        else:
            weight = torch.randn(o, i) * math.sqrt(2 / o)
            if index == 0:
                weight[:, 3:] = 0
            if index == skip:
                weight[:, i - (encoded - 3) :] = 0
        layers.append((weight, b))
    return layers
