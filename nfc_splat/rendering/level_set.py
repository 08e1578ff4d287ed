"""A scene's surface as the level set of a field: what mesh extraction needs to know of a model, whatever it is.

Symbols: N points.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LevelSet:
    """The surface { x : values(x) = level } inside of a box; matter is where values(x) > level.

    A model that has one offers `level_set() -> LevelSet`. For a density these are its values and a chosen level; for a
    signed distance f, which is negative inside of matter, values are -f and the level is 0.

    Attributes:
        values: [N, 3] float32 world positions, on the model's device -> [N] float32. May be asked outside of `bounds`;
            works in chunks of its own choice where memory asks for it, without a gradient.
        level: where the surface is.
        bounds: [2, 3] float32, lowest and highest corner of the box in which the field is meant, in the scene's frame.
    """

    values: Callable[[Tensor], Tensor]
    level: float
    bounds: Tensor
