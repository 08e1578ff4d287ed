"""Area reduction, lens removal and straight alpha, against closed forms."""

import numpy as np
import pytest
import torch

from nfc_splat.cameras import Cameras
from nfc_splat.data.resample import Remap, area_reduce, resample, undistorted_intrinsics


def exact_area(values: np.ndarray, size: int) -> np.ndarray:
    """Mean over fractional pixel ranges, by adding up overlaps one by one (along the first axis)."""
    old = len(values)
    result = np.zeros((size, *values.shape[1:]))
    for j in range(size):
        low, high = j * old / size, (j + 1) * old / size
        for i in range(old):
            overlap = max(0.0, min(high, i + 1) - max(low, i))
            result[j] += overlap * values[i]
    return result * size / old


@pytest.mark.parametrize(("old", "new"), [(12, 4), (13, 4), (7, 7), (10, 9), (30, 1), (31, 30)])
def test_area_reduction_is_the_mean_over_the_area(old, new):
    image = np.random.default_rng(0).uniform(0, 255, (old, 9, 3))
    expected = exact_area(exact_area(image, new).transpose(1, 0, 2), 5).transpose(1, 0, 2)
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    reduced = area_reduce(picture, 5, new)[0].permute(1, 2, 0)
    np.testing.assert_allclose(reduced.numpy(), expected, atol=1e-3)


def test_reducing_keeps_constant_images_and_rounds():
    constant = np.full((37, 23, 3), 200, np.uint8)
    assert (resample(constant, 9, 8, None) == 200).all()
    stripes = np.zeros((4, 4), np.uint8)
    stripes[:, ::2] = 3
    assert (resample(stripes, 2, 2, None) == 2).all()  # 1.5 rounds up
    assert resample(stripes, 4, 4, None) is stripes


def test_alpha_weights_colours_so_that_compositing_commutes():
    """Reducing and then compositing equals compositing and then reducing, over any background."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (24, 24, 4)).astype(np.uint8)
    image[:12, :, 3] = np.where(rng.random((12, 24)) < 0.5, 255, 0)
    small = resample(image, 8, 8, None).astype(float)
    for background in (0.0, 255.0, 93.0):
        alpha = image[..., 3:] / 255
        composited = image[..., :3] * alpha + background * (1 - alpha)
        expected = composited.reshape(8, 3, 8, 3, 3).mean((1, 3))
        result = small[..., :3] * small[..., 3:] / 255 + background * (1 - small[..., 3:] / 255)
        assert np.abs(result - expected).max() < 1.1  # one rounding of colour, one of alpha


def test_hidden_colours_do_not_bleed():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = 10, 20, 30, 255
    image[1, 1] = 255, 0, 255, 0
    assert resample(image, 1, 1, None)[0, 0].tolist() == [10, 20, 30, 64]


def camera(model: str, coefficients: list[float], width: int = 80, height: int = 60) -> Cameras:
    K = torch.tensor([[70.0, 0, 41.0], [0, 72.0, 28.5], [0, 0, 1]], dtype=torch.float64)
    K[:2] *= width / 80
    return Cameras(
        torch.eye(4, dtype=torch.float64)[None],
        K[None],
        torch.tensor([[width, height]]),
        distortion=torch.tensor([coefficients], dtype=torch.float64),
        model=model,
    )


LENSES = {
    "barrel": ("opencv", [-0.25, 0.06, 0, 0, 0, 0]),
    "pincushion": ("opencv", [0.15, -0.02, 0, 0, 0, 0]),
    "tangential": ("opencv", [0.05, -0.08, 0, -0.004, 0.006, 0]),
    "moustache": ("opencv", [-0.3, 0.35, -0.05, 0, 0, 0]),
    "fisheye": ("opencv_fisheye", [0.01, -0.005, 0, 0, 0, 0]),
    "folded": ("opencv", [-0.9, 0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("lens", LENSES)
def test_no_blank_borders_and_nothing_wasted(lens):
    """White stays white everywhere, and each side comes within two pixels of the picture's border."""
    source = camera(*LENSES[lens])
    remap = Remap(source, undistorted_intrinsics(source))
    points = remap.source_points()
    assert points.min() >= 0.49
    assert (points.amax((0, 1)) <= torch.tensor([79.51, 59.51])).all()
    assert (resample(np.full((60, 80, 3), 255, np.uint8), 80, 60, remap) == 255).all()
    if lens != "folded":
        edges = (points[:, 0, 0].min(), 80 - points[:, -1, 0].max(), points[0, :, 1].min(), 60 - points[-1, :, 1].max())
        assert all(edge < 2.0 for edge in edges)


@pytest.mark.parametrize("lens", ["barrel", "tangential", "fisheye"])
def test_undistorted_pixels_hold_what_their_ray_sees(lens):
    """A picture whose colours say where each ray goes, taken through the lens, says the same of the pinhole's rays."""
    source = camera(*LENSES[lens], width=160, height=120)
    ideal = source.rays().directions[0, ..., :2]  # camera at the origin, axes aligned: x/z and y/z
    scale = 60.0
    picture = (ideal * scale + 128).permute(2, 0, 1)[None].float()
    K = undistorted_intrinsics(source)
    straight = Remap(source, K)(picture)
    pinhole = Cameras.pinhole(source.viewmats, K, 160, 120)
    expected = (pinhole.rays().directions[0, ..., :2] * scale + 128).permute(2, 0, 1)[None].float()
    assert (straight - expected).abs().max() < 0.01 * scale / 140  # a hundredth of a pixel


def test_lens_removal_weights_by_alpha():
    source = camera(*LENSES["barrel"])
    remap = Remap(source, undistorted_intrinsics(source))
    image = np.zeros((60, 80, 4), np.uint8)
    image[:, :40] = 50, 100, 150, 255
    image[:, 40:] = 255, 255, 255, 0
    result = resample(image, 80, 60, remap)
    seen = result[..., 3] > 20
    assert 0.3 < seen.mean() < 0.7
    assert np.abs(result[seen][:, :3].astype(int) - [50, 100, 150]).max() <= 6


def test_an_identity_lens_changes_nothing_inside():
    source = camera("opencv", [0.0, 0, 0, 1e-12, 0, 0])
    picture = torch.rand(1, 3, 60, 80) * 255
    result = Remap(source, source.Ks[0])(picture)
    torch.testing.assert_close(result, picture, rtol=0, atol=0.02)


def test_hopeless_coefficients_are_an_error():
    with pytest.raises(ValueError, match="implausible"):
        undistorted_intrinsics(camera("opencv", [-1000.0, 0, 0, 0, 0, 0]))
