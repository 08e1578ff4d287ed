"""How near and how far a scene lies from its cameras, as its files say or as the cameras and points tell.

Symbols: C cameras, M points. Distances are along camera z, in world units.
"""

import torch
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.fields.recipe import SceneGeometry

NEAR_SHARE, FAR_SHARE = 0.5, 1.5  # of the distance to what the cameras look at; 2 and 6 for the scenes of NeRF
OUTLIERS = 0.01  # share of the points at either end that does not count
FROM_EXTENT = (0.02, 8.0)  # of the cameras' extent, where nothing else is known
LEAST_NEAR = 1e-3  # of far


def depth_range(geometry: SceneGeometry) -> tuple[float, float]:
    """(near, far) that hold everything worth drawing: as the files state; else from the points, as the cameras see
    them; else about the point that the cameras look at, if they look inwards; else by how far apart the cameras are.

    Near is at least `LEAST_NEAR` far.

    Raises:
        UserError: nothing says how large the scene is: one place to look from, no points, no stated range.
    """
    if geometry.near_far is not None:
        near, far = geometry.near_far
    elif geometry.points is not None and len(geometry.points):
        near, far = _seen_depths(geometry)
    elif (distances := focus_distances(geometry)) is not None:
        near, far = NEAR_SHARE * float(distances.min()), FAR_SHARE * float(distances.max())
    elif geometry.camera_spread > 0:
        near, far = (share * geometry.extent for share in FROM_EXTENT)
    else:
        raise UserError(
            "nothing says how large the scene is: all training cameras stand at one point, and its files state neither "
            "points nor a depth range; add images from elsewhere or initial points, or state the range where the "
            "format or the method (nerf: --near and --far) allows it"
        )
    return max(near, LEAST_NEAR * far), far


def focus_distances(geometry: SceneGeometry) -> Tensor | None:
    """[C] depths of the point that the cameras look at (nearest to all optical axes, by least squares), or None when
    it is not in front of them all, as for cameras that look outwards."""
    viewmats = geometry.cameras.viewmats.double().cpu()
    axes, centers = viewmats[:, 2, :3], geometry.cameras.to("cpu", torch.float64).centers
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    system, right = across.sum(0), (across @ centers[..., None]).sum(0)[:, 0]
    if torch.linalg.cond(system) > 1e6:
        return None
    focus = torch.linalg.solve(system, right)
    depths = ((focus - centers) * axes).sum(-1)
    return depths if bool((depths > 0.1 * depths.max()).all()) and float(depths.max()) > 0 else None


def focus(geometry: SceneGeometry) -> tuple[Tensor, float]:
    """[3] the point that the cameras look at and its mean depth; their middle and extent if they look outwards."""
    cameras = geometry.cameras.to("cpu")
    depths = focus_distances(geometry)
    if depths is None:
        away = geometry.extent if geometry.camera_spread > 0 else depth_range(geometry)[1]
        return cameras.centers.float().mean(0), away
    ahead = cameras.centers.double() + depths[:, None] * cameras.viewmats[:, 2, :3].double()
    return ahead.mean(0).float(), float(depths.mean())


def _seen_depths(geometry: SceneGeometry) -> tuple[float, float]:
    """Half the nearest and 1.5 times the farthest depth of the points that cameras have in view, without outliers."""
    cameras = geometry.cameras
    stride = max(1, len(geometry.points) // 2000)
    pixels, depths = cameras.project(geometry.points[::stride].to(cameras.viewmats))
    inside = (pixels >= 0).all(-1) & (pixels < cameras.sizes[:, None]).all(-1) & (depths > 0)
    seen = depths[inside] if inside.any() else depths.abs().flatten()
    seen = seen[torch.linspace(0, len(seen) - 1, min(len(seen), 10**6), dtype=torch.float64, device=seen.device).long()]
    low, high = torch.quantile(seen, torch.tensor([OUTLIERS, 1 - OUTLIERS], device=seen.device)).tolist()
    return NEAR_SHARE * low, FAR_SHARE * high
