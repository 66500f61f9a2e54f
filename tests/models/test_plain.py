"""The plain nets: what their stem computes from images, and how they start."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fewsight import runs
from fewsight.models import build_backbone
from fewsight.models.plain import NUM_COMPONENTS, Whitening
from fewsight.training.loop import fit
from trainings import SETTINGS, Quiet, begin


def correlated_images() -> torch.Tensor:
    """Smooth images, whose neighbouring pixels and channels are alike: [64, 3, 16, 16]."""
    noise = torch.randn(64, 3, 18, 18, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(noise, 3, 1) + 0.3 * F.avg_pool2d(noise, 3, 1).mean(1, keepdim=True)
    return (smooth - smooth.mean()) / smooth.std()


def test_stem_whitens_patches_with_both_signs() -> None:
    images, stem = correlated_images(), Whitening(1)
    stem.fit(images)
    maps = F.conv2d(images, stem.weight)[:, :, ::2, ::2]  # the patches that it was fitted to
    values = maps.permute(1, 0, 2, 3).flatten(1)
    assert torch.equal(values[:NUM_COMPONENTS], -values[NUM_COMPONENTS:])
    products = values[:NUM_COMPONENTS] @ values[:NUM_COMPONENTS].T / values.shape[1]
    patches = F.unfold(images, 3, stride=2).transpose(1, 2).reshape(-1, 27)
    variances = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)[:NUM_COMPONENTS]
    torch.testing.assert_close(products, torch.diag(variances / (variances + 5e-3)), atol=1e-3, rtol=0)


def test_stem_does_not_depend_on_the_sign_of_a_component() -> None:
    images, stem, other = correlated_images(), Whitening(1), Whitening(2)
    stem.fit(images)
    other.fit(images.flip(0))
    torch.testing.assert_close(stem.weight, other.weight, atol=1e-4, rtol=1e-4)
    assert not any(name.endswith("weight") for name, _ in stem.named_parameters()), "it is not trained"


def test_convolutions_start_near_the_identity() -> None:
    backbone = build_backbone("plain8", stem="small", width=0.125)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            inputs = torch.randn(1, module.in_channels, 5, 5)
            same = min(module.in_channels, module.out_channels)
            assert torch.equal(module(inputs)[:, :same], inputs[:, :same])


def test_sides_are_halved_by_the_stem_and_every_stage() -> None:
    backbone = build_backbone("plain8", stem="large", width=0.125)
    assert backbone.feature_map(torch.zeros(2, 3, 128, 128)).shape == (2, 64, 4, 4)
    assert backbone.num_features == 64


def test_folding_changes_no_feature() -> None:
    backbone = build_backbone("plain8", stem="medium", width=0.125)
    images = torch.randn(8, 3, 32, 32)
    for _ in range(3):
        backbone(images)  # moves the running statistics
    with torch.no_grad():
        for norm in (module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.copy_(torch.linspace(-1, 1, norm.num_features))  # also below 0, where a pool cannot be passed
    expected = backbone.eval()(images)
    backbone.fold()
    torch.testing.assert_close(backbone(images), expected, atol=1e-4, rtol=1e-4)


def test_training_fits_the_stem_to_its_images_and_keeps_it(class_images: Path, tmp_path: Path) -> None:
    name = "whitened, decay by e-folds"
    run, images = begin(class_images, tmp_path / "run", SETTINGS[name])
    done = fit(run, images, Quiet())
    weights = runs.read_weights(done)["backbone.stem.weight"]
    assert torch.equal(weights[:NUM_COMPONENTS], -weights[NUM_COMPONENTS:])
    assert weights.flatten(1).norm(dim=1).min() > 0.1
