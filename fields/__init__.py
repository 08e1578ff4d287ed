"""The methods, by name. Each is one file, imported only when it is asked for.

Other packages add their own: an entry point of the group "nfc_splat.methods" that names a `Method`.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from nfc_splat.errors import UserError


@dataclass(frozen=True)
class Method:
    """A method as the doors see it.

    Attributes:
        name: the value of `--method`.
        summary: one line for `--help` and the README.
        module: where it lives. The module defines `Config` (a frozen dataclass with a docstring per field, among them
            `steps`, and `scaled_to(steps) -> Config`), `preset(name: str, **overrides) -> Config` for "quick" and
            "paper", `Model` (a `SceneModel` with `initialise(config, geometry) -> Model`), `Recipe` (a
            `nfc_splat.fields.recipe.Recipe`) and `export(model, folder) -> list[Path]`.
        dynamic: whether it models time.
        loss_weight: default weight of the classification term.
        preset_fields: fields of `Config` that choose among a preset's variants: given on the command line, they are
            passed to `preset`, so that they bring their variant's values with them.
    """

    name: str
    summary: str
    module: str
    dynamic: bool = False
    loss_weight: float = 2.0
    preset_fields: tuple[str, ...] = ()

    def load(self) -> Any:
        """The method's module."""
        return import_module(self.module)


METHODS = {
    method.name: method
    for method in (
        Method(
            "3dgs",
            "rasterised 3D Gaussians (Kerbl et al. 2023)",
            "nfc_splat.fields.gaussians",
            preset_fields=("strategy",),
        ),
        Method(
            "4dgs",
            "3D Gaussians that move: a HexPlane deforms them (4DGS, Wu et al. 2024)",
            "nfc_splat.fields.deformed_gaussians",
            dynamic=True,
        ),
        Method(
            "dvgo",
            "voxel grids, coarse to fine (DirectVoxGO, Sun et al. 2022)",
            "nfc_splat.fields.dvgo",
            preset_fields=("bounded",),
        ),
        Method("ngp", "a hash-grid radiance field (Instant-NGP, Mueller et al. 2022)", "nfc_splat.fields.ngp"),
        Method(
            "nerf",
            "a neural radiance field (Mildenhall et al. 2020)",
            "nfc_splat.fields.nerf",
            preset_fields=("space",),
        ),
        Method(
            "dnerf",
            "a static field behind a deformation, for scenes that move (D-NeRF, Pumarola et al. 2021)",
            "nfc_splat.fields.dnerf",
            dynamic=True,
        ),
        Method(
            "neus",
            "a signed distance field and its surface (NeuS, Wang et al. 2021)",
            "nfc_splat.fields.neus",
            loss_weight=20.0,
        ),
        Method(
            "strivec",
            "sparse tri-vector tensors at several scales (Strivec, Gao et al. 2023)",
            "nfc_splat.fields.strivec",
        ),
    )
}


def find_method(name: str) -> Method:
    """The method called `name`, of this package or an installed one; a `UserError` that lists the names otherwise."""
    if name in METHODS:
        return METHODS[name]
    installed = {point.name: point for point in entry_points(group="nfc_splat.methods")}
    if name not in installed:
        raise UserError(f"--method {name}: expected one of {', '.join([*METHODS, *installed])}")
    method = installed[name].load()
    if not isinstance(method, Method):
        raise UserError(f"--method {name}: {installed[name].value} is {method!r}, expected a nfc_splat.fields.Method")
    return method
