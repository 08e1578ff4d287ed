"""A training step of D-NeRF beside the released code's own, in one process, on the same rays, weights and cores.

`python -m nfc_splat.eval speed --dnerf FOLDER` takes a checkout of github.com/albertpumarola/D-NeRF. Its network,
`render` and Adam take steps of its published configuration (500 rays of one moment, 64 + 128 samples, two networks of 8
layers of 256), in turn with ours: once from random weights, and once from weights that our own training has brought so
far that most of space is empty. The released code switches torch's anomaly detection on; its steps are timed with and
without. The scene is that of `nfc_splat.eval.speed_nerf`, seen at one moment.

Symbols: P rays.
"""

import importlib
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.eval.speed_nerf import FAR, NEAR, Batch, Step, ball, importable, stand_in, times_in_turn
from nfc_splat.fields import dnerf, nerf
from nfc_splat.losses import mse

RAYS, FEW_RAYS = 500, 100  # of a timed step, and of one that only prepares
SIZES = {"width": 256, "depth": 8, "coarse_samples": 64, "fine_samples": 128}
PREPARING = 200  # steps until most of the ball's surroundings are empty
MOMENT = 0.5  # any but 0, at which nothing is displaced
# What D-NeRF imports to read images, to show progress and to log, which is not needed here.
UNUSED = ("imageio", "cv2", "tqdm", "torch.utils.tensorboard")


def draw(rays: int, generator: torch.Generator) -> Batch:
    """`ball`'s rays [P] and colours [P, 3], at one moment."""
    lines, colors = ball(rays, generator)
    return replace(lines, times=torch.full((rays,), MOMENT)), colors


# ------------------------------------------------------------------------------------------------ our step


def our_model(bf16: bool) -> dnerf.Model:
    """The published networks for this scene, without a target encoding."""
    deformation = {"deformation_width": SIZES["width"], "deformation_depth": SIZES["depth"]}
    config = dnerf.preset("paper", target_encoding="none", bf16=bf16, **SIZES, **deformation)
    canonical = nerf.Model(config.networks, torch.tensor([NEAR, FAR]), torch.tensor(nerf.WORLD), None, None)
    return dnerf.Model(config, canonical).train()


def our_step(model: dnerf.Model) -> Step:
    """One training step, returning its loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=model.config.lr, fused=True)

    def step(batch: Batch) -> float:
        rays, target = batch
        loss = mse(model.march(rays, torch.ones(3)).color, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def prepared(batches: Callable[[int], Batch], steps: int) -> dict[str, Tensor]:
    """The weights of a model after some training, with a few rays per step."""
    model = our_model(bf16=True)
    step = our_step(model)
    for _ in range(steps):
        step(batches(FEW_RAYS))
    return model.state_dict()


@torch.no_grad()
def visible_share(model: dnerf.Model, batch: Batch) -> float:
    """Share of the samples drawn that have a weight."""
    weights = model.march(batch[0], torch.ones(3)).extras["weights"]
    return float((weights > 0).sum()) / (len(batch[1]) * (SIZES["coarse_samples"] + SIZES["fine_samples"]))


# ------------------------------------------------------------------------------------------------ their step


def load_peer(folder: Path) -> ModuleType:
    """D-NeRF's `run_dnerf` from a checkout; a `UserError` if it is none.

    Its extension `torchsearchsorted` is what torch has had since version 1.6; nothing is compiled.
    """
    if not (folder / "run_dnerf.py").is_file():
        raise UserError(f"--dnerf {folder}: there is no run_dnerf.py in it; give a checkout of D-NeRF")
    search = ModuleType("torchsearchsorted")
    search.searchsorted = lambda edges, values, side: torch.searchsorted(edges, values, right=side == "right")
    with importable(folder, {name: stand_in(name) for name in UNUSED} | {"torchsearchsorted": search}):
        peer = importlib.import_module("run_dnerf")
    torch.autograd.set_detect_anomaly(False)  # `peer_step` switches it on where it is wanted
    peer.device = torch.device("cpu")
    return peer


def peer_step(peer: ModuleType, weights: dict[str, Tensor], anomalies: bool) -> Step:
    """One training step of `peer` as its training loop takes it, from our `weights`.

    anomalies: with torch's anomaly detection, as released.
    """
    width, depth, coarse, fine = SIZES.values()
    facts = dict(multires=10, multires_views=4, i_embed=0, use_viewdirs=True, N_samples=coarse, N_importance=fine)
    facts |= dict(netdepth=depth, netwidth=width, nerf_type="direct_temporal", not_zero_canonical=False)
    facts |= dict(use_two_models_for_fine=False, do_half_precision=False, netchunk=65536, lrate=5e-4, perturb=1.0)
    facts |= dict(white_bkgd=True, raw_noise_std=0.0, dataset_type="blender", no_ndc=False, lindisp=False)
    facts |= dict(ft_path=None, no_reload=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "empty").mkdir()
        with redirect_stdout(StringIO()):  # it says which checkpoints it found
            options, _, _, _, optimizer = peer.create_nerf(Namespace(**facts, basedir=folder, expname="empty"))
    model = our_model(bf16=False)
    model.load_state_dict(weights)
    options["network_fn"].load_state_dict(dnerf.published_names(model))

    def step(batch: Batch) -> float:
        rays, target = batch
        lines = torch.stack([rays.origins, rays.directions])
        with torch.autograd.set_detect_anomaly(anomalies):
            rgb, *_ = peer.render(
                1, 1, None, chunk=32768, rays=lines, frame_time=MOMENT, verbose=False, retraw=True,
                near=NEAR, far=FAR, **options,
            )  # fmt: skip
            optimizer.zero_grad()
            loss = peer.img2mse(rgb, target)
            loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


# ------------------------------------------------------------------------------------------------ the comparison


def compare(peer: ModuleType, weights: dict[str, Tensor], batches: Callable[[int], Batch], count: int) -> list[str]:
    """One row of the table: medians of `count` steps, and of the quotients of steps on the same batch."""
    models = {name: our_model(bf16=name == "bf16") for name in ("float32", "bf16")}
    for model in models.values():
        model.load_state_dict(weights)
    share = visible_share(models["float32"], batches(RAYS))
    steps = {name: peer_step(peer, weights, name == "released") for name in ("released", "plain")}
    steps |= {name: our_step(model) for name, model in models.items()}
    times = times_in_turn(steps, lambda: batches(RAYS), count)
    row = [f"{100 * share:.0f} %", *(f"{np.median(times[name]):.2f} s" for name in ("released", "plain"))]
    for name in models:
        row.append(f"{np.median(times[name]):.2f} s")
        row += [f"{np.median(times[theirs] / times[name]):.2f}" for theirs in ("released", "plain")]
    return row


def print_comparison(folder: Path, count: int, threads: int) -> int:
    """Print the table; `count` timed steps in each row."""
    from nfc_splat.terminal import print_table

    peer = load_peer(folder)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    batches = lambda rays: draw(rays, generator)  # noqa: E731
    print(f"median of {count} training steps of {RAYS} rays, cpu, {threads} threads; the same rays for each, in turn")
    print("D-NeRF as released, and without torch's anomaly detection (plain); ratios to both")
    head = ["weights", "samples with a weight", "D-NeRF", "plain"]
    rows = [[*head, *("ours", "ratio", "ratio"), *("ours, bf16", "ratio", "ratio")]]
    rows.append(["random", *compare(peer, our_model(bf16=False).state_dict(), batches, count)])
    rows.append([f"after {PREPARING} steps", *compare(peer, prepared(batches, PREPARING), batches, count)])
    print_table(rows, numbers=range(1, len(head) + 6))
    return 0
