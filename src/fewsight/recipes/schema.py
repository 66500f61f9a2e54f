"""What a recipe may say: one strict schema for one and for several stages.

Defaults are the report's values, or our default where the report is silent (see docs and NOTES.md). "auto"
values are computed from the data and the device before the first step and written into the run resolved.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=8, le=4096)]
Range = Annotated[tuple[Positive, Positive], Field(strict=False)]
Channels = Annotated[tuple[float, float, float], Field(strict=False)]


class Section(BaseModel):
    """A part of a recipe: unknown keys, values of another type, inf and nan are errors; nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Section):
    """Which images train, and how classes are weighed."""

    merge_val: bool = False  # train on train + val, as the report does
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share for val where a folder has no splits
    split_seed: Annotated[int, Field(ge=0)] = 0  # of that split; runs with other seeds share it
    balance: Literal["none", "weights", "sampling"] = "none"
    leak: Literal["drop", "stop", "allow"] = "drop"  # a training image that is equal to one of another split
    max_bad: Share = 0.01  # refuse to train when more than this share of the images cannot be read
    mean: Literal["data"] | Channels = "data"  # of RGB in [0, 1]; "data": measured on the training images
    std: Literal["data"] | Channels = "data"


class ModelSettings(Section):
    """The backbone, its stem and width."""

    backbone: str
    stem: Literal["auto", "large", "medium", "small"] = "auto"  # total stride 4, 2, 1
    width: Annotated[float, Field(gt=0, le=16)] = 1.0


class Augment(Section):
    """The report's five steps, in its order: crop, flip, policy, normalise, CutMix."""

    train_px: Pixels
    crop_area: Range = (0.08, 1.0)
    crop_aspect: Range = (3 / 4, 4 / 3)
    flip_prob: Share = 0.5
    policy: Literal["autoaugment", "trivialaugment", "none"] = "autoaugment"
    num_policies: Annotated[int, Field(ge=1, le=25)] = 24
    fill: Annotated[int, Field(ge=0, le=255)] = 128
    rotate_signed: bool = True
    cutmix_prob: Share = 0.5
    cutmix_alpha: Positive = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from low to high, got {[low, high]}")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area is a share of the image, at most 1, got {self.crop_area[1]}")
        return self


class Optim(Section):
    """SGD with momentum; the rate rises linearly, then falls on a cosine to 0, per step."""

    base_lr: Positive = 0.1  # for 256 images a batch: rate = base_lr * images a batch / 256
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay_norm_bias: bool = False  # also decay biases and normalisation parameters
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0


class Triplet(Section):
    """Batch-hard triplet."""

    margin: Positive | Literal["soft"] = 0.3  # Euclidean distance; "soft": log(1 + exp(positive - negative))
    normalise: bool = False  # features to length 1 first
    mixed: Literal["skip", "lam"] = "skip"  # what a CutMix batch gives: nothing, or both labels' losses by lam


class ArcFace(Section):
    """ArcFace on a head of its own."""

    scale: Positive = 30.0
    margin_rad: Annotated[float, Field(ge=0, lt=1.5)] = 0.5


class Losses(Section):
    """The values that the losses take."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1  # the report's: epsilon / (K - 1) on each other class
    triplet: Triplet = Triplet()
    arcface: ArcFace = ArcFace()
    weights: dict[str, Positive] = {}  # of the terms of a sum; 1 where none is given; others wait for their loss


class Stage(Section):
    """One training from a warm restart: a loss, its epochs and batches."""

    loss: str = "ce"  # or a sum: "ce+triplet", "ce+arcface"
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    first_px: Pixels | Literal["train"] = "train"  # of its first epoch; images then grow to augment.train_px
    grow_share: Share = 0.75  # of its epochs, after which they have that size
    batches: Literal["auto", "shuffled", "pk"] = "auto"  # auto: what the loss wants; pk: P classes x K images
    images_per_class: Annotated[int, Field(ge=2)] = 4  # K; P = batch_size / K, at most the classes; then K grows
    lr_scale: Positive = 1.0  # on base_lr, for a stage that starts from trained weights
    cutmix_prob: Share | Literal["auto"] = "auto"  # of this stage; auto: augment's
    accumulate: Count = 1  # parts that a batch is cut into where memory is short
    ema_half_life_epochs: Annotated[float, Field(ge=0)] = 0.0  # 0: no moving average of the weights
    optim: Optim = Optim()
    losses: Losses = Losses()


class Eval(Section):
    """How a run is tested."""

    test_px: Annotated[list[Pixels], Field(min_length=1, max_length=16)] | Literal["auto"] = "auto"
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 0.875
    view_seed: Annotated[int, Field(ge=0)] = 0
    every_epochs: Annotated[int, Field(ge=0)] = 1  # 0: after the last epoch only


class RunSettings(Section):
    """Seed, device and safety."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"  # that compute
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"  # processes that load; 0: none beside
    select: Literal["last", "best"] = "last"
    deterministic: bool = False  # a GPU: refuse every operation that could give other bits the next time
    sync_norm: bool = False  # several processes: batch statistics of all images; false: of each process's own
    cache_gb: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"  # decoded images; auto: 1/4 of free memory
    recompute: bool = False  # make cheap parts again in the backward pass: half the memory, up to 1/5 more time
    on_collapse: Literal["stop", "continue"] = "continue"  # when a loss says that it has collapsed
    state_minutes: Positive = 5.0  # and after each epoch, unless that would take over 2 % of the time


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
        if self.run.select == "best" and self.data.merge_val:
            raise ValueError('select = "best" needs a val split, but merge_val trains on it; use select = "last"')
        if self.run.select == "best" and self.eval.every_epochs == 0:
            raise ValueError('select = "best" needs eval.every_epochs of at least 1')
        for number, stage in enumerate(self.stages):
            if stage.first_px != "train" and stage.first_px > self.augment.train_px:
                raise ValueError(
                    f"stages.{number}.first_px is what images grow from, at most augment.train_px "
                    f"({self.augment.train_px}), got {stage.first_px}"
                )
        return self
