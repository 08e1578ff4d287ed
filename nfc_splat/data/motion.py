"""Whether a scene moves, found out from its cameras' files before any image is read."""

import importlib
from pathlib import Path

from nfc_splat.data.assemble import normalized_times
from nfc_splat.data.config import DataConfig
from nfc_splat.data.detect import detect_format, scene_root


def scene_moves(path: Path, config: DataConfig) -> bool:
    """Whether the frames of the scene at `path` carry different times.

    Raises:
        UserError: the folder is no scene, or its files are damaged.
    """
    format = detect_format(path)[0] if config.format == "auto" else config.format
    capture = importlib.import_module(f"nfc_splat.data.{format}").read(scene_root(path, config.format), config)
    return len(set(normalized_times(capture.frames, config, []) or [])) > 1
