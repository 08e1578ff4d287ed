"""The numbers that a finished run left: images, surface, cost, and PSNR along the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nfc_splat.compare.plan import MESH_FOLDER, Case
from nfc_splat.compare.records import read_record
from nfc_splat.files import parse_json, read_json
from nfc_splat.training.run import CONFIG_FILE

IMAGES = ("psnr", "ssim", "lpips")
LENGTHS = ("accuracy", "completeness", "chamfer_l1_mean")
RATIOS = ("precision", "recall", "fscore", "normal_consistency")
COSTS = ("train_seconds", "peak_memory_mb", "peak_gpu_memory_mb")
DRAWING = "render_seconds"
CHOOSING = ("--train-share", "--train-views")
CURVES = {"train_psnr": "training views", "test_psnr": "test views"}


def measured(case: Case) -> dict[str, Any] | None:
    """The metrics that a finished case left, and how its surface was measured; None of an unfinished one.

    `render_seconds` are those of the median view. Lengths are in metres, or in the units of the files. `threads` are
    the training's, `jobs` how many runs went on at a time, `device` where it ran, `machine` its processor and GPUs;
    None where that is not recorded.
    """
    if not case.done:
        return None
    summary = read_json(case.folder / "eval" / "summary.json")
    found = {name: summary.get(name) for name in (*IMAGES, *COSTS, "primitives", "steps")}
    found[DRAWING] = summary.get("median_seconds")
    config = read_json(case.folder / CONFIG_FILE)
    found |= {name: config.get("train", {}).get(name) for name in ("threads", "device")}
    found["jobs"] = read_record(case).get("jobs")
    found["machine"] = _machine(config.get("hardware", {}))
    if len(case.commands) > 1:
        geometry = read_json(case.folder / MESH_FOLDER / "metrics.json")
        values, threshold = geometry["metrics"], geometry["protocol"]["thresholds"][0]
        found |= {name: values[name] for name in (*LENGTHS, "normal_consistency")}
        found |= {name: values[f"{name}@{threshold:g}"] for name in ("precision", "recall", "fscore")}
        found |= {"threshold": threshold, "geometry_protocol": geometry["protocol"]["name"]}
    return found


def _machine(hardware: dict[str, Any]) -> str | None:
    gpus = hardware.get("gpus") or []
    return ", ".join([f"{hardware['cores']} cores of {hardware['cpu']}", *gpus]) if "cpu" in hardware else None


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """PSNR by step of some training views and test views, as far as a run recorded it: names as in `CURVES`."""
    found: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        record = parse_json(line, path)
        for name in CURVES:
            if record.get(name) is not None:
                found[name][int(record["step"])] = float(record[name])
    return found


def training_images(cases: Sequence[Case]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Which images runs were trained on where flags choose them.

    Returns:
        names of images by scene and flags; and by case's name, what is wrong with a run that had others than the runs
        before it.
    """
    lists: dict[str, list[str]] = {}
    wrong = {}
    for case in cases:
        words = case.commands[0].words
        chosen = [" ".join(words[i : i + 2]) for i, word in enumerate(words) if word in CHOOSING]
        if not case.done or not chosen:
            continue
        key = " ".join([case.scene, *chosen])
        images = read_json(case.folder / CONFIG_FILE)["scene"]["training_images"]
        if lists.setdefault(key, images) != images:
            wrong[case.name] = (
                f"it was trained on other images than the runs of {key} before it and is left out; "
                f"delete {case.folder} to train it again"
            )
    return lists, wrong
