"""A backbone with a linear head; its weights as named tensors."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewsight.errors import RunError
from fewsight.models import TIMM_PREFIX, Backbone, TimmBackbone, build_backbone
from fewsight.models.layers import global_average_pool
from fewsight.recipes import Recipe
from fewsight.wording import named


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
        """Class activation maps in float32: by how much a class's logit exceeds the mean logit at each position.

        The mean over a map, plus the same difference of the head's biases, is the difference for the whole image: the
        maps account for the whole logit.

        Args:
            images: [B, 3, H, W], normalised.
            classes: int64 [B], the index of the class to explain in each image.

        Returns:
            [B, h, w].

        Raises:
            RunError: the head's input is not the mean of a feature map, as in some models of timm.

        Source: Zhou et al., arXiv 1512.04150; the mean over classes is subtracted because it changes no probability.
        """
        maps = self.backbone.feature_map(images)
        features = global_average_pool(maps)
        if isinstance(self.backbone, TimmBackbone):  # our own backbones pool by the mean
            pooled = self.backbone(images)
            if pooled.shape != features.shape or not torch.allclose(pooled, features, rtol=1e-2, atol=1e-3):
                raise RunError("this backbone has more layers than a mean between its feature map and the head")
        weight = (self.head.weight[classes] - self.head.weight.mean(0)).float()
        return torch.einsum("bdhw,bd->bhw", maps.float(), weight)


def resolve_stem(train_px: int, backbone_name: str = "") -> str:
    """The stem that `stem = "auto"` stands for at a training size in pixels; "large" for every model of timm."""
    if train_px >= 112 or backbone_name.startswith(TIMM_PREFIX):
        return "large"
    return "medium" if train_px >= 48 else "small"


def with_stem(recipe: Recipe) -> Recipe:
    """The recipe with its stem resolved; stem and width have their defaults for a model of timm, which has its own."""
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
    """The same classifier on torch's meta device, to check names and shapes without allocating the weights.

    A model of timm is allocated in any case, because it reads values of tensors while it is built.
    """
    device = contextlib.nullcontext() if backbone_name.startswith(TIMM_PREFIX) else torch.device("meta")
    with device:
        return build_model(backbone_name, num_classes, stem=stem, width=width)


def weights_out(model: nn.Module) -> dict[str, Tensor]:
    """All weights and running statistics by name: contiguous copies on the CPU, in the model's precision."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "weights") -> None:
    """Copy tensors into the model by name, all of them or none.

    Args:
        tensors: from `weights_out` of a model with the same recipe and classes.
        source: where the tensors come from, for the error message.

    Raises:
        RunError: as `check_weights`; the model is unchanged.
    """
    check_weights(model, tensors, source=source)
    model.load_state_dict(dict(tensors))


def check_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "weights") -> None:
    """Check that tensors have the names and shapes of the model's, which may be on the meta device.

    Raises:
        RunError: a name is missing or unexpected, or a tensor has another shape.
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


def _listed(kind: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {kind}: {named(names)}"] if names else []


def initial_model(recipe: Recipe, num_classes: int) -> Classifier:
    """The model before its first step, with weights that are a function of the recipe's seed."""
    torch.manual_seed(recipe.run.seed)
    model = build_model(recipe.model.backbone, num_classes, stem=recipe.model.stem, width=recipe.model.width)
    if isinstance(model.backbone, Backbone):
        model.backbone.enable_recomputation(recipe.run.recompute)
    return model
