"""Arrays of floats out of `.npy` and `.npz` files that nobody vouches for.

A file's header is checked against the bytes that are there before anything of the size it claims is allocated, and
pickled objects are refused. A refusal is a `UserError` that names the file and the array.
"""

import io
import math
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from nfc_splat.errors import UserError

# 17 float64 for each of the most frames that a scene may have.
MAX_BYTES = 2**24
MAX_HEADER = 10_000
MAX_DIMENSIONS = 8
# A matrix for one camera, with the longest header. Compressed zeros take next to no room, so that an archive within
# MAX_BYTES could hold gigabytes of larger arrays.
MAX_MEMBER = 2**14
MAX_MEMBER_NUMBERS = 16


def read_npy(path: Path, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The array of a `.npy` file of at most `max_bytes` as float64."""
    return _array(_content(path, max_bytes), str(path))


def read_npz(path: Path, wanted: re.Pattern[str]) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file whose name `wanted` matches in full, as float64, in the order of the file.

    Meant for a matrix per camera: an array of more than 16 numbers is refused.
    """
    content = _content(path)
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if not wanted.fullmatch(name):
                    continue
                where = f"{path}: {name}"
                if name in arrays:
                    raise UserError(f"{where} is there twice; expected one array of each name")
                arrays[name] = _array(_member(archive, member, where), where, MAX_MEMBER_NUMBERS)
    except UserError:
        raise
    except Exception as error:  # the zip module meets hostile bytes with many kinds of exception
        raise UserError(f"{path}: cannot be read as an .npz archive ({_reason(error)})") from error
    return arrays


def _content(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            what = "the cameras of a scene" if max_bytes == MAX_BYTES else "its points"
            raise UserError(f"{path}: {size} bytes, expected at most {max_bytes} for {what}")
        with open(path, "rb") as handle:
            return handle.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> bytes:
    if member.file_size > MAX_MEMBER:
        raise UserError(f"{where} claims {member.file_size} bytes, expected at most {MAX_MEMBER} for one matrix")
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{where} is encrypted or compressed in an unusual way; write it with numpy.savez")
    with archive.open(member) as handle:
        # With a length, the zip module stops inflating there, whatever the bytes would grow to.
        return handle.read(member.file_size)


def _array(content: bytes, where: str, most: int | None = None) -> np.ndarray:
    """The array of an `.npy` file, of at most `most` numbers."""
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with warnings.catch_warnings(action="ignore"):  # of odd literals in the header
            shape, _, dtype = read_header(stream, max_header_size=MAX_HEADER)
    except Exception as error:  # the header is a Python literal, which can go wrong in as many ways
        raise UserError(f"{where}: cannot be read as an .npy array ({_reason(error)})") from error
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise UserError(f"{where}: holds {str(dtype)[:80]!r}, expected float32 or float64")
    claimed, there = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if min(shape, default=1) < 0 or len(shape) > MAX_DIMENSIONS or claimed != there:
        raise UserError(f"{where}: its header claims {_listed(shape)} numbers ({claimed} bytes), but {there} are there")
    if most is not None and math.prod(shape) > most:
        raise UserError(f"{where}: {_listed(shape)} numbers, expected one matrix of at most {most}")
    with warnings.catch_warnings(action="ignore"):
        array = np.load(io.BytesIO(content), allow_pickle=False, max_header_size=MAX_HEADER)
    return array.astype(np.float64)


def _listed(shape: tuple[int, ...]) -> str:
    text = "x".join(str(length)[:30] for length in shape[:8])
    return f"{text}x..." if len(shape) > 8 else text or "()"


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
