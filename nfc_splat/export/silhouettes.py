"""What silhouettes alone leave of a scene, without any learning: the visual hull (Laurentini 1994). A learned surface
has to be better than that.

Symbols: N points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nfc_splat.data import Split
from nfc_splat.errors import UserError
from nfc_splat.rendering.level_set import LevelSet

LEVEL = 0.5


def visual_hull(split: Split, bounds: Tensor) -> LevelSet:
    """The places that every image which has them in view shows as part of the object.

    Args:
        split: images with foreground masks or transparency.
        bounds: [2, 3] the box to look in, in world units.

    Raises:
        UserError: an image says nothing of the kind.
    """
    silhouettes = [_silhouette(split, index) for index in range(len(split))]

    def values(points: Tensor) -> Tensor:
        least = points.new_ones(len(points))
        for index, silhouette in enumerate(silhouettes):
            pixels, depth = split.cameras[index].project(points)
            places = 2 * pixels[0] / pixels.new_tensor(silhouette.shape[::-1]) - 1
            found = F.grid_sample(silhouette[None, None], places.view(1, 1, -1, 2), align_corners=False)[0, 0, 0]
            in_view = (places.abs() <= 1).all(1) & (depth[0] > 0)
            least = torch.where(in_view, torch.minimum(least, found), least)
        return least

    return LevelSet(values, LEVEL, bounds)


def _silhouette(split: Split, index: int) -> Tensor:
    """[H, W] 1 where the image shows the object."""
    foreground = split.foreground(index)
    if foreground is None:
        image = split.image(index)
        if image.shape[-1] < 4:
            raise UserError(
                f"--from silhouettes: {split.names[index]} has neither transparency nor a mask of the object; "
                "use --from depth"
            )
        foreground = image[..., 3].float() / 255
    return foreground
