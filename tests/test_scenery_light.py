"""Baked light and drawn views against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from nfc_splat.errors import UserError
from nfc_splat.open3d_loader import load_open3d
from nfc_splat.scenery import drawing
from nfc_splat.scenery.drawing import Lens, draw, encode, tone
from nfc_splat.scenery.lighting import bake
from nfc_splat.scenery.room import look
from nfc_splat.scenery.scene import Lights, Material, Part, Scenery, bulb, sunlight
from nfc_splat.scenery.shapes import Mesh, box, patch, sphere
from nfc_splat.scenery.textures import Texture

try:
    load_open3d()
except UserError as error:
    pytest.skip(f"the ray tracer needs open3d: {error}", allow_module_level=True)

GREY = 0.4
DARK = np.zeros(3)


def plain(value: float = GREY, **kwargs) -> Material:
    return Material(Texture(np.full((4, 4, 3), value, np.float32), (1.0, 1.0)), **kwargs)


def scene(*meshes: Mesh, lights: list[Lights] | None = None, sky=DARK, **kwargs) -> Scenery:
    parts = [Part(str(i), mesh, plain(**kwargs)) for i, mesh in enumerate(meshes)]
    return Scenery(parts, lights or [], np.asarray(sky, dtype=np.float64))


def shown(radiance: float) -> float:
    return float(encode(tone(np.array([radiance])))[0])


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def inward(mesh: Mesh) -> Mesh:
    return replace(mesh, triangles=mesh.triangles[:, ::-1], normals=-mesh.normals)


GROUND = patch((-1, -1, 0), (2, 0, 0), (0, 2, 0), 0.25)


def test_a_point_light_falls_off_with_the_square_and_the_cosine():
    light = bulb(np.array([0.3, -0.2, 1.5]), 0.0, np.array([2.0, 1.0, 0.5]), 4)
    shader = bake(scene(GROUND, lights=[light]), gathers=4)
    reach = np.array([0.3, -0.2, 1.5]) - shader.geometry.vertices
    distance = np.linalg.norm(reach, axis=1)
    expected = (reach[:, 2] / distance**3)[:, None] * [2.0, 1.0, 0.5]
    assert shader.irradiance == pytest.approx(expected, rel=1e-3)


def test_the_sun_gives_the_cosine_of_its_height_and_shadows():
    lid = box((0.75, 0, 1.0), (1.5, 3.0, 0.1), 0.5)
    shader = bake(
        scene(GROUND, lid, lights=[sunlight(np.array([0.0, 0.1, 1.0]), np.ones(3), 0.0, 1)]), gathers=4, bounces=0
    )
    ground = shader.irradiance[: len(GROUND.vertices)]
    x = shader.geometry.vertices[: len(GROUND.vertices), 0]
    assert ground[x > 0.1] == pytest.approx(0)
    assert ground[x < -0.1] == pytest.approx(1 / np.sqrt(1.01), rel=1e-4)


def test_a_convex_body_under_an_even_sky_receives_just_that():
    shader = bake(scene(sphere(0.5, 24), sky=(0.2, 0.5, 0.9)), gathers=16, bounces=1)
    assert shader.irradiance == pytest.approx(np.broadcast_to([0.2, 0.5, 0.9], shader.irradiance.shape), rel=1e-5)


def test_an_integrating_sphere_sums_the_bounces():
    """Light at the centre of a sphere of albedo a: E = E0 (1 + a + a^2 + a^3)."""
    hollow = inward(sphere(2.0, 64))
    light = bulb(np.zeros(3), 0.0, np.full(3, 4.0), 1)
    shader = bake(scene(hollow, lights=[light]), gathers=16, bounces=3)
    assert shader.irradiance == pytest.approx(1 + GREY + GREY**2 + GREY**3, rel=2e-3)


def test_a_thin_sheet_is_lit_through():
    light = sunlight(np.array([0.0, 1e-6, -1.0]), np.ones(3), 0.0, 1)
    assert bake(scene(GROUND, lights=[light], thin=True), gathers=4).irradiance == pytest.approx(0.5, rel=1e-4)
    assert bake(scene(GROUND, lights=[light]), gathers=4).irradiance == pytest.approx(0)


def test_shadowless_parts_cast_none():
    lid = box((0, 0, 1.0), (3.0, 3.0, 0.1), 0.5)
    parts = [Part("ground", GROUND, plain()), Part("lid", lid, plain(opaque=False))]
    light = sunlight(np.array([0.0, 1e-6, 1.0]), np.ones(3), 0.0, 1)
    shader = bake(Scenery(parts, [light], DARK), gathers=4, bounces=1)
    assert shader.irradiance[: len(GROUND.vertices)] == pytest.approx(1, rel=1e-4)


LENS = Lens(48, 36, 40.0)
POSE = look(np.array([0.2, -3.0, 1.1]), np.array([0.1, 0.0, 0.3]))


@pytest.fixture(scope="module")
def ground():
    return bake(scene(GROUND, sky=(1, 1, 1)), gathers=4, bounces=1)


def test_depth_is_camera_z_of_the_pixel_centre(ground):
    view = draw(ground, LENS, POSE, 1)
    x, y = np.meshgrid((np.arange(48) + 0.5 - 24) / 40, (np.arange(36) + 0.5 - 18) / 40)
    direction = np.stack([x, y, np.ones_like(x)], axis=-1) @ POSE[:3, :3].T
    with np.errstate(divide="ignore"):
        t = -POSE[2, 3] / direction[..., 2]
    point = POSE[:3, 3] + t[..., None] * direction
    inside = (t > 0) & (np.abs(point[..., :2]).max(axis=-1) < 0.999)
    outside = (t < 0) | (np.abs(point[..., :2]).max(axis=-1) > 1.001)
    assert inside.sum() > 100
    assert view.depth[inside] == pytest.approx(t[inside], rel=1e-5)
    assert (view.depth[outside] == 0).all()


def test_colour_is_albedo_times_light_through_the_display_curve(ground):
    view = draw(ground, LENS, POSE, 3)
    whole = view.alpha == 1
    assert whole.any()
    assert view.color[whole] == pytest.approx(shown(GREY), abs=1e-5)
    # Straight alpha: a pixel half covered has the surface's colour, not half of it.
    part = (view.alpha > 0) & (view.alpha < 1)
    assert part.any()
    assert view.color[part] == pytest.approx(shown(GREY), abs=1e-5)


def test_alpha_is_the_covered_share(ground):
    coarse, fine = draw(ground, LENS, POSE, 2), draw(ground, LENS, POSE, 8)
    assert set(np.unique(coarse.alpha)) <= {0, 0.25, 0.5, 0.75, 1}
    assert np.abs(coarse.alpha - fine.alpha).max() <= 0.5
    assert coarse.alpha.mean() == pytest.approx(fine.alpha.mean(), abs=0.01)


def test_drawing_in_bands_changes_nothing(ground, monkeypatch):
    whole = draw(ground, LENS, POSE, 2)
    monkeypatch.setattr(drawing, "BAND", 5 * 48 * 4)
    bands = draw(ground, LENS, POSE, 2)
    for name in ("color", "alpha", "depth"):
        assert np.array_equal(getattr(whole, name), getattr(bands, name))


def test_detail_finer_than_a_ray_is_averaged():
    checks = np.indices((64, 64)).sum(axis=0) % 2
    texture = Texture(np.repeat(checks[..., None] * 0.8 + 0.1, 3, axis=2).astype(np.float32), (0.064, 0.064))
    shader = bake(Scenery([Part("ground", GROUND, Material(texture))], [], np.ones(3)), gathers=4, bounces=1)
    view = draw(shader, LENS, POSE, 1)
    assert view.color[view.alpha == 1] == pytest.approx(shown(0.5), abs=0.02)


def test_a_textures_place_on_the_surface_is_exact():
    """Half the ground is bright: the boundary in the picture is where u is half the period."""
    image = np.full((8, 200, 3), 0.1, np.float32)
    image[:, 100:] = 0.9
    shader = bake(Scenery([Part("ground", GROUND, Material(Texture(image, (2.0, 2.0))))], [], np.ones(3)), gathers=4)
    above = look(np.array([0.0, -1e-3, 3.0]), np.array([0.0, 0.0, 0.0]))
    view = draw(shader, Lens(64, 64, 80.0), above, 1)
    row = view.color[32, :, 0]
    assert (row[8:31] < 0.4).all()
    assert (row[33:56] > 0.6).all()


def test_only_glossy_surfaces_look_different_from_elsewhere():
    light = bulb(np.array([1.0, 0.5, 2.0]), 0.0, np.full(3, 4.0), 1)
    poses = [look(np.array([x, -3.0, 1.0]), np.zeros(3)) for x in (-1.0, 1.0)]
    spread = {}
    for gloss in (0.0, 0.5):
        shader = bake(scene(sphere(0.5, 64), lights=[light], sky=(0.3,) * 3, gloss=gloss), gathers=16)
        # Where the first viewer sees the light mirrored: the normal halves the angle between the two.
        normal = unit(unit(light.positions[0, :3]) + unit(poses[0][:3, 3]))
        point = 0.5 * normal
        colors = []
        for pose in poses:
            towards = (point - pose[:3, 3])[None].astype(np.float32)
            hits = shader.geometry.cast(pose[:3, 3], towards)
            chosen, shine = shader.highlights(hits, pose[:3, 3], towards)
            color = shader.diffuse(hits, np.full(1, 0.001, np.float32))
            color[chosen] += shine
            colors.append(color[0])
        spread[gloss] = np.abs(colors[0] - colors[1]).max()
    assert spread[0.0] < 1e-3
    assert spread[0.5] > 0.1
