"""NeRF (Mildenhall et al. 2020): the model, how it is trained, and its files.

Two networks: the first is asked at stratified samples of a ray, the second at these and at more where the first saw
something. Both are compared with the photographs; a single network is asked once for each of these samples. As in
nerf-pytorch (the released TensorFlow code in torch), but for: pixel centres lie at +0.5 (there at +0); the depths of
Blender's scenes are half and one and a half times the distance to what the cameras look at (there 2 and 6, of cameras
4.03 away); a scene whose far end is not 1 to 10 units away is seen in other units, as networks begin with features of
about that size (there loaders scale scenes); transmittance is the product of 1 - alpha (there 1 - alpha + 1e-10);
with batches from one image, each image comes once per epoch (there at random).

Symbols: R rays, M samples, K of them with positive density, L logits per colour channel.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nfc_splat.cameras import Rays
from nfc_splat.errors import UserError
from nfc_splat.fields.color_head import ColorHead
from nfc_splat.fields.depth_range import depth_range, focus
from nfc_splat.fields.encodings import Positional, make_encoding
from nfc_splat.fields.marched import MarchedRecipe
from nfc_splat.fields.ndc import NormalizedDeviceCoordinates
from nfc_splat.fields.nerf_config import Config as Config
from nfc_splat.fields.nerf_config import preset as preset
from nfc_splat.fields.nerf_network import NeRFNetwork
from nfc_splat.fields.recipe import Sampling, SceneGeometry
from nfc_splat.files import atomic_path
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.hash_encoding import HashLevels
from nfc_splat.rendering.march import Field, MarchedModel, Move, MovedField, alpha_from_density, composite
from nfc_splat.rendering.packed import accumulate, render_weights
from nfc_splat.rendering.samplers import importance, merged, more_where_seen, stratified
from nfc_splat.rendering.samples import Samples, unit_directions
from nfc_splat.rendering.sharing import randn

WORLD = (0.0, 0.0, 0.0, 1.0)  # the frame in which networks see the world as it is
USUAL_FAR, FAR = (1.0, 10.0), 6.0  # units within which the far end is left where it is, and where others are put
HASH_LEVELS = HashLevels.between(16, 2, 17, 16, 1024)
NDC_NEAR = 0.75  # near plane as a share of the scene's nearest depth, as LLFF's loader scales it
BYTES_PER_SAMPLE = 1500  # of drawing, with encodings and their temporaries

log = logging.getLogger("nfc_splat")


class Model(MarchedModel):
    """Two networks and where rays start and end.

    Attributes:
        depth_range: [2] near and far, buffers so that they are the checkpoint's.
        frame: [4] the world point that networks take for 0, and the world length that they take for 1.
        ndc: the warp of a forward-facing scene, or None.
        coarse, fine: the networks; `coarse` is there only if there are two.
    """

    def __init__(
        self,
        config: Config,
        depth_range: Tensor,
        frame: Tensor,
        box: Tensor | None,
        ndc: NormalizedDeviceCoordinates | None,
    ) -> None:
        """box: [2, 3] what the hash encoding covers, as networks see it."""
        super().__init__()
        self.config, self.ndc = config, ndc
        self.register_buffer("depth_range", depth_range)
        self.register_buffer("frame", frame)
        self.head = ColorHead(config.target_encoding)
        self.encoding = self.head.encoding
        self.view_encoding = Positional(3, config.view_octaves)
        names = ("coarse", "fine")[-config.networks :]
        for name in names:
            self.add_module(f"{name}_points", _point_encoding(config, box))
        for name in names:
            self.add_module(name, self._network(getattr(self, f"{name}_points")))
        self.ray_bytes = (config.coarse_samples + config.fine_samples) * BYTES_PER_SAMPLE

    def _network(self, points: nn.Module) -> NeRFNetwork:
        config = self.config
        sizes = {"width": config.width, "depth": config.depth, "activation": config.activation}
        outputs = self.head.out_features
        return NeRFNetwork(points.out_dim, self.view_encoding.out_dim, outputs, **sizes, bf16=config.bf16)

    @classmethod
    def initialise(cls, config: Config, geometry: SceneGeometry) -> Self:
        """Random networks for the scene's depths, or for those that the configuration states."""
        ndc = None
        if config.space == "ndc":
            plane = config.near or NDC_NEAR * depth_range(geometry)[0]
            ndc = NormalizedDeviceCoordinates.of_cameras(geometry.cameras, plane)
            near, far, frame = 0.0, 1.0, torch.tensor(WORLD)
        else:
            near, far = _depths(config, geometry)
            frame = _frame(geometry, far)
        box = _box(geometry, far, ndc)
        frame = frame.to(box.device)
        box = (box - frame[:3]) / frame[3]
        return cls(config, torch.tensor([near, far], device=box.device), frame, box, ndc)

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a checkpoint."""
        warp = {name.removeprefix("ndc."): tensor for name, tensor in tensors.items() if name.startswith("ndc.")}
        ndc = NormalizedDeviceCoordinates.from_tensors(warp) if warp else None
        model = cls(config, tensors["depth_range"], tensors["frame"], tensors.get("fine_points.box"), ndc)
        model.load_state_dict(dict(tensors))
        return model

    @property
    def unit(self) -> Tensor:
        """[] the world length that networks take for 1."""
        return self.frame[3]

    def to_local(self, points: Tensor) -> Tensor:
        """World points [N, 3] as networks see them, but for encodings and the warp."""
        return (points - self.frame[:3]) / self.unit

    def march(self, rays: Rays, background: Tensor, move: Move | None = None) -> Rendering:
        """See `MarchedModel.march`; in training mode the first network's rendering is `auxiliary`. `move` says where
        the networks know the samples, for scenes that are deformed."""
        config, jitter = self.config, self.training
        near, far = self.depth_range.tolist()
        warped = self.ndc.warp_rays(rays) if self.ndc else rays
        views = self.view_encoding(unit_directions(rays))
        in_disparity = config.in_disparity and self.ndc is None
        samples = stratified(warped, near, far, config.coarse_samples, jitter=jitter, in_disparity=in_disparity)
        drawing = _Pass(self, self.fine, self.fine_points, views, self.draw_normals)
        if config.networks == 1:
            return self._draw_once(drawing, samples, rays, background, move)
        first = _Pass(self, self.coarse, self.coarse_points, views)
        coarse, weights = self._draw(_behind(first, move), samples, rays, background)
        samples = importance(samples, weights, config.fine_samples, jitter=jitter)
        fine, _ = self._draw(_behind(drawing, move), samples, rays, background)
        return replace(fine, auxiliary=(coarse,)) if self.training else fine

    def _draw_once(
        self, drawing: "_Pass", samples: Samples, rays: Rays, background: Tensor, move: Move | None
    ) -> Rendering:
        """One network's rendering: what it is asked at `samples` says where to look more closely, and is drawn too."""
        first = self._asked(drawing, samples, rays, move)
        alphas = alpha_from_density(first.density.detach(), samples.widths)
        weights, _ = render_weights(alphas, samples.offsets)
        more = more_where_seen(samples, weights, self.config.fine_samples, jitter=self.training)
        second = self._asked(drawing, more, rays, move)
        union, rows = merged(samples, more)
        # Normals need the network itself, at positions that have a gradient.
        field = _behind(drawing, move) if self.draw_normals else _Answered(drawing, first, second, rows)
        return self._draw(field, union, rays, background)[0]

    def _asked(self, drawing: "_Pass", samples: Samples, rays: Rays, move: Move | None) -> "_Answer":
        known = self._in_world(samples, rays)
        return drawing.ask(move(known) if move else known)

    def _draw(self, drawing: Field, samples: Samples, rays: Rays, background: Tensor) -> tuple[Rendering, Tensor]:
        """A rendering of `samples`, which lie on warped rays if there is a warp, and the weights [M] of all of them."""
        share, steps = samples.t, torch.arange(len(samples), device=samples.t.device)
        samples = replace(self._in_world(samples, rays), steps=steps)
        drawn = composite(drawing, samples, background)
        shown, weights = drawn.extras["samples"], drawn.extras["weights"].detach()
        if self.ndc:
            # Distances reach towards infinity: the mean is taken of 1 - n / z instead.
            summed = accumulate(weights, share[shown.steps, None], shown.offsets)
            depth = self.ndc.depth(rays, (summed / drawn.alpha.detach().clamp_min(1e-10)).clamp(0, 1))
            drawn = replace(drawn, depth=torch.where(drawn.alpha > 0, depth, 0.0))
        return drawn, torch.zeros_like(share).index_copy(0, shown.steps, weights)

    def _in_world(self, samples: Samples, rays: Rays) -> Samples:
        """Samples on warped rays as samples of the `rays` themselves."""
        if not self.ndc:
            return samples
        share = samples.t.view(len(rays.origins), len(samples) // max(len(rays.origins), 1))
        return replace(samples, rays=rays, t=self.ndc.depth(rays, share).view(-1))


class _Answer(NamedTuple):
    """What a network says of M samples: densities [M] per world length, logits [K, 3 L] of those with a density, and
    which row of them is a sample's [M], -1 for none."""

    density: Tensor
    logits: Tensor
    place: Tensor


class _Pass:
    """One network's answers along the rays of one request, as the marcher's `Field`.

    The network gives densities and colour logits in one call, so `alpha` keeps the logits for `color`; what `alpha`
    hands on is their row for each sample, -1 where the density is 0.
    """

    def __init__(
        self, model: Model, network: NeRFNetwork, points: nn.Module, views: Tensor, draw_normals: bool = False
    ) -> None:
        """views: [R, V] encoded directions."""
        self.model, self.network, self.points, self.views = model, network, points, views
        self.draw_normals, self.encoding = draw_normals, model.encoding
        self.logits: Tensor | None = None

    def ask(self, samples: Samples) -> "_Answer":
        """The network's answer at samples [M]."""
        density_noise = self.model.config.density_noise if self.model.training else 0.0
        noise = randn(len(samples), like=samples.t) * density_noise if density_noise else None
        ndc, positions = self.model.ndc, samples.positions
        points = self.points(ndc.warp_points(positions) if ndc else self.model.to_local(positions))
        density, logits, rows = self.network(points, self.views, samples.ray, noise)
        place = torch.full_like(samples.ray, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        return _Answer(density / self.model.unit, logits, place)

    def alpha(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Opacities [M], and which row of the logits is a sample's [M]."""
        density, self.logits, place = self.ask(samples)
        return alpha_from_density(density, samples.widths), place

    def color(self, samples: Samples, features: Tensor) -> Tensor:
        """Decoded colours [M, 3], with the bits' probabilities behind them if the model draws them."""
        # Rows ascend, so as many as there are is all of them.
        logits = self.logits if len(features) == len(self.logits) else self.logits[features]
        return self.model.head(logits, bits=self.model.draw_bits)


class _Answered:
    """A network that has been asked already, as the marcher's `Field`."""

    draw_normals = False

    def __init__(self, drawing: _Pass, first: _Answer, second: _Answer, rows: Tensor) -> None:
        """rows: [M] which row of the two answers, one after the other, is a sample's."""
        self.model, self.encoding = drawing.model, drawing.encoding
        behind = torch.where(second.place < 0, -1, second.place + len(first.logits))
        self.density = torch.cat([first.density, second.density]).index_select(0, rows)
        self.place = torch.cat([first.place, behind]).index_select(0, rows)
        self.logits = torch.cat([first.logits, second.logits])

    def alpha(self, samples: Samples) -> tuple[Tensor, Tensor]:
        return alpha_from_density(self.density, samples.widths), self.place

    def color(self, samples: Samples, features: Tensor) -> Tensor:
        return self.model.head(self.logits.index_select(0, features), bits=self.model.draw_bits)


def _behind(field: Field, move: Move | None) -> Field:
    return MovedField(field, move) if move else field


class Recipe(MarchedRecipe):
    """Adam over both networks, with an exponentially falling learning rate; pixels of one image or of all."""

    def __init__(self, config: Config, geometry: SceneGeometry) -> None:
        super().__init__(config, geometry)
        self.rays = config.rays

    def sampling(self, step: int) -> Sampling:
        """Different pixels of one image, at first of its middle only, which keeps empty borders from winning."""
        if self.config.batching == "all":
            return super().sampling(step)
        crop = self.config.precrop_share if step <= self.config.precrop_steps else 1.0
        return Sampling("image_rays", rays=self.rays, crop=crop)

    def optimizers(self, model: Model) -> dict[str, Optimizer]:
        """One Adam for everything."""
        return {"networks": Adam(model.parameters(), lr=self.config.lr, eps=1e-8, fused=True)}

    def after_step(
        self, model: Model, optimizers: dict[str, Optimizer], rendering: Rendering, step: int
    ) -> dict[str, float]:
        """Set the next step's learning rate: lr 0.1^(step / lr_decay_steps)."""
        for group in optimizers["networks"].param_groups:
            group["lr"] *= 0.1 ** (1 / self.config.lr_decay_steps)
        return {}


def _point_encoding(config: Config, box: Tensor | None) -> nn.Module:
    features = {"features": config.fourier_features, "scale": config.fourier_scale}
    return make_encoding(config.encoding, octaves=config.octaves, **features, box=box, levels=HASH_LEVELS)


def _depths(config: Config, geometry: SceneGeometry) -> tuple[float, float]:
    """Where rays start and end: as the configuration states, else as the scene does."""
    near, far = config.near, config.far
    if near is None or far is None:
        of_scene = depth_range(geometry)
        near, far = near or of_scene[0], far or of_scene[1]
    if near >= far:
        flag, value = ("near", near) if config.near is not None else ("far", far)
        remedy = f"rays would start at {near:.4g} and end at {far:.4g}; state both --near and --far"
        raise UserError(f"--{flag} {value:g}: {remedy}")
    log.info("scene:  rays from depth %.4g to %.4g", near, far)
    return near, far


def _frame(geometry: SceneGeometry, far: float) -> Tensor:
    """[4] what networks take for 0 and for 1: the world's own where `far` is usual, else what the cameras look at, or
    their middle, and a sixth of `far`."""
    low, high = USUAL_FAR
    if low <= far <= high:
        return torch.tensor(WORLD)
    center, _ = focus(geometry)
    log.info("scene:  %.4g of its units are one of the networks', so that depth %.4g is %g", far / FAR, far, FAR)
    return torch.cat([center, torch.tensor([far / FAR])])


def _box(geometry: SceneGeometry, far: float, ndc: NormalizedDeviceCoordinates | None) -> Tensor:
    """[2, 3] the scene's bounds, or what the cameras see up to `far`; with a warp, the latter in its coordinates."""
    if geometry.bounds is not None and ndc is None:
        return geometry.bounds
    cameras = geometry.cameras
    corners = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], device=cameras.sizes.device)
    places = (cameras.sizes.flip(1) - 1)[:, None] * corners
    camera = torch.arange(len(cameras), device=places.device)[:, None, None].expand(-1, 4, 1)
    rays = cameras.rays(torch.cat([camera, places], 2).view(-1, 3))
    rays = ndc.warp_rays(rays) if ndc else rays
    seen = torch.cat([rays.origins, rays.origins + far * rays.directions])
    return torch.stack([seen.amin(0), seen.amax(0)])


# nerf-pytorch's names of the layers.
_PUBLISHED = {"density": "alpha_linear", "feature": "feature_linear", "view": "views_linears.0", "color": "rgb_linear"}


def published_names(network: NeRFNetwork) -> dict[str, Tensor]:
    """A network's tensors under nerf-pytorch's names."""
    tensors = {}
    for index, layer in enumerate(network.trunk.layers):
        tensors |= {f"pts_linears.{index}.{part}": value for part, value in layer.state_dict().items()}
    for part, name in _PUBLISHED.items():
        tensors |= {f"{name}.{key}": value for key, value in getattr(network, part).state_dict().items()}
    return tensors


def export(model: Model, folder: Path) -> list[Path]:
    """Write the networks as `nerf_coarse.safetensors` and `nerf_fine.safetensors`, with nerf-pytorch's names, and
    `nerf.json` with what their use needs. A point x of the scene's frame enters as (x - center) / unit."""
    written = []
    for name in ("coarse", "fine")[-model.config.networks :]:
        encoding = getattr(model, f"{name}_points").state_dict()
        tensors = published_names(getattr(model, name)) | {f"encoding.{key}": part for key, part in encoding.items()}
        path = Path(folder) / f"nerf_{name}.safetensors"
        with atomic_path(path) as temporary:
            temporary.write_bytes(save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))
        written.append(path)
    path = Path(folder) / "nerf.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(description(model), indent=1) + "\n", encoding="utf-8")
    return [*written, path]


def description(model: Model) -> dict[str, Any]:
    """What a reader of the networks has to know."""
    config = model.config
    names = ("width", "depth", "activation", "encoding", "octaves", "view_octaves", "space", "in_disparity")
    names += ("coarse_samples", "fine_samples", "target_encoding")
    near, far = model.depth_range.tolist()
    facts: dict[str, Any] = {name: getattr(config, name) for name in names}
    facts |= {"near": near, "far": far, "logits_per_channel": model.head.n_logits, "pixel_center": 0.5}
    facts |= {"center": model.frame[:3].tolist(), "unit": float(model.unit)}
    if model.ndc:
        facts["ndc"] = {name: tensor.tolist() for name, tensor in model.ndc.state_dict().items()}
    return facts
