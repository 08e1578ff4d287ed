"""The published ways to compare a reconstruction with its truth, as data: what is done, with which numbers.

    clean -> to the truth's frame -> frustum culling -> alignment -> crop -> sample -> score, several times

A protocol switches steps on and sets their numbers; `nfc_splat.eval.evaluation` follows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.culling import Frusta
from nfc_splat.eval.surface import Box


@dataclass(frozen=True)
class Protocol:
    """What is done to two surfaces before and while they are compared.

    Attributes:
        name: the value of `--protocol`.
        source: whose numbers it reproduces.
        thresholds: of precision, recall and F-score, in the units of the truth; None for a hundredth of the diagonal of
            the truth's box.
        input_unit: what the files are measured in, None when any will do.
        shown_unit: what the table is in, None for the input's.
        percent: whether the table has ratios in percent.
        cull: whether to leave out what no camera sees; needs frusta.
        crop: by how much the box around the truth's vertices, used by a face or not, is enlarged before the prediction
            is cropped to it; None for no crop.
        icp: farthest correspondence of a rigid alignment by ICP, None for no alignment.
        samples: of each mesh.
        repeats: samplings, for the interval.
        depth_views: random views of Depth L1, 0 for none.
        benchmark: whose own preparation replaces culling, alignment and crop.
    """

    name: str
    source: str
    thresholds: tuple[float, ...] | None = None
    input_unit: Literal["m", "mm"] | None = None
    shown_unit: Literal["cm", "mm"] | None = None
    percent: bool = False
    cull: bool = False
    crop: float | None = None
    icp: float | None = None
    samples: int = 200_000
    repeats: int = 3
    depth_views: int = 0
    benchmark: Literal["tanks-and-temples", "dtu"] | None = None


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol("plain", "the two surfaces as they are"),
            Protocol(
                "replica",
                "MonoSDF replica_eval; the columns of NFC's Table 6",
                thresholds=(0.05,),
                input_unit="m",
                shown_unit="cm",
                percent=True,
                cull=True,
                crop=1.05,
            ),
            Protocol(
                "nice-slam",
                "NICE-SLAM eval_recon",
                thresholds=(0.05,),
                input_unit="m",
                shown_unit="cm",
                percent=True,
                cull=True,
                icp=0.1,
                depth_views=1000,
            ),
            Protocol(
                "tanks-and-temples",
                "isl-org/TanksAndTemples, training scenes",
                input_unit="m",
                percent=True,
                samples=4_000_000,
                repeats=1,
                benchmark="tanks-and-temples",
            ),
            Protocol(
                "dtu",
                "jzhangbs/DTUeval-python; mask culling of UNISURF and MonoSDF",
                thresholds=(1.0,),
                input_unit="mm",
                repeats=1,
                benchmark="dtu",
            ),
        )
    }
)


@dataclass(frozen=True, eq=False)
class SceneGeometry:
    """What a protocol needs to know besides the two surfaces.

    Attributes:
        to_world: [4, 4] from the prediction's frame to the truth's; None where they are one.
        frusta: the cameras of frustum culling.
        box: what the crop enlarges instead of open3d's box around the truth.
        unseen: [U, 3] points of the truth that no camera saw, for Depth L1.
        folder: of the scene, for benchmarks with files of their own.
        camera_log: the prediction's cameras in Tanks and Temples' format.
        scan: DTU's number of the scene; by default that in the name of the truth's file.
        masked_views: projections [C, 3, 4] and object masks [C, H, W] of DTU's mask culling, None to leave it out.
        origin: where each of these came from, for the record.
    """

    to_world: np.ndarray | None = None
    frusta: Frusta | None = None
    box: Box | None = None
    unseen: np.ndarray | None = None
    folder: Path | None = None
    camera_log: Path | None = None
    scan: int | None = None
    masked_views: tuple[np.ndarray, np.ndarray] | None = None
    origin: Mapping[str, str] = field(default_factory=dict)


def find_protocol(protocol: Protocol | str) -> Protocol:
    """A protocol by name; one that is given is checked."""
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise UserError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[protocol]
    if protocol.samples < 1 or protocol.repeats < 1:
        raise UserError(
            f"{protocol.samples} samples, {protocol.repeats} times: expected at least 1 (--samples, --repeats)"
        )
    for threshold in protocol.thresholds or ():
        if not 0 < threshold < float("inf"):
            raise UserError(f"--threshold {threshold:g}: expected a positive length")
    return protocol


def with_choices(
    protocol: Protocol, *, thresholds: Sequence[float] = (), samples: int | None = None, repeats: int | None = None
) -> Protocol:
    """The protocol with other numbers, where they are given; checked."""
    changed = replace(
        protocol,
        thresholds=tuple(dict.fromkeys(thresholds)) or protocol.thresholds,
        samples=protocol.samples if samples is None else samples,
        repeats=protocol.repeats if repeats is None else repeats,
    )
    return find_protocol(changed)
