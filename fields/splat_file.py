"""Gaussians as a PLY file in the INRIA layout, which viewers and other trainers read.

One vertex per Gaussian, little-endian float32 properties in this order:
    x y z, nx ny nz (always 0), f_dc_0..2, f_rest_0..3(K-1)-1 (all coefficients of red, then green, then blue),
    opacity (logit), scale_0..2 (logarithms), rot_0..3 (wxyz)
A file made for antialiased drawing says so with the header line `comment SplatRenderMode: mip`.

Symbols: N Gaussians, K spherical-harmonics coefficients.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.files import atomic_path

MAX_HEADER_BYTES = 64 * 2**10
MIP_COMMENT = "comment SplatRenderMode: mip"
ROWS_AT_ONCE = 100_000
SH_RESTS = (0, 9, 24, 45)  # f_rest properties of degree 0, 1, 2, 3
MOST_NAMED = 14  # of what is missing: all that every degree needs
PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}


@dataclass(frozen=True)
class Splats:
    """Gaussians before activation: means [N, 3], quats [N, 4] wxyz, scales [N, 3] logarithms, opacities [N] logits,
    sh0 [N, 1, 3], shN [N, K - 1, 3]; `antialiased` when trained for the compensated opacity."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh0: Tensor
    shN: Tensor
    antialiased: bool = False


def write_splats(path: Path, splats: Splats) -> int:
    """Write `splats` to `path` atomically, quaternions normalised; returns how many non-finite rows were left out."""
    names = _property_names(3 * splats.shN.shape[1])
    total, kept = len(splats.means), 0
    kept = sum(len(rows) for rows in _finite_rows(splats))
    lines = ["ply", "format binary_little_endian 1.0", *([MIP_COMMENT] if splats.antialiased else [])]
    lines += [f"element vertex {kept}", *(f"property float {name}" for name in names), "end_header"]
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(("\n".join(lines) + "\n").encode("ascii"))
        for rows in _finite_rows(splats):
            handle.write(rows.numpy().astype("<f4").tobytes())
    return total - kept


def _property_names(rest: int) -> list[str]:
    names = ["x", "y", "z", "nx", "ny", "nz"]
    for name, count in (("f_dc", 3), ("f_rest", rest), ("opacity", 0), ("scale", 3), ("rot", 4)):
        names += [f"{name}_{i}" for i in range(count)] if name != "opacity" else [name]
    return names


def _finite_rows(splats: Splats) -> Iterator[Tensor]:
    """The file's table, [at most ROWS_AT_ONCE, properties] at a time, without non-finite rows."""
    for start in range(0, len(splats.means), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        means = splats.means[part].float()
        quats = torch.nn.functional.normalize(splats.quats[part].float(), dim=-1)
        rest = splats.shN[part].float().transpose(1, 2).flatten(1)  # coefficient-major to channel-major
        columns = [means, torch.zeros_like(means), splats.sh0[part, 0].float(), rest]
        columns += [splats.opacities[part, None].float(), splats.scales[part].float(), quats]
        rows = torch.cat(columns, dim=-1)
        yield rows[rows.isfinite().all(1)]


def read_splats(path: Path) -> tuple[Splats, int]:
    """Read a splat PLY that nobody vouches for.

    Binary little-endian files are read, whatever the order of the properties; properties that are not needed are
    skipped. Nothing is allocated before the claimed count has been checked against the size of the file.

    Returns:
        the Gaussians (float32) and how many rows were left out because a value in them was not finite.

    Raises:
        UserError: not a splat PLY, an unsupported encoding, or a file shorter than its header claims.
    """
    path = Path(path)
    try:
        with open(path, "rb") as handle:
            lines = _header(path, handle)
            start = handle.tell()
        count, skipped, layout = _vertex_layout(path, lines)
        available = path.stat().st_size - start - skipped
        if count * layout.itemsize > available:
            raise UserError(
                f"{path}: the header claims {count} Gaussians of {layout.itemsize} bytes, but {max(0, available)} bytes"
                " follow it: the file is damaged or incomplete"
            )
        table = np.fromfile(path, dtype=layout, count=count, offset=start + skipped)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    return _splats(path, table, MIP_COMMENT in lines)


def _header(path: Path, handle: BufferedReader) -> list[str]:
    """The header's lines, without line ends; leaves `handle` at the first byte of data."""
    start = handle.read(MAX_HEADER_BYTES)
    end = re.search(rb"(?:^|\n)end_header\r?\n", start)
    if not start.startswith((b"ply\n", b"ply\r\n")) or end is None:
        raise UserError(
            f"{path}: not a PLY file (a first line `ply` and an `end_header` within {MAX_HEADER_BYTES} bytes)"
        )
    handle.seek(end.end())
    return [line.rstrip("\r") for line in start[: end.start()].decode("latin-1").split("\n")]


def _vertex_layout(path: Path, lines: list[str]) -> tuple[int, int, np.dtype]:
    """Number of vertices, bytes of data before the first, and the layout of one."""
    if "format binary_little_endian 1.0" not in lines:
        found = next((line for line in lines if line.startswith("format ")), "no format line")
        raise UserError(f"{path}: {found!r} is not supported, expected a PLY of format binary_little_endian 1.0")
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in lines[1:]:
        words = line.split()
        if words[:1] == ["element"]:
            if len(words) != 3 or not re.fullmatch(r"[0-9]{1,12}", words[2]):
                raise UserError(f"{path}: the header line {line[:80]!r} is not `element NAME COUNT`")
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"] and elements:
            if len(words) != 3 or words[1] not in PLY_TYPES:
                raise UserError(f"{path}: the property {line[:80]!r} is not supported, expected `property TYPE NAME`")
            elements[-1][2].append((words[2], PLY_TYPES[words[1]]))
    skipped = 0
    for name, count, properties in elements:
        try:
            layout = np.dtype(properties)
        except ValueError as error:
            raise UserError(f"{path}: element {name} has the same property twice ({error})") from error
        if name == "vertex":
            return count, skipped, layout
        skipped += count * layout.itemsize
    raise UserError(f"{path}: the header has no element called vertex")


def _splats(path: Path, table: np.ndarray, antialiased: bool) -> tuple[Splats, int]:
    names = table.dtype.names or ()
    rest = sum(re.fullmatch(r"f_rest_[0-9]{1,3}", name) is not None for name in names)
    missing = [name for name in _property_names(rest) if name not in names and name not in ("nx", "ny", "nz")]
    if missing:
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        raise UserError(
            f"{path}: not a Gaussian splat in INRIA's layout: its vertices lack {', '.join(missing[:MOST_NAMED])}{more}"
        )
    if rest not in SH_RESTS:
        counts = ", ".join(map(str, SH_RESTS))
        raise UserError(f"{path}: {rest} f_rest properties, expected {counts} (harmonics of degree 0, 1, 2, 3)")

    def columns(prefix: str, count: int) -> Tensor:
        parts = [torch.from_numpy(table[f"{prefix}_{i}"].astype(np.float32)) for i in range(count)]
        return torch.stack(parts, dim=-1) if parts else torch.zeros(len(table), 0)

    tensors = {
        "means": torch.stack([torch.from_numpy(table[axis].astype(np.float32)) for axis in "xyz"], dim=-1),
        "quats": columns("rot", 4),
        "scales": columns("scale", 3),
        "opacities": torch.from_numpy(table["opacity"].astype(np.float32)),
        "sh0": columns("f_dc", 3)[:, None],
        "shN": columns("f_rest", rest).view(len(table), 3, rest // 3).transpose(1, 2).contiguous(),
    }
    finite = torch.stack([tensor.flatten(1).isfinite().all(1) for tensor in tensors.values() if tensor.ndim > 1])
    finite = finite.all(0) & tensors["opacities"].isfinite()
    tensors = {name: tensor[finite] for name, tensor in tensors.items()}
    return Splats(**tensors, antialiased=antialiased), int((~finite).sum())
