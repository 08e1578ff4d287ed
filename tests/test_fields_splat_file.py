"""Splat PLY files: the layout byte by byte, round trips, an independent reader, and hostile files."""

import contextlib
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_toys import random_tensors

from nfc_splat.errors import UserError
from nfc_splat.fields import splat_file
from nfc_splat.fields.splat_file import Splats, read_splats, write_splats

NAMES = ("means", "quats", "scales", "opacities", "sh0", "shN")


def some_splats(count=7, degree=3, **changes):
    tensors = random_tensors(count, degree)
    tensors["quats"] = torch.nn.functional.normalize(tensors["quats"], dim=-1)
    return Splats(**(tensors | changes))


def assert_same(found, expected):
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_round_trip(tmp_path, degree, count):
    splats = some_splats(count, degree)
    assert write_splats(tmp_path / "a.ply", splats) == 0
    found, dropped = read_splats(tmp_path / "a.ply")
    assert dropped == 0
    assert not found.antialiased
    assert_same(found, splats)


def test_layout_is_inrias(tmp_path):
    splats = some_splats(1, 1)
    write_splats(tmp_path / "a.ply", splats)
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[-1] for line in header.decode().splitlines() if line.startswith("property float ")]
    assert " ".join(names) == (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 "
        "f_rest_0 f_rest_1 f_rest_2 f_rest_3 f_rest_4 f_rest_5 f_rest_6 f_rest_7 f_rest_8 "
        "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    )
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n")
    row = struct.unpack(f"<{len(names)}f", body)
    rest = splats.shN[0]  # [3 coefficients, 3 channels]: red's three first in the file
    expected = [
        *splats.means[0], 0, 0, 0, *splats.sh0[0, 0], *rest[:, 0], *rest[:, 1], *rest[:, 2],
        splats.opacities[0], *splats.scales[0], *splats.quats[0],
    ]  # fmt: skip
    assert row == pytest.approx([float(value) for value in expected], rel=1e-6)


def test_quaternions_leave_normalised(tmp_path):
    splats = some_splats(5)
    longer = some_splats(5, quats=3 * splats.quats)
    write_splats(tmp_path / "a.ply", longer)
    torch.testing.assert_close(read_splats(tmp_path / "a.ply")[0].quats, splats.quats)


def test_non_finite_rows_are_left_out_and_counted(tmp_path):
    splats = some_splats(6)
    splats.means[0, 2] = math.nan
    splats.opacities[3] = math.inf
    splats.shN[5, 2, 1] = -math.inf
    assert write_splats(tmp_path / "a.ply", splats) == 3
    found, _ = read_splats(tmp_path / "a.ply")
    kept = [1, 2, 4]
    assert_same(found, Splats(**{name: getattr(splats, name)[kept] for name in NAMES}))


def test_long_tables_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(splat_file, "ROWS_AT_ONCE", 3)
    splats = some_splats(8)
    splats.means[4, 0] = math.nan
    assert write_splats(tmp_path / "a.ply", splats) == 1
    assert len(read_splats(tmp_path / "a.ply")[0].means) == 7


def test_mode_comment(tmp_path):
    write_splats(tmp_path / "a.ply", some_splats(antialiased=True))
    assert b"\ncomment SplatRenderMode: mip\n" in (tmp_path / "a.ply").read_bytes()
    assert read_splats(tmp_path / "a.ply")[0].antialiased


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_splats(tmp_path / "a.ply", some_splats(2))
    before = (tmp_path / "a.ply").read_bytes()
    broken = some_splats(3, sh0=torch.zeros(2, 1, 3))
    with pytest.raises(RuntimeError):
        write_splats(tmp_path / "a.ply", broken)
    assert (tmp_path / "a.ply").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_open3d_reads_the_same_numbers(tmp_path):
    from nfc_splat.open3d_loader import load_open3d

    try:
        open3d = load_open3d()
    except UserError as error:
        pytest.skip(str(error))
    splats = some_splats(11)
    write_splats(tmp_path / "a.ply", splats)
    cloud = open3d.t.io.read_point_cloud(str(tmp_path / "a.ply"))
    read = {name: torch.from_numpy(cloud.point[name].numpy()) for name in cloud.point}
    torch.testing.assert_close(read["positions"], splats.means)
    torch.testing.assert_close(read["scale"], splats.scales.exp())  # open3d applies the activation, to scales only
    torch.testing.assert_close(read["rot"], splats.quats)
    torch.testing.assert_close(read["opacity"].flatten(), splats.opacities)
    torch.testing.assert_close(read["f_dc"].reshape(-1, 1, 3), splats.sh0)
    assert torch.equal(read["f_rest"], splats.shN)  # it turns the file's channel-major order around too


# Files by other programs, and by nobody's friends


def ply(tmp_path, lines, body=b"", newline="\n"):
    path = tmp_path / "b.ply"
    path.write_bytes(newline.join([*lines, "end_header", ""]).encode() + body)
    return path


def splat_lines(count, kind="float", extra=(), rest=0):
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(rest)), "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    return [*lines, *extra, *(f"property {kind} {name}" for name in names)], len(names)


def test_other_types_orders_and_elements_are_understood(tmp_path):
    lines, width = splat_lines(2, kind="double", extra=["property uchar label"])
    lines[2:2] = ["comment made elsewhere", "element camera 3", "property short id", "property float f"]
    rows = [[10 * i + j for j in range(width)] for i in range(2)]
    body = b"\xff" * 18 + b"".join(struct.pack(f"<B{width}d", 9, *row) for row in rows)
    found, dropped = read_splats(ply(tmp_path, lines, body, newline="\r\n"))
    assert dropped == 0
    assert found.means.tolist() == [[0, 1, 2], [10, 11, 12]]
    assert found.opacities.tolist() == [6, 16]
    assert found.quats.tolist() == [[10, 11, 12, 13], [20, 21, 22, 23]]
    assert found.shN.shape == (2, 0, 3)


def test_non_finite_rows_of_others_are_dropped_and_counted(tmp_path):
    lines, width = splat_lines(3)
    values = [1.0] * (3 * width)
    values[width + 2] = math.nan
    found, dropped = read_splats(ply(tmp_path, lines, struct.pack(f"<{3 * width}f", *values)))
    assert (len(found.means), dropped) == (2, 1)


LINES, WIDTH = splat_lines(1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["plz", *LINES[1:]], "not a PLY file"),
        ([LINES[0], "format ascii 1.0", *LINES[2:]], "format ascii 1.0"),
        ([LINES[0], "format binary_big_endian 1.0", *LINES[2:]], "binary_big_endian"),
        ([LINES[0], *LINES[2:]], "no format line"),
        ([*LINES[:2], "element vertex 999999999999", *LINES[3:]], "claims 999999999999 Gaussians"),
        ([*LINES[:2], "element vertex 99999999999999999999", *LINES[3:]], "is not `element NAME COUNT`"),
        ([*LINES[:2], "element vertex -1", *LINES[3:]], "is not `element NAME COUNT`"),
        ([*LINES[:2], "element vertex 1e3", *LINES[3:]], "is not `element NAME COUNT`"),
        ([*LINES[:2], "element vertex", *LINES[3:]], "is not `element NAME COUNT`"),
        ([*LINES[:2], "element face 999999999999", "property int a", *LINES[2:]], "0 bytes follow it"),
        ([*LINES[:2], "element face 1", "property list uchar int i", *LINES[2:]], "property list uchar int i"),
        ([*LINES, "property list uchar int i"], "property list uchar int i"),
        ([*LINES, "property half h"], "property half h"),
        ([*LINES, "property float x"], "same property twice"),
        (LINES[:-1], "lack rot_3"),
        (
            LINES[:3],
            "lack x, y, z, f_dc_0, f_dc_1, f_dc_2, opacity, scale_0, scale_1, scale_2, rot_0, rot_1, rot_2, rot_3",
        ),
        (
            [line for line in LINES if "opacity" not in line and "_1" not in line],
            "lack f_dc_1, opacity, scale_1, rot_1",
        ),
        ([*LINES[:3], *(f"property float f_rest_{i}" for i in range(1, 45))], "rot_2 and 1 more"),
        ([*LINES, *(f"property float f_rest_{i}" for i in range(44))], "44 f_rest properties, expected 0, 9, 24, 45"),
        ([*LINES[:2], "element camera 1", *LINES[3:]], "no element called vertex"),
        ([*LINES, *(f"property float f_rest_{i}" for i in range(7))], "7 f_rest properties"),
        ([*LINES, "property float f_rest_5"], "lack f_rest_0"),
        ([*LINES[:2], "comment " + "x" * 70_000, *LINES[2:]], "not a PLY file"),
    ],
)
def test_hostile_headers_are_refused_in_one_line(tmp_path, lines, said):
    with pytest.raises(UserError) as refused:
        read_splats(ply(tmp_path, lines, bytes(4 * (WIDTH + 50))))
    assert said in str(refused.value)
    assert "b.ply" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_truncated_and_missing_files(tmp_path):
    write_splats(tmp_path / "a.ply", some_splats(4))
    whole = (tmp_path / "a.ply").read_bytes()
    for length in (0, 3, 100, len(whole) - 1):
        (tmp_path / "b.ply").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"b\.ply"):
            read_splats(tmp_path / "b.ply")
    with pytest.raises(UserError, match=r"none\.ply: cannot be read"):
        read_splats(tmp_path / "none.ply")
    with pytest.raises(UserError, match="cannot be read"):
        read_splats(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused_but_never_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("mutated")
    torch.manual_seed(0)
    write_splats(folder / "a.ply", some_splats(2, 1))
    content = bytearray((folder / "a.ply").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "b.ply").write_bytes(content)
    with contextlib.suppress(UserError):
        splats, _ = read_splats(folder / "b.ply")
        assert all(getattr(splats, name).isfinite().all() for name in NAMES)
