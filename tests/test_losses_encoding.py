"""Target encodings: exact codes, the mathematics of soft decoding, and what a colour head needs of them."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck

from nfc_splat.losses import TargetEncoding

KINDS = ("binary", "gray", "one_hot", "thermometer")
LINEAR = ("binary", "one_hot", "thermometer")
N_LOGITS = {"binary": 8, "gray": 8, "one_hot": 256, "thermometer": 255}


def all_levels(dtype=torch.float32):
    return torch.arange(256).to(dtype) / 255


def every_float32_magnitude():
    """Zero, subnormals, every power of two and the largest float, with both signs."""
    powers = torch.tensor([2.0**e for e in range(-149, 128)] + [torch.finfo(torch.float32).max])
    return torch.cat([torch.zeros(1), powers, -powers])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact_for_all_levels(kind, dtype):
    encoding = TargetEncoding(kind)
    code = encoding.encode(all_levels(dtype))
    assert code.shape == (256, N_LOGITS[kind])
    assert encoding.n_logits == N_LOGITS[kind]
    assert code.dtype == dtype
    assert set(code.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(encoding.decode(code), all_levels(dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_carries_all_levels(kind, dtype):
    """Values and module in half precision still name the right level, because it is computed in float32."""
    encoding = TargetEncoding(kind).to(dtype)
    code = encoding.encode(all_levels().to(dtype))
    assert code.dtype == encoding.weights.dtype == dtype
    decoded = encoding.decode(code)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, all_levels())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 3), (2, 4, 6, 3)])
def test_any_leading_shape(kind, shape):
    encoding = TargetEncoding(kind)
    values = torch.rand(shape)
    code = encoding.encode(values)
    assert code.shape == (*shape, N_LOGITS[kind])
    decoded = encoding.decode(code)
    assert decoded.shape == shape
    torch.testing.assert_close(decoded, (values * 255).round() / 255)
    assert encoding(torch.zeros(*shape, N_LOGITS[kind])).shape == shape


def test_binary_is_most_significant_bit_first():
    encoding = TargetEncoding("binary")
    bits = torch.tensor([1.0, 1, 0, 0, 1, 0, 1, 1])
    assert encoding.decode(bits).item() == torch.tensor(203 / 255).item()
    assert torch.equal(encoding.encode(torch.tensor(203 / 255)), bits)
    halving = torch.tensor([2.0**-k for k in range(8)], dtype=torch.float64)
    torch.testing.assert_close(encoding.decode(torch.eye(8, dtype=torch.float64)), halving / halving.sum())


def test_codes_are_what_their_names_say():
    levels = all_levels()
    gray = TargetEncoding("gray").encode(levels)
    assert ((gray[1:] != gray[:-1]).sum(-1) == 1).all(), "neighbouring levels differ in one Gray bit"
    assert len(gray.unique(dim=0)) == 256
    assert torch.equal(gray[203], torch.tensor([1.0, 0, 1, 0, 1, 1, 1, 0]))  # 11001011 xor 01100101
    assert torch.equal(TargetEncoding("one_hot").encode(levels), torch.eye(256))
    thermometer = TargetEncoding("thermometer").encode(levels)
    assert torch.equal(thermometer.sum(-1), torch.arange(256.0))
    assert (thermometer.diff(dim=-1) <= 0).all(), "ones come first"


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_and_the_undecided_head(kind):
    encoding = TargetEncoding(kind)
    assert encoding(torch.zeros(N_LOGITS[kind])).item() == pytest.approx(0.5)
    assert encoding.decode(encoding.encode(torch.ones(()))).item() == 1
    assert encoding.decode(torch.zeros(N_LOGITS[kind])).item() == 0, "no probability at all decodes to black"


@pytest.mark.parametrize("kind", ["binary", "thermometer"])
def test_all_ones_decode_to_white(kind):
    assert TargetEncoding(kind).decode(torch.ones(N_LOGITS[kind])).item() == 1


@pytest.mark.parametrize("kind", ["binary", "thermometer"])
def test_equal_logits_decode_to_their_sigmoid(kind):
    z = torch.linspace(-12, 12, 49, dtype=torch.float64)
    logits = z[:, None].expand(-1, N_LOGITS[kind])
    torch.testing.assert_close(TargetEncoding(kind)(logits), z.sigmoid())


@pytest.mark.parametrize("kind", KINDS)
def test_activation_fits_the_code(kind):
    encoding = TargetEncoding(kind)
    probabilities = encoding.activate(torch.randn(7, 3, N_LOGITS[kind]))
    assert ((probabilities > 0) & (probabilities < 1)).all()
    sums_to_one = torch.allclose(probabilities.sum(-1), torch.ones(7, 3))
    assert sums_to_one == (kind == "one_hot")


def test_head_layout_is_channel_major():
    """24 outputs of a layer are 8 for red, 8 for green, 8 for blue."""
    outputs = torch.full((24,), -100.0)
    outputs[8] = 100.0  # the most significant bit of green
    color = TargetEncoding("binary")(outputs.unflatten(-1, (3, 8)))
    torch.testing.assert_close(color, torch.tensor([0, 128 / 255, 0]))


def test_gray_decode_is_the_expected_level_of_independent_bits():
    """Against the sum over all 256 outcomes, each with its probability."""
    p = torch.rand(8, dtype=torch.float64)
    expected = 0.0
    for bits in itertools.product((0, 1), repeat=8):
        probability, parity, level = 1.0, 0, 0
        for bit, chance in zip(bits, p.tolist(), strict=True):
            probability *= chance if bit else 1 - chance
            parity ^= bit
            level = 2 * level + parity
        expected += probability * level / 255
    assert TargetEncoding("gray").decode(p).item() == pytest.approx(expected, abs=1e-14)


def test_gray_head_starts_on_the_documented_saddle():
    p = torch.full((8,), 0.5, requires_grad=True)
    TargetEncoding("gray").decode(p).backward()
    assert p.grad[0].item() == pytest.approx(128 / 255)
    assert (p.grad[1:] == 0).all()


def composite(samples, weights):
    """Volume rendering's sum over samples: [S, ...] and [S] with a sum below 1."""
    return torch.tensordot(weights, samples, dims=1)


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_kinds_decode_before_or_after_compositing(kind):
    encoding = TargetEncoding(kind)
    probabilities = encoding.activate(3 * torch.randn(6, 4, 3, N_LOGITS[kind], dtype=torch.float64))
    weights = torch.rand(6, dtype=torch.float64).softmax(0) * 0.8
    before = composite(encoding.decode(probabilities), weights)
    after = encoding.decode(composite(probabilities, weights))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-14)


def test_gray_must_be_decoded_before_compositing():
    encoding = TargetEncoding("gray")
    codes = encoding.encode(torch.tensor([50 / 255, 200 / 255]))
    weights = torch.tensor([0.5, 0.5])
    assert composite(encoding.decode(codes), weights).item() == pytest.approx(125 / 255)
    assert abs(encoding.decode(composite(codes, weights)).item() - 125 / 255) > 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_decode_is_differentiable(kind):
    encoding = TargetEncoding(kind).double()
    logits = torch.randn(2, N_LOGITS[kind], dtype=torch.float64, requires_grad=True)
    assert gradcheck(encoding, (logits,))
    certain = encoding.encode(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).requires_grad_()
    assert gradcheck(encoding.decode, (certain,)), "at certain bits too"


@pytest.mark.parametrize("kind", KINDS)
def test_every_float32_logit_gives_finite_values_and_gradients(kind):
    extremes = every_float32_magnitude()
    logits = extremes[torch.randint(len(extremes), (2000, N_LOGITS[kind]))].requires_grad_()
    values = TargetEncoding(kind)(logits)
    assert ((values >= 0) & (values <= 1 + 1e-6)).all()
    values.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_decode_is_not_rounded_by_autocast(kind):
    encoding = TargetEncoding(kind)
    probabilities = encoding.activate(torch.randn(50, N_LOGITS[kind]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = encoding.decode(probabilities)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, encoding.decode(probabilities))


@pytest.mark.parametrize("kind", KINDS)
def test_encode_clamps_and_rounds(kind):
    encoding = TargetEncoding(kind)
    values = torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 99.6 / 255, 1.7, float("inf"), float("-inf"), float("nan")])
    levels = torch.tensor([0.0, 0, 1, 100, 255, 255, 0, 0])
    assert torch.equal(encoding.decode(encoding.encode(values)), levels / 255)


def test_weights_follow_the_module_and_stay_out_of_checkpoints():
    encoding = TargetEncoding("binary")
    assert encoding.state_dict() == {}
    assert list(encoding.parameters()) == []
    assert encoding.to("meta").weights.device.type == "meta"
    assert TargetEncoding("one_hot").double().weights.dtype == torch.float64


def test_encode_carries_no_gradient():
    assert not TargetEncoding("binary").encode(torch.rand(3, requires_grad=True)).requires_grad


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"binary, gray, one_hot, thermometer.*'grey'"):
        TargetEncoding("grey")
    with pytest.raises(ValueError, match=r"thermometer.*\[\.\.\., 255\].*\(3, 256\)"):
        TargetEncoding("thermometer").decode(torch.rand(3, 256))
    with pytest.raises(ValueError, match=r"\(\)"):
        TargetEncoding("binary").decode(torch.rand(()))
    with pytest.raises(ValueError, match=r"torch\.uint8.*255"):
        TargetEncoding("binary").encode(torch.zeros(3, dtype=torch.uint8))
