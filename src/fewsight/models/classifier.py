"""A backbone with a linear head, and its weights as named tensors."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewsight.errors import RunError
from fewsight.models import TIMM_PREFIX, Backbone, TimmBackbone, build_backbone
from fewsight.models.layers import global_average_pool
from fewsight.recipes import Recipe

MAX_NAMED = 5  # names listed for each kind of mismatch


class Classifier(nn.Module):
    """A backbone and a linear head: images [B, 3, H, W] -> (logits [B, num_classes], features [B, D])."""

    def __init__(self, backbone: Backbone | TimmBackbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_classes)

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return self.head(features), features

    def activation_maps(self, images: Tensor, classes: Tensor) -> Tensor:
        """Class activation maps, float32: images [B, 3, H, W], positions of classes [B] -> [B, h, w].

        At each position: how far the class's logit lies above the mean of all classes' logits. The mean over a map,
        and the same difference of the head's biases, give that of the whole image: nothing is left out.

        Raises:
            RunError: the head does not see the mean of a feature map, as in some models of timm.

        Source: Zhou et al., arXiv 1512.04150; the mean over classes is taken off because it changes no probability.
        """
        maps = self.backbone.feature_map(images)
        features = global_average_pool(maps)
        if isinstance(self.backbone, TimmBackbone):  # ours are the mean of their maps
            pooled = self.backbone(images)
            if pooled.shape != features.shape or not torch.allclose(pooled, features, rtol=1e-2, atol=1e-3):
                raise RunError("this backbone has more than a mean between its feature map and the head")
        weight = (self.head.weight[classes] - self.head.weight.mean(0)).float()
        return torch.einsum("bdhw,bd->bhw", maps.float(), weight)


def resolve_stem(train_px: int, backbone_name: str = "") -> str:
    """The stem that `stem = "auto"` means for a training size; "large" for every model of timm."""
    if train_px >= 112 or backbone_name.startswith(TIMM_PREFIX):
        return "large"
    return "medium" if train_px >= 48 else "small"


def with_stem(recipe: Recipe) -> Recipe:
    """The recipe with its stem resolved; a model of timm has its own stem and width."""
    model = recipe.model
    if model.backbone.startswith(TIMM_PREFIX):
        model = model.model_copy(update={"stem": "large", "width": 1.0})
    elif model.stem == "auto":
        model = model.model_copy(update={"stem": resolve_stem(recipe.augment.train_px, model.backbone)})
    return recipe.model_copy(update={"model": model})


def build_model(backbone_name: str, num_classes: int, *, stem: str = "large", width: float = 1.0) -> Classifier:
    """A classifier with random weights; the arguments are those of `build_backbone`."""
    return Classifier(build_backbone(backbone_name, stem=stem, width=width), num_classes)


def build_without_memory(
    backbone_name: str, num_classes: int, *, stem: str = "large", width: float = 1.0
) -> Classifier:
    """The same classifier with shapes alone, to check names and sizes before memory is spent on them.

    A model of timm takes its memory all the same: it reads values from tensors while it is built.
    """
    weightless = contextlib.nullcontext() if backbone_name.startswith(TIMM_PREFIX) else torch.device("meta")
    with weightless:
        return build_model(backbone_name, num_classes, stem=stem, width=width)


def weights_out(model: nn.Module) -> dict[str, Tensor]:
    """All weights and norm statistics by name: contiguous copies on the CPU, in the model's precision."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "weights") -> None:
    """Copies tensors into the model by name, all of them or none.

    Args:
        tensors: what `weights_out` gave for a model of the same recipe and classes.
        source: what the tensors came from, for the message.

    Raises:
        RunError: as `check_weights`; the model is unchanged.
    """
    check_weights(model, tensors, source=source)
    model.load_state_dict(dict(tensors))


def check_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "weights") -> None:
    """Refuse tensors that are not the model's; it may be one without memory.

    Raises:
        RunError: when a name is missing, unexpected, or has another shape.
    """
    own = model.state_dict()
    problems = _listed("missing", [name for name in own if name not in tensors])
    problems += _listed("unexpected", [name for name in tensors if name not in own])
    problems += _listed(
        "of another shape",
        [
            f"{name} (the model has {list(own[name].shape)}, {source} {list(tensors[name].shape)})"
            for name in own
            if name in tensors and own[name].shape != tensors[name].shape
        ],
    )
    if problems:
        raise RunError(
            f"{source} do not fit the model: {'; '.join(problems)}. "
            "Use the recipe and the classes that they were trained with"
        )


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return [f"{len(names)} {what}: {', '.join(names[:MAX_NAMED])}{more}"]


def initial_model(recipe: Recipe, num_classes: int) -> Classifier:
    """The model before its first step: a function of the recipe's seed."""
    torch.manual_seed(recipe.run.seed)
    model = build_model(recipe.model.backbone, num_classes, stem=recipe.model.stem, width=recipe.model.width)
    if isinstance(model.backbone, Backbone):
        model.backbone.enable_recomputation(recipe.run.recompute)
    return model
