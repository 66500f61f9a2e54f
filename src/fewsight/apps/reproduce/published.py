"""The paper's models, the trainings behind them and the figures of its tables.

Source: DeepBlueAI, "A Technical Report for VIPriors Image Classification Challenge", tables 1 and 2, section III.D.
"""

from dataclasses import dataclass

TEST_SIZES = (224, 320, 380, 448)  # in pixels; the train size is 224 in all rows but one
FUSION_TOP1 = 0.7015  # of all 28 rows


@dataclass(frozen=True)
class Training:
    """One of the eight trainings."""

    recipe: str  # a shipped recipe
    family: str
    loss: str
    start: str | None = None  # the recipe of the training whose weights it starts from
    large: bool = False  # trained at 448 px, and tested only at that size


@dataclass(frozen=True)
class Model:
    """One of the seven models, which has four rows in the tables."""

    table: int
    family: str
    loss: str
    recipes: tuple[str, str, str, str]  # of the run that gives the row at each of `TEST_SIZES`
    top1: tuple[float, float, float, float]  # in the paper, at each of `TEST_SIZES`


TRAININGS = (
    Training("resnest101_ce", "ResNeSt", "CE"),
    Training("tresnet_xl_ce", "TResNet", "CE"),
    Training("seresnext101_ce", "SE-ResNeXt", "CE"),
    Training("resnest101_ce_448", "ResNeSt", "CE", large=True),
    Training("resnest101_ce_triplet", "ResNeSt", "CE + triplet", "resnest101_ce"),
    Training("resnest101_ce_arcface", "ResNeSt", "CE + ArcFace", "resnest101_ce"),
    Training("tresnet_xl_ce_triplet", "TResNet", "CE + triplet", "tresnet_xl_ce"),
    Training("seresnext101_ce_arcface", "SE-ResNeXt", "CE + ArcFace", "seresnext101_ce"),
)

MODELS = (
    Model(
        1,
        "ResNeSt",
        "CE",
        ("resnest101_ce", "resnest101_ce", "resnest101_ce", "resnest101_ce_448"),
        (0.6316, 0.6518, 0.6500, 0.6414),
    ),
    Model(1, "ResNeSt", "CE + triplet", ("resnest101_ce_triplet",) * 4, (0.6310, 0.6521, 0.6476, 0.6393)),
    Model(1, "ResNeSt", "CE + ArcFace", ("resnest101_ce_arcface",) * 4, (0.6335, 0.6636, 0.6623, 0.6583)),
    Model(2, "TResNet", "CE", ("tresnet_xl_ce",) * 4, (0.6058, 0.6368, 0.6345, 0.6418)),
    Model(2, "TResNet", "CE + triplet", ("tresnet_xl_ce_triplet",) * 4, (0.6262, 0.6516, 0.6482, 0.6399)),
    Model(2, "SE-ResNeXt", "CE", ("seresnext101_ce",) * 4, (0.6307, 0.6526, 0.6519, 0.6443)),
    Model(2, "SE-ResNeXt", "CE + ArcFace", ("seresnext101_ce_arcface",) * 4, (0.6303, 0.6584, 0.6594, 0.6532)),
)
