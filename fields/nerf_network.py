"""NeRF's network (Mildenhall et al. 2020, Fig. 7 of the supplement, as released): density first, colour where there is
any.

    encoded point -> trunk (ReLU layers, the point joins again after half of them) -> density logit
                     trunk -> feature -> [feature, encoded direction] -> view layer (ReLU) -> colour logits

The feature layer has no activation, so it and the view layer behind it are one linear map, whose matrix is the product
of theirs: a tenth of the work saved, the same function and gradients but for rounding. Colours are only computed where
the density is positive, as no other sample has a weight; and the backward pass only visits rows with a gradient.

Symbols: M samples of R rays, K samples with positive density, E and V numbers of an encoded point and direction, W
width, O colour logits. A gradient of the loss with respect to x is `v_x`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nfc_splat.fields.mlp import MLP, POOL, Activation, Layers, Lease, LinearGradient, active_rows, initialise_sine


class NeRFNetwork(nn.Module):
    """Density and colour logits of encoded samples.

    Attributes:
        trunk: the layers that see the point.
        density, feature, view, color: the linear maps after it.
    """

    def __init__(
        self,
        point_dim: int,
        view_dim: int,
        color_dim: int,
        *,
        width: int = 256,
        depth: int = 8,
        activation: Activation = "relu",
        bf16: bool = False,
    ) -> None:
        """Args:
        point_dim: E. view_dim: V. color_dim: O. width: W, even; the view layer has half of it.
        depth: layers of the trunk, at least 2.
        activation: of trunk and view layer; initialised as `MLP`'s.
        bf16: multiply in bfloat16.
        """
        super().__init__()
        skips = (depth // 2,) if depth > 2 else ()
        self.trunk = MLP(point_dim, None, width, depth, activation=activation, skips=skips, bf16=bf16)
        self.density = nn.Linear(width, 1)
        self.feature = nn.Linear(width, width)
        self.view = nn.Linear(width + view_dim, width // 2)
        self.color = nn.Linear(width // 2, color_dim)
        if activation == "sine":
            for layer in (self.density, self.feature, self.view, self.color):
                initialise_sine(layer)

    def forward(
        self, points: Tensor, views: Tensor, ray: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Args:
            points: [M, E] encoded.
            views: [R, V] encoded directions of the rays; no gradient reaches them.
            ray: [M] int64, each sample's ray.
            noise: [M] added to the density logits.

        Returns:
            densities [M], at least 0; colour logits [K, O] of the samples whose density is positive; their rows [K].
        """
        width = self.feature.in_features
        view_weight = self.view.weight
        mixed = view_weight[:, :width] @ self.feature.weight
        bias = view_weight[:, :width] @ self.feature.bias + self.view.bias
        head = (self.density.weight, self.density.bias, torch.cat([mixed, view_weight[:, width:]], 1), bias)
        head += (self.color.weight, self.color.bias)
        trunk, views = self.trunk, views.detach()
        if trunk.fused and trunk.activation == "relu" and points.device.type == "cpu" and points.dtype == torch.float32:
            layers = [p for layer in trunk.layers for p in (layer.weight, layer.bias)]
            recording = torch.is_grad_enabled()
            return _FusedNeRF.apply(points, views, ray, noise, trunk.skips, trunk.bf16, recording, *head, *layers)
        with torch.autocast(points.device.type, torch.bfloat16, enabled=trunk.bf16):
            density, color, rows = self._plain(points, views, ray, noise, head)
        return density.to(points.dtype), color.to(points.dtype), rows

    def _plain(
        self, points: Tensor, views: Tensor, ray: Tensor, noise: Tensor | None, head: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        density_weight, density_bias, mixed, bias, *color = head
        h = self.trunk(points)
        density = nn.functional.linear(h, density_weight, density_bias)[:, 0]
        density = (density if noise is None else density + noise).relu()
        rows = density.detach().nonzero()[:, 0]
        seen = torch.cat([h[rows], views[ray[rows]]], 1)
        return density, nn.functional.linear(self.trunk.act(nn.functional.linear(seen, mixed, bias)), *color), rows


class _Head:
    """What follows the trunk, in the dtype of the products."""

    def __init__(self, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        parameters = [p.detach().to(dtype) for p in parameters]
        self.density, self.density_bias, view, self.view_bias, self.color, self.color_bias = parameters
        width = self.density.shape[1]
        self.mixed, self.direction = view[:, :width], view[:, width:]
        self.weights = (self.density, view, self.color)


class _FusedNeRF(Function):
    """`NeRFNetwork.forward` in blocks of rows; `recording` a graph or not; of the parameters six are the head's."""

    @staticmethod
    def forward(ctx: Any, points, views, ray, noise, skips, bf16, recording, *parameters):
        ctx.layers = Layers(parameters[6:], skips, len(parameters[6:]) // 2, bf16)
        ctx.head = _Head(parameters[:6], ctx.layers.dtype)
        keep = recording and any(ctx.needs_input_grad)  # in here torch always says that no graph is recorded
        density, logits, rows, lease = _run(points, views, ray, noise, ctx.layers, ctx.head, keep)
        if keep:
            ctx.save_for_backward(points, views, ray, noise, rows, *parameters)
            ctx.lease = lease
        ctx.mark_non_differentiable(rows)
        return density, logits, rows

    @staticmethod
    def backward(ctx: Any, v_density: Tensor, v_logits: Tensor, _):
        if torch.is_grad_enabled():
            raise RuntimeError("this network cannot be differentiated twice (create_graph): use trunk.fused = False")
        points, views, ray, noise, rows, *_ = ctx.saved_tensors
        layers, head = ctx.layers, ctx.head
        lease = ctx.lease or _run(points, views, ray, noise, layers, head, True)[3]  # again only with retain_graph
        ctx.lease, v_points = None, None
        v_density = v_density[rows, None]
        active = active_rows(v_density, v_logits)
        if ctx.needs_input_grad[0]:
            v_points = torch.zeros_like(points)
        trunk = [LinearGradient(weight) for weight in layers.weights]
        heads = [LinearGradient(weight) for weight in head.weights]
        *kept, kept_view = lease.matrices
        kept_view = kept_view[: len(rows)]
        for start in range(0, len(rows) if active is None else len(active), layers.block):
            pick = slice(start, start + layers.block) if active is None else active[start : start + layers.block]
            row = rows[pick]
            h = [matrix.index_select(0, row) for matrix in kept]
            v_h = _head_backward(head, h[-1], kept_view[pick], views[ray[row]], v_density[pick], v_logits[pick], heads)
            x = points.index_select(0, row)
            v_x = None if v_points is None else torch.empty_like(x)
            layers.backward(x.to(layers.dtype), h, v_h, trunk, v_x)
            if v_points is not None:
                v_points[row] = v_x
        lease.end()
        sums = (part for total in (*heads, *trunk) for part in (total.weight, total.bias))
        return v_points, None, None, None, None, None, None, *sums


def _run(
    points: Tensor, views: Tensor, ray: Tensor, noise: Tensor | None, layers: Layers, head: _Head, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Lease]:
    """The three outputs, and the lease of the activations: the trunk's, and the view layer's of the K rows. They are
    those of all rows with `keep`, of the last block otherwise."""
    count = len(points) if keep else min(layers.block, len(points))
    lease = POOL.take([(count, width) for width in (*layers.widths, len(head.mixed))], layers.dtype)
    *kept, kept_view = lease.matrices
    density, logits, rows, found = points.new_empty(len(points)), [], [], 0
    for start in range(0, len(points), layers.block):
        x = points[start : start + layers.block].to(layers.dtype)
        place = slice(start, start + len(x)) if keep else slice(0, len(x))
        h = [matrix[place] for matrix in kept]
        layers.forward(x, h)
        here = density[start : start + len(x)]
        here.copy_(torch.addmm(head.density_bias, h[-1], head.density.t())[:, 0])
        if noise is not None:
            here += noise[start : start + len(x)]
        here.clamp_(min=0)
        row = here.nonzero()[:, 0]
        first = found if keep else 0
        seen = kept_view[first : first + len(row)]
        torch.addmm(head.view_bias, views[ray[start + row]].to(layers.dtype), head.direction.t(), out=seen)
        seen.addmm_(h[-1].index_select(0, row), head.mixed.t()).clamp_(min=0)
        logits.append(torch.addmm(head.color_bias, seen, head.color.t()).float())
        rows.append(start + row)
        found += len(row)
    if not rows:
        logits, rows = [points.new_empty(0, len(head.color))], [ray[:0]]
    return density, torch.cat(logits), torch.cat(rows), lease


def _head_backward(
    head: _Head, h: Tensor, seen: Tensor, views: Tensor, v_density: Tensor, v_logits: Tensor, sums: list[LinearGradient]
) -> Tensor:
    """The gradient [B, W] of the trunk's output h [B, W]; adds the parameters' gradients to `sums`.

    Args:
        seen: [B, W / 2] activation of the view layer. views: [B, V]. v_density: [B, 1]. v_logits: [B, O].
    """
    v_density, v_logits = v_density.to(h.dtype), v_logits.to(h.dtype)
    sums[0].add(v_density, h)
    sums[2].add(v_logits, seen)
    v_seen = v_logits @ head.color
    torch.ops.aten.threshold_backward.grad_input(v_seen, seen, 0, grad_input=v_seen)
    sums[1].add(v_seen, h, views.to(h.dtype))
    return (v_seen @ head.mixed).addmm_(v_density, head.density)
