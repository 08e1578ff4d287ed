"""Where samplers look: bins, disparity, importance, boxes."""

import pytest
import torch

from nfc_splat.cameras import Rays
from nfc_splat.rendering.samplers import LAST_WIDTH, box_steps, importance, sample_pdf, stratified


def rays(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    origins = torch.tensor([0.0, 0.0, -4.0]) + 0.1 * torch.randn(count, 3, generator=generator)
    directions = torch.cat([0.1 * torch.randn(count, 2, generator=generator), torch.ones(count, 1)], 1)
    return Rays(origins, directions, None, 0.01, 1e10)


def test_even_distances_without_jitter():
    samples = stratified(rays(), 2.0, 6.0, 64, jitter=False)
    t = samples.t.view(6, 64)
    assert torch.equal(t[2], torch.linspace(0, 1, 64) * 4.0 + 2.0)
    length = samples.rays.directions.norm(dim=-1)
    assert torch.allclose(samples.widths.view(6, 64)[:, 0], length * 4 / 63, rtol=1e-4)
    assert torch.equal(samples.widths.view(6, 64)[:, -1], LAST_WIDTH * length)
    assert torch.equal(samples.ray, torch.arange(6).repeat_interleave(64))


def test_jitter_stays_in_its_bin_and_is_uniform_there():
    torch.manual_seed(0)
    even = stratified(rays(2), 2.0, 6.0, 8, jitter=False).t.view(2, 8)[0]
    edges = torch.cat([even[:1], 0.5 * (even[1:] + even[:-1]), even[-1:]])
    t = torch.stack([stratified(rays(2), 2.0, 6.0, 8, jitter=True).t.view(2, 8)[0] for _ in range(2000)])
    assert (t >= edges[:-1]).all()
    assert (t <= edges[1:]).all()
    assert torch.allclose(t.mean(0), 0.5 * (edges[1:] + edges[:-1]), atol=0.01)


def test_even_in_disparity():
    t = stratified(rays(1), 1.0, 100.0, 5, jitter=False, in_disparity=True).t
    assert torch.allclose(1 / t, torch.linspace(1, 0.01, 5))


def test_near_and_far_of_each_ray():
    near, far = torch.arange(1.0, 7.0), torch.arange(1.0, 7.0) + 2
    t = stratified(rays(), near, far, 3, jitter=False).t.view(6, 3)
    assert torch.allclose(t, torch.stack([near, near + 1, far], 1))


def test_a_single_peak_draws_its_bin():
    edges = torch.linspace(0, 10, 11)[None]
    weights = torch.zeros(1, 10)
    weights[0, 7] = 1.0
    drawn = sample_pdf(edges, weights, 128, jitter=False)[0]
    inner = drawn[1:-1]
    assert ((inner >= 7 - 1e-3) & (inner <= 8 + 1e-3)).all()


def test_draws_follow_the_density():
    torch.manual_seed(1)
    edges = torch.tensor([[0.0, 1.0, 3.0, 4.0]])
    weights = torch.tensor([[1.0, 2.0, 5.0]])
    drawn = sample_pdf(edges, weights, 40_000, jitter=True)[0]
    shares = torch.histogram(drawn, torch.tensor([0.0, 1.0, 3.0, 4.0])).hist / 40_000
    assert torch.allclose(shares, torch.tensor([0.125, 0.25, 0.625]), atol=0.01)


@pytest.mark.parametrize("jitter", [False, True])
def test_no_weight_at_all_draws_evenly(jitter):
    drawn = sample_pdf(torch.linspace(2, 6, 64)[None], torch.zeros(1, 63), 128, jitter=jitter)
    assert drawn.isfinite().all()
    assert drawn.min() >= 2
    assert drawn.max() <= 6


def test_the_union_is_sorted_and_without_a_gradient():
    coarse = stratified(rays(), 2.0, 6.0, 64, jitter=True)
    weights = torch.rand(len(coarse), requires_grad=True)
    fine = importance(coarse, weights, 128, jitter=True)
    t = fine.t.view(6, 192)
    assert (t[:, 1:] >= t[:, :-1]).all()
    assert not fine.t.requires_grad
    for ray in range(6):  # the coarse ones are all there
        assert torch.isin(coarse.t.view(6, 64)[ray], t[ray]).all()


def test_steps_cross_a_box_evenly():
    low, high = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0])
    samples = box_steps(rays(), low, high, 0.05)
    assert ((samples.positions >= low - 1e-5) & (samples.positions <= high + 1e-5)).all()
    same = samples.ray[1:] == samples.ray[:-1]
    gaps = (samples.positions[1:] - samples.positions[:-1]).norm(dim=-1)[same]
    assert torch.allclose(gaps, torch.full_like(gaps, 0.05), atol=1e-5)
    counts = torch.bincount(samples.ray, minlength=6)
    assert ((counts - 40).abs() <= 3).all()  # nearly along an axis of length 2


def test_rays_past_the_box_have_no_samples():
    low, high = torch.tensor([5.0, 5.0, 5.0]), torch.tensor([6.0, 6.0, 6.0])
    samples = box_steps(rays(), low, high, 0.1)
    assert len(samples) == 0
    assert samples.offsets.tolist() == [0] * 7


def test_occupied_cells_alone_are_sampled():
    occupancy = torch.zeros(4, 4, 4, dtype=torch.bool)
    occupancy[:, :, 2] = True
    low, high = torch.full((3,), -1.0), torch.full((3,), 1.0)
    z = box_steps(rays(), low, high, 0.02, occupancy=occupancy).positions[:, 2]
    assert len(z) > 0
    assert z.min() >= -1e-5
    assert z.max() <= 0.5 + 1e-5
