"""PSNR of a few views while a model is trained, for plots over steps: `train --curve-points N`.

Training and test views are equally many and spread evenly over their splits, so that the two lines can be compared.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from nfc_splat.eval.images import psnr
from nfc_splat.eval.views import Views, render_view

MOST_VIEWS = 8


class Curve:
    """An observer of a training (`nfc_splat.training.progress.Observer`): `points` times, the last time after the last
    step, it draws views of each split and logs a line {"step", "train_psnr", "test_psnr"}, in dB.

    Args:
        splits: "train", and as "test" the views held out, whatever their own name; empty ones are left out.
        background: [3] behind the model and the truth.
        steps: of the whole training.
        points: how many times, 1 or more.
        device: where the model is.
        log: takes the lines.
    """

    def __init__(
        self,
        splits: Mapping[str, Views],
        background: Tensor,
        *,
        steps: int,
        points: int,
        device: str,
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        self._splits = {name: split for name, split in splits.items() if len(split)}
        fewest = min([MOST_VIEWS, *map(len, self._splits.values())])
        self._views = {
            name: [(2 * k + 1) * len(split) // (2 * fewest) for k in range(fewest)]
            for name, split in self._splits.items()
        }
        self._background = background.to(device)
        self._due = {round(steps * (k + 1) / points) for k in range(points)}
        self._log = log

    def after_step(self, state: Any, figures: Mapping[str, float] | None) -> None:
        """Draw, compare and log where that is due."""
        if figures is None or state.step not in self._due:
            return
        state.model.eval()
        found = {f"{name}_psnr": self._mean_psnr(state.model, name) for name in self._splits}
        state.model.train()
        self._log({"step": state.step, **found})

    def _mean_psnr(self, model: Any, name: str) -> float | None:
        """The mean over the views; None where one of them has no PSNR, drawn exactly or not finite."""
        split, values = self._splits[name], []
        for index in self._views[name]:
            color = render_view(model, split.cameras[index].to(self._background.device), self._background).color[0]
            target, mask = split.target(index, self._background), split.mask(index)
            values.append(psnr(color.clamp(0, 1), target.to(color), None if mask is None else mask.to(color)))
        mean = float(sum(values) / len(values))
        return mean if abs(mean) < float("inf") else None
