"""Photometric losses: SSIM against a nested loop, a convolution and torchmetrics; closed forms; masks; precision."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from nfc_splat.losses import dssim, l1, l1_dssim, mse, ssim

C1, C2 = 0.01**2, 0.03**2
PADDINGS = ("zero", "valid")


def taps():
    weights = torch.tensor([math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)], dtype=torch.float64)
    return weights / weights.sum()


def similar_images(*shape, dtype=torch.float64):
    """A smooth image and a noisy copy, so that SSIM is neither 0 nor 1."""
    target = torch.rand(shape, dtype=dtype)
    return (target + 0.2 * torch.randn(shape, dtype=dtype)).clamp(0, 1), target


def slow_ssim(x, y, padding):
    """SSIM of one pixel after the other, from its definition; x and y are [H, W] float64."""
    height, width = x.shape
    kernel = taps().tolist()
    margin = 5 if padding == "valid" else 0
    result = torch.empty(height - 2 * margin, width - 2 * margin, dtype=torch.float64)
    for row in range(margin, height - margin):
        for column in range(margin, width - margin):
            window = [
                (kernel[i + 5] * kernel[j + 5], x[row + i, column + j].item(), y[row + i, column + j].item())
                for i in range(-5, 6)
                for j in range(-5, 6)
                if 0 <= row + i < height and 0 <= column + j < width  # zeros outside add nothing
            ]
            mean_x, mean_y = sum(w * a for w, a, _ in window), sum(w * b for w, _, b in window)
            variance_x = sum(w * a * a for w, a, _ in window) - mean_x**2
            variance_y = sum(w * b * b for w, _, b in window) - mean_y**2
            covariance = sum(w * a * b for w, a, b in window) - mean_x * mean_y
            result[row - margin, column - margin] = (
                (2 * mean_x * mean_y + C1)
                * (2 * covariance + C2)
                / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2))
            )
    return result


def convolution_ssim(pred, target, padding):
    """SSIM by 11x11 convolutions, as 3DGS computes it; [H, W, C] images."""
    x, y = pred.permute(2, 0, 1)[:, None], target.permute(2, 0, 1)[:, None]
    window = torch.outer(taps(), taps()).to(pred)[None, None]
    mean_x, mean_y, xx, yy, xy = (
        F.conv2d(z, window, padding=5 if padding == "zero" else 0) for z in (x, y, x * x, y * y, x * y)
    )
    values = (2 * mean_x * mean_y + C1) * (2 * (xy - mean_x * mean_y) + C2)
    values = values / ((mean_x**2 + mean_y**2 + C1) * (xx - mean_x**2 + yy - mean_y**2 + C2))
    return values[:, 0].permute(1, 2, 0)


@pytest.mark.parametrize("padding", PADDINGS)
def test_ssim_equals_the_nested_loop(padding):
    pred, target = similar_images(13, 12, 2)
    expected = torch.stack([slow_ssim(pred[..., c], target[..., c], padding) for c in range(2)], dim=-1)
    assert expected.shape == ((13, 12, 2) if padding == "zero" else (3, 2, 2))
    torch.testing.assert_close(ssim(pred, target, padding=padding, reduction="none"), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ssim(pred, target, padding=padding), expected.mean())
    torch.testing.assert_close(ssim(pred, target, padding=padding, reduction="sum"), expected.sum())


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_ssim_equals_the_convolution_in_value_and_gradient(padding, dtype, tolerance):
    pred, target = similar_images(33, 21, 3)
    reference = pred.clone().requires_grad_()
    expected = convolution_ssim(reference, target, padding)
    cotangent = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, reference, cotangent)
    pred = pred.to(dtype).requires_grad_()
    values = ssim(pred, target.to(dtype), padding=padding, reduction="none")
    (grad,) = torch.autograd.grad(values, pred, cotangent.to(dtype))
    assert values.dtype == grad.dtype == dtype
    assert (values - expected).norm() / expected.norm() < tolerance
    assert (grad - expected_grad).norm() / expected_grad.norm() < tolerance


def test_valid_ssim_equals_torchmetrics_away_from_the_border():
    """torchmetrics reflects the image at its border and (in 1.9) averages there too; the inside is the valid map."""
    functional = pytest.importorskip("torchmetrics.functional.image")
    pred, target = similar_images(2, 40, 31, 3)
    _, full_map = functional.structural_similarity_index_measure(
        pred.permute(0, 3, 1, 2),
        target.permute(0, 3, 1, 2),
        data_range=1.0,
        sigma=1.5,
        kernel_size=11,
        return_full_image=True,
    )
    expected = full_map[..., 5:-5, 5:-5].permute(0, 2, 3, 1)
    torch.testing.assert_close(ssim(pred, target, padding="valid", reduction="none"), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.2, 0.7), (0.5, 0.5), (1.0, 0.9)])
def test_constant_images_have_closed_forms(a, b):
    pred = torch.full((14, 17, 3), a, dtype=torch.float64)
    target = torch.full((14, 17, 3), b, dtype=torch.float64)
    valid = (2 * a * b + C1) / (a * a + b * b + C1)
    assert ssim(pred, target, padding="valid").item() == pytest.approx(valid, abs=1e-12)
    assert dssim(pred, target, padding="valid").item() == pytest.approx(1 - valid, abs=1e-12)
    # Zero padding: the part m of the window inside the image gives means m a, variances m (1 - m) a^2.
    inside = F.conv1d(torch.ones(2, 1, 17, dtype=torch.float64), taps()[None, None], padding=5)[0, 0]
    rows = F.conv1d(torch.ones(1, 1, 14, dtype=torch.float64), taps()[None, None], padding=5)[0, 0]
    m = rows[:, None] * inside
    luminance = (2 * m * m * a * b + C1) / (m * m * (a * a + b * b) + C1)
    structure = (2 * m * (1 - m) * a * b + C2) / (m * (1 - m) * (a * a + b * b) + C2)
    expected = luminance * structure
    torch.testing.assert_close(ssim(pred, target, reduction="none"), expected[..., None].expand(-1, -1, 3))
    assert ssim(pred, target).item() == pytest.approx(expected.mean().item(), abs=1e-12)
    assert l1(pred, target).item() == pytest.approx(abs(a - b))
    assert mse(pred, target).item() == pytest.approx((a - b) ** 2)
    assert l1_dssim(pred, target).item() == pytest.approx(0.8 * abs(a - b) + 0.2 * (1 - expected.mean().item()))


@pytest.mark.parametrize("padding", PADDINGS)
def test_ssim_properties(padding):
    pred, target = similar_images(20, 24, 3)
    torch.testing.assert_close(
        ssim(target, target, padding=padding, reduction="none"),
        torch.ones_like(ssim(target, target, padding=padding, reduction="none")),
    )
    torch.testing.assert_close(ssim(pred, target, padding=padding), ssim(target, pred, padding=padding))
    inverted = ssim(1 - target, target, padding=padding, reduction="none")
    assert (inverted >= -1).all()
    assert (inverted < 1).all()
    assert ssim(1 - target, target, padding=padding) < 0 < ssim(pred, target, padding=padding) < 1
    turned = ssim(pred.transpose(0, 1), target.transpose(0, 1), padding=padding)
    torch.testing.assert_close(turned, ssim(pred, target, padding=padding))


@pytest.mark.parametrize("padding", PADDINGS)
def test_images_and_channels_of_a_batch_do_not_mix(padding):
    pred, target = similar_images(2, 3, 15, 13, 4)
    batched = ssim(pred, target, padding=padding, reduction="none")
    for i in range(2):
        for j in range(3):
            for c in range(4):
                alone = ssim(
                    pred[i, j, ..., c : c + 1], target[i, j, ..., c : c + 1], padding=padding, reduction="none"
                )
                torch.testing.assert_close(batched[i, j, ..., c : c + 1], alone)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (4, 3), (10, 10)])
def test_small_images(size):
    pred, target = similar_images(*size, 3)
    assert ssim(pred, target, reduction="none").shape == (*size, 3)
    assert ssim(target, target).item() == pytest.approx(1)
    for loss in (ssim, dssim, l1_dssim):
        with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*11x11.*zero"):
            loss(pred, target, padding="valid")
    assert ssim(torch.rand(11, 11, 3), torch.rand(11, 11, 3), padding="valid", reduction="none").shape == (1, 1, 3)


@pytest.mark.parametrize("padding", PADDINGS)
def test_gradcheck(padding):
    pred, target = similar_images(12, 11, 2)
    mask = torch.rand(12, 11, dtype=torch.float64)
    mask[4:7, 5] = 0
    pred.requires_grad_()
    target.requires_grad_()
    assert gradcheck(lambda x, y: ssim(x, y, padding=padding, reduction="none"), (pred, target), fast_mode=True)
    assert gradcheck(lambda x, y: l1_dssim(x, y, padding=padding, mask=mask), (pred, target), fast_mode=True)


def test_l1_and_mse_gradients():
    pred = torch.tensor([0.2, 0.5, 0.9], requires_grad=True)
    target = torch.tensor([0.5, 0.5, 0.5])
    (grad,) = torch.autograd.grad(l1(pred, target, reduction="sum"), pred)
    assert grad.tolist() == [-1, 0, 1]
    (grad,) = torch.autograd.grad(mse(pred, target, reduction="sum"), pred)
    torch.testing.assert_close(grad, torch.tensor([-0.6, 0, 0.8]))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_mixture_is_the_weighted_sum(padding, weight):
    pred, target = similar_images(2, 16, 18, 3)
    for mask in (None, torch.rand(2, 16, 18) > 0.3):
        expected = (1 - weight) * l1(pred, target, mask=mask)
        expected = expected + weight * (1 - ssim(pred, target, padding=padding, mask=mask))
        torch.testing.assert_close(l1_dssim(pred, target, dssim_weight=weight, padding=padding, mask=mask), expected)
    torch.testing.assert_close(l1_dssim(pred, target), 0.8 * l1(pred, target) + 0.2 * dssim(pred, target))


@pytest.mark.parametrize("padding", PADDINGS)
class TestSsimMask:
    """The map is weighted, and an ignored pixel reaches neither its neighbours nor the gradient."""

    def test_weights_the_map(self, padding):
        pred, target = similar_images(2, 20, 19, 3)
        mask = 0.1 + torch.rand(2, 20, 19, dtype=torch.float64)
        values = ssim(pred, target, padding=padding, reduction="none")
        weights = (mask if padding == "zero" else mask[:, 5:-5, 5:-5])[..., None].expand_as(values)
        expected = (weights * values).sum() / weights.sum()
        torch.testing.assert_close(ssim(pred, target, padding=padding, mask=mask), expected)
        torch.testing.assert_close(dssim(pred, target, padding=padding, mask=mask), 1 - expected)
        torch.testing.assert_close(ssim(pred, target, padding=padding, mask=mask, reduction="none"), weights * values)

    def test_what_an_ignored_pixel_holds_does_not_matter(self, padding):
        pred, target = similar_images(20, 19, 3)
        mask = torch.ones(20, 19, dtype=torch.bool)
        mask[8:12, 6:9] = False
        expected = l1_dssim(pred, target, padding=padding, mask=mask)
        pred[~mask], target[~mask] = float("nan"), 7.0
        pred.requires_grad_()
        loss = l1_dssim(pred, target, padding=padding, mask=mask)
        assert torch.equal(loss, expected)
        loss.backward()
        assert (pred.grad[~mask] == 0).all()
        assert (pred.grad[mask] != 0).all()

    def test_equal_outside_the_mask_is_perfect(self, padding):
        target = torch.rand(16, 16, 3, dtype=torch.float64)
        pred, mask = target.clone(), torch.ones(16, 16)
        pred[7, 7], mask[7, 7] = 1 - pred[7, 7], 0
        assert l1_dssim(pred, target, padding=padding, mask=mask).item() == pytest.approx(0, abs=1e-14)

    def test_nothing_left_is_no_loss(self, padding):
        pred, target = similar_images(12, 12, 3)
        pred.requires_grad_()
        loss = l1_dssim(pred, target, padding=padding, mask=torch.zeros(12, 12))
        loss.backward()
        assert loss.item() == 0
        assert (pred.grad == 0).all()


@pytest.mark.parametrize("padding", PADDINGS)
def test_half_precision_and_autocast_compute_in_float32(padding):
    pred, target = similar_images(2, 24, 24, 3, dtype=torch.float32)
    half = pred.bfloat16()
    for loss in (ssim, dssim, l1_dssim):
        expected = loss(half.float(), target, padding=padding)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(half, target, padding=padding), expected)
        assert expected.dtype == torch.float32
        assert loss(pred.double(), target, padding=padding).dtype == torch.float64


def test_flat_bright_images_are_equal_in_float32():
    """The variance of a constant is the difference of two equal numbers; its rounding must stay far below C2."""
    white = torch.ones(64, 64, 3)
    torch.testing.assert_close(ssim(white, white, reduction="none"), white, rtol=0, atol=1e-6)
    torch.testing.assert_close(ssim(white * 0.999, white, padding="valid").item(), 1.0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("loss", [ssim, dssim, l1_dssim])
def test_mistakes_are_named(loss):
    image = torch.rand(12, 12, 3)
    with pytest.raises(ValueError, match=r"same shape.*\(12, 12, 3\).*\(12, 12\)"):
        loss(image, torch.rand(12, 12))
    with pytest.raises(ValueError, match=r"zero, valid.*'same'"):
        loss(image, image, padding="same")
    with pytest.raises(ValueError, match=r"\[\.\.\., H, W, C\].*\(12, 12\)"):
        loss(image[..., 0], image[..., 0])
    with pytest.raises(ValueError, match=r"mask.*\(12, 12, 3\).*\(3, 3\)"):
        loss(image, image, mask=torch.ones(3, 3))
    with pytest.raises(ValueError, match="uint8"):
        loss(image, image.to(torch.uint8))


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_mixture_weight_out_of_range(weight):
    with pytest.raises(ValueError, match="dssim_weight"):
        l1_dssim(torch.rand(12, 12, 3), torch.rand(12, 12, 3), dssim_weight=weight)


@pytest.mark.gpu
@pytest.mark.parametrize("padding", PADDINGS)
def test_cuda_agrees_with_the_cpu_under_autocast(padding):
    pred, target = similar_images(2, 64, 48, 3, dtype=torch.float32)
    expected = ssim(pred, target, padding=padding, reduction="none")
    with torch.autocast("cuda", dtype=torch.float16):
        values = ssim(pred.cuda(), target.cuda(), padding=padding, reduction="none")
    torch.testing.assert_close(values.cpu(), expected, rtol=1e-4, atol=1e-5)
