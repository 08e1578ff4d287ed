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
from nfc_splat.training.batches import Batches
from nfc_splat.training.config import TrainConfig
from nfc_splat.training.progress import Observer, Progress
from nfc_splat.training.run import RunFolder
from nfc_splat.training.saving import Saver
from nfc_splat.training.signals import Signals
from nfc_splat.training.state import TrainingState

VISIBLE = 1 / 255  # alpha below which a rendering shows nothing

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
    """

    config: TrainConfig
    batches: Batches
    state: TrainingState
    saver: Saver
    run: RunFolder
    observers: Sequence[Observer] = ()

    def fit(self) -> int:
        """Train. Returns 0 when the last step was reached, 128 + the signal's number when told to stop.

        Raises:
            Diverged: nothing finite comes out any more, even with half the learning rates.
            UserError: the first or the last checkpoint cannot be written.
        """
        self.saver.save(self.state)
        with Signals() as signals, Progress(self.config.steps, self.state.step, self.config.quiet) as progress:
            while self.state.step < self.config.steps:
                figures = self.step()
                if figures is None:
                    self.state = self.saver.after_failure(self.state)
                else:
                    self.saver.after_step(self.state, signals.save)
                    signals.save = False
                for observer in (progress, *self.observers):
                    observer.after_step(self.state, figures)
                if signals.stop is not None:
                    self.saver.save(self.state)
                    log.warning("stopped at step %d, which is saved; --resume goes on from there", self.state.step)
                    return 128 + signals.stop
        self.saver.save(self.state)
        return 0

    def step(self) -> dict[str, Any] | None:
        """One optimiser step. Returns its figures if it was logged, else {}; None when it was not taken because the
        loss or a gradient is not finite, to be tried again with the next images."""
        state, started = self.state, time.perf_counter()
        step = state.step + 1
        batch = self.batches.draw(state.recipe.sampling(step), state.sampler)
        rendering = state.model.render(batch.cameras, batch.pixels, background=batch.background)
        losses = self.losses(rendering, batch, step)
        state.recipe.before_backward(rendering, losses, step)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        if not self.is_finite(total):
            for optimizer in state.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            return None
        state.recipe.after_backward(state.model, step)
        self.update()
        figures = state.recipe.after_step(state.model, state.optimizers, rendering, step)
        state.step = step
        state.seconds += time.perf_counter() - started
        return self.report(rendering, batch, losses, figures)

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """The weighted scalar terms by name; their sum is minimised."""
        config = self.config
        terms = {"photometric": config.photometric_weight * self.state.recipe.photometric(rendering, batch)}
        if config.loss != "regression":
            drawn = [self.classification(part, batch) for part in (rendering, *rendering.auxiliary)]
            terms["classification"] = config.loss_weight * sum(drawn)
        return terms | self.state.model.regularizers(rendering, batch, step)

    def classification(self, drawn: Rendering, batch: Batch) -> Tensor:
        """NFC's loss of one rendering, of its colours or of their bits."""
        options = {"eps": self.config.loss_eps, "mask": batch.mask}
        if self.config.loss == "bitwise":
            encoding = self.state.model.encoding
            return bitwise_classification_loss(drawn.bits, batch.target, encoding=encoding, **options)
        low = self.config.loss_eps_low
        return channelwise_classification_loss(drawn.color, batch.target, eps_low=low, **options)

    def is_finite(self, total: Tensor) -> bool:
        """Whether the loss and every gradient are; the sum of a tensor tells, at the price of reading it once."""
        groups = [group for optimizer in self.state.optimizers.values() for group in optimizer.param_groups]
        grads = [p.grad.sum() for group in groups for p in group["params"] if p.grad is not None]
        return bool(torch.stack([value.detach().double() for value in (total, *grads)]).isfinite().all())

    def update(self) -> None:
        """Every optimiser's step, at the recipe's learning rates times the roll-back's scale."""
        scale = self.state.learning_rate_scale
        for optimizer in self.state.optimizers.values():
            rates = [group["lr"] for group in optimizer.param_groups]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate if scale == 1 else rate * scale
            optimizer.step()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def report(
        self, rendering: Rendering, batch: Batch, losses: dict[str, Tensor], figures: dict[str, float]
    ) -> dict[str, Any]:
        """Log the step if it is one to log, and return what was logged."""
        state, config = self.state, self.config
        if state.step == 100 and rendering.alpha.max() < VISIBLE:
            log.warning("after 100 steps nothing is visible: are the scene's poses right? nfc_splat.doctor shows them")
        if state.step % config.log_every and state.step != config.steps:
            return {}
        state.losses = {name: value.item() for name, value in losses.items()}
        error = (rendering.color.clamp(0, 1) - batch.target).square().mean(-1)
        weight = torch.ones_like(error) if batch.mask is None else batch.mask
        psnr = -10 * torch.log10((error * weight).sum() / weight.sum()).item()
        record = {"step": state.step, "loss": sum(state.losses.values()), "losses": state.losses, "psnr": psnr}
        self.run.log({**record, **figures, "seconds": round(state.seconds, 3)})
        return record | figures
