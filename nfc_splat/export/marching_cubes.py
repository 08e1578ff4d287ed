"""Surfaces of functions on a lattice, in blocks, by open3d's flying edges (marching cubes, Lorensen and Cline 1987).

What is in memory is one batch of blocks and the mesh so far, never the lattice. Blocks share the nodes of their faces,
so both sides of a face compute the same vertices, bit for bit, and these are made one. Wherever the surface leaves a
block it is followed into the next: a part of the surface that meets any block asked for comes out whole.

Symbols: n blocks of B^3 cells and (B + 1)^3 nodes; V vertices, T triangles. Lattice coordinates count cells from the
lattice's lowest corner.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nfc_splat.open3d_loader import load_open3d

BLOCK = 32  # B
NODES = BLOCK + 1
BATCH = 32  # blocks whose values are asked for at once: 1.15 million points

# [n, 3] int64 blocks -> [n, NODES, NODES, NODES] float32, NaN where the function is not known
Sampler = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Lattice:
    """Cubic cells that cover a box.

    Attributes:
        low: [3] float64, the first node.
        cell: side of a cell.
        cells: [3] int64, how many along each axis.
    """

    low: np.ndarray
    cell: float
    cells: np.ndarray

    @classmethod
    def over(cls, bounds: np.ndarray, cell: float) -> "Lattice":
        """Cells that cover `bounds` [2, 3]; the last ones may reach beyond it by less than a cell."""
        low, high = np.asarray(bounds, np.float64)
        return cls(low, cell, np.maximum(np.ceil((high - low) / cell - 1e-6), 1).astype(np.int64))

    @property
    def blocks(self) -> np.ndarray:
        """[3] blocks along each axis."""
        return -(-self.cells // BLOCK)

    def corners(self, blocks: np.ndarray) -> np.ndarray:
        """[n, 3] the first nodes of blocks [n, 3]."""
        return self.low + blocks * (BLOCK * self.cell)

    def nodes(self, blocks: np.ndarray) -> np.ndarray:
        """[n NODES^3, 3] float64 the nodes of blocks [n, 3], the last axis fastest."""
        steps = self.cell * np.arange(NODES)
        grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(1, -1, 3)
        return (self.corners(blocks)[:, None] + grid).reshape(-1, 3)

    def outside(self, block: np.ndarray) -> tuple[slice, slice, slice] | None:
        """How many nodes of a block [3] belong to the lattice, as slices; None if all do."""
        left = np.minimum(self.cells - block * BLOCK, BLOCK) + 1
        return None if (left == NODES).all() else tuple(slice(0, int(count)) for count in left)


def extract_surface(
    lattice: Lattice,
    sampler: Sampler,
    level: float,
    seeds: np.ndarray,  # [n, 3] int64
    advance: Callable[[int, int], None] = lambda done, known: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The surface where the sampled function is `level`, seen from where it is smaller.

    A cell with an unknown node has no surface, and the surface ends at the lattice's border.

    Args:
        lattice: where.
        sampler: gives the values of a batch of blocks.
        level: of the surface; matter is where values are larger.
        seeds: the blocks to begin with.
        advance: hears how many blocks are done, of how many known so far.

    Returns:
        Vertices [V, 3] float64 in the lattice's frame and triangles [T, 3] int64, counter-clockwise seen from outside.
    """
    waiting = [tuple(block) for block in np.asarray(seeds).tolist()]
    known, done, parts = set(waiting), 0, []
    while done < len(waiting):
        batch = np.array(waiting[done : done + BATCH], np.int64)
        values = sampler(batch)
        for block, here in zip(batch, values, strict=True):
            if inside := lattice.outside(block):
                kept = np.full_like(here, np.nan)
                kept[inside] = here[inside]
                here[...] = kept
            if part := _triangles(here, level):
                parts.append((part[0] + block * BLOCK, part[1]))
        for neighbour in _continuations(batch, values, level, lattice.blocks):
            if neighbour not in known:
                known.add(neighbour)
                waiting.append(neighbour)
        done += len(batch)
        advance(done, len(waiting))
    vertices, triangles = _welded(parts)
    return lattice.low + lattice.cell * vertices, triangles


def _triangles(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices in cells of the block and triangles of one block [NODES, NODES, NODES]; None without any."""
    above = values >= level  # as open3d decides; false where unknown
    unknown = np.isnan(values)
    if not above.any() or (above | unknown).all():
        return None
    core, geometry = _open3d()
    filled = np.where(unknown, np.float32(level - 1), values) if unknown.any() else values
    mesh = geometry.TriangleMesh.create_isosurfaces(core.Tensor.from_numpy(np.ascontiguousarray(filled)), [level])
    # open3d's x is the last axis: reversed columns mirror the mesh, reversed corners mirror it back.
    vertices = mesh.vertex.positions.numpy()[:, ::-1].astype(np.float64)
    triangles = mesh.triangle.indices.numpy()[:, ::-1]
    if unknown.any():
        cells = np.floor(vertices[triangles].mean(1)).astype(np.int64)
        triangles = triangles[~_unknown_cells(unknown)[tuple(cells.clip(0, BLOCK - 1).T)]]
    return (vertices, triangles.astype(np.int64)) if len(triangles) else None


def _open3d() -> tuple[Any, Any]:
    open3d = load_open3d()
    return open3d.core, open3d.t.geometry


def _unknown_cells(unknown: np.ndarray) -> np.ndarray:
    """[B, B, B] whether a cell has an unknown node."""
    ends = (slice(None, -1), slice(1, None))
    return np.logical_or.reduce([unknown[corner] for corner in itertools.product(ends, ends, ends)])


def _continuations(blocks: np.ndarray, values: np.ndarray, level: float, count: np.ndarray) -> list[tuple[int, ...]]:
    """The blocks behind those faces that the surface crosses, in the lattice's order; `count` [3] blocks there are."""
    found = []
    for axis in range(3):
        for side, step in ((0, -1), (BLOCK, 1)):
            face = values.take(side, axis + 1)
            crossed = (face >= level).any((1, 2)) & (face < level).any((1, 2))
            beyond = blocks[crossed]
            beyond[:, axis] += step
            found.append(beyond[((beyond >= 0) & (beyond < count)).all(1)])
    return [tuple(block) for block in np.unique(np.concatenate(found), axis=0).tolist()]


def _welded(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """One mesh of the blocks' in lattice coordinates, with vertices at the same place made one.

    Those are the vertices on faces of blocks, which both sides have, and vertices at nodes, where the function is
    exactly `level` and several edges have theirs. Triangles that shrink to an edge or a point go.
    """
    if not parts:
        return np.empty((0, 3)), np.empty((0, 3), np.int64)
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    vertices = np.concatenate([vertices for vertices, _ in parts])
    triangles = np.concatenate([part + start for (_, part), start in zip(parts, starts[:-1], strict=True)])
    shared = (vertices % BLOCK == 0).any(1) | (vertices == np.floor(vertices)).all(1)
    rows = np.flatnonzero(shared)
    _, first, inverse = np.unique(vertices[rows], axis=0, return_index=True, return_inverse=True)
    target = np.arange(len(vertices))
    target[rows] = rows[first[inverse.reshape(-1)]]
    triangles = target[triangles]
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (c != a)]
    used = np.zeros(len(vertices), bool)
    used[triangles] = True
    return vertices[used], (np.cumsum(used) - 1)[triangles]
