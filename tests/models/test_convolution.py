"""Convolutions by matrix products against torch's own kernels."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewsight.models import convolution, layers
from fewsight.models.classifier import build_model
from fewsight.models.convolution import PointwiseConv, UnfoldedConv, convolve

Setting = tuple[int, int, int, int, int, int]  # batch, channels in and out, side, kernel, groups
POINTWISE: list[Setting] = [
    (2, 32, 16, 4, 1, 1),
    (16, 32, 64, 15, 1, 1),
    (3, 8, 8, 1, 1, 1),
]  # few positions, many, one
UNFOLDED: list[Setting] = [(3, 32, 72, 48, 3, 1), (2, 80, 336, 6, 3, 2), (4, 12, 192, 2, 3, 3)]  # wide, deep, tiny
OTHERS: list[Setting] = [(64, 8, 8, 16, 1, 1), (1, 64, 120, 40, 3, 1), (2, 32, 304, 6, 3, 2), (1, 16, 16, 9, 5, 1)]


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU for which convolutions use matrix products."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def conv_and_input(setting: Setting, stride: int = 1, *, bias: bool = False) -> tuple[nn.Conv2d, Tensor]:
    batch, channels, out_channels, side, kernel, groups = setting
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    return conv.to(memory_format=torch.channels_last), x.requires_grad_()  # type: ignore[call-overload]


def name_of(y: Tensor) -> str:
    assert y.grad_fn is not None
    return y.grad_fn.name()


@pytest.mark.parametrize("groups", [0, 1, 3])  # 0 stands for a 1x1 convolution
@pytest.mark.parametrize("sides", [(1, 1), (4, 3)])
def test_gradients_are_those_of_the_definition(groups: int, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *sides, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 3 // (groups or 1), *((3, 3) if groups else (1, 1)), dtype=torch.float64).requires_grad_()
    if groups:
        assert torch.autograd.gradcheck(lambda *inputs: UnfoldedConv.apply(*inputs, groups), (x, weight))
    else:
        assert torch.autograd.gradcheck(PointwiseConv.apply, (x, weight))


@pytest.mark.parametrize(
    ("setting", "name"),
    [(setting, "PointwiseConvBackward") for setting in POINTWISE]
    + [(setting, "UnfoldedConvBackward") for setting in UNFOLDED]
    + [(setting, "ConvolutionBackward0") for setting in OTHERS],
)
def test_values_and_gradients_are_those_of_conv2d(
    setting: Setting, name: str, avx2: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "UNFOLDED_BYTES", 2**21)  # so that images come in several chunks
    conv, x = conv_and_input(setting)
    y, plain = convolve(conv, x), conv(x)
    assert name_of(y) == name
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-4)
    gradient = torch.randn(y.shape)  # contiguous, as a broadcast gradient may be
    ours, theirs = (torch.autograd.grad(output, [x, conv.weight], gradient) for output in (y, plain))
    for result, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3)


def test_other_convolutions_are_torchs_own(avx2: None, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "ConvolutionBackward0"
    conv, x = conv_and_input(POINTWISE[0])
    assert name_of(convolve(conv, x)) == "PointwiseConvBackward"
    assert name_of(convolve(conv, x.contiguous())) == own
    assert name_of(convolve(conv.double(), x.double())) == own
    for options in ({"stride": 2}, {"bias": True}):
        assert name_of(convolve(*conv_and_input(POINTWISE[0], **options))) == own  # type: ignore[arg-type]
    assert name_of(convolve(*conv_and_input((*POINTWISE[0][:-1], 2)))) == own
    conv, x = conv_and_input(POINTWISE[0])
    with torch.no_grad():
        assert convolve(conv, x).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(conv, x).dtype == torch.bfloat16
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert name_of(convolve(conv, x)) == own


@pytest.mark.parametrize("name", ["resnest14", "tresnet_s", "seresnext26d"])
def test_loss_trace_is_that_of_the_plain_path(name: str, avx2: None, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 4

    def trace() -> list[float]:
        torch.manual_seed(0)
        model = build_model(name, 4, stem="medium", width=0.25).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses = []
        for _ in range(4):
            loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last))[0], labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    monkeypatch.setattr(convolution, "UNFOLDED", ((4, 1),))  # as if the model were wider
    calls = []
    for function in (PointwiseConv, UnfoldedConv):
        apply = function.apply

        def counting(*inputs: Any, apply: Any = apply, function: Any = function) -> Tensor:
            calls.append(function)
            return apply(*inputs)  # type: ignore[no-any-return]

        monkeypatch.setattr(function, "apply", counting)
    fast = trace()
    assert PointwiseConv in calls
    assert UnfoldedConv in calls
    monkeypatch.setattr(layers, "convolve", lambda conv, x: conv(x))
    assert fast == pytest.approx(trace(), rel=2e-4)
    assert fast[-1] < fast[0]
