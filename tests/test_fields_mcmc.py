"""3DGS-MCMC: the relocation formula against integration, relocation, growth, noise."""

import logging
import math

import pytest
import torch
from splat_toys import orbit, random_tensors, toy_config

from nfc_splat.fields.densification import SPLAT_TENSORS, rotate
from nfc_splat.fields.gaussians import Model, Recipe
from nfc_splat.fields.mcmc import MOST_COPIES, MCMCDensification, add_noise, relocation
from nfc_splat.fields.recipe import SceneGeometry


def mcmc(count, **overrides):
    """A model with random moments, its optimiser, and MCMC."""
    config = toy_config(strategy="mcmc", **overrides)
    model = Model(config, random_tensors(count))
    (optimizer,) = Recipe(config, SceneGeometry(orbit(2), None, None)).optimizers(model).values()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, MCMCDensification(config, 1.0)


def absorbed(opacity, scale, copies):
    """Integral over a line of what `copies` coincident Gaussians hide, by the trapezoidal rule."""
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64) * scale
    hidden = 1 - (1 - opacity * torch.exp(-0.5 * (x / scale) ** 2)) ** copies
    return torch.trapezoid(hidden, x).item()


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 20, MOST_COPIES])
@pytest.mark.parametrize("opacity", [0.01, 0.3, 0.9, 0.999])
def test_relocation_preserves_what_is_hidden(opacity, copies):
    new, scales = relocation(
        torch.tensor([opacity], dtype=torch.float64),
        torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64),
        torch.tensor([copies]),
    )
    # at the centre
    assert 1 - (1 - new.item()) ** copies == pytest.approx(opacity, rel=1e-12)
    # and along a line in each direction
    for before, after in zip((0.5, 1.0, 2.0), scales[0].tolist(), strict=True):
        assert absorbed(new.item(), after, copies) == pytest.approx(absorbed(opacity, before, 1), rel=1e-9)


@pytest.mark.parametrize("copies", [1, 2, 5, 12])
def test_relocation_agrees_with_the_papers_double_sum(copies):
    opacity = 0.7
    new, scales = relocation(
        torch.tensor([opacity], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64), torch.tensor([copies])
    )
    total = sum(
        math.comb(i - 1, k) * (-1) ** k * new.item() ** (k + 1) / math.sqrt(k + 1)
        for i in range(1, copies + 1)
        for k in range(i)
    )
    assert scales[0, 0].item() == pytest.approx(opacity / total, rel=1e-10)


def test_relocation_is_tame_at_the_ends():
    opacities = torch.tensor([0.0, 1e-30, 1e-7, 1 - 1e-7, 1.0]).repeat_interleave(3)
    copies = torch.tensor([1, 51, 1000]).repeat(5)
    new, scales = relocation(opacities, torch.ones(15, 3), copies)
    assert new.isfinite().all()
    assert ((new >= 0) & (new <= 1)).all()
    assert scales.isfinite().all()
    assert (scales > 0).all()
    assert torch.equal(new[1::3], new[2::3])  # more than MOST_COPIES count as that many
    torch.testing.assert_close(scales[0::3], torch.ones(5, 3))


def test_dead_gaussians_move_to_live_ones_and_both_start_afresh():
    model, optimizer, densification = mcmc(200, refine_start=0, max_primitives=200)
    dead = torch.arange(200) % 4 == 0
    with torch.no_grad():
        model.opacities[dead] = -8.0
        model.opacities[~dead] = torch.rand(150)
        model.means[0] = math.nan  # found by its NaN; it is faint too
        model.quats[1] = math.inf  # found by its Inf alone
    dead[1] = True
    means = model.means.detach().clone()
    assert densification.after_step(model, optimizer, 5, 0.0) == {"relocated": 51, "added": 0}
    assert len(model.means) == 200
    assert model.means.isfinite().all()
    assert model.quats.isfinite().all()
    for index in dead.nonzero()[:, 0]:
        parents = ((model.means[index] == means).all(-1) & ~dead).nonzero()[:, 0]
        assert len(parents) == 1
        for name in SPLAT_TENSORS:
            parameter = getattr(model, name)
            assert torch.equal(parameter[index], parameter[parents[0]])
            assert not optimizer.state[parameter]["exp_avg"][[int(index), int(parents[0])]].any()
    untouched = ~dead & optimizer.state[model.means]["exp_avg"].any(-1)
    assert untouched.sum() > 50
    torch.testing.assert_close(model.means[untouched], means[untouched], rtol=0, atol=0)


def test_live_gaussians_are_chosen_in_proportion_to_their_opacity():
    model, optimizer, densification = mcmc(4002, refine_start=0, max_primitives=4002)
    with torch.no_grad():
        model.opacities.fill_(-9.0)
        model.opacities[:2] = torch.tensor([0.2, 0.6]).logit()
        model.means[0], model.means[1] = 0.0, 1.0
    densification.after_step(model, optimizer, 5, 0.0)
    share = (model.means[2:, 0] == 1.0).float().mean().item()
    assert share == pytest.approx(0.75, abs=0.03)


def test_growth_is_five_per_cent_until_the_cap_and_the_cap_is_reported(caplog):
    model, optimizer, densification = mcmc(100, refine_start=0, max_primitives=112)
    counts = []
    with caplog.at_level(logging.INFO, "nfc_splat"):
        for step in (5, 10, 15, 20):
            densification.after_step(model, optimizer, step, 0.0)
            counts.append(len(model.means))
    assert counts == [105, 110, 112, 112]
    assert [parameter.shape[0] for parameter in model.parameters()] == [112] * 6
    assert ["--max-primitives 112" in record.message for record in caplog.records] == [True]


def test_all_dead_is_left_alone():
    model, optimizer, densification = mcmc(10, refine_start=0, max_primitives=10)
    with torch.no_grad():
        model.opacities.fill_(-9.0)
    assert densification.after_step(model, optimizer, 5, 0.0)["relocated"] == 0


def test_noise_has_the_gaussians_shape_and_spares_opaque_ones():
    count = 20_000
    sizes, quat = torch.tensor([0.1, 0.3, 1.0]), torch.tensor([0.9, 0.1, -0.4, 0.3])
    tensors = random_tensors(count) | {
        "means": torch.zeros(count, 3),
        "scales": sizes.log().repeat(count, 1),
        "quats": 3 * quat.repeat(count, 1),
        "opacities": torch.tensor([0.005, 0.5]).logit().repeat(count // 2),
    }
    model = Model(toy_config(), tensors)
    add_noise(model, strength=2.0, threshold=0.005)
    axes = rotate(quat.expand(3, 4), torch.eye(3)).T
    covariance = axes @ torch.diag(sizes**2) @ axes.T
    expected = (2.0 * 0.5) ** 2 * covariance @ covariance.T  # the switch is at one half exactly at the threshold
    spread = model.means.detach()[0::2].T.cov()
    assert (spread - expected).norm() < 0.05 * expected.norm()
    assert model.means[1::2].abs().max() < 1e-15


def test_no_relocation_outside_the_schedule_but_noise_throughout():
    model, optimizer, densification = mcmc(20, refine_start=10, refine_stop=20, max_primitives=1000)
    with torch.no_grad():
        model.opacities.fill_(math.log(0.01 / 0.99))
    for step in (5, 10, 20, 40):
        before = model.means.detach().clone()
        assert densification.after_step(model, optimizer, step, 1e-3) == {}
        assert len(model.means) == 20
        assert not torch.equal(before, model.means)
