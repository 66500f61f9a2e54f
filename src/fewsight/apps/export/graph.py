"""The computation of an exported model as one module: from uint8 images to the probabilities of `predict`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewsight.apps.export.crops import CenterBox, resample
from fewsight.augment.normalise import Normalise
from fewsight.errors import RecipeError
from fewsight.inference.opening import RunsAndViews
from fewsight.inference.score_run import load_model


@dataclass(frozen=True)
class Cut:
    """How a view is cut from an image: an input of the graph, or cut inside it."""

    crop: str  # a name in augment.CROPS
    px: int
    ratio: float | None  # of a centre crop: the proportion of the short side that it shows
    scale: int | None  # with view_seed, draws the box of any other crop
    view_seed: int | None


@dataclass(frozen=True)
class Side:
    """A cut or its mirror image, an input of a run's model."""

    cut: int  # index among the cuts
    flipped: bool
    weight: float  # of its probabilities in the average


def cuts_and_sides(selection: RunsAndViews) -> tuple[dict[str, Cut], dict[str, tuple[Side, ...]]]:
    """The cuts by the names of the graph's inputs (such as `center_64`), and the sides that each run's model sees."""
    cuts: dict[Cut, int] = {}
    sides: dict[str, tuple[Side, ...]] = {}
    for name, run in selection.runs.items():
        settings, flips = run.recipe.eval, run.recipe.augment.flip_prob > 0
        weights: dict[tuple[int, bool], float] = {}
        for view, weight in zip(selection.views[name], selection.view_weights(name), strict=True):
            is_random = view.crop != "center"
            cut = Cut(
                view.crop,
                view.px,
                None if is_random else settings.crop_ratio,
                view.scale if is_random else None,
                settings.view_seed if is_random else None,
            )
            index = cuts.setdefault(cut, len(cuts))
            mirrorings = (False, True) if flips and view.flip else (False,)
            for flipped in mirrorings:
                weights[index, flipped] = weights.get((index, flipped), 0.0) + float(weight) / len(mirrorings)
        sides[name] = tuple(Side(index, flipped, weight) for (index, flipped), weight in weights.items())
    return _named(list(cuts)), sides


def _named(cuts: Sequence[Cut]) -> dict[str, Cut]:
    """A single cut is named `images`; several by crop and size, with a number where these are equal."""
    if len(cuts) == 1:
        return {"images": cuts[0]}
    names: dict[str, Cut] = {}
    for cut in cuts:
        name, number = f"{cut.crop}_{cut.px}", 2
        while name in names:
            name, number = f"{cut.crop}_{cut.px}_{number}", number + 1
        names[name] = cut
    return names


class Scorer(nn.Module):
    """A run's model on its sides of the cuts: log-probabilities plus the logarithms of the sides' weights, [S, B, K].

    Sides of equal size go through the model as one batch.
    """

    def __init__(self, model: nn.Module, normalise: Normalise, sides: Sequence[Side], cuts: Sequence[Cut]) -> None:
        super().__init__()
        self.model, self.normalise = model, normalise
        sizes = sorted({cuts[side.cut].px for side in sides})
        self.groups = [[side for side in sides if cuts[side.cut].px == px] for px in sizes]

    def forward(self, cuts: Sequence[Tensor]) -> Tensor:
        """Score the cuts, float32 [B, 3, px, px] each, in [0, 1]: float32 [S, B, K]."""
        outputs = []
        for sides in self.groups:
            images = torch.cat([cuts[side.cut].flip(3) if side.flipped else cuts[side.cut] for side in sides])
            logits, _ = self.model(self.normalise(images))
            log_probs = torch.log_softmax(logits, dim=1)
            log_probs = log_probs.reshape(len(sides), -1, log_probs.shape[1])  # [S * B, K] -> [S, B, K]
            weights = torch.tensor([side.weight for side in sides], dtype=torch.float64)
            outputs.append(log_probs + weights.log().float()[:, None, None])
        return torch.cat(outputs)


class Graph(nn.Module):
    """Cuts of images -> probabilities [B, K]: the weighted mean over all sides, at the temperature.

    Takes a uint8 [B, px, px, 3] for each cut.
    """

    def __init__(self, scorers: Sequence[Scorer], temperature: float) -> None:
        super().__init__()
        self.scorers, self.temperature = nn.ModuleList(scorers), temperature

    def forward(self, *cuts: Tensor) -> Tensor:
        return self.score([cut.permute(0, 3, 1, 2).float() / 255 for cut in cuts])

    def score(self, cuts: Sequence[Tensor]) -> Tensor:
        """Cuts, float32 [B, 3, px, px] each, in [0, 1] -> probabilities, float32 [B, K].

        An image with a score that is not finite has no probability: NaN for every class.
        """
        scores = torch.cat([scorer(cuts) for scorer in self.scorers])  # [S, B, K]
        probs = torch.softmax(torch.logsumexp(scores, dim=0) / self.temperature, dim=1)
        return torch.where(torch.isfinite(scores).all(2).all(0)[:, None], probs, torch.nan)


class CroppingGraph(nn.Module):
    """Images of one shape -> probabilities [B, K]: a `Graph` that cuts the views itself.

    Takes images, uint8 [B, H, W, 3], and if there are random crops their boxes, float32 [B, R, 4].

    Raises:
        RecipeError: a crop is neither center nor random.
    """

    def __init__(self, graph: Graph, cuts: Sequence[Cut]) -> None:
        super().__init__()
        unsupported = next((cut.crop for cut in cuts if cut.crop not in ("center", "random")), None)
        if unsupported is not None:
            raise RecipeError(f"--crop: the graph can cut center and random crops, not {unsupported}; leave out --crop")
        self.scorer = graph  # torch.export fails on a submodule named `graph`
        self.px = [cut.px for cut in cuts]
        centers = [None if cut.ratio is None else CenterBox(cut.px, cut.ratio) for cut in cuts]
        self.centers = nn.ModuleList([nn.Identity() if center is None else center for center in centers])

    def forward(self, images: Tensor, boxes: Tensor | None = None) -> Tensor:
        pixels, num_boxes_used, cuts = images.permute(0, 3, 1, 2).double(), 0, []
        for center, px in zip(self.centers, self.px, strict=True):
            if isinstance(center, CenterBox):
                box = center(pixels)
            else:
                assert boxes is not None, "random crops have boxes"
                box, num_boxes_used = boxes[:, num_boxes_used], num_boxes_used + 1
            cuts.append((resample(pixels, box, px) / 255).float())
        return self.scorer.score(cuts)


def build_graph(
    selection: RunsAndViews, cuts: Mapping[str, Cut], sides: Mapping[str, Sequence[Side]], temperature: float
) -> Graph:
    """Build the graph of a run or an ensemble with its weights, on the CPU in float32.

    Raises:
        RunError: the weights of a run are damaged.
    """
    device, scorers = torch.device("cpu"), []
    for name, run in selection.runs.items():
        model, normalise = load_model(run, device), Normalise(run.data.mean, run.data.std)
        scorers.append(Scorer(model, normalise, sides[name], list(cuts.values())))
    return Graph(scorers, temperature).eval()
