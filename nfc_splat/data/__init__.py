"""Reading scenes: `load_scene(path, DataConfig(), undistort=...) -> Scene`, `detect_format(path)`.

One module per format (`blender`, `nerfstudio`, `colmap`, `replica`, `sdfstudio`, `nsvf`, `nerfpp`, `dtu`, `llff`,
`dynerf`, `hypernerf`) finds the frames (`capture`); `prepare` and `assemble` check them and build cameras; `store`
decodes. Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfc_splat.data.config import DataConfig
    from nfc_splat.data.detect import detect_format
    from nfc_splat.data.scene import Scene, Split, load_scene

__all__ = ["DataConfig", "Scene", "Split", "detect_format", "load_scene"]

_HOMES = {"DataConfig": "config", "detect_format": "detect", "Scene": "scene", "Split": "scene", "load_scene": "scene"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
