"""Exact statistics of batch norms against the formulas over all inputs at once."""

import pytest
import torch
from torch import Tensor, nn

from fewsight.models.classifier import build_model
from fewsight.models.exact_norms import set_exact_statistics
from fewsight.models.layers import Backbone


def drifting_batches(sizes: tuple[int, ...]) -> list[Tensor]:
    """Batches of [B, 3, 8, 8] whose means differ."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 8, 8, generator=rng) + number for number, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(4, 4, 4), (7, 2, 5)])
def test_statistics_are_those_of_all_inputs_at_once(sizes: tuple[int, ...]) -> None:
    norm, batches = nn.BatchNorm2d(3), drifting_batches(sizes)
    set_exact_statistics(norm, batches)
    every = torch.cat(batches).transpose(0, 1).flatten(1)  # [3, values]
    torch.testing.assert_close(norm.running_mean, every.mean(1))
    torch.testing.assert_close(norm.running_var, every.var(1))


def test_average_of_variances_lacks_the_drift_of_the_means() -> None:
    """What `update_bn` of torch gives, and a moving average of running variances."""
    norm, batches = nn.BatchNorm2d(3), drifting_batches((4, 4, 4))
    torch.optim.swa_utils.update_bn(batches, norm)
    within = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_var, within)
    set_exact_statistics(norm, batches)
    assert (norm.running_var > 1.3 * within).all()


@pytest.mark.parametrize("recompute", [False, True])
def test_model_on_one_batch_evaluates_as_it_trained(recompute: bool) -> None:
    """With the exact statistics of a single batch, evaluation gives what training gave on it."""
    torch.manual_seed(0)
    model = build_model("tresnet_s", 5, stem="small", width=0.125)
    assert isinstance(model.backbone, Backbone)
    model.backbone.enable_recomputation(recompute)
    images = torch.randn(16, 3, 24, 24)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_exact_statistics(model, [images])
    with torch.no_grad():
        trained, evaluated = model.train()(images)[0], model.eval()(images)[0]
    torch.testing.assert_close(evaluated, trained, rtol=0.05, atol=0.02)  # the norms divide by n - 1 and by n
    after = model.state_dict()
    changed = {name.rpartition(".")[2] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed <= {"running_mean", "running_var", "num_batches_tracked"}
    assert not model.backbone.stem[0].norm._forward_pre_hooks  # type: ignore[index, union-attr]
