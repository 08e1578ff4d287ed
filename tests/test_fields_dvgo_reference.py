"""DVGO's training, step by step beside a second implementation: what it draws, its losses, gradients and updates."""

import pytest
import torch
from dvgo_reference import Reference
from dvgo_toys import ball_geometry, toy_config

from nfc_splat.fields.dvgo import Model, Recipe
from nfc_splat.fields.recipe import Batch

STEPS = 46  # the last of the thresholds is set at 44
RTOL = 1e-3
SETTINGS = dict(
    bounded="no",
    steps=100,
    rays=64,
    growths=3,
    grow_every=8,
    mask_every=8,
    tv_dense_until=20,
    lr_decay_steps=40,
    lr_density=0.3,
    alpha_threshold=1e-2,  # so large that what is left out shows
    tv_density=1e-2,
    tv_color=1e-3,
)


def close(ours, theirs, rtol=RTOL):
    """Whether the difference is small beside the whole."""
    ours, theirs = ours.detach().double(), theirs.detach()
    return float((ours - theirs).norm()) <= rtol * float(theirs.norm())


def channels_first(values):
    return values.detach().double().permute(3, 0, 1, 2)[None]


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def adopt(reference, model):
    """Continue from the same parameters, whatever the last bits of the step before were."""
    reference.density, reference.features = (
        channels_first(grid.values).contiguous().requires_grad_() for grid in (model.density, model.features)
    )
    reference.layers = [p.detach().double().requires_grad_() for p in model.net.parameters()]


def check_beginning(reference, model, step):
    """Sizes, mask and the numbers that change."""
    reference.begin(step)
    assert model.mask.size == tuple(reference.mask.shape) == model.density.size
    assert int((model.mask.occupied != reference.mask).sum()) <= 2  # rounding may decide about a node
    assert (float(model.act_shift), float(model.threshold), model.voxel_ratio) == pytest.approx(
        (reference.act_shift, reference.threshold, reference.ratio)
    )
    assert close(channels_first(model.density.values), reference.density, 1e-5)
    assert close(channels_first(model.features.values), reference.features, 1e-5)
    reference.mask = model.mask.occupied.clone()


def check_losses(reference, model, recipe, batch, step):
    """What is drawn, its losses and their gradients, which are left in the model's parameters."""
    drawn = model.render(batch.cameras, batch.pixels, background=batch.background)
    terms = {"photometric": recipe.photometric(drawn, batch)} | model.regularizers(drawn, batch, step)
    parameters = [model.density.values, model.features.values, *model.net.parameters()]
    gradients = torch.autograd.grad(sum(terms.values()), parameters)
    rays = batch.cameras.rays(batch.pixels)
    theirs = reference.draw(rays.origins.double(), rays.directions.double(), batch.background.double())
    assert abs(len(drawn.extras["samples"]) - int(theirs.shown.sum())) <= 2
    assert close(drawn.color, theirs.color)
    assert close(drawn.extras["transmittance"], theirs.left)
    losses = reference.losses(theirs, batch.target.double())
    assert values(terms) == pytest.approx(values(losses), rel=RTOL)
    expected = torch.autograd.grad(sum(losses.values()), [reference.density, reference.features, *reference.layers])
    for parameter, ours, wanted in zip(parameters, gradients, expected, strict=True):
        assert close(channels_first(ours) if ours.dim() == 4 else ours, wanted)
        parameter.grad = ours.clone()
    return drawn, theirs


def check_update(reference, model, recipe, optimizers, step):
    """Total variation and the optimiser's step."""
    grids, weights = (model.density, model.features), (recipe.config.tv_density, recipe.config.tv_color)
    before = [grid.values.grad.clone() for grid in grids]
    recipe.after_backward(model, step)
    for grid, gradient, weight in zip(grids, before, weights, strict=True):
        added = channels_first(grid.values.grad) - channels_first(gradient)
        assert close(added, reference.variation(channels_first(grid.values), channels_first(gradient), weight, step))
    rates = {"density": (0.3, True), "features": (0.1, True)}
    named = dict(density=model.density.values, features=model.features.values, **dict(model.net.named_parameters()))
    old = {name: parameter.detach().double() for name, parameter in named.items()}
    optimizers["field"].step()
    for name, parameter in named.items():
        wanted = reference.move(name, parameter.grad.double(), *rates.get(name, (1e-2, False)))
        assert close(parameter.double() - old[name], wanted), name
    reference.passed += 1


@pytest.mark.parametrize(("contraction", "encoding"), [("l2", "binary"), ("inf", "none")])
def test_training_goes_in_step_with_a_second_implementation(contraction, encoding):
    torch.manual_seed(0)
    geometry = ball_geometry(has_alpha=False)
    config = toy_config(**SETTINGS, contraction=contraction, target_encoding=encoding)
    model, recipe = Model.initialise(config, geometry).train(), Recipe(config, geometry)
    with torch.no_grad():  # one half is empty, the other one holds opaque and clear places side by side
        model.density.values.normal_(8.0, 6.0)[:5] = -20.0
    optimizers = recipe.optimizers(model)
    reference = Reference(model.config, model.space.center, float(model.space.radius))
    ended = colorless = 0
    for step in range(1, STEPS + 1):
        if step > 1:
            check_beginning(reference, model, step)
        adopt(reference, model)
        pixels = torch.stack([torch.randint(0, high, (64,)) for high in (len(geometry.cameras), 24, 24)], -1)
        batch = Batch(geometry.cameras, pixels, torch.rand(64, 3), None, torch.rand(64, 3))
        drawn, theirs = check_losses(reference, model, recipe, batch, step)
        ended += int((theirs.left < 1e-3).sum())
        colorless += int(((theirs.left > 0.01) & (theirs.weights.sum(1) + theirs.left < 0.999)).sum())
        check_update(reference, model, recipe, optimizers, step)
        adopt(reference, model)
        recipe.after_step(model, optimizers, drawn, step)
    assert ended > 100
    assert colorless > 10
    assert 0.05 < model.mask.share < 0.7
