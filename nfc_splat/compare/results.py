"""The numbers that the runs of a comparison left: a table for each scene, and files.

A row is a method and a variant; its cells are means over seeds, with the standard deviation where there are several.
Lengths are in metres, or in the units of the files.
"""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nfc_splat.compare.experiments import Experiment
from nfc_splat.compare.plan import MESH_FOLDER, Case
from nfc_splat.compare.plot import write_plot
from nfc_splat.files import atomic_path, read_json, write_json
from nfc_splat.terminal import print_table

IMAGES = ("psnr", "ssim", "lpips")
LENGTHS = ("accuracy", "completeness", "chamfer_l1_mean")
RATIOS = ("precision", "recall", "fscore", "normal_consistency")
COSTS = ("train_seconds", "peak_memory_mb")
HEADINGS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "accuracy": "Acc",
    "completeness": "Comp",
    "chamfer_l1_mean": "Chamfer-L1",
    "precision": "Prec",
    "recall": "Recall",
    "fscore": "F-score",
    "normal_consistency": "NC",
    "train_seconds": "train s",
    "peak_memory_mb": "MB",
}
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3, "train_seconds": 0, "peak_memory_mb": 0}

Numbers = Mapping[str, float | None]


def measured(case: Case) -> dict[str, Any] | None:
    """The metrics that a finished case left, and how its surface was measured; None of an unfinished one."""
    if not case.done:
        return None
    summary = read_json(case.folder / "eval" / "summary.json")
    found = {name: summary.get(name) for name in (*IMAGES, *COSTS, "primitives", "steps")}
    if len(case.commands) > 1:
        geometry = read_json(case.folder / MESH_FOLDER / "metrics.json")
        values, threshold = geometry["metrics"], geometry["protocol"]["thresholds"][0]
        found |= {name: values[name] for name in (*LENGTHS, "normal_consistency")}
        found |= {name: values[f"{name}@{threshold:g}"] for name in ("precision", "recall", "fscore")}
        found |= {"threshold": threshold, "geometry_protocol": geometry["protocol"]["name"]}
    return found


def report(experiment: Experiment, cases: Sequence[Case], failures: Mapping[str, str], out: Path) -> list[Path]:
    """Print a table for each scene and write `results.json` and `results.csv`; returns their paths."""
    numbers = {case.name: measured(case) for case in cases}
    for scene in dict.fromkeys(case.scene for case in cases):
        _print_scene(experiment, [case for case in cases if case.scene == scene], numbers)
    for name, reason in failures.items():
        print(f"  {name}: {reason}")
    records = [
        {
            "name": case.name,
            "scene": case.scene,
            "method": case.method,
            "variant": case.variant,
            "seed": case.seed,
            "measured": numbers[case.name],
            "failure": failures.get(case.name),
            "commands": [command.text for command in case.commands],
        }
        for case in cases
    ]
    paths = [out / "results.json", out / "results.csv"]
    write_json(paths[0], {"experiment": experiment.name, "summary": experiment.summary, "cases": records})
    _write_csv(paths[1], records)
    return paths + _plots(experiment, cases, numbers, out)


def _plots(
    experiment: Experiment, cases: Sequence[Case], numbers: Mapping[str, dict[str, Any] | None], out: Path
) -> list[Path]:
    """One plot of PSNR for each scene and method, where the experiment has an axis."""
    paths = []
    variants = {variant.label: variant for variant in experiment.variants} if experiment.axis else {}
    for scene, method in dict.fromkeys((case.scene, case.method) for case in cases):
        lines: dict[str, dict[float, list[float]]] = {}
        for case in cases:
            found = numbers[case.name]
            known = found and found["psnr"] is not None
            if (case.scene, case.method) == (scene, method) and case.variant in variants and known:
                variant = variants[case.variant]
                lines.setdefault(variant.line, {}).setdefault(variant.place, []).append(found["psnr"])
        if lines:
            paths.append(out / f"{scene}-{method}.svg")
            write_plot(paths[-1], f"{scene}, {method}", experiment.axis, "PSNR (dB)", lines)
    return paths


def _print_scene(experiment: Experiment, cases: Sequence[Case], numbers: Mapping[str, dict[str, Any] | None]) -> None:
    columns = [*IMAGES, *(LENGTHS + RATIOS if experiment.surfaces else ()), *COSTS]
    known = [found for found in numbers.values() if found]
    columns = [name for name in columns if name != "lpips" or any(found["lpips"] is not None for found in known)]
    rows = [["method", "", *(HEADINGS[name] for name in columns)]]
    for method, variant in dict.fromkeys((case.method, case.variant) for case in cases):
        group = [numbers[case.name] for case in cases if (case.method, case.variant) == (method, variant)]
        finished = [found for found in group if found]
        cells = [_cell(name, [found[name] for found in finished]) for name in columns]
        count = f" ({len(finished)} of {len(group)})" if len(finished) < len(group) else ""
        rows.append([method, variant + count, *cells])
    for label, published in experiment.published.items():
        method, _, variant = label.partition(", ")
        rows.append([f"{method}*", variant, *(_cell(name, [published.get(name)]) for name in columns)])
    print(f"\n{cases[0].scene}: {experiment.summary}")
    print_table(rows, numbers=tuple(range(2, len(rows[0]))))
    seeds = len({case.seed for case in cases})
    if seeds > 1:
        print(f"  mean and standard deviation over {seeds} seeds")
    if experiment.surfaces:
        _explain_surfaces([found for case in cases if (found := numbers[case.name])])
    if experiment.published:
        print(f"  *: as published, {experiment.source} (arXiv 2403.01058)")


def _explain_surfaces(known: Sequence[Mapping[str, Any]]) -> None:
    if known:
        first = known[0]
        words = f"protocol {first['geometry_protocol']}, precision, recall and F-score within {first['threshold']:g}"
        print(f"  surfaces: {words}; lengths in the truth's units, ratios in %")


def _cell(name: str, values: Sequence[float | None]) -> str:
    """The mean of what is known, with the deviation where there are several."""
    if not values or any(value is None for value in values):
        return "-"
    factor, digits = (100, 2) if name in RATIOS else (1, DIGITS.get(name, 4))
    text = f"{factor * statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {factor * statistics.stdev(values):.{digits}f}"
    return text


def _write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    names = ["name", "scene", "method", "variant", "seed"]
    metrics = list(dict.fromkeys(name for record in records for name in record["measured"] or {}))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*names, *metrics, "failure"])
    for record in records:
        found = record["measured"] or {}
        row = [record[name] for name in names] + [found.get(name) for name in metrics] + [record["failure"]]
        writer.writerow(["" if value is None else value for value in row])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
