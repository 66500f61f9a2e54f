"""The recipe schema: strict, for trainings of one or several stages.

Defaults are the paper's values, or ours where the paper gives none (see docs and NOTES.md). "auto" values are
computed from the data and the device before the first step; the run's recipe.toml has the resolved values.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=8, le=4096)]
Range = Annotated[tuple[Positive, Positive], Field(strict=False)]
Channels = Annotated[tuple[float, float, float], Field(strict=False)]
Changes = Annotated[list[str], Field(min_length=0, max_length=100)]
Variants = Annotated[list[Changes], Field(min_length=0, max_length=32)]


class Section(BaseModel):
    """A section of a recipe: immutable; unknown keys, values of another type, inf and nan are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Section):
    """The images to train on, and how classes are weighted."""

    merge_val: bool = False  # train on train + val, as the paper does
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2  # fraction that becomes val if the data names no splits
    splits: str = ""  # train=NAME,val=NAME: splits that are not called train, val or test
    split_seed: Annotated[int, Field(ge=0)] = 0  # of that split; the same for runs with different seeds
    balance: Literal["none", "weights", "sampling"] = "none"
    leak: Literal["drop", "stop", "allow"] = "drop"  # on a training image that equals one of another split
    max_bad: Fraction = 0.01  # refuse to train if more than this fraction of the images cannot be read
    mean: Literal["data"] | Channels = "data"  # of RGB in [0, 1]; "data": measured on the training images
    std: Literal["data"] | Channels = "data"


class ModelSettings(Section):
    """The backbone, its stem and width."""

    backbone: str
    stem: Literal["auto", "large", "medium", "small"] = "auto"  # total stride 4, 2, 1
    width: Annotated[float, Field(gt=0, le=16)] = 1.0


class Augment(Section):
    """The paper's five augmentation steps, in its order: crop, flip, policy, normalise, CutMix."""

    train_px: Pixels
    crop_area: Range = (0.08, 1.0)
    crop_aspect: Range = (3 / 4, 4 / 3)
    flip_prob: Fraction = 0.5
    policy: str = "autoaugment"  # a name in POLICIES
    num_policies: Annotated[int, Field(ge=1, le=25)] = 24
    fill: Annotated[int, Field(ge=0, le=255)] = 128
    rotate_signed: bool = True
    cutmix_prob: Fraction = 0.5
    cutmix_alpha: Positive = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from low to high, got {[low, high]}")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area is a fraction of the image's area, at most 1, got {self.crop_area[1]}")
        return self


class StageAugment(Section):
    """Augmentation that differs in one stage; what is not given is as in the section augment."""

    crop_area: Range | None = None
    crop_aspect: Range | None = None
    flip_prob: Fraction | None = None
    policy: str | None = None
    num_policies: Annotated[int, Field(ge=1, le=25)] | None = None
    fill: Annotated[int, Field(ge=0, le=255)] | None = None
    rotate_signed: bool | None = None
    cutmix_alpha: Positive | None = None


class Optim(Section):
    """The optimiser and its learning rate, which rises linearly over the warm-up and then follows the schedule."""

    optimizer: str = "sgd"  # a name in OPTIMIZERS
    options: dict[str, float] = {}  # what that optimiser takes beyond the values here, such as AdamW's beta2
    schedule: str = "cosine"  # a name in SCHEDULES
    base_lr: Positive = 0.1  # for batches of 256 images: learning rate = base_lr * batch size / 256
    lr_batch: Literal["nominal", "actual"] = "nominal"  # that size: batch_size, or the mean of an epoch's batches
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of SGD
    nesterov: bool = False  # of SGD
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay_efolds: Positive | None = None  # instead of weight_decay: by what power of e the stage shrinks a weight
    decay_norm_bias: bool = False  # apply weight decay to biases and normalisation parameters too
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0  # at most half of the stage


class Triplet(Section):
    """The batch-hard triplet loss."""

    margin: Positive | Literal["soft"] = 0.3  # Euclidean distance; "soft": log(1 + exp(positive - negative))
    normalise: bool = False  # scale features to unit length first
    mixed: Literal["skip", "lam"] = "skip"  # on a CutMix batch: no loss, or both labels' losses weighted by lambda


class ArcFace(Section):
    """The ArcFace loss, which has a head of its own."""

    scale: Positive = 30.0
    margin_rad: Annotated[float, Field(ge=0, lt=1.5)] = 0.5


class Losses(Section):
    """The hyperparameters of the losses."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1  # as in the paper: epsilon / (K - 1) on each other class
    triplet: Triplet = Triplet()
    arcface: ArcFace = ArcFace()
    weights: dict[str, Positive] = {}  # of the terms of a sum, by default 1; a loss that is not used may have one
    options: dict[str, dict[str, float]] = {}  # loss -> what its builder takes beyond the values here


class Stage(Section):
    """One stage of a training, which begins with a warm restart of the learning rate."""

    loss: str = "ce"  # or a sum: "ce+triplet", "ce+arcface"
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    first_px: Pixels | Literal["train"] = "train"  # image size in the first epoch; it then grows to augment.train_px
    grow_share: Fraction = 0.75  # the fraction of the epochs after which images have that size
    batches: Literal["auto", "shuffled", "pk"] = "auto"  # auto: chosen by the loss; pk: P classes x K images
    images_per_class: Annotated[int, Field(ge=2)] = 4  # K; P = batch_size / K; with fewer classes than P, K is raised
    lr_scale: Positive = 1.0  # factor on base_lr, for a stage that starts from trained weights
    cutmix_prob: Fraction | Literal["auto"] = "auto"  # in this stage; auto: as in the section augment
    accumulate: Count = 1  # gradient accumulation: the number of parts that a batch is split into to save memory
    ema_half_life_epochs: Annotated[float, Field(ge=0)] = 0.0  # 0: no exponential moving average of the weights
    augment: StageAugment = StageAugment()
    optim: Optim = Optim()
    losses: Losses = Losses()


class Eval(Section):
    """How a run is evaluated."""

    test_px: Annotated[list[Pixels], Field(min_length=1, max_length=16)] | Literal["auto"] = "auto"
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 0.875
    view_seed: Annotated[int, Field(ge=0)] = 0
    every_epochs: Annotated[int, Field(ge=0)] = 1  # epochs between evaluations on val; 0: after the last epoch only


class RunSettings(Section):
    """The seed, the device and how the training runs."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    members: Annotated[int, Field(ge=1, le=32)] = 1  # trainings of this recipe with other seeds, used as an ensemble
    variants: Variants = []  # KEY=VALUE in which each member differs from the recipe, in turn; not of data or run
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"  # compute threads
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"  # loading processes; 0: load between the steps
    select: Literal["last", "best"] = "last"  # the weights of the last epoch, or of the best one on val
    deterministic: bool = False  # on a GPU: refuse operations that are not deterministic
    sync_norm: bool = False  # with several processes: batch statistics over all images instead of each process's own
    cache_gb: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"  # decoded images; auto: 1/4 of free memory
    recompute: bool = False  # activation recomputation: half the memory, up to 1/5 more time
    on_collapse: Literal["stop", "continue"] = "continue"  # when a loss reports that it has collapsed
    state_minutes: Positive = 5.0  # between saved states; also after each epoch unless that takes over 2 % of the time


class Recipe(Section):
    """A whole training, from images to weights."""

    data: Data = Data()
    model: ModelSettings
    augment: Augment
    stages: Annotated[list[Stage], Field(min_length=1, max_length=100)]
    eval: Eval = Eval()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for change in (change for changes in self.run.variants for change in changes):
            if change.split(".")[0].strip() in ("data", "run"):
                raise ValueError(f"run.variants: members have the same data and run settings, got {change!r}")
        if self.run.select == "best" and self.data.merge_val:
            raise ValueError('select = "best" needs a val split, but merge_val trains on it; use select = "last"')
        if self.run.select == "best" and self.eval.every_epochs == 0:
            raise ValueError('select = "best" needs eval.every_epochs of at least 1')
        for number, stage in enumerate(self.stages):
            if stage.first_px != "train" and stage.first_px > self.augment.train_px:
                raise ValueError(
                    f"stages.{number}.first_px is the size that images grow from, at most augment.train_px "
                    f"({self.augment.train_px}), got {stage.first_px}"
                )
            self.augment_of(stage)
        return self

    def augment_of(self, stage: Stage) -> Augment:
        """The augmentation of a stage: the section augment with what the stage changes."""
        changes = stage.augment.model_dump(exclude_none=True)
        return Augment.model_validate({**self.augment.model_dump(), **changes}) if changes else self.augment
