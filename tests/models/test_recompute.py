"""Norms that keep only their output, and activation recomputation: the same gradients for less memory."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewsight.models import Backbone, build_backbone
from fewsight.models.activated_norm import invertible, norm_act
from fewsight.models.recompute import recomputation, recomputed

FAMILIES = ["resnest14", "tresnet_s", "seresnext26", "seresnext26d", "plain8"]
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


def saved_by(module: NormAct, x: Tensor) -> list[Tensor]:
    """Tensors of the input's shape that autograd saves for the backward pass."""
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape == x.shape:
            saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return list(saved.values())


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
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_in_place_norm_equals_norm_and_leaky_relu(dtype: torch.dtype, tolerance: float, sign: float) -> None:
    module = NormAct(8, sign=sign)
    module = module.double() if dtype == torch.float64 else module
    x = images(dtype=dtype)
    weights = torch.randn_like(x)
    assert len(saved_by(module, x)) == 1
    ours = torch.autograd.grad((module(x) * weights).sum(), (x, *module.parameters()))
    wide = copy.deepcopy(module).double()
    exact = x.detach().double().requires_grad_()
    theirs = torch.autograd.grad((plain(wide, exact) * weights).sum(), (exact, *wide.parameters()))
    for gradient, expected in zip(ours, theirs, strict=True):
        assert relative_error(gradient, expected) < tolerance


def test_forward_bits_and_running_statistics_are_torchs() -> None:
    module, x = NormAct(8), images()
    reference = copy.deepcopy(module.norm)
    expected = F.leaky_relu(reference(x), SLOPE)
    assert torch.equal(module(x), expected)
    for name, value in reference.state_dict().items():
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
        saved = saved_by(module, x)
        assert any(tensor.data_ptr() == x.data_ptr() for tensor in saved) != expected


def test_zero_weight_has_its_gradient() -> None:
    module, x = NormAct(4).double(), images(4, torch.float64)
    with torch.no_grad():
        module.norm.weight.zero_()
    ours = torch.autograd.grad(module(x).square().sum(), (x, *module.parameters()))
    theirs = torch.autograd.grad(plain(module, x).square().sum(), (x, *module.parameters()))
    for gradient, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(gradient, expected)


@pytest.mark.parametrize("slope", [0.0, None])
def test_other_norms_keep_their_input_as_torchs_do(slope: float | None) -> None:
    module, x = NormAct(4, slope), images(4)
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in saved_by(module, x))


# --- recomputation ------------------------------------------------------------------------------------------


def gradients(backbone: nn.Module, x: Tensor, *, autocast: bool) -> list[Tensor]:
    backbone.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        features = backbone(x)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features.dtype)
    (features * weights).sum().backward()
    return [weight.grad.clone() for weight in backbone.parameters() if weight.grad is not None]


def trained_a_little(name: str) -> Backbone:
    """A backbone whose blocks' last norms have left 0, so that every path has a gradient."""
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
def test_recomputed_gradients_are_those_of_kept_tensors(name: str) -> None:
    keeping = trained_a_little(name).double()
    recomputing = copy.deepcopy(keeping)
    recomputing.enable_recomputation()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for _ in range(2):
        ours, theirs = gradients(recomputing, x, autocast=False), gradients(keeping, x, autocast=False)
        for gradient, expected in zip(ours, theirs, strict=True):
            assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9)
    for buffer, expected in zip(recomputing.buffers(), keeping.buffers(), strict=True):
        assert torch.equal(buffer, expected)  # the running statistics were updated once a step


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputation_in_mixed_precision_is_within_its_rounding(name: str) -> None:
    keeping = trained_a_little(name)
    recomputing = copy.deepcopy(keeping)
    recomputing.enable_recomputation()
    exact = copy.deepcopy(keeping).double()
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    truth = torch.cat([gradient.flatten() for gradient in gradients(exact, x.double(), autocast=False)])
    errors = [
        relative_error(torch.cat([gradient.flatten() for gradient in gradients(backbone, x, autocast=True)]), truth)
        for backbone in (recomputing, keeping)
    ]
    assert errors[0] < 1.1 * errors[1] + 1e-3


@pytest.mark.parametrize(("name", "limit"), [("resnest14", 0.65), ("tresnet_s", 0.75), ("seresnext26", 0.55)])
def test_recomputation_keeps_less_memory(name: str, limit: float) -> None:
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
    assert sizes[1] < limit * sizes[0], sizes


def test_view_of_a_recomputed_tensor_is_that_view() -> None:
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        with recomputation(True):
            whole = recomputed(torch.exp, x * 2)
            first, second = whole.chunk(2, dim=1)
            return recomputed(torch.mul, first, second) * first

    assert torch.autograd.gradcheck(function, (x,))


def test_nothing_is_recomputed_without_gradients() -> None:
    backbone = trained_a_little("tresnet_s")
    backbone.enable_recomputation()
    with torch.no_grad():
        assert not backbone(torch.randn(2, 3, 16, 16)).requires_grad
