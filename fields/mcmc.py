"""3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024, arXiv 2404.09591).

No cloning by thresholds: dead Gaussians are moved to where live ones are, a few are added until a cap, and noise makes
faint ones explore. Symbols: N Gaussians, R relocations.
"""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nfc_splat.fields.densification import Densification, finite_rows, rebuild, rotate

MOST_COPIES = 51  # of one Gaussian in one relocation, as in the authors' code
NOISE_STEEPNESS = 100.0  # of the switch that keeps noise from Gaussians more opaque than `prune_opacity`


def binomial_table(size: int) -> Tensor:
    """`table[n, k]` = n choose k, [size + 1, size + 1] float64; 0 where k > n."""
    rows = [[float(math.comb(n, k)) for k in range(size + 1)] for n in range(size + 1)]
    return torch.tensor(rows, dtype=torch.float64)


def relocation(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and standard deviations of `copies` coincident Gaussians that together look like one.

    Arguments:
        opacities: [R] in [0, 1].
        scales: [R, 3] standard deviations.
        copies: [R] int64, at least 1; more than `MOST_COPIES` count as that many.

    Returns:
        opacities [R] and scales [R, 3], in the inputs' dtype (computed in float64: the sum alternates).

    Source: Eq. 9 of the paper. N copies of opacity o' hide as much at the centre as one of opacity o when
    `(1 - o')^N = 1 - o`. Along a line, they absorb `1 - (1 - o' g)^N`, g a Gaussian of the new width s'; expanding the
    power and integrating each `g^k`, a Gaussian of width s' / sqrt(k), and asking for the integral of `o g` gives
    `s' = s o / sum_k C(N, k) (-1)^(k+1) o'^k / sqrt(k)`, k = 1..N. (The paper's double sum over i, k is this one:
    binomial coefficients add up along a diagonal.)
    """
    copies = copies.clamp(1, MOST_COPIES)
    opacity = opacities.double()
    new = 1 - (1 - opacity) ** (1 / copies.double())
    order = torch.arange(1, MOST_COPIES + 1, device=opacities.device, dtype=torch.float64)
    signs = 1 - 2 * ((order + 1) % 2)
    coefficients = binomial_table(MOST_COPIES).to(opacities.device)[copies][:, 1:] * signs / order.sqrt()
    mass = (coefficients * new[:, None] ** order).sum(-1)
    shrink = torch.where(mass > 0, opacity / mass, 1.0)
    return new.to(opacities.dtype), (scales.double() * shrink[:, None]).to(scales.dtype)


class MCMCDensification(Densification):
    """Relocate dead Gaussians, grow by `mcmc_growth` until `max_primitives`, and add noise after every step."""

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int, lr_means: float) -> dict[str, float]:
        figures = {}
        if self.refines(step):
            figures = {"relocated": self._relocate(model, optimizer), "added": self._grow(model, optimizer)}
        add_noise(model, lr_means * self.config.mcmc_noise, self.config.prune_opacity)
        return figures

    @torch.no_grad()
    def _relocate(self, model: nn.Module, optimizer: Optimizer) -> int:
        opacities = model.opacities.sigmoid()
        dead = (opacities <= self.config.prune_opacity) | ~finite_rows(model)
        targets, alive = dead.nonzero()[:, 0], (~dead).nonzero()[:, 0]
        if len(targets) == 0 or len(alive) == 0:
            return 0
        chosen = alive[torch.multinomial(opacities[alive], len(targets), replacement=True)]
        source = torch.arange(len(dead), device=dead.device)
        source[targets] = chosen
        self._copy(model, optimizer, source, chosen, targets)
        return len(targets)

    @torch.no_grad()
    def _grow(self, model: nn.Module, optimizer: Optimizer) -> int:
        total = len(model.means)
        wanted = int(self.config.mcmc_growth * total)
        count = max(0, min(wanted, self.config.max_primitives - total))
        self.say_full(wanted - count)
        if count == 0:
            return 0
        # A non-finite row that could not be moved has no weight.
        weights = model.opacities.sigmoid().nan_to_num(nan=0.0)
        chosen = torch.multinomial(weights, count, replacement=True)
        source = torch.cat([torch.arange(total, device=chosen.device), chosen])
        targets = torch.arange(total, total + count, device=chosen.device)
        self._copy(model, optimizer, source, chosen, targets)
        return count

    def _copy(self, model: nn.Module, optimizer: Optimizer, source: Tensor, chosen: Tensor, targets: Tensor) -> None:
        """Put a copy of each Gaussian `chosen` [R] at `targets` [R], original and copies sharing its look."""
        copies = chosen.bincount(minlength=len(model.means))[chosen] + 1
        opacity, scale = relocation(model.opacities[chosen].sigmoid(), model.scales[chosen].exp(), copies)
        highest = 1 - torch.finfo(opacity.dtype).eps
        logit, log_scale = opacity.clamp(self.config.prune_opacity, highest).logit(), scale.log()
        opacities, scales = model.opacities.detach()[source], model.scales.detach()[source]
        fresh = torch.zeros(len(source), dtype=torch.bool, device=source.device)
        for rows in (chosen, targets):
            opacities[rows], scales[rows], fresh[rows] = logit, log_scale, True
        rebuild(model, optimizer, source, fresh, {"opacities": opacities, "scales": scales})


@torch.no_grad()
def add_noise(model: nn.Module, strength: float, threshold: float) -> None:
    """Move means by `strength * sigmoid(100 (threshold - opacity)) * covariance @ standard normal` (Eq. 10).

    Gaussians more opaque than `threshold` hardly move; the covariance keeps the motion within the Gaussian's shape.
    """
    faint = torch.sigmoid(NOISE_STEEPNESS * (threshold - model.opacities.sigmoid()))
    noise = torch.randn_like(model.means) * (strength * faint)[:, None]
    conjugate = model.quats * model.quats.new_tensor([1, -1, -1, -1])
    local = rotate(conjugate, noise) * (2 * model.scales).exp()
    model.means.add_(rotate(model.quats, local))
