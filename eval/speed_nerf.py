"""A training step of NeRF beside nerf-pytorch's own, in one process, on the same rays, weights and cores.

`python -m nfc_splat.eval speed --nerf-pytorch FOLDER` takes a checkout of github.com/yenchenlin/nerf-pytorch. Its
networks, `render` and Adam take steps of its published lego configuration (1024 rays, 64 + 128 samples, 8 layers of
256), in turn with ours: once from random weights, and once from weights that our own training has brought so far that
most of space is empty. The scene is a patterned ball on white, computed and not drawn.

Symbols: P rays.
"""

import importlib.util
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from nfc_splat.cameras import Rays
from nfc_splat.errors import UserError
from nfc_splat.fields import nerf
from nfc_splat.losses import mse

NEAR, FAR, DISTANCE = 2.0, 6.0, 4.0
RAYS, FEW_RAYS = 1024, 256  # of a timed step, and of one that only prepares
SIZES = {"width": 256, "depth": 8, "coarse_samples": 64, "fine_samples": 128}
PREPARING = 400  # steps until most of the ball's surroundings are empty
WARM_UP = 2
# What nerf-pytorch imports to read images and to show them, which is not needed here and often not installed.
UNUSED = ("imageio", "cv2", "matplotlib", "matplotlib.pyplot", "tqdm")

Batch = tuple[Rays, Tensor]
Step = Callable[[Batch], float]


def ball(rays: int, generator: torch.Generator) -> Batch:
    """Random rays [P] towards a ball of radius 1 from around it, and their colours [P, 3]."""
    centers = torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator), dim=1) * DISTANCE
    aims = 1.6 * (torch.rand(rays, 3, generator=generator) * 2 - 1)
    directions = (aims - centers) / ((aims - centers) * -centers / DISTANCE).sum(1, keepdim=True)
    unit = torch.nn.functional.normalize(directions, dim=1)
    along = -(centers * unit).sum(1)
    behind = 1 - DISTANCE**2 + along**2
    normals = centers + (along - behind.clamp_min(0).sqrt())[:, None] * unit
    colors = torch.where(behind[:, None] > 0, 0.5 + 0.4 * (6 * normals).sin(), 1.0)
    return Rays(centers, directions, None, NEAR, FAR), colors


# ------------------------------------------------------------------------------------------------ our step


def our_model(bf16: bool) -> nerf.Model:
    """The published network for this scene, without a target encoding."""
    config = nerf.preset("paper", target_encoding="none", bf16=bf16, **SIZES)
    return nerf.Model(config, torch.tensor([NEAR, FAR]), torch.tensor(nerf.WORLD), None, None).train()


def our_step(model: nerf.Model) -> Step:
    """One training step, returning its loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=model.config.lr, fused=True)

    def step(batch: Batch) -> float:
        rays, target = batch
        drawn = model.march(rays, torch.ones(3))
        loss = mse(drawn.color, target) + sum(mse(part.color, target) for part in drawn.auxiliary)
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
def visible_share(model: nerf.Model, batch: Batch) -> float:
    """Share of the second network's samples that have a weight."""
    drawn = model.march(batch[0], torch.ones(3))
    return len(drawn.extras["weights"]) / (len(batch[1]) * (model.config.coarse_samples + model.config.fine_samples))


# ------------------------------------------------------------------------------------------------ their step


def stand_in(name: str) -> ModuleType:
    """A module whose every attribute is None, for one that is imported but not used."""
    module = ModuleType(name)
    module.__getattr__ = lambda _: None
    return module


@contextmanager
def importable(folder: Path, stand_ins: Mapping[str, ModuleType]) -> Iterator[None]:
    """`folder` first on the path, and `stand_ins` for modules that are imported there, unless they are loaded."""
    absent = [name for name in stand_ins if name not in sys.modules]
    for name in absent:
        sys.modules[name] = stand_ins[name]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in absent:
            del sys.modules[name]


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def load_peer(folder: Path) -> ModuleType:
    """nerf-pytorch's `run_nerf` from a checkout; a `UserError` if it is none."""
    if not (folder / "run_nerf.py").is_file():
        raise UserError(f"--nerf-pytorch {folder}: there is no run_nerf.py in it; give a checkout of nerf-pytorch")
    absent = [name for name in UNUSED if name.partition(".")[0] not in sys.modules and not _is_there(name)]
    with importable(folder, {name: stand_in(name) for name in absent}):
        peer = importlib.import_module("run_nerf")
    peer.device = torch.device("cpu")
    return peer


def peer_step(peer: ModuleType, weights: dict[str, Tensor]) -> Step:
    """One training step of `peer` as its training loop takes it, from our `weights`."""
    width, depth, coarse, fine = SIZES.values()
    facts = dict(multires=10, multires_views=4, i_embed=0, use_viewdirs=True, N_samples=coarse, N_importance=fine)
    facts |= dict(netdepth=depth, netwidth=width, netdepth_fine=depth, netwidth_fine=width)
    facts |= dict(
        netchunk=65536,
        lrate=5e-4,
        perturb=1.0,
        white_bkgd=True,
        raw_noise_std=0.0,
        dataset_type="blender",
        no_ndc=True,
        lindisp=False,
    )
    facts |= dict(ft_path=None, no_reload=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "empty").mkdir()
        with redirect_stdout(StringIO()):  # it says which checkpoints it found
            made = peer.create_nerf(Namespace(**facts, basedir=folder, expname="empty"))
    options, _, _, _, optimizer = made
    model = our_model(bf16=False)
    model.load_state_dict(weights)
    for name, theirs in (("coarse", "network_fn"), ("fine", "network_fine")):
        options[theirs].load_state_dict(nerf.published_names(getattr(model, name)))

    def step(batch: Batch) -> float:
        rays, target = batch
        lines = torch.stack([rays.origins, rays.directions])
        rgb, _, _, extras = peer.render(
            1, 1, None, chunk=32768, rays=lines, verbose=False, retraw=True, near=NEAR, far=FAR, **options
        )
        optimizer.zero_grad()
        loss = peer.img2mse(rgb, target) + peer.img2mse(extras["rgb0"], target)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


# ------------------------------------------------------------------------------------------------ the comparison


def times_in_turn(steps: dict[str, Step], draw: Callable[[], Batch], count: int) -> dict[str, np.ndarray]:
    """Seconds [count] of each of `steps`, taken in turn on the same batches."""
    times = {name: np.empty(count + WARM_UP) for name in steps}
    for index in range(count + WARM_UP):
        batch = draw()
        for name, step in steps.items():
            started = time.perf_counter()
            step(batch)
            times[name][index] = time.perf_counter() - started
    return {name: values[WARM_UP:] for name, values in times.items()}


def compare(peer: ModuleType, weights: dict[str, Tensor], batches: Callable[[int], Batch], count: int) -> list[str]:
    """One row of the table: medians of `count` steps, and of the quotients of steps on the same batch."""
    models = {name: our_model(bf16=name == "bf16") for name in ("float32", "bf16")}
    for model in models.values():
        model.load_state_dict(weights)
    share = visible_share(models["float32"], batches(RAYS))
    steps = {"peer": peer_step(peer, weights)} | {name: our_step(model) for name, model in models.items()}
    times = times_in_turn(steps, lambda: batches(RAYS), count)
    row = [f"{100 * share:.0f} %", f"{np.median(times['peer']):.2f} s"]
    for name in models:
        row += [f"{np.median(times[name]):.2f} s", f"{np.median(times['peer'] / times[name]):.2f}"]
    return row


def print_comparison(folder: Path, count: int, threads: int) -> int:
    """Print the table; `count` timed steps in each row."""
    from nfc_splat.terminal import print_table

    peer = load_peer(folder)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    batches = lambda rays: ball(rays, generator)  # noqa: E731
    print(f"median of {count} training steps of {RAYS} rays, cpu, {threads} threads; the same rays for each, in turn")
    rows = [["weights", "samples with a weight", "nerf-pytorch", "ours", "ratio", "ours, bf16", "ratio"]]
    rows.append(["random", *compare(peer, our_model(bf16=False).state_dict(), batches, count)])
    rows.append([f"after {PREPARING} steps", *compare(peer, prepared(batches, PREPARING), batches, count)])
    print_table(rows, numbers=(1, 2, 3, 4, 5, 6))
    return 0
