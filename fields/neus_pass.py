"""What NeuS's networks say of the samples of one request, in the region and behind it.

Symbols: R rays, M samples, K of them in the region, L logits per colour channel.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nfc_splat.fields.sdf_alpha import section_alpha
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.packed import accumulate
from nfc_splat.rendering.samples import Samples, unit_directions

if TYPE_CHECKING:
    from nfc_splat.fields.neus import Model


class Pass:
    """The field's answers along the rays of one request, as the marcher's `Field`.

    What `alpha` hands on is a sample's row among those in the region [0, K) or, K higher, among those behind it.
    """

    draw_normals = False

    def __init__(self, model: "Model", samples: Samples, outside: Tensor | None) -> None:
        """outside: [M] bool, which of `samples` the background's network answers; None for none."""
        self.model, self.encoding = model, model.encoding
        self.outside = outside
        views = unit_directions(samples.rays)
        inner = slice(None) if outside is None else (~outside).nonzero()[:, 0]
        self.inner = inner
        self.points = model.region.to_local(samples.positions)[inner].detach()
        self.directions = views.index_select(0, samples.ray[inner])
        self.distances, self.features, self.gradients = model.sdf(self.points)

    def alpha(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Opacities [M] of all samples, and their rows [M]."""
        model, radius = self.model, self.model.region.radius
        slope = (self.gradients * self.directions).sum(-1)
        widths, s = samples.widths / radius, model.sharpness()
        anneal = model.anneal if model.training else 1.0
        near = section_alpha(self.distances, slope, widths[self.inner], s, anneal)
        if self.outside is None:
            return near, torch.arange(len(near), device=near.device)
        rows = self.outside.nonzero()[:, 0]
        points = model.region.to_local(samples.positions.index_select(0, rows))
        directions = unit_directions(samples.rays).index_select(0, samples.ray[rows])
        far, self.logits = model.behind(points, directions, widths[rows])
        order = torch.cat([self.inner, rows])
        place = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
        return torch.cat([near, far]).index_select(0, place), place

    def color(self, samples: Samples, features: Tensor) -> Tensor:
        """Decoded colours [M, 3], with the bits' probabilities behind them if the model draws them."""
        if self.outside is None:
            return self._near_color(features)
        near, far = ((features < len(self.points)), (features >= len(self.points)))
        order = torch.cat([near.nonzero()[:, 0], far.nonzero()[:, 0]])
        behind = self.model.head(self.logits[features[far] - len(self.points)], bits=self.model.draw_bits)
        colors = torch.cat([self._near_color(features[near]), behind])
        return torch.empty_like(colors).index_copy(0, order, colors)

    def _near_color(self, rows: Tensor) -> Tensor:
        """Colours of samples in the region."""
        model = self.model
        parts = (self.points, self.directions, self.gradients, self.features)
        if len(rows) < len(self.points):  # rows ascend, so as many as there are is all of them
            parts = tuple(part.index_select(0, rows) for part in parts)
        return model.decoded(*parts, bits=model.draw_bits)

    def normals(self, drawn: Rendering) -> Tensor:
        """[R, 3] unit normals, 0 where nothing of the region is hit."""
        samples, weights, rows = (drawn.extras[name] for name in ("samples", "weights", "features"))
        gradients = F.pad(self.gradients, (0, 0, 0, 1)).index_select(0, rows.clamp_max(len(self.points)))
        return F.normalize(accumulate(weights, gradients, samples.offsets), dim=-1)

    def opacity(self, drawn: Rendering) -> Tensor:
        """[R] opacities of the region alone, whatever is behind it."""
        if self.outside is None:
            return drawn.alpha[..., 0]
        samples, weights, rows = (drawn.extras[name] for name in ("samples", "weights", "features"))
        inside = (rows < len(self.points)).to(weights)
        return accumulate(weights, inside[:, None], samples.offsets)[:, 0]
