"""Any model of timm as a backbone (the extra `timm`); weights are random and never downloaded."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from fewsight.errors import RecipeError, RunError


class TimmBackbone(nn.Module):
    """A timm model without its classifier: images [B, 3, H, W] -> features [B, D].

    Args:
        model: a timm model created with `num_classes=0`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.num_features = int(model.head_hidden_size or model.num_features)

    def feature_map(self, images: Tensor) -> Tensor:
        """The feature map before pooling: [B, 3, H, W] -> [B, D, h, w].

        Raises:
            RunError: the model has no feature map, for example a transformer over tokens.
        """
        maps: Tensor = self.model.forward_features(images)
        if maps.dim() != 4:
            raise RunError(f"{type(self.model).__name__} of timm has no feature map: its output is {list(maps.shape)}")
        if maps.shape[1] != self.model.num_features:
            return maps.permute(0, 3, 1, 2)  # [B, h, w, D] -> [B, D, h, w]
        return maps

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features.to(torch.promote_types(features.dtype, torch.float32))


def build_timm(name: str) -> TimmBackbone:
    """Build a timm model by its name, randomly initialised by timm.

    Raises:
        RecipeError: timm is not installed, or has no such model.
    """
    try:
        import timm
    except ImportError as error:
        raise RecipeError(
            f"model.backbone: timm:{name} needs timm, which is not installed; pip install 'fewsight[timm]'"
        ) from error
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.0)
        raise RecipeError(f"model.backbone: timm has no model {name!r}; the nearest is timm:{nearest[0]}")
    return TimmBackbone(timm.create_model(name, pretrained=False, num_classes=0))
