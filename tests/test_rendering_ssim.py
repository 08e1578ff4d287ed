"""The fused SSIM kernel against the plain torch loss in float64, value and gradient."""

import pytest
import torch

from nfc_splat.fields.image_ssim import image_ssim
from nfc_splat.losses import ssim as reference
from nfc_splat.rendering.kernels.ssim_cpu import ssim


def images(height, width, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(height, width, channels, generator=generator)
    noise = torch.rand(height, width, channels, generator=generator)
    return (0.7 * target + 0.3 * noise).requires_grad_(), target


def compare(pred, target, mask=None):
    exact = reference(pred.double(), target.double(), mask=mask)
    fused = ssim(pred, target, mask)
    (expected,) = torch.autograd.grad(exact, pred)
    (gradient,) = torch.autograd.grad(fused, pred)
    assert fused.item() == pytest.approx(exact.item(), abs=1e-6)
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (11, 11), (17, 5), (37, 53), (16, 128), (33, 43), (64, 200)])
def test_equals_the_loss(size):
    compare(*images(*size))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels(channels):
    compare(*images(20, 31, channels))


@pytest.mark.parametrize("kind", ["binary", "weights", "one pixel", "no pixel"])
def test_masks(kind):
    pred, target = images(29, 41, seed=1)
    mask = torch.rand(29, 41, generator=torch.Generator().manual_seed(2))
    if kind == "binary":
        mask = (mask > 0.4).float()
    if "pixel" in kind:
        mask = torch.zeros(29, 41)
    if kind == "one pixel":
        mask[7, 8] = 1.0
    compare(pred, target, mask)


def test_ignored_pixels_may_hold_anything():
    pred, target = images(20, 20)
    mask = torch.ones(20, 20)
    mask[3:9, 4:12] = 0
    spoilt = pred.detach().clone()
    spoilt[mask == 0] = torch.nan
    spoilt.requires_grad_()
    value = ssim(spoilt, target, mask)
    assert value.item() == ssim(pred, target, mask).item()
    (gradient,) = torch.autograd.grad(value, spoilt)
    assert gradient.isfinite().all()
    assert (gradient[mask == 0] == 0).all()


def test_equal_images_score_one_and_flat_regions_stay_finite():
    target = torch.zeros(24, 24, 3)
    target[:, 12:] = 1.0
    pred = target.clone().requires_grad_()
    value = ssim(pred, target)
    (gradient,) = torch.autograd.grad(value, pred)
    assert value.item() == pytest.approx(1.0, abs=1e-6)
    assert gradient.abs().max() < 1e-5


def test_the_recipe_uses_either_alike():
    pred, target = images(30, 30)
    several = torch.stack([pred, pred]), torch.stack([target, target])
    assert image_ssim(pred[None], target[None], None).item() == pytest.approx(
        image_ssim(*several, None).item(), abs=1e-6
    )


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="alike"):
        ssim(torch.zeros(3, 4, 3), torch.zeros(4, 3, 3))
