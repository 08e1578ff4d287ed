"""Decoded images within a byte budget: `Job` says how one image comes to be, `ImageStore` keeps recent ones."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nfc_splat.data.capture import counted, naming
from nfc_splat.data.images import read_image, read_mask
from nfc_splat.data.resample import Remap, resample
from nfc_splat.errors import UserError

# Each worker holds a few copies of one full-size image.
MAX_WORKERS = 8

ODDITIES = {
    "orientation": "carry an EXIF orientation, which is ignored, as by COLMAP: the stored pixels are used",
    "profile": "carry a colour profile other than sRGB, which is ignored",
    "low byte": "store 16-bit colour in a form of which only the high byte can be read",
}


@dataclass(frozen=True)
class Job:
    """One image to be: decode `path`, take away the lens, reduce to `width` x `height`; likewise its masks.

    Masks have the size of the image file, `file_size`, or that which the scene states for it, `stated`. `mask` says
    which pixels count, `foreground` which show the object.
    """

    name: str
    path: Path
    file_size: tuple[int, int]
    stated: tuple[int, int]
    width: int
    height: int
    mask: Path | None = None
    remap: Remap | None = None
    foreground: Path | None = None

    @property
    def masks(self) -> dict[str, Path]:
        """The masks that there are, by what they are called here."""
        masks = {"mask": self.mask, "foreground": self.foreground}
        return {kind: path for kind, path in masks.items() if path is not None}


class ImageStore:
    """Images as uint8 [H, W, 3 | 4] and masks as uint8 [H, W], decoded when asked for and kept while they fit.

    Safe to use from several threads. The least recently used pictures go first when `budget` bytes are full.
    """

    def __init__(self, jobs: list[Job], budget: int, max_pixels: int):
        self.jobs, self.budget, self.max_pixels = jobs, budget, max_pixels
        self.channels = [3] * len(jobs)
        self._kept: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def kept_bytes(self) -> int:
        """Bytes in use."""
        return self._bytes

    def image(self, index: int) -> torch.Tensor:
        """uint8 [H, W, 3 | 4], the fourth channel straight alpha. Not to be written to."""
        return torch.from_numpy(self._get((index, "image"), lambda: self._make_image(self.jobs[index])[0]))

    def mask(self, index: int) -> torch.Tensor | None:
        """uint8 [H, W], 255 = keep, or None."""
        return self._mask(index, "mask")

    def foreground(self, index: int) -> torch.Tensor | None:
        """uint8 [H, W], 255 = the object, or None."""
        return self._mask(index, "foreground")

    def _mask(self, index: int, kind: str) -> torch.Tensor | None:
        job = self.jobs[index]
        if kind not in job.masks:
            return None
        return torch.from_numpy(self._get((index, kind), lambda: self._make_mask(job, job.masks[kind])))

    def check_all(self) -> list[str]:
        """Decode every image and mask once, in parallel, keeping what fits; returns notices.

        Raises:
            UserError: naming the first broken file and counting the others.
        """
        with ThreadPoolExecutor(min(MAX_WORKERS, torch.get_num_threads())) as pool:
            outcomes = list(pool.map(self._check, range(len(self.jobs))))
        failures = [outcome for outcome in outcomes if isinstance(outcome, UserError)]
        if failures:
            others = f" (and {len(failures) - 1} more like it)" if len(failures) > 1 else ""
            raise UserError(f"{failures[0]}{others}") from failures[0]
        notices = []
        for oddity, what in ODDITIES.items():
            names = [job.name for job, found in zip(self.jobs, outcomes, strict=True) if oddity in found]
            if names:
                notices.append(f"Warning: {counted(len(names), 'image')} {what}: {naming(names)}.")
        empty = [job.name for job, found in zip(self.jobs, outcomes, strict=True) if "empty mask" in found]
        if empty:
            notices.append(f"Warning: {counted(len(empty), 'mask')} keep no pixel at all: {naming(empty)}.")
        return notices

    def _check(self, index: int) -> set[str] | UserError:
        job = self.jobs[index]
        try:
            image, found = self._make_image(job)
            self.channels[index] = image.shape[2]
            self._keep_if_room((index, "image"), image)
            for kind, path in job.masks.items():
                mask = self._make_mask(job, path)
                self._keep_if_room((index, kind), mask)
                found = found | ({"empty mask"} if not mask.any() else set())
            return set(found)
        except UserError as error:
            return error

    def _make_image(self, job: Job) -> tuple[np.ndarray, frozenset[str]]:
        decoded = read_image(job.path, self.max_pixels)
        if decoded.pixels.shape[1::-1] != job.file_size:
            raise UserError(f"{job.path}: {_size(decoded.pixels)}, but its header says {_listed(job.file_size)}")
        return resample(decoded.pixels, job.width, job.height, job.remap), decoded.oddities

    def _make_mask(self, job: Job, path: Path) -> np.ndarray:
        mask = read_mask(path, self.max_pixels)
        if mask.max() == 1:
            raise UserError(
                f"{path}: the mask's brightest pixel is 1 of 255; white (255) means keep: multiply it by 255"
            )
        if mask.shape[1::-1] not in (job.file_size, job.stated):
            raise UserError(f"{path}: the mask is {_size(mask)}, its image {_listed(job.file_size)}; they must agree")
        mask = resample(mask, *job.file_size, None)
        return resample(mask, job.width, job.height, job.remap)

    def _get(self, key: tuple[int, str], make: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._lock:
            if value.nbytes <= self.budget:
                while self._bytes + value.nbytes > self.budget:
                    self._bytes -= self._kept.popitem(last=False)[1].nbytes
                self._put(key, value)
        return value

    def _keep_if_room(self, key: tuple[int, str], value: np.ndarray) -> None:
        with self._lock:
            if self._bytes + value.nbytes <= self.budget:
                self._put(key, value)

    def _put(self, key: tuple[int, str], value: np.ndarray) -> None:
        """With the lock held and room made."""
        if key in self._kept:  # another thread was faster
            return
        self._kept[key] = value
        self._bytes += value.nbytes


def _size(pixels: np.ndarray) -> str:
    return _listed(pixels.shape[1::-1])


def _listed(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
