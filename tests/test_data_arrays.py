"""`.npy` and `.npz` files: what numpy writes is read, and nothing else gets far."""

import io
import os
import pickle
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from data_scenes import result_or_refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfc_splat.data.arrays import MAX_BYTES, read_npy, read_npz

ANY = re.compile(r"mat_\d+")


def saved(array, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An .npy file with any header."""
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode() + data


def claim(shape, descr="<f8") -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n"


class Burglar:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(34, dtype=np.float64).reshape(2, 17),
        np.arange(34, dtype=np.float32).reshape(2, 17),
        np.asfortranarray(np.arange(34, dtype=np.float64).reshape(2, 17)),
        np.arange(34, dtype=">f8").reshape(2, 17),
        np.array([np.nan, np.inf, -0.0]),
        np.zeros((0, 17)),
        np.float64(3.5),
    ],
)
def test_what_numpy_writes_is_read(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    read = read_npy(tmp_path / "a.npy")
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, np.asarray(array, np.float64))
    assert read.shape == np.shape(array)


def test_the_second_version_of_the_format_is_read(tmp_path):
    with open(tmp_path / "a.npy", "wb") as handle:
        np.lib.format.write_array(handle, np.eye(4), version=(2, 0))
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), np.eye(4))


HEADERS = {
    "empty": b"",
    "text": b"poses",
    "no magic": saved(np.eye(4))[6:],
    "magic alone": b"\x93NUMPY",
    "unknown version": npy(claim((1,)), bytes(8), b"\x09\x00"),
    "third version": npy(claim((1,)), bytes(8), b"\x03\x00"),
    "cut in the header": saved(np.eye(4))[:40],
    "cut in the data": saved(np.eye(4))[:-1],
    "more data than claimed": saved(np.eye(4)) + b"\0",
    "claims a terabyte": npy(claim((10**10, 17)), bytes(136)),
    "claims more than any number": npy(claim((10**200, 10**200)), bytes(136)),
    "negative shape": npy(claim((-1, 17)), bytes(136)),
    "doubly negative shape": npy(claim((-1, -17)), bytes(136)),
    "shape of text": npy(claim(("a", 17)), bytes(136)),
    "shape of fractions": npy(claim((1.0, 17)), bytes(136)),
    "many dimensions": npy(claim((1,) * 100), bytes(8)),
    "header longer than the file": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 200,
    "header longer than allowed": npy(claim((1,)) + " " * 20_000, bytes(8), b"\x02\x00"),
    "nested header": npy("[" * 5000 + "]" * 5000),
    "header is code": npy("__import__('os').getcwd()"),
    "header without keys": npy("{}"),
    "objects": saved(np.array([1, None], dtype=object), allow_pickle=True),
    "a pickle": pickle.dumps(np.eye(4)),
    "whole numbers": saved(np.arange(17)),
    "complex numbers": saved(np.zeros(17, complex)),
    "half precision": saved(np.zeros(17, np.float16)),
    "text array": saved(np.array(["a"])),
    "huge text": npy(claim((1,), "<U1000000000"), bytes(8)),
    "structured": saved(np.zeros(2, dtype=[("a", "<f8")])),
    "sub-array type": npy("{'descr': ('<f8', (2,)), 'fortran_order': False, 'shape': (1,), }", bytes(16)),
    "no such type": npy(claim((1,), "<q9"), bytes(8)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_bad_arrays_are_refused_without_allocating(tmp_path, case):
    path = tmp_path / "a.npy"
    path.write_bytes(HEADERS[case])
    tracemalloc.start()
    try:
        result, message = result_or_refusal(lambda: read_npy(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result is None
    assert "a.npy" in message
    assert "\n" not in message
    assert len(message) < 600
    assert peak < 20e6


def test_the_same_arrays_are_refused_in_an_archive(tmp_path):
    for case, content in HEADERS.items():
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("mat_0.npy", content)
        result, message = result_or_refusal(lambda: read_npz(tmp_path / "a.npz", ANY))
        assert result is None, case
        assert "mat_0" in message


def test_objects_are_never_unpickled(tmp_path):
    victim = tmp_path / "created"
    np.save(tmp_path / "a.npy", np.array([Burglar(victim)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", mat_0=np.array([Burglar(victim)], dtype=object))
    for read in (lambda: read_npy(tmp_path / "a.npy"), lambda: read_npz(tmp_path / "a.npz", ANY)):
        assert "expected float32 or float64" in result_or_refusal(read)[1]
    assert not victim.exists()
    pickle.loads(pickle.dumps(Burglar(victim)))
    assert victim.exists()  # the trap works


def test_a_file_too_large_for_its_purpose_is_not_read(tmp_path):
    for name, read in (("a.npy", read_npy), ("a.npz", lambda path: read_npz(path, ANY))):
        with open(tmp_path / name, "wb") as handle:
            handle.truncate(MAX_BYTES + 1)  # sparse: takes no room on the disk
        assert "expected at most" in result_or_refusal(lambda name=name, read=read: read(tmp_path / name))[1]


def test_an_archive_gives_the_arrays_wanted(tmp_path):
    matrices = {f"mat_{i}": np.full((4, 4), i, np.float32) for i in (3, 0, 12)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **matrices, other=np.array([None], dtype=object), mat_0_inv=np.eye(4))
        found = read_npz(tmp_path / "a.npz", ANY)
        assert list(found) == list(matrices)
        for name, array in matrices.items():
            np.testing.assert_array_equal(found[name], array)


def archive_with(change):
    def write(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            change(archive)

    return write


def understate(archive):
    """A gigabyte of zeros that claims to be 200 bytes."""
    archive.writestr("mat_0.npy", saved(np.eye(4))[:80] + bytes(10_000_000))
    archive.infolist()[0].file_size = 200


def flagged(path, offset, value):
    """Sets a field of the only member, both in its own header and in the directory."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mat_0.npy", saved(np.eye(4)))
    content = bytearray(path.read_bytes())
    for start, at in ((content.index(b"PK\x03\x04"), 6), (content.index(b"PK\x01\x02"), 8)):
        struct.pack_into("<H", content, start + at + offset, value)
    path.write_bytes(bytes(content))


def spoiled(path):
    """One bit of the data is wrong, so the checksum does not hold."""
    np.savez(path, mat_0=np.eye(4))
    content = bytearray(path.read_bytes())
    content[content.index(np.float64(1).tobytes()) + 2] ^= 1
    path.write_bytes(bytes(content))


def cut(path):
    np.savez(path, **{f"mat_{i}": np.eye(4) for i in range(5)})
    path.write_bytes(path.read_bytes()[:-30])


def twice(archive):
    archive.writestr("mat_0.npy", saved(np.eye(4)))
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("mat_0.npy", saved(np.eye(4)))


ARCHIVES = {
    "not an archive": (lambda path: path.write_bytes(b"PK\x03\x04 and nothing else"), "cannot be read as an .npz"),
    "cut": (cut, "cannot be read as an .npz"),
    "spoiled": (spoiled, "Bad CRC-32"),
    "one name twice": (archive_with(twice), "is there twice"),
    "a large matrix": (
        archive_with(lambda a: a.writestr("mat_0.npy", saved(np.zeros((100, 100))))),
        "claims 80128 bytes",
    ),
    "more than a matrix": (
        archive_with(lambda a: a.writestr("mat_0.npy", saved(np.zeros(1500)))),
        "mat_0: 1500 numbers, expected one matrix of at most 16",
    ),
    "a bomb": (archive_with(lambda a: a.writestr("mat_0.npy", bytes(10_000_000))), "claims 10000000 bytes"),
    "a bomb that claims little": (archive_with(understate), "mat_0"),
    "encrypted": (lambda path: flagged(path, 0, 1), "encrypted or compressed in an unusual way"),
    "bzip2": (lambda path: flagged(path, 2, 12), "encrypted or compressed in an unusual way"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_bad_archives_are_refused_without_inflating(tmp_path, case):
    write, needle = ARCHIVES[case]
    path = tmp_path / "a.npz"
    write(path)
    tracemalloc.start()
    try:
        result, message = result_or_refusal(lambda: read_npz(path, ANY))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result is None
    assert "a.npz" in message
    assert needle in message
    assert "\n" not in message
    assert peak < 3e6


def test_many_arrays_within_an_archive_allocate_nothing(tmp_path):
    """Compressed zeros: 2000 times 16 KB out of 350 KB, so that an archive of the largest size would hold gigabytes."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2000):
            archive.writestr(f"mat_{number}.npy", saved(np.zeros(4000, np.float32)))
    assert (tmp_path / "a.npz").stat().st_size < 500_000
    tracemalloc.start()
    try:
        result, message = result_or_refusal(lambda: read_npz(tmp_path / "a.npz", ANY))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result is None
    assert "mat_0: 4000 numbers" in message
    assert peak < 5e6


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_bytes_gives_an_array_or_a_refusal(tmp_path, data):
    """Bytes overwritten, removed or added at random places of sound files: never another exception, never a hang."""
    archive = io.BytesIO()
    np.savez(archive, mat_0=np.eye(4), mat_1=np.eye(4, dtype=np.float32))
    name, content = data.draw(st.sampled_from([("a.npy", saved(np.eye(4))), ("a.npz", archive.getvalue())]))
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    (tmp_path / name).write_bytes(bytes(content))
    read = read_npy if name == "a.npy" else lambda path: read_npz(path, ANY)
    result, message = result_or_refusal(lambda: read(tmp_path / name))
    assert (result is None) == bool(message)
    assert "\n" not in message
