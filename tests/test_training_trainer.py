"""The loop: what it minimises, what it remembers, what it does when numbers go bad."""

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
import training_toy
from interrupted_runs import assert_same, crash_at, newest
from PIL import Image

from nfc_splat.data import load_scene
from nfc_splat.errors import UserError
from nfc_splat.fields import METHODS
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.losses import channelwise_classification_loss
from nfc_splat.rendering import Rendering
from nfc_splat.train import train
from nfc_splat.training.batches import Batches
from nfc_splat.training.checkpoint import checkpoint_files, read_checkpoint
from nfc_splat.training.config import CheckpointConfig, default_config, resolve
from nfc_splat.training.load import load_run, scene_hash
from nfc_splat.training.sampling import EpochSampler, Sampler
from nfc_splat.training.saving import PATIENCE, Diverged
from nfc_splat.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return training_toy.write_scene(tmp_path_factory.mktemp("data") / "scene")


@pytest.fixture
def configure(scene, tmp_path):
    """A resolved config with some fields replaced; those of the toy's own config among them."""

    def build(**changes):
        config = default_config(scene, method="toy", preset="quick", device="cpu")
        names = {field.name for field in dataclasses.fields(training_toy.Config)} & set(changes)
        model = dataclasses.replace(config.model, **{name: changes.pop(name) for name in names})
        defaults = {"out": tmp_path / "run", "threads": 1, "quiet": True, "log_every": 1}
        return resolve(dataclasses.replace(config, model=model, **(defaults | changes)))

    return build


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_leaves_a_whole_run(configure, capsys):
    config = configure(steps=60)
    assert train(config) == 0
    log = records(config.out)
    assert [record["step"] for record in log] == list(range(1, 61))
    assert log[-1]["psnr"] > log[0]["psnr"] + 6
    assert {"step", "loss", "losses", "psnr", "primitives", "lr_picture", "seconds"} <= log[-1].keys()
    assert list(checkpoint_files(config.out / "checkpoints")) == [60, 0]
    summary = json.loads((config.out / "eval/summary.json").read_text())
    assert summary["n_views"] == 2
    assert summary["step"] == 60
    assert summary["primitives"] == 64
    assert len(json.loads((config.out / "eval/per_view.json").read_text())) == 2
    printed = capsys.readouterr().out
    for path in ("contact_sheet.png", "renders", "picture.txt"):
        assert (config.out / path).exists()
        assert str(config.out / path) in printed
    assert f"PSNR {summary['psnr']:.2f} dB" in printed


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(configure, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(configure(out=tmp_path / name, seed=seed))
    assert_same(newest(tmp_path / "a"), newest(tmp_path / "b"))
    assert not torch.equal(
        newest(tmp_path / "a").tensors["model/picture"], newest(tmp_path / "c").tensors["model/picture"]
    )


# Before, at and after the step at which the toy's structure grows (12), and around a checkpoint (multiples of 7).
@pytest.mark.parametrize("crash", [3, 7, 8, 12, 13, 15, 29, 40])
def test_a_resumed_run_is_the_same_run(configure, tmp_path, monkeypatch, crash):
    saving = CheckpointConfig(save_steps=7, save_minutes=0, keep=2)
    straight = configure(out=tmp_path / "straight", checkpoints=saving, loss="classification")
    train(straight)
    broken = configure(out=tmp_path / "broken", checkpoints=saving, loss="classification")
    crash_at(monkeypatch, crash, broken)
    assert newest(broken.out).header.step == (crash - 1) // 7 * 7
    train(dataclasses.replace(broken, resume=str(broken.out)))
    assert_same(newest(straight.out), newest(broken.out))
    steady = [[{**record, "seconds": 0} for record in records(run.out)] for run in (straight, broken)]
    assert steady[0] == steady[1]


def test_a_damaged_newest_checkpoint_costs_some_steps_and_no_bits(configure, tmp_path, monkeypatch, caplog):
    saving = CheckpointConfig(save_steps=7, save_minutes=0, keep=2)
    straight, broken = (configure(out=tmp_path / name, checkpoints=saving) for name in ("straight", "broken"))
    train(straight)
    crash_at(monkeypatch, 30, broken)
    newest(broken.out).path.write_bytes(b"spoilt")
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        train(dataclasses.replace(broken, resume=str(broken.out)))
    assert "step_00000028" in caplog.text
    assert_same(newest(straight.out), newest(broken.out))


def test_resuming_from_an_older_checkpoint_and_into_another_folder(configure, tmp_path):
    saving = CheckpointConfig(save_steps=10, save_minutes=0, keep=9)
    config = configure(out=tmp_path / "first", checkpoints=saving)
    train(config)
    older = config.out / "checkpoints" / "step_00000020.safetensors"
    fork = dataclasses.replace(config, out=tmp_path / "fork", resume=str(older))
    train(fork)
    assert_same(newest(config.out), newest(fork.out))
    assert records(fork.out)[0]["step"] == 21
    assert list(checkpoint_files(fork.out / "checkpoints")) == [40, 30, 20]


def test_resuming_a_finished_run_measures_and_exports_again(configure):
    config = configure()
    train(config)
    before = newest(config.out)
    (config.out / "picture.txt").unlink()
    assert train(dataclasses.replace(config, resume=str(config.out))) == 0
    assert (config.out / "picture.txt").exists()
    assert_same(before, newest(config.out))


def test_a_changed_scene_is_refused(configure, scene, tmp_path):
    config = configure()
    train(config)
    other = training_toy.write_scene(tmp_path / "other", views=4)
    with pytest.raises(UserError, match="not those that it was trained on"):
        train(dataclasses.replace(config, scene=other, resume=str(config.out)))
    with pytest.raises(UserError, match="not those that"):
        load_run(config.out, scene=other)


def test_other_settings_are_refused_by_the_checkpoint_itself(configure):
    config = configure()
    train(config)
    changed = dataclasses.replace(config, seed=1, model=dataclasses.replace(config.model, rate=1.0))
    with pytest.raises(UserError, match=r"other settings: seed 1 \(the run: 42\), model.rate 1.0 \(the run: 0.05\)"):
        train(dataclasses.replace(changed, resume=str(config.out)))


def test_another_number_of_threads_is_said(configure, caplog):
    config = configure()
    train(config)
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        train(dataclasses.replace(config, resume=str(config.out), threads=2))
    assert "with 1 threads, here are 2" in caplog.text


def test_a_run_is_read_back(configure, scene):
    config = configure()
    train(config)
    loaded_config, loaded_scene, model, step = load_run(config.out)
    assert loaded_config == config
    assert step == 40
    assert not model.training
    assert len(loaded_scene.splits["test"]) == 2
    assert torch.equal(model.picture, newest(config.out).tensors["model/picture"])
    start = load_run(config.out / "checkpoints" / "step_00000000.safetensors")
    assert start.step == 0
    assert start.model.primitives == 16


def test_the_fingerprint_of_a_scene_sees_every_part_of_it(scene):
    base = scene_hash(load_scene(scene, undistort=True))
    assert scene_hash(load_scene(scene, undistort=True)) == base
    for spoil in (
        lambda s: s.splits["train"].names.__setitem__(0, "other"),
        lambda s: s.background.zero_(),
        lambda s: s.splits.pop("test"),
    ):
        changed = load_scene(scene, undistort=True)
        spoil(changed)
        assert scene_hash(changed) != base


def test_the_fingerprint_of_a_scene_sees_what_its_files_state(scene, tmp_path):
    base = scene_hash(load_scene(scene, undistort=True))

    def changed(edit):
        copy = tmp_path / "copy"
        shutil.copytree(scene, copy)
        file = copy / "transforms_train.json"
        listed = json.loads(file.read_text())
        edit(listed, copy)
        file.write_text(json.dumps(listed))
        digest = scene_hash(load_scene(copy, undistort=True))
        shutil.rmtree(copy)
        return digest

    def move(listed, _):
        listed["frames"][0]["transform_matrix"][0][3] += 1e-4

    def zoom(listed, _):
        listed["camera_angle_x"] *= 1.001

    def edit_photograph(_, folder):
        picture = next((folder / "train").glob("*.png"))
        Image.open(picture).transpose(Image.Transpose.ROTATE_180).save(picture, compress_level=0)

    assert changed(lambda listed, folder: None) == base
    assert len({base, changed(move), changed(zoom), changed(edit_photograph)}) == 4


def test_the_fingerprint_of_a_scene_ignores_how_a_processor_rounds(scene):
    base = scene_hash(load_scene(scene, undistort=True))
    other = load_scene(scene, undistort=True)
    other.splits["train"].cameras.viewmats.mul_(1 + 1e-7)
    assert scene_hash(other) == base


def test_every_image_comes_once_per_epoch():
    sampler = EpochSampler(7, seed=3)
    epochs = [sampler.draw(7).tolist() for _ in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert torch.cat([sampler.draw(5), sampler.draw(4)[:2]]).sort().values.tolist() == list(range(7))


def test_the_order_continues_where_it_was():
    sampler = EpochSampler(5, seed=3)
    sampler.draw(7)
    state = {name: value.clone() for name, value in sampler.state_dict().items()}
    expected = sampler.draw(20)
    other = EpochSampler(5, seed=99)
    other.load_state_dict(state)
    assert torch.equal(other.draw(20), expected)
    with pytest.raises(UserError, match="5 training images, here are 6"):
        Sampler(6, seed=3).load_state_dict(Sampler(5, seed=3).state_dict())


class _Trainer(Trainer):
    """The loop's parts, without a run around them."""

    def __init__(self, config, scene):
        from nfc_splat.training.state import fresh_state

        loaded = load_scene(scene, undistort=True)
        train_views = loaded.splits["train"]
        geometry = SceneGeometry(train_views.cameras, None, None)
        self.logged = []
        batches = Batches(train_views, loaded.background, "cpu")
        super().__init__(config, batches, fresh_state(config, geometry), None, self)

    def log(self, record):
        self.logged.append(record)


def test_the_classification_term_is_added_with_its_weight_and_bounds(configure, scene):
    config = configure(loss="classification", loss_weight=3.0, loss_eps=0.01, loss_eps_low=0.2)
    trainer = _Trainer(config, scene)
    batch = trainer.batches.load([1])
    rendering = trainer.state.model.render(batch.cameras, background=batch.background)
    losses = trainer.losses(rendering, batch, 1)
    expected = 3 * channelwise_classification_loss(rendering.color, batch.target, eps=0.01, eps_low=0.2)
    assert losses.keys() == {"photometric", "classification"}
    assert torch.equal(losses["classification"], expected)
    assert torch.allclose(losses["photometric"], (rendering.color - batch.target).square().mean())
    assert _Trainer(configure(), scene).losses(rendering, batch, 1).keys() == {"photometric"}


def test_the_methods_own_loss_can_be_weighted_and_nothing_else_is(configure, scene, monkeypatch):
    monkeypatch.setattr(training_toy.Model, "regularizers", lambda *_: {"size": torch.tensor(5.0)})
    trainer = _Trainer(configure(loss="classification", loss_weight=2.0), scene)
    heavier = _Trainer(configure(loss="classification", loss_weight=2.0, photometric_weight=10.0), scene)
    batch = trainer.batches.load([1])
    rendering = trainer.state.model.render(batch.cameras, background=batch.background)
    once, tenfold = trainer.losses(rendering, batch, 1), heavier.losses(rendering, batch, 1)
    assert torch.equal(tenfold["photometric"], 10 * once["photometric"])
    assert torch.equal(tenfold["classification"], once["classification"])
    assert tenfold["size"] == once["size"] == 5


def test_auxiliary_renderings_are_classified_too(configure, scene):
    trainer = _Trainer(configure(loss="classification", loss_weight=1.0), scene)
    batch = trainer.batches.load([0])
    drawn = [torch.full_like(batch.target, level) for level in (0.3, 0.6)]
    alone = [trainer.losses(Rendering(color, color, color), batch, 1)["classification"] for color in drawn]
    coarse = Rendering(drawn[1], drawn[1], drawn[1])
    both = Rendering(drawn[0], drawn[0], drawn[0], auxiliary=(coarse,))
    assert torch.allclose(trainer.losses(both, batch, 1)["classification"], alone[0] + alone[1])


def test_regularisers_are_added_by_name(configure, scene, monkeypatch):
    monkeypatch.setattr(training_toy.Model, "regularizers", lambda *_: {"size": torch.tensor(5.0)})
    trainer = _Trainer(configure(), scene)
    figures = trainer.step()
    assert figures["losses"].keys() == {"photometric", "size"}
    assert figures["loss"] == pytest.approx(figures["losses"]["photometric"] + 5)


def test_the_calls_come_in_the_documented_order(configure, scene, monkeypatch):
    calls = []
    for name in ("sampling", "photometric", "before_backward", "after_backward", "after_step"):
        original = getattr(training_toy.Recipe, name)

        def spy(self, *args, name=name, original=original, **kwargs):
            has_grad = self.model.picture.grad is not None
            calls.append((name, has_grad))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(training_toy.Recipe, name, spy)
    trainer = _Trainer(configure(), scene)
    trainer.state.recipe.model = trainer.state.model
    trainer.step()
    assert calls == [
        ("sampling", False),
        ("photometric", False),
        ("before_backward", False),
        ("after_backward", True),
        ("after_step", False),
    ]


def test_a_mask_decides_what_is_learned(configure, scene):
    trainer = _Trainer(configure(loss="classification", noise=0.0), scene)
    load = trainer.batches.load

    def masked(indices):
        batch = load(indices)
        mask = torch.zeros_like(batch.target[..., 0])
        mask[:, :, :8] = 1
        spoilt = torch.where(mask[..., None] > 0, batch.target, 1 - batch.target)
        return dataclasses.replace(batch, mask=mask, target=spoilt)

    clean = _Trainer(configure(loss="classification", noise=0.0), scene)
    clean.batches.load = lambda indices: dataclasses.replace(masked(indices), target=load(indices).target)
    trainer.batches.load = masked
    for _ in range(10):
        one, other = trainer.step(), clean.step()
        assert one["losses"] == other["losses"]
        assert one["psnr"] == other["psnr"]
    assert torch.equal(trainer.state.model.picture, clean.state.model.picture)


def test_a_batch_of_several_images(configure, scene):
    trainer = _Trainer(configure(images=3), scene)
    batch = trainer.batches.load([4, 0, 2])
    assert batch.target.shape == (3, 16, 16, 3)
    for row, index in enumerate([4, 0, 2]):
        single = trainer.batches.load([index])
        assert torch.equal(batch.target[row], single.target[0])
        assert torch.equal(batch.cameras.viewmats[row], single.cameras.viewmats[0])
    assert math.isfinite(trainer.step()["loss"])


def test_a_mask_of_one_image_makes_weights_for_the_batch(configure, scene):
    trainer = _Trainer(configure(), scene)
    views = trainer.batches._split
    views.mask = lambda index: torch.zeros(16, 16) if index == 1 else None
    masks = trainer.batches.load([0, 1]).mask
    assert torch.equal(masks, torch.stack([torch.ones(16, 16), torch.zeros(16, 16)]))
    assert trainer.batches.load([0]).mask is None


def poison(monkeypatch, bad, where="loss"):
    """Make the loss, or only the gradient, NaN in those calls, from 1, for which `bad` holds; gives the calls."""
    calls = []
    original = training_toy.Recipe.photometric

    def photometric(self, rendering, batch):
        calls.append(1)
        loss = original(self, rendering, batch)
        if not bad(len(calls)):
            return loss
        # sqrt has an infinite slope at 0: the value stays finite, 0 times infinity does not.
        return loss * math.nan if where == "loss" else loss + 0 * (rendering.color * 0).sqrt().sum()

    monkeypatch.setattr(training_toy.Recipe, "photometric", photometric)
    return calls


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_tried_again_with_the_next_image(configure, monkeypatch, caplog, where):
    calls = poison(monkeypatch, lambda call: call in (5, 6, 30), where)
    config = configure()
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        assert train(config) == 0
    assert len(calls) == 43
    log = records(config.out)
    assert [record["step"] for record in log if record.get("event") == "skipped"] == [5, 5, 28]
    assert [record["step"] for record in log if "loss" in record] == list(range(1, 41))
    assert all(math.isfinite(record["loss"]) for record in log if "loss" in record)
    assert newest(config.out).header.skipped == 3
    assert caplog.text.count("not finite") == 3


def test_a_skipped_step_leaves_nothing_behind(configure, scene, monkeypatch):
    trainer = _Trainer(configure(), scene)
    trainer.step()
    before = {name: value.clone() for name, value in trainer.state.model.state_dict().items()}
    moments = trainer.state.optimizers["picture"].state[trainer.state.model.picture]["exp_avg"].clone()
    poison(monkeypatch, lambda call: True)
    assert trainer.step() is None
    assert trainer.state.step == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer.state.model.state_dict().items())
    assert torch.equal(trainer.state.optimizers["picture"].state[trainer.state.model.picture]["exp_avg"], moments)
    assert trainer.state.model.picture.grad is None


def test_ten_in_a_row_roll_back_once_with_half_the_rates(configure, monkeypatch, caplog):
    poison(monkeypatch, lambda call: 25 <= call < 25 + PATIENCE)
    config = configure(checkpoints=CheckpointConfig(save_steps=10, save_minutes=0, keep=2))
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        assert train(config) == 0
    assert "went back to step 20 with half the learning rates" in caplog.text
    log = records(config.out)
    (event,) = [record for record in log if record.get("event") == "rolled back"]
    assert (event["step"], event["from"], event["learning_rate_scale"]) == (20, 25, 0.5)
    steps = [record["step"] for record in log if "loss" in record]
    assert steps == [*range(1, 25), *range(21, 41)]
    final = newest(config.out).header
    assert (final.learning_rate_scale, final.skipped) == (0.5, PATIENCE)


def test_failures_with_good_steps_between_them_do_not_add_up(configure, monkeypatch):
    poison(monkeypatch, lambda call: call % 3 == 0)
    config = configure()
    assert train(config) == 0
    final = newest(config.out).header
    assert final.skipped > PATIENCE
    assert final.learning_rate_scale == 1


def test_half_the_rates_means_half_the_way(configure, scene):
    moves = []
    for scale in (1.0, 0.5):
        torch.manual_seed(0)
        trainer = _Trainer(configure(noise=0.0), scene)
        start = trainer.state.model.picture.detach().clone()
        trainer.state.learning_rate_scale = scale
        trainer.step()
        assert trainer.state.optimizers["tint"].param_groups[0]["lr"] == 0.05
        moves.append(trainer.state.model.picture.detach() - start)
    assert torch.allclose(moves[1], 0.5 * moves[0], atol=1e-7)


def test_divergence_ends_with_code_3_and_a_good_checkpoint(configure, monkeypatch):
    calls = poison(monkeypatch, lambda call: call >= 25)
    config = configure(checkpoints=CheckpointConfig(save_steps=10, save_minutes=0, keep=2))
    with pytest.raises(Diverged, match=r"stopped at step 21: .* 10 times in a row") as caught:
        train(config)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert len(calls) == 24 + 2 * PATIENCE
    assert newest(config.out).header.step == 20
    assert not (config.out / "eval").exists()


def test_a_run_that_rolled_back_resumes_with_the_lower_rates(configure, tmp_path, monkeypatch):
    saving = CheckpointConfig(save_steps=10, save_minutes=0, keep=2)
    straight, broken = (configure(out=tmp_path / name, checkpoints=saving) for name in ("straight", "broken"))
    for config, leave in ((straight, train), (broken, lambda config: crash_at(monkeypatch, 35, config))):
        with monkeypatch.context() as patch:
            poison(patch, lambda call: 15 <= call < 15 + PATIENCE)
            leave(config)
    train(dataclasses.replace(broken, resume=str(broken.out)))
    assert newest(broken.out).header.learning_rate_scale == 0.5
    assert_same(newest(straight.out), newest(broken.out))


def test_a_checkpoint_that_cannot_be_written_does_not_end_training(configure, monkeypatch, caplog):
    from nfc_splat.training import saving

    write, refused = saving.write_checkpoint, []

    def full(folder, header, tensors, *, keep):
        if header.step == 20:
            refused.append(header.step)
            raise UserError("cannot write: no space left")
        return write(folder, header, tensors, keep=keep)

    monkeypatch.setattr(saving, "write_checkpoint", full)
    config = configure(checkpoints=CheckpointConfig(save_steps=10, save_minutes=0, keep=9))
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        assert train(config) == 0
    assert refused == [20]
    assert "without a checkpoint at step 20: cannot write: no space left" in caplog.text
    assert list(checkpoint_files(config.out / "checkpoints")) == [40, 30, 10, 0]


def test_minutes_save_too(configure, monkeypatch):
    from nfc_splat.training import saving

    clock = iter(range(0, 100_000, 25))  # every look at the clock is 25 seconds later
    monkeypatch.setattr(saving.time, "monotonic", lambda: next(clock))
    config = configure(steps=10, checkpoints=CheckpointConfig(save_steps=0, save_minutes=1, keep=99))
    train(config)
    steps = sorted(checkpoint_files(config.out / "checkpoints"))
    assert steps[0] == 0
    assert steps[-1] == 10
    assert 2 <= len(steps[1:-1]) <= 5


@pytest.mark.gpu
def test_on_a_gpu_too(configure, tmp_path):
    config = configure(device="cuda", checkpoints=CheckpointConfig(save_steps=10, save_minutes=0, keep=9))
    assert train(config) == 0
    older = config.out / "checkpoints" / "step_00000020.safetensors"
    fork = dataclasses.replace(config, out=tmp_path / "fork", resume=str(older))
    assert train(fork) == 0
    one, other = (newest(run.out).tensors["model/picture"] for run in (config, fork))
    assert torch.allclose(one, other, atol=1e-4)


def test_a_scene_without_test_views_is_trained_and_not_measured(configure, scene, capsys):
    config = configure(steps=5)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, test_every=0))
    assert train(config) == 0
    assert "nothing was measured" in capsys.readouterr().out
    assert not (config.out / "eval").exists()


@pytest.mark.parametrize(("steps", "looked_at"), [(20, 20), (501, 500)])
def test_nothing_visible_is_said(configure, monkeypatch, caplog, steps, looked_at):
    original = training_toy.Model.render

    def invisible(self, cameras, pixels=None, *, background):
        drawn = original(self, cameras, pixels, background=background)
        return dataclasses.replace(drawn, alpha=torch.zeros_like(drawn.alpha))

    monkeypatch.setattr(training_toy.Model, "render", invisible)
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        train(configure(steps=steps))
    assert caplog.text.count(f"after {looked_at} steps nothing is visible") == 1


def test_the_trainer_stays_readable():
    """The promise of the design: one loop, at most 150 lines."""
    import nfc_splat.training.trainer as module

    assert len(Path(module.__file__).read_text().splitlines()) <= 150


def test_a_checkpoint_that_is_named_must_be_good(configure):
    config = configure()
    train(config)
    path = config.out / "checkpoints" / "step_00000040.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="step_00000040"):
        train(dataclasses.replace(config, resume=str(path)))
    with pytest.raises(UserError):
        read_checkpoint(path)


def test_resuming_from_an_older_step_abandons_the_later_ones(configure):
    config = configure(checkpoints=CheckpointConfig(save_steps=10, save_minutes=0, keep=5))
    train(config)
    older = config.out / "checkpoints" / "step_00000020.safetensors"
    seen = []

    class StoppedError(Exception):
        pass

    def stop(self):
        seen.append(sorted(checkpoint_files(config.out / "checkpoints")))
        raise StoppedError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "fit", stop)
        with pytest.raises(StoppedError):
            train(dataclasses.replace(config, resume=str(older)))
    assert max(seen[0]) == 20
