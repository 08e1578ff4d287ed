"""Baked light: the irradiance at every vertex, direct and reflected.

Symbols: V vertices, L lights, K gather directions per vertex. Irradiance is divided by pi throughout, so that radiance
is colour times irradiance.
"""

import numpy as np

from nfc_splat.scenery.casting import OFFSET, Geometry
from nfc_splat.scenery.scene import Lights, Scenery
from nfc_splat.scenery.shading import Shader

CHUNK = 1 << 13  # vertices whose gather rays are cast at once
COARSE = 0.05  # metres: the texture detail that reflected light keeps


def bake(scenery: Scenery, *, gathers: int = 64, bounces: int = 3, seed: int = 0) -> Shader:
    """A shader whose vertices know their light.

    Direct light is summed over the light samples with shadow rays. Reflected light is gathered along `gathers`
    cosine-distributed directions per vertex, `bounces` times along the same rays, and smoothed over the surface.
    """
    geometry = Geometry(scenery.parts)
    shader = Shader(geometry, scenery.lights, scenery.exposure)
    thin = np.array([part.material.thin for part in scenery.parts])[geometry.vertex_part]
    direct = _direct(geometry, geometry.normals, scenery.lights, np.arange(len(thin)))
    behind = _direct(geometry, -geometry.normals, scenery.lights, np.flatnonzero(thin))
    direct[thin] = 0.5 * (direct[thin] + behind[thin])
    seen = _gather(geometry, thin, gathers, np.random.default_rng(seed))
    albedo = shader.vertex_albedo(COARSE)
    irradiance = direct
    for _ in range(bounces):
        radiosity = (albedo * irradiance)[geometry.triangles].mean(axis=1)
        outgoing = np.concatenate([radiosity, scenery.sky[None].astype(np.float32)])
        reflected = np.concatenate([outgoing[chunk].mean(axis=1) for chunk in seen])
        irradiance = direct + _smoothed(geometry, reflected)
    shader.set_irradiance(irradiance)
    return shader


def _direct(geometry: Geometry, normals: np.ndarray, lights: list[Lights], index: np.ndarray) -> np.ndarray:
    """[V, 3] irradiance straight from the lights on the side of `normals`, for the vertices `index`; zero elsewhere."""
    points = geometry.vertices[index] + OFFSET * normals[index]
    facing = normals[index]
    total = np.zeros((len(normals), 3), np.float32)
    for light in lights:
        for position, power, outward in zip(light.positions, light.powers, light.facing, strict=True):
            reach = (position[:3] - position[3] * points).astype(np.float32)
            distance = np.linalg.norm(reach, axis=-1)
            strength = np.sum(reach * facing, axis=-1) / distance
            if position[3]:
                strength /= distance**2
            if outward.any():
                strength *= np.maximum(-(reach @ outward.astype(np.float32)) / distance, 0)
            lit = np.flatnonzero(strength > 1e-4)
            lit = lit[~geometry.blocked(points[lit], reach[lit], 1.0 if position[3] else 1e4)]
            total[index[lit]] += strength[lit, None] * power.astype(np.float32)
    return total


def _gather(geometry: Geometry, thin: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which triangle each of `count` cosine-distributed rays per vertex meets, -1 for the sky.

    In chunks [at most CHUNK, count]; the rays of thin sheets leave on both sides.
    """
    k = np.arange(count, dtype=np.float32)
    radius = np.sqrt((k + 0.5) / count)
    height = np.sqrt(1 - radius**2)
    spiral = k * np.float32(np.pi * (3 - np.sqrt(5)))
    result = []
    for start in range(0, len(thin), CHUNK):
        normals = geometry.normals[start : start + CHUNK]
        angle = spiral + rng.random((len(normals), 1), dtype=np.float32) * np.float32(2 * np.pi)
        side, other = _tangents(normals)
        sign = np.where(thin[start : start + CHUNK, None] & (k % 2 == 1), np.float32(-1), np.float32(1))
        directions = (radius * np.cos(angle))[..., None] * side[:, None]
        directions += (radius * np.sin(angle))[..., None] * other[:, None]
        directions += (height * sign)[..., None] * normals[:, None]
        origins = geometry.vertices[start : start + CHUNK, None] + OFFSET * sign[..., None] * normals[:, None]
        hits = geometry.cast(origins.reshape(-1, 3), directions.reshape(-1, 3), opaque_only=True)
        result.append(np.where(hits.hit, hits.triangle, -1).astype(np.int32).reshape(-1, count))
    return result


def _tangents(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors per normal [V, 3] that complete a frame."""
    away = np.where(np.abs(normals[:, :1]) > 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]).astype(np.float32)
    side = np.cross(normals, away)
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    return side, np.cross(normals, side)


def _smoothed(geometry: Geometry, values: np.ndarray, rounds: int = 4) -> np.ndarray:
    """`values` [V, 3], each mixed `rounds` times with its neighbours': the gather rays are few, the truth is smooth."""
    a = geometry.triangles[:, [0, 1, 2]].ravel()
    b = geometry.triangles[:, [1, 2, 0]].ravel()
    size = len(values)
    degree = np.bincount(a, minlength=size) + np.bincount(b, minlength=size) + 1.0
    for _ in range(rounds):
        sums = [
            np.bincount(a, values[b, c], size) + np.bincount(b, values[a, c], size) + values[:, c] for c in range(3)
        ]
        values = np.stack(sums, axis=-1) / degree[:, None]
    return values.astype(np.float32)
