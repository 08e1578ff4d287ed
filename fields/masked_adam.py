"""The Adam of DVGO (Sun et al. 2022, arXiv 2206.05085): voxels without a gradient rest, and epsilon counts more.

Symbols: g gradient, m and v moments, t steps of the tensor, b1 and b2 the betas.

    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
    p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)

Epsilon is added to sqrt(v) before its bias is corrected. At t = 1 that makes it ten times as strong as in torch's Adam,
and a voxel whose gradients stay below it hardly moves: this is not a detail, results depend on it.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nfc_splat.rendering.kernels.threads import numba_threads


class MaskedAdam(Optimizer):
    """Adam with three ways to treat a parameter, chosen per group.

    Keys of a group besides `params`:
        lr, betas, eps: as usual; betas (0.9, 0.99) and eps 1e-8 unless given.
        skip_zero_grad: numbers whose gradient is exactly 0 keep their value and their moments. t counts on for all.
        per_voxel_lr: a tensor of factors on the learning rate. It holds for the group's parameters of the same shape,
            which are then updated everywhere, `skip_zero_grad` or not; the others ignore it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        skip_zero_grad: bool = False,
    ):
        """Args:
            params: tensors, or groups of them as dictionaries.
            lr, betas, eps, skip_zero_grad: for groups that do not say.

        Raises:
            ValueError: a learning rate or epsilon below 0, a beta outside [0, 1).
        """
        defaults = dict(lr=lr, betas=betas, eps=eps, skip_zero_grad=skip_zero_grad, per_voxel_lr=None)
        super().__init__(params, defaults)
        for group in self.param_groups:
            if not (group["lr"] >= 0 and group["eps"] >= 0 and all(0 <= beta < 1 for beta in group["betas"])):
                settings = f"lr {group['lr']}, eps {group['eps']}, betas {group['betas']}"
                raise ValueError(f"lr and eps must be 0 or more and betas in [0, 1); got {settings}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by `load_state_dict` too, which leaves tensors of a group on the device that they were saved from."""
        super().__setstate__(state)
        for group in self.param_groups:
            if group["per_voxel_lr"] is not None:
                group["per_voxel_lr"] = group["per_voxel_lr"].to(group["params"][0])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        (beta1, beta2), t = group["betas"], state["step"]
        step_size = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        scale = group["per_voxel_lr"]
        if scale is not None and scale.shape != parameter.shape:
            scale = None
        settings = scale, group["skip_zero_grad"], beta1, beta2, step_size, group["eps"]
        tensors = parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]
        if parameter.device.type == "cpu" and parameter.dtype == torch.float32 and parameter.is_contiguous():
            _update_cpu(*tensors, *settings)
        else:
            update_reference(*tensors, *settings)


def update_reference(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    scale: Tensor | None,
    skip_zero_grad: bool,
    beta1: float,
    beta2: float,
    step_size: float,
    eps: float,
) -> None:
    """The update in plain torch, in place, on any device; tensors are of one shape."""
    m = exp_avg * beta1 + gradient * (1 - beta1)
    v = exp_avg_sq * beta2 + gradient * gradient * (1 - beta2)
    change = step_size * m / (v.sqrt() + eps)
    if scale is not None:
        change = change * scale
    elif skip_zero_grad:
        touched = gradient != 0
        m, v = torch.where(touched, m, exp_avg), torch.where(touched, v, exp_avg_sq)
        change = torch.where(touched, change, torch.zeros_like(change))
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    parameter.sub_(change)


def _update_cpu(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    scale: Tensor | None,
    skip_zero_grad: bool,
    *numbers: float,
) -> None:
    """The same for contiguous float32 tensors in main memory, compiled."""
    from nfc_splat.rendering.kernels.adam_cpu import adam_step

    numba_threads()
    tensors = parameter, gradient, exp_avg, exp_avg_sq, torch.empty(0) if scale is None else scale
    flat = [tensor.detach().contiguous().view(-1).numpy() for tensor in tensors]
    adam_step(*flat, skip_zero_grad, *(np.float32(number) for number in numbers))
