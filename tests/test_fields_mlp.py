"""Multilayer perceptrons: initialisation, and the fast path against plain torch in float64, values and gradients."""

import copy

import pytest
import torch
from torch import nn

from nfc_splat.fields import mlp
from nfc_splat.fields.mlp import MLP, POOL, BufferPool, active_rows

SHAPES = {  # D, O, W, depth, skips, how much of D a skip hands on
    "linear": (5, 4, 8, 0, ()),
    "one hidden": (32, 16, 64, 1, ()),
    "two hidden": (39, 24, 64, 2, ()),
    "skips": (11, 7, 48, 5, (1, 3)),
    "last skip": (6, 3, 16, 3, (2,)),
    "trunk": (63, None, 32, 8, (4,)),
    "part of the input": (11, 3, 32, 5, (1, 3), 7),
}


def build(shape, **options):
    inputs, outputs, width, depth, skips, *part = SHAPES[shape]
    return MLP(inputs, outputs, width, depth, skips=skips, skip_dim=part[0] if part else None, **options)


def gradients(network, x, weight):
    """Output and the gradients of (weight * output).sum() with respect to x and all parameters."""
    x = x.clone().requires_grad_()
    y = network(x)
    return y.detach(), torch.autograd.grad((y * weight).sum(), [x, *network.parameters()])


def sparse_weight(rows, outputs, share, generator):
    weight = torch.randn(rows, outputs, generator=generator)
    weight[torch.rand(rows, generator=generator) >= share] = 0
    return weight


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("rows", [1, 700, 9001])
@pytest.mark.parametrize("shape", SHAPES)
def test_fast_path_equals_plain_torch(shape, rows, share):
    generator = torch.Generator().manual_seed(1)
    network = build(shape)
    exact = copy.deepcopy(network).double()
    x = torch.randn(rows, network.in_dim, generator=generator)
    weight = sparse_weight(rows, network.out_dim, share, generator)
    y, ours = gradients(network, x, weight)
    expected_y, expected = gradients(exact, x.double(), weight.double())
    assert relative(y, expected_y) < 1e-6
    for a, b in zip(ours, expected, strict=True):
        # A pre-activation within rounding of zero may fall on either side of the kink: one row of many.
        assert relative(a, b) < 1e-5 or (a.double() - b).abs().max() < 1e-5


@pytest.mark.parametrize("shape", ["two hidden", "trunk", "skips"])
def test_bf16_is_close(shape):
    """Values to 1 %, gradients of parameters to 4 % of their norm, of rows to 10 %; and no worse than autocast's."""
    generator = torch.Generator().manual_seed(2)
    network = build(shape, bf16=True)
    exact = copy.deepcopy(network).double()
    exact.bf16 = False
    x = torch.randn(20000, network.in_dim, generator=generator)
    weight = sparse_weight(20000, network.out_dim, 0.5, generator).abs()
    y, ours = gradients(network, x, weight)
    expected_y, expected = gradients(exact, x.double(), weight.double())
    network.fused = False
    _, autocast = gradients(network, x, weight)
    assert y.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in ours)
    assert 1e-4 < relative(y, expected_y) < 0.01
    errors = [relative(a, b) for a, b in zip(ours, expected, strict=True)]
    assert errors[0] < 0.1
    assert all(error < 0.04 for error in errors[1:])
    assert sum(errors) < 1.2 * sum(relative(a, b) for a, b in zip(autocast, expected, strict=True))


@pytest.mark.parametrize("bf16", [False, True])
def test_plain_and_fast_path_agree_on_the_cpu(bf16):
    network = build("two hidden", bf16=bf16)
    x = torch.randn(50, network.in_dim)
    fast = network(x)
    network.fused = False
    plain = network(x)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(fast, plain, rtol=0, atol=2e-2 if bf16 else 1e-6)


def test_the_plain_path_is_a_plain_network():
    network = build("two hidden", fused=False)
    first, second, third = network.layers
    x = torch.randn(9, network.in_dim)
    torch.testing.assert_close(network(x), nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)(x))


def test_leading_shape_and_no_rows():
    network = build("one hidden")
    x = torch.randn(3, 4, network.in_dim)
    torch.testing.assert_close(network(x), network(x.view(-1, network.in_dim)).view(3, 4, -1))
    empty = torch.zeros(0, network.in_dim, requires_grad=True)
    network(empty).sum().backward()
    assert empty.grad.shape == empty.shape
    assert all((p.grad == 0).all() for p in network.parameters())


def test_without_gradients_the_values_are_the_same():
    network = build("skips")
    x = torch.randn(9001, network.in_dim)
    expected = network(x).detach()
    with torch.no_grad():
        assert torch.equal(network(x), expected)
    with torch.inference_mode():
        assert torch.equal(network(x), expected)
    assert torch.equal(network(x).detach(), expected)  # buffers made in inference mode serve training too


def test_zero_rows_are_left_out_exactly():
    """Gradients of the rows that matter alone, to the last bit where the blocks are the same."""
    generator = torch.Generator().manual_seed(3)
    network = build("two hidden")
    x = torch.randn(1000, network.in_dim, generator=generator)
    weight = sparse_weight(1000, network.out_dim, 0.2, generator)
    rows = active_rows(weight)
    assert rows is not None
    assert 0 < len(rows) < 300
    _, (v_x, *all_rows) = gradients(network, x, weight)
    _, (v_some, *some_rows) = gradients(network, x[rows], weight[rows])
    assert torch.equal(v_x[rows], v_some)
    assert (v_x[weight.abs().sum(1) == 0] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(all_rows, some_rows, strict=True))


def test_active_rows():
    gradient = torch.zeros(6, 3)
    gradient[1, 2], gradient[4] = 1e-30, torch.tensor([1.0, -1.0, 0.0])
    gradient[5, 0] = torch.nan
    assert active_rows(gradient).tolist() == [1, 4, 5]
    assert active_rows(torch.ones(6, 3)) is None
    other = torch.zeros(6, 1)
    other[0] = 1
    assert active_rows(gradient, other).tolist() == [0, 1, 4, 5]


def test_two_calls_before_a_backward_do_not_share_memory():
    network = build("two hidden")
    a, b = torch.randn(2, 500, network.in_dim)
    parameters = list(network.parameters())
    apart = [torch.autograd.grad(network(x).square().sum(), parameters) for x in (a, b)]
    together = torch.autograd.grad(network(a).square().sum() + network(b).square().sum(), parameters)
    for first, second, both in zip(*apart, together, strict=True):
        torch.testing.assert_close(both, first + second)


def test_a_kept_graph_can_be_used_again():
    network = build("skips")
    x = torch.randn(300, network.in_dim)
    loss = network(x).square().sum()
    first = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    network(torch.randn(300, network.in_dim)).sum().backward()  # takes the buffers over
    second = torch.autograd.grad(loss, list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_changed_parameters_are_noticed():
    network = build("two hidden")
    y = network(torch.randn(10, network.in_dim))
    with torch.no_grad():
        network.layers[1].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivatives_need_the_plain_path():
    network = build("two hidden")
    x = torch.randn(4, network.in_dim, requires_grad=True)
    with pytest.raises(RuntimeError, match="fused=False"):
        torch.autograd.grad(network(x).sum(), x, create_graph=True)
    network.fused = False
    (v_x,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    v_x.square().sum().backward()
    assert network.layers[0].weight.grad.norm() > 0


@pytest.mark.parametrize("bf16", [False, True])
def test_one_thread_and_two_agree(bf16):
    network = build("skips", bf16=bf16)
    x = torch.randn(9000, network.in_dim)
    weight = sparse_weight(9000, network.out_dim, 0.5, torch.Generator().manual_seed(4))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(gradients(network, x, weight))
    finally:
        torch.set_num_threads(threads)
    (one_y, one), (two_y, two) = results
    assert relative(one_y, two_y) < 1e-6
    # The library's own matrix products may sum in another order with another number of threads.
    assert all(relative(a, b) < (2e-2 if bf16 else 1e-5) for a, b in zip(one, two, strict=True))


def test_repeats_are_bit_equal():
    network = build("skips")
    x = torch.randn(9000, network.in_dim)
    weight = sparse_weight(9000, network.out_dim, 0.5, torch.Generator().manual_seed(5))
    (one_y, one), (two_y, two) = gradients(network, x, weight), gradients(network, x, weight)
    assert torch.equal(one_y, two_y)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_buffers_are_reused():
    pool = BufferPool()
    lease = pool.take([(100, 7), (3, 5)], torch.float32)
    first, second = lease.matrices
    assert first.shape == (100, 7)
    assert second.shape == (3, 5)
    first.fill_(1)
    second.fill_(2)
    assert (first == 1).all()
    address = first.data_ptr()
    other = pool.take([(1, 1)], torch.float32)
    assert other.matrices[0].data_ptr() != address
    lease.end()
    assert pool.take([(100, 7)], torch.bfloat16).matrices[0].data_ptr() == address
    del other


def test_a_forgotten_graph_returns_its_buffer():
    network = build("trunk")
    POOL._free.clear()
    y = network(torch.randn(2000, network.in_dim))
    assert not POOL._free
    del y
    assert len(POOL._free) == 1


def test_depth_skips_and_sizes():
    network = MLP(63, 4, 256, 8, skips=(4,))
    sizes = [(layer.in_features, layer.out_features) for layer in network.layers]
    assert sizes == [(63, 256), *[(256, 256)] * 4, (319, 256), *[(256, 256)] * 2, (256, 4)]
    assert MLP(3, None, 16, 2).out_dim == 16
    with pytest.raises(ValueError, match="another layer follows"):
        MLP(3, None, 16, 2, skips=(1,))


def test_skip_puts_the_input_in_front():
    network = MLP(2, 1, 4, 1, skips=(0,), fused=False)
    x = torch.randn(5, 2)
    first, last = network.layers
    expected = last(torch.cat([x, first(x).relu()], 1))
    torch.testing.assert_close(network(x), expected)


def test_sine_initialisation_keeps_the_scale():
    """SIREN's scheme: sin(30 x) layers whose activations keep their distribution through the depth."""
    network = MLP(3, 2, 256, 4, activation="sine")
    assert network.layers[0].weight.abs().max() <= 1 / 3
    bound = (6 / 256) ** 0.5 / mlp.OMEGA
    for layer in network.layers[1:]:
        assert bound * 0.98 < layer.weight.abs().max().item() <= bound
    h, spreads = torch.rand(4000, 3) * 2 - 1, []
    for layer in network.layers[:-1]:
        h = network.act(layer(h))
        spreads.append(h.std().item())
    assert all(0.6 < spread < 0.8 for spread in spreads)  # arcsine distribution: 0.707


@pytest.mark.parametrize("activation", ["sine", "gaussian"])
def test_other_activations_differentiate_twice(activation):
    network = MLP(2, 1, 8, 2, activation=activation).double()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, x)
    assert torch.autograd.gradgradcheck(network, x)


def test_gaussian_activation():
    x = torch.tensor([0.0, mlp.GAUSSIAN_A])
    torch.testing.assert_close(mlp.Gaussian()(x), torch.tensor([1.0, 0.6065307]))


def test_without_a_graph_no_activations_are_kept():
    network = MLP(8, 4, 64, 3)
    pool = POOL
    before = pool._free
    pool._free = []
    try:
        with torch.no_grad():
            network(torch.randn(200_000, 8))
        kept = sum(buffer.numel() for buffer in pool._free)
    finally:
        pool._free = before
    assert 0 < kept < 200_000 * 64 * 4  # three activations of all rows would be three times that
