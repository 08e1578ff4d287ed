"""What is compared, by name: each experiment is a list of variants of the training command.

Sources: the tables and figures of NFC (arXiv 2403.01058); `controls`, `encodings` and `grid` are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

SHARES = (0.2, 0.4, 0.6, 0.8)
DEVIATIONS = (0.2, 0.4, 0.6)
VIEWS = (10, 20, 25, 50, 100)
WEIGHTS = (0.5, 1, 2, 5, 10, 20)
FACTORS = (5, 10, 20)
SIDES = (64, 96, 128)
STEPSIZES = (0.25, 0.5, 1.0)
EPS = 1e-15
CURVE_POINTS = 20


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        label: as the table names it. Variants of the same label are the same training in every experiment.
        flags: of `python -m nfc_splat.train`, which every method has.
        settings: of the method's configuration; methods without one of them have no such variant.
        line: which line of the plot it is a point of, where there is a plot.
        place: and where along the line.
        beside: label of the variant that it is compared with, its own for none; "" for the method's first one.
    """

    label: str
    flags: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""
    place: float = 0.0
    beside: str = ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """What it adds to the command."""
        chosen = [(f"--{name.replace('_', '-')}", str(value)) for name, value in self.settings.items()]
        return (*self.flags, *(word for pair in chosen for word in pair))


@dataclass(frozen=True)
class Experiment:
    """What is varied besides scenes, methods and seeds.

    Attributes:
        name: the value of `--experiment`.
        summary: one line.
        methods: those compared unless told.
        variants: of each method.
        rival: label of a variant that every other one is also compared with.
        surfaces: whether a mesh is extracted and measured.
        axis: what the plot's lines go along, if there is a plot of PSNR.
        even: whether the places along the axis are drawn at equal distances.
        curves: whether the runs record PSNR along the training, which is then plotted.
        cost: whether the table tells what drawing a view takes.
    """

    name: str
    summary: str
    methods: tuple[str, ...]
    variants: tuple[Variant, ...]
    rival: str = ""
    surfaces: bool = False
    axis: str = ""
    even: bool = False
    curves: bool = False
    cost: bool = False


def _loss(name: str, label: str = "", **settings: Any) -> Variant:
    return Variant(label or name, ("--loss", name), settings)


REGRESSION, CLASSIFICATION = _loss("regression"), _loss("classification")
ENCODING_ALONE = _loss("regression", "target encoding alone", target_encoding="binary")
CLASSIFICATION_ALONE = _loss("classification", "classification, no encoding", target_encoding="none")
LOSSES = (REGRESSION, CLASSIFICATION)


def _along(variants: Sequence[Variant], stem: str, flag: str, places: Sequence[float]) -> tuple[Variant, ...]:
    """Each of `variants` at each of the places, which the flag is given: lines of a plot, compared at each place."""

    def named(place: float, one: Variant) -> str:
        return f"{stem} {place:g}, {one.label}"

    return tuple(
        Variant(
            named(place, one),
            (flag, f"{place:g}", *one.flags),
            one.settings,
            line=one.label,
            place=place,
            beside=named(place, variants[0]),
        )
        for place in places
        for one in variants
    )


def _at(place: float, variants: Sequence[Variant] = LOSSES) -> tuple[Variant, ...]:
    """The variants themselves, as points at `place` of lines of their own."""
    return tuple(Variant(one.label, one.flags, one.settings, one.label, place, variants[0].label) for one in variants)


def _scaled(factor: float) -> Variant:
    return Variant(f"regression, {factor:g} x", ("--loss", "regression", "--photometric-weight", f"{factor:g}"))


def _weighted(weight: float) -> Variant:
    flags = ("--loss", "classification", "--loss-weight", f"{weight:g}")
    label = f"classification, weight {weight:g}"
    return Variant(label, flags, line="classification", place=weight, beside=REGRESSION.label)


def _grid(side: int, stepsize: float, loss: Variant) -> Variant:
    settings = {"voxels": side**3, "stepsize": stepsize}
    line = f"{loss.label}, step {stepsize:g}"
    label, beside = (f"side {side}, step {stepsize:g}, {name}" for name in (loss.label, REGRESSION.label))
    return Variant(label, loss.flags, settings, line, side, beside)


def _recorded(variant: Variant) -> Variant:
    flags = (*variant.flags, "--curve-points", str(CURVE_POINTS))
    return Variant(f"{variant.label}, recorded", flags, variant.settings, line=variant.label)


FIELDS = ("dvgo", "ngp")
CONTROLS = (*map(_scaled, FACTORS), _loss("regression", f"regression, eps {EPS:g}", adam_eps=EPS))
CODES = [_loss("classification", f"classification, {code}", target_encoding=code) for code in
         ("gray", "onehot", "thermometer")]  # fmt: skip
BITS = (_loss("bitwise", "bitwise"), _loss("bitwise", "bitwise, gray", target_encoding="gray"))
_ALL = (
    Experiment("static", "images by regression and by classification (Tables 1, 2)", (*FIELDS, "3dgs"), LOSSES),
    Experiment("dynamic", "scenes that move (Table 3)", ("dnerf", "4dgs"), LOSSES),
    Experiment(
        "sparse",
        "images from a random share of the training views (Table 4)",
        ("dvgo",),
        (*_along(LOSSES, "share", "--train-share", SHARES), *_at(1.0)),
        axis="share of the training views",
    ),
    Experiment(
        "noise",
        "images from training views spoiled by noise (Table 5)",
        ("dvgo",),
        (*_at(0.0), *_along(LOSSES, "noise", "--train-noise", DEVIATIONS)),
        axis="standard deviation of the noise",
    ),
    Experiment("surface", "images and surfaces (Table 6)", ("neus", "dvgo", "ngp", "3dgs"), LOSSES, surfaces=True),
    Experiment(
        "ablation",
        "loss and target encoding apart (Tables 7, 8, 13)",
        FIELDS,
        (REGRESSION, CLASSIFICATION_ALONE, ENCODING_ALONE, CLASSIFICATION),
    ),
    Experiment(
        "few-views",
        "images from few training views (Table 12)",
        ("strivec",),
        _along(LOSSES, "views", "--train-views", VIEWS),
        axis="training views",
    ),
    Experiment(
        "lambda",
        "the weight of the classification loss (Figure 7)",
        FIELDS,
        (*_at(0.0, (REGRESSION,)), *map(_weighted, WEIGHTS)),
        axis="weight of the classification loss",
        even=True,
    ),
    Experiment(
        "cost",
        "time and memory of training, time of drawing (Section 5)",
        FIELDS,
        (REGRESSION, CLASSIFICATION_ALONE, CLASSIFICATION),
        cost=True,
    ),
    Experiment(
        "controls",
        "whether a larger weight or a smaller epsilon does what classification does",
        FIELDS,
        (
            REGRESSION,
            *CONTROLS,
            CLASSIFICATION,
            replace(
                _loss("classification", f"classification, eps {EPS:g}", adam_eps=EPS), beside=f"regression, eps {EPS:g}"
            ),
        ),
        rival=CLASSIFICATION.label,
    ),
    Experiment(
        "encodings",
        "codes of the colours, and the loss of bits (Eq. 3); classification without a name is of NFC's binary code",
        FIELDS,
        (REGRESSION, CLASSIFICATION_ALONE, CLASSIFICATION, *CODES, *BITS),
    ),
    Experiment(
        "grid",
        "sizes of voxels and of steps along rays",
        ("dvgo",),
        tuple(_grid(side, size, loss) for size in STEPSIZES for side in SIDES for loss in LOSSES),
        axis="voxels along a side",
    ),
    Experiment(
        "curves",
        "training and test views along the training (Figure 7)",
        FIELDS,
        tuple(map(_recorded, LOSSES)),
        curves=True,
    ),
)

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def chosen(losses: Sequence[str], encodings: Sequence[str]) -> Experiment:
    """Each of the losses with each of the target encodings, or with its own where none are named."""
    coded = [_loss(loss, f"{loss}, {code}", target_encoding=code) for loss in losses for code in encodings]
    name = "+".join([*losses, *encodings])
    return Experiment(name, "losses and target encodings as asked", FIELDS, tuple(coded or map(_loss, losses)))
