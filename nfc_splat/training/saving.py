"""When to save, and what to do when training goes wrong: back to the last checkpoint, once."""

import logging
import time

from nfc_splat.errors import UserError
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.rendering.sharing import ProcessLost
from nfc_splat.training.checkpoint import newest_checkpoint, write_checkpoint
from nfc_splat.training.config import TrainConfig
from nfc_splat.training.processes import ALONE, Apart, Group
from nfc_splat.training.run import RunFolder
from nfc_splat.training.state import TrainingState, captured, restored_state

PATIENCE = 10  # steps in a row that may be not finite before something is done about it

log = logging.getLogger(__name__)


class Diverged(UserError):
    """Training stopped because losses or gradients are not finite any more."""

    exit_code = 3


class Saver:
    """Checkpoints of one run, and the way back to them.

    Args:
        config: resolved.
        run: where they go.
        geometry, scene_hash: of the scene at hand, to rebuild a state.
        step: the one that the newest checkpoint in the folder has, -1 without any.
        group: of several processes the first one writes, once all are found to hold the same.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        geometry: SceneGeometry,
        scene_hash: str,
        step: int,
        group: Group = ALONE,
    ) -> None:
        self._config, self._run, self._geometry, self._scene_hash = config, run, geometry, scene_hash
        self._saved_step, self._saved_time = step, time.monotonic()
        self._group, self._failures = group, 0

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint of `state` unless its step has one; a `UserError` when it cannot be written."""
        # Writing a step again would for a moment leave its file without a sidecar that agrees.
        if state.step != self._saved_step:
            header, tensors = captured(state, self._config, self._scene_hash)
            self._group.require_same(tensors, state.step)
            with self._group.together():
                if self._group.first:
                    write_checkpoint(self._run.checkpoints, header, tensors, keep=self._config.checkpoints.keep)
            self._saved_step = state.step
        self._saved_time = time.monotonic()

    def is_due(self, state: TrainingState) -> bool:
        """Whether it is time for a checkpoint."""
        steps, minutes = self._config.checkpoints.save_steps, self._config.checkpoints.save_minutes
        late = minutes > 0 and time.monotonic() - self._saved_time >= 60 * minutes
        return late or (steps > 0 and state.step % steps == 0)

    def after_step(self, state: TrainingState, due: bool) -> None:
        """Save if that is due. A failure is reported, and tried again when the next save is due."""
        self._failures = 0
        if due:
            try:
                self.save(state)
            except (Apart, ProcessLost):
                raise
            except UserError as error:
                self._saved_time = time.monotonic()
                log.warning("training goes on without a checkpoint at step %d: %s", state.step, error)

    def after_failure(self, state: TrainingState) -> TrainingState:
        """Note that a step was not finite. Returns the state to go on with: the same, or after `PATIENCE` failures in a
        row the last checkpoint's, once in a run, with half the learning rates.

        Raises:
            Diverged: it happened again after that.
        """
        self._failures += 1
        state.skipped += 1
        step = state.step + 1
        self._run.log({"step": step, "event": "skipped", "skipped": state.skipped})
        log.warning("step %d: the loss or a gradient is not finite; tried again with the next image", step)
        if self._failures < PATIENCE:
            return state
        if state.learning_rate_scale < 1:
            raise Diverged(
                f"stopped at step {step}: loss or gradients not finite {PATIENCE} times in a row, with half the "
                f"learning rates too; the last good checkpoint is in {self._run.checkpoints}; lower the learning rates "
                "or mend the images (python -m nfc_splat.doctor SCENE looks at them)"
            )
        checkpoint = newest_checkpoint(self._run.checkpoints)
        restored = restored_state(checkpoint, self._config, self._geometry, self._scene_hash)
        restored.learning_rate_scale, restored.skipped = 0.5, state.skipped
        self._failures = 0
        self._run.log({"step": restored.step, "event": "rolled back", "from": step, "learning_rate_scale": 0.5})
        log.warning("went back to step %d with half the learning rates", restored.step)
        return restored
