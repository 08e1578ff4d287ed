"""Which views train and which are held out, and the sentence that says so."""

from collections.abc import Sequence

import torch

from nfc_splat.data.capture import Frame, counted
from nfc_splat.data.config import DataConfig
from nfc_splat.errors import UserError

ORDER = ("train", "val", "test")


def assign_splits(
    frames: Sequence[Frame], *, test_every: int | None, default_every: int, by_name: bool
) -> tuple[dict[str, list[int]], str]:
    """Indices into `frames` for "train" and "test" (and "val" if given), and the rule as a sentence.

    The frames' own split holds unless `test_every` is given. Otherwise every N-th frame is for testing, counted from
    the first, in the order of names (`by_name`) or of the files. One training view always remains.
    """
    if test_every is None and any(frame.split for frame in frames):
        chosen = {name: [i for i, frame in enumerate(frames) if frame.split == name] for name in ORDER}
        if not chosen["val"]:
            del chosen["val"]
        return chosen, f"Split: as the scene gives it: {_sizes(chosen)}."
    every = default_every if test_every is None else test_every
    order = sorted(range(len(frames)), key=lambda i: frames[i].name) if by_name else list(range(len(frames)))
    sorting = "sorted by name" if by_name else "in the order of the scene"
    if every == 0 or len(frames) < 2:
        why = "--test-every 0" if every == 0 else "there is only one"
        return {"train": order, "test": []}, f"Split: no test images ({why}): {_sizes({'train': order})}."
    chosen = {
        "train": [i for place, i in enumerate(order) if place % every],
        "test": [i for place, i in enumerate(order) if place % every == 0],
    }
    rule = f"Split: every {every}th image {sorting}, the first included, is for testing"
    return chosen, f"{rule}: {_sizes(chosen)}."


def fewer_views(train: Sequence[int], config: DataConfig) -> tuple[list[int], str | None]:
    """Those of the training frames that `config` asks for, in their order, and the rule as a sentence.

    Of n frames, `train_views` = m are numbers floor((k + 1/2) n / m): the middles of as many equal stretches.
    `train_share` takes the first ones of a random order, at least one.

    Raises:
        UserError: there are fewer.
    """
    known = counted(len(train), "training image")
    if config.train_views is not None:
        count = config.train_views
        if count > len(train):
            raise UserError(f"--train-views {count}: the scene has {known}")
        chosen = [train[(2 * k + 1) * len(train) // (2 * count)] for k in range(count)]
        return chosen, f"Of {known}, {count} are used, spread evenly (--train-views)."
    if config.train_share is not None:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.train_draw))
        chosen = sorted(order[: max(1, round(config.train_share * len(train)))].tolist())
        rule = f"Of {known}, {len(chosen)} are used, drawn at random (--train-share, --train-draw {config.train_draw})."
        return [train[place] for place in chosen], rule
    return list(train), None


def _sizes(chosen: dict[str, list[int]]) -> str:
    return ", ".join(f"{counted(len(indices), 'image')} for {name}" for name, indices in chosen.items())
