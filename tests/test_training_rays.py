"""Batches of rays: which pixels, over which background, in which order, and the losses on them."""

import dataclasses

import pytest
import torch
import training_toy

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.fields import METHODS
from nfc_splat.fields.recipe import Sampling
from nfc_splat.training.batches import Batches
from nfc_splat.training.command_line import parse_command_line
from nfc_splat.training.config import default_config, resolve
from nfc_splat.training.pixels import Pixels
from nfc_splat.training.sampling import EpochSampler, Sampler

SIZES = [(5, 4), (3, 6), (4, 4)]
WHITE = torch.ones(3)


class Views:
    """Three images of different sizes; a pixel's red and green are its row and column, its blue the image."""

    def __init__(self, alpha=False, masks=False):
        count = len(SIZES)
        viewmats, Ks = torch.eye(4).repeat(count, 1, 1), torch.eye(3).repeat(count, 1, 1)
        self.cameras = Cameras(viewmats, Ks, torch.tensor(SIZES))
        self.images = []
        for index, (width, height) in enumerate(SIZES):
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            parts = [rows, columns, torch.full_like(rows, index)]
            if alpha and index != 1:
                parts.append(128 * torch.ones_like(rows))
            self.images.append(torch.stack(parts, -1).to(torch.uint8))
        self.masks, self.foregrounds = [None] * count, [None] * count
        if masks:
            self.masks[0] = torch.zeros(4, 5)
            self.masks[2] = (torch.arange(16) % 2).float().view(4, 4)

    def __len__(self):
        return len(SIZES)

    def image(self, index):
        return self.images[index]

    def mask(self, index):
        return self.masks[index]

    def foreground(self, index):
        return self.foregrounds[index]


def test_numbers_and_places_belong_together():
    pixels = Pixels(Views())
    assert len(pixels) == 20 + 18 + 16
    numbers = torch.arange(len(pixels))
    places = pixels.places(numbers)
    assert torch.equal(pixels.numbers(places), numbers)
    assert places[20].tolist() == [1, 0, 0]
    assert places[-1].tolist() == [2, 3, 3]
    stored = (255 * pixels.targets(numbers, WHITE)).round().long()
    assert torch.equal(stored, places[:, [1, 2, 0]])


def test_transparent_pixels_lie_over_their_own_background():
    pixels = Pixels(Views(alpha=True))
    numbers = torch.tensor([7, 25, 40])
    background = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2], [1.0, 1.0, 0.0]])
    share = torch.tensor([128 / 255, 1.0, 128 / 255])[:, None]
    stored = pixels.places(numbers)[:, [1, 2, 0]] / 255
    assert torch.allclose(pixels.targets(numbers, background), stored * share + background * (1 - share), atol=1e-6)


def test_shuffled_rays_visit_every_pixel_once_per_epoch():
    batches, sampler = Batches(Views(), WHITE, "cpu"), Sampler(3, seed=5)
    asked = Sampling("shuffled_rays", rays=18)
    for _ in range(2):
        seen = torch.cat([batches.draw(asked, sampler).pixels for _ in range(3)])
        assert len(seen.unique(dim=0)) == 54
    first, second = (batches.draw(asked, Sampler(3, seed=seed)).pixels for seed in (1, 2))
    assert not torch.equal(first, second)


def test_masked_pixels_are_never_drawn():
    batches = Batches(Views(masks=True), WHITE, "cpu")
    for kind, crop in (("shuffled_rays", 1.0), ("random_rays", 1.0), ("image_rays", 1.0), ("image_rays", 0.5)):
        sampler = Sampler(3, seed=5)
        drawn = [batches.draw(Sampling(kind, rays=9, crop=crop), sampler) for _ in range(6)]
        pixels = torch.cat([batch.pixels for batch in drawn])
        assert (pixels[:, 0] != 0).all()
        last = pixels[pixels[:, 0] == 2]
        assert len(last) > 0
        assert (last[:, 2] % 2 == 1).all()
        assert all((batch.mask == 1).all() for batch in drawn)


def test_candidates_alone_are_drawn():
    batches, sampler = Batches(Views(), WHITE, "cpu"), Sampler(3, seed=5)
    candidates = torch.tensor([0, 3, 21, 53])
    drawn = batches.draw(Sampling("shuffled_rays", rays=4, candidates=candidates), sampler).pixels
    assert sorted(Pixels(Views()).numbers(drawn).tolist()) == candidates.tolist()
    drawn = batches.draw(Sampling("random_rays", rays=90, candidates=candidates), sampler).pixels
    assert Pixels(Views()).numbers(drawn).unique().tolist() == candidates.tolist()
    with pytest.raises(UserError, match="no pixel is left"):
        batches.draw(Sampling("shuffled_rays", rays=4, candidates=candidates[:0]), sampler)


def test_masked_candidates_are_not_drawn():
    batches, sampler = Batches(Views(masks=True), WHITE, "cpu"), Sampler(3, seed=5)
    asked = Sampling("shuffled_rays", rays=9, candidates=torch.arange(15, 54, 3))
    for _ in range(3):
        assert (batches.draw(asked, sampler).mask == 1).all()
    with pytest.raises(UserError, match="no pixel is left"):
        batches.draw(Sampling("shuffled_rays", rays=4, candidates=torch.arange(20)), sampler)


def test_rays_of_one_image_are_different_and_central():
    batches, sampler = Batches(Views(), WHITE, "cpu"), Sampler(3, seed=5)
    seen = set()
    for _ in range(3):
        pixels = batches.draw(Sampling("image_rays", rays=4, crop=0.5), sampler).pixels
        (index,) = pixels[:, 0].unique().tolist()
        seen.add(index)
        width, height = SIZES[index]
        assert len(pixels.unique(dim=0)) == min(4, round(width / 2) * round(height / 2))
        assert ((pixels[:, 1] >= (height - height // 2) // 2) & (pixels[:, 1] < height - 1)).all()
    assert seen == {0, 1, 2}


def test_rays_of_a_random_one_of_some_images():
    batches, sampler = Batches(Views(), WHITE, "cpu"), Sampler(3, seed=5)
    asked = Sampling("image_rays", rays=4, views=torch.tensor([2, 0]))
    drawn = [batches.draw(asked, sampler).pixels[:, 0].unique().tolist() for _ in range(40)]
    assert {index for (index,) in drawn} == {0, 2}
    turns = [next(iter(pair)) for pair in drawn]
    assert 8 < turns.count(0) < 32
    assert turns[::2] != [turns[0]] * 20  # at random, not by turns
    state = {name: value.clone() for name, value in sampler.state_dict().items()}
    other = Sampler(3, seed=9)
    other.load_state_dict(state)
    for _ in range(5):
        assert torch.equal(batches.draw(asked, sampler).pixels, batches.draw(asked, other).pixels)
    everything = Sampling("image_rays", rays=4)
    assert {int(batches.draw(everything, sampler).pixels[0, 0]) for _ in range(3)} == {0, 1, 2}


def test_a_random_background_is_the_targets_too():
    batches, sampler = Batches(Views(alpha=True), WHITE, "cpu"), Sampler(3, seed=5)
    batch = batches.draw(Sampling("random_rays", rays=500, background="random"), sampler)
    assert batch.background.shape == (500, 3)
    assert torch.allclose(batch.background.mean(0), torch.full((3,), 0.5), atol=0.06)
    share = torch.where(batch.pixels[:, :1] == 1, 1.0, 128 / 255)
    stored = batch.pixels[:, [1, 2, 0]] / 255
    assert torch.allclose(batch.target, stored * share + batch.background * (1 - share), atol=1e-6)


@pytest.mark.parametrize("kind", ["images", "shuffled_rays", "random_rays", "image_rays"])
def test_draws_continue_after_a_restart(kind):
    views = Views(alpha=True)
    views.images, views.cameras = (
        [views.images[0]] * 3,
        dataclasses.replace(views.cameras, sizes=torch.tensor([(5, 4)] * 3)),
    )
    views.target = lambda index, background: views.images[index][..., :3] / 255
    batches, sampler, other = Batches(views, WHITE, "cpu"), Sampler(3, seed=5), Sampler(3, seed=8)
    asked = Sampling(kind, rays=7, background="scene" if kind == "images" else "random")
    for _ in range(11):
        batches.draw(asked, sampler)
    state = {name: value.clone() for name, value in sampler.state_dict().items()}
    assert sum(value.numel() * value.element_size() for value in state.values()) < 20_000
    other.load_state_dict(state)
    for _ in range(11):
        one, two = batches.draw(asked, sampler), batches.draw(asked, other)
        assert torch.equal(one.target, two.target)
        assert torch.equal(one.cameras.Ks, two.cameras.Ks)
        assert one.pixels is None or torch.equal(one.pixels, two.pixels)
        assert torch.equal(one.background, two.background)


def test_another_number_of_items_begins_another_epoch():
    sampler = EpochSampler(4, seed=0)
    sampler.draw(2)
    assert sorted(sampler.draw(6, among=6).tolist()) == list(range(6))
    assert sampler.draw(0).shape == (0,)


def test_bits_need_a_method_that_has_them(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)
    config = default_config(tmp_path, method="toy", preset="quick", device="cpu")
    with pytest.raises(UserError, match="--loss bitwise: toy predicts no bits"):
        resolve(dataclasses.replace(config, loss="bitwise"))


def test_the_target_encoding_follows_the_loss(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Config(training_toy.Config):
        target_encoding: str = "auto"

    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)
    config = default_config(tmp_path, method="toy", preset="quick", device="cpu")
    settle = lambda loss, **chosen: resolve(dataclasses.replace(config, loss=loss, model=Config(**chosen)))  # noqa: E731
    assert settle("regression").model.target_encoding == "none"
    assert settle("regression", target_encoding="gray").model.target_encoding == "gray"
    assert settle("classification").model.target_encoding == "binary"
    assert settle("classification", target_encoding="none").model.target_encoding == "none"
    assert settle("bitwise").model.target_encoding == "binary"
    with pytest.raises(UserError, match="--target-encoding onehot has no bits"):
        settle("bitwise", target_encoding="onehot")


def test_gaussians_refuse_a_target_encoding_and_say_why(tmp_path):
    with pytest.raises(UserError, match="--target-encoding binary: 3dgs has no colour network"):
        parse_command_line([str(tmp_path), "--method", "3dgs", "--target-encoding", "binary"])


def test_what_is_foreground_comes_from_masks_or_else_from_transparency():
    numbers = torch.arange(54)
    assert Pixels(Views()).foreground_of(numbers) is None
    transparent = Pixels(Views(alpha=True)).foreground_of(numbers)
    torch.testing.assert_close(transparent, torch.where((numbers < 20) | (numbers >= 38), 128 / 255, 1.0))
    views = Views(alpha=True)
    views.foregrounds = [torch.eye(4, 5), torch.zeros(6, 3), torch.ones(4, 4)]
    stated = Batches(views, WHITE, "cpu").load_pixels(numbers[:38], WHITE).foreground
    assert torch.equal(stated, torch.cat([torch.eye(4, 5).reshape(-1), torch.zeros(18)]))
    assert Batches(Views(), WHITE, "cpu").load_pixels(numbers, WHITE).foreground is None


def test_colours_can_count_within_the_object_alone():
    """Pixels behind it are drawn all the same, and count to what their mask says within it."""
    views, numbers = Views(), torch.arange(38)
    views.foregrounds = [torch.eye(4, 5), torch.zeros(6, 3), torch.ones(4, 4)]
    shown = torch.cat([torch.eye(4, 5).reshape(-1), torch.zeros(18)])
    assert torch.equal(Batches(views, WHITE, "cpu").load_pixels(numbers, WHITE, "object").mask, shown)
    views.masks = [torch.full((4, 5), 51 / 255), None, None]
    masked = Batches(views, WHITE, "cpu").load_pixels(numbers, WHITE, "object").mask
    torch.testing.assert_close(masked, 0.2 * shown)
    assert Batches(Views(), WHITE, "cpu").load_pixels(numbers, WHITE, "object").mask is None
    sampling = Sampling("random_rays", rays=200, colors="object")
    drawn = Batches(views, WHITE, "cpu").draw(sampling, Sampler(3, seed=0))
    assert (drawn.mask == 0).any()
    assert (drawn.mask > 0).any()
