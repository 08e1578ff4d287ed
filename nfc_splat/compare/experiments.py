"""What is compared, by name: each experiment is a list of variants of the training command.

Sources: the tables of NFC (arXiv 2403.01058).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        label: as the table names it.
        flags: of `python -m nfc_splat.train`.
    """

    label: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """What is varied besides scenes, methods and seeds.

    Attributes:
        name: the value of `--experiment`.
        summary: one line.
        methods: those compared unless told.
        variants: of each method.
        surfaces: whether a mesh is extracted and measured.
        published: rows of the paper, by label, with the columns' names as keys; lengths in metres.
    """

    name: str
    summary: str
    methods: tuple[str, ...]
    variants: tuple[Variant, ...]
    surfaces: bool = False
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


LOSSES = tuple(Variant(loss, ("--loss", loss)) for loss in ("regression", "classification"))

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "static",
            "images by regression and by classification (Tables 1 and 2)",
            ("dvgo", "ngp", "3dgs"),
            LOSSES,
        ),
        Experiment(
            "surface",
            "images and surfaces by regression and by classification (Table 6)",
            ("neus", "dvgo", "ngp", "3dgs"),
            LOSSES,
            surfaces=True,
            published={
                "NeuS, regression": {
                    "psnr": 29.38,
                    "ssim": 0.873,
                    "lpips": 0.145,
                    "accuracy": 0.1721,
                    "completeness": 0.4326,
                    "chamfer_l1_mean": 0.3024,
                    "precision": 0.2370,
                    "recall": 0.1191,
                    "fscore": 0.1487,
                    "normal_consistency": 0.6962,
                },
                "NeuS, classification": {
                    "psnr": 33.68,
                    "ssim": 0.908,
                    "lpips": 0.0848,
                    "accuracy": 0.07420,
                    "completeness": 0.07957,
                    "chamfer_l1_mean": 0.07689,
                    "precision": 0.5643,
                    "recall": 0.5480,
                    "fscore": 0.5556,
                    "normal_consistency": 0.7691,
                },
            },
        ),
    )
}
