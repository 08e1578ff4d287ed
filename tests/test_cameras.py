"""Cameras: rays and projection are inverses, known geometry, sizes, and distortion against an independent oracle."""

import math

import pytest
import torch

from nfc_splat.cameras import Cameras, distort, downscaled_size, undistort

LENSES = {
    "pinhole": ("pinhole", None),
    "radial": ("opencv", [0.12, -0.05, 0.0, 0.0, 0.0, 0.0]),
    "barrel": ("opencv", [-0.28, 0.09, -0.01, 0.0, 0.0, 0.0]),
    "tangential": ("opencv", [0.0578421, -0.0805099, 0.0, -0.000980296, 0.00015575, 0.0]),
    "eight": ("opencv", [0.03, 0.02, -0.01, 0.001, -0.002, 0.004]),
    "fisheye": ("opencv_fisheye", [0.02, -0.01, 0.004, -0.001, 0.0, 0.0]),
    "fisheye_zero": ("opencv_fisheye", [0.0] * 6),
}


def rotation(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))
    return q if torch.det(q) > 0 else -q


def make(lens: str, count: int = 3, width: int = 40, height: int = 30, dtype=torch.float64) -> Cameras:
    model, coefficients = LENSES[lens]
    viewmats = torch.eye(4, dtype=dtype).repeat(count, 1, 1)
    for i in range(count):
        viewmats[i, :3, :3] = rotation(i)
        viewmats[i, :3, 3] = torch.tensor([0.3 * i, -0.2, 1.0 + i], dtype=dtype)
    K = torch.tensor([[31.0, 0, 21.3], [0, 29.0, 13.7], [0, 0, 1]], dtype=dtype)
    distortion = None if coefficients is None else torch.tensor([coefficients] * count, dtype=dtype)
    return Cameras(
        viewmats,
        K.repeat(count, 1, 1),
        torch.tensor([[width, height]] * count),
        torch.linspace(0, 1, count, dtype=dtype),
        distortion,
        model,
    )


@pytest.mark.parametrize("lens", LENSES)
def test_projecting_a_point_on_a_ray_returns_the_pixel_and_the_depth(lens):
    cameras = make(lens)
    rays = cameras.rays()
    assert rays.origins.shape == rays.directions.shape == (3, 30, 40, 3)
    depth = torch.rand(3, 30, 40, dtype=torch.float64) * 5 + 0.5
    points = rays.origins + depth[..., None] * rays.directions
    pixels, depths = cameras.project(points.reshape(3, -1, 3))
    expected = torch.stack(torch.meshgrid(torch.arange(40) + 0.5, torch.arange(30) + 0.5, indexing="xy"), -1)
    assert (pixels.reshape(3, 30, 40, 2) - expected.double()).abs().max() < 1e-5
    torch.testing.assert_close(depths.reshape(3, 30, 40), depth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lens", LENSES)
def test_listed_pixels_have_the_rays_of_the_whole_image(lens):
    cameras = make(lens)
    pixels = torch.tensor([[0, 0, 0], [2, 29, 39], [1, 7, 3], [1, 7, 4]])
    listed, whole = cameras.rays(pixels), cameras.rays()
    at = tuple(pixels.unbind(-1))
    torch.testing.assert_close(listed.directions, whole.directions[at], rtol=0, atol=1e-12)
    torch.testing.assert_close(listed.origins, whole.origins[at])
    torch.testing.assert_close(listed.times, whole.times[at])
    torch.testing.assert_close(listed.times, cameras.times[pixels[:, 0]])


def test_three_known_points():
    """A camera at (0, 0, -4) looking along +z: x to the right, y downwards, pixel = f X / Z + c."""
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4.0
    K = torch.tensor([[100.0, 0, 32], [0, 50.0, 24], [0, 0, 1]])
    camera = Cameras.pinhole(viewmat[None], K, 64, 48)
    points = torch.tensor([[0.0, 0, 0], [0.4, 0, 0], [0.0, 0.8, 4.0]])
    pixels, depths = camera.project(points)
    torch.testing.assert_close(pixels[0], torch.tensor([[32.0, 24.0], [42.0, 24.0], [32.0, 29.0]]))
    torch.testing.assert_close(depths[0], torch.tensor([4.0, 4.0, 8.0]))
    torch.testing.assert_close(camera.centers, torch.tensor([[0.0, 0, -4]]))
    ray = camera.rays(torch.tensor([[0, 24, 42]]))
    torch.testing.assert_close(ray.directions, torch.tensor([[0.105, 0.01, 1.0]]))


@pytest.mark.parametrize("lens", ["pinhole", "tangential", "fisheye"])
def test_downscaled_images_are_seen_through_the_same_rays(lens):
    """The corner shared by the four pixels of a 2x2 block is the centre of the reduced pixel."""
    cameras = make(lens)
    small = cameras.downscaled(2)
    assert (small.width, small.height) == (20, 15)
    rays = small.rays(torch.tensor([[1, 4, 9]]))
    target = rays.origins + 3 * rays.directions
    pixels, _ = cameras.project(target)
    torch.testing.assert_close(pixels[1, 0], torch.tensor([19.0, 9.0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_downscaling_odd_sizes_scales_each_axis_by_what_it_became():
    cameras = make("pinhole", width=41, height=30)
    small = cameras.downscaled(4)
    assert small.sizes[0].tolist() == [10, 8]
    torch.testing.assert_close(small.Ks[0, 0], cameras.Ks[0, 0] * 10 / 41)
    torch.testing.assert_close(small.Ks[0, 1], cameras.Ks[0, 1] * 8 / 30)
    assert small.Ks[0, 2].tolist() == [0, 0, 1]
    assert downscaled_size(torch.tensor([3, 1, 5]), 8).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"0\.5"):
        cameras.downscaled(0.5)


def test_distortion_agrees_with_kornia():
    calibration = pytest.importorskip("kornia.geometry.calibration")
    k1, k2, k3, p1, p2 = 0.1, -0.04, 0.01, 0.002, -0.003
    points = torch.rand(50, 2, dtype=torch.float64) - 0.5
    K = torch.eye(3, dtype=torch.float64)
    oracle = calibration.distort_points(points, K, torch.tensor([k1, k2, p1, p2, k3], dtype=torch.float64))
    ours = distort(points, torch.tensor([k1, k2, k3, p1, p2, 0.0], dtype=torch.float64), "opencv")
    torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-12)


def test_fisheye_without_coefficients_is_equidistant():
    """A direction at angle theta lands at radius theta, and comes back."""
    theta = torch.tensor([0.0, 0.3, 1.0, 1.4], dtype=torch.float64)
    points = torch.stack([torch.tan(theta), torch.zeros(4)], -1)
    bent = distort(points, torch.zeros(6, dtype=torch.float64), "opencv_fisheye")
    torch.testing.assert_close(bent[:, 0], theta)
    torch.testing.assert_close(undistort(bent, torch.zeros(6, dtype=torch.float64), "opencv_fisheye"), points)


def test_unreachable_pixels_get_finite_directions():
    folded = torch.tensor([-0.6, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # largest distorted radius: 0.497
    inside = undistort(torch.tensor([[0.4, 0.0]], dtype=torch.float64), folded, "opencv")
    torch.testing.assert_close(distort(inside, folded, "opencv")[0, 0].item(), 0.4)
    assert inside.norm() < 0.75  # the near side of the fold, not the far one
    assert torch.isfinite(undistort(torch.tensor([[3.0, 2.0]]), folded, "opencv")).all()
    behind = undistort(torch.tensor([[2.5, 0.0]]), torch.zeros(6), "opencv_fisheye")
    torch.testing.assert_close(behind[0, 0].item(), math.tan(math.radians(89)), rtol=1e-5, atol=0)


def test_sizes_that_differ_have_no_width():
    cameras = make("pinhole")
    mixed = Cameras.concatenate([cameras, cameras.downscaled(2)])
    assert len(mixed) == 6
    with pytest.raises(ValueError, match="2 different sizes"):
        _ = mixed.width
    with pytest.raises(ValueError, match="different sizes"):
        mixed.rays()
    assert mixed[4].rays().directions.shape == (1, 15, 20, 3)


def test_joining_cameras():
    first, second = make("tangential"), make("radial")
    both = Cameras.concatenate([first, second])
    torch.testing.assert_close(both[3:].distortion, second.distortion)
    torch.testing.assert_close(both.times, torch.cat([first.times, second.times]))
    with pytest.raises(ValueError, match="different kinds"):
        Cameras.concatenate([first, make("pinhole")])


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="Ks has shape"):
        Cameras(torch.eye(4)[None], torch.eye(3), torch.tensor([[4, 4]]))
    with pytest.raises(ValueError, match="needs distortion"):
        Cameras(torch.eye(4)[None], torch.eye(3)[None], torch.tensor([[4, 4]]), model="opencv")


def test_rays_are_differentiable_in_the_pose():
    cameras = make("pinhole", count=1)

    def directions_and_origin(viewmats):
        rays = Cameras(viewmats, cameras.Ks, cameras.sizes).rays(torch.tensor([[0, 3, 4]]))
        return rays.origins, rays.directions

    assert torch.autograd.gradcheck(directions_and_origin, cameras.viewmats.clone().requires_grad_())


def test_cameras_change_dtype_and_keep_sizes_integral():
    cameras = make("tangential").to(dtype=torch.float32)
    assert cameras.viewmats.dtype == cameras.distortion.dtype == cameras.rays().directions.dtype == torch.float32
    assert cameras.sizes.dtype == torch.int64
