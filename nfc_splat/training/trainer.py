"""The training loop, one for every method: the model draws, the recipe's loss and NFC's compare, `backward` learns.

Symbols: `*request` is the shape of what is drawn, C, H, W for whole images, P for pixels.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nfc_splat.fields.recipe import Batch
from nfc_splat.losses import bitwise_classification_loss, channelwise_classification_loss
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.sharing import add_up, sharing
from nfc_splat.training import gradients
from nfc_splat.training.batches import Batches
from nfc_splat.training.config import TrainConfig
from nfc_splat.training.processes import ALONE, Group
from nfc_splat.training.progress import Observer, Progress
from nfc_splat.training.run import RunFolder
from nfc_splat.training.saving import Saver
from nfc_splat.training.signals import Signals
from nfc_splat.training.state import TrainingState

VISIBLE = 1 / 255  # alpha below which a rendering shows nothing
LOOKED_AT = 500  # the step after which it should: dvgo's densities, which begin near nothing, take some 130

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Trains `state` to the last step.

    Attributes:
        config: resolved.
        batches: the training views.
        state: changes in place, and is replaced when training rolls back.
        saver: writes the checkpoints.
        run: takes the log.
        observers: are told of every step.
        group: the processes that train together.
    """

    config: TrainConfig
    batches: Batches
    state: TrainingState
    saver: Saver
    run: RunFolder
    observers: Sequence[Observer] = ()
    group: Group = ALONE

    def fit(self) -> int:
        """Train. Returns 0 when the last step was reached, 128 + the signal's number when told to stop.

        Raises:
            Diverged: nothing finite comes out any more, even with half the learning rates.
            UserError: the first or the last checkpoint cannot be written.
        """
        self.saver.save(self.state)
        patient, quiet = self.group.size > 1, self.config.quiet
        with Signals(patient=patient) as signals, Progress(self.config.steps, self.state.step, quiet) as progress:
            while self.state.step < self.config.steps:
                figures = self.step()
                stop, due = self.group.most(signals.stop or 0, signals.save or self.saver.is_due(self.state))
                if figures is None:
                    self.state = self.saver.after_failure(self.state)
                else:
                    self.saver.after_step(self.state, bool(due))
                    signals.save = signals.save and not due
                for observer in (progress, *self.observers):
                    observer.after_step(self.state, figures)
                if stop:
                    self.saver.save(self.state)
                    log.warning("stopped at step %d, which is saved; --resume goes on from there", self.state.step)
                    return 128 + stop
        self.saver.save(self.state)
        return 0

    def step(self) -> dict[str, Any] | None:
        """One optimiser step. Returns its figures if it was logged, else {}; None when it was not taken because the
        loss or a gradient is not finite, to be tried again with the next images."""
        state, started = self.state, time.perf_counter()
        step = state.step + 1
        batch = self.batches.draw(state.recipe.sampling(step), state.sampler)
        with sharing(batch.share):
            rendering = state.model.render(batch.cameras, batch.pixels, background=batch.background)
            losses = self.losses(rendering, batch, step)
            state.recipe.before_backward(rendering, losses, step)
            torch.stack(list(losses.values())).sum().backward()
            losses = gradients.add_up(losses, state.optimizers, self.group)
            if not gradients.are_finite(losses, state.optimizers):
                gradients.forget(state.optimizers)
                return None
            state.recipe.after_backward(state.model, step)
            gradients.apply(state.optimizers, state.learning_rate_scale)
            figures = state.recipe.after_step(state.model, state.optimizers, rendering, step)
            state.step = step
            state.seconds += time.perf_counter() - started
            return self.report(rendering, batch, losses, figures)

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """The weighted scalar terms by name, of the batch's share; their sum is minimised."""
        config = self.config
        terms = {"photometric": config.photometric_weight * self.state.recipe.photometric(rendering, batch)}
        if config.loss != "regression":
            drawn = [self.classification(part, batch) for part in (rendering, *rendering.auxiliary)]
            terms["classification"] = config.loss_weight * sum(drawn)
        regularizers = self.state.model.regularizers(rendering, batch, step)
        return batch.share.of_pixels(terms) | batch.share.of_rays(regularizers)

    def classification(self, drawn: Rendering, batch: Batch) -> Tensor:
        """NFC's loss of one rendering, of its colours or of their bits."""
        options = {"eps": self.config.loss_eps, "mask": batch.mask}
        if self.config.loss == "bitwise":
            encoding = self.state.model.encoding
            return bitwise_classification_loss(drawn.bits, batch.target, encoding=encoding, **options)
        low = self.config.loss_eps_low
        return channelwise_classification_loss(drawn.color, batch.target, eps_low=low, **options)

    @torch.no_grad()
    def report(
        self, rendering: Rendering, batch: Batch, losses: dict[str, Tensor], figures: dict[str, float]
    ) -> dict[str, Any]:
        """Log the step if it is one to log, and return what was logged."""
        state, config = self.state, self.config
        if state.step == min(LOOKED_AT, config.steps) and rendering.alpha.max() < VISIBLE:
            why = "too few steps, or wrong poses, which nfc_splat.doctor shows"
            log.warning("after %d steps nothing is visible: %s", state.step, why)
        if state.step % config.log_every and state.step != config.steps:
            return {}
        state.losses = {name: value.item() for name, value in losses.items()}
        error = (rendering.color.clamp(0, 1) - batch.target).square().mean(-1)
        weight = torch.ones_like(error) if batch.mask is None else batch.mask
        wrong, counted = add_up(torch.stack([(error * weight).sum(), weight.sum()]))
        record = {"step": state.step, "loss": sum(state.losses.values()), "losses": state.losses}
        if counted:  # else no pixel of the batch shows the object
            record["psnr"] = -10 * torch.log10(wrong / counted).item()
        self.run.log({**record, **figures, "seconds": round(state.seconds, 3)})
        return record | figures
