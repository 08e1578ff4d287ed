"""The hash encoding on a CUDA device, by tiny-cuda-nn where it is installed.

tiny-cuda-nn's modules own their parameters; here the caller's table takes their place for the length of a call.
Whether the package can be used is asked of torch first: importing it without a GPU raises an OSError.
"""

import importlib.util
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nfc_splat.errors import UserError
from nfc_splat.rendering.hash_encoding import HashLevels

log = logging.getLogger("nfc_splat")


@cache
def tiny_cuda_nn() -> Any:
    """The module `tinycudann`, or None where there is no CUDA device or it is not installed.

    Raises:
        UserError: it is installed for a CUDA device that it was not built for; says how to build it.
    """
    if not torch.cuda.is_available():
        return None
    if importlib.util.find_spec("tinycudann") is None:
        log.info("hash encoding: plain torch, as tiny-cuda-nn is not installed; python -m nfc_splat.doctor says how to")
        return None
    try:
        import tinycudann
    except (ImportError, OSError, NameError) as error:  # NameError: none of its binaries fits the device
        major, minor = torch.cuda.get_device_capability()
        raise UserError(
            f"tiny-cuda-nn is installed but does not load ({error}): build it again with "
            f"TCNN_CUDA_ARCHITECTURES={major}{minor}, or uninstall it"
        ) from error
    log.info("hash encoding: tiny-cuda-nn")
    return tinycudann


def usable(levels: HashLevels) -> bool:
    """Whether tiny-cuda-nn is there and knows such levels."""
    return levels.n_features in (1, 2, 4, 8) and tiny_cuda_nn() is not None


@cache
def _encoding(levels: HashLevels) -> torch.nn.Module:
    settings = {
        "otype": "HashGrid",
        "n_levels": levels.n_levels,
        "n_features_per_level": levels.n_features,
        "log2_hashmap_size": levels.log2_table_size,
        "base_resolution": levels.base_resolution,
        "per_level_scale": levels.growth,
        "interpolation": "Linear",
    }
    encoding = tiny_cuda_nn().Encoding(3, settings, dtype=torch.float32)
    if encoding.params.numel() != levels.rows * levels.n_features:
        raise RuntimeError(
            f"tiny-cuda-nn lays {levels} out in {encoding.params.numel()} numbers, expected "
            f"{levels.rows * levels.n_features}: report its version"
        )
    return encoding


def hash_encode_cuda(points: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
    """`hash_encode` for float32 tensors on a CUDA device; see there."""
    return torch.func.functional_call(_encoding(levels), {"params": table.reshape(-1)}, (points,))
