"""What every rasterisation backend promises, whatever it is made of: ranges, limits, determinism, and that bad rows
never reach a pixel."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterize_scenes import Scene, draw, random_scene

from nfc_splat.rendering.kernels.backends import available_backends

PARAMETERS = ("means", "quats", "scales", "opacities", "sh0", "shN")


@pytest.fixture(params=["reference32", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request):
    """A float32 backend that can run here."""
    if request.param == "cuda" and not available_backends()["cuda"].usable:
        pytest.skip(available_backends()["cuda"].reason)
    return request.param


def cotangents(scene: Scene, seed: int = 0):
    """Random cotangents of a scene's image and alpha."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(scene.viewmats), scene.height, scene.width)
    channels = {"D": 1, "ED": 1, "RGB": 3}.get(scene.options.get("render_mode", "RGB"), 4)
    return torch.randn(*shape, channels, generator=generator), torch.randn(*shape, 1, generator=generator)


def spoil(scene: Scene, name: str, value, row: int = 7) -> Scene:
    """The scene with one number (or one row, if `value` has several) of one parameter replaced."""
    tensors = {key: tensor.clone() for key, tensor in scene.parameters().items()}
    target = tensors[name][row].view(-1)
    if isinstance(value, torch.Tensor) or name == "opacities":
        tensors[name][row] = value
    else:
        target[1 % len(target)] = value
    colors = tensors["sh0"], tensors["shN"]
    return replace(scene, colors=colors, **{key: tensors[key] for key in PARAMETERS[:4]})


def finite(drawn) -> bool:
    tensors = [drawn.images, drawn.alphas, *drawn.gradients.values()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


# --------------------------------------------------------------------------------------------- ranges and limits


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_shapes_ranges_and_depth_limits(backend, mode):
    scene = random_scene(30, 120, views=2, render_mode=mode)
    drawn = draw(backend, scene)
    channels = {"RGB": 3, "D": 1, "ED": 1}.get(mode, 4)
    assert drawn.images.shape == (2, 45, 67, channels)
    assert drawn.alphas.shape == (2, 45, 67, 1)
    assert drawn.alphas.min() >= 0
    assert drawn.alphas.max() <= 1 - 1e-4
    assert drawn.images.min() >= 0
    if mode.endswith("ED"):
        depth, covered = drawn.images[..., -1], drawn.alphas[..., 0] > 0
        seen = (drawn.info.radii > 0).all(-1)
        depths = drawn.info.depths[seen]
        assert depth[covered].min() >= depths.min() * (1 - 1e-5)
        assert depth[covered].max() <= depths.max() * (1 + 1e-5)
        assert (depth[~covered] == 0).all()
    info = drawn.info
    assert info.radii.dtype == torch.int32
    assert [tuple(getattr(info, name).shape) for name in ("means2d", "radii", "depths", "conics", "opacities")] == [
        (2, 120, 2),
        (2, 120, 2),
        (2, 120),
        (2, 120, 3),
        (2, 120),
    ]
    assert (info.width, info.height) == (67, 45)


def test_colours_stay_between_those_of_gaussians_and_background(backend):
    scene = random_scene(31, sh_degree=None)
    drawn = draw(backend, scene)
    everything = torch.cat([scene.colors, scene.backgrounds]).double()
    assert (drawn.images >= everything.amin(0) - 1e-6).all()
    assert (drawn.images <= everything.amax(0) + 1e-6).all()


def test_a_background_is_added_where_light_passes(backend):
    scene = random_scene(32, views=2)
    without = draw(backend, replace(scene, backgrounds=None))
    drawn = draw(backend, scene)
    expected = without.images + (1 - without.alphas) * scene.backgrounds[:, None, None].double()
    torch.testing.assert_close(drawn.images, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn.alphas, without.alphas, rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 50])
def test_transparent_gaussians_show_exactly_the_background(backend, count):
    scene = random_scene(33, 50, views=2)
    scene = replace(scene, opacities=torch.zeros(50)).rows(slice(count))
    drawn = draw(backend, scene, cotangents(scene))
    assert torch.equal(drawn.images, scene.backgrounds.double()[:, None, None].expand(-1, 45, 67, -1))
    assert drawn.alphas.abs().max() == 0
    assert drawn.info.radii.shape == (2, count, 2)
    assert all(drawn.gradients[name].abs().sum() == 0 for name in PARAMETERS)
    torch.testing.assert_close(
        drawn.gradients["backgrounds"], cotangents(scene)[0].sum((1, 2)).double(), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_gradients_reach_every_parameter(backend, mode):
    scene = random_scene(34, rasterize_mode=mode, absgrad=True)
    drawn = draw(backend, scene, cotangents(scene))
    seen = (drawn.info.radii > 0).all(-1).any(0)
    for name in PARAMETERS:
        touched = drawn.gradients[name].abs().reshape(len(seen), -1).sum(1) > 0
        assert touched[seen].double().mean() > 0.9, name
        assert not touched[~seen].any(), name
    assert (drawn.gradients["absgrad"] >= drawn.gradients["means2d"].abs() * (1 - 1e-4)).all()
    assert drawn.gradients["absgrad"].max() > 0


def test_inactive_harmonics_are_not_read(backend):
    scene = random_scene(35, sh_degree=1)
    sh0, shN = scene.colors
    poisoned = shN.clone()
    poisoned[:, 3:] = math.nan
    drawn = draw(backend, replace(scene, colors=(sh0, poisoned)), cotangents(scene))
    exact = draw(backend, replace(scene, colors=(sh0, shN[:, :3])), cotangents(scene))
    assert torch.equal(drawn.images, exact.images)
    assert torch.equal(drawn.gradients["shN"][:, :3], exact.gradients["shN"])
    assert drawn.gradients["shN"][:, 3:].abs().max() == 0


# ------------------------------------------------------------------------------------- sameness and invariances


def test_the_same_input_gives_the_same_bits(backend):
    scene = random_scene(36, 300, views=2, absgrad=True)
    first, second = (draw(backend, scene, cotangents(scene)) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.alphas, second.alphas)
    for name, gradient in first.gradients.items():
        if backend == "cuda":  # gsplat adds gradients with atomics, in no fixed order
            torch.testing.assert_close(gradient, second.gradients[name], rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(gradient, second.gradients[name]), name


def test_the_order_of_gaussians_does_not_matter(backend):
    scene = random_scene(37, 200)
    shuffled = torch.randperm(200)
    drawn, other = draw(backend, scene, cotangents(scene)), draw(backend, scene.rows(shuffled), cotangents(scene))
    torch.testing.assert_close(other.images, drawn.images, rtol=0, atol=1e-6)
    for name in PARAMETERS:
        gradient = drawn.gradients[name][shuffled]
        assert (other.gradients[name] - gradient).norm() <= 1e-4 * gradient.norm()


def test_cameras_do_not_see_each_other(backend):
    scene = random_scene(38, 100, views=3)
    together = draw(backend, scene)
    for view in range(3):
        alone = replace(
            scene,
            viewmats=scene.viewmats[view : view + 1],
            Ks=scene.Ks[view : view + 1],
            backgrounds=scene.backgrounds[view : view + 1],
        )
        torch.testing.assert_close(draw(backend, alone).images[0], together.images[view], rtol=0, atol=1e-5)


def test_quaternions_need_not_be_normalised(backend):
    scene = random_scene(39, 100)
    longer = replace(scene, quats=scene.quats * torch.logspace(-3, 3, 100)[:, None])
    torch.testing.assert_close(draw(backend, longer).images, draw(backend, scene).images, rtol=0, atol=1e-5)


def test_opacity_above_one_counts_as_one(backend):
    scene = random_scene(40, 60)
    full, over = (replace(scene, opacities=torch.full((60,), value)) for value in (1.0, 7.0))
    assert torch.equal(draw(backend, full).images, draw(backend, over).images)


def test_one_tensor_of_harmonics_is_the_same_as_the_pair(backend):
    scene = random_scene(41)
    joined = replace(scene, colors=torch.cat(scene.colors, 1))
    drawn, other = draw(backend, scene, cotangents(scene)), draw(backend, joined, cotangents(scene))
    assert torch.equal(drawn.images, other.images)
    pair = torch.cat([drawn.gradients["sh0"], drawn.gradients["shN"]], 1)
    torch.testing.assert_close(other.gradients["colors"], pair, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------------------- poisoned rows

POISON = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1e30": 1e30, "-1e30": -1e30}
POISONED = [(name, label, value) for name in PARAMETERS for label, value in POISON.items()]
POISONED += [("quats", "zero", torch.zeros(4)), ("quats", "tiny", torch.full((4,), 1e-15)), ("scales", "1e14", 1e14)]


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize(("name", "value"), [pytest.param(n, v, id=f"{n}-{label}") for n, label, v in POISONED])
def test_a_poisoned_row_never_reaches_a_pixel(backend, name, value, mode):
    scene = random_scene(42, 40, rasterize_mode=mode, absgrad=True)
    others = torch.arange(40) != 7
    drawn = draw(backend, spoil(scene, name, value), cotangents(scene))
    clean = draw(backend, scene.rows(others), cotangents(scene))
    assert finite(drawn)
    assert drawn.info.radii[0, 7].abs().max() == 0
    torch.testing.assert_close(drawn.images, clean.images, rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn.alphas, clean.alphas, rtol=0, atol=1e-6)
    for key in PARAMETERS:
        assert drawn.gradients[key][7].abs().max() == 0
        torch.testing.assert_close(drawn.gradients[key][others], clean.gradients[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["D", "ED", "RGB+D"])
def test_a_poisoned_row_never_reaches_a_depth(backend, mode):
    scene = random_scene(43, 40, render_mode=mode)
    drawn = draw(backend, spoil(scene, "means", math.nan), cotangents(scene))
    clean = draw(backend, scene.rows(torch.arange(40) != 7), cotangents(scene))
    assert finite(drawn)
    torch.testing.assert_close(drawn.images, clean.images, rtol=0, atol=1e-5)


def test_a_scene_of_nothing_but_poison_is_the_background(backend):
    scene = random_scene(44, 20)
    bad = replace(scene, means=torch.full((20, 3), math.nan), scales=torch.full((20, 3), 1e30))
    drawn = draw(backend, bad, cotangents(scene))
    assert finite(drawn)
    assert torch.equal(drawn.images, scene.backgrounds.double()[:, None, None].expand(-1, 45, 67, -1))


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e3, 1e5, -0.1])
def test_extreme_but_honest_scales_stay_finite(backend, scale, mode):
    scene = random_scene(45, 30, rasterize_mode=mode)
    drawn = draw(backend, spoil(scene, "scales", torch.full((3,), scale)), cotangents(scene))
    assert finite(drawn)


extremes = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-38, 1e-12, 0.5, 2.0, 255.0, 1e4, 1e8, 1e15, 1e30, -1e30, 3e38])
numbers = st.one_of(extremes, st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(st.lists(numbers, min_size=14, max_size=14), min_size=1, max_size=4), blurred=st.booleans())
@pytest.mark.parametrize("name", ["reference32", "cpu"])
def test_finite_input_gives_finite_output(name, rows, blurred):
    scene = random_scene(46, 8, sh_degree=None, rasterize_mode="classic" if blurred else "antialiased")
    values = torch.tensor(rows, dtype=torch.float64).to(torch.float32)
    count = len(rows)
    parts = {
        "means": values[:, :3],
        "quats": values[:, 3:7],
        "scales": values[:, 7:10],
        "opacities": values[:, 10],
        "colors": values[:, 11:],
    }
    mixed = {key: torch.cat([part, getattr(scene, key)[count:]]) for key, part in parts.items()}
    assert finite(draw(name, replace(scene, **mixed), cotangents(scene)))
