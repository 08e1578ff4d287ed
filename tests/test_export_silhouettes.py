"""The visual hull: what silhouettes leave of a ball, and of what they cannot show."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from export_scenes import Ball, area_and_volume, cameras_around

from nfc_splat.errors import UserError
from nfc_splat.export.level_sets import level_set_mesh
from nfc_splat.export.marching_cubes import Lattice
from nfc_splat.export.silhouettes import visual_hull

BOX = torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])


class Views(SimpleNamespace):
    def __len__(self):
        return len(self.cameras)


def views(count, masks=False):
    """A split of views of a ball, cut out by transparency or by masks of the object."""
    cameras = cameras_around(count)
    alphas = Ball(radius=0.8).render(cameras, background=torch.zeros(3)).alpha
    images = (torch.cat([torch.zeros(*alphas.shape[:-1], 3), alphas], -1) * 255).byte()
    return Views(
        names=[f"{index}.png" for index in range(count)],
        cameras=cameras,
        image=lambda index: images[index][..., :3] if masks else images[index],
        foreground=lambda index: alphas[index, ..., 0] if masks else None,
    )


@pytest.mark.parametrize("masks", [False, True])
def test_a_ball_is_carved(masks):
    hull = visual_hull(views(40, masks), BOX)
    lattice = Lattice.over(BOX.numpy(), 3 / 64)
    vertices, triangles = level_set_mesh(hull, lattice, torch.device("cpu"))
    radii = np.linalg.norm(vertices, axis=1)
    assert radii.min() > 0.8 - 0.04  # a pixel is 0.03 wide there
    assert np.median(radii) == pytest.approx(0.82, abs=0.03)
    assert area_and_volume(vertices, triangles)[1] == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.05)


def test_what_no_camera_has_in_view_stays():
    hull = visual_hull(views(1), BOX)
    camera = cameras_around(1)
    behind = torch.linalg.inv(camera.viewmats[0])[:3, 3] * 1.5
    assert hull.values(behind[None]).item() == 1
    assert hull.values(torch.tensor([[0.0, 0.0, 0.0]])).item() == 1


def test_images_must_say_what_is_the_object():
    scene = views(3, masks=True)
    scene.foreground = lambda index: None
    with pytest.raises(
        UserError, match=r"--from silhouettes: 0\.png has neither transparency nor a mask of the object"
    ):
        visual_hull(scene, BOX)
