"""Colours of surface points: mip-mapped textures, baked irradiance, highlights.

Symbols: R rays, T triangles, V vertices, M materials, G glossy hits, L lights.
"""

import numpy as np
from PIL import Image

from nfc_splat.scenery.casting import OFFSET, Geometry, Hits
from nfc_splat.scenery.scene import Lights
from nfc_splat.scenery.textures import Texture


class Atlas:
    """Every texture of a scene with its coarser copies, in one array, for look-ups of mixed materials."""

    LEVELS = 7

    def __init__(self, textures: list[Texture]):
        """Stack the pyramids of `textures`, one per material."""
        self.period = np.array([texture.period for texture in textures], np.float32)  # [M, 2]
        self.texel = np.array([t.period[0] / t.image.shape[1] for t in textures], np.float32)  # [M] metres
        self.height, self.width, self.start = np.empty((3, len(textures), self.LEVELS), np.int32)
        stacks: list[np.ndarray] = []
        known: dict[int, int] = {}
        total = 0
        for m, texture in enumerate(textures):
            if (first := known.setdefault(id(texture), m)) != m:
                for table in (self.height, self.width, self.start):
                    table[m] = table[first]
                continue
            for level, image in enumerate(_pyramid(texture.image, self.LEVELS)):
                (self.height[m, level], self.width[m, level]), self.start[m, level] = image.shape[:2], total
                stacks.append(image.reshape(-1, 3))
                total += len(stacks[-1])
        self.texels = np.concatenate(stacks)

    def look_up(self, material: np.ndarray, uvs: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """[R, 3] colours, bilinear, from the level whose texels are about `footprint` [R] metres."""
        ratio = np.maximum(footprint / self.texel[material], 1.0)
        level = np.minimum(np.frexp(ratio * np.float32(0.70710678))[1], self.LEVELS - 1)
        level = np.maximum(level, 0)
        height, width, start = (table[material, level] for table in (self.height, self.width, self.start))
        position = uvs / self.period[material]
        position -= np.floor(position)
        column, across = _split(position[:, 0], width)
        row, along = _split(position[:, 1], height)
        columns, rows = _wrapped(column, width), _wrapped(row, height)
        lines = [start + row * width for row in rows]
        fetch = [self.texels[line + column] for line in lines for column in columns]
        low = fetch[0] + across * (fetch[1] - fetch[0])
        high = fetch[2] + across * (fetch[3] - fetch[2])
        return low + along * (high - low)


def _split(position: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The texel [R] at or below `position` in [0, 1), -1 before the first one's centre, and how far [R, 1] past it."""
    place = position * size.astype(np.float32) - np.float32(0.5)
    below = np.floor(place)
    return below.astype(np.int32), (place - below)[:, None]


def _wrapped(index: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`index` in [-1, size) and its successor, both wrapped into [0, size)."""
    following = index + 1
    return np.where(index < 0, index + size, index), np.where(following >= size, following - size, following)


def _pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """`image` [H, W, 3] and its successive halvings, area-averaged."""
    result = [np.ascontiguousarray(image, np.float32)]
    while len(result) < levels:
        height, width = result[-1].shape[:2]
        size = max(1, width // 2), max(1, height // 2)
        channels = [Image.fromarray(np.ascontiguousarray(result[-1][..., c])) for c in range(3)]
        result.append(np.stack([np.asarray(c.resize(size, Image.Resampling.BOX)) for c in channels], axis=-1))
    return result


class Shader:
    """Colours of surface points, once light is baked."""

    def __init__(self, geometry: Geometry, lights: list[Lights], exposure: float):
        """Prepare the textures of `geometry`, unlit until `set_irradiance`."""
        self.geometry = geometry
        self.exposure = np.float32(exposure)
        materials = [part.material for part in geometry.parts]
        self.atlas = Atlas([material.texture for material in materials])
        self.emission = np.array([material.emission for material in materials], np.float32)
        self.gloss = np.array([material.gloss for material in materials], np.float32)
        self.shininess = np.array([material.shininess for material in materials], np.float32)
        self._corner_normals = geometry.normals[geometry.triangles]
        self._lights = [
            (position.astype(np.float32), power.astype(np.float32))
            for light in lights
            for position, power in zip(light.positions, light.powers, strict=True)
        ]
        self.set_irradiance(np.zeros_like(geometry.vertices))

    def set_irradiance(self, irradiance: np.ndarray) -> None:
        """Light the vertices by `irradiance` [V, 3]."""
        self.irradiance = irradiance.astype(np.float32)
        values = np.concatenate([self.geometry.uvs, self.irradiance], axis=1)
        self._corners = values[self.geometry.triangles]  # [T, 3, 5]

    def vertex_albedo(self, footprint: float) -> np.ndarray:
        """[V, 3] diffuse colours at the vertices, averaged over about `footprint` metres."""
        size = np.full(len(self.geometry.vertices), footprint, np.float32)
        return self.atlas.look_up(self.geometry.vertex_part, self.geometry.uvs, size)

    def vertex_emission(self) -> np.ndarray:
        """[V, 1] emission at the vertices."""
        return self.emission[self.geometry.vertex_part][:, None]

    def diffuse(self, hits: Hits, footprint: np.ndarray) -> np.ndarray:
        """[R, 3] radiance leaving the hits, the same in every direction."""
        part = self.geometry.triangle_part[hits.triangle]
        values = hits.interpolate(self._corners)
        albedo = self.atlas.look_up(part, values[:, :2], footprint)
        return albedo * (values[:, 2:] + self.emission[part][:, None])

    def highlights(self, hits: Hits, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What glossy surfaces add to the light towards the viewer at `origin` [3]: a Blinn-Phong lobe per light.

        Returns:
            The indices [G] of the glossy hits, and their highlights [G, 3].
        """
        part = self.geometry.triangle_part[hits.triangle]
        chosen = np.flatnonzero((self.gloss[part] > 0) & hits.hit)
        glossy, part = hits.pick(chosen), part[chosen]
        normals = _unit(glossy.interpolate(self._corner_normals))
        reach = directions[chosen] * glossy.distance[:, None]
        points = origin.astype(np.float32) + reach + OFFSET * normals
        towards = -_unit(reach)
        total = np.zeros_like(points)
        for position, power in self._lights:
            total += self._lobe(points, normals, towards, self.shininess[part], position)[:, None] * power
        return chosen, total * self.gloss[part][:, None]

    def _lobe(
        self, points: np.ndarray, normals: np.ndarray, towards: np.ndarray, sharp: np.ndarray, position: np.ndarray
    ) -> np.ndarray:
        """[G] highlight of one light of power 1, nothing where it is hidden."""
        reach = position[:3] - position[3] * points
        distance = np.linalg.norm(reach, axis=-1)
        light = reach / distance[:, None]
        cosine = np.maximum(np.sum(_unit(light + towards) * normals, axis=-1), 0)
        lobe = (sharp + 8) / 8 * cosine**sharp * np.maximum(np.sum(light * normals, axis=-1), 0)
        if position[3]:
            lobe /= distance**2
        shown = np.flatnonzero(lobe > 1e-3)
        lobe[shown[self.geometry.blocked(points[shown], reach[shown], 1.0 if position[3] else 1e4)]] = 0
        return lobe


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
