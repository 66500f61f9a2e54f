"""Norms that keep their output alone, and blocks that make cheap parts again: the same gradients for less memory."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewsight.models import Backbone, build_backbone
from fewsight.models.activated_norm import invertible, norm_act
from fewsight.models.recompute import remade, remaking

FAMILIES = ["resnest14", "tresnet_s", "seresnext26", "seresnext26d"]
SLOPE = 1e-3


class NormAct(nn.Module):
    """A norm with its activation."""

    def __init__(self, channels: int, slope: float | None = SLOPE, *, sign: float = 1.0, bias: float = 0.3) -> None:
        super().__init__()
        self.norm, self.slope = nn.BatchNorm2d(channels), slope
        with torch.no_grad():
            self.norm.weight.copy_(sign * torch.linspace(0.5, 1.5, channels))
            self.norm.bias.copy_(torch.linspace(-bias, bias, channels))

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(self.norm, x, self.slope)


def plain(module: NormAct, x: Tensor) -> Tensor:
    norm = module.norm
    y = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return y if module.slope is None else F.leaky_relu(y, module.slope)


def kept_by(module: NormAct, x: Tensor) -> list[Tensor]:
    """What autograd keeps of the size of the input."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape == x.shape:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return list(kept.values())


def images(channels: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(6, channels, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


# --- in-place activated norm --------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("slope", [1e-3, 1e-2, 0.5])
def test_in_place_norm_passes_gradcheck(slope: float, sign: float) -> None:
    module, x = NormAct(3, slope, sign=sign).double(), images(3, torch.float64)
    weights = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}

    def function(x: Tensor, *values: Tensor) -> Tensor:
        output: Tensor = functional_call(module, dict(zip(weights, values, strict=True)), (x,))
        return output

    assert torch.autograd.gradcheck(function, (x, *weights.values()))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_in_place_norm_equals_norm_and_leaky_relu(dtype: torch.dtype, most: float, sign: float) -> None:
    module = NormAct(8, sign=sign)
    module = module.double() if dtype == torch.float64 else module
    x = images(dtype=dtype)
    weigh = torch.randn_like(x)
    assert len(kept_by(module, x)) == 1
    ours = torch.autograd.grad((module(x) * weigh).sum(), (x, *module.parameters()))
    wide = copy.deepcopy(module).double()
    exact = x.detach().double().requires_grad_()
    theirs = torch.autograd.grad((plain(wide, exact) * weigh).sum(), (exact, *wide.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other) < most


def test_forward_bits_and_running_statistics_are_torchs() -> None:
    module, x = NormAct(8), images()
    usual = copy.deepcopy(module.norm)
    expected = F.leaky_relu(usual(x), SLOPE)
    assert torch.equal(module(x), expected)
    for name, value in usual.state_dict().items():
        assert torch.equal(module.norm.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("weight", "bias", "dtype", "expected"),
    [
        (1e-3, 0.0, torch.float32, True),
        (-1e-3, 0.0, torch.float32, True),
        (0.9e-3, 0.0, torch.float32, False),
        (0.0, 0.0, torch.float64, False),
        (0.06, 0.5, torch.bfloat16, True),
        (0.04, 0.5, torch.bfloat16, False),
        (0.06, 2.0, torch.float16, False),
        (float("nan"), 0.0, torch.float32, False),
    ],
)
def test_norm_that_cannot_be_inverted_keeps_its_input(
    weight: float, bias: float, dtype: torch.dtype, expected: bool
) -> None:
    module, x = NormAct(8), images(dtype=dtype)
    with torch.no_grad():
        module.norm.weight[3], module.norm.bias[3] = weight, bias
    module = module.double() if dtype == torch.float64 else module
    assert invertible(module.norm, dtype) == expected
    if dtype != torch.float16:
        kept = kept_by(module, x)
        assert any(one.data_ptr() == x.data_ptr() for one in kept) != expected


def test_zero_weight_has_its_gradient() -> None:
    module, x = NormAct(4).double(), images(4, torch.float64)
    with torch.no_grad():
        module.norm.weight.zero_()
    ours = torch.autograd.grad(module(x).square().sum(), (x, *module.parameters()))
    theirs = torch.autograd.grad(plain(module, x).square().sum(), (x, *module.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("slope", [0.0, None])
def test_other_norms_keep_what_torchs_keep(slope: float | None) -> None:
    module, x = NormAct(4, slope), images(4)
    assert any(one.data_ptr() == x.data_ptr() for one in kept_by(module, x))


# --- recomputation ------------------------------------------------------------------------------------------


def gradients(backbone: nn.Module, x: Tensor, *, mixed: bool) -> list[Tensor]:
    backbone.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        features = backbone(x)
    weigh = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features.dtype)
    (features * weigh).sum().backward()
    return [weight.grad.clone() for weight in backbone.parameters() if weight.grad is not None]


def trained_a_little(name: str) -> Backbone:
    """A backbone whose last norms are not at 0 any more, so that every path has a gradient."""
    torch.manual_seed(0)
    backbone = build_backbone(name, stem="small", width=0.25)
    assert isinstance(backbone, Backbone)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    backbone.to(memory_format=torch.channels_last)
    return backbone.train()


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_gradients_are_the_kept_ones(name: str) -> None:
    kept = trained_a_little(name).double()
    remaking = copy.deepcopy(kept)
    remaking.enable_recomputation()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for _ in range(2):
        for one, other in zip(gradients(remaking, x, mixed=False), gradients(kept, x, mixed=False), strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)
    for one, other in zip(remaking.buffers(), kept.buffers(), strict=True):
        assert torch.equal(one, other)  # statistics moved once a step


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputation_in_mixed_precision_is_within_its_rounding(name: str) -> None:
    kept = trained_a_little(name)
    remaking = copy.deepcopy(kept)
    remaking.enable_recomputation()
    exact = copy.deepcopy(kept).double()
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    truth = torch.cat([one.flatten() for one in gradients(exact, x.double(), mixed=False)])
    errors = [
        relative_error(torch.cat([one.flatten() for one in gradients(backbone, x, mixed=True)]), truth)
        for backbone in (remaking, kept)
    ]
    assert errors[0] < 1.1 * errors[1] + 1e-3


@pytest.mark.parametrize(("name", "most"), [("resnest14", 0.65), ("tresnet_s", 0.75), ("seresnext26", 0.55)])
def test_recomputation_keeps_less(name: str, most: float) -> None:
    backbone = trained_a_little(name)
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    backbone(x)
    sizes = []
    for recompute in (False, True):
        backbone.enable_recomputation(recompute)
        with torch.profiler.profile(profile_memory=True) as profile:
            features = backbone(x)
        sizes.append(sum(event.self_cpu_memory_usage for event in profile.key_averages()))
        del features
    assert sizes[1] < most * sizes[0], sizes


def test_part_of_a_remade_tensor_is_that_part() -> None:
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        with remaking(True):
            whole = remade(torch.exp, x * 2)
            first, second = whole.chunk(2, dim=1)
            return remade(torch.mul, first, second) * first

    assert torch.autograd.gradcheck(function, (x,))


def test_nothing_is_remade_where_no_gradient_is_asked_for() -> None:
    backbone = trained_a_little("tresnet_s")
    backbone.enable_recomputation()
    with torch.no_grad():
        assert not backbone(torch.randn(2, 3, 16, 16)).requires_grad
