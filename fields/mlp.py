"""Multilayer perceptrons of the marched fields, with a fast path for ReLU networks on the CPU.

Symbols: N rows (samples), D inputs, W width, O outputs. A layer is a linear map and, but for the last, an activation;
layers listed in `skips` hand [x, h] (the network's input in front of their activation) to the next one.

The fast path is one `autograd.Function`. It works through the rows in blocks that stay in cache, keeps the activations
in buffers that outlive the step (fresh memory costs more in page faults than in arithmetic), and its backward pass
leaves out rows whose incoming gradient is exactly zero: samples that no pixel sees contribute nothing to any gradient.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function

Activation = Literal["relu", "sine", "gaussian"]

OMEGA = 30.0  # frequency factor of sine layers (Sitzmann et al. 2020, section 3.2)
GAUSSIAN_A = 0.1  # standard deviation of Gaussian activations
BLOCK_BYTES = 2**22  # of one activation of a block: measured; smaller ones cost calls, larger ones leave the cache
GATHER_BELOW = 0.8  # share of rows with a gradient under which they are gathered first


class Sine(nn.Module):
    """sin(omega x)."""

    def forward(self, x: Tensor) -> Tensor:
        return (OMEGA * x).sin()


class Gaussian(nn.Module):
    """exp(-x^2 / (2 a^2)) (Ramasinghe & Lucey 2022, Table 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.square() * (-0.5 / GAUSSIAN_A**2)).exp()


ACTIVATIONS = {"relu": nn.ReLU, "sine": Sine, "gaussian": Gaussian}


@torch.no_grad()
def initialise_sine(layer: nn.Linear, first: bool = False) -> None:
    """Weights of a layer among sine layers (Sitzmann et al. 2020, section 3.2): U(-1/n, 1/n) for the n inputs of the
    `first` one, U(-sqrt(6/n)/omega, sqrt(6/n)/omega) for those of another."""
    bound = 1 / layer.in_features if first else math.sqrt(6 / layer.in_features) / OMEGA
    layer.weight.uniform_(-bound, bound)


class MLP(nn.Module):
    """A multilayer perceptron; `layers` holds its `depth + 1` linear maps (`depth` if `out_dim` is None).

    With `skip_dim`, a skip hands on the first `skip_dim` numbers of the input alone.

    Initialisation: "relu" is torch's default, as nerf-pytorch's. "sine" is SIREN's (`initialise_sine`), omega 30 in
    every layer and torch's default biases. "gaussian" is torch's default with a = 0.1: the authors report that Gaussian
    networks need no particular initialisation.

    The fast path serves ReLU networks with float32 input on the CPU, and is once differentiable: asked for a graph of
    its backward pass (`create_graph`), it raises a RuntimeError. Fields that differentiate twice (signed distances)
    take `fused=False`, the plain torch path, which every other case takes by itself.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int | None,
        width: int,
        depth: int,
        *,
        activation: Activation = "relu",
        skips: Sequence[int] = (),
        bf16: bool = False,
        fused: bool = True,
        skip_dim: int | None = None,
    ):
        """Args:
        in_dim: D.
        out_dim: O, or None for a trunk whose output is its last activation [N, W].
        width: W. depth: number of hidden layers, each with an activation; 0 is one linear map.
        skips: indices of hidden layers after which the input is concatenated in front; not the last layer of a trunk.
        bf16: multiply in bfloat16 (activations too); sums and gradients of the parameters stay
            float32, and outputs are float32 numbers with the eight bits of a bfloat16.
        fused: allow the fast path.
        skip_dim: how many numbers of the input a skip concatenates; None for all.
        """
        super().__init__()
        if not set(skips) <= set(range(depth - (out_dim is None))):
            raise ValueError(f"skips must name hidden layers that another layer follows; got {tuple(skips)} of {depth}")
        self.in_dim, self.out_dim = in_dim, width if out_dim is None else out_dim
        self.activation, self.skips, self.bf16, self.fused = activation, tuple(skips), bf16, fused
        self.act, self.skip_dim = ACTIVATIONS[activation](), in_dim if skip_dim is None else skip_dim
        inputs = [in_dim] + [width + self.skip_dim * (index in skips) for index in range(depth)]
        outputs = [width] * depth + ([] if out_dim is None else [out_dim])
        self.hidden = depth
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(inputs, outputs, strict=False))
        if activation == "sine":
            for index, layer in enumerate(self.layers):
                initialise_sine(layer, first=index == 0)

    def forward(self, x: Tensor) -> Tensor:
        """x: [*, D] -> [*, O] float32 (float64 for float64 input and parameters)."""
        if self.fused and self.activation == "relu" and x.device.type == "cpu" and x.dtype == torch.float32:
            parameters = [p for layer in self.layers for p in (layer.weight, layer.bias)]
            rows = x.reshape(-1, self.in_dim)
            y = _FusedReLU.apply(rows, self.skips, self.hidden, self.bf16, torch.is_grad_enabled(), *parameters)
            return y.view(*x.shape[:-1], self.out_dim)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            y = self._plain(x)
        return y.to(x.dtype)

    def _plain(self, x: Tensor) -> Tensor:
        h = x
        for index, layer in enumerate(self.layers):
            h = layer(h)
            if index < self.hidden:
                h = self.act(h)
            if index in self.skips:
                h = torch.cat([x[..., : self.skip_dim], h], -1)
        return h


class BufferPool:
    """Memory that outlives the training step: large tensors are reused instead of allocated anew.

    `take` lends the smallest free buffer that is large enough; a `Lease` gives it back, at the latest when it dies.
    """

    def __init__(self):
        self._free: list[Tensor] = []
        self._lock = threading.Lock()

    def take(self, sizes: Sequence[tuple[int, int]], dtype: torch.dtype) -> "Lease":
        """Uninitialised matrices of `sizes` in one buffer."""
        counts = [rows * columns for rows, columns in sizes]
        need = sum(-(-count // 32) * 32 for count in counts) * dtype.itemsize
        with self._lock:
            fitting = [buffer for buffer in self._free if buffer.numel() >= need]
            if fitting:
                buffer = min(fitting, key=Tensor.numel)
            elif self._free:  # too small: it makes room for the larger one
                buffer = max(self._free, key=Tensor.numel)
            if self._free:
                self._free = [other for other in self._free if other is not buffer]
        if not fitting:
            buffer = None
            with torch.inference_mode(False):
                buffer = torch.empty(need, dtype=torch.uint8)
        return Lease(self, buffer, sizes, dtype)

    def give(self, buffer: Tensor) -> None:
        with self._lock:
            self._free.append(buffer)


class Lease:
    """Matrices lent by a `BufferPool`; `end` or death returns them."""

    def __init__(self, pool: BufferPool, buffer: Tensor, sizes: Sequence[tuple[int, int]], dtype: torch.dtype):
        self._pool, self._buffer = pool, buffer
        flat, start, self.matrices = buffer[: buffer.numel() // 4 * 4].view(dtype), 0, []
        for rows, columns in sizes:
            self.matrices.append(flat[start : start + rows * columns].view(rows, columns))
            start += -(-rows * columns // 32) * 32  # rows of numbers start at cache lines

    def end(self) -> None:
        if self._buffer is not None:
            self._pool.give(self._buffer)
        self._buffer, self.matrices = None, []

    def __del__(self):
        self.end()


POOL = BufferPool()


def active_rows(*gradients: Tensor) -> Tensor | None:
    """Indices [A] of the rows in which some gradient is not zero; None when so many are that gathering does not pay.

    Args:
        gradients: [N, *] each.
    """
    total = sum(gradient.abs() @ gradient.new_ones(gradient.shape[1]) for gradient in gradients)
    rows = total.nonzero().squeeze(1)  # sums of absolute values: none cancels, and NaN counts
    return rows if len(rows) < GATHER_BELOW * len(total) else None


def chosen_rows(matrix: Tensor, rows: slice | Tensor) -> Tensor:
    """matrix[rows]; for a list of rows the copy is made by `index_select`, which is faster."""
    return matrix[rows] if isinstance(rows, slice) else matrix.index_select(0, rows)


class Layers:
    """The linear maps of one call in the dtype of its products."""

    def __init__(self, parameters: Sequence[Tensor], skips: Sequence[int], hidden: int, bf16: bool):
        """Args:
        parameters: weight [O, I] and bias [O] of every layer, alternating.
        skips, hidden: as in `MLP`.
        """
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.weights = [weight.detach().to(self.dtype) for weight in parameters[::2]]
        self.biases = [bias.detach().to(self.dtype) for bias in parameters[1::2]]
        self.skips, self.hidden = skips, hidden
        self.widths = [len(weight) for weight in self.weights]
        self.block = max(1, BLOCK_BYTES // (max(self.widths) * self.dtype.itemsize))

    def __len__(self) -> int:
        return len(self.weights)

    def forward(self, x: Tensor, out: Sequence[Tensor]) -> None:
        """Fill `out`, the layers' outputs [B, O] of one block, hidden ones after ReLU. x: [B, D]."""
        h = x
        for index, (weight, bias, y) in enumerate(zip(self.weights, self.biases, out, strict=True)):
            inputs = h.shape[1]
            if index - 1 in self.skips:
                joined = weight.shape[1] - inputs
                torch.addmm(bias, x[:, :joined], weight[:, :joined].t(), out=y).addmm_(h, weight[:, joined:].t())
            else:
                torch.addmm(bias, h, weight.t(), out=y)
            if index < self.hidden:
                y.clamp_(min=0)
            h = y

    def backward(
        self,
        x: Tensor,
        activations: Sequence[Tensor],
        v_out: Tensor,
        sums: Sequence["LinearGradient"],
        v_x: Tensor | None,
    ) -> None:
        """Add the gradients of one block to `sums`, one for each layer, and fill `v_x`.

        Args:
            x: [B, D]. activations: of the hidden layers, [B, W] each. v_out: [B, O] gradient of the output, of this
            dtype; overwritten. v_x: [B, D] float32 or None.
        """
        last, v = len(self) - 1, v_out
        if v_x is not None:
            v_x.zero_()
        for index in range(last, -1, -1):
            if index < self.hidden:
                torch.ops.aten.threshold_backward.grad_input(v, activations[index], 0, grad_input=v)
            h = activations[index - 1] if index else x
            skip = index - 1 in self.skips
            weight = self.weights[index]
            before = weight.shape[1] - h.shape[1] if skip else 0  # numbers of x that join h
            sums[index].add(v, *([x[:, :before], h] if skip else [h]))
            if v_x is not None and skip:
                v_x[:, :before].add_(v @ weight[:, :before])
            elif v_x is not None and index == 0:
                v_x.add_(v @ weight)
            if index:
                v = v @ weight[:, before:]


class LinearGradient:
    """Float32 gradients of one linear map, summed over blocks of rows."""

    def __init__(self, weight: Tensor) -> None:
        """weight: [O, I] in the dtype of the products."""
        self.weight, self.bias = torch.zeros(weight.shape), torch.zeros(len(weight))
        self._exact = weight.dtype == torch.float32

    def add(self, v: Tensor, *inputs: Tensor) -> None:
        """Add the products of the output's gradient v [B, O] with the map's inputs [B, I], given side by side."""
        start = 0
        for h in inputs:
            target = self.weight[:, start : start + h.shape[1]]
            if self._exact:
                target.addmm_(v.t(), h)
            else:
                target.add_(v.t() @ h)
            start += h.shape[1]
        self.bias.add_(v.sum(0))


class _FusedReLU(Function):
    """x [N, D] -> [N, O] float32 through `Layers`; the last layer is linear unless it is hidden too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, skips: tuple[int, ...], hidden: int, bf16: bool, recording: bool, *parameters: Tensor
    ) -> Tensor:
        """recording: whether the caller records a graph, which nothing in here can tell."""
        ctx.layers, ctx.lease = Layers(parameters, skips, hidden, bf16), None
        y = x.new_empty(len(x), ctx.layers.widths[-1])
        if recording and any(ctx.needs_input_grad):
            ctx.save_for_backward(x, *parameters)  # the parameters so that torch notices a change in between
            ctx.lease = _run(x, ctx.layers, y, keep=True)
        else:
            _run(x, ctx.layers, y, keep=False)
        return y

    @staticmethod
    def backward(ctx: Any, v_y: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError("the fast path of MLP cannot be differentiated twice (create_graph): use fused=False")
        x, *_ = ctx.saved_tensors
        layers, v_y = ctx.layers, v_y.contiguous()
        lease = ctx.lease or _run(x, layers, torch.empty_like(v_y), keep=True)  # again only with retain_graph
        kept, ctx.lease = lease.matrices, None
        sums, rows = [LinearGradient(weight) for weight in layers.weights], active_rows(v_y)
        v_x = None
        if ctx.needs_input_grad[0]:
            v_x = torch.empty_like(x) if rows is None else torch.zeros_like(x)
        for start in range(0, len(x) if rows is None else len(rows), layers.block):
            pick = slice(start, start + layers.block) if rows is None else rows[start : start + layers.block]
            block = [chosen_rows(tensor, pick) for tensor in (x, *kept)]
            v_block = None if v_x is None else torch.empty_like(block[0])
            v_out = chosen_rows(v_y, pick).to(layers.dtype, copy=layers.hidden == len(layers))
            layers.backward(block[0].to(layers.dtype), block[1:], v_out, sums, v_block)
            if v_x is not None:
                v_x[pick] = v_block
        lease.end()
        return v_x, None, None, None, None, *(part for total in sums for part in (total.weight, total.bias))


def _run(x: Tensor, layers: Layers, y: Tensor, keep: bool) -> Lease:
    """Fill y [N, O]; the lease holds the hidden activations, of all rows with `keep`, of one block otherwise."""
    rows = len(x) if keep else min(layers.block, len(x))
    lease = POOL.take([(rows, width) for width in layers.widths[: layers.hidden]], layers.dtype)
    for start in range(0, len(x), layers.block):
        block = x[start : start + layers.block].to(layers.dtype)
        place = slice(start, start + len(block)) if keep else slice(0, len(block))
        out = [matrix[place] for matrix in lease.matrices]
        target = y[start : start + layers.block]
        direct = layers.hidden < len(layers) and layers.dtype == y.dtype
        if direct:
            out.append(target)
        elif layers.hidden < len(layers):
            out.append(target.to(layers.dtype))
        layers.forward(block, out)
        if not direct:
            target.copy_(out[-1])
    return lease
