"""Input encodings: sizes, orders, values, the one choice by name."""

import math

import pytest
import torch

from nfc_splat.errors import UserError
from nfc_splat.fields.encodings import FourierFeatures, Identity, Positional, make_encoding
from nfc_splat.rendering.hash_encoding import HashLevels, hash_encode


def test_identity():
    x = torch.randn(5, 3)
    encoding = Identity(3)
    assert encoding(x) is x
    assert (encoding.in_dim, encoding.out_dim) == (3, 3)


@pytest.mark.parametrize(("octaves", "size"), [(10, 63), (4, 27), (0, 3)])
@pytest.mark.parametrize("axis_major", [False, True])
def test_positional_sizes(octaves, size, axis_major):
    encoding = Positional(3, octaves, axis_major)
    assert encoding.out_dim == size
    assert encoding(torch.rand(7, 2, 3)).shape == (7, 2, size)


def test_positional_at_the_origin():
    encoded = Positional(3, 4)(torch.zeros(1, 3))[0]
    assert encoded.tolist() == [0.0] * 3 + [0.0, 0, 0, 1, 1, 1] * 4


def test_positional_orders():
    x = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    nerf = [*x.tolist()]
    for k in range(3):
        nerf += [math.sin(2**k * v) for v in x.tolist()] + [math.cos(2**k * v) for v in x.tolist()]
    dvgo = [*x.tolist()]
    dvgo += [math.sin(2**k * v) for v in x.tolist() for k in range(3)]
    dvgo += [math.cos(2**k * v) for v in x.tolist() for k in range(3)]
    torch.testing.assert_close(Positional(3, 3)(x), torch.tensor(nerf, dtype=torch.float64))
    torch.testing.assert_close(Positional(3, 3, axis_major=True)(x), torch.tensor(dvgo, dtype=torch.float64))


def test_positional_keeps_nothing_in_the_checkpoint():
    assert not Positional(3, 4).state_dict()


def test_fourier_features():
    encoding = FourierFeatures(2, features=3, scale=5.0).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    angles = 2 * math.pi * x @ encoding.projection.T
    torch.testing.assert_close(encoding(x), torch.cat([angles.cos(), angles.sin()], 1))
    assert encoding.out_dim == 6
    assert set(encoding.state_dict()) == {"projection"}
    assert not list(encoding.parameters())


def test_fourier_scale_and_seed():
    torch.manual_seed(3)
    first = FourierFeatures(3, 4096, scale=2.0)
    torch.manual_seed(3)
    assert torch.equal(first.projection, FourierFeatures(3, 4096, scale=2.0).projection)
    assert first.projection.std().item() == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(("name", "size"), [("identity", 3), ("positional", 27), ("fourier", 20)])
def test_choice_by_name(name, size):
    assert make_encoding(name, 3, octaves=4, features=10).out_dim == size


def test_unknown_name():
    with pytest.raises(UserError, match="expected one of"):
        make_encoding("wavelet", 3)


def test_hash_needs_three_coordinates():
    with pytest.raises(UserError, match="3 coordinates"):
        make_encoding("hash", 2)


def test_hash_encodes_a_box():
    box, levels = torch.tensor([[-1.0, -2, 0], [1.0, 2, 4]]), HashLevels.between(4, 2, 10, 4, 32)
    encoding = make_encoding("hash", 3, box=box, levels=levels)
    x = torch.rand(5, 2, 3) * 4 - 1
    encoded = encoding(x)
    assert encoded.shape == (5, 2, encoding.out_dim) == (5, 2, 8)
    unit = ((x - box[0]) / (box[1] - box[0])).view(-1, 3)
    assert torch.equal(encoded.view(-1, 8), hash_encode(unit, encoding.table, levels))
    encoded.sum().backward()
    assert encoding.table.grad.norm() > 0
    assert set(encoding.state_dict()) == {"table", "box"}


def test_hash_needs_a_box():
    with pytest.raises(ValueError, match="box"):
        make_encoding("hash", 3)
