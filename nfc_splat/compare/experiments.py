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
        line: which line of the plot it is a point of, where there is a plot.
        place: and where along the line.
    """

    label: str
    flags: tuple[str, ...]
    line: str = ""
    place: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """What is varied besides scenes, methods and seeds.

    Attributes:
        name: the value of `--experiment`.
        summary: one line.
        methods: those compared unless told.
        variants: of each method.
        surfaces: whether a mesh is extracted and measured.
        axis: what the plot's lines go along, if there is a plot of PSNR.
        published: rows of the paper, by label, with the columns' names as keys; lengths in metres.
        source: what the published rows are of.
    """

    name: str
    summary: str
    methods: tuple[str, ...]
    variants: tuple[Variant, ...]
    surfaces: bool = False
    axis: str = ""
    source: str = ""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


VIEWS = (10, 20, 25, 50, 100)
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
            source="means over eight scenes of Replica, another scene and budget",
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
        Experiment(
            "few-views",
            "images from few training views by regression and by classification (Table 12)",
            ("strivec",),
            tuple(
                Variant(f"{views} views, {loss.label}", ("--train-views", str(views), *loss.flags), loss.label, views)
                for views in VIEWS
                for loss in LOSSES
            ),
            axis="training views",
            source="the Chair of NeRF synthetic at 800x800, from a number of views that the paper does not state",
            published={
                "Strivec, regression": {"psnr": 28.53, "ssim": 0.944, "lpips": 0.0672},
                "Strivec, classification": {"psnr": 32.10, "ssim": 0.969, "lpips": 0.0217},
            },
        ),
    )
}
