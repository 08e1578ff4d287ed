"""Adding and removing Gaussians while they train: the common parts, and 3DGS's own rule.

Symbols: N Gaussians before, M after, C cameras. Models have the parameters `SPLAT_TENSORS`, one row per Gaussian, and
the optimiser a group per parameter, called by its name.
"""

import abc
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nfc_splat.errors import UserError
from nfc_splat.fields.gaussians_config import Config
from nfc_splat.rendering.rasterize import RasterInfo
from nfc_splat.rendering.sharing import add_up, total

SPLAT_TENSORS = ("means", "quats", "scales", "opacities", "sh0", "shN")
SPLIT_SHRINK = 1.6  # children of a split are this much smaller (Kerbl et al. 2023, section 5.2)

log = logging.getLogger("nfc_splat")


class Densification(abc.ABC):
    """Changes the number of Gaussians; one per run. Random draws come from torch's global generator."""

    def __init__(self, config: Config, extent: float):
        self.config = config
        self.extent = extent
        self._said_full = False

    def wants_gradients(self, step: int) -> bool:
        """Whether `observe` must be called for this step."""
        return False

    def observe(self, gradients: Tensor, info: RasterInfo) -> None:
        """Take note of d loss / d means2d [C, N, 2], per pixel, of one rendering."""

    @abc.abstractmethod
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int, lr_means: float) -> dict[str, float]:
        """Change `model` and `optimizer` after the optimiser's step; returns figures worth logging."""

    def state_dict(self) -> dict[str, Tensor]:
        """Statistics that must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""

    def forget(self) -> None:
        """Start collecting statistics anew."""

    def refines(self, step: int) -> bool:
        """Whether Gaussians are added and removed at `step`."""
        config = self.config
        return config.refine_start < step < config.refine_stop and step % config.refine_every == 0

    def say_full(self, refused: int) -> None:
        """Tell the user once that the cap keeps Gaussians from being added."""
        if refused > 0 and not self._said_full:
            self._said_full = True
            log.warning(
                "the number of Gaussians has reached --max-primitives %d; raise it for more detail, at the cost of "
                "time and memory",
                self.config.max_primitives,
            )


@torch.no_grad()
def rebuild(
    model: nn.Module,
    optimizer: Optimizer,
    source: Tensor,  # [M] int64
    fresh: Tensor,  # [M] bool
    changes: Mapping[str, Tensor] | None = None,
) -> None:
    """Make Gaussian i a copy of the old Gaussian `source[i]`, in the model and in the optimiser's moments alike.

    Moments start from 0 where `fresh`. `changes` holds tensors [M, ...] that replace the copies of the parameters they
    are named after. Cloning, splitting, pruning and relocating are all of this form. Parameters are new objects
    afterwards: autograd keeps the shape of old ones in graphs that may still be alive.
    """
    changes = changes or {}
    for group in optimizer.param_groups:
        if group["name"] not in SPLAT_TENSORS:
            continue
        (old,) = group["params"]
        new = nn.Parameter(changes.get(group["name"], old.detach()[source]).contiguous())
        state = optimizer.state.pop(old, None)
        if state is not None:
            optimizer.state[new] = {key: _carry(value, old, source, fresh) for key, value in state.items()}
        group["params"] = [new]
        setattr(model, group["name"], new)


def _carry(value: object, old: Tensor, source: Tensor, fresh: Tensor) -> object:
    """A moment follows its Gaussian; step counters stay."""
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value
    return value[source].masked_fill_(fresh.view(-1, *[1] * (value.ndim - 1)), 0)


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """Turn vectors [..., 3] by quaternions wxyz [..., 4], which need not have unit length."""
    quats = nn.functional.normalize(quats, dim=-1)
    real, imaginary = quats[..., :1], quats[..., 1:].expand_as(vectors)
    twice = 2 * torch.linalg.cross(imaginary, vectors)
    return vectors + real * twice + torch.linalg.cross(imaginary, twice)


def finite_rows(model: nn.Module) -> Tensor:
    """[N] whether all of a Gaussian's numbers are finite."""
    rows = [getattr(model, name).detach().flatten(1) for name in SPLAT_TENSORS if name != "opacities"]
    return torch.stack([row.isfinite().all(1) for row in rows]).all(0) & model.opacities.isfinite()


class DefaultDensification(Densification):
    """Clone, split, prune and reset (Kerbl et al. 2023, section 5).

    A Gaussian whose mean screen-space gradient is high is cloned in place if it is small and split into two samples of
    itself if it is large. Faint, huge (later) and non-finite ones are removed. Steps count from 1, so a reset at every
    3000th step is the 3000th, 6000th, ... update.
    """

    def __init__(self, config: Config, extent: float):
        super().__init__(config, extent)
        self.gradient_sum: Tensor | None = None  # [N] sum over the views that saw the Gaussian
        self.views: Tensor | None = None  # [N] how many did

    def wants_gradients(self, step: int) -> bool:
        return step < self.config.refine_stop

    def prunes(self, step: int, total: int) -> bool:
        """Whether the refinement at `step` also removes faint and huge Gaussians, of `total`; others are always."""
        return True

    @torch.no_grad()
    def observe(self, gradients: Tensor, info: RasterInfo) -> None:
        half_size = gradients.new_tensor([info.width, info.height]) * (total(len(gradients)) / 2)
        seen = (info.radii > 0).all(-1)  # [C, N]
        norms = (gradients * half_size).norm(dim=-1).where(seen, 0)
        if self.gradient_sum is None:
            self._forget(norms[0])
        self.gradient_sum, self.views = self.gradient_sum.to(norms.device), self.views.to(norms.device)
        self.gradient_sum += add_up(norms.sum(0))
        self.views += add_up(seen.sum(0))

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int, lr_means: float) -> dict[str, float]:
        if step >= self.config.refine_stop:
            return {}
        figures = {}
        if self.refines(step) and self.gradient_sum is not None:
            figures = self._refine(model, optimizer, step)
            self._forget(model.opacities)
        if self.config.reset_every and step % self.config.reset_every == 0:
            reset_opacities(model, optimizer, 2 * self.config.prune_opacity)
        return figures

    @torch.no_grad()
    def _refine(self, model: nn.Module, optimizer: Optimizer, step: int) -> dict[str, float]:
        config = self.config
        total = len(model.means)
        gradient = self.gradient_sum / self.views.clamp_min(1)
        pruning, dead = self.prunes(step, total), ~finite_rows(model)
        if pruning:
            dead |= model.opacities.sigmoid() < config.prune_opacity
        wanted = (gradient > config.grow_grad2d) & ~dead
        room = max(0, config.max_primitives - int((~dead).sum()))
        grow = _largest(gradient, wanted, room)
        self.say_full(int(wanted.sum() - grow.sum()))
        large = model.scales.amax(-1).exp() > config.grow_scale3d * self.extent
        rest = (~dead & ~(grow & large)).nonzero()[:, 0]
        clones, parents = (grow & ~large).nonzero()[:, 0], (grow & large).nonzero()[:, 0]
        source = torch.cat([rest, clones, parents, parents])
        fresh = torch.arange(len(source), device=source.device) >= len(rest)
        changes = _split(model, source, 2 * len(parents))
        if pruning and step > config.prune_large_from:
            kept = changes["scales"].amax(-1).exp() <= config.prune_scale3d * self.extent
            source, fresh = source[kept], fresh[kept]
            changes = {name: values[kept] for name, values in changes.items()}
        if not len(source):
            raise UserError(
                f"step {step}: every Gaussian has become too faint or too large and would be removed; check that the "
                "images are not blank and the poses fit (python -m nfc_splat.doctor SCENE), or lower --prune-opacity"
            )
        rebuild(model, optimizer, source, fresh, changes)
        added = len(clones) + len(parents)
        removed = total + added - len(source)
        return {"cloned": len(clones), "split": len(parents), "pruned": removed, "refused": int(wanted.sum()) - added}

    def forget(self) -> None:
        self.gradient_sum = self.views = None

    def _forget(self, like: Tensor) -> None:
        self.gradient_sum = torch.zeros_like(like, requires_grad=False)
        self.views = torch.zeros_like(like, requires_grad=False)

    def state_dict(self) -> dict[str, Tensor]:
        if self.gradient_sum is None:
            return {}
        return {"gradient_sum": self.gradient_sum, "views": self.views}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        restored = {name: tensor.clone() for name, tensor in state.items()}
        self.gradient_sum, self.views = restored.get("gradient_sum"), restored.get("views")


def _largest(values: Tensor, candidates: Tensor, room: int) -> Tensor:
    """`candidates` [N] bool, thinned to the `room` with the largest `values`; ties go to the lower index."""
    if int(candidates.sum()) <= room:
        return candidates
    order = values.where(candidates, -torch.inf).argsort(descending=True, stable=True)
    kept = torch.zeros_like(candidates)
    kept[order[:room]] = True
    return kept


def _split(model: nn.Module, source: Tensor, children: int) -> dict[str, Tensor]:
    """Means and log-scales of the Gaussians `source` [M], of which the last `children` are samples of their parents."""
    means, scales = model.means.detach()[source], model.scales.detach()[source]
    if children:
        quats = model.quats.detach()[source[-children:]]
        offsets = torch.randn_like(means[-children:]) * scales[-children:].exp()
        means[-children:] += rotate(quats, offsets)
        scales[-children:] -= torch.tensor(SPLIT_SHRINK).log().item()
    return {"means": means, "scales": scales}


@torch.no_grad()
def reset_opacities(model: nn.Module, optimizer: Optimizer, highest: float) -> None:
    """Lower every opacity to at most `highest` and forget its moments, so that only what the images need comes back."""
    model.opacities.clamp_(max=torch.tensor(highest, dtype=torch.float64).logit().item())
    for value in optimizer.state[model.opacities].values():
        if isinstance(value, Tensor) and value.shape == model.opacities.shape:
            value.zero_()
