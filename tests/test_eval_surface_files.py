"""Mesh files: every format and encoding, and every way in which a file can be less than it says."""

import json
import struct

import numpy as np
import pytest
from geometry_toys import box_mesh, open3d_or_skip, write_mesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfc_splat.errors import UserError
from nfc_splat.eval.surface import clean_surface, sample_surface, to_open3d
from nfc_splat.eval.surface_files import fans, read_surface

XYZ = "property float x\nproperty float y\nproperty float z\n"
LIST = "property list uchar int vertex_indices\n"
CORNERS = np.array([[0, 0, 0], [2, 0, 0], [2, 3, 0], [0, 3, 0], [0, 0, 1.0]])
POLYGONS = ([0, 1, 2, 3], [0, 1, 4], [3, 2, 4])  # areas 6, 1 and sqrt(10)
AREA = 6 + 1 + np.sqrt(10)


def ply_header(encoding, vertices=5, faces=3, vertex=XYZ, face=LIST):
    return f"ply\nformat {encoding} 1.0\nelement vertex {vertices}\n{vertex}element face {faces}\n{face}end_header\n"


def binary_faces(order, polygons=POLYGONS):
    return b"".join(struct.pack(f"{order}B{len(p)}i", len(p), *p) for p in polygons)


def text_rows(rows):
    return "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows)


def polygon_files():
    """The same five corners and three polygons, by name."""
    numbered = [[len(polygon), *polygon] for polygon in POLYGONS]
    text = text_rows(CORNERS) + text_rows(numbered)
    files = {"ascii.ply": (ply_header("ascii") + text).encode()}
    files["crlf.ply"] = files["ascii.ply"].replace(b"\n", b"\r\n")
    for name, order in (("little", "<"), ("big", ">")):
        header = ply_header(f"binary_{name}_endian").encode()
        files[f"{name}.ply"] = header + CORNERS.astype(f"{order}f4").tobytes() + binary_faces(order)
    files["plain.off"] = f"OFF\n5 3 0\n# corners\n{text}".encode()
    files["colours.off"] = (
        f"COFF 5 3 0\n{text_rows(np.c_[CORNERS, np.full((5, 4), 255)])}{text_rows(numbered)}".encode()
    )
    faces = "".join("f " + " ".join(f"{corner + 1}//1" for corner in polygon) + "\n" for polygon in POLYGONS)
    files["plain.obj"] = ("".join(f"v {row}\n" for row in text_rows(CORNERS).splitlines()) + faces).encode()
    return files


# ------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("name", polygon_files())
def test_polygons_are_cut_into_triangles(tmp_path, name):
    (tmp_path / name).write_bytes(polygon_files()[name])
    surface = read_surface(tmp_path / name)
    assert surface.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4], [3, 2, 4]]
    assert surface.faces.dtype == np.int32
    np.testing.assert_array_equal(surface.vertices, CORNERS)
    assert surface.areas().sum() == pytest.approx(AREA)


def test_a_polygon_becomes_a_fan_and_a_line_nothing():
    corners = np.array([5, 6, 7, 8, 9, 0, 1, 2, 3, 4])
    assert fans(np.array([5, 2, 3]), corners).tolist() == [[5, 6, 7], [5, 7, 8], [5, 8, 9], [2, 3, 4]]
    assert fans(np.array([1, 2]), corners[:3]).shape == (0, 3)


def test_properties_and_elements_that_are_not_needed_are_passed_over(tmp_path):
    """A camera before, colours and normals beside, texture coordinates and a material in the faces, edges behind."""
    header = "ply\nformat binary_little_endian 1.0\ncomment element face 7\nelement camera 1\nproperty double fov\n"
    header += f"element vertex 4\n{XYZ}property float nx\nproperty uchar red\nelement face 2\nproperty short material\n"
    header += f"property list uchar float texcoord\n{LIST}element edge 1\nproperty int vertex1\nend_header\n"
    square = CORNERS[:4]
    body = struct.pack("<d", 0.5) + b"".join(struct.pack("<4fB", *row, 0.25, 200) for row in square)
    uniform = b"".join(struct.pack("<hB6fB3i", 7, 6, *range(6), 3, *face) for face in ([0, 1, 2], [0, 2, 3]))
    ragged = struct.pack("<hB6fB3i", 7, 6, *range(6), 3, 0, 1, 2) + struct.pack("<hBB3i", 7, 0, 3, 0, 2, 3)
    for faces in (uniform, ragged):
        (tmp_path / "rich.ply").write_bytes(header.encode() + body + faces + struct.pack("<i", 3))
        surface = read_surface(tmp_path / "rich.ply")
        assert surface.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
        np.testing.assert_array_equal(surface.vertices, square)


def test_texts_may_hold_what_is_not_finite(tmp_path):
    text = "nan 0 0\ninf 0 0\n-inf 0 0\n1e400 0 0\n0.5 0 0\n"
    (tmp_path / "cloud.ply").write_text(ply_header("ascii", faces=0) + text)
    (tmp_path / "cloud.xyz").write_text("# a cloud\n" + text)
    for name in ("cloud.ply", "cloud.xyz"):
        surface, dropped = clean_surface(read_surface(tmp_path / name))
        assert surface.vertices.tolist() == [[0.5, 0, 0]]
        assert dropped["bad_vertices"] == 4


def test_vertices_without_faces_are_a_cloud(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 2 3\n")
    (tmp_path / "a.off").write_text("OFF\n2 0 0\n0 0 0\n1 2 3\n")
    (tmp_path / "a.ply").write_text(ply_header("ascii", 2, 0) + "0 0 0\n1 2 3\n")
    (tmp_path / "a.xyz").write_text("0 0 0 255\n1 2 3 0\n")
    for suffix in ("obj", "off", "ply", "xyz"):
        surface = read_surface(tmp_path / f"a.{suffix}")
        assert surface.is_cloud
        assert surface.vertices.tolist() == [[0, 0, 0], [1, 2, 3]]


def test_an_obj_of_polygons_and_triangles_is_read_whole(tmp_path):
    text = "# mixed\nv 0 0 0\nv 2 0 0\nv 2 3 0 1\nv 0 3 0\nvn 0 0 1\nf 1//1 2//1 \\\n3//1 4//1  # a quad\n"
    text += "v 0 0 1\nv 1 0 1\nv 0 1 1\nf -3 -2 -1\nv 1 1 2\nv 2 1 2\nv 3 2 2\nv 2 3 2\nv 1 2 2\nf 8 9 10 11 12\n"
    (tmp_path / "mixed.obj").write_text(text)
    surface = read_surface(tmp_path / "mixed.obj")
    assert len(surface.faces) == 2 + 1 + 3
    assert surface.areas().sum() == pytest.approx(6 + 0.5 + 2.5)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".stl", ".off", ".glb"])
def test_meshes_are_read_in_every_format(tmp_path, suffix):
    surface = box_mesh((1, 2, 3), 2)
    if suffix == ".stl":  # which open3d writes with normals alone
        mesh = to_open3d(surface).compute_triangle_normals()
        assert open3d_or_skip().io.write_triangle_mesh(str(tmp_path / "box.stl"), mesh)
    elif suffix == ".glb":
        write_glb(tmp_path / "box.glb", surface)
    else:
        write_mesh(tmp_path / f"box{suffix}", surface)
    read = read_surface(tmp_path / f"box{suffix}")
    assert len(read.faces) == len(surface.faces)
    assert read.areas().sum() == pytest.approx(22, rel=1e-5)
    np.testing.assert_allclose(read.bounds(), [[0, 0, 0], [1, 2, 3]], atol=1e-6)


def write_glb(path, surface):
    """The least that glTF 2.0 asks of a binary file, with the mesh under a moved node."""
    positions, indices = surface.vertices.astype("<f4") - np.float32(1), surface.faces.astype("<u4")
    binary = indices.tobytes() + positions.tobytes()
    views = [
        {"buffer": 0, "byteLength": indices.nbytes},
        {"buffer": 0, "byteOffset": indices.nbytes, "byteLength": positions.nbytes},
    ]
    span = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    accessors = [
        {"bufferView": 0, "componentType": 5125, "count": indices.size, "type": "SCALAR"},
        {"bufferView": 1, "componentType": 5126, "count": len(positions), "type": "VEC3", **span},
    ]
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": [1, 1, 1]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 1}, "indices": 0}]}],
        "buffers": [{"byteLength": len(binary)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def test_clouds_are_read_with_their_normals(tmp_path):
    open3d = open3d_or_skip()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(np.random.default_rng(0).random((40, 3))))
    cloud.normals = open3d.utility.Vector3dVector(np.tile([[0.0, 0, 2]], (40, 1)))
    open3d.io.write_point_cloud(str(tmp_path / "cloud.ply"), cloud)
    surface, _ = clean_surface(read_surface(tmp_path / "cloud.ply"))
    assert surface.is_cloud
    assert len(sample_surface(surface, 7, 0)) == 40
    np.testing.assert_allclose(surface.normals, np.tile([[0.0, 0, 1]], (40, 1)))


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", [name for name in polygon_files() if not name.endswith("obj")])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, name):
    """open3d would fill what is missing with whatever the memory holds."""
    whole = polygon_files()[name]
    (tmp_path / name).write_bytes(whole)
    expected = read_surface(tmp_path / name)
    for length in range(len(whole.rstrip())):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read_surface(tmp_path / name)
    (tmp_path / name).write_bytes(whole.rstrip(b"\n") if whole.isascii() and "little" not in name else whole)
    assert np.array_equal(read_surface(tmp_path / name).faces, expected.faces)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(polygon_files())),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_spoilt_file_is_read_or_refused_and_nothing_else(tmp_path, name, changes):
    content = bytearray(polygon_files()[name])
    for place, value in changes:
        content[int(place * len(content))] = value
    (tmp_path / name).write_bytes(content)
    try:
        surface = read_surface(tmp_path / name)
    except UserError:
        return
    assert surface.is_cloud or 0 <= surface.faces.min(initial=0) <= surface.faces.max(initial=0) < 5 + 10**6


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize(("vertices", "faces"), [(2_000_000_000, 1), (5, 2_000_000_000), (10**30, 10**30)])
def test_counts_that_the_file_cannot_hold_cost_nothing(tmp_path, encoding, vertices, faces):
    (tmp_path / "huge.ply").write_bytes(ply_header(encoding, vertices, faces).encode() + bytes(60))
    if encoding == "ascii":
        (tmp_path / "huge.ply").write_text(ply_header(encoding, vertices, faces) + text_rows(CORNERS))
    with pytest.raises(UserError, match=r"huge\.ply: (is cut off: it has|has a list of)"):
        read_surface(tmp_path / "huge.ply")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.ply", None, "no such file; expected a mesh or a point cloud in one of .ply"),
        ("mesh.blend", "x", "files ending in .blend are not read; expected one of .ply"),
        ("mesh", "x", "files without an ending are not read"),
        ("noise.ply", "this is no mesh", "is not PLY: expected a header"),
        ("noise.off", "this is no mesh", "is not OFF"),
        ("four.off", "4OFF\n0 0 0\n", "is 4OFF, expected OFF with three coordinates"),
        ("noise.stl", "this is no mesh", "open3d finds no mesh in it"),
        ("noise.glb", "this is no mesh", "open3d finds no mesh in it"),
        ("noise.xyz", "1 2 3\nthis is no point", "line 2 is not XYZ"),
        ("zero.obj", "v 0 0 0\nf 1 1 0\n", r"line 2 is not OBJ \(corners are counted from 1\)"),
        ("short.obj", "v 0 0\n", "line 1 is not OBJ"),
        ("huge.obj", f"v 0 0 0\nf 1 1 {10**30}\n", "faces name vertices 0 to 9"),
        ("huge.off", "OFF\n2000000000 4 0\n0 0 0\n", "is cut off: 2000000000 vertices and 4 faces are stated"),
        ("words.ply", ply_header("ascii", "many"), "has the PLY header line 'element vertex many'"),
        ("minus.ply", ply_header("ascii", -4), "has the PLY header line 'element vertex -4'"),
        ("format.ply", ply_header("utf-8"), "has the PLY header line 'format utf-8 1.0'"),
        (
            "flat.ply",
            ply_header("ascii", vertex=XYZ.replace("z", "w")) + "0 " * 40,
            "no element 'vertex' with x, y and z",
        ),
        ("twice.ply", ply_header("ascii", vertex=XYZ + "property float x\n") + "0 " * 40, "two properties of one name"),
        ("other.ply", ply_header("ascii", face="property int corner\n") + "0 " * 40, "faces have corner, expected"),
        ("list.ply", ply_header("ascii", 1, 1) + "0 0 0 -3 0 0 0\n", "has a list of -3 numbers in row 0 of 'face'"),
        ("nan.ply", ply_header("ascii", 1, 2) + "0 0 0 1 0 nan 0\n", "has a list of nan numbers in row 1 of 'face'"),
        ("text.ply", ply_header("ascii", 1, 0) + "0 zero 0\n", "something that is no number"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(tmp_path, name, text, message):
    open3d_or_skip()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_surface(tmp_path / name)


def test_triangle_strips_are_no_cloud(tmp_path):
    header = ply_header("ascii", 3, 0).replace("end_header", f"element tristrips 1\n{LIST}end_header")
    (tmp_path / "strips.ply").write_text(header + "0 0 0 1 0 0 0 1 0\n3 0 1 2\n")
    with pytest.raises(UserError, match="holds triangle strips, expected faces"):
        read_surface(tmp_path / "strips.ply")


def test_a_folder_is_called_a_folder(tmp_path):
    (tmp_path / "mesh.ply").mkdir()
    with pytest.raises(UserError, match=r"mesh\.ply: is a folder; expected a mesh"):
        read_surface(tmp_path / "mesh.ply")


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize("corner", [9, -1])
def test_faces_that_name_absent_vertices_are_refused(tmp_path, encoding, corner):
    body = f"0 0 0\n1 0 0\n0 1 0\n3 0 1 {corner}\n".encode()
    if encoding != "ascii":
        body = CORNERS[:3].astype("<f4").tobytes() + binary_faces("<", [[0, 1, corner]])
    (tmp_path / "bad.ply").write_bytes(ply_header(encoding, 3, 1).encode() + body)
    expected = "-1 to 1" if corner < 0 else "0 to 9"
    with pytest.raises(UserError, match=f"faces name vertices {expected}, the file has 3; export the mesh again"):
        read_surface(tmp_path / "bad.ply")
