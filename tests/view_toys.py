"""What the viewer's tests look at, and a visitor without a browser."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from splat_toys import toy_config

from nfc_splat.data import Scene
from nfc_splat.fields import gaussians
from nfc_splat.fields.gaussians import SH_C0
from nfc_splat.rendering import SceneModel
from nfc_splat.view.address import choose_port
from nfc_splat.view.page import Subject, Viewer


def ball_of_gaussians(count: int = 400, *, degree: int = 0) -> gaussians.Model:
    """Opaque Gaussians on the unit sphere, coloured as `eval_toys.sphere_picture` is."""
    index = torch.arange(count) + 0.5
    height, angle = 1 - 2 * index / count, 2.399963 * index
    around = (1 - height.square()).sqrt()
    means = torch.stack([around * angle.cos(), around * angle.sin(), height], -1)
    tensors = {
        "means": means,
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        "scales": torch.full((count, 3), 0.07).log(),
        "opacities": torch.full((count,), 0.95).logit(),
        "sh0": (0.5 * torch.sin(3 * means) / SH_C0)[:, None],
        "shN": torch.zeros(count, (degree + 1) ** 2 - 1, 3),
    }
    return gaussians.Model(toy_config(sh_degree=degree, backend="auto"), tensors, degree).eval()


class Visitor:
    """Stands for viser's client handle: a window of 64 x 48 pixels that remembers pictures and notifications."""

    def __init__(self, position=(8.0, 0.0, 3.0), wxyz=(0.5, -0.5, 0.5, -0.5), client_id=0) -> None:
        self.client_id = client_id
        self.pictures: list[np.ndarray] = []
        self.told: list[str] = []
        self.camera = SimpleNamespace(
            position=np.array(position),
            wxyz=np.array(wxyz),
            fov=0.8,
            aspect=64 / 48,
            image_width=64,
            image_height=48,
            on_update=lambda callback: None,
        )
        self.scene = SimpleNamespace(set_background_image=self.take)
        self.atomic = nullcontext

    def add_notification(self, title: str, body: str, **_: object) -> None:
        self.told.append(body)

    def take(self, pixels: np.ndarray, **_: object) -> None:
        self.pictures.append(pixels)


class Rising(gaussians.Model):
    """Gaussians that rise by a unit while time passes."""

    def splats_at(self, time: float) -> dict[str, torch.Tensor]:
        splats = self.splats()
        return splats | {"means": splats["means"] + time * torch.tensor([0.0, 0, 1])}

    def render(self, cameras, pixels=None, *, background):
        return self.draw(self.splats_at(cameras.times[0]), cameras, pixels, background)


def let_in(viewer: Viewer, visitor: Visitor) -> None:
    """What happens when a browser connects."""
    viewer._server.get_clients = lambda: {visitor.client_id: visitor}
    viewer._enter(visitor)


@contextmanager
def served(model: SceneModel, scene: Scene, **changes: object) -> Iterator[Viewer]:
    """A viewer of `model` at a free port, kept busy by a thread."""
    splats = isinstance(model, gaussians.Model)
    points = model.means.detach() if splats else None
    settings = {"title": "ball, toy", "folder": None, "splats": splats, "moves": False, "points": points}
    viewer = Viewer(Subject(scene, **(settings | changes)), "127.0.0.1", choose_port("127.0.0.1", None))
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            if not viewer.work(model):
                viewer.wait(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield viewer
    finally:
        ended.set()
        thread.join()
        viewer.close()
