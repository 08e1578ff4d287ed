"""Meshes on disk: what open3d and `eval mesh` read back, pieces, frames."""

import json

import numpy as np
import pytest

from nfc_splat.errors import UserError
from nfc_splat.export.mesh_file import Mesh, large_pieces, write_mesh
from nfc_splat.open3d_loader import load_open3d


def two_balls(offset=0.0):
    """A large ball with 624 triangles and a small one with 80, coloured."""
    open3d = load_open3d()
    parts = [open3d.geometry.TriangleMesh.create_sphere(radius, detail) for radius, detail in ((1.0, 13), (0.1, 5))]
    parts[1].translate([3.0, 0, 0])
    whole = parts[0] + parts[1]
    vertices = np.asarray(whole.vertices) + offset
    colors = np.arange(3 * len(vertices)).reshape(-1, 3) % 256
    return Mesh(vertices, np.asarray(whole.triangles, np.int64), colors.astype(np.uint8))


@pytest.mark.parametrize(("ending", "exact"), [("ply", 0.0), ("obj", 1e-4), ("glb", 1e-4)])
def test_what_is_written_is_read_back(tmp_path, ending, exact):
    """Far from the origin, where six digits are too few; open3d reads OBJ in single precision."""
    mesh, path = two_balls(offset=1000.0), tmp_path / f"mesh.{ending}"
    write_mesh(path, mesh)
    found = load_open3d().io.read_triangle_mesh(str(path))
    assert len(found.triangles) == len(mesh.triangles)
    corners = lambda vertices, triangles: np.asarray(vertices)[np.asarray(triangles)]  # noqa: E731
    expected = corners(mesh.vertices, mesh.triangles)
    np.testing.assert_allclose(corners(found.vertices, found.triangles), expected, atol=exact, rtol=0)
    if ending != "glb":
        read = corners(np.asarray(found.vertex_colors) * 255, found.triangles)
        np.testing.assert_allclose(read, corners(mesh.colors, mesh.triangles), atol=0.1)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_glb_is_as_gltf_says(tmp_path):
    mesh = two_balls()
    write_mesh(tmp_path / "mesh.glb", mesh)
    content = (tmp_path / "mesh.glb").read_bytes()
    assert content[:4] == b"glTF"
    version, length, text_length = np.frombuffer(content[4:16], "<u4")
    assert (version, length, text_length % 4) == (2, len(content), 0)
    assert content[16:20] == b"JSON"
    description = json.loads(content[20 : 20 + text_length])
    binary_length = int(np.frombuffer(content[20 + text_length : 24 + text_length], "<u4")[0])
    assert binary_length == description["buffers"][0]["byteLength"] == len(content) - 28 - text_length
    binary = content[28 + text_length :]
    view = description["bufferViews"][2]
    linear = np.frombuffer(binary[view["byteOffset"] :][: view["byteLength"]], "<u2").reshape(-1, 4) / 65535
    assert (linear[:, 3] == 1).all()
    back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(back[:, :3] * 255, mesh.colors, atol=0.2)
    assert all(view["byteOffset"] % 4 == 0 for view in description["bufferViews"])
    assert description["accessors"][1]["max"] == mesh.vertices.max(0).astype(np.float32).tolist()


def test_pieces():
    mesh = two_balls()
    whole, found, left = large_pieces(mesh, 1, False)
    assert (found, left, len(whole.triangles)) == (2, 2, len(mesh.triangles))
    for chosen in (large_pieces(mesh, 100, False), large_pieces(mesh, 1, True)):
        large, found, left = chosen
        assert (found, left) == (2, 1)
        assert np.abs(np.linalg.norm(large.vertices, axis=1) - 1).max() < 1e-6
        assert len(large.colors) == len(large.vertices) == large.triangles.max() + 1
        np.testing.assert_array_equal(large.colors, mesh.colors[: len(large.colors)])
    assert large_pieces(mesh, 10_000, False)[2] == 0


def test_a_mirror_keeps_the_outside_outside():
    mesh = two_balls()
    outwards = lambda shape: (shape.normals() * shape.vertices)[:100].sum(1)  # noqa: E731
    assert (outwards(mesh) > 0.9).all()
    matrix = np.diag([2.0, -2.0, 2.0, 1.0])
    matrix[:3, 3] = [0, 0, 0.5]
    moved = mesh.moved(matrix)
    np.testing.assert_allclose(moved.vertices, mesh.vertices * [2, -2, 2] + [0, 0, 0.5])
    assert ((moved.normals() * (moved.vertices - [0, 0, 0.5]))[:100].sum(1) > 1.8).all()


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "mesh.ply").mkdir()
    (tmp_path / "mesh.ply" / "occupied").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*mesh\.ply"):
        write_mesh(tmp_path / "mesh.ply", two_balls())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "mesh.ply"]
