"""Our backbones against timm's with the same weights; their memory layout, sizes and errors."""

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewsight.errors import RecipeError, RunError
from fewsight.models import BACKBONES, STEM_STRIDES, Backbone, build_backbone, tresnet
from fewsight.models.layers import BlurPool, ConvNormAct, SpaceToDepth, SqueezeExcitation
from fewsight.models.resnest import SplitAttention

timm = pytest.importorskip("timm")
from timm.models.resnet import Bottleneck, ResNet  # noqa: E402
from timm.models.tresnet import TResNet  # noqa: E402

SMALL = [
    ("resnest14", 0.25),
    ("tresnet_m", 0.25),
    ("seresnext26", 0.25),
    ("seresnext26d", 0.25),
]

# --- the same values as timm -------------------------------------------------------------------------------

# timm's weight name -> ours, as regular expressions tried in order
Names = list[tuple[str, str]]
DEEP_STEM: Names = [
    (r"conv1\.0\.", "stem.0.conv."),
    (r"conv1\.1\.", "stem.0.norm."),
    (r"conv1\.3\.", "stem.1.conv."),
    (r"conv1\.4\.", "stem.1.norm."),
    (r"conv1\.6\.", "stem.2.conv."),
    (r"bn1\.", "stem.2.norm."),
]
POOLED_SHORTCUT: Names = [
    (r"layer1\.0\.downsample\.1\.", "layer1.0.shortcut.conv."),
    (r"layer1\.0\.downsample\.2\.", "layer1.0.shortcut.norm."),
    (r"(.*)downsample\.1\.", r"\1shortcut.1.conv."),
    (r"(.*)downsample\.2\.", r"\1shortcut.1.norm."),
]
BOTTLENECK: Names = [
    (r"(.*)conv1\.", r"\1reduce.conv."),
    (r"(.*)bn1\.", r"\1reduce.norm."),
    (r"(.*)conv3\.", r"\1expand.conv."),
    (r"(.*)bn3\.", r"\1expand.norm."),
]
GROUPED: Names = [
    (r"(.*)conv2\.", r"\1grouped.conv."),
    (r"(.*)bn2\.", r"\1grouped.norm."),
    (r"(.*)se\.fc1\.", r"\1gate.squeeze."),
    (r"(.*)se\.fc2\.", r"\1gate.excite."),
]
NAMES: dict[str, Names] = {
    "resnest": [
        *DEEP_STEM,
        (r"(.*)conv2\.conv\.", r"\1attention.splits.conv."),
        (r"(.*)conv2\.bn0\.", r"\1attention.splits.norm."),
        (r"(.*)conv2\.fc1\.", r"\1attention.squeeze."),
        (r"(.*)conv2\.bn1\.", r"\1attention.norm."),
        (r"(.*)conv2\.fc2\.", r"\1attention.attend."),
        *BOTTLENECK,
        *POOLED_SHORTCUT,
    ],
    "seresnext": [
        (r"conv1\.", "stem.0.conv."),
        (r"bn1\.", "stem.0.norm."),
        *BOTTLENECK,
        *GROUPED,
        (r"(.*)downsample\.0\.", r"\1shortcut.conv."),
        (r"(.*)downsample\.1\.", r"\1shortcut.norm."),
    ],
    "seresnextd": [*DEEP_STEM, *BOTTLENECK, *GROUPED, *POOLED_SHORTCUT],
    "tresnet": [
        (r"body\.conv1\.conv\.", "stem.1.conv."),
        (r"body\.conv1\.bn\.", "stem.1.norm."),
        (r"(.*)se\.fc1\.", r"\1gate.squeeze."),
        (r"(.*)se\.fc2\.", r"\1gate.excite."),
        (r"body\.(layer1\.0\.)downsample\.0\.(conv|bn)\.", r"\1shortcut.\2."),
        (r"body\.(layer2\.0\.conv1)\.(conv|bn)\.", r"\1.0.\2."),  # a blur pool follows
        (r"body\.(layer[34]\.0)\.conv2\.(conv|bn)\.", r"\1.conv.0.\2."),
        (r"body\.(layer[34]\.\d+)\.conv1\.(conv|bn)\.", r"\1.reduce.\2."),
        (r"body\.(layer[34]\.\d+)\.conv2\.(conv|bn)\.", r"\1.conv.\2."),
        (r"body\.(layer[34]\.\d+)\.conv3\.(conv|bn)\.", r"\1.expand.\2."),
        (r"body\.(layer\d\.\d+)\.downsample\.1\.(conv|bn)\.", r"\1.shortcut.1.\2."),
    ],
}


def our_name(family: str, timm_name: str) -> str:
    for pattern, replacement in NAMES[family]:
        name, count = re.subn(f"^{pattern}", replacement, timm_name)
        if count:
            break
    else:
        name = timm_name
    name = re.sub(r"\.bn\.", ".norm.", name.removeprefix("body."))
    return re.sub(r"^layer(\d)", lambda match: f"stages.{int(match[1]) - 1}", name)


def copy_weights(family: str, theirs: nn.Module, ours: nn.Module) -> None:
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    renamed = {our_name(family, name): tensor for name, tensor in theirs.state_dict().items()}
    # timm's 1x1 convolutions over pooled values are linear layers here: [C', C, 1, 1] -> [C', C]
    ours.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in renamed.items()})


def randomise_norms(model: nn.Module, images: Tensor) -> None:
    """Give every norm a random weight and bias, and running statistics near those of the images.

    timm initialises the weight of each block's last norm to zero, which would hide the layers before it.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.2, 0.8).mul_(torch.randn_like(norm.weight).sign())
            norm.bias.normal_(0, 0.3)
            norm.momentum = 1.0
        model.train()(images)
        for norm in norms:
            norm.momentum = 0.1
            norm.running_mean.add_(0.3 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.5, 2.0))


def trace(model: nn.Module, stages: list[nn.Module], images: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Features, each stage's output, and the gradients of a weighted sum for the images and stage inputs."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        args[0].retain_grad()
        inputs.append(args[0])
        outputs.append(output)

    handles = [stage.register_forward_hook(keep) for stage in stages]
    images = images.clone().requires_grad_()
    features = model(images)
    (features * weights).sum().backward()
    for handle in handles:
        handle.remove()
    traced = {"features": features.detach(), "image gradient": images.grad}
    for index, (stage_input, output) in enumerate(zip(inputs, outputs, strict=True)):
        traced[f"stage {index} output"] = output.detach()
        traced[f"stage {index} input gradient"] = stage_input.grad
    return traced


def largest_error(theirs: Tensor, ours: Tensor) -> float:
    return float((theirs - ours).abs().max() / theirs.abs().max())


def timm_model(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=0)


def check_agreement(ours: Backbone, theirs: Any, family: str, batch: int, px: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(batch, 3, px, px, dtype=torch.float64)
    theirs, ours = theirs.double(), ours.double()
    randomise_norms(theirs, images)
    copy_weights(family, theirs, ours)
    weights = torch.randn(batch, ours.num_features, dtype=torch.float64)
    layers = theirs.body if family == "tresnet" else theirs
    their_stages = [layers.layer1, layers.layer2, layers.layer3, layers.layer4]
    for training in (True, False):
        expected = trace(theirs.train(training), their_stages, images, weights)
        actual = trace(ours.train(training), list(ours.stages), images, weights)
        assert expected.keys() == actual.keys()
        errors = {name: largest_error(expected[name], actual[name]) for name in expected}
        print(f"{family}, {training=}: largest error {max(errors.values()):.1e} of the largest value")
        assert max(errors.values()) < 1e-6, errors
    updated = {our_name(family, name): value for name, value in theirs.named_buffers() if "running" in name}
    for name, value in ours.named_buffers():
        if "running" in name:
            assert largest_error(updated[name], value) < 1e-6, name


def test_resnest_agrees_with_timm() -> None:
    check_agreement(BACKBONES["resnest14"](), timm_model("resnest14d"), "resnest", batch=2, px=64)


def test_tresnet_agrees_with_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tresnet.SIZES, "shallow", ((1, 2, 2, 1), 1.2))
    theirs = TResNet([1, 2, 2, 1], num_classes=0, width_factor=1.2)
    check_agreement(tresnet.build_tresnet("shallow"), theirs, "tresnet", batch=2, px=64)


def test_seresnext_agrees_with_timm() -> None:
    shallow = {"cardinality": 32, "base_width": 4, "block_args": {"attn_layer": "se"}}
    theirs = ResNet(Bottleneck, (2, 2, 2, 2), num_classes=0, **shallow)
    check_agreement(BACKBONES["seresnext26"](), theirs, "seresnext", batch=2, px=64)


def test_seresnext26d_agrees_with_timm() -> None:
    check_agreement(BACKBONES["seresnext26d"](), timm_model("seresnext26d_32x4d"), "seresnextd", batch=2, px=64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "family"),
    [
        ("resnest101", "resnest101e", "resnest"),
        ("tresnet_xl", "tresnet_xl", "tresnet"),
        ("seresnext101", "seresnext101_32x4d", "seresnext"),
    ],
)
def test_full_size_backbone_agrees_with_timm(ours: str, theirs: str, family: str) -> None:
    check_agreement(BACKBONES[ours](), timm_model(theirs), family, batch=8, px=96)


# --- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_millions"), [("resnest101", 48.28), ("tresnet_xl", 78.44), ("seresnext101", 48.96)]
)
def test_full_size_has_the_published_parameter_count(name: str, num_millions: float) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
        head = nn.Linear(backbone.num_features, 1000)
    count = sum(parameter.numel() for module in (backbone, head) for parameter in module.parameters())
    assert round(count / 1e6, 2) == num_millions


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith(("101", "xl")) else ()) for name in BACKBONES]
)
def test_every_backbone_builds_at_every_stem(name: str) -> None:
    with torch.device("meta"):
        for stem in ("large", "medium", "small"):
            backbone = build_backbone(name, stem=stem).eval()
            maps = backbone.feature_map(torch.empty(1, 3, 224, 224))
            stride = STEM_STRIDES[stem] * 2 ** (len(backbone.stages) - 1)
            assert maps.shape == (1, backbone.num_features, 224 // stride, 224 // stride)


@pytest.mark.parametrize(("name", "width"), SMALL)
@pytest.mark.parametrize(("stem", "stride"), [("large", 32), ("medium", 16), ("small", 8)])
@pytest.mark.parametrize("px", [24, 32, 64, 96])
def test_small_images_work_at_every_stem(name: str, width: float, stem: str, stride: int, px: int) -> None:
    backbone = build_backbone(name, stem=stem, width=width)
    images = torch.randn(2, 3, px, px)
    side = -(-px // stride)
    assert backbone.feature_map(images).shape == (2, backbone.num_features, side, side)
    features = backbone(images)
    assert features.shape == (2, backbone.num_features)
    assert features.isfinite().all()


@pytest.mark.parametrize("name", ["resnest26", "tresnet_l", "seresnext50"])
def test_width_scales_channels(name: str) -> None:
    with torch.device("meta"):
        full, half = BACKBONES[name](), BACKBONES[name](width=0.5)
    assert half.num_features == pytest.approx(full.num_features / 2, rel=0.06)
    counts = [sum(parameter.numel() for parameter in backbone.parameters()) for backbone in (full, half)]
    assert 3 < counts[0] / counts[1] < 5


@pytest.mark.parametrize(("name", "width"), SMALL)
def test_features_are_the_mean_of_the_feature_map(name: str, width: float) -> None:
    backbone = build_backbone(name, stem="small", width=width).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone(images), backbone.feature_map(images).mean((2, 3)))


# --- initial values and gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "width"), SMALL)
def test_each_block_starts_as_its_shortcut(name: str, width: float) -> None:
    backbone = build_backbone(name, stem="small", width=width)
    for stage in backbone.stages:
        for block in stage:
            last = block.conv2 if hasattr(block, "conv2") else block.expand
            assert not last.norm.weight.any()
    maps = backbone.stages[:2](backbone.stem(torch.randn(2, 3, 16, 16)))
    block = backbone.stages[2][0]
    torch.testing.assert_close(block(maps), torch.relu(block.shortcut(maps)))


def test_weights_start_kaiming_normal_by_fan_out() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("seresnext26")
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_out = module.weight.shape[0] * (9 if "grouped" in name else 49 if "stem" in name else 1)
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize(("name", "width"), SMALL)
def test_every_parameter_gets_a_gradient(name: str, width: float) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, stem="small", width=width)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    features = backbone(torch.randn(8, 3, 32, 32))
    (features * torch.randn_like(features)).sum().backward()
    dead = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


# --- layout -------------------------------------------------------------------------------------------------


def channels_are_innermost(tensor: Tensor) -> bool:
    """True for dense channels-last values, and for the gradient of a mean, which is broadcast over positions."""
    if tensor.stride()[2:] == (0, 0):
        return tensor.stride(1) == 1
    return tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stem", ["large", "small"])
@pytest.mark.parametrize(("name", "width"), SMALL)
def test_channels_last_holds_forward_and_backward(name: str, width: float, stem: str, precision: torch.dtype) -> None:
    backbone = build_backbone(name, stem=stem, width=width).to(memory_format=torch.channels_last)
    lost: list[str] = []
    with_gradient: set[str] = set()

    def watch(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if output.dim() != 4:
                return
            if not channels_are_innermost(output):
                lost.append(f"{layer} forward")

            def on_gradient(gradient: Tensor) -> None:
                with_gradient.add(layer)
                if not channels_are_innermost(gradient):
                    lost.append(f"{layer} backward")

            if output.requires_grad:
                output.register_hook(on_gradient)

        return hook

    unwatched = (nn.BatchNorm2d, nn.Identity)  # a norm's output is overwritten by the activation after it
    for layer, module in backbone.named_modules():
        if layer and not isinstance(module, unwatched):
            module.register_forward_hook(watch(layer))
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        features = backbone(images)
    features.float().square().sum().backward()
    assert not lost
    assert {f"stages.{stage}.0" for stage in range(4)} <= with_gradient


# --- layers -------------------------------------------------------------------------------------------------


def test_split_attention_is_the_softmax_over_splits() -> None:
    layer = SplitAttention(16).eval()
    x = torch.randn(3, 16, 5, 5)
    splits = layer.splits(x).reshape(3, 2, 16, 5, 5)
    z = layer.attend(torch.relu(layer.norm(layer.squeeze(splits.sum(1).mean((2, 3))))))
    attention = torch.softmax(z.reshape(3, 2, 16), dim=1)[..., None, None]
    torch.testing.assert_close(layer(x), (splits * attention).sum(1))


def test_squeeze_excitation_scales_each_channel() -> None:
    layer = SqueezeExcitation(6, 3)
    x = torch.randn(2, 6, 4, 4)
    gate = torch.sigmoid(layer.excite(torch.relu(layer.squeeze(x.mean((2, 3))))))
    torch.testing.assert_close(layer(x), torch.einsum("bchw,bc->bchw", x, gate))


def test_blur_pool_has_binomial_weights_and_reflected_borders() -> None:
    x = torch.randn(1, 2, 6, 8)
    blurred = BlurPool()(x)
    assert blurred.shape == (1, 2, 3, 4)
    weights = (0.25, 0.5, 0.25)
    for row in range(3):
        for column in range(4):
            total = torch.zeros(2)
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    pixel = x[0, :, abs(2 * row + dy), abs(2 * column + dx)]
                    total += weights[dy + 1] * weights[dx + 1] * pixel
            torch.testing.assert_close(blurred[0, :, row, column], total)


def test_blur_pool_keeps_a_constant() -> None:
    torch.testing.assert_close(BlurPool()(torch.ones(2, 3, 7, 7)), torch.ones(2, 3, 4, 4))


def test_space_to_depth_orders_rows_columns_channels() -> None:
    x = torch.arange(2 * 3 * 8 * 4).reshape(2, 3, 8, 4).float()
    out = SpaceToDepth(4)(x)
    assert out.shape == (2, 48, 2, 1)
    for row, column, channel in [(0, 0, 0), (1, 2, 1), (3, 3, 2)]:
        assert out[1, (row * 4 + column) * 3 + channel, 1, 0] == x[1, channel, 4 + row, column]


def test_space_to_depth_refuses_sides_that_do_not_divide() -> None:
    with pytest.raises(RunError, match=r"multiples of 4 px, got 98x96"):
        SpaceToDepth(4)(torch.zeros(1, 3, 98, 96))


def test_convolution_and_norm_without_activation_can_be_negative() -> None:
    x = torch.randn(4, 3, 8, 8)
    assert ConvNormAct(3, 8, 3, slope=None)(x).min() < 0
    assert ConvNormAct(3, 8, 3)(x).min() == 0


# --- names and errors ---------------------------------------------------------------------------------------


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"model.backbone: there is no 'resnets101'; did you mean 'resnest101'\?"):
        build_backbone("resnets101")


def test_unknown_stem_names_the_valid_ones() -> None:
    with pytest.raises(RecipeError, match=r"model\.stem: 'tiny' is not a stem.*large, medium, small"):
        build_backbone("resnest14", stem="tiny")


def test_width_must_be_positive() -> None:
    with pytest.raises(RecipeError, match=r"model\.width: 0\.0 must be above 0"):
        build_backbone("tresnet_m", width=0.0)


def test_timm_model_gives_features_and_a_feature_map() -> None:
    backbone = build_backbone("timm:resnet18")
    images = torch.randn(2, 3, 64, 64)
    assert backbone(images).shape == (2, backbone.num_features)
    assert backbone.feature_map(images).shape == (2, backbone.num_features, 2, 2)


def test_timm_model_with_channels_last_maps_gives_channels_first() -> None:
    backbone = build_backbone("timm:test_convnext")
    assert backbone.feature_map(torch.randn(2, 3, 64, 64)).shape[:2] == (2, backbone.num_features)


def test_timm_model_over_tokens_has_no_feature_map() -> None:
    backbone = build_backbone("timm:test_vit")
    images = torch.randn(1, 3, 160, 160)
    assert backbone(images).shape == (1, backbone.num_features)
    with pytest.raises(RunError, match="no feature map"):
        backbone.feature_map(images)


def test_unknown_timm_name_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"timm has no model 'resnet181'; the nearest is timm:resnet18"):
        build_backbone("timm:resnet181")


def test_timm_model_refuses_a_stem() -> None:
    with pytest.raises(RecipeError, match=r"timm:resnet18 has its own stem"):
        build_backbone("timm:resnet18", stem="small")


def test_missing_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RecipeError, match=r"pip install 'fewsight\[timm\]'"):
        build_backbone("timm:resnet18")


@pytest.mark.parametrize(("name", "width"), SMALL)
def test_folded_backbone_gives_the_same_features(name: str, width: float) -> None:
    torch.manual_seed(0)
    backbone, images = build_backbone(name, stem="small", width=width), torch.randn(4, 3, 32, 32)
    assert isinstance(backbone, Backbone)
    randomise_norms(backbone, images)
    backbone.eval()
    with torch.no_grad():
        plain = backbone(images)
        backbone.fold()
        folded = backbone(images)
        backbone.fold()  # a second time changes nothing
        assert torch.equal(backbone(images), folded)
    assert largest_error(plain, folded) < 1e-5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


def test_timm_model_names_the_size_that_it_does_not_take() -> None:
    backbone = build_backbone("timm:vit_tiny_patch16_224")
    assert backbone.takes(224)
    with pytest.raises(RunError, match=r"vit_tiny_patch16_224 of timm does not take images of 320 x 320 px .*--views"):
        backbone(torch.zeros(1, 3, 320, 320))
