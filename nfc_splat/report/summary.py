"""The numbers of the runs, the protocol that they follow, and which of them can be compared.

Two runs can be compared when everything is equal that decides a metric besides the model: photographs, split, protocol,
resolution, background. Only among those is a best value marked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfc_splat.report.folder import Run, at, leading, number
from nfc_splat.report.settings import processes_of
from nfc_splat.terminal import duration

COLUMNS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "train_seconds": "Training",
    "peak_memory_mb": "Memory",
    "peak_gpu_memory_mb": "GPU memory",
    "steps": "Steps",
    "primitives": "Primitives",
    "method": "Method",
    "loss": "Loss",
    "encoding": "Encoding",
    "preset": "Preset",
    "seed": "Seed",
}
COSTS = ("train_seconds", "peak_memory_mb", "peak_gpu_memory_mb")
NUMBERS = ("psnr", "ssim", "lpips", *COSTS, "steps", "primitives", "seed")
BETTER = {"psnr": max, "ssim": max, "lpips": min}
CHEAPER = dict.fromkeys(COSTS, min)  # marked where the machine is the same
SPREADS = ("psnr", "ssim", "lpips")


@dataclass
class Cell:
    """A number or a word of the table.

    Attributes:
        text: as shown.
        value: the number behind it, None where there is none.
        best: whether it is the best of those that it can be compared with.
        spread: standard deviation, of a mean of several runs.
    """

    text: str
    value: float | None = None
    best: bool = False
    spread: str = ""


@dataclass(frozen=True)
class Row:
    """A run in the table; `cells` by the keys of `COLUMNS`."""

    run: int
    name: str
    finished: bool
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Block:
    """Runs that can be compared. `protocol` says how they were measured, in sentences."""

    scene: str
    protocol: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Summary:
    """The table: `columns` are those in which any run has something; `warnings` say what cannot be compared, `notes`
    what the evaluations remarked."""

    columns: Mapping[str, str]
    blocks: tuple[Block, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def summarize(runs: Sequence[Run]) -> Summary:
    """The table of the runs."""
    rows = [Row(index, run.name, run.summary is not None, _cells(run)) for index, run in enumerate(runs)]
    facts = [measured_under(run) for run in runs]
    groups: dict[str, list[int]] = {}
    for index, found in enumerate(facts):
        groups.setdefault(json.dumps(found), []).append(index)
    for indices in groups.values():
        mark_best([rows[index] for index in indices], [runs[index] for index in indices])
    _join_unmeasured(groups, runs)
    blocks = [
        Block(
            runs[indices[0]].scene,
            next((_protocol_lines(runs[index]) for index in indices if runs[index].summary is not None), ()),
            tuple(rows[index] for index in indices),
        )
        for indices in groups.values()
    ]
    columns = {
        key: label
        for key, label in COLUMNS.items()
        if any(row.cells[key].text != "-" for row in rows) or key in ("psnr", "ssim", "lpips")
    }
    return Summary(columns, tuple(blocks), tuple(_warnings(runs, facts)), tuple(_notes(runs)))


def _join_unmeasured(groups: dict[str, list[int]], runs: Sequence[Run]) -> None:
    """Put runs without metrics beside the first others of their scene."""
    for key, indices in list(groups.items()):
        hosts = (others for others in groups.values() if runs[others[0]].scene == runs[indices[0]].scene)
        host = next((others for others in hosts if any(runs[index].summary is not None for index in others)), indices)
        if runs[indices[0]].summary is None and host is not indices:
            host[:] = sorted([*host, *indices])
            del groups[key]


def measured_under(run: Run) -> dict[str, str]:
    """Everything besides the model that decides the metrics of a run, as words; of one without metrics, the scene."""
    if run.summary is None:
        return {"scene": run.scene, "measured": "no"}
    protocol = lambda *keys: _words(run.measured("protocol", *keys))  # noqa: E731
    ssim = run.measured("protocol", "ssim")
    return {
        "scene": run.scene,
        "test photographs": run.photographs or "unknown",
        "split": protocol("split"),
        "number of views": _words(run.measured("n_views")),
        "resolution": _size(run.measured("protocol", "resolution")),
        "reduced by": protocol("resampler"),
        "background": protocol("background"),
        "protocol": protocol("name"),
        "bit depth": protocol("bit_depth"),
        "PSNR": protocol("psnr"),
        "SSIM": ", ".join(f"{key} {_words(value)}" for key, value in ssim.items()) if isinstance(ssim, Mapping) else "",
        "LPIPS network": protocol("lpips", "headline"),
        "masked views": protocol("mask", "views"),
    }


def _warnings(runs: Sequence[Run], facts: Sequence[Mapping[str, str]]) -> list[str]:
    """What differs between the runs that were measured, so that their numbers cannot be compared."""
    measured = [(run, found) for run, found in zip(runs, facts, strict=True) if run.summary is not None]
    warnings = []
    scenes_differ = len({found["scene"] for _, found in measured}) > 1
    for key in measured[0][1] if measured else ():
        names: dict[str, list[str]] = {}
        for run, found in measured:
            names.setdefault(found[key], []).append(run.name)
        follows = scenes_differ and key in ("test photographs", "number of views", "resolution", "background")
        if len(names) > 1 and not follows:
            listed = "; ".join(f"{value} ({_listing(who)})" for value, who in names.items())
            warnings.append(f"{key}: {listed}")
    return warnings


def problems(runs: Sequence[Run]) -> dict[str, list[int]]:
    """What is wrong with the runs, with the indices of those of which that is said."""
    found: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        if run.problems:
            found.setdefault(" ".join(run.problems), []).append(index)
    return found


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _notes(runs: Sequence[Run]) -> list[str]:
    """What the evaluation remarked, each once, with the runs that it is about where that is not all."""
    found: dict[str, list[str]] = {}
    for run in runs:
        notes = run.measured("notes")
        for note in notes if isinstance(notes, list) else ():
            found.setdefault(str(note), []).append(run.name)
    return [note if len(names) == len(runs) else f"{note} ({_listing(names)})" for note, names in found.items()]


# ---------------------------------------------------------------------------------------------------- cells


def _cells(run: Run) -> dict[str, Cell]:
    known = lambda *keys: run.measured(keys[-1]) if run.summary is not None else run.told(*keys)  # noqa: E731
    weight = number(known("train", "loss_weight"))
    loss = _words(known("train", "loss")) + ("" if weight is None else f", weight {weight:g}")
    encoding = run.told("train", "model", "target_encoding") or run.measured("target_encoding")
    words = {
        "method": _words(known("train", "method")),
        "loss": loss,
        "encoding": _words(encoding),
        "preset": _words(known("train", "preset")),
    }
    cells = {key: Cell(text or "-") for key, text in words.items()}
    seed = number(run.told("train", "seed"))
    cells["seed"] = Cell("-" if seed is None else str(int(seed)), seed)
    cells["steps"] = Cell(_steps(run), number(run.measured("step")))
    for key in FORMATS.keys() - {"steps"}:
        value = number(run.measured(key))
        cells[key] = Cell("-" if value is None else FORMATS[key](value), value)
    return cells


def _steps(run: Run) -> str:
    """Steps done, and of how many where that is not all."""
    planned = number(run.told("train", "model", "steps"))
    done = number(run.measured("step"))
    done = run.log.last_step if done is None else done
    if done is None:
        return "-"
    return f"{done:,.0f}" if planned in (None, done) else f"{done:,.0f} of {planned:,.0f}"


FORMATS = {
    "psnr": "{:.2f}".format,
    "ssim": "{:.4f}".format,
    "lpips": "{:.4f}".format,
    "train_seconds": duration,
    "peak_memory_mb": "{:,.0f} MB".format,
    "peak_gpu_memory_mb": "{:,.0f} MB".format,
    "steps": "{:,.0f}".format,
    "primitives": "{:,.0f}".format,
}


def mark_best(rows: Sequence[Row], runs: Sequence[Run]) -> None:
    """Mark the best of every column where there are several; those that look the same share the mark."""
    means = [[run.told("hardware"), run.told("train", "threads"), processes_of(run.record)] for run in runs]
    machines = {json.dumps(one, sort_keys=True) for one in means}
    for key, choose in (BETTER | (CHEAPER if len(machines) == 1 else {})).items():
        cells = [row.cells[key] for row in rows]
        marks = leading([cell.value for cell in cells], [cell.text for cell in cells], choose)
        for cell, best in zip(cells, marks, strict=True):
            cell.best = best


# ---------------------------------------------------------------------------------------------------- protocol


def _protocol_lines(run: Run) -> tuple[str, ...]:
    """How a run was measured, in a few sentences."""
    block = run.measured("protocol")
    said = lambda *keys: _words(at(block, *keys))  # noqa: E731
    views = number(run.measured("n_views"))
    size = _size(at(block, "resolution"))
    first = f"Protocol {said('name')}"
    if source := said("reproduces"):
        first += f" ({source})"
    lines = [
        f"{first}, on {_words(views)} {said('split')} views of {size} pixels over the background {said('background')}.",
        f"Colours: {said('bit_depth')}. PSNR: {said('psnr')}.",
        f"SSIM: {said('ssim', 'kernel')} window of {said('ssim', 'window')}, sigma {said('ssim', 'sigma')}, padding "
        f"{said('ssim', 'padding')}. LPIPS: network {said('lpips', 'headline')}.",
    ]
    if number(at(block, "mask", "views")):
        lines.append(f"{said('mask', 'views')} views have a mask: PSNR is the {said('mask', 'psnr')}.")
    return tuple(lines)


def _size(value: Any) -> str:
    """240x180, or a range of sizes."""
    if isinstance(value, Mapping):
        return f"{_size(value.get('from'))} to {_size(value.get('to'))}"
    return "x".join(map(_words, value)) if isinstance(value, list) else "unknown"


def _words(value: Any) -> str:
    """A value of a JSON file as text; empty for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"({', '.join(map(_words, value))})"
    return f"{value:g}" if isinstance(value, int | float) and abs(value) < 1e15 else str(value)


def headline(run: Run) -> str:
    """What one run is, in words."""
    title = run.measured("title")
    if isinstance(title, str) and title:
        return title
    parts = (run.told("train", "method"), run.told("train", "loss"))
    return ", ".join([run.scene, *(part for part in parts if isinstance(part, str))])
