"""What a comparison leaves: tables on the screen, and the same as JSON, CSV, LaTeX and plots."""

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nfc_splat.compare.experiments import Experiment
from nfc_splat.compare.measured import CURVES, curves, measured, training_images
from nfc_splat.compare.plan import Case, runs_of, variants_of
from nfc_splat.compare.plot import write_plot
from nfc_splat.compare.records import warnings_of
from nfc_splat.compare.rows import Numbers
from nfc_splat.compare.tables import Table, mean_table, scene_table
from nfc_splat.files import atomic_path, write_json

LONGEST = 100  # characters of a file's name that says everything


def cases_of(experiment: Experiment, cases: Sequence[Case], methods: Sequence[str], preset: str) -> list[Case]:
    """Those of all cases that belong to the experiment, in its order."""
    labels = {
        method: [variant.label for variant in variants_of(experiment, method, preset)]
        for method in methods or experiment.methods
    }
    mine = [case for case in cases if case.variant in labels.get(case.method, ())]
    scenes, names = list(dict.fromkeys(case.scene for case in mine)), list(labels)
    return sorted(
        mine,
        key=lambda case: (scenes.index(case.scene), names.index(case.method), labels[case.method].index(case.variant)),
    )


def report(
    groups: Sequence[tuple[Experiment, Sequence[Case]]], failures: Mapping[str, str], out: Path
) -> tuple[list[Table], dict[Path, str]]:
    """Print the tables of each experiment's cases, and write them as JSON, CSV and LaTeX, with plots. The files are
    called after experiments, scenes and methods, so that a comparison of others leaves them alone.

    Args:
        failures: what went wrong, by case's name; such cases are left out of the tables.

    Returns:
        the tables, and the files with their titles.
    """
    cases = list({case.name: case for _, group in groups for case in group}.values())
    numbers = {case.name: None if case.name in failures else measured(case) for case in cases}
    tables = [table for experiment, group in groups for table in _tables(experiment, group, numbers)]
    for table in tables:
        table.print()
    for title, lines in (("failed", _lines_of(failures)), ("warned", warned(cases))):
        if lines:
            print("\n".join([f"\n{title}", *(f"  {line}" for line in lines)]))
    records = [_record(case, numbers, failures) for case in cases]
    listed = [{"name": experiment.name, "summary": experiment.summary} for experiment, _ in groups]
    content = {"experiments": listed, "cases": records, "training_images": training_images(cases)[0]}
    files = {out / f"{_stem(groups)}.{kind}": "" for kind in ("json", "csv", "tex")}
    as_json, as_csv, as_latex = files
    write_json(as_json, content | {"tables": [asdict(table) for table in tables]})
    _write_csv(as_csv, records)
    _write_text(as_latex, "\n".join(table.latex() for table in tables))
    for experiment, group in groups:
        files |= _plots(experiment, group, numbers, out)
    return tables, files


def _lines_of(failures: Mapping[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in failures.items()]


def warned(cases: Sequence[Case]) -> list[str]:
    """What trainings warned of, a line for each kind of warning: those that differ in numbers alone are one."""
    runs = runs_of(cases)
    kinds: dict[str, list[tuple[str, str]]] = {}
    for case in runs:
        for text in warnings_of(case):
            kinds.setdefault(re.sub(r"[\d.,]+", "#", text), []).append((case.run, text))
    return [
        f"{len({run for run, _ in found})} of {len(runs)} runs, such as {found[0][0]}: {found[0][1]}"
        for found in kinds.values()
    ]


def _stem(groups: Sequence[tuple[Experiment, Sequence[Case]]]) -> str:
    """What a comparison's files are called: after its experiments and scenes, and methods that are not the usual."""
    cases = [case for _, group in groups for case in group]
    usual = {method for experiment, _ in groups for method in experiment.methods}
    methods = dict.fromkeys(case.method for case in cases)
    parts = [[experiment.name for experiment, _ in groups], dict.fromkeys(case.scene for case in cases)]
    name = "-".join("+".join(part) for part in [*parts, *([methods] if methods.keys() != usual else [])])
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_page(
    tables: Sequence[Table],
    files: Mapping[Path, str],
    cases: Sequence[Case],
    failures: Mapping[str, str],
    path: Path,
    command: str,
) -> list[Path]:
    """Write the report to `path`, with tables and plots first; returns the path, or nothing where no run is."""
    from nfc_splat.report import page
    from nfc_splat.report.folder import is_reportable

    runs = [case.folder for case in cases if is_reportable(case.folder)]
    if not runs:
        return []
    shown = [page.Table(one.title, one.rows, tuple(range(2, len(one.rows[0]))), one.notes) for one in tables]
    plots = [
        page.Plot(title, file.read_text(encoding="utf-8")) for file, title in files.items() if file.suffix == ".svg"
    ]
    notes = [f"Failed: {line}" for line in _lines_of(failures)] + [f"Warned: {line}" for line in warned(cases)]
    title = "Comparison: " + ", ".join(dict.fromkeys(case.scene for case in cases))
    options = {"tables": shown, "plots": plots, "notes": notes, "command": command}
    return [page.write_report(runs, path, title=title, **options)]


def _tables(experiment: Experiment, cases: Sequence[Case], numbers: Numbers) -> list[Table]:
    """A table for each scene, and one for all."""
    scenes = list(dict.fromkeys(case.scene for case in cases))
    tables = [
        scene_table(experiment, scene, [case for case in cases if case.scene == scene], numbers) for scene in scenes
    ]
    return tables + ([mean_table(experiment, cases, numbers)] if len(scenes) > 1 else [])


def _record(case: Case, numbers: Numbers, failures: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": case.name,
        "scene": case.scene,
        "method": case.method,
        "variant": case.variant,
        "seed": case.seed,
        "measured": numbers[case.name],
        "failure": failures.get(case.name),
        "warnings": warnings_of(case),
        "commands": [command.text for command in case.commands],
    }


def _plots(experiment: Experiment, cases: Sequence[Case], numbers: Numbers, out: Path) -> dict[Path, str]:
    """One plot of PSNR for each scene and method, where the experiment has an axis or recorded curves; with titles."""
    plots = {}
    for scene, method in dict.fromkeys((case.scene, case.method) for case in cases):
        group = [case for case in cases if (case.scene, case.method) == (scene, method) and numbers[case.name]]
        lines = _curves(experiment, group) if experiment.curves else _lines(experiment, group, numbers)
        if lines:
            path, title = out / f"{experiment.name}-{scene}-{method}.svg", f"{scene}, {method}"
            across = "step" if experiment.curves else experiment.axis
            write_plot(path, title, across, "PSNR (dB)", lines, even=experiment.even)
            plots[path] = f"{title}: {experiment.summary}"
    return plots


def _lines(experiment: Experiment, cases: Sequence[Case], numbers: Numbers) -> dict[str, dict[float, list[float]]]:
    """PSNR by line and place along the axis."""
    variants = {variant.label: variant for variant in experiment.variants} if experiment.axis else {}
    lines: dict[str, dict[float, list[float]]] = {}
    for case in cases:
        if case.variant in variants and numbers[case.name]["psnr"] is not None:
            variant = variants[case.variant]
            lines.setdefault(variant.line, {}).setdefault(variant.place, []).append(numbers[case.name]["psnr"])
    return lines


def _curves(experiment: Experiment, cases: Sequence[Case]) -> dict[str, dict[float, list[float]]]:
    """PSNR of training and test views by step."""
    variants = {variant.label: variant for variant in experiment.variants}
    lines: dict[str, dict[float, list[float]]] = {}
    for case in cases:
        for name, points in curves(case.folder).items():
            for step, psnr in points.items():
                label = f"{variants[case.variant].line}, {CURVES[name]}"
                lines.setdefault(label, {}).setdefault(step, []).append(psnr)
    return lines


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
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
