"""The reference rasteriser against closed forms, hand-computed values and a second implementation in plain loops."""

import math

import numpy as np
import pytest
import torch
from rasterize_scenes import Scene, draw, random_scene

from nfc_splat.rendering.kernels import gaussians_reference
from nfc_splat.rendering.kernels.gaussians_reference import near_cut_pixels, spherical_harmonics
from nfc_splat.rendering.rasterize import rasterize

F64 = torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def on_axis(depths, opacities, colors, *, sigma=0.1, size=(11, 9), focal=20.0, **options):
    """Round Gaussians on the optical axis of a camera whose axis goes through the centre of the middle pixel."""
    count = len(depths)
    width, height = size
    scene = {
        "means": torch.tensor([[0.0, 0.0, z] for z in depths], dtype=F64),
        "quats": torch.tensor([[1.0, 0, 0, 0]] * count, dtype=F64),
        "scales": torch.full((count, 3), sigma, dtype=F64),
        "opacities": torch.tensor(opacities, dtype=F64),
        "colors": torch.tensor(colors, dtype=F64),
        "viewmats": torch.eye(4, dtype=F64)[None],
        "Ks": torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]], dtype=F64),
    }
    return rasterize(*scene.values(), width, height, backend="reference", **options)


# ------------------------------------------------------------------------------------------------ closed forms


def test_one_gaussian_falls_off_as_its_projected_variance_says():
    image, alpha, info = on_axis([2.0], [0.8], [[1.0, 0.5, 0.25]])
    variance = (20.0 * 0.1 / 2.0) ** 2 + 0.3  # (f s / z)^2 + eps2d
    for column in range(11):
        expected = 0.8 * math.exp(-((column - 5) ** 2) / (2 * variance))
        assert alpha[0, 4, column, 0].item() == pytest.approx(expected if expected >= 1 / 255 else 0.0, abs=1e-13)
    torch.testing.assert_close(image, alpha * torch.tensor([1.0, 0.5, 0.25], dtype=F64), **TIGHT)
    torch.testing.assert_close(info.means2d[0, 0], torch.tensor([5.5, 4.5], dtype=F64), **TIGHT)
    assert info.depths.item() == 2.0
    extent = math.sqrt(2 * math.log(0.8 * 255))
    assert info.radii.tolist() == [[[math.ceil(extent * math.sqrt(variance))] * 2]]
    torch.testing.assert_close(info.conics[0, 0], torch.tensor([1 / variance, 0, 1 / variance], dtype=F64), **TIGHT)


def test_the_integral_of_alpha_is_that_of_a_gaussian_cut_at_one_255th():
    _, alpha, _ = on_axis([2.0], [0.7], [[1.0]], sigma=0.8, size=(101, 101))
    variance = 8.0**2 + 0.3
    assert alpha.sum().item() == pytest.approx(2 * math.pi * variance * (0.7 - 1 / 255), rel=2e-3)


def test_the_mean_projects_through_pose_and_intrinsics():
    scene = random_scene(3, 40, views=3, scale=(0.05, 0.06))
    with torch.no_grad():
        info = draw("reference", scene).info
    for view in range(3):
        points = scene.means.double() @ scene.viewmats[view, :3, :3].double().T + scene.viewmats[view, :3, 3].double()
        pixels = points @ scene.Ks[view].double().T
        seen = (info.radii[view] > 0).all(-1)
        assert seen.any()
        torch.testing.assert_close(info.means2d[view][seen], (pixels[:, :2] / pixels[:, 2:])[seen], **TIGHT)
        torch.testing.assert_close(info.depths[view][seen], points[seen, 2], **TIGHT)


def test_two_layers_and_a_background_composite_front_to_back():
    front, back, behind = (torch.tensor(color, dtype=F64) for color in ([1.0, 0, 0], [0, 1.0, 0], [0.2, 0.4, 0.6]))
    image, alpha, _ = on_axis([3.0, 2.0], [0.5, 0.4], [back.tolist(), front.tolist()], backgrounds=behind[None])
    expected = 0.4 * front + 0.6 * 0.5 * back + 0.6 * 0.5 * behind
    torch.testing.assert_close(image[0, 4, 5], expected, **TIGHT)
    assert alpha[0, 4, 5].item() == pytest.approx(0.7)


def test_alpha_is_capped_and_faint_gaussians_are_skipped():
    _, alpha, _ = on_axis([2.0], [1.0], [[1.0]])
    assert alpha[0, 4, 5].item() == pytest.approx(0.999, abs=1e-15)
    _, alpha, info = on_axis([2.0], [1 / 255 - 1e-9], [[1.0]])
    assert alpha.abs().max() == 0
    assert info.radii.abs().max() == 0


def test_the_gaussian_that_would_end_a_pixel_is_not_drawn_nor_anything_behind_it():
    # T: 1 -> 1e-3, then 0.95 would bring it to 5e-5 <= 1e-4. The third alone would be drawn.
    depths, colors = [2.0, 3.0, 4.0], [[1.0], [1.0], [1.0]]
    _, alpha, _ = on_axis(depths, [1.0, 0.95, 0.01], colors)
    assert alpha[0, 4, 5].item() == pytest.approx(0.999, abs=1e-15)
    _, alpha, _ = on_axis([2.0, 4.0], [1.0, 0.01], colors[:2])
    assert alpha[0, 4, 5].item() == pytest.approx(1 - 0.001 * 0.99, abs=1e-15)


def test_equal_depths_are_drawn_in_order_of_index():
    image, _, _ = on_axis([2.0, 2.0, 2.0], [0.5, 0.5, 0.5], [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    torch.testing.assert_close(image[0, 4, 5], torch.tensor([0.5, 0.25, 0.125], dtype=F64), **TIGHT)


def test_depth_of_an_opaque_plane():
    # Flat discs that tile the plane z = 3.
    x, y = torch.meshgrid(torch.linspace(-2, 2, 17, dtype=F64), torch.linspace(-2, 2, 17, dtype=F64), indexing="ij")
    means = torch.stack([x.flatten(), y.flatten(), torch.full((289,), 3.0, dtype=F64)], -1)
    quats = torch.tensor([[1.0, 0, 0, 0]], dtype=F64).expand(289, -1)
    scales = torch.tensor([[0.3, 0.3, 0.0]], dtype=F64).expand(289, -1)
    K = torch.tensor([[[20.0, 0, 6], [0, 20.0, 5], [0, 0, 1]]], dtype=F64)
    arguments = (means, quats, scales, torch.full((289,), 0.9, dtype=F64), torch.ones(289, 2, dtype=F64))
    eye = torch.eye(4, dtype=F64)[None]
    for mode, channel in (("ED", 0), ("RGB+ED", 2)):
        image, alpha, _ = rasterize(*arguments, eye, K, 12, 10, render_mode=mode, backend="reference")
        assert alpha.min() > 0.999
        torch.testing.assert_close(image[..., channel], torch.full((1, 10, 12), 3.0, dtype=F64), **TIGHT)
    for mode, channel in (("D", 0), ("RGB+D", 2)):
        image, alpha, _ = rasterize(*arguments, eye, K, 12, 10, render_mode=mode, backend="reference")
        torch.testing.assert_close(image[..., channel], 3.0 * alpha[..., 0], **TIGHT)


def test_expected_depth_is_zero_where_nothing_is():
    image, alpha, _ = on_axis([2.0], [0.5], [[1.0]], render_mode="RGB+ED", backgrounds=torch.ones(1, 1, dtype=F64))
    assert alpha[0, 0, 0] == 0
    assert image[0, 0, 0].tolist() == [1.0, 0.0]


def test_antialiasing_dims_by_the_square_root_of_the_determinants():
    _, alpha, info = on_axis([2.0], [0.8], [[1.0]], sigma=0.05, rasterize_mode="antialiased")
    variance = (20.0 * 0.05 / 2.0) ** 2
    assert alpha[0, 4, 5].item() == pytest.approx(0.8 * variance / (variance + 0.3), abs=1e-14)
    assert info.opacities.item() == pytest.approx(0.8 * variance / (variance + 0.3), abs=1e-14)


def test_the_near_and_the_far_plane_belong_to_what_is_drawn():
    _, _, info = on_axis([0.999, 1.0, 2.0, 3.0, 3.001, -2.0], [0.5] * 6, [[1.0]] * 6, near_plane=1.0, far_plane=3.0)
    assert (info.radii[0, :, 0] > 0).tolist() == [False, True, True, True, False, False]


# ---------------------------------------------------------------------------------------- spherical harmonics


def sphere_quadrature():
    """Directions and weights that integrate polynomials up to degree 8 over the sphere exactly."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angles = np.arange(16) * 2 * math.pi / 16
    z, angle = np.meshgrid(nodes, angles, indexing="ij")
    ring = np.sqrt(1 - z**2)
    directions = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], -1).reshape(-1, 3)
    return torch.from_numpy(directions), torch.from_numpy(np.repeat(weights * 2 * math.pi / 16, 16))


def test_spherical_harmonics_are_orthonormal():
    directions, weights = sphere_quadrature()
    identity = torch.eye(16, dtype=F64)[None].expand(len(directions), -1, -1)
    basis = torch.cat([spherical_harmonics(3, directions, identity[..., k : k + 3]) for k in range(0, 15, 3)], -1)
    basis = torch.cat([basis, spherical_harmonics(3, directions, identity[..., 15:])], -1)  # [Q, 16]
    torch.testing.assert_close(basis.T @ (weights[:, None] * basis), torch.eye(16, dtype=F64), **TIGHT)


@pytest.mark.parametrize(
    ("index", "direction", "value"),
    [
        (0, (0.3, -0.5, 0.8), math.sqrt(1 / (4 * math.pi))),
        (1, (0, 1, 0), -math.sqrt(3 / (4 * math.pi))),
        (2, (0, 0, 1), math.sqrt(3 / (4 * math.pi))),
        (3, (1, 0, 0), -math.sqrt(3 / (4 * math.pi))),
        (4, (1, 1, 0), 0.5462742152960396),
        (5, (0, 1, 1), -0.5462742152960396),
        (6, (0, 0, 1), 0.6307831305050401),
        (7, (1, 0, 1), -0.5462742152960396),
        (8, (1, 0, 0), 0.5462742152960396),
        (9, (0, 1, 0), 0.5900435899266435),
        (10, (1, 1, 1), 2.890611442640554 * 3**-1.5),
        (11, (0, 1, 0), 0.4570457994644658),
        (12, (0, 0, 1), 0.7463526651802308),
        (13, (1, 0, 0), 0.4570457994644658),
        (14, (1, 0, 1), 1.445305721320277 * 2**-1.5),
        (15, (1, 0, 0), -0.5900435899266435),
    ],
)
def test_spherical_harmonics_have_the_signs_of_3dgs(index, direction, value):
    coefficients = torch.zeros(16, 1, dtype=F64)
    coefficients[index] = 1
    scaled = 7.0 * torch.tensor(direction, dtype=F64)  # the length must not matter
    assert spherical_harmonics(3, scaled, coefficients).item() == pytest.approx(value, abs=1e-9)


def test_view_dependent_colour_is_seen_from_the_camera_centre_and_cut_at_zero():
    scene = random_scene(2, 1, sh_degree=1, background=False)
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.tensor([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])  # looks along +x
    viewmat[:3, 3] = torch.tensor([0.0, 0.0, -1.0])
    mean = torch.tensor([[3.0, 0.0, 0.0]])  # camera space (0, 0, 2): the camera is at (1, 0, 0)
    sh0 = torch.tensor([[[0.1, 0.1, 0.1]]])
    shN = torch.zeros(1, 15, 3)
    shN[0, 2] = torch.tensor([1.0, -1.0, 3.0])  # -sqrt(3 / 4 pi) x
    lit = Scene(mean, scene.quats, torch.full((1, 3), 0.5), torch.tensor([0.9]), (sh0, shN), viewmat[None], scene.Ks)
    drawn = draw("reference", lit.with_options(sh_degree=1))
    c0, c1 = math.sqrt(1 / (4 * math.pi)), math.sqrt(3 / (4 * math.pi))
    expected = [max(0.0, 0.5 + 0.1 * c0 - c1 * weight) for weight in (1.0, -1.0, 3.0)]
    middle = drawn.alphas[0, ..., 0].argmax()
    color = drawn.images[0].view(-1, 3)[middle] / drawn.alphas[0].view(-1)[middle]
    torch.testing.assert_close(color, torch.tensor(expected, dtype=F64), rtol=1e-6, atol=1e-7)
    assert expected[2] == 0.0


# ------------------------------------------------------------------------------------------- the same, in loops


def loops(scene: Scene):
    """The image model written down a second time: one pixel and one Gaussian at a time, in Python floats."""
    numbers = {name: tensor.double().numpy() for name, tensor in scene.parameters().items()}
    antialiased = scene.options.get("rasterize_mode") == "antialiased"
    near, far, eps = (scene.options.get(k, v) for k, v in (("near_plane", 0.01), ("far_plane", 1e10), ("eps2d", 0.3)))
    images, alphas, boxes = [], [], []
    for view, K in zip(numbers["viewmats"], scene.Ks.double().numpy(), strict=True):
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        splats, radii = [], np.zeros((len(numbers["means"]), 2), int)
        for n, mean in enumerate(numbers["means"]):
            x, y, z = view[:3, :3] @ mean + view[:3, 3]
            if z < near or z > far:
                continue
            w, a, b, c = numbers["quats"][n] / np.linalg.norm(numbers["quats"][n])
            axis = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
            rotation = np.eye(3) + 2 * w * axis + 2 * axis @ axis  # Rodrigues
            covariance = rotation @ np.diag(numbers["scales"][n] ** 2) @ rotation.T
            tan_x, tan_y = scene.width / (2 * fx), scene.height / (2 * fy)
            u = min((scene.width - cx) / fx + 0.3 * tan_x, max(-(cx / fx + 0.3 * tan_x), x / z))
            v = min((scene.height - cy) / fy + 0.3 * tan_y, max(-(cy / fy + 0.3 * tan_y), y / z))
            J = np.array([[fx / z, 0, -fx * u / z], [0, fy / z, -fy * v / z]]) @ view[:3, :3]
            sharp = J @ covariance @ J.T
            blurred = sharp + eps * np.eye(2)
            opacity = numbers["opacities"][n]
            if antialiased:
                opacity *= math.sqrt(max(0.0, np.linalg.det(sharp) / np.linalg.det(blurred)))
            if opacity < 1 / 255:
                continue
            extent = min(3.33, math.sqrt(2 * math.log(255 * opacity)))
            px, py = fx * x / z + cx, fy * y / z + cy
            rx, ry = (math.ceil(extent * math.sqrt(blurred[k, k])) for k in (0, 1))
            if px + rx <= 0 or px - rx >= scene.width or py + ry <= 0 or py - ry >= scene.height:
                continue
            radii[n] = rx, ry
            splats.append((z, n, px, py, np.linalg.inv(blurred), opacity))
        splats.sort(key=lambda splat: splat[:2])
        image = np.zeros((scene.height, scene.width, numbers["colors"].shape[1]))
        alpha = np.zeros((scene.height, scene.width, 1))
        for row in range(scene.height):
            for column in range(scene.width):
                T = 1.0
                for _, n, px, py, inverse, opacity in splats:
                    offset = np.array([px - column - 0.5, py - row - 0.5])
                    sigma = 0.5 * offset @ inverse @ offset
                    a = min(0.999, opacity * math.exp(-sigma))
                    if sigma < 0 or a < 1 / 255:
                        continue
                    if T * (1 - a) <= 1e-4:
                        break
                    image[row, column] += T * a * numbers["colors"][n]
                    T *= 1 - a
                if "backgrounds" in numbers:
                    image[row, column] += T * numbers["backgrounds"][len(images)]
                alpha[row, column] = 1 - T
        images.append(image), alphas.append(alpha), boxes.append(radii)
    return np.stack(images), np.stack(alphas), np.stack(boxes)


def tiny(seed, **options):
    """A scene of 30 Gaussians on 6x5 pixels, some behind the camera and some far outside the image."""
    scene = random_scene(seed, 30, sh_degree=None, channels=2, depth=(-0.5, 4.0), spread=3.0, **options)
    K = torch.tensor([[5.0, 0, 2.8], [0, 6.0, 2.1], [0, 0, 1]]).repeat(len(scene.viewmats), 1, 1)
    return Scene(**{**vars(scene), "Ks": K, "width": 6, "height": 5})


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(tiny(0), id="plain"),
        pytest.param(tiny(1, scale=(0.5, 2.0), opacity=(0.9, 1.0)), id="saturated"),
        pytest.param(tiny(2, rasterize_mode="antialiased", scale=(0.02, 1.0)), id="antialiased"),
        pytest.param(tiny(3, views=3), id="several cameras"),
        pytest.param(tiny(4, background=False, eps2d=0.05, near_plane=0.5, far_plane=3.0), id="other options"),
        pytest.param(tiny(5, scale=(1e-6, 3.0), opacity=(0.0, 1.0)), id="degenerate"),
    ],
)
def test_matches_plain_loops(scene):
    images, alphas, radii = loops(scene)
    drawn = draw("reference", scene)
    assert alphas.max() > 0.2
    torch.testing.assert_close(drawn.images, torch.from_numpy(images), **TIGHT)
    torch.testing.assert_close(drawn.alphas, torch.from_numpy(alphas), **TIGHT)
    assert torch.equal(drawn.info.radii, torch.from_numpy(radii).to(torch.int32))


# --------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "options",
    [{}, {"rasterize_mode": "antialiased"}, {"render_mode": "RGB+ED"}, {"render_mode": "D"}],
    ids=["classic", "antialiased", "expected depth", "depth"],
)
def test_gradients_are_those_of_finite_differences(options):
    scene = random_scene(21, 3, sh_degree=2, depth=(2.0, 4.0), scale=(0.3, 0.8), opacity=(0.3, 0.8), spread=0.4)
    K = torch.tensor([[[5.0, 0, 2.8], [0, 6.0, 2.1], [0, 0, 1]]], dtype=F64)
    tensors = {name: tensor.double().requires_grad_() for name, tensor in scene.parameters().items()}

    def image(means, quats, scales, opacities, viewmats, sh0, shN, backgrounds):
        return rasterize(
            means,
            quats,
            scales,
            opacities,
            (sh0, shN),
            viewmats,
            K,
            6,
            5,
            sh_degree=2,
            backgrounds=backgrounds,
            backend="reference",
            **options,
        )[:2]

    assert torch.autograd.gradcheck(image, tuple(tensors.values()), eps=1e-7, atol=1e-6)


def test_view_direction_carries_gradient_to_the_mean():
    # One Gaussian far wider than the image: moving it along x changes the picture through its colour alone.
    gradients = {}
    for degree in (0, 1):
        mean = torch.tensor([[0.0, 0.0, 2.0]], dtype=F64, requires_grad=True)
        color = torch.zeros(1, 4, 3, dtype=F64)
        color[0, 3] = 1.0
        arguments = (torch.ones(1, 4, dtype=F64), torch.full((1, 3), 1e4, dtype=F64), torch.tensor([0.5], dtype=F64))
        K = torch.tensor([[[5.0, 0, 3], [0, 5.0, 2.5], [0, 0, 1]]], dtype=F64)
        image, _, _ = rasterize(
            mean, *arguments, color, torch.eye(4, dtype=F64)[None], K, 6, 5, sh_degree=degree, backend="reference"
        )
        image.sum().backward()
        gradients[degree] = mean.grad[0, 0].item()
    assert abs(gradients[0]) < 1e-3
    # d/dx of -sqrt(3 / 4 pi) x / |(x, y, z)| at (0, 0, 2), in 90 values of weight 0.5
    assert gradients[1] == pytest.approx(-math.sqrt(3 / (4 * math.pi)) / 2 * 90 * 0.5, rel=1e-3)


def test_absolute_gradients_are_the_sums_over_pixels():
    scene = tiny(6).with_options(absgrad=True)
    cotangents = torch.randn(1, 5, 6, 2, dtype=F64), torch.randn(1, 5, 6, 1, dtype=F64)
    together = draw("reference", scene, cotangents).gradients
    signed, absolute = torch.zeros(1, 30, 2, dtype=F64), torch.zeros(1, 30, 2, dtype=F64)
    for row in range(5):
        for column in range(6):
            alone = torch.zeros(1, 5, 6, 1, dtype=F64)
            alone[0, row, column] = 1
            one = draw("reference", scene, (cotangents[0] * alone, cotangents[1] * alone)).gradients["means2d"]
            signed, absolute = signed + one, absolute + one.abs()
    assert (absolute > signed.abs() + 1e-6).any()
    torch.testing.assert_close(together["means2d"], signed, **TIGHT)
    torch.testing.assert_close(together["absgrad"], absolute, **TIGHT)


def test_working_in_bands_changes_nothing(monkeypatch):
    scene = random_scene(22, 50, views=2, absgrad=True)
    cotangents = torch.randn(2, 45, 67, 3, dtype=F64), torch.randn(2, 45, 67, 1, dtype=F64)
    whole = draw("reference", scene, cotangents)
    monkeypatch.setattr(gaussians_reference, "PAIRS_AT_ONCE", 50 * 67 * 4)
    banded = draw("reference", scene, cotangents)
    torch.testing.assert_close(banded.images, whole.images, **TIGHT)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(banded.gradients[name], gradient, **TIGHT)


# --------------------------------------------------------------------------------------------- near-cut pixels


@pytest.mark.parametrize(
    ("opacities", "marked"),
    [
        ([(1 + 1e-6) / 255], True),
        ([(1 + 1e-3) / 255], False),
        ([0.999 * (1 + 1e-6)], True),
        ([0.998], False),
        ([0.99, 0.99 + 1e-8], True),  # T = 1e-4 (1 - 1e-6)
        ([0.99, 0.9801], False),
        ([0.9999, 0.95, 1 / 255], False),  # the last lies behind the end of the pixel
    ],
)
def test_pixels_near_a_cut_are_marked(opacities, marked):
    _, _, info = on_axis([2.0 + index for index in range(len(opacities))], opacities, [[1.0]] * len(opacities))
    assert near_cut_pixels(info)[0, 4, 5].item() is marked


def test_pixels_that_see_nearly_equal_depths_are_marked():
    close, apart = 2.0 * (1 + 1e-8), 2.0 * (1 + 1e-4)
    for depth, marked in ((close, True), (apart, False), (2.0, False)):
        _, _, info = on_axis([2.0, depth], [0.5, 0.5], [[1.0], [0.0]])
        assert near_cut_pixels(info)[0, 4, 5].item() is marked
