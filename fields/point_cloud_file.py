"""Coloured points as a PLY file, for viewers."""

from pathlib import Path

import numpy as np
from torch import Tensor

from nfc_splat.files import atomic_path


def write_point_cloud(path: Path, points: Tensor, colors: Tensor) -> None:
    """Write points [M, 3] and colours [M, 3] in [0, 1] as little-endian float32 positions and 8-bit colours."""
    rows = np.empty(len(points), [("position", "<f4", 3), ("color", "u1", 3)])
    rows["position"] = points.cpu().numpy()
    rows["color"] = (colors.clamp(0, 1) * 255).round().byte().cpu().numpy()
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(("\n".join([*lines, "end_header"]) + "\n").encode("ascii"))
        handle.write(rows.tobytes())
