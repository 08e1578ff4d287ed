"""What a training step of a ray-marched method spends its time on.

`python -m nfc_splat.eval speed --fields dvgo ngp` trains with the quick preset and times steps of the trainer in two
parts of the training: at its beginning, and once the method knows where the scene is. Every other step, by lot, is
watched: for its length the functions that begin and end a phase are wrapped, and a stopwatch runs for one phase at a
time, so that the phases add up to the step. The steps between are not touched; their median beside that of the watched
ones shows what watching costs.

Backward, a node of autograd's graph belongs to the phase that made it. Nodes are numbered as they are made, and so the
numbers at which the phases began tell; a hook on every node switches the stopwatch.

Phases
    batch           pixels are drawn, and their colours looked up
    sample          rays, the samples on them, and which of these can be seen at all (dvgo asks its densities for that,
                    without gradients)
    interpolate     voxel or hash grids are asked, with gradients
    network         perceptrons, with the encoding of their inputs and the colour head
    composite       opacities, weights and colours of rays
    loss            all terms, the classification loss and regularisers among them
    backward: ...   the same, backward
    check           whether loss and gradients are finite
    after backward  what a method adds to its gradients: dvgo's total variation
    optimiser
    after step      occupancy, growing grids, learning rates
"""

import random
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nfc_splat.files import write_json
from nfc_splat.terminal import print_table, progress

if TYPE_CHECKING:
    from nfc_splat.training.trainer import Trainer

UNKNOWN = "not attributed"
DRAWING = ("sample", "interpolate", "network", "composite", "loss")
BACKWARD = {name: f"backward: {name}" for name in DRAWING} | {UNKNOWN: "backward: rest"}
ENDING = ("check", "after backward", "optimiser", "after step", UNKNOWN)
PHASES = ("batch", *DRAWING, *BACKWARD.values(), *ENDING)

# Parts of drawing, by what computes them; what they call belongs to them unless it is listed too.
PARTS = {
    "dvgo": {
        "dvgo:composite": "composite",
        "voxel_grid:VoxelGrid.forward": "interpolate",
        "dvgo_space:Contracted.to_grid": "interpolate",
        "dvgo:Model.color": "network",
    },
    "ngp": {
        "ngp:composite": "composite",
        "ngp:hash_encode": "interpolate",
        "ngp_space:Space.to_unit": "interpolate",
        "ngp:Model.features": "network",
        "ngp:Model.color": "network",
    },
    "nerf": {
        "nerf:composite": "composite",
        "encodings:Positional.forward": "network",
        "nerf_network:NeRFNetwork.forward": "network",
        "nerf:_Pass.color": "network",
        "nerf:_Answered.color": "network",
    },
}
# Steps of the quick preset until dvgo's grids have their full size and ngp's occupancy grid has found the scene.
LATE = {"dvgo": 1200, "ngp": 600, "nerf": 100}
WARM_UP = 5
VIEWS, SIDE, RADIUS, DISTANCE, HALF_ANGLE = 24, 200, 1.0, 4.0, 0.35

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


class Stopwatch:
    """Seconds by phase. One phase runs at a time.

    Attributes:
        seconds: by phase, since `start`.
        phase: the one that runs.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Begin anew, in no phase."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.phase, self._since = UNKNOWN, self._clock()

    def switch(self, phase: str) -> str:
        """Go on in another phase; returns the one that ran."""
        now, before = self._clock(), self.phase
        self.seconds[before] += now - self._since
        self.phase, self._since = phase, now
        return before

    def resume(self, phase: str) -> None:
        """Go on in `phase`; the time since the last switch does not count."""
        self.phase, self._since = phase, self._clock()


class Probe:
    """Watches steps of a trainer of `method`.

    Attributes:
        watch: holds the seconds of the last step watched.
        figures: what the recipe said of it.
    """

    def __init__(self, method: str, clock: Callable[[], float]) -> None:
        self.method, self.watch = method, Stopwatch(clock)
        self.figures: Mapping[str, float] = {}
        self._drawing = False
        self._began: list[tuple[int, str]] = []  # phases, and the number of the last node before each
        self._leaf = torch.zeros((), requires_grad=True)

    def step(self, trainer: "Trainer") -> dict[str, float]:
        """Take one step and return its seconds by phase; they add up to the step."""
        with self.attached(trainer):
            self._began = []
            self.watch.start()
            self._enter(UNKNOWN)
            trainer.step()
            self.watch.switch(UNKNOWN)
        return dict(self.watch.seconds)

    @contextmanager
    def attached(self, trainer: "Trainer") -> Iterator[None]:
        """Everything that begins or ends a phase is wrapped meanwhile."""
        from nfc_splat.training import gradients

        recipe, model = trainer.state.recipe, trainer.state.model
        whole: list[tuple[Any, str, Wrapper]] = [
            (trainer.batches, "draw", self.timed("batch")),
            (model, "render", self._drawn),
            (trainer, "losses", self.timed("loss")),
            (recipe, "before_backward", self.timed("loss")),
            (torch.Tensor, "backward", self._backward),
            (gradients, "are_finite", self.timed("check")),
            (recipe, "after_backward", self.timed("after backward")),
            (gradients, "apply", self.timed("optimiser")),
            (recipe, "after_step", self._figured),
        ]
        with ExitStack() as stack:
            for owner, name, wrapper in whole:
                stack.enter_context(_wrapped(owner, name, wrapper))
            for place, phase in PARTS[self.method].items():
                module, _, path = place.partition(":")
                *owners, name = path.split(".")
                owner = resolve_name(f"nfc_splat.fields.{module}:{'.'.join(owners)}")
                stack.enter_context(_wrapped(owner, name, self.timed(phase, part=True)))
            yield

    def timed(self, phase: str, part: bool = False) -> Wrapper:
        """Wraps a function that is a phase; a `part` of drawing is one only while the model draws, not where a method
        uses it for something else."""

        def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*arguments: Any, **options: Any) -> Any:
                if part and not self._drawing:
                    return function(*arguments, **options)
                before = self._enter(phase)
                try:
                    return function(*arguments, **options)
                finally:
                    self._enter(before)

            return timed

        return wrapper

    def _enter(self, phase: str) -> str:
        before = self.watch.switch(phase)
        with torch.enable_grad():
            self._began.append(((self._leaf * 1).grad_fn._sequence_nr(), phase))
        self.watch.resume(phase)
        return before

    def _drawn(self, render: Callable[..., Any]) -> Callable[..., Any]:
        inner = self.timed("sample")(render)

        def drawn(*arguments: Any, **options: Any) -> Any:
            self._drawing = True
            try:
                return inner(*arguments, **options)
            finally:
                self._drawing = False

        return drawn

    def _figured(self, after_step: Callable[..., Any]) -> Callable[..., Any]:
        inner = self.timed("after step")(after_step)

        def figured(*arguments: Any) -> Any:
            self.figures = inner(*arguments)
            return self.figures

        return figured

    def _backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        def watched(total: torch.Tensor) -> None:
            before = self.watch.switch(UNKNOWN)
            handles = [
                node.register_prehook(self._passing(BACKWARD[phase])) for node, phase in self._nodes(total.grad_fn)
            ]
            self.watch.resume(BACKWARD[UNKNOWN])
            try:
                backward(total)
            finally:
                self.watch.switch(before)
                for handle in handles:
                    handle.remove()
                self.watch.resume(before)

        return watched

    def _passing(self, phase: str) -> Callable[[Any], None]:
        """What is called in front of a node: it returns nothing, so that the gradients stay as they are."""

        def hook(_: Any) -> None:
            self.watch.switch(phase)

        return hook

    def _nodes(self, root: Any) -> list[tuple[Any, str]]:
        """Every node behind `root`, and the phase that made it: for leaves, that of whoever uses them."""
        numbers = [number for number, _ in self._began]
        found: dict[Any, str] = {}
        ahead = [(root, UNKNOWN)]
        while ahead:
            node, phase = ahead.pop()
            if node is None or node in found:
                continue
            if not hasattr(node, "variable"):
                phase = self._began[bisect_right(numbers, node._sequence_nr()) - 1][1]
            found[node] = phase
            ahead += [(following, phase) for following, _ in node.next_functions]
        return list(found.items())


@contextmanager
def _wrapped(owner: Any, name: str, wrapper: Wrapper) -> Iterator[None]:
    """An attribute of an object, a class or a module is wrapped meanwhile."""
    own = vars(owner).get(name)
    setattr(owner, name, wrapper(getattr(owner, name)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


# ------------------------------------------------------------------------------------------------ the measurement


@dataclass(frozen=True)
class Row:
    """One phase of a part: median milliseconds, and its share of the time of all steps together."""

    phase: str
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Part:
    """One part of a training.

    Attributes:
        first, last: its steps.
        rows: by phase, in the order of `PHASES`; their shares add up to 1.
        step_ms: median of the watched steps.
        unwatched_ms: median of the others.
        figures: medians of what the recipe said of its steps: rays, samples, ...
    """

    first: int
    last: int
    rows: tuple[Row, ...]
    step_ms: float
    unwatched_ms: float
    figures: dict[str, float]


def time_fields(
    methods: Sequence[str], scene: Path | None, steps: int, threads: int, device: str, record: Path | None
) -> int:
    """Print a table for each method and write all of them to `record`; returns the exit code."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = scene or write_ball(Path(name))
        shown = f"a ball, {SIDE}x{SIDE}" if scene is None else str(scene)
        for method in methods:
            parts = time_method(method, folder, steps, threads, device)
            print(
                f"{method}, quick preset, {shown}; {device}, {threads} threads; median milliseconds, share of all steps"
            )
            _print_parts(parts)
            results.append({"method": method, "preset": "quick", "parts": [asdict(part) for part in parts]})
    if record is not None:
        from nfc_splat.machine import hardware, versions

        facts = {"scene": shown, "steps": steps, "threads": threads, "device": device}
        write_json(record, facts | {"hardware": hardware(), "versions": versions(), "methods": results})
    return 0


def time_method(method: str, scene: Path, steps: int, threads: int, device: str) -> list[Part]:
    """Train `method` on `scene` with the quick preset, and time it early and late: `steps` watched ones each time."""
    from nfc_splat.eval.cost import make_trainer, quiet
    from nfc_splat.training.config import default_config, resolve
    from nfc_splat.training.load import load_training_scene

    config = default_config(scene, method=method, preset="quick", device=device)
    config = resolve(replace(config, threads=threads, quiet=True, log_every=10**9))
    with quiet():
        trainer = make_trainer(config, load_training_scene(config))
        return time_parts(trainer, steps, LATE[method])


def time_parts(trainer: "Trainer", steps: int, late: int) -> list[Part]:
    """An early and a late part of the training of a fresh trainer."""
    from nfc_splat.eval.cost import clock

    device = trainer.config.device
    probe = Probe(trainer.config.method, lambda: clock(device))
    lot, parts = random.Random(0), []
    late = max(late, WARM_UP + 2 * steps)
    with progress(late + 2 * steps, trainer.config.method) as advance:
        for begin in (WARM_UP, late):
            while trainer.state.step < begin:
                trainer.step()
                advance()
            watched, others, figures = [], [], []
            for _ in range(steps):
                for watching in lot.sample((True, False), 2):
                    if watching:
                        watched.append(probe.step(trainer))
                        figures.append(probe.figures)
                    else:
                        started = clock(device)
                        trainer.step()
                        others.append(clock(device) - started)
                    advance()
            parts.append(_part(begin + 1, trainer.state.step, watched, others, figures))
    return parts


def _part(
    first: int,
    last: int,
    watched: Sequence[Mapping[str, float]],
    others: Sequence[float],
    figures: Sequence[Mapping[str, float]],
) -> Part:
    table = np.array([[seconds.get(phase, 0.0) for phase in PHASES] for seconds in watched])
    medians, shares = 1e3 * np.median(table, 0), table.sum(0) / table.sum()
    rows = tuple(Row(*cells) for cells in zip(PHASES, medians.tolist(), shares.tolist(), strict=True))
    step, unwatched = 1e3 * np.median(table.sum(1)), 1e3 * np.median(others)
    said = {name: float(np.median([each[name] for each in figures])) for name in figures[0]}
    return Part(first, last, rows, float(step), float(unwatched), said)


def _print_parts(parts: Sequence[Part]) -> None:
    """One column for each part; phases that none of them has are left out."""
    table = [["phase", *(cell for part in parts for cell in (f"steps {part.first}-{part.last}", "share"))]]
    for rows in zip(*(part.rows for part in parts), strict=True):
        if any(row.share > 0 for row in rows):
            cells = ((f"{row.milliseconds:.2f}", f"{100 * row.share:.1f} %") for row in rows)
            table.append([rows[0].phase, *(cell for pair in cells for cell in pair)])
    table.append(["step", *(cell for part in parts for cell in (f"{part.step_ms:.2f}", ""))])
    table.append(["step, unwatched", *(cell for part in parts for cell in (f"{part.unwatched_ms:.2f}", ""))])
    for name in parts[0].figures:
        table.append([name, *(cell for part in parts for cell in (f"{part.figures[name]:,.6g}", ""))])
    print_table(table, numbers=tuple(range(1, len(table[0]))))


# ------------------------------------------------------------------------------------------------ the built-in scene


def write_ball(folder: Path, views: int = VIEWS, side: int = SIDE) -> Path:
    """A painted ball with nothing around it, in Blender's format: `views` transparent pictures of `side` pixels."""
    import json

    from PIL import Image

    (folder / "train").mkdir(parents=True)
    frames = []
    for index in range(views):
        pose = _camera_to_world(2.4 * index, 1.2 * (index + 0.5) / views - 0.6)
        Image.fromarray(_picture(pose, side)).save(folder / "train" / f"{index:03d}.png")
        frames.append({"file_path": f"train/{index:03d}", "transform_matrix": pose.tolist()})
    content = {"camera_angle_x": 2 * HALF_ANGLE, "frames": frames}
    (folder / "transforms_train.json").write_text(json.dumps(content))
    return folder


def _camera_to_world(turn: float, height: float) -> np.ndarray:
    """[4, 4] in OpenGL axes: looking at the origin from an angle around it and one above it."""
    backward = np.array([np.cos(turn) * np.cos(height), np.sin(turn) * np.cos(height), np.sin(height)])
    right = np.cross([0, 0, 1], backward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(backward, right), backward, DISTANCE * backward], 1)
    return pose


def _picture(pose: np.ndarray, side: int) -> np.ndarray:
    """uint8 [side, side, 4]."""
    across = np.tan(HALF_ANGLE) * (2 * (np.arange(side) + 0.5) / side - 1)
    columns, rows = np.meshgrid(across, across)
    directions = np.stack([columns, -rows, -np.ones_like(rows)], -1) @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    center = pose[:3, 3]
    along = -(directions @ center)
    room = RADIUS**2 - (DISTANCE**2 - along**2)
    hit = room > 0
    points = center + (along - np.sqrt(np.where(hit, room, 0)))[..., None] * directions
    colors = 0.5 + 0.4 * np.sin(points @ np.array([[7.0, 1, 2], [1, 6, -3], [-2, 3, 8]]))
    return (255 * np.concatenate([np.where(hit[..., None], colors, 0), hit[..., None]], -1)).round().astype(np.uint8)
