"""A step shared by several processes, against the same step of a single process; test_processes.py starts them."""

import numpy as np
import torch
from torch import nn

from fewsight.losses import build_loss
from fewsight.machine.processes import SINGLE_PROCESS, ProcessGroup, joined, synchronise_norms
from fewsight.models.classifier import build_model
from fewsight.recipes import Recipe, parse_recipe
from fewsight.training.learner import Learner, read_values
from fewsight.training.mix import mix, rows_of

NUM_CLASSES, BATCH, PX = 4, 11, 16


def recipe(loss: str, cutmix_prob: float) -> Recipe:
    stage = {"loss": loss, "epochs": 1, "batch_size": BATCH, "optim": {"base_lr": 0.1}}
    augment = {"train_px": PX, "cutmix_prob": cutmix_prob}
    return parse_recipe({"model": {"backbone": "resnest14"}, "augment": augment, "stages": [stage]})


def step(group: ProcessGroup, loss: str, mixed: str, cutmix_prob: float) -> tuple[dict[str, torch.Tensor], float]:
    """The weights after a step in float64 and its logged terms; its loss."""
    torch.manual_seed(0)
    images = torch.rand(40, 3, PX, PX, dtype=torch.float64)
    labels = torch.arange(40) % NUM_CLASSES
    indices = np.random.default_rng(1).choice(40, BATCH, replace=True)  # one image is in it twice
    planned = recipe(loss, cutmix_prob)
    stage = planned.stages[0]
    losses = stage.losses.model_copy(update={"triplet": stage.losses.triplet.model_copy(update={"mixed": mixed})})
    model = build_model("resnest14", NUM_CLASSES, stem="small", width=0.125)
    for module in model.modules():  # the last norm of each block starts at 0, which would hide the others
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model.double()
    if group.count > 1:
        synchronise_norms(model)
    built = build_loss(loss, losses, num_classes=NUM_CLASSES, num_features=model.head.in_features).double()
    learner = Learner(model, built, stage, 10, torch.device("cpu"), "float32", group)
    rows = rows_of(planned, stage, 0, 3, BATCH, group)
    inputs, targets = mix(images[indices[rows]], labels, indices, planned, stage, 0, 3, group)
    ((value, logged),) = read_values([learner.step(inputs, targets, 0.1)])
    tensors = {name: tensor.double() for name, tensor in model.state_dict().items()}
    tensors |= {f"loss.{name}": tensor for name, tensor in built.state_dict().items()}
    return tensors | {name: torch.tensor(term, dtype=torch.float64) for name, term in logged.items()}, value


CASES = [  # (loss, mixed, cutmix_prob)
    ("ce", "skip", 0.0),
    ("ce", "skip", 1.0),
    ("ce+triplet", "skip", 0.0),
    ("ce+triplet", "lam", 1.0),
    ("ce+arcface", "skip", 1.0),
]


def main(count: int) -> None:
    torch.set_num_threads(1)
    with joined() as group:
        assert group.count == count
        for case in CASES:
            (single, single_loss), (shared, shared_loss) = step(SINGLE_PROCESS, *case), step(group, *case)
            assert single.keys() == shared.keys(), (single.keys(), shared.keys())
            worst = max(float((single[name] - shared[name]).abs().max()) for name in single)
            assert worst < 1e-9, (case, worst)
            assert abs(single_loss - shared_loss) < 1e-6, (case, single_loss, shared_loss)  # summed in float32
            if group.first:
                print(case, worst)
