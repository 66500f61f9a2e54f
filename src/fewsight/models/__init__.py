"""Backbones by name: images [B, 3, H, W] -> features [B, D]. `timm:NAME` is any model of timm."""

from collections.abc import Callable
from functools import partial

from fewsight.errors import RecipeError
from fewsight.models.layers import STEM_STRIDES, Backbone
from fewsight.models.plain import DEPTHS as PLAIN_DEPTHS
from fewsight.models.plain import build_plain
from fewsight.models.resnest import DEPTHS as RESNEST_DEPTHS
from fewsight.models.resnest import build_resnest
from fewsight.models.seresnext import DEPTHS as SERESNEXT_DEPTHS
from fewsight.models.seresnext import build_seresnext
from fewsight.models.timm_model import TimmBackbone, build_timm
from fewsight.models.tresnet import SIZES as TRESNET_SIZES
from fewsight.models.tresnet import build_tresnet
from fewsight.recipes.options import check_name

__all__ = ["BACKBONES", "STEM_STRIDES", "TIMM_PREFIX", "Backbone", "TimmBackbone", "build_backbone"]

TIMM_PREFIX = "timm:"

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{f"resnest{depth}": partial(build_resnest, depth) for depth in RESNEST_DEPTHS},
    **{f"tresnet_{size}": partial(build_tresnet, size) for size in TRESNET_SIZES},
    **{f"seresnext{depth}": partial(build_seresnext, depth) for depth in SERESNEXT_DEPTHS},
    "seresnext26d": partial(build_seresnext, 26, True),
    **{f"plain{depth}": partial(build_plain, depth) for depth in PLAIN_DEPTHS},
}


def build_backbone(name: str, *, stem: str = "large", width: float = 1.0) -> Backbone | TimmBackbone:
    """Build a backbone with random weights.

    Args:
        name: a key of `BACKBONES`, or `timm:NAME` for a model of timm.
        stem: "large" (stride 4, as published), "medium" (2) or "small" (1), for small images.
        width: factor on the channel counts.

    Raises:
        RecipeError: the name, the stem or the width is not valid, or timm is needed and not installed.
    """
    if name.startswith(TIMM_PREFIX):
        if stem != "large" or width != 1.0:
            raise RecipeError(
                f"model.backbone: {name} has its own stem and width, got stem {stem!r} and width {width}; "
                "set model.stem = 'large' and model.width = 1.0"
            )
        return build_timm(name.removeprefix(TIMM_PREFIX))
    check_name(name, BACKBONES, "model.backbone", "timm:NAME")
    return BACKBONES[name](stem=stem, width=width)
