"""Volume rendering of whole cameras: closed forms, thresholds, chunks, requests, normals, bits."""

import math

import pytest
import torch

from nfc_splat.cameras import Cameras
from nfc_splat.losses import TargetEncoding
from nfc_splat.rendering.march import MarchedModel, alpha_from_density, composite
from nfc_splat.rendering.samplers import box_steps, stratified
from nfc_splat.rendering.samples import Samples, flat_rays

WHITE = torch.ones(3)


class Ball(MarchedModel):
    """Fog of one density inside the unit ball, coloured by position."""

    def __init__(self, density=2.0, step=0.01, sharpness=None, **composition):
        super().__init__()
        self.density, self.step, self.sharpness, self.composition = density, step, sharpness, composition
        self.low, self.high = torch.full((3,), -1.2), torch.full((3,), 1.2)

    @classmethod
    def from_tensors(cls, config, tensors):
        raise NotImplementedError

    def march(self, rays, background):
        return composite(self, box_steps(rays, self.low, self.high, self.step), background, **self.composition)

    def alpha(self, samples):
        depth = 1 - samples.positions.norm(dim=-1)
        inside = (depth > 0).float() if self.sharpness is None else torch.sigmoid(self.sharpness * depth)
        return alpha_from_density(self.density * inside, samples.widths), inside

    def color(self, samples, features):
        assert len(features) == len(samples)
        return 0.5 + 0.4 * samples.positions


def cameras(count=2, size=9, distance=4.0):
    viewmats = torch.eye(4).repeat(count, 1, 1)
    for index in range(count):
        angle = 0.7 * index
        cosine, sine = math.cos(angle), math.sin(angle)
        viewmats[index, :3, :3] = torch.tensor([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    viewmats[:, 2, 3] = distance
    Ks = torch.tensor([[size * 1.5, 0, size / 2], [0, size * 1.5, size / 2], [0, 0, 1.0]])
    return Cameras.pinhole(viewmats, Ks, size, size)


def chords(rays):
    """Length of each ray inside the unit ball."""
    unit = torch.nn.functional.normalize(rays.directions, dim=-1)
    along = -(rays.origins * unit).sum(-1)
    return 2 * (1 - (rays.origins.square().sum(-1) - along**2)).clamp_min(0).sqrt()


def test_fog_follows_beer_and_lambert():
    model, views = Ball().eval(), cameras()
    drawn = model.render(views, background=WHITE)
    left = torch.exp(-2.0 * chords(views.rays()))
    assert drawn.color.shape == (2, 9, 9, 3)
    assert drawn.alpha.shape == drawn.depth.shape == (2, 9, 9, 1)
    assert torch.allclose(drawn.alpha[..., 0], 1 - left, atol=0.02)


def test_a_constant_color_over_a_background():
    model = Ball().eval()
    model.color = lambda samples, features: torch.full((len(samples), 3), 0.25)
    views, black = cameras(), torch.zeros(3)
    over_white = model.render(views, background=WHITE)
    assert torch.allclose(over_white.color, 0.25 * over_white.alpha + (1 - over_white.alpha), atol=1e-5)
    assert torch.allclose(model.render(views, background=black).color, 0.25 * over_white.alpha, atol=1e-5)


def test_depth_is_the_expected_camera_z_and_0_where_nothing_is():
    model, views = Ball(density=1e4, step=0.002).eval(), cameras(1, size=21)
    drawn = model.render(views, background=WHITE)
    rays = views.rays()
    unit = torch.nn.functional.normalize(rays.directions, dim=-1)
    first = (-(rays.origins * unit).sum(-1) - chords(rays) / 2) / rays.directions.norm(dim=-1)
    hit = chords(rays) > 0.2
    assert torch.allclose(drawn.depth[..., 0][hit], first[hit], atol=0.01)
    assert (drawn.depth[..., 0][chords(rays) == 0] == 0).all()
    assert (drawn.color[..., 0][chords(rays) == 0] == 1).all()


@pytest.mark.parametrize("shape", ["pixels", "images"])
def test_a_request_in_chunks_is_the_request_at_once(shape):
    views = cameras(2, 7)
    pixels = None if shape == "images" else torch.tensor([[1, 3, 2], [0, 0, 6], [0, 3, 3], [1, 6, 6], [1, 3, 3]])
    whole, chunked = Ball().eval(), Ball().eval()
    whole.ray_bytes, chunked.ray_bytes = 1, 2**27
    one = whole.render(views, pixels, background=WHITE)
    other = chunked.render(views, pixels, background=WHITE)
    for name in ("color", "alpha", "depth"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    if pixels is not None:
        image = whole.render(views, background=WHITE)
        assert torch.allclose(one.color, image.color[pixels.unbind(-1)], atol=1e-6)


def test_every_ray_may_have_its_own_background():
    views, pixels = cameras(1), torch.tensor([[0, 0, 0], [0, 4, 4], [0, 8, 8]])
    backgrounds = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    for model in (Ball().train(), Ball().eval()):
        model.ray_bytes = 2**28
        drawn = model.render(views, pixels, background=backgrounds)
        alone = [model.render(views, pixels[[i]], background=backgrounds[i]).color[0] for i in range(3)]
        assert torch.allclose(drawn.color, torch.stack(alone), atol=1e-6)
        assert torch.equal(drawn.color[0], backgrounds[0])  # a ray past the ball


def test_thresholds_leave_out_what_hardly_shows():
    views = cameras()
    exact = Ball(density=5.0, sharpness=30.0).eval().render(views, background=WHITE)
    model = Ball(density=5.0, sharpness=30.0, alpha_threshold=1e-4, weight_threshold=1e-4, stop=1e-3).eval()
    asked = []
    original = model.color
    model.color = lambda samples, features: (asked.append(len(samples)), original(samples, features))[1]
    drawn = model.render(views, background=WHITE)
    everything = len(box_steps(flat_rays(views.rays()), model.low, model.high, model.step))
    assert 0 < sum(asked) < 0.6 * everything
    assert torch.allclose(drawn.color, exact.color, atol=5e-3)


def test_gradients_reach_what_is_seen_alone():
    views, pixels = cameras(1), torch.tensor([[0, 4, 4]])
    model = Ball().train()
    tint = torch.tensor([0.3, 0.5, 0.7], requires_grad=True)
    model.color = lambda samples, features: tint.expand(len(samples), 3)
    drawn = model.render(views, pixels, background=WHITE)
    drawn.color.sum().backward()
    assert torch.allclose(tint.grad, drawn.alpha[0].expand(3).detach(), atol=1e-5)


def test_normals_point_out_of_the_ball_towards_the_camera():
    model, views = Ball(density=200.0, sharpness=40.0).eval(), cameras(2, 15)
    model.draw_normals = True
    with torch.no_grad():
        drawn = model.render(views, background=WHITE)
    rays = views.rays()
    points = rays.origins + drawn.depth * rays.directions
    solid = chords(rays) > 1.0
    assert torch.allclose(drawn.normal[solid], torch.nn.functional.normalize(points, dim=-1)[solid], atol=0.05)
    assert ((drawn.normal * rays.directions).sum(-1) <= 0).all()
    assert (drawn.normal[drawn.alpha[..., 0] == 0] == 0).all()


def test_bits_are_composited_and_the_background_has_bits_too():
    encoding = TargetEncoding("binary")
    model, views = Ball(density=1.0).eval(), cameras(1)
    bits = torch.rand(3, 8, generator=torch.Generator().manual_seed(2))
    model.encoding = encoding
    model.color = lambda samples, features: torch.cat([encoding.decode(bits), bits.flatten()]).expand(len(samples), 27)
    background = torch.tensor([1.0, 0.0, 203 / 255])
    drawn = model.render(views, background=background)
    expected = drawn.alpha[..., None] * bits + (1 - drawn.alpha[..., None]) * encoding.encode(background)
    assert drawn.bits.shape == (1, 9, 9, 3, 8)
    assert torch.allclose(drawn.bits, expected, atol=1e-5)
    assert torch.allclose(encoding.decode(drawn.bits), drawn.color, atol=1e-5)  # linear: before or after is the same


def test_rays_without_samples_show_the_background():
    views = cameras(1, 5, distance=400.0)
    model = Ball(step=0.5).eval()
    model.low, model.high = torch.full((3,), 50.0), torch.full((3,), 51.0)
    drawn = model.render(views, background=WHITE)
    assert torch.equal(drawn.color, torch.ones(1, 5, 5, 3))
    assert torch.equal(drawn.alpha, torch.zeros(1, 5, 5, 1))
    assert drawn.depth.isfinite().all()


def test_keeping_samples_keeps_their_rays():
    rays = flat_rays(cameras(1, 4).rays())
    samples = stratified(rays, 2.0, 6.0, 5, jitter=False)
    chosen = torch.rand(len(samples), generator=torch.Generator().manual_seed(3)) > 0.5
    samples.positions  # noqa: B018  computed before as well as after
    kept, rows = samples.keep(chosen)
    assert torch.equal(rows, chosen.nonzero()[:, 0])
    assert torch.equal(kept.positions, samples.positions[rows])
    counts = torch.bincount(kept.ray, minlength=16)
    assert torch.equal(kept.offsets, torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]))
    assert isinstance(kept, Samples)
    assert torch.equal(kept.t, samples.t[rows])
