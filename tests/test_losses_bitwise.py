"""Bit-wise NFC loss (Eq. 3 of arXiv 2403.01058) and its generalisation to the other codes."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nfc_splat.losses import TargetEncoding, bitwise_classification_loss

KINDS = ("binary", "gray", "one_hot", "thermometer")
N_LOGITS = {"binary": 8, "gray": 8, "one_hot": 256, "thermometer": 255}


def probabilities(kind, *shape, dtype=torch.float64):
    return TargetEncoding(kind).activate(torch.randn(*shape, N_LOGITS[kind], dtype=dtype))


def test_equation_3_written_out():
    """j counts from the least significant bit, as in the paper."""
    bits, target = probabilities("binary", 4, 3), torch.rand(4, 3, dtype=torch.float64)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for row in range(4):
        for channel in range(3):
            label = round(255 * target[row, channel].item())
            for j in range(1, 9):
                p, y = bits[row, channel, 8 - j].item(), (label >> (j - 1)) & 1
                cross_entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
                expected[row, channel] += 2 ** (j - 1) / 255 * cross_entropy
    torch.testing.assert_close(bitwise_classification_loss(bits, target, reduction="none"), expected)
    torch.testing.assert_close(bitwise_classification_loss(bits, target), expected.mean())
    torch.testing.assert_close(bitwise_classification_loss(bits, target, reduction="sum"), expected.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_code_costs_nothing(kind):
    target = torch.arange(256.0) / 255
    code = TargetEncoding(kind).encode(target)
    assert bitwise_classification_loss(code, target, encoding=kind).item() == 0
    wrong = code.roll(1, 0)
    assert (bitwise_classification_loss(wrong, target, encoding=kind, reduction="none") > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_undecided_probabilities_cost_the_entropy_of_the_choice(kind):
    p = 1 / 256 if kind == "one_hot" else 0.5
    bits = torch.full((5, N_LOGITS[kind]), p, dtype=torch.float64)
    loss = bitwise_classification_loss(bits, torch.rand(5), encoding=kind, reduction="none")
    expected = torch.full((5,), math.log(256 if kind == "one_hot" else 2), dtype=torch.float64)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["gray", "thermometer"])
def test_other_codes_written_out(kind):
    bits, target = probabilities(kind, 6), torch.rand(6, dtype=torch.float64)
    label = TargetEncoding(kind).encode(target)
    weights = torch.tensor([128.0, 64, 32, 16, 8, 4, 2, 1]) if kind == "gray" else torch.ones(255)
    cross_entropy = torch.nn.functional.binary_cross_entropy(bits, label, reduction="none")
    expected = (cross_entropy * weights / 255).sum(-1)
    torch.testing.assert_close(bitwise_classification_loss(bits, target, encoding=kind, reduction="none"), expected)


def test_one_hot_is_the_categorical_cross_entropy():
    logits, target = torch.randn(9, 256, dtype=torch.float64), torch.rand(9, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, (255 * target).round().long())
    loss = bitwise_classification_loss(logits.softmax(-1), target, encoding="one_hot", eps=1e-9)
    torch.testing.assert_close(loss, expected)


def level_of_bits(kind, bits):
    """Hard decoding: integer bits [256, 8] to levels."""
    if kind == "gray":
        bits = bits.cumsum(-1) % 2
    return (bits * torch.tensor([128, 64, 32, 16, 8, 4, 2, 1])).sum(-1)


@pytest.mark.parametrize("kind", ["binary", "gray"])
def test_a_bit_weighs_what_flipping_it_changes_on_average(kind):
    """The rule behind the weights, counted over all 256 levels."""
    levels = torch.arange(256)
    bits = TargetEncoding(kind).encode(levels / 255).long()
    for k in range(8):
        flipped = bits.clone()
        flipped[:, k] = 1 - flipped[:, k]
        change = (level_of_bits(kind, flipped) - levels).abs().double().mean()
        assert change.item() == 2 ** (7 - k)


def test_gradient_at_logits_is_the_weighted_error():
    """Through a sigmoid, d/dz = 2^(j-1)/255 (p - y): bounded for every logit that float32 can hold."""
    z = torch.linspace(-6, 6, 8, dtype=torch.float64, requires_grad=True)
    bitwise_classification_loss(z.sigmoid(), torch.tensor(203 / 255, dtype=torch.float64)).backward()
    weights = torch.tensor([128.0, 64, 32, 16, 8, 4, 2, 1], dtype=torch.float64) / 255
    label = torch.tensor([1.0, 1, 0, 0, 1, 0, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(z.grad, weights * (z.detach().sigmoid() - label))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-3, 1e-2])
def test_wrong_beyond_eps_keeps_the_gradient_of_eps(kind, eps):
    """No dead zone and no explosion where compositing left nothing of the right answer."""
    target = torch.tensor(1.0)
    bits = torch.zeros(N_LOGITS[kind], requires_grad=True)
    loss = bitwise_classification_loss(bits, target, encoding=kind, eps=eps)
    loss.backward()
    weights = {"one_hot": torch.zeros(256)}.get(kind, TargetEncoding(kind).weights / 255)
    if kind == "one_hot":
        weights[255] = 1
    wrong = TargetEncoding(kind).encode(target) == 1
    assert loss.item() == pytest.approx((weights * wrong).sum().item() * (1 - math.log(eps)), rel=1e-5)
    torch.testing.assert_close(bits.grad[wrong], -weights[wrong] / eps)


def test_value_and_slope_are_continuous_at_eps():
    eps = 1e-3
    bits = torch.tensor([[eps * (1 - 1e-9)] * 8, [eps * (1 + 1e-9)] * 8], dtype=torch.float64, requires_grad=True)
    below, above = bitwise_classification_loss(bits, torch.ones(2, dtype=torch.float64), reduction="none")
    assert below.item() == pytest.approx(above.item(), rel=1e-8)
    grads = torch.autograd.grad(below + above, bits)[0]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_probability_gives_finite_loss_and_gradient(kind):
    tiny = torch.tensor([2.0**-e for e in range(250)])
    values = torch.cat([torch.zeros(1), tiny, 1 - tiny, 1 + tiny[20:]])
    bits = values[torch.randint(len(values), (3000, N_LOGITS[kind]))].requires_grad_()
    loss = bitwise_classification_loss(bits, torch.rand(3000), encoding=kind, reduction="none")
    assert loss.isfinite().all()
    loss.sum().backward()
    assert bits.grad.isfinite().all()
    assert bits.grad.abs().max() <= 1000 * (1 + 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    logits = torch.randn(2, 3, N_LOGITS[kind], dtype=torch.float64, requires_grad=True)
    target, mask = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    encoding = TargetEncoding(kind)

    def loss(z):
        return bitwise_classification_loss(encoding.activate(z), target, encoding=encoding, mask=mask)

    assert gradcheck(loss, (logits,), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_descent_finds_every_level(kind):
    """Plain gradient descent on logits, from an undecided head, ends within half a level of all 256 targets."""
    encoding, target = TargetEncoding(kind), torch.arange(256.0) / 255
    logits = torch.zeros(256, N_LOGITS[kind], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(250):
        optimizer.zero_grad()
        bitwise_classification_loss(encoding.activate(logits), target, encoding=encoding, reduction="sum").backward()
        optimizer.step()
    assert (encoding(logits) - target).abs().max().item() < 0.5 / 255


@pytest.mark.parametrize("kind", KINDS)
def test_masks_weight_values(kind):
    bits, target = probabilities(kind, 4, 5, 3, dtype=torch.float32), torch.rand(4, 5, 3)
    keep = torch.rand(4, 5) > 0.4
    expected = bitwise_classification_loss(bits[keep], target[keep], encoding=kind)
    bits[~keep], target[~keep] = float("nan"), float("nan")
    bits.requires_grad_()
    for mask in (keep, keep[..., None].float(), keep[..., None].expand(4, 5, 3)):
        loss = bitwise_classification_loss(bits, target, encoding=kind, mask=mask)
        torch.testing.assert_close(loss, expected)
        (grad,) = torch.autograd.grad(loss, bits)
        assert grad.isfinite().all()
        assert (grad[~keep] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_half_precision_compute_in_float32(kind):
    bits, target = probabilities(kind, 50, 3, dtype=torch.float32).bfloat16(), torch.rand(50, 3)
    expected = bitwise_classification_loss(bits.float(), target, encoding=kind, reduction="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bitwise_classification_loss(bits, target, encoding=kind, reduction="none")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert bitwise_classification_loss(bits.double(), target, encoding=kind).dtype == torch.float64


def test_an_encoding_can_be_given_by_name_or_as_a_module():
    bits, target = probabilities("gray", 7), torch.rand(7)
    by_name = bitwise_classification_loss(bits, target, encoding="gray")
    assert torch.equal(by_name, bitwise_classification_loss(bits, target, encoding=TargetEncoding("gray")))
    assert by_name != bitwise_classification_loss(bits, target)


def test_mistakes_are_named():
    bits, target = torch.rand(4, 3, 8), torch.rand(4, 3)
    with pytest.raises(ValueError, match=r"8 binary.*\(4, 3, 8\).*\(3, 4\)"):
        bitwise_classification_loss(bits, torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"255 thermometer.*\(4, 3, 8\).*\(4, 3\)"):
        bitwise_classification_loss(bits, target, encoding="thermometer")
    with pytest.raises(ValueError, match="'ternary'"):
        bitwise_classification_loss(bits, target, encoding="ternary")
    with pytest.raises(ValueError, match="none, mean, sum"):
        bitwise_classification_loss(bits, target, reduction="avg")
    with pytest.raises(ValueError, match="uint8"):
        bitwise_classification_loss(bits, target.to(torch.uint8))
    for eps in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="eps"):
            bitwise_classification_loss(bits, target, eps=eps)
    with pytest.raises(ValueError, match=r"mask.*\(4, 3\).*\(3,\)"):
        bitwise_classification_loss(bits, target, mask=torch.ones(3))
