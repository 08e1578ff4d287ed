"""The signed distance network: its shapes, its start as a sphere, its gradient and the gradients of that."""

import pytest
import torch
from torch import nn

from nfc_splat.fields.sdf_network import HashFeatures, NormalizedLinear, Octaves, SDFNetwork
from nfc_splat.rendering.hash_encoding import HashLevels

LEVELS = HashLevels.between(4, 2, 10, 4, 32)


def points(count=64, seed=0, dtype=torch.float32):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def published(spare, **options):
    torch.manual_seed(0)
    return SDFNetwork(Octaves(6, spare), **options)


def small(encoding="octaves", dtype=torch.float64, **options):
    """A network that has left its initialisation, so that every input matters."""
    torch.manual_seed(1)
    inputs = Octaves(3) if encoding == "octaves" else HashFeatures(LEVELS, torch.randn(LEVELS.rows, 2) * 0.1)
    network = SDFNetwork(inputs, **({"width": 32, "depth": 4, "features": 3, "skip": 2} | options))
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn_like(p)
    return network.to(dtype)


@pytest.mark.parametrize(("spare", "skipped"), [(0, 217), (32, 185)])
def test_the_published_layers(spare, skipped):
    network = published(spare)
    shapes = [tuple(layer.weight.shape) for layer in network.layers]
    inner = [(256, 256)] * 2 + [(skipped, 256)] + [(256, 256)] * 4
    assert shapes == [(256, 39 + spare), *inner, (257, 256)]
    assert sum(p.numel() for p in network.parameters()) == sum(o * i + 2 * o for o, i in shapes)


@pytest.mark.parametrize("inside_out", [False, True])
@pytest.mark.parametrize(("spare", "bias"), [(0, 0.5), (32, 0.8)])
def test_it_starts_about_as_a_sphere(inside_out, spare, bias):
    network = published(spare, bias=bias, inside_out=inside_out)
    x = points(2000)
    sphere = (bias - x.norm(dim=-1)) if inside_out else (x.norm(dim=-1) - bias)
    distance, features, gradient = network(x)
    assert (distance - sphere).abs().mean() < 0.3
    assert (features - sphere[:, None]).abs().mean() < 0.3  # every output starts so
    outward = -1 if inside_out else 1
    along = (gradient * nn.functional.normalize(x, dim=-1)).sum(-1) * outward
    assert (along > 0).float().mean() > 0.98
    assert 0.4 < along.mean() < 1.3


def test_encoded_points_do_not_matter_at_the_start():
    network = published(32)
    first, fourth = network.layers[0], network.layers[4]
    assert (first.weight[:, 3:] == 0).all()
    assert (first.weight[:, :3] != 0).all()
    assert (fourth.weight[:, -68:] == 0).all()  # all that the skip brings but for the point
    assert (fourth.weight[:, 185:188] != 0).all()
    assert all((layer.bias == 0).all() for layer in network.layers[:-1])


def test_the_skip_joins_the_point_before_the_fifth_layer():
    network = published(0).double()
    x = points(10, dtype=torch.float64)
    encoded = network.encoding(x)
    h = encoded
    for index, layer in enumerate(network.layers):
        h = torch.cat([h, encoded], 1) / 2**0.5 if index == 4 else h
        h = h @ layer.weight.T + layer.bias
        h = nn.functional.softplus(h, 100) if index < 8 else h
    distance, features, _ = network(x)
    torch.testing.assert_close(torch.cat([distance[:, None], features], 1), h)
    torch.testing.assert_close(network.distance(x), h[:, 0])


@pytest.mark.parametrize("encoding", ["octaves", "hash"])
@pytest.mark.parametrize("skip", [None, 2])
def test_the_gradient_is_autograds(encoding, skip):
    network = small(encoding, skip=skip)
    x = points(dtype=torch.float64)
    distance, _, gradient = network(x)
    moved = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network.distance(moved).sum(), moved)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(distance, network.distance(x))


@pytest.mark.parametrize(("encoding", "features"), [("octaves", 3), ("hash", 3), ("hash", 0)])
def test_a_loss_of_the_gradient_has_the_gradients_of_double_differentiation(encoding, features):
    """All parameters' gradients, of a loss of distance, features and gradient, against `create_graph`."""
    network = small(encoding, features=features)
    x = points(dtype=torch.float64)
    weights = torch.rand(64, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss(distance, features, gradient):
        return (
            (gradient.norm(dim=-1) - 1).square().mean()
            + (weights * gradient).sum()
            + (features**2).mean()
            - distance.sum()
        )

    loss(*network(x)).backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    moved = x.clone().requires_grad_()
    distance, features, _ = network(moved)
    (gradient,) = torch.autograd.grad(plain_distance(network, moved).sum(), moved, create_graph=True)
    loss(distance, features, gradient).backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(found[name], p.grad, msg=name)


def plain_distance(network, x):
    """The distance with operations that autograd differentiates twice."""
    encoded = h = network.encoding(x)
    for index, layer in enumerate(network.layers):
        h = torch.cat([h, encoded], 1) / 2**0.5 if index == network.skip else h
        h = h @ layer.weight.T + layer.bias
        h = nn.functional.softplus(h, 100) if index < len(network.layers) - 1 else h
    return h[:, 0]


def test_gradcheck():
    network = small(width=8, depth=2, skip=None)
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in network.named_parameters()), strict=True)
    x = points(4, dtype=torch.float64)

    def call(*parameters):
        return torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(call, values, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("encoding", ["octaves", "hash"])
def test_float32_is_near_float64(encoding):
    exact, quick = small(encoding), small(encoding, torch.float32)
    x = points(500)
    for precise, rounded in zip(exact(x.double()), quick(x), strict=True):
        torch.testing.assert_close(rounded.double(), precise, atol=2e-5, rtol=2e-4)


def test_weight_norm_is_torchs():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(5, 7), torch.randn(5), torch.randn(9, 7)
    ours, theirs = NormalizedLinear(weight, bias), nn.Linear(7, 5)
    theirs.weight.data, theirs.bias.data = weight.clone(), bias.clone()
    theirs = nn.utils.parametrizations.weight_norm(theirs)
    torch.testing.assert_close(ours.weight, weight)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours.length.grad, theirs.parametrizations.weight.original0.grad)
    torch.testing.assert_close(ours.direction.grad, theirs.parametrizations.weight.original1.grad)


def test_levels_that_are_not_in_use_are_zero_and_untouched():
    torch.manual_seed(0)
    encoding = HashFeatures(LEVELS, torch.randn(LEVELS.rows, 2))
    whole = encoding(points())
    encoding.active = 2
    part, pullback = encoding.with_pullback(points())
    assert (part[:, 7:] == 0).all()
    torch.testing.assert_close(part[:, :7], whole[:, :7])
    torch.testing.assert_close(encoding(points()), part)
    pullback(torch.ones(64, 11)).sum().backward()
    assert (encoding.table.grad[LEVELS.starts[2] :] == 0).all()
    assert (encoding.table.grad[: LEVELS.starts[2]] != 0).any()
