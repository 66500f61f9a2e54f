"""The classifier, the automatic stem, and saving and loading weights."""

import sys

import pytest
import torch
from torch import nn

from fewsight.errors import RecipeError, RunError
from fewsight.models.classifier import (
    Classifier,
    build_model,
    build_without_memory,
    load_weights,
    resolve_stem,
    weights_out,
)


def tiny(num_classes: int = 3) -> Classifier:
    return build_model("resnest14", num_classes, stem="small", width=0.125)


def test_classifier_gives_logits_and_features() -> None:
    model = tiny(num_classes=5)
    images = torch.randn(2, 3, 24, 24)
    logits, features = model(images)
    assert logits.shape == (2, 5)
    assert features.shape == (2, model.backbone.num_features)
    assert model.num_classes == 5


def test_logits_are_linear_in_the_features() -> None:
    model = tiny().eval()
    logits, features = model(torch.randn(2, 3, 24, 24))
    torch.testing.assert_close(logits, features @ model.head.weight.T + model.head.bias)


def test_features_stay_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, features = tiny()(torch.randn(2, 3, 24, 24))
    assert features.dtype == torch.float32


@pytest.mark.parametrize(
    ("train_px", "stem"),
    [(24, "small"), (47, "small"), (48, "medium"), (111, "medium"), (112, "large"), (448, "large")],
)
def test_auto_stem_follows_the_training_size(train_px: int, stem: str) -> None:
    assert resolve_stem(train_px) == stem


def test_auto_stem_leaves_timm_models_as_they_are() -> None:
    assert resolve_stem(24, "timm:resnet18") == "large"


def test_unknown_backbone_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="did you mean 'tresnet_m'"):
        build_model("tresnet-m", 3)


def test_weights_go_out_and_in_bit_for_bit() -> None:
    source, target = tiny(), tiny()
    source(torch.randn(4, 3, 24, 24))  # updates the norms' statistics
    load_weights(target, weights_out(source))
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(source.eval()(images)[0], target.eval()(images)[0])


def test_weights_out_are_contiguous_copies_on_the_cpu() -> None:
    model = tiny().to(memory_format=torch.channels_last)
    tensors = weights_out(model)
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors.values())
    assert not any(tensor.requires_grad for tensor in tensors.values())
    before = tensors["head.weight"].clone()
    nn.init.zeros_(model.head.weight)
    assert torch.equal(tensors["head.weight"], before)


def test_loading_keeps_the_memory_format() -> None:
    model = tiny().to(memory_format=torch.channels_last)
    load_weights(model, weights_out(tiny()))
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_loading_names_a_wrong_shape_with_both_shapes() -> None:
    model = tiny(3)
    with pytest.raises(RunError, match=r"head\.weight \(the model has \[3, 256\], RUN [^)]*\[4, 256\]\)"):
        load_weights(model, weights_out(tiny(4)), source="RUN")


def test_loading_names_missing_and_unexpected() -> None:
    model = tiny()
    tensors = weights_out(model)
    tensors["neck.weight"] = tensors.pop("head.bias")
    with pytest.raises(RunError, match=r"1 missing: head\.bias; 1 unexpected: neck\.weight"):
        load_weights(model, tensors)


def test_a_refused_load_changes_nothing() -> None:
    model = tiny(3)
    before = weights_out(model)
    with pytest.raises(RunError, match="of another shape"):
        load_weights(model, weights_out(tiny(4)))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_out(model).items())


def test_a_long_list_of_names_is_truncated() -> None:
    with pytest.raises(RunError, match=r"and \d+ more"):
        load_weights(tiny(), {})


def test_shapes_are_known_without_torchs_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # whose import takes four seconds
    assert all(tensor.is_meta for tensor in build_without_memory("resnest14", 3).state_dict().values())
