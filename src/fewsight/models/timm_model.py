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
        name: its name, for messages.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
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
        try:
            features: Tensor = self.model(images)
        except AssertionError as error:  # timm's check of the size of images
            raise RunError(f"{self._why_not(images.shape[-1], error)}; test at another size (--views)") from error
        return features.to(torch.promote_types(features.dtype, torch.float32))

    @torch.no_grad()
    def check_size(self, px: int) -> None:
        """Try one image of this size.

        Raises:
            RecipeError: the model does not take it.
        """
        was_training = self.training
        device = next(self.parameters()).device
        try:
            self.eval()(torch.zeros(1, 3, px, px, device=device))  # in training mode, a norm wants several values
        except torch.OutOfMemoryError:
            raise
        except (RunError, RuntimeError, ValueError) as error:
            fault = error.__cause__ if isinstance(error, RunError) else error
            raise RecipeError(f"model.backbone: {self._why_not(px, fault)}; {self._advice()}") from error
        finally:
            self.train(was_training)

    def takes(self, px: int) -> bool:
        """Whether the model takes images of this size."""
        try:
            self.check_size(px)
        except RecipeError:
            return False
        return True

    def _why_not(self, px: int, error: BaseException | None) -> str:
        return f"{self.name} of timm does not take images of {px} x {px} px ({' '.join(str(error).split())})"

    def _advice(self) -> str:
        px = self.model.pretrained_cfg["input_size"][-1]
        return f"it is made for {px} px: set augment.train_px = {px} and eval.test_px = [{px}]"


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
    return TimmBackbone(timm.create_model(name, pretrained=False, num_classes=0), name)
