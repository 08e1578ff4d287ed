"""Blocked, coarse-to-fine marching cubes: closed forms, seams, what is asked of the field, memory, empty level sets."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from export_scenes import area_and_volume, is_closed

from nfc_splat.errors import UserError
from nfc_splat.export.level_sets import LevelSetSampler, level_set_mesh
from nfc_splat.export.marching_cubes import BLOCK, NODES, Lattice, extract_surface
from nfc_splat.rendering.level_set import LevelSet

UNIT = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
CPU = torch.device("cpu")


class Counted:
    """A field that counts the points it is asked at."""

    def __init__(self, function):
        self.function, self.asked, self.most = function, 0, 0

    def __call__(self, points):
        self.asked, self.most = self.asked + len(points), max(self.most, len(points))
        return self.function(points)


def sphere(radius, center=(0.0, 0.0, 0.0)):
    return lambda points: radius - (points - torch.tensor(center)).norm(dim=1)


def torus(large, small):
    return lambda p: small - ((p[:, :2].norm(dim=1) - large).square() + p[:, 2].square()).sqrt()


def mesh_of(function, resolution, bounds=UNIT, level=0.0):
    lattice = Lattice.over(bounds.numpy(), float((bounds[1] - bounds[0]).max()) / resolution)
    return level_set_mesh(LevelSet(function, level, bounds), lattice, CPU)


SOLIDS = {
    "sphere": (sphere(0.7), 4 * math.pi * 0.7**2, 4 / 3 * math.pi * 0.7**3, 2),
    "sphere through nodes": (sphere(0.75), 4 * math.pi * 0.75**2, 4 / 3 * math.pi * 0.75**3, 2),
    "sphere in one block": (sphere(0.2, (0.4, -0.5, 0.3)), 4 * math.pi * 0.2**2, 4 / 3 * math.pi * 0.2**3, 2),
    "torus": (torus(0.6, 0.25), 4 * math.pi**2 * 0.6 * 0.25, 2 * math.pi**2 * 0.6 * 0.25**2, 0),
}


@pytest.mark.parametrize("resolution", [80, 128])
@pytest.mark.parametrize("name", SOLIDS)
def test_closed_forms(name, resolution):
    """Area and volume within 1 %, one closed surface of the right genus, facing outwards: no seam between blocks."""
    function, area, volume, euler = SOLIDS[name]
    vertices, triangles = mesh_of(function, resolution)
    found_area, found_volume = area_and_volume(vertices, triangles)
    assert found_area == pytest.approx(area, rel=0.01)
    assert found_volume == pytest.approx(volume, rel=0.01)
    assert is_closed(triangles)
    assert len(vertices) - len(triangles) // 2 == euler  # V - E + F with E = 3 F / 2
    assert len(np.unique(vertices, axis=0)) == len(vertices)
    values = function(torch.from_numpy(vertices))
    assert values.abs().max() < 0.1 * 2 / resolution


def test_blocks_do_not_show():
    """The mesh is that of the whole lattice at once: the same vertices and as many triangles."""
    from nfc_splat.open3d_loader import load_open3d

    open3d = load_open3d()
    function, cells = sphere(0.71, (0.05, -0.02, 0.01)), 3 * BLOCK
    axis = torch.linspace(-1, 1, cells + 1, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values = function(grid.float()).reshape(3 * (cells + 1,)).permute(2, 1, 0).contiguous().numpy()
    whole = open3d.t.geometry.TriangleMesh.create_isosurfaces(open3d.core.Tensor(values), [0.0])
    expected = whole.vertex.positions.numpy().astype(np.float64) * 2 / cells - 1
    vertices, triangles = mesh_of(function, cells)
    assert len(triangles) == len(whole.triangle.indices)
    assert len(vertices) == len(expected)
    clouds = [open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points)) for points in (vertices, expected)]
    for one, other in (clouds, clouds[::-1]):
        assert np.asarray(one.compute_point_cloud_distance(other)).max() < 1e-5


def test_far_from_the_origin_and_off_the_lattice():
    bounds = torch.tensor([[999.0, 99.3, -0.7], [1001.0, 100.9, 0.8]])
    vertices, triangles = mesh_of(sphere(0.5, (1000.0, 100.0, 0.0)), 90, bounds)
    assert area_and_volume(vertices, triangles)[1] == pytest.approx(math.pi / 6, rel=0.01)
    np.testing.assert_allclose(vertices.mean(0), [1000, 100, 0], atol=5e-3)
    assert is_closed(triangles)


def test_the_surface_ends_at_the_box():
    bounds = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 0.1]])
    vertices, triangles = mesh_of(sphere(0.7), 100, bounds)
    assert not is_closed(triangles)
    assert 0.1 <= vertices[:, 2].max() <= 0.1 + 0.02 + 1e-9  # to the last cell
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.7).max() < 1e-3


@pytest.mark.parametrize("slope", [0.5, 1.0, 3.0])
def test_coarse_to_fine_asks_for_a_part_of_the_lattice(slope):
    """Signed distances of any even slope: all of the surface, a fraction of the lattice, in batches of a few blocks."""
    function = Counted(lambda points: slope * sphere(0.7)(points))
    vertices, triangles = mesh_of(function, 256)
    assert is_closed(triangles)
    assert area_and_volume(vertices, triangles)[0] == pytest.approx(4 * math.pi * 0.49, rel=0.01)
    assert function.asked < 0.45 * 257**3
    assert function.most <= 32 * NODES**3


def test_blocks_far_from_a_distance_are_left_out():
    lattice = Lattice.over(UNIT.numpy(), 2 / 256)
    sampler = LevelSetSampler(LevelSet(sphere(0.1, (0.51, 0.52, 0.53)), 0.0, UNIT), lattice, CPU)
    assert len(sampler.near_surface()) <= 27
    assert sampler.low < -1.5
    assert sampler.high > 0


def test_the_surface_is_followed_out_of_the_first_block():
    """From one block of a long thin bar, found by whatever means, all of it comes out."""
    half = torch.tensor([0.95, 0.04, 0.04])
    bar = lambda points: -((points.abs() - half).amax(1))  # noqa: E731
    lattice = Lattice.over(UNIT.numpy(), 2 / 128)
    sampler = LevelSetSampler(LevelSet(bar, 0.0, UNIT), lattice, CPU)
    vertices, triangles = extract_surface(lattice, sampler, 0.0, np.array([[0, 2, 2]]))
    assert is_closed(triangles)
    np.testing.assert_allclose([vertices.min(0), vertices.max(0)], [-half.numpy(), half.numpy()], atol=1e-5)


def test_a_density_at_a_level():
    """A soft ball: the surface is where the density falls to the level, not where it begins."""
    density = lambda points: 40 * torch.sigmoid(20 * (0.6 - points.norm(dim=1)))  # noqa: E731
    radius = 0.6 - math.log(40 / 10 - 1) / -20
    vertices, triangles = mesh_of(density, 100, level=10.0)
    assert is_closed(triangles)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), radius, atol=2e-3)


def test_unknown_nodes_have_no_surface():
    """Half of a ball unknown: the other half comes out, ending a cell before."""
    lattice = Lattice.over(UNIT.numpy(), 2 / 64)
    ball = LevelSetSampler(LevelSet(sphere(0.7), 0.0, UNIT), lattice, CPU)

    def sampler(blocks):
        values, nodes = ball(blocks), lattice.nodes(blocks)
        values[nodes[:, 0].reshape(values.shape) > 0.2] = np.nan
        return values

    vertices, triangles = extract_surface(lattice, sampler, 0.0, np.array([[0, 0, 0]]))
    full, _ = extract_surface(lattice, ball, 0.0, np.array([[0, 0, 0]]))
    expected = full[full[:, 0] <= 0.1875 + 1e-9]
    assert len(vertices) == len(expected)
    assert vertices[:, 0].max() == pytest.approx(0.1875, abs=0.04)
    assert not is_closed(triangles)


@pytest.mark.parametrize(
    ("function", "level", "said"),
    [
        (sphere(0.7), 3.0, r"--level 3: .* between -1\.\d+ and 0\.\d+ in the box; try --level -0\."),
        (lambda points: 0 * points[:, 0], 1.0, "same everywhere"),
        (sphere(-0.7), 0.0, r"--level 0: .* in the box; give --bounds that hold the surface, or smaller voxels, or"),
    ],
)
def test_an_empty_level_set_says_the_range(function, level, said):
    with pytest.raises(UserError, match=said):
        mesh_of(function, 64, level=level)


def test_the_level_to_try_is_not_empty():
    with pytest.raises(UserError) as failed:
        mesh_of(sphere(0.7), 64, level=3.0)
    level = float(str(failed.value).partition("try --level ")[2].partition(",")[0])
    assert len(mesh_of(sphere(0.7), 64, level=level)[1]) > 0


def test_a_field_that_is_not_finite_is_refused():
    with pytest.raises(UserError, match=r"not finite at .* diverged"):
        mesh_of(lambda points: torch.where(points[:, 0] > 0, torch.nan, 0.7 - points.norm(dim=1)), 64)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_follows_the_blocks():
    """Eight times the cells (280 MB of values and positions more, were they all held) cost less than 100 MB."""
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
import torch
from test_export_marching_cubes import mesh_of, sphere
mesh_of(sphere(0.3), int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, size], capture_output=True, text=True, check=True).stdout)
        for size in ("128", "256")
    ]
    assert peaks[1] - peaks[0] < 100 * 1024
