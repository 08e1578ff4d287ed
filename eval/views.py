"""Evaluate a model on a split: metrics, pictures and the files that hold them.

The end of training and `python -m nfc_splat.eval images` both call `evaluate_views`, so that their numbers are equal.
Symbols: H rows, W columns, V views. Colours are [H, W, 3] in [0, 1].
"""

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from nfc_splat import machine
from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.eval.images import Protocol, ViewScore, mean_scores, score_view
from nfc_splat.eval.lpips import Networks, load_networks
from nfc_splat.files import write_json
from nfc_splat.rendering import Rendering, SceneModel


class Views(Interface):
    """What evaluation needs of a split."""

    names: Sequence[str]
    cameras: Cameras

    def __len__(self) -> int: ...

    def target(self, index: int, background: Tensor) -> Tensor:
        """[H, W, 3] in [0, 1], composited over `background` [3]."""

    def mask(self, index: int) -> Tensor | None:
        """[H, W] weights, or None when every pixel counts."""


@dataclass(frozen=True)
class _View:
    """A view's row in `per_view.json`."""

    name: str
    file: str
    size: tuple[int, int]
    score: ViewScore
    masked: bool
    seconds: float
    depth: tuple[float, float] | None

    def record(self) -> dict[str, Any]:
        row: dict[str, Any] = {"name": self.name, "file": self.file, "width": self.size[0], "height": self.size[1]}
        row |= {"psnr": self.score.psnr, "ssim": self.score.ssim, "psnr_infinite": self.score.identical}
        row |= {f"lpips_{net}": value for net, value in self.score.lpips.items()}
        row |= {"masked": self.masked, "seconds": self.seconds}
        return row | ({"notes": dict(self.score.notes)} if self.score.notes else {})


def render_view(model: SceneModel, camera: Cameras, background: Tensor) -> Rendering:
    """Draw one camera without gradients, as [1, H, W, ...]."""
    with torch.no_grad():
        return model.render(camera, background=background)


def check_protocol(protocol: Protocol, views: int) -> None:
    """Raise a `UserError` unless a split of so many views can be measured as the protocol says."""
    if views == 0:
        raise UserError("the split has no views, expected at least one; choose another --split or lower --test-every")
    if views <= protocol.left_out:
        raise UserError(
            f"--protocol {protocol.name} leaves out the first {protocol.left_out} of the split's {views} views, "
            "and nothing remains; choose another --protocol or --split"
        )


def evaluate_views(
    model: SceneModel,
    split: Views,
    *,
    background: Tensor,
    protocol: Protocol,
    device: torch.device | str,
    folder: Path | None,
    extra: Mapping[str, Any],
    split_name: str = "test",
    tables: Path | None = None,
    download_lpips: bool = False,
    on_view: Callable[[str, ViewScore], None] | None = None,
) -> dict[str, Any]:
    """Render every view of `split`, compare it with the truth, and write what was found.

    Writes `eval/summary.json`, `eval/per_view.json`, `renders/*.png`, `gt/*.png`, `depth/*.png`, `depth/depth.json` and
    `contact_sheet.png` below `folder`, each atomically; the summary last, so that its being there says that all is.

    Args:
        model: in any mode; its mode is restored.
        split: the views; the protocol may leave out the first.
        background: [3] behind the model and the truth.
        protocol: one of `nfc_splat.eval.images.PROTOCOLS`.
        device: where the model is.
        folder: where to write, or None to write nothing.
        extra: further top-level entries of the summary (step, primitives, ...); its "protocol" entry, a mapping, is
            merged into the protocol block (resampler, seed, ...).
        split_name: "train", "val" or "test", for the protocol block.
        tables: folder of the two JSON files when it is not `folder/eval`.
        download_lpips: fetch absent LPIPS weights.
        on_view: called with each view's name and metrics as they come.

    Returns:
        The summary: `psnr`, `ssim`, `lpips`, `n_views`, `protocol`, `seconds` (spent rendering, in
        all), `median_seconds` (of a view) and more.

    Raises:
        UserError: the split is empty, or the protocol leaves out all of it.
    """
    check_protocol(protocol, len(split))
    networks = load_networks(protocol.lpips_nets, signed=protocol.lpips_signed, device=device, download=download_lpips)
    was_training = model.training
    model.eval()
    try:
        views = [
            _evaluate(model, split, index, background.to(device), protocol, networks, folder, on_view)
            for index in range(protocol.left_out, len(split))
        ]
    finally:
        model.train(was_training)
    summary = _summarize(views, protocol, networks, background, extra)
    summary["protocol"]["split"] = split_name
    if folder is not None:
        tables = folder / "eval" if tables is None else tables
        write_json(tables / "per_view.json", [view.record() for view in views])
        _write_depth_ranges(folder, views)
        _write_contact_sheet(folder, views, summary)
        write_json(tables / "summary.json", summary)  # last: where it is, everything is
    return summary


def _evaluate(
    model: SceneModel,
    split: Views,
    index: int,
    background: Tensor,
    protocol: Protocol,
    networks: Networks,
    folder: Path | None,
    on_view: Callable[[str, ViewScore], None] | None,
) -> _View:
    """Render, score and save one view."""
    name = split.names[index]
    camera = split.cameras[index].to(background.device)
    started = _clock(background.device)
    drawn = render_view(model, camera, background)
    seconds = _clock(background.device) - started
    pred = drawn.color[0]
    target = split.target(index, background).to(pred)
    mask = split.mask(index)
    mask = None if mask is None else mask.to(pred)
    score = score_view(pred, target, mask, protocol, networks.ready)
    file, depth = f"{picture_name(index, name)}.png", None
    if folder is not None:
        depth = _save(folder, file, drawn, target)
    if on_view is not None:
        on_view(name, score)
    return _View(name, file, (pred.shape[1], pred.shape[0]), score, mask is not None, seconds, depth)


def _save(folder: Path, file: str, drawn: Rendering, target: Tensor) -> tuple[float, float] | None:
    """Write the pictures of a view; returns what is near and far in that of its depth."""
    from nfc_splat.eval.pictures import depth_levels, to_bytes, write_levels, write_png

    write_png(folder / "renders" / file, to_bytes(drawn.color[0]))
    write_png(folder / "gt" / file, to_bytes(target))
    levels, depth = depth_levels(drawn.depth[0, ..., 0], drawn.alpha[0, ..., 0])
    write_levels(folder / "depth" / file, levels)
    return depth


def _write_depth_ranges(folder: Path, views: Sequence[_View]) -> None:
    from nfc_splat.eval.pictures import DEPTH_MEANING

    near_far = {view.file: view.depth for view in views}
    write_json(folder / "depth" / "depth.json", {"meaning": DEPTH_MEANING, "near_far": near_far})


def _clock(device: torch.device) -> float:
    """Seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def picture_name(index: int, name: str) -> str:
    """A file name, unique within a split and safe on every system, that still says which view it is."""
    stem = re.sub(r"\.(png|jpe?g|webp|tiff?|bmp)$", "", name, flags=re.IGNORECASE)
    return f"{index:04d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', stem)[-80:]}"


def _summarize(
    views: Sequence[_View], protocol: Protocol, networks: Networks, background: Tensor, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `summary.json`."""
    summary = mean_scores([view.score for view in views], protocol)
    summary["seconds"] = sum(view.seconds for view in views)
    # The first view drawn also pays for compiling kernels.
    summary["median_seconds"] = statistics.median(view.seconds for view in views)
    block = protocol.describe()
    block["lpips"]["missing"] = dict(networks.missing)
    block["mask"]["views"] = sum(view.masked for view in views)
    sizes = sorted({view.size for view in views})
    block["resolution"] = list(sizes[0]) if len(sizes) == 1 else {"from": list(sizes[0]), "to": list(sizes[-1])}
    block["background"] = [float(value) for value in background]
    block |= extra.get("protocol", {})
    block |= {"versions": machine.versions(), "hardware": machine.hardware()}
    for reason in dict.fromkeys(networks.missing.values()):
        nets = " and ".join(f"lpips_{net}" for net, why in networks.missing.items() if why == reason)
        summary["notes"].append(f"{nets} null: {reason}")
    return summary | {key: value for key, value in extra.items() if key != "protocol"} | {"protocol": block}


def _write_contact_sheet(folder: Path, views: Sequence[_View], summary: Mapping[str, Any]) -> None:
    """Draw the worst, median and best view from the pictures just written."""
    from PIL import Image

    from nfc_splat.eval.pictures import SheetRow, contact_sheet, error_picture, save_image

    def load(kind: str, view: _View) -> Tensor:
        with Image.open(folder / kind / view.file, formats=("PNG",)) as image:
            return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)

    rows = []
    for label, view in _extremes(views):
        truth, render = load("gt", view), load("renders", view)
        pictures = ((255 * truth).byte().numpy(), (255 * render).byte().numpy(), error_picture(render, truth))
        rows.append(SheetRow(label, view.name, _metrics_line(view.score), pictures))
    title = str(summary.get("title", "Test views"))
    subtitle = f"{summary['n_views']} views · mean {_metrics_line_of(summary)} · protocol {summary['protocol']['name']}"
    save_image(folder / "contact_sheet.png", contact_sheet(title, subtitle, rows))


def _extremes(views: Sequence[_View]) -> list[tuple[str, _View]]:
    """Worst, median and best by PSNR; fewer when there are fewer views. A view without a value is the worst."""

    def rank(view: _View) -> float:
        if view.score.psnr is not None:
            return view.score.psnr
        return float("inf") if view.score.identical else float("-inf")

    ordered = sorted(views, key=rank)
    chosen = {"worst": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "best": ordered[-1]}
    if len(ordered) == 1:
        return [("only view", ordered[0])]
    if len(ordered) == 2:
        del chosen["median"]
    return list(chosen.items())


def _metrics_line(score: ViewScore) -> str:
    lpips = next((value for value in score.lpips.values() if value is not None), None)
    return format_metrics(float("inf") if score.identical else score.psnr, score.ssim, lpips)


def _metrics_line_of(summary: Mapping[str, Any]) -> str:
    return format_metrics(summary["psnr"], summary["ssim"], summary["lpips"])


def format_metrics(psnr: float | None, ssim: float | None, lpips: float | None) -> str:
    """One short line, without the metrics that do not exist."""
    parts = [] if psnr is None else [f"PSNR {psnr:.2f} dB"]
    parts += [] if ssim is None else [f"SSIM {ssim:.4f}"]
    parts += [] if lpips is None else [f"LPIPS {lpips:.4f}"]
    return " · ".join(parts) or "no metric exists"
