"""Run folders for the tests of the report: measured by the real evaluation, with a configuration and a log made up."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from eval_toys import Disc, ToySplit

from nfc_splat.eval.geometry import summarize_scores
from nfc_splat.eval.images import PROTOCOLS
from nfc_splat.eval.views import evaluate_views
from nfc_splat.files import read_json, write_json

STEPS = 400
HOSTILE = ('"><img src=x onerror=alert(1)>', "<script>alert(1)</script>", "'onmouseover='alert(1)", "{{ 7*7 }}</style>")


def write_run(
    folder: Path,
    *,
    brightness: float = 0.9,
    split: ToySplit | None = None,
    protocol: str = "default",
    scene: str = "/data/room",
    train: dict[str, Any] | None = None,
    measured: bool = True,
    test_psnr: bool = True,
) -> Path:
    """A run whose model is `brightness` times as bright as the photographs. Returns `folder`.

    Args:
        split: the views, by default five of 40x30 pixels.
        train: settings other than the usual ones.
        measured: False for a run that was stopped half way.
        test_psnr: whether the log has PSNR of test views.
    """
    settings = {
        "scene": scene,
        "method": "3dgs",
        "loss": "regression",
        "loss_weight": None,
        "preset": "quick",
        "out": str(folder),
        "seed": 42,
        "device": "cpu",
        "threads": 1,
        "model": {"steps": STEPS, "max_primitives": 500},
    } | (train or {})
    (folder / "checkpoints").mkdir(parents=True)
    record = {
        "schema": 1,
        "train": settings,
        "scene": {"format": "blender", "hash": "0f" * 32, "views": {"train": 20, "test": 5}},
        "command": ["/code/nfc_splat/train.py", scene, "--out", f"runs/{folder.name}", "--seed", "42"],
        "commit": "ab" * 20,
        "versions": {"nfc-splat": "0.1.0", "torch": "2.13.0", "gsplat": None},
        "hardware": {"cpu": "toy processor", "cores": 2, "memory_gb": 8.0, "gpus": [], "system": "Linux"},
        "started": "2026-11-20T12:00:00+00:00",
        "earlier": [],
    }
    write_json(folder / "config.json", record)
    write_log(folder / "metrics.jsonl", STEPS if measured else STEPS // 2, test_psnr=test_psnr)
    if measured:
        extra = {"title": "room, 3dgs, regression", "step": STEPS, "steps": STEPS, "primitives": 321}
        extra |= {"method": settings["method"], "loss": settings["loss"], "loss_weight": settings["loss_weight"]}
        extra |= {"preset": settings["preset"], "train_seconds": 83.4, "peak_memory_mb": 700}
        evaluate_views(
            Disc(brightness),
            split or ToySplit(),
            background=torch.ones(3),
            protocol=PROTOCOLS[protocol],
            device="cpu",
            folder=folder,
            extra=extra,
        )
    return folder


def write_log(path: Path, steps: int, *, test_psnr: bool) -> None:
    """A log in which PSNR rises from 10 by 0.02 dB per step."""
    lines = []
    for step in range(4, steps + 1, 4):
        figures = {"loss": 0.5 * math.exp(-step / 60) + 1e-3, "psnr": 10 + 0.02 * step, "primitives": 100 + step // 100}
        lines.append({"step": step, **figures, "losses": {}, "seconds": 0.1 * step})
        if test_psnr and step % 100 == 0:
            lines.append({"step": step, "test_psnr": 9 + 0.02 * step, "train_psnr": 10.5 + 0.02 * step})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_surface(run: Path, *, accuracy: float = 0.012, truth: str = "room_mesh.ply") -> None:
    """What `eval mesh --protocol replica` leaves in RUN/mesh-eval, without the picture."""
    names = ("accuracy", "completeness", "chamfer_l1_mean", "chamfer_l1_sum", "chamfer_l2", "normal_consistency")
    scores = [dict.fromkeys(names, accuracy + shift) | {"fscore@0.05": 0.8} for shift in (0.0, 1e-4)]
    floor = dict.fromkeys(names, 0.001) | {"fscore@0.05": 1.0}
    protocol = {"name": "replica", "reproduces": "MonoSDF", "gt": {"name": truth}, "thresholds": [0.05], "steps": []}
    metrics = summarize_scores(scores, [0.05], floor=floor, protocol=protocol, notes=["made up"])
    write_json(run / "mesh-eval" / "metrics.json", metrics.record())


def hostile_run(folder: Path) -> Path:
    """A run in which every name is an attack."""
    split = ToySplit()
    split.names = [f"{name} {index}" for index, name in enumerate((*HOSTILE, HOSTILE[0]))]
    settings = {"method": HOSTILE[1], "loss": HOSTILE[0], "model": {"steps": STEPS, HOSTILE[1]: HOSTILE[0]}}
    run = write_run(folder, split=split, scene=f"/data/{HOSTILE[1].replace('/', '')}", train=settings)
    edit(run / "config.json", command=["x", *HOSTILE], commit=HOSTILE[1], versions={HOSTILE[0]: HOSTILE[1]})
    edit(run / "eval" / "summary.json", title=HOSTILE[3], notes=list(HOSTILE), preset=HOSTILE[2])
    append(run / "metrics.jsonl", json.dumps({"step": 1, "event": HOSTILE[1]}) + "\n")
    write_surface(run, truth=HOSTILE[1])
    return run


def edit(path: Path, **changes) -> None:
    """Change entries of a JSON file."""
    write_json(path, read_json(path) | changes)


def append(path: Path, text: str) -> None:
    """Add text to a file."""
    path.write_text(path.read_text() + text)
