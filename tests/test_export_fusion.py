"""Depth fused into a surface: the kernels against their reference, closed forms, what is in view and what is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from export_scenes import Ball, area_and_volume, as_images, cameras_around, is_closed

from nfc_splat.errors import UserError
from nfc_splat.export.fusion import FusedDepth, colors_from_views, draw_views, seen_box
from nfc_splat.export.marching_cubes import Lattice, extract_surface
from nfc_splat.rendering.kernels.fusion_reference import colors_of, fuse
from nfc_splat.rendering.kernels.threads import available_cores, set_threads

CENTER = (100.0, -3.0, 0.5)


def fused_ball(views, cell, truncation):
    bounds = seen_box(views) + truncation * np.array([[-1], [1]])
    fused = FusedDepth(views, Lattice.over(bounds, cell), truncation)
    return fused, extract_surface(fused.lattice, fused, 0.0, fused.touched())


@pytest.fixture(scope="module")
def views():
    return draw_views(Ball(center=CENTER, haze=0.3), cameras_around(12, center=CENTER))


@pytest.fixture(scope="module")
def cameras_as_tensors(views):
    return torch.from_numpy(views.poses), torch.from_numpy(views.lenses), as_images(views, views.depth)


def test_fused_distances_are_those_of_the_reference(views, cameras_as_tensors):
    fused, _ = fused_ball(views, 0.05, 0.15)
    blocks = fused.touched()[:3]
    values = fused(blocks)
    nodes = torch.from_numpy(fused.lattice.nodes(blocks))
    distance, count = fuse(nodes, *cameras_as_tensors, 0.15)
    known = (count > 0).numpy().reshape(values.shape)
    assert 0.1 < known.mean() < 0.99
    np.testing.assert_array_equal(np.isfinite(values), known)
    np.testing.assert_allclose(-values[known], distance.numpy().reshape(values.shape)[known], atol=1e-5)


def test_colors_are_those_of_the_reference(views, cameras_as_tensors):
    _, (vertices, _) = fused_ball(views, 0.08, 0.2)
    points = np.concatenate([vertices, vertices + 0.5])
    colors, seen = colors_from_views(points, views, 0.2)
    expected = colors_of(torch.from_numpy(points), *cameras_as_tensors, as_images(views, views.pixels), 0.2).numpy()
    assert seen[: len(vertices)].mean() > 0.99
    assert not seen.all()
    assert np.abs(colors - expected)[seen].max() <= 0.501
    assert (colors[~seen] == 128).all()


def test_results_do_not_depend_on_the_number_of_threads(views):
    if available_cores() < 2:
        pytest.skip("needs two cores")

    def drawn(threads):
        set_threads(threads)
        fused, (vertices, _) = fused_ball(views, 0.1, 0.3)
        return fused(fused.touched()), colors_from_views(vertices, views, 0.3)[0]

    try:
        for one, two in zip(drawn(1), drawn(2), strict=True):
            np.testing.assert_array_equal(one, two)
    finally:
        set_threads()


def test_a_ball_seen_from_around_comes_out_whole():
    """Area and volume within 1 %, closed, with the colours that it was drawn with; the haze around it is not there."""
    views = draw_views(Ball(center=CENTER, haze=0.3), cameras_around(24, center=CENTER, scale=3))
    fused, (vertices, triangles) = fused_ball(views, 0.025, 0.08)
    area, volume = area_and_volume(vertices, triangles)
    assert area == pytest.approx(4 * np.pi, rel=0.01)
    assert volume == pytest.approx(4 / 3 * np.pi, rel=0.01)
    assert is_closed(triangles)
    local = vertices - CENTER
    assert np.abs(np.linalg.norm(local, axis=1) - 1).max() < 0.03
    colors, seen = colors_from_views(vertices, views, fused.truncation)
    assert seen.all()
    assert np.abs(colors / 255 - (0.5 + 0.5 * local)).mean() < 0.01


def test_pixel_centres_and_depth_along_the_axis():
    """One camera before a plane that is oblique to it: the surface lies in the plane. Half a pixel off would be 0.004;
    so much is allowed in the outermost half pixel, where nothing can be interpolated."""
    normal, offset = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64), 2.5

    class Plane(Ball):
        def render(self, cameras, pixels=None, *, background):
            directions = cameras.rays(pixels).directions.double()
            drawn = super().render(cameras, pixels, background=background)
            return replace(drawn, alpha=torch.ones_like(drawn.alpha), depth=(offset / (directions @ normal))[..., None])

    camera = replace(cameras_around(1), viewmats=torch.eye(4)[None])
    views = draw_views(Plane(), camera)
    _, (vertices, triangles) = fused_ball(views, 0.04, 0.16)
    assert len(triangles) > 1000
    away = np.abs(vertices @ normal.numpy() - offset)
    assert np.quantile(away, 0.95) < 3e-4
    assert away.max() < 0.01


def test_a_lens_is_taken_away():
    """Depth is drawn by pinhole cameras, whatever lens the photographs had: the surface is the same."""
    cameras = cameras_around(12)
    bent = replace(cameras, model="opencv", distortion=torch.tensor([[-0.2, 0.05, 0, 0, 0, 0]]).expand(12, 6))
    plain, lens = (draw_views(Ball(), chosen) for chosen in (cameras, bent))
    np.testing.assert_array_equal(plain.depth, lens.depth)


def test_colours_are_divided_by_alpha():
    """A half-transparent ball before black has its own colour, not a darker one."""

    class Veil(Ball):
        def render(self, cameras, pixels=None, *, background):
            drawn = super().render(cameras, pixels, background=torch.zeros(3))
            alpha = 0.6 * drawn.alpha
            return replace(drawn, alpha=alpha, color=alpha * drawn.color + (1 - alpha) * background)

    cameras = cameras_around(2)
    solid, veil = draw_views(Ball(), cameras), draw_views(Veil(), cameras)
    np.testing.assert_array_equal(solid.depth, veil.depth)
    shown = solid.depth > 0
    assert np.abs(solid.pixels[shown].astype(int) - veil.pixels[shown]).max() <= 1


def test_too_many_pixels_are_drawn_smaller(monkeypatch):
    monkeypatch.setattr("nfc_splat.export.fusion.MOST_PIXELS", 3 * 48 * 40)
    views = draw_views(Ball(), cameras_around(3))
    assert views.sizes.tolist() == [[48, 40]] * 3
    assert len(views.depth) == 3 * 48 * 40
    np.testing.assert_allclose(np.abs(seen_box(views)), 1, atol=0.1)


class Broken(Ball):
    """A ball that fills the view, without numbers in the rows from 0 (depth), 1 (colour) and 2 (alpha) by fours."""

    def __init__(self):
        super().__init__(radius=2.9)

    def render(self, cameras, pixels=None, *, background):
        drawn = super().render(cameras, pixels, background=background)
        drawn.depth[:, ::4], drawn.color[:, 1::4, :, 1], drawn.alpha[:, 2::4] = torch.inf, torch.nan, torch.nan
        return drawn


def test_pixels_without_a_number_show_no_surface_and_are_counted():
    views = draw_views(Broken(), cameras_around(2))
    rows = views.depth.reshape(2, 80, 96)
    assert (rows[:, 3::4] > 0).all()
    assert not any(rows[:, first::4].any() for first in range(3))
    assert views.dropped == 2 * 60 * 96
    assert views.notices() == ["left out 11,520 pixels with values that are not finite"]
    assert draw_views(Ball(), cameras_around(2)).notices() == []


def test_transparent_pixels_need_no_depth():
    class Clear(Ball):
        def render(self, cameras, pixels=None, *, background):
            drawn = super().render(cameras, pixels, background=background)
            return replace(drawn, depth=drawn.depth.where(drawn.alpha > 0, torch.nan))

    assert draw_views(Clear(), cameras_around(1)).dropped == 0


def test_nothing_finite_in_view_is_an_error():
    class Diverged(Ball):
        def render(self, cameras, pixels=None, *, background):
            drawn = super().render(cameras, pixels, background=background)
            return replace(drawn, color=torch.full_like(drawn.color, torch.nan))

    with pytest.raises(UserError, match=r"with a depth; [0-9,]+ are not finite: the training diverged"):
        draw_views(Diverged(), cameras_around(1))


def test_nothing_in_view_is_an_error():
    with pytest.raises(UserError, match="nothing is in view: none of 15,360 pixels of 2 views is opaque"):
        draw_views(Ball(radius=1e-6), cameras_around(2))
