"""Convolutions by matrix products against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewsight.backbones import convolution, layers
from fewsight.backbones.convolution import PointwiseConv, TapsConv, convolve
from fewsight.model import build_model

Setting = tuple[int, int, int, int, int]  # batch, channels in and out, side, kernel
POINTWISE: list[Setting] = [(2, 32, 16, 4, 1), (16, 32, 64, 15, 1), (3, 8, 8, 1, 1)]  # few positions, many, one place
TAPS: list[Setting] = [(1, 64, 72, 80, 3), (2, 160, 168, 7, 3), (4, 160, 160, 2, 3)]  # wide, deep, tiny
OTHERS: list[Setting] = [(64, 8, 8, 16, 1), (1, 64, 64, 72, 3), (2, 160, 160, 6, 3), (1, 16, 16, 9, 5)]


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that the products are for."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def made(setting: Setting, stride: int = 1, groups: int = 1, *, bias: bool = False) -> tuple[nn.Conv2d, Tensor]:
    batch, channels, out_channels, side, kernel = setting
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    return conv.to(memory_format=torch.channels_last), x.requires_grad_()  # type: ignore[call-overload]


def name_of(y: Tensor) -> str:
    assert y.grad_fn is not None
    return y.grad_fn.name()


@pytest.mark.parametrize("function", [PointwiseConv, TapsConv])
@pytest.mark.parametrize("sides", [(1, 1), (4, 3)])
def test_gradients_are_those_of_the_definition(
    function: type[PointwiseConv | TapsConv], sides: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *sides, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(4, 3, *((1, 1) if function is PointwiseConv else (3, 3)), dtype=torch.float64)
    assert torch.autograd.gradcheck(function.apply, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize(
    ("setting", "name"),
    [(one, "PointwiseConvBackward") for one in POINTWISE]
    + [(one, "TapsConvBackward") for one in TAPS]
    + [(one, "ConvolutionBackward0") for one in OTHERS],
)
def test_values_and_gradients_are_those_of_conv2d(setting: Setting, name: str, avx2: None) -> None:
    conv, x = made(setting)
    y, plain = convolve(conv, x), conv(x)
    assert name_of(y) == name
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-4)
    gradient = torch.randn(y.shape)  # contiguous, as a broadcast one may be
    found = torch.autograd.grad(y, [x, conv.weight], gradient)
    for one, other in zip(found, torch.autograd.grad(plain, [x, conv.weight], gradient), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_other_convolutions_are_torchs_own(avx2: None, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "ConvolutionBackward0"
    conv, x = made(POINTWISE[0])
    assert name_of(convolve(conv, x)) == "PointwiseConvBackward"
    assert name_of(convolve(conv, x.contiguous())) == own
    assert name_of(convolve(conv.double(), x.double())) == own
    for options in ({"stride": 2}, {"groups": 2}, {"bias": True}):
        assert name_of(convolve(*made(POINTWISE[0], **options))) == own  # type: ignore[arg-type]
    conv, x = made(POINTWISE[0])
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

    calls = []
    apply = convolution.PointwiseConv.apply
    monkeypatch.setattr(convolution.PointwiseConv, "apply", lambda *inputs: calls.append(1) or apply(*inputs))
    fast = trace()
    assert calls
    monkeypatch.setattr(layers, "convolve", lambda conv, x: conv(x))
    assert fast == pytest.approx(trace(), rel=2e-4)
    assert fast[-1] < fast[0]
