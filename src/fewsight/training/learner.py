"""A training step, and the state that it changes: model, loss, optimiser, moving average of the weights."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewsight.data.training_set import TrainingSet
from fewsight.losses import Targets, balanced_weights, build_loss
from fewsight.machine.device import AUTOCAST_DTYPES, autocast
from fewsight.machine.processes import SINGLE_PROCESS, ProcessGroup
from fewsight.models.activated_norm import inversions_decided
from fewsight.models.classifier import Classifier
from fewsight.optim import (
    MovingAverage,
    Norms,
    build_optimizer,
    load_optimizer_state,
    measured_norms,
    optimizer_state,
)
from fewsight.recipes import Recipe, Stage
from fewsight.training.plans import ShuffledBatches, batch_plan, class_counts


class Learner:
    """Model, loss, optimiser and, if the stage asks for it, a moving average of the weights.

    Args:
        model: trained in place, on `device`.
        loss: `(logits, features, targets) -> (scalar, what to log)`; its own weights are trained too.
        num_steps: steps per epoch, for the half-life of the moving average.
        precision: float32, bf16 or fp16 (with loss scaling).
        group: the processes that share each batch.
    """

    def __init__(
        self,
        model: Classifier,
        loss: nn.Module,
        stage: Stage,
        num_steps: int,
        device: torch.device,
        precision: str,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.group = group
        self.model, self.loss, self.stage = model, loss, stage
        self.device, self.precision = device, precision
        self.weights = {f"model.{name}": weight for name, weight in model.named_parameters()}
        self.weights |= {f"loss.{name}": weight for name, weight in loss.named_parameters()}
        self.optimizer = build_optimizer(self.weights, stage.optim, device, precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        half_life = stage.ema_half_life_epochs * num_steps
        self.average = MovingAverage(model, half_life) if half_life else None
        self.asynchronous = device.type != "cpu"  # it computes while Python goes on
        self.norms: Norms | None = None  # of the last step that was measured

    def step(self, images: Tensor, targets: Targets, lr: float, *, measure: bool = False) -> "StepValues":
        """One optimiser step on a batch, in `stage.accumulate` parts.

        On a GPU it returns while the device computes; only models with leaky norms wait for the weights before it (see
        `inversions_decided`), and gradient scaling (fp16) before the update.

        If several processes share the batch, `images` are the rows of this one; gradients, loss and logged terms are
        summed over all processes.

        Args:
            images: [B, 3, H, W], normalised.
            lr: the learning rate of this step.
            measure: also take the norms of gradient, weights and update, which costs a copy of the weights.

        Returns:
            The batch's mean loss and the loss's logged terms, for `read_values`.
        """
        if self.asynchronous:
            with inversions_decided(self.model, AUTOCAST_DTYPES.get(self.precision, torch.float32)):
                return self._step(images, targets, lr, measure=measure)
        return self._step(images, targets, lr, measure=measure)

    def _step(self, images: Tensor, targets: Targets, lr: float, *, measure: bool) -> "StepValues":
        self.model.train()
        self.loss.train()
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = lr
        total = torch.zeros((), device=self.device)
        logged: dict[str, Any] = {}
        batch_size = len(images) if targets.total is None else targets.total
        for part in split_batch(len(images), min(self.stage.accumulate, batch_size // self.group.count // 2)):
            with autocast(self.device, self.precision):
                logits, features = self.model(images[part])
            loss, extra = self.loss(logits, features, targets.part(part))
            proportion = (part.stop - part.start) / batch_size
            self.scaler.scale(loss * proportion).backward()
            total += loss.detach() * proportion
            for name, value in extra.items():
                detached = value.detach() if isinstance(value, Tensor) else value
                logged[name] = logged.get(name, 0.0) + proportion * detached
        if self.group.count > 1:
            self._sum_gradients()
            values = [torch.as_tensor(value, device=self.device).double() for value in (total, *logged.values())]
            total, *values = self.group.sum_(torch.stack(values)).unbind()
            logged = dict(zip(logged, values, strict=True))
        if measure:
            self.norms = measured_norms(self.weights, self.scaler.get_scale(), lambda: self.scaler.step(self.optimizer))
        else:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total, logged

    def _sum_gradients(self) -> None:
        """Sum gradients over all processes, one message per dtype: each process's loss is weighted by its images."""
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        dtypes = {weight.dtype for weight in self.weights.values()}
        for dtype in dtypes:
            gradients = [
                weight.grad for weight in self.weights.values() if weight.dtype == dtype and weight.grad is not None
            ]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self.group.sum_(flat)
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
                gradient.copy_(summed.view(gradient.shape))

    def averaged(self) -> nn.Module:
        """The model to evaluate and save: the moving average if there is one."""
        return self.model if self.average is None else self.average.module

    def finish(self) -> None:
        """Copy the moving average into the model at the end of the stage."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load` restores every bit."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        optimizer_tensors, optimizer_values = optimizer_state(self.optimizer, self.weights)
        tensors |= optimizer_tensors
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        values = {"scaler": self.scaler.state_dict(), "optimizer": optimizer_values}
        return {name: _cpu_copy(value) for name, value in tensors.items()}, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.model.load_state_dict(_without_prefix("model.", tensors))
        self.loss.load_state_dict(_without_prefix("loss.", tensors))
        load_optimizer_state(self.optimizer, self.weights, tensors, values["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(_without_prefix("average.", tensors))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])


StepValues = tuple[Tensor, Mapping[str, Tensor | float]]  # loss and terms; tensors without dimensions


def read_values(steps: Sequence[StepValues]) -> list[tuple[float, dict[str, float]]]:
    """The loss and the logged terms of some steps as numbers, without terms that had no value; waits for the device."""
    device = steps[0][0].device
    flat = [value for loss, terms in steps for value in (loss, *terms.values())]
    dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    stacked = torch.stack([torch.as_tensor(value, dtype=dtype, device=device) for value in flat])
    numbers = iter(stacked.tolist())
    read = [(next(numbers), {name: next(numbers) for name in terms}) for _, terms in steps]
    return [(loss, {name: value for name, value in terms.items() if not math.isnan(value)}) for loss, terms in read]


def split_batch(num_images: int, max_parts: int) -> list[slice]:
    """Split a batch into parts that differ in size by at most one image.

    There are fewer than `max_parts` where a part would have a single image, which has no batch statistics.
    """
    parts = max(1, min(max_parts, num_images // 2))
    edges = [num_images * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _cpu_copy(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU, as safetensors requires."""
    return value.detach().to("cpu", copy=True).contiguous()


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def build_learner(
    model: Classifier,
    recipe: Recipe,
    stage: Stage,
    data: TrainingSet,
    num_classes: int,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Learner:
    """The model with the stage's loss, a new optimiser and a new moving average.

    P x K batches show every class equally often, so the loss uses no class weights with them.
    """
    plan = batch_plan(recipe, stage, data)
    weighted = recipe.data.balance == "weights" and isinstance(plan, ShuffledBatches)
    class_weights = balanced_weights(class_counts(data.labels, num_classes)) if weighted else None
    torch.manual_seed(recipe.run.seed + 1)  # the weights that a loss owns are drawn here
    loss = build_loss(
        stage.loss,
        stage.losses,
        num_classes=num_classes,
        num_features=model.head.in_features,
        class_weights=class_weights,
    )
    return Learner(model, loss.to(device), stage, plan.num_steps, device, recipe.run.precision, group)
