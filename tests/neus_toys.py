"""Small NeuS models and what the tests of its parts share."""

import dataclasses

import torch
from ngp_scenes import cameras, geometry

from nfc_splat.fields.neus import Model, preset
from nfc_splat.fields.neus_region import Region
from nfc_splat.rendering.samples import flat_rays

SMALL = {
    "steps": 60,
    "shape_steps": 0,
    "target_encoding": "none",
    "width": 32,
    "depth": 2,
    "features": 8,
    "color_width": 16,
    "color_depth": 1,
    "octaves": 2,
    "spare_inputs": 0,
    "background_width": 16,
    "background_depth": 2,
    "background_samples": 6,
    "coarse_samples": 16,
    "fine_samples": 8,
    "fine_rounds": 2,
    "levels": 4,
    "log2_table_size": 10,
    "base_resolution": 4,
    "finest_resolution": 32,
    "first_levels": 2,
    "level_every": 10,
    "rays": 256,
    "march_steps": 96,
    "samples": 4096,
    "grid": 16,
    "update_every": 4,
    "warmup_steps": 5,
    "decay_steps": 60,
    "anneal_steps": 20,
}
WHITE = torch.ones(3)


def small(name="paper", **changes):
    return dataclasses.replace(preset(name), **(SMALL | changes))


def build(config=None, **changes):
    torch.manual_seed(0)
    return Model.initialise(config or small(), geometry(**changes))


def rays(count=40):
    drawn = flat_rays(cameras().rays())
    chosen = torch.linspace(0, len(drawn.origins) - 1, count).long()
    return dataclasses.replace(drawn, origins=drawn.origins[chosen], directions=drawn.directions[chosen])


def region(shape="box", variant="sdfstudio", fine=64, **changes):
    config = small(region=shape, variant=variant, coarse_samples=64, fine_samples=fine, fine_rounds=4, **changes)
    return Region(torch.tensor([0.1, -0.2, 0.05]), 1.5, False, config)


def ball(points):
    """Distance from a ball of radius 0.5 in local coordinates."""
    return points.norm(dim=-1) - 0.5
