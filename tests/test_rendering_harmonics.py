"""Spherical harmonics: orthonormal by quadrature, signs of 3DGS, the kernel against the reference."""

import math

import numpy as np
import pytest
import torch

from nfc_splat.rendering.harmonics import spherical_harmonics, spherical_harmonics_reference
from nfc_splat.rendering.kernels.gaussians_reference import spherical_harmonics as weighted_harmonics
from nfc_splat.rendering.kernels.threads import available_cores, set_threads


def sphere():
    """Gauss-Legendre times equispaced directions and weights: exact for polynomials of degree 7."""
    heights, weights = np.polynomial.legendre.leggauss(4)
    angles = np.arange(8) * math.pi / 4
    z, phi = (torch.from_numpy(part).reshape(-1) for part in np.meshgrid(heights, angles, indexing="ij"))
    radius = (1 - z**2).sqrt()
    directions = torch.stack([radius * phi.cos(), radius * phi.sin(), z], -1)
    return directions, torch.from_numpy(weights).repeat_interleave(8) * math.pi / 4


def directions(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_orthonormal(bands):
    nodes, weights = sphere()
    assert weights.sum().item() == pytest.approx(4 * math.pi)
    basis = spherical_harmonics(nodes, bands)
    gram = basis.T @ (basis * weights[:, None])
    torch.testing.assert_close(gram, torch.eye(bands**2, dtype=torch.float64))


def test_signs_and_order_are_those_of_the_gaussians():
    where = directions(20).double()
    identity = torch.eye(16, dtype=torch.float64)[:, :, None].expand(-1, -1, 3)
    basis = spherical_harmonics(where, 4)
    for k in range(16):
        torch.testing.assert_close(basis[:, k], weighted_harmonics(3, where, identity[k].expand(20, -1, -1))[:, 0])


def test_the_first_bands_by_hand():
    x, y, z = 2 / 7, 3 / 7, 6 / 7
    root = math.sqrt(3 / (4 * math.pi))
    expected = [0.5 / math.sqrt(math.pi), -root * y, root * z, -root * x]
    assert spherical_harmonics(torch.tensor([[x, y, z]]), 2)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_gradcheck_of_the_reference(bands):
    where = directions(5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda d: spherical_harmonics(d, bands), (where,))


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_the_kernel_equals_the_reference(bands, count):
    where = directions(count).requires_grad_()
    exact = where.detach().double().requires_grad_()
    values, expected = spherical_harmonics(where, bands), spherical_harmonics_reference(exact, bands)
    torch.testing.assert_close(values.double(), expected, atol=1e-6, rtol=1e-5)
    cotangent = torch.randn(count, bands**2, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(values, where, cotangent)
    if count:
        (reference,) = torch.autograd.grad(expected, exact, cotangent.double())
        torch.testing.assert_close(gradient.double(), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores to compare one thread with two")
def test_one_thread_and_two_give_the_same_bits():
    results = []
    try:
        for threads in (1, 2):
            set_threads(threads)
            where = directions(3000).requires_grad_()
            values = spherical_harmonics(where, 4)
            results.append((values, *torch.autograd.grad(values.square().sum(), where)))
    finally:
        set_threads()
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="directions must be"):
        spherical_harmonics(torch.zeros(3), 2)
    for bands in (0, 5):
        with pytest.raises(ValueError, match="bands must be"):
            spherical_harmonics(directions(2), bands)
