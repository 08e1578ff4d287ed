"""Opacities of sections from distances, against NeuS's formulas in float64, and where new samples are drawn."""

import numpy as np
import pytest
import torch

from nfc_splat.fields.sdf_alpha import Sharpness, sampling_weights, section_alpha, up_sample


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def draws(count=200, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, count), rng.uniform(-1.5, 1.5, count), rng.uniform(0.001, 0.1, count)


def formula(distance, slope, delta, s, anneal):
    """NeuS, Eq. 13, with the released code's annealed slope, in numpy's float64."""
    cos = -(np.maximum(0.5 - 0.5 * slope, 0) * (1 - anneal) + np.maximum(-slope, 0) * anneal)
    before, after = sigmoid((distance - cos * delta / 2) * s), sigmoid((distance + cos * delta / 2) * s)
    return np.clip((before - after + 1e-5) / (before + 1e-5), 0, 1)


@pytest.mark.parametrize("v", [0.1, 0.3, 0.55])
def test_the_sharpness(v):
    torch.testing.assert_close(Sharpness(v)(), torch.tensor(np.exp(10 * v), dtype=torch.float32))


def test_the_sharpness_at_the_start_is_the_published_one():
    assert Sharpness(0.3)().item() == pytest.approx(20.0855, rel=1e-5)
    assert Sharpness(0.1)().item() == pytest.approx(2.71828, rel=1e-5)
    assert Sharpness(9.0)().item() == pytest.approx(1e6)


@pytest.mark.parametrize("anneal", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("s", [2.7, 64.0, 800.0])
def test_alpha_is_the_formula(s, anneal):
    found = section_alpha(*(torch.tensor(x, dtype=torch.float32) for x in draws()), torch.tensor(s), anneal)
    np.testing.assert_allclose(found.numpy(), formula(*draws(), s, anneal), atol=2e-5)


@pytest.mark.parametrize("anneal", [0.0, 0.4, 1.0])
def test_the_gradients_of_alpha(anneal):
    distance, slope, delta = (torch.tensor(x).requires_grad_() for x in draws(30))
    s = torch.tensor(40.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: section_alpha(*given, anneal), (distance, slope, delta, s))
    precise = torch.autograd.grad(section_alpha(distance, slope, delta, s, anneal).sum(), (distance, slope, s))
    rounded = [x.detach().float().requires_grad_() for x in (distance, slope, delta, s)]
    found = torch.autograd.grad(section_alpha(*rounded, anneal).sum(), [rounded[i] for i in (0, 1, 3)])
    for a, b in zip(found, precise, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-3, rtol=2e-3)


def test_a_surface_seen_from_behind_is_transparent_and_one_from_the_front_opaque():
    distance, delta, s = torch.linspace(-0.2, 0.2, 41), torch.full((41,), 0.01), torch.tensor(200.0)
    behind = section_alpha(distance, torch.ones(41), delta, s)
    front = section_alpha(distance, -torch.ones(41), delta, s)
    assert (behind[distance > -0.02] < 2e-3).all()
    assert front[distance > 0.05].max() < 1e-3
    assert front[distance < -0.05].min() > 0.8


def test_the_weights_peak_at_the_surface():
    """Unbiased (NeuS, section 3.1): for a plane, the weights' mean lies where the distance is 0."""
    t = torch.linspace(0, 1, 400, dtype=torch.float64)
    delta = torch.full_like(t, t[1] - t[0])
    alpha = section_alpha(0.5 * (0.6 - t), torch.full_like(t, -0.5), delta, torch.tensor(300.0, dtype=torch.float64))
    weights = alpha * torch.cat([torch.ones(1, dtype=t.dtype), (1 - alpha).cumprod(0)[:-1]])
    assert t[weights.argmax()].item() == pytest.approx(0.6, abs=0.004)
    assert (weights * t).sum().item() == pytest.approx(0.6, abs=0.004)


def weights_by_loop(t, f, s, inner=None):
    """NeuS, Eq. 13, with a fixed s and the released code's slopes between samples, one section at a time."""
    result, through, before = [], 1.0, 0.0
    for k in range(len(t) - 1):
        slope = (f[k + 1] - f[k]) / (t[k + 1] - t[k] + 1e-5)
        used, before = min(slope, before), slope
        used = min(max(used, -1e3), 0.0) * (1.0 if inner is None else inner[k])
        half, middle = used * (t[k + 1] - t[k]) / 2, (f[k] + f[k + 1]) / 2
        phi = sigmoid((middle - half) * s)
        alpha = (phi - sigmoid((middle + half) * s) + 1e-5) / (phi + 1e-5)
        result.append(alpha * through)
        through *= 1 - alpha + 1e-7
    return result


@pytest.mark.parametrize("limited", [False, True])
def test_sampling_weights_are_the_formula(limited):
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(0, 2, (6, 20)))
    f = 0.7 - t + 0.2 * np.sin(9 * t)
    inner = rng.random((6, 19)) < 0.6
    expected = [weights_by_loop(*row, 64.0, part if limited else None) for *row, part in zip(t, f, inner, strict=True)]
    found = sampling_weights(torch.tensor(t), torch.tensor(f), 64.0, torch.tensor(inner) if limited else None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_new_samples_gather_at_the_surface():
    t = torch.linspace(0, 1, 65)[None].repeat(3, 1)
    for s in (64.0, 128.0, 256.0, 512.0):
        new = up_sample(t, sampling_weights(t, 0.37 - t, s), 16, 0.5)
        assert (new[:, 1:] >= new[:, :-1]).all()
        t = torch.cat([t, new], 1).sort(dim=1).values
    assert ((new - 0.37).abs() < 0.05).float().mean() > 0.9


def test_new_samples_are_quantiles():
    edges, weights = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[1.0, 3.0]])
    found = up_sample(edges, weights, 4, 0.5)
    torch.testing.assert_close(found, torch.tensor([[0.5, 1 + 1 / 3, 2.0, 2 + 2 / 3]]), atol=1e-4, rtol=0)
    jittered = up_sample(edges, weights, 4, torch.tensor([[0.0]]))
    torch.testing.assert_close(jittered, torch.tensor([[0.0, 1.0, 1 + 2 / 3, 2 + 1 / 3]]), atol=1e-4, rtol=0)
