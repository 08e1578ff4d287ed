"""Channel-wise NFC loss (arXiv 2403.01058): its numbers, gradients at the clamps, masks, precision."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from nfc_splat.losses import NFCLoss, channelwise_classification_loss, l1, mse, nfc_loss

BASES = ("mse", "l1", None)
REDUCTIONS = ("none", "mean", "sum")


def value_and_gradient(loss, pred, target, dtype=torch.float32, **settings):
    pred = torch.tensor([pred], dtype=dtype, requires_grad=True)
    value = loss(pred, torch.tensor([target], dtype=dtype), reduction="sum", **settings)
    value.backward()
    return value.item(), pred.grad.item()


def every_float32_magnitude():
    """Zero, subnormals, every power of two and the largest float, both signs, and random bit patterns."""
    powers = torch.tensor([2.0**e for e in range(-149, 128)] + [torch.finfo(torch.float32).max])
    anything = torch.randint(-(2**31), 2**31, (20_000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    return torch.cat([torch.zeros(1), powers, -powers, 1 - powers, 1 + powers, anything[anything.isfinite()]])


# The original's clamp, [0, 0.999]: what its training saw.
@pytest.mark.parametrize(
    ("pred", "target", "loss", "gradient"),
    [
        (0.9990001, 0.3, 4.836, 0.0),
        (1.0, 0.3, 4.836, 0.0),
        (1.02, 0.3, 4.836, 0.0),
        (0.999, 1.0, 0.0010, -1.001),
        (1e-4, 0.3, 2.763, -2.999e3),
        (1e-6, 0.3, 4.145, -3.0e5),
        (0.0, 0.3, 30.0, -3.0e11),
        (-1e-7, 0.3, 30.0, 0.0),
    ],
)
def test_gradients_at_the_clamps_of_the_original(pred, target, loss, gradient):
    value, grad = value_and_gradient(channelwise_classification_loss, pred, target, eps_low=0.0)
    assert value == pytest.approx(loss, rel=1e-3, abs=5e-5)
    assert grad == pytest.approx(gradient, rel=1e-3, abs=0)


@pytest.mark.parametrize(
    ("pred", "gradient"),
    [(1e-4, 0.0), (1e-6, 0.0), (0.0, 0.0), (-0.0, 0.0), (-1e-7, 0.0), (-5.0, 0.0), (1e-3, -0.299 / (1e-3 * 0.999))],
)
def test_default_lower_clamp_bounds_the_dark_side(pred, gradient):
    value, grad = value_and_gradient(channelwise_classification_loss, pred, 0.3)
    assert value == pytest.approx(-0.3 * math.log(1e-3) - 0.7 * math.log(0.999), rel=1e-6)
    assert grad == pytest.approx(gradient, rel=1e-5)


@pytest.mark.parametrize("pred", [-0.5, 0.0, 5e-4, 0.9995, 1.0, 1.7])
@pytest.mark.parametrize(
    ("base", "gradient"), [("mse", lambda p: 2 * (p - 0.3)), ("l1", lambda p: math.copysign(1, p - 0.3))]
)
def test_outside_the_clamp_only_the_base_acts_and_sees_the_prediction_as_it_is(pred, base, gradient):
    value, grad = value_and_gradient(nfc_loss, pred, 0.3, torch.float64, base=base, weight=20.0)
    clamped = min(max(pred, 1e-3), 0.999)
    error = pred - 0.3
    assert grad == pytest.approx(gradient(pred), rel=1e-12)
    assert value == pytest.approx(
        (error**2 if base == "mse" else abs(error)) - 20 * (0.3 * math.log(clamped) + 0.7 * math.log(1 - clamped))
    )


def test_default_gradient_never_exceeds_one_thousand():
    pred = torch.linspace(-0.1, 1.1, 24_001, dtype=torch.float64, requires_grad=True)
    for target in (0.0, 0.5, 1.0):
        loss = channelwise_classification_loss(pred, torch.full_like(pred, target), reduction="sum")
        (grad,) = torch.autograd.grad(loss, pred)
        assert grad.abs().max() <= 1000 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("weight", "multipliers"),
    [
        (1, {0.5: 3.0, 0.3: 3.4, 0.2: 4.1, 0.1: 6.6, 0.05: 11.5, 0.02: 26.5}),
        (2, {0.5: 5.0, 0.3: 5.8, 0.2: 7.2, 0.1: 12.1, 0.05: 22.1, 0.02: 52.0}),
        (20, {0.5: 41, 0.3: 49, 0.2: 64, 0.1: 112, 0.05: 212, 0.02: 511}),
    ],
)
def test_gradient_multiplier_over_mse(weight, multipliers):
    for p, published in multipliers.items():
        target = p + 1e-4
        _, regression = value_and_gradient(mse, p, target, torch.float64)
        _, both = value_and_gradient(nfc_loss, p, target, torch.float64, weight=weight)
        assert both / regression == pytest.approx(1 + weight / (2 * p * (1 - p)), rel=1e-9)
        assert both / regression == pytest.approx(published, abs=(0.5 if weight == 20 else 0.05) + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_cross_entropy_in_value_and_both_gradients(dtype):
    edges = torch.tensor([0.0, 1e-30, 1e-12, 1e-6, 0.5, 0.999], dtype=dtype)
    pred = torch.cat([torch.rand(500, dtype=dtype), edges]).requires_grad_()
    target = torch.rand(506, dtype=dtype).requires_grad_()
    ours = channelwise_classification_loss(pred, target, eps_low=0.0, reduction="none")
    theirs = F.binary_cross_entropy(pred.clamp(0, 1 - 1e-3), target, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    ours_grads = torch.autograd.grad(ours.sum(), (pred, target))
    theirs_grads = torch.autograd.grad(theirs.sum(), (pred, target))
    torch.testing.assert_close(ours_grads[0], theirs_grads[0], rtol=1e-5, atol=1e-5)
    positive = pred > 0  # at 0 torch's gradient of the target is infinite
    torch.testing.assert_close(ours_grads[1][positive], theirs_grads[1][positive], rtol=1e-5, atol=1e-5)
    assert ours_grads[1].isfinite().all()


def test_minimum_is_at_the_label_and_is_its_entropy():
    target = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    pred = target.clone().requires_grad_()
    loss = channelwise_classification_loss(pred, target, reduction="none")
    entropy = torch.special.entr(target) + torch.special.entr(1 - target)
    torch.testing.assert_close(loss, entropy)
    loss.sum().backward()
    assert pred.grad.abs().max() < 1e-12
    for other in (target + 0.005, target - 0.005):
        assert (channelwise_classification_loss(other, target, reduction="none") > entropy).all()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_total_is_base_plus_weighted_cross_entropy(base, reduction):
    """Eq. 6 written out in plain Python floats."""
    pred, target = torch.rand(3, 4, 3, dtype=torch.float64) * 1.2 - 0.1, torch.rand(3, 4, 3, dtype=torch.float64)
    pred[0, 0] = torch.tensor([0.0015, 0.997, 0.0])  # between the default bounds and these
    expected = torch.empty_like(pred)
    for index in range(pred.numel()):
        c, t = pred.flatten()[index].item(), target.flatten()[index].item()
        p = min(max(c, 2e-3), 1 - 5e-3)
        regression = {"mse": (c - t) ** 2, "l1": abs(c - t), None: 0.0}[base]
        expected.view(-1)[index] = regression - 3.5 * (t * math.log(p) + (1 - t) * math.log(1 - p))
    settings = {"base": base, "weight": 3.5, "eps": 5e-3, "eps_low": 2e-3, "reduction": reduction}
    loss = nfc_loss(pred, target, **settings)
    reduced = {"none": expected, "mean": expected.mean(), "sum": expected.sum()}[reduction]
    torch.testing.assert_close(loss, reduced)
    assert torch.equal(loss, NFCLoss(**settings)(pred, target)), "the module is the function"
    mask = torch.rand(3, 4)
    assert torch.equal(nfc_loss(pred, target, mask=mask, **settings), NFCLoss(**settings)(pred, target, mask))


def test_defaults_are_the_paper_s():
    pred, target = torch.rand(6, 3), torch.rand(6, 3)
    written_out = mse(pred, target) + 2.0 * channelwise_classification_loss(pred, target, eps=1e-3)
    torch.testing.assert_close(NFCLoss()(pred, target), written_out)
    assert torch.equal(nfc_loss(pred, target), NFCLoss()(pred, target))


def test_mean_of_constants():
    """Closed forms: constant images a against b."""
    pred, target = torch.full((5, 7, 3), 0.25, dtype=torch.float64), torch.full((5, 7, 3), 0.75, dtype=torch.float64)
    cross_entropy = -0.75 * math.log(0.25) - 0.25 * math.log(0.75)
    assert channelwise_classification_loss(pred, target).item() == pytest.approx(cross_entropy)
    assert nfc_loss(pred, target).item() == pytest.approx(0.25 + 2 * cross_entropy)
    assert nfc_loss(pred, target, base="l1", weight=20).item() == pytest.approx(0.5 + 20 * cross_entropy)
    assert nfc_loss(pred, target, weight=0).item() == pytest.approx(0.25)


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("base", ["l1", None])
def test_every_float32_prediction_gives_finite_loss_and_gradient(base, target):
    pred = every_float32_magnitude().requires_grad_()
    loss = nfc_loss(pred, torch.full_like(pred, target), base=base, weight=20.0, reduction="none")
    assert loss.isfinite().all()
    loss.sum().backward()
    assert pred.grad.isfinite().all()


def test_mse_gradient_is_finite_wherever_its_double_fits():
    pred = every_float32_magnitude()
    pred = pred[pred.abs() < 1e38].requires_grad_()
    (grad,) = torch.autograd.grad(nfc_loss(pred, torch.rand_like(pred), reduction="sum"), pred)
    assert grad.isfinite().all()


def test_even_the_original_clamp_has_finite_gradients():
    pred = every_float32_magnitude().requires_grad_()
    channelwise_classification_loss(pred, torch.rand_like(pred), eps_low=0.0, reduction="sum").backward()
    assert pred.grad.isfinite().all()


def test_nan_is_reported_as_nan():
    """torch's own loss raises on a CPU and kills the context on CUDA, where a gradient scaler expects NaN."""
    pred = torch.tensor([0.5, float("nan"), float("inf")], requires_grad=True)
    loss = nfc_loss(pred, torch.full((3,), 0.3), base=None, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    loss.sum().backward()
    assert pred.grad.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("base", BASES)
def test_gradcheck(base):
    pred = (torch.rand(2, 3, 3, dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    target = torch.rand(2, 3, 3, dtype=torch.float64).requires_grad_()
    mask = torch.rand(2, 3, dtype=torch.float64)

    def loss(p, t):
        return nfc_loss(p, t, base=base, mask=mask)

    assert gradcheck(loss, (pred, target))
    inside = pred.detach().clamp(0.1, 0.9).requires_grad_()
    assert gradgradcheck(loss, (inside, target))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_the_logarithm(half):
    """0.9985 and 0.999 are one bfloat16: rounding before the clamp would change the loss by orders of magnitude."""
    pred, target = torch.rand(8, 3).to(half), torch.rand(8, 3).to(half)
    loss = nfc_loss(pred, target, reduction="none")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nfc_loss(pred.float(), target.float(), reduction="none"))
    pred.requires_grad_()
    nfc_loss(pred, target).backward()
    assert pred.grad.dtype == half


@pytest.mark.parametrize("base", BASES)
def test_autocast_changes_nothing(base):
    layer = torch.nn.Linear(4, 3)
    inputs, target = torch.randn(50, 4), torch.rand(50, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pred = layer(inputs)
        assert pred.dtype == torch.bfloat16
        loss = nfc_loss(pred, target, base=base, reduction="none")
        exact = nfc_loss(layer(inputs).double(), target.double(), base=base, reduction="none")
    assert loss.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert torch.equal(loss, nfc_loss(pred.float(), target, base=base, reduction="none"))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [nfc_loss, channelwise_classification_loss, mse, l1])
class TestMask:
    """A mask weights elements; its mean is over what counts."""

    def test_masked_mean_is_the_mean_of_what_is_left(self, loss):
        pred, target, keep = torch.rand(6, 5, 3), torch.rand(6, 5, 3), torch.rand(6, 5) > 0.4
        torch.testing.assert_close(loss(pred, target, mask=keep), loss(pred[keep], target[keep]))
        torch.testing.assert_close(
            loss(pred, target, mask=keep, reduction="sum"), loss(pred[keep], target[keep], reduction="sum")
        )

    def test_weights_count_as_repetitions(self, loss):
        pred, target = torch.rand(4, 3), torch.rand(4, 3)
        repeated = torch.tensor([0, 1, 1, 3, 3, 3])
        masked = loss(pred, target, mask=torch.tensor([1, 2, 0, 3]))
        torch.testing.assert_close(masked, loss(pred[repeated], target[repeated]))

    def test_all_mask_shapes_agree(self, loss):
        pred, target, mask = torch.rand(4, 5, 3), torch.rand(4, 5, 3), torch.rand(4, 5)
        expected = loss(pred, target, mask=mask)
        assert torch.equal(loss(pred, target, mask=mask[..., None]), expected)
        assert torch.equal(loss(pred, target, mask=mask[..., None].expand(4, 5, 3)), expected)
        unreduced = loss(pred, target, reduction="none")
        torch.testing.assert_close(loss(pred, target, mask=mask, reduction="none"), unreduced * mask[..., None])

    def test_single_channels_can_be_masked(self, loss):
        pred, target = torch.rand(4, 3), torch.rand(4, 3)
        mask = torch.zeros(4, 3)
        mask[:, 1] = 1
        torch.testing.assert_close(loss(pred, target, mask=mask), loss(pred[:, 1:2], target[:, 1:2]))

    def test_a_full_mask_is_no_mask(self, loss):
        pred, target = torch.rand(4, 3), torch.rand(4, 3)
        torch.testing.assert_close(loss(pred, target, mask=torch.ones(4)), loss(pred, target))

    def test_nothing_left_gives_zero_and_no_gradient(self, loss):
        pred = torch.rand(4, 3, requires_grad=True)
        value = loss(pred, torch.rand(4, 3), mask=torch.zeros(4))
        value.backward()
        assert value.item() == 0
        assert (pred.grad == 0).all()

    def test_ignored_pixels_may_hold_anything(self, loss):
        pred, target, mask = torch.rand(4, 3), torch.rand(4, 3), torch.tensor([True, True, False, True])
        expected = loss(pred[mask], target[mask])
        pred[2], target[2] = float("nan"), float("inf")
        pred.requires_grad_()
        value = loss(pred, target, mask=mask)
        torch.testing.assert_close(value, expected)
        value.backward()
        assert (pred.grad[2] == 0).all()
        assert pred.grad.isfinite().all()

    def test_wrong_shape_names_both(self, loss):
        with pytest.raises(ValueError, match=r"mask.*\(4, 5, 3\).*\(4, 5\).*\(5, 4\)"):
            loss(torch.rand(4, 5, 3), torch.rand(4, 5, 3), mask=torch.ones(5, 4))


@pytest.mark.parametrize("loss", [nfc_loss, channelwise_classification_loss, mse, l1])
def test_mistakes_in_the_data_are_named(loss):
    with pytest.raises(ValueError, match=r"same shape.*\(4, 3\).*\(4, 1\)"):
        loss(torch.rand(4, 3), torch.rand(4, 1))
    with pytest.raises(ValueError, match=r"torch\.uint8.*255"):
        loss(torch.rand(4, 3), torch.zeros(4, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"none, mean, sum.*'avg'"):
        loss(torch.rand(4, 3), torch.rand(4, 3), reduction="avg")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -0.1}, "eps=-0.1"),
        ({"eps": 0.6, "eps_low": 0.5}, "eps_low=0.5"),
        ({"eps_low": -1e-3}, "eps_low=-0.001"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"base": "huber"}, "mse, l1 or None.*'huber'"),
        ({"weight": -1.0}, "weight.*-1.0"),
        ({"weight": float("inf")}, "weight.*inf"),
        ({"reduction": "avg"}, "none, mean, sum.*'avg'"),
    ],
)
def test_mistakes_in_the_settings_are_named_at_construction_and_at_call(settings, message):
    with pytest.raises(ValueError, match=message):
        NFCLoss(**settings)
    with pytest.raises(ValueError, match=message):
        nfc_loss(torch.rand(2, 3), torch.rand(2, 3), **settings)


@pytest.mark.gpu
@pytest.mark.parametrize("base", BASES)
def test_cuda_autocast_agrees_with_the_cpu_and_survives_nan(base):
    pred, target = torch.rand(64, 3, dtype=torch.float16), torch.rand(64, 3)
    expected = nfc_loss(pred, target, base=base, reduction="none")
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nfc_loss(pred.cuda(), target.cuda(), base=base, reduction="none")
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-5, atol=1e-6)
    pred[0] = float("nan")
    assert nfc_loss(pred.cuda(), target.cuda(), base=base).isnan().item()
