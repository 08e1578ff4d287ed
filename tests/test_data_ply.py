"""The point reader: every encoding, and every way a PLY file can lie."""

import struct

import numpy as np
import pytest
from data_scenes import result_or_refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfc_splat.data.ply import read_ply_points
from nfc_splat.errors import UserError

POINTS = np.array([[1.5, -2.0, 3.25], [0.0, 0.5, -0.125], [10.0, 20.0, 30.0]])
COLORS = np.array([[255, 0, 51], [0, 128, 255], [102, 204, 0]])


def header(encoding: str, count: int = 3, extra: str = "", newline: str = "\n") -> bytes:
    lines = [
        "ply",
        f"format {encoding} 1.0",
        "comment written by a test",
        f"element vertex {count}",
        "property double x",
        "property float y",
        "property float z",
        "property short skipped",
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        *([extra] if extra else []),
        "end_header",
    ]
    return (newline.join(lines) + newline).encode()


def body(order: str) -> bytes:
    return b"".join(struct.pack(f"{order}dffh3B", *p, -7, *c) for p, c in zip(POINTS, COLORS.tolist(), strict=True))


def text_body(newline: str = "\n") -> bytes:
    rows = [f"{x} {y} {z} -7 {r} {g} {b}" for (x, y, z), (r, g, b) in zip(POINTS, COLORS, strict=True)]
    return (newline.join(rows) + newline).encode()


FILES = {
    "little": header("binary_little_endian") + body("<"),
    "big": header("binary_big_endian") + body(">"),
    "ascii": header("ascii") + text_body(),
    "crlf": header("ascii", newline="\r\n") + text_body("\r\n"),
    "crlf header": header("binary_little_endian", newline="\r\n") + body("<"),
    "faces after": header("binary_little_endian", extra="element face 2\nproperty list uchar int vertex_indices")
    + body("<")
    + bytes(26),
    "cameras before": header("binary_little_endian").replace(
        b"element vertex", b"element camera 2\nproperty float fov\nelement vertex"
    )
    + bytes(8)
    + body("<"),
    "ascii cameras before": header("ascii").replace(
        b"element vertex", b"element camera 2\nproperty float fov\nelement vertex"
    )
    + b"1\n2\n"
    + text_body(),
}


@pytest.mark.parametrize("case", FILES)
def test_every_encoding_gives_the_points_and_colours(tmp_path, case):
    (tmp_path / "a.ply").write_bytes(FILES[case])
    cloud = read_ply_points(tmp_path / "a.ply")
    assert cloud.points.dtype == cloud.colors.dtype == np.float32
    np.testing.assert_array_equal(cloud.points, POINTS.astype(np.float32))
    np.testing.assert_allclose(cloud.colors, COLORS / 255, atol=1e-7)
    assert cloud.dropped == 0


def test_sixteen_bit_and_float_colours(tmp_path):
    for kind, values, layout in (("ushort", (65535, 0, 257), "3H"), ("float", (1.0, 0.0, 1 / 255), "3f")):
        lines = header("binary_little_endian", 1).replace(b"uchar", kind.encode())
        (tmp_path / "a.ply").write_bytes(lines + struct.pack(f"<dffh{layout}", 1, 2, 3, 0, *values))
        np.testing.assert_allclose(read_ply_points(tmp_path / "a.ply").colors[0], [1, 0, 1 / 255], atol=1e-6)


def test_rows_that_are_not_finite_are_dropped_and_counted(tmp_path):
    rows = b"nan 0 0 0 1 2 3\n1 2 3 0 255 0 0\n1 inf 3 0 1 2 3\n1 1e300 3 0 1 2 3\n"
    (tmp_path / "a.ply").write_bytes(header("ascii", 4) + rows)
    cloud = read_ply_points(tmp_path / "a.ply")
    assert cloud.points.tolist() == [[1, 2, 3]]
    assert cloud.colors.tolist() == [[1, 0, 0]]
    assert cloud.dropped == 3


def test_colours_are_optional_and_empty_clouds_are_fine(tmp_path):
    text = (
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    text += b"1 2 3\n"
    (tmp_path / "a.ply").write_bytes(text)
    assert read_ply_points(tmp_path / "a.ply").colors is None
    for encoding in ("ascii", "binary_little_endian"):
        (tmp_path / "b.ply").write_bytes(header(encoding, 0))
        assert read_ply_points(tmp_path / "b.ply").points.shape == (0, 3)


LITTLE = header("binary_little_endian")
HOSTILE = {
    "empty": b"",
    "not ply": b"hello\n" * 9,
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "no end": LITTLE.replace(b"end_header\n", b""),
    "endless header": b"ply\n" + b"comment x\n" * 10_000 + b"end_header\n",
    "endless line": b"ply\ncomment " + b"x" * 100_000,
    "no format": LITTLE.replace(b"format binary_little_endian 1.0\n", b"") + body("<"),
    "unknown format": LITTLE.replace(b"binary_little_endian", b"binary_middle_endian") + body("<"),
    "no vertices": LITTLE.replace(b"element vertex", b"element corner") + body("<"),
    "vertices twice": header("binary_little_endian", extra="element vertex 1\nproperty float x") + body("<"),
    "no x": LITTLE.replace(b"double x", b"double u") + body("<"),
    "x twice": LITTLE.replace(b"short skipped", b"float x") + body("<"),
    "unknown type": LITTLE.replace(b"short skipped", b"quad skipped") + body("<"),
    "property before element": b"ply\nformat ascii 1.0\nproperty float x\nend_header\n",
    "count is text": LITTLE.replace(b"vertex 3", b"vertex three") + body("<"),
    "count is negative": LITTLE.replace(b"vertex 3", b"vertex -3") + body("<"),
    "count too large": LITTLE.replace(b"vertex 3", b"vertex 4") + body("<"),
    "count enormous": LITTLE.replace(b"vertex 3", b"vertex 999999999999999999999") + body("<"),
    "count endless": LITTLE.replace(b"vertex 3", b"vertex " + b"9" * 6000) + body("<"),
    "ascii count enormous": header("ascii").replace(b"vertex 3", b"vertex 888888888888") + text_body(),
    "cameras enormous": FILES["cameras before"].replace(b"camera 2", b"camera 99999999999"),
    "list in vertices": header("binary_little_endian", extra="property list uchar int l") + body("<"),
    "list before vertices": FILES["cameras before"].replace(b"float fov", b"list uchar int fov"),
    "cut binary": FILES["little"][:-5],
    "cut text": FILES["ascii"][:-12],
    "words": header("ascii") + b"a b c d e f g\n" * 3,
    "one number per row": header("ascii") + b"1\n2\n3\n" * 20,
    "too many numbers": header("ascii") + b"1 2 3 4 5 6 7 8\n" * 3,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_lies_are_refused_by_name(tmp_path, case):
    path = tmp_path / "cloud.ply"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(UserError, match=r"cloud\.ply: ") as caught:
        read_ply_points(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path, data):
    original = FILES[data.draw(st.sampled_from(sorted(FILES)))]
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(max_size=6))
        content[at : at + data.draw(st.integers(0, 6))] = piece
        if not content:
            break
    path = tmp_path / "fuzz.ply"
    path.write_bytes(content)
    cloud, refusal = result_or_refusal(lambda: read_ply_points(path))
    if cloud is None:
        assert "fuzz.ply" in refusal
    else:
        assert np.isfinite(cloud.points).all()
        assert len(cloud.points) <= len(content)
