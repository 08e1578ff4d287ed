"""Marched methods on scenes as the other readers read them, from files to metrics; and what they say of themselves:
normals that point outwards, and the memory that a ray takes."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import data_scenes
import dvgo_toys
import numpy as np
import pytest
import torch
from data_scenes import HEIGHT, SPHERE, WIDTH, look_at
from torch.nn.functional import normalize

from nfc_splat.data import Scene
from nfc_splat.errors import UserError
from nfc_splat.fields import dvgo, find_method, nerf, ngp
from nfc_splat.fields.voxel_grid import grid_nodes
from nfc_splat.rendering import SceneModel
from nfc_splat.rendering.kernels.threads import set_threads
from nfc_splat.rendering.march import MarchedModel
from nfc_splat.rendering.samples import flat_rays
from nfc_splat.train import main, scene_geometry
from nfc_splat.training.load import LoadedRun, load_run

CENTER, RADIUS, VIEWS = SPHERE[:3], 0.5, 48
NGP = ["--levels", "4", "--log2-table-size", "12", "--finest-resolution", "64", "--width", "32", "--grid", "24"]
NGP += ["--march-steps", "96", "--samples", "6144", "--max-rays", "1024", "--update-every", "4", "--warmup", "20"]
DVGO = ["--voxels", "13824", "--base-voxels", "13824", "--coarse-voxels", "13824", "--coarse-steps", "60"]
DVGO += ["--rays", "256", "--growths", "1", "--grow-every", "20", "--mask-every", "30", "--lr-density", "0.5"]
DVGO += ["--color-channels", "3", "--width", "16", "--lr-net", "1e-2"]
NERF = ["--width", "32", "--depth", "3", "--coarse-samples", "16", "--fine-samples", "16", "--rays", "128"]
NERF += ["--octaves", "5", "--lr", "5e-3", "--no-bf16"]
# What is trained on what, and by how many dB it gets better than the model that it began with.
RUNS = {
    ("nsvf", "ngp"): (["--steps", "120", *NGP], 7),
    ("nsvf", "dvgo"): (["--steps", "160", *DVGO], 9),
    ("dtu", "ngp"): (["--steps", "120", *NGP], 8),
    ("nerfpp", "ngp"): (["--steps", "120", *NGP], 2),
    ("nerfpp", "dvgo"): (["--steps", "120", *DVGO], 5),
    ("llff", "ngp"): (["--steps", "120", *NGP], 5),
    ("llff", "nerf"): (["--steps", "120", "--space", "ndc", *NERF], 6),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    yield
    set_threads()


# ------------------------------------------------------------------------------------------------ the scenes


class Ball:
    """What the writers of `data_scenes` ask for: a painted ball, photographed from close around it.

    Attributes:
        poses: [VIEWS, 4, 4] camera-to-world, OpenCV axes.
        surroundings: "white", "black", or "sky": colours that depend on the direction alone.
    """

    def __init__(self, surroundings: str) -> None:
        self.surroundings = surroundings
        turns, heights = 2.4 * np.arange(VIEWS), np.linspace(-0.7, 0.7, VIEWS)
        around = np.stack([np.cos(turns) * np.cos(heights), np.sin(turns) * np.cos(heights), np.sin(heights)], 1)
        self.poses = np.stack([look_at(CENTER + 1.7 * direction, CENTER) for direction in around])

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3]."""
        origin, directions = self.rays(index)
        along = -(directions @ (origin - CENTER))
        room = RADIUS**2 - (((origin - CENTER) ** 2).sum() - along**2)
        normals = (origin + (along - np.sqrt(room.clip(0)))[..., None] * directions - CENTER) / RADIUS
        paint = [0.75, 0.4, 0.25] + 0.2 * np.sin(4 * normals)
        return (255 * np.where((room > 0)[..., None], paint, self.behind(origin, directions))).round().astype(np.uint8)

    def behind(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray | float:
        """Colours behind the ball."""
        return {"white": 1.0, "black": 0.0}.get(self.surroundings, 0.5 + 0.45 * directions)

    def rays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Origin [3] and unit directions [H, W, 3] through the middles of the pixels."""
        columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
        across = [(columns - WIDTH / 2) / data_scenes.FOCAL, (rows - HEIGHT / 2) / data_scenes.FOCAL]
        pose = self.poses[index]
        directions = np.stack([*across, np.ones_like(rows)], -1) @ pose[:3, :3].T
        return pose[:3, 3], directions / np.linalg.norm(directions, axis=-1, keepdims=True)


class Wall(Ball):
    """The ball in front of a wall, photographed by cameras side by side that all look the same way."""

    def __init__(self) -> None:
        super().__init__("wall")
        self.poses = np.tile(look_at(CENTER - [0, 1.7, 0], CENTER), (VIEWS, 1, 1))
        self.poses[:, 0, 3] += np.tile(np.linspace(-0.5, 0.5, 8), 6)
        self.poses[:, 2, 3] += np.repeat(np.linspace(-0.3, 0.3, 6), 8)

    def behind(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The wall's colours, 3 behind the middle of the ball."""
        points = origin + ((CENTER[1] + 3 - origin[1]) / directions[..., 1])[..., None] * directions
        return 0.4 + 0.2 * np.sin(np.stack([points[..., 0], points[..., 2], points[..., 0] + points[..., 2]], -1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder in each of the formats."""
    balls = {"nsvf": Ball("white"), "dtu": Ball("black"), "nerfpp": Ball("sky"), "llff": Wall()}
    options = {"nsvf": {"prefixes": "001002"}}  # two in three for training
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_scenes, "COUNT", VIEWS)
        for name, ball in balls.items():
            folders[name] = tmp_path_factory.mktemp("scenes") / name
            data_scenes.WRITERS[name](folders[name], ball, **options.get(name, {}))
    return folders


def begin(folder: Path, out: Path, *words: str) -> LoadedRun:
    """Train on a folder as the command line says; the run read back."""
    assert main([str(folder), "--preset", "quick", "--threads", "1", "--quiet", "--out", str(out), *words]) == 0
    return load_run(out)


def gain(run: LoadedRun) -> float:
    """By how many dB the PSNR of three test views is larger than before training."""
    torch.manual_seed(run.config.seed)
    module = find_method(run.config.method).load()
    fresh = module.Model.initialise(run.config.model, scene_geometry(run.scene, "cpu")).eval()
    trained, untrained = psnr(run.model, run.scene), psnr(fresh, run.scene)
    recorded = json.loads((run.config.out / "eval" / "per_view.json").read_text())[: len(trained)]
    assert [view["psnr"] for view in recorded] == pytest.approx(trained, abs=0.1)  # of eight bits
    return sum(trained) / len(trained) - sum(untrained) / len(untrained)


@torch.no_grad()
def psnr(model: SceneModel, scene: Scene) -> list[float]:
    """Of the first three test views."""
    split, figures = scene.splits["test"], []
    for index in range(3):
        drawn = model.render(split.cameras[[index]], background=scene.background).color[0].clamp(0, 1)
        figures.append(-10 * math.log10((drawn - split.target(index, scene.background)).square().mean()))
    return figures


# ------------------------------------------------------------------------------------------------ trained on them


@pytest.mark.parametrize(("name", "method"), RUNS)
def test_it_learns(folders, tmp_path, name, method):
    words, least = RUNS[name, method]
    run = begin(folders[name], tmp_path / "run", "--method", method, *words)
    assert run.scene.format == name
    assert gain(run) > least
    if method == "dvgo":
        assert run.model.config.bounded == {"nsvf": "yes", "nerfpp": "no"}[name]
    if method == "ngp":
        assert bool(run.model.space.contracted) == (name in ("nerfpp", "llff"))
    if name == "dtu":
        torch.testing.assert_close(run.model.space.center, torch.tensor(CENTER).float())
    if method == "nerf":
        assert run.model.ndc is not None


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "method"), [("nsvf", "ngp"), ("nerfpp", "ngp"), ("llff", "nerf")])
def test_it_learns_on_a_gpu(folders, tmp_path, name, method):
    words, least = RUNS[name, method]
    run = begin(folders[name], tmp_path / "run", "--method", method, "--device", "cuda", *words)
    assert run.config.device == "cuda"
    assert gain(run) > least


@pytest.mark.parametrize(("name", "method"), [("nsvf", "ngp"), ("llff", "nerf")])
def test_another_target_encoding_is_another_run(folders, tmp_path, name, method):
    words, _ = RUNS[name, method]
    begin(folders[name], tmp_path / "run", "--method", method, *words, "--steps", "2", "--loss", "classification")
    with pytest.raises(UserError) as caught:
        main(["--resume", str(tmp_path / "run"), "--target-encoding", "gray"])
    message = str(caught.value)
    assert "cannot be continued with other settings" in message
    assert "target_encoding" in message
    assert "binary" in message
    assert "gray" in message
    assert "\n" not in message


# ------------------------------------------------------------------------------------------------ normals and memory


@torch.no_grad()
def drawn_normals(bounded: bool, radius: float, inside: bool, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """DVGO full of matter inside or outside a sphere, in the units of its grids: normals [P, 3] where rays end, and
    the directions [P, 3] from the sphere's middle to there."""
    config = dvgo_toys.toy_config(bounded="yes" if bounded else "no", voxels=side**3, coarse_steps=0, growths=0)
    model = dvgo.Model.initialise(config, dvgo_toys.ball_geometry(has_alpha=bounded)).eval()
    away = grid_nodes(model.density.box, model.density.size).norm(dim=-1)
    model.density.values[..., 0] = 200 * (radius - away if inside else away - radius)
    model.draw_normals = True
    cameras = dvgo_toys.ball_cameras()
    drawn = model.render(cameras, background=torch.ones(3))
    rays, hit = cameras.rays(), drawn.alpha[..., 0] > 0.99
    middle = torch.zeros(3) if bounded else model.space.center
    return drawn.normal[hit], normalize((rays.origins + drawn.depth * rays.directions)[hit] - middle, dim=-1)


@pytest.mark.parametrize(
    ("bounded", "radius", "inside", "side", "most"),
    [
        (True, 0.8, True, 40, 4),
        (False, 0.3, True, 40, 5),
        (False, 1.1, False, 96, 9),  # lengths are contracted there, depths eleven times as much as widths
    ],
    ids=["bounded", "contracted", "contracted, all around"],
)
def test_normals_point_out_of_matter(bounded, radius, inside, side, most):
    normals, outwards = drawn_normals(bounded, radius, inside, side)
    off = (normals * (outwards if inside else -outwards)).sum(-1).clamp(-1, 1).acos().rad2deg()
    assert len(off) > 1000
    assert off.mean() < most


def peak_bytes(draw: Callable[[], object]) -> int:
    """The most memory that torch's tensors take at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        draw()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in changes]).max())


def fog(method: str) -> MarchedModel:
    """A model that has learned nothing: its samples are everywhere."""
    module, changes = {"dvgo": (dvgo, {"coarse_steps": 0}), "ngp": (ngp, {}), "nerf": (nerf, {"bf16": False})}[method]
    config = module.preset("quick", target_encoding="binary", **changes)
    return module.Model.initialise(config, dvgo_toys.ball_geometry())


@pytest.mark.parametrize("method", ["dvgo", "ngp", "nerf"])
def test_a_ray_takes_about_as_much_memory_as_is_said(method):
    """Counted for rays that meet something everywhere, as they may until a method knows where the scene is."""
    model = fog(method).eval()
    rays = flat_rays(dvgo_toys.ball_cameras(size=8).rays())
    with torch.no_grad():
        model.march(rays, torch.ones(3))  # what is kept from then on is not a ray's
        taken = peak_bytes(lambda: model.march(rays, torch.ones(3))) / len(rays.origins)
    assert model.ray_bytes / 3 < taken < 3 * model.ray_bytes
