"""Image metrics: against slow float64 loops, torchmetrics and closed forms; the protocols; what does not exist."""

import importlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nfc_splat.eval.images import (
    PROTOCOLS,
    ViewScore,
    mean_scores,
    mean_squared_error,
    psnr,
    quantize,
    score_view,
    ssim,
    ssim_map,
)

DEFAULT = PROTOCOLS["default"]


def images(height=24, width=31, noise=0.1, seed=0):
    """A smooth truth and a noisy rendering of it, both in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 5, width), indexing="ij")
    target = torch.stack([rows.sin().abs(), columns.cos().abs(), (rows * columns).sin() ** 2], -1)
    pred = target + noise * torch.randn(target.shape, generator=generator)
    return pred.clamp(0, 1), target


def slow_ssim(x, y, padding):
    """Structural similarity window by window, in numpy float64, with the two-dimensional kernel."""
    x, y = (np.asarray(image, dtype=np.float64) for image in (x, y))
    offsets = np.arange(11) - 5
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    if padding == "zero":
        x, y = (np.pad(image, ((5, 5), (5, 5), (0, 0))) for image in (x, y))
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            for channel in range(3):
                a = x[row : row + 11, column : column + 11, channel]
                b = y[row : row + 11, column : column + 11, channel]
                mean_a, mean_b = (kernel * a).sum(), (kernel * b).sum()
                variance_a = (kernel * (a - mean_a) ** 2).sum()
                variance_b = (kernel * (b - mean_b) ** 2).sum()
                covariance = (kernel * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = 0.01**2, 0.03**2
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                values.append(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2))
    return float(np.mean(values))


@pytest.mark.parametrize("padding", ["valid", "zero"])
@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_ssim_equals_a_slow_reference(padding, noise):
    pred, target = images(noise=noise)
    assert ssim(pred, target, padding=padding).item() == pytest.approx(slow_ssim(pred, target, padding), abs=1e-9)


def test_zero_padded_ssim_equals_the_depthwise_convolution_of_3dgs():
    """The window of 3DGS is one 2D convolution with 5 zeros around the image, in float32."""
    pred, target = images()
    offsets = torch.arange(11) - 5.0
    line = torch.exp(-offsets.square() / 4.5)
    window = ((line[:, None] * line[None]) / line.sum() ** 2).expand(3, 1, 11, 11)
    x, y = (image.movedim(-1, 0)[None] for image in (pred, target))
    blur = lambda image: torch.nn.functional.conv2d(image, window, padding=5, groups=3)  # noqa: E731
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    expected = (
        (2 * mean_x * mean_y + 1e-4) * (2 * cov + 9e-4) / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))
    )
    assert ssim(pred, target, padding="zero").item() == pytest.approx(expected.mean().item(), abs=1e-5)


def test_metrics_agree_with_torchmetrics():
    try:
        metrics = importlib.import_module("torchmetrics.functional.image")
    except Exception as error:  # a torchvision built for another torch breaks it
        pytest.skip(f"torchmetrics does not load here: {error}")
    pred, target = images(40, 50)
    x, y = (image.movedim(-1, 0)[None].double() for image in (pred, target))
    expected = metrics.peak_signal_noise_ratio(x, y, data_range=1.0)
    assert psnr(pred, target).item() == pytest.approx(expected.item(), abs=1e-5)
    # torchmetrics pads by reflection; its map without the border is ours.
    _, full = metrics.structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
    border = (full.shape[-1] - 50) // 2 + 5
    expected_map = full[0, :, border:-border, border:-border].mean(0)
    torch.testing.assert_close(ssim_map(pred, target), expected_map, atol=1e-5, rtol=0)


def test_psnr_of_a_constant_error_is_known():
    target = torch.full((12, 12, 3), 0.5)
    assert psnr(target + 0.1, target).item() == pytest.approx(20.0, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.5))
def test_ssim_is_symmetric_bounded_and_one_only_for_equals(seed, noise):
    pred, target = images(16, 16, noise, seed)
    value = ssim(pred, target).item()
    assert value == pytest.approx(ssim(target, pred).item(), abs=1e-12)
    assert -1 <= value < 1
    assert ssim(target, target).item() == pytest.approx(1.0, abs=1e-12)


def test_rounding_equals_a_png_round_trip(tmp_path):
    """torchvision's save_image, which graphdeco uses, multiplies by 255, adds a half and cuts."""
    pred, _ = images(noise=0.4)
    Image.fromarray((pred.numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)).save(tmp_path / "view.png")
    read = torch.from_numpy(np.asarray(Image.open(tmp_path / "view.png")).astype(np.float64) / 255)
    torch.testing.assert_close(quantize(pred, "round"), read, atol=0, rtol=0)


@pytest.mark.parametrize("how", ["round", "truncate"])
def test_stored_levels_survive_quantisation(how):
    levels = torch.arange(256)
    as_float = (levels.float() / 255).view(1, 256, 1)
    assert torch.equal((quantize(as_float, how) * 255).round().long().flatten(), levels)


def test_truncation_cuts_and_everything_is_clamped():
    values = torch.tensor([-1.0, 0.9999 / 255, 1.9 / 255, 2.0])
    assert (quantize(values, "truncate") * 255).tolist() == pytest.approx([0, 0, 1, 255])
    assert (quantize(values, "round") * 255).tolist() == pytest.approx([0, 1, 2, 255])
    assert quantize(values, "float").tolist() == pytest.approx([0, 0.9999 / 255, 1.9 / 255, 1])


def test_protocols_give_their_own_numbers():
    pred, target = images(noise=0.02)
    scores = {name: score_view(pred, target, None, protocol, {}) for name, protocol in PROTOCOLS.items()}
    assert len({score.psnr for score in scores.values()}) == 3
    truncated = torch.floor(pred.double() * 255) / 255
    expected = psnr(truncated, torch.floor(target.double() * 255) / 255).item()
    assert scores["nerfbaselines"].psnr == pytest.approx(expected, abs=1e-5)
    assert scores["graphdeco"].ssim == pytest.approx(
        slow_ssim(quantize(pred, "round"), quantize(target, "round"), "zero"), abs=1e-9
    )


def test_masked_pixels_do_not_count():
    pred, target = images()
    mask = torch.zeros(pred.shape[:2])
    mask[2:20, 3:25] = 1
    reference = score_view(pred, target, mask, DEFAULT, {})
    spoiled = torch.where(mask[..., None] > 0, pred, torch.rand(pred.shape))
    assert score_view(spoiled, target, mask, DEFAULT, {}) == reference
    kept = psnr(pred[2:20, 3:25], target[2:20, 3:25]).item()
    assert reference.psnr == pytest.approx(kept, abs=1e-9)
    assert score_view(pred, target, torch.ones(pred.shape[:2]), DEFAULT, {}).ssim == pytest.approx(
        ssim(pred, target).item(), abs=1e-12
    )


def test_a_fractional_mask_weighs():
    pred = torch.tensor([[[0.2] * 3, [0.4] * 3]])
    mask = torch.tensor([[1.0, 0.5]])
    expected = (0.2**2 + 0.5 * 0.4**2) / 1.5
    assert mean_squared_error(pred, torch.zeros(1, 2, 3), mask).item() == pytest.approx(expected, rel=1e-6)


def test_identical_images_have_no_psnr_and_do_not_spoil_the_mean():
    pred, target = images()
    scores = [score_view(target, target, None, DEFAULT, {}), score_view(pred, target, None, DEFAULT, {})]
    assert scores[0].psnr is None
    assert scores[0].identical
    assert scores[0].ssim == pytest.approx(1)
    summary = mean_scores(scores, DEFAULT)
    assert summary["psnr"] == scores[1].psnr
    assert summary["psnr_infinite_views"] == 1
    assert summary["ssim"] == pytest.approx((1 + scores[1].ssim) / 2)
    assert "identical" in summary["notes"][0]
    assert "Infinity" not in json.dumps(summary, allow_nan=False)


def test_a_view_smaller_than_the_window_has_psnr_but_no_valid_ssim():
    pred, target = images(10, 40)
    score = score_view(pred, target, None, DEFAULT, {})
    assert score.psnr is not None
    assert score.ssim is None
    assert score.notes["ssim"] == "40x10 is smaller than the SSIM window, 11x11"
    assert score_view(pred, target, None, PROTOCOLS["graphdeco"], {}).ssim is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_rendering_that_is_not_finite_has_no_metrics_and_says_why(value):
    pred, target = images()
    pred[3, 4, 1] = value
    score = score_view(pred, target, None, DEFAULT, {"alex": lambda a, b: 0.5})
    assert (score.psnr, score.ssim, dict(score.lpips)) == (None, None, {"alex": None})
    assert score.notes["psnr"] == "the rendering holds 1 values that are NaN or infinite"
    json.dumps(mean_scores([score], DEFAULT), allow_nan=False)


def test_an_empty_mask_has_no_metrics_and_says_why():
    pred, target = images()
    score = score_view(pred, target, torch.zeros(pred.shape[:2]), DEFAULT, {})
    assert score.psnr is None
    assert score.notes["ssim"] == "the mask keeps no pixel"


def test_a_mask_on_the_border_alone_has_no_valid_ssim():
    pred, target = images()
    mask = torch.zeros(pred.shape[:2])
    mask[0] = 1
    score = score_view(pred, target, mask, DEFAULT, {})
    assert score.psnr is not None
    assert score.ssim is None
    assert score.notes["ssim"] == "the mask keeps no window centre"


def test_perceptual_networks_see_quantised_images_with_the_truth_behind_the_mask():
    pred, target = images()
    mask = torch.zeros(pred.shape[:2])
    mask[:5] = 1
    seen = []

    def network(a, b):
        seen.extend([a, b])
        return 0.25

    score = score_view(pred, target, mask, PROTOCOLS["graphdeco"], {"vgg": network})
    assert score.lpips["vgg"] == 0.25
    torch.testing.assert_close(seen[0][:5], quantize(pred, "round")[:5])
    assert torch.equal(seen[0][5:], seen[1][5:])


def test_a_network_that_refuses_gives_its_reason():
    def network(a, b):
        raise ValueError("too small")

    score = score_view(*images(), None, DEFAULT, {"alex": network, "vgg": lambda a, b: 0.1})
    assert dict(score.lpips) == {"alex": None, "vgg": 0.1}
    assert score.notes == {"lpips_alex": "too small"}


def test_the_headline_lpips_is_the_protocols_first_network():
    scores = [ViewScore(20.0, 0.5, {"alex": 0.2, "vgg": 0.4}), ViewScore(30.0, 0.7, {"alex": 0.4, "vgg": 0.6})]
    summary = mean_scores(scores, DEFAULT)
    assert summary["lpips"] == summary["lpips_alex"] == pytest.approx(0.3)
    assert summary["lpips_vgg"] == pytest.approx(0.5)
    assert summary["psnr"] == 25.0
    assert mean_scores(scores, PROTOCOLS["graphdeco"])["lpips"] == pytest.approx(0.5)


def test_pooled_psnr_is_that_of_all_pixels_together():
    """D-NeRF's: one mean squared error over the 8-bit pictures of all views, which PSNR's mean never falls below."""
    pairs = [images(noise=noise, seed=seed) for seed, noise in enumerate((0.01, 0.1, 0.3))]
    protocol = PROTOCOLS["dnerf"]
    scores = [score_view(pred, target, None, protocol, {}) for pred, target in pairs]
    cut = lambda image: np.floor(255 * image.double().numpy()) / 255  # noqa: E731
    together = np.mean([(cut(pred) - cut(target)) ** 2 for pred, target in pairs])
    pooled = mean_scores(scores, protocol)["psnr"]
    assert pooled == pytest.approx(-10 * np.log10(together), abs=1e-9)
    assert pooled < np.mean([score.psnr for score in scores]) - 1
    same = score_view(pairs[0][1], pairs[0][1], None, protocol, {})
    expected = -10 * math.log10(scores[1].mse / 2)  # an identical view counts, with no error
    assert mean_scores([same, scores[1]], protocol)["psnr"] == pytest.approx(expected)
    assert mean_scores([same], protocol)["psnr"] is None
    lost = score_view(torch.full_like(pairs[0][0], math.nan), pairs[0][1], None, protocol, {})
    assert mean_scores([lost, scores[1]], protocol)["psnr"] == pytest.approx(scores[1].psnr)


def test_the_released_codes_figures_of_mutant_belong_together():
    """D-NeRF's notebook prints both; one view's error of that size gives the PSNR."""
    pred, target = images()
    score = replace(score_view(pred, target, None, PROTOCOLS["dnerf"], {}), mse=7.424e-4)
    assert mean_scores([score], PROTOCOLS["dnerf"])["psnr"] == pytest.approx(31.2936, abs=1e-4)


def test_the_protocols_of_moving_scenes():
    dnerf, gaussians = PROTOCOLS["dnerf"], PROTOCOLS["4dgs"]
    assert (dnerf.quantize, dnerf.ssim_padding, dnerf.lpips_nets) == ("truncate", "valid", ("vgg",))
    assert (dnerf.lpips_signed, dnerf.pooled, dnerf.left_out) == (True, True, 1)
    assert (gaussians.quantize, gaussians.ssim_padding, gaussians.lpips_nets) == ("round", "zero", ("vgg", "alex"))
    assert (gaussians.lpips_signed, gaussians.pooled, gaussians.left_out) == (False, False, 0)
    assert dnerf.describe()["psnr"] == "-10 log10 of the views' mean MSE"
    assert dnerf.describe()["left_out"] == 1


def test_shapes_that_differ_are_refused():
    pred, target = images()
    with pytest.raises(ValueError, match="rendering is"):
        score_view(pred[:-1], target, None, DEFAULT, {})


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_protocol_descriptions_are_json_and_complete(protocol):
    block = json.loads(json.dumps(protocol.describe(), allow_nan=False))
    assert {"name", "bit_depth", "ssim", "lpips", "clamp", "mask"} <= set(block)
    assert block["lpips"]["headline"] in block["lpips"]["nets"]
