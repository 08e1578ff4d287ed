"""The colour head against the target encodings in float64, value and gradient; the fused kernel of the binary one."""

import pytest
import torch

from nfc_splat.fields.color_head import ColorHead
from nfc_splat.losses import TargetEncoding
from nfc_splat.rendering.kernels.threads import available_cores, set_threads

KINDS = {"binary": "binary", "gray": "gray", "onehot": "one_hot", "thermometer": "thermometer"}
LOGITS = {"none": 1, "binary": 8, "gray": 8, "onehot": 256, "thermometer": 255}


def logits(count, head, scale=3.0, seed=0):
    return scale * torch.randn(count, head.out_features, generator=torch.Generator().manual_seed(seed))


def reference(z, encoding):
    """Colours in float64, by the encoding alone."""
    z = z.detach().double().requires_grad_()
    if encoding == "none":
        return z, z.sigmoid()
    kind = TargetEncoding(KINDS[encoding]).double()
    return z, kind(z.unflatten(-1, (3, kind.n_logits)))


@pytest.mark.parametrize("encoding", LOGITS)
def test_widths(encoding):
    head = ColorHead(encoding)
    assert head.n_logits == LOGITS[encoding]
    assert head.out_features == 3 * LOGITS[encoding]
    assert (head.encoding is None) == (encoding == "none")


@pytest.mark.parametrize("encoding", LOGITS)
@pytest.mark.parametrize("count", [0, 1, 43, 300])
def test_equals_the_encoding(encoding, count):
    head = ColorHead(encoding)
    z = logits(count, head).requires_grad_()
    colors = head(z)
    exact, expected = reference(z, encoding)
    assert colors.dtype == torch.float32
    torch.testing.assert_close(colors.double(), expected, atol=1e-6, rtol=0)
    cotangent = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(colors, z, cotangent)
    (slope,) = torch.autograd.grad(expected, exact, cotangent.double())
    torch.testing.assert_close(gradient.double(), slope, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("encoding", LOGITS)
def test_gradcheck_in_double_precision(encoding):
    head = ColorHead(encoding).double()
    z = logits(2, head).double().requires_grad_()
    assert torch.autograd.gradcheck(head, (z,), fast_mode=head.n_logits > 8)


@pytest.mark.parametrize("encoding", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_the_probabilities_behind_the_colours(encoding, dtype):
    head = ColorHead(encoding).to(dtype)
    z = logits(20, head).to(dtype).requires_grad_()
    both = head(z, bits=True)
    assert both.shape == (20, 3 + head.out_features)
    torch.testing.assert_close(both[:, :3], head(z), atol=1e-6, rtol=0)
    probabilities = both[:, 3:].view(20, 3, head.n_logits)
    torch.testing.assert_close(probabilities, head.encoding.activate(z.view(20, 3, -1)))
    (gradient,) = torch.autograd.grad(probabilities[:, 1].sum(), z)
    assert encoding == "onehot" or (gradient.view(20, 3, -1)[:, 1] > 0).all()
    assert (gradient.view(20, 3, -1)[:, [0, 2]] == 0).all()


def test_without_a_code_there_are_no_bits():
    with pytest.raises(ValueError, match="bit-wise loss needs bits"):
        ColorHead("none")(torch.zeros(2, 3), bits=True)


def test_the_code_of_203():
    bits = torch.tensor([1, 1, 0, 0, 1, 0, 1, 1]) * 2.0 - 1
    z = torch.cat([40 * bits, torch.full((8,), 40.0), torch.full((8,), 0.7)])[None]
    assert ColorHead("binary")(z)[0].tolist() == pytest.approx([203 / 255, 1.0, torch.tensor(0.7).sigmoid().item()])


@pytest.mark.parametrize("encoding", ["none", "binary"])
def test_large_logits(encoding):
    head = ColorHead(encoding)
    extremes = torch.tensor([0.0, 1e-30, 20.0, 88.0, 104.0, 1e4, 3e38, torch.inf])
    column = torch.cat([extremes, -extremes])
    z = column[:, None].expand(-1, head.out_features).contiguous().requires_grad_()
    colors = head(z)
    torch.testing.assert_close(colors.double(), column.double().sigmoid()[:, None].expand(-1, 3), atol=3e-7, rtol=0)
    colors.sum().backward()
    assert z.grad.isfinite().all()
    assert (z.grad[column.abs() > 105].abs() < 1e-30).all()


def test_gradients_keep_their_relative_accuracy_where_a_sigmoid_saturates():
    z = torch.full((1, 24), 30.0, requires_grad=True)
    ColorHead("binary")(z).sum().backward()
    shares = torch.tensor([2.0**k for k in range(7, -1, -1)]).double() / 255
    slope = torch.exp(torch.tensor(-30.0).double())
    torch.testing.assert_close(z.grad[0, :8].double(), shares * slope, atol=0, rtol=1e-4)


def test_nan_is_handed_on():
    head = ColorHead("binary")
    z = logits(50, head)
    z[7, 9] = torch.nan
    z.requires_grad_()
    colors = head(z)
    assert colors[7, 1].isnan()
    assert colors.isnan().sum() == 1
    (gradient,) = torch.autograd.grad(colors.sum(), z)
    assert gradient[7, 9].isnan()
    assert gradient.isnan().sum() == 1


@pytest.mark.parametrize("encoding", LOGITS)
def test_half_precision_is_widened(encoding):
    head = ColorHead(encoding)
    z = logits(64, head).bfloat16().requires_grad_()
    colors = head(z)
    assert colors.dtype == torch.float32
    assert torch.equal(colors, head(z.float()))
    colors.sum().backward()
    assert z.grad.dtype == torch.bfloat16


def test_strided_logits():
    head = ColorHead("binary")
    z = logits(64, head)
    assert torch.equal(head(z.t().contiguous().t()), head(z))


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores to compare one thread with two")
def test_one_thread_and_two_give_the_same_bits():
    head, results = ColorHead("binary"), []
    try:
        for threads in (1, 2):
            set_threads(threads)
            z = logits(3001, head).requires_grad_()
            colors = head(z)
            results.append((colors, *torch.autograd.grad(colors.square().sum(), z)))
    finally:
        set_threads()
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="encoding must be one of"):
        ColorHead("ternary")
    with pytest.raises(ValueError, match="logits must be"):
        ColorHead("binary")(torch.zeros(4, 3))
