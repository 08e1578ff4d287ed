"""From gradients to new parameters: added up over the processes, checked, applied."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from nfc_splat.rendering.sharing import reduced
from nfc_splat.training.processes import Group

SMALL = 2**18  # numbers up to which a gradient travels with others


def add_up(losses: dict[str, Tensor], optimizers: Mapping[str, Optimizer], group: Group) -> dict[str, Tensor]:
    """Give every process the sum of all processes' gradients, and return the sums of their loss terms.

    A parameter without a gradient keeps none if no process has one, as optimisers then leave it alone. With one process
    nothing happens.
    """
    if group.size == 1:
        return losses
    parameters = list(_parameters(optimizers))
    present = group.most(*(parameter.grad is not None for parameter in parameters))
    learning = [parameter for parameter, there in zip(parameters, present, strict=True) if there]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grads = [parameter.grad for parameter in learning]
    large = [grad for grad in grads if grad.numel() > SMALL and grad.is_contiguous()]
    for grad in large:
        reduced(grad, "sum")
    values = torch.stack([value.detach() for value in losses.values()])
    rest = [grad for grad in grads if not any(grad is other for other in large)]
    flat = reduced(torch.cat([values, *(grad.reshape(-1) for grad in rest)]), "sum")
    sums, *parts = flat.split([len(values), *(grad.numel() for grad in rest)])
    for grad, part in zip(rest, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return dict(zip(losses, sums, strict=True))


def are_finite(losses: Mapping[str, Tensor], optimizers: Mapping[str, Optimizer]) -> bool:
    """Whether the losses and every gradient are; the sum of a tensor tells, at the price of reading it once."""
    grads = [parameter.grad.sum() for parameter in _parameters(optimizers) if parameter.grad is not None]
    return bool(torch.stack([value.detach().double() for value in (*losses.values(), *grads)]).isfinite().all())


def forget(optimizers: Mapping[str, Optimizer]) -> None:
    """Drop all gradients."""
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)


def apply(optimizers: Mapping[str, Optimizer], scale: float) -> None:
    """Every optimiser's step, at its learning rates times `scale`; the gradients are dropped."""
    for optimizer in optimizers.values():
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate if scale == 1 else rate * scale
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    forget(optimizers)


def _parameters(optimizers: Mapping[str, Optimizer]) -> Iterator[Tensor]:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            yield from group["params"]
