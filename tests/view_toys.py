"""What the viewer's tests look at, and a visitor without a browser."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from dvgo_toys import toy_config as dvgo_config
from splat_toys import toy_config

from nfc_splat.fields import gaussians
from nfc_splat.fields.gaussians import SH_C0


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
    return gaussians.Model(toy_config(sh_degree=degree), tensors, degree).eval()


def dvgo_toy() -> object:
    return dvgo_config(steps=60, coarse_steps=25, lr_decay_steps=60, growths=1, tv_dense_until=25)


class Visitor:
    """Stands for viser's client handle: a window of 64 x 48 pixels that remembers the pictures it gets."""

    def __init__(self, position=(8.0, 0.0, 3.0), wxyz=(0.5, -0.5, 0.5, -0.5)) -> None:
        self.client_id = 0
        self.pictures: list[np.ndarray] = []
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

    def take(self, pixels: np.ndarray, **_: object) -> None:
        self.pictures.append(pixels)
