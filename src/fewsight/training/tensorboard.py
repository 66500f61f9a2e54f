"""TensorBoard: a run's curves, first batch and recipe, written to `RUN/tensorboard` during training.

Your own reporter is a class like this one, passed to `fewsight.train(..., reporters=[MyReporter])`.
"""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fewsight.data.training_set import TrainingSet
from fewsight.errors import FewsightError
from fewsight.recipes import recipe_toml
from fewsight.runs import Run
from fewsight.training.preview import preview_sheet

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
EVERY_STEPS = 10  # between two points of a curve


class TensorBoard:
    """Writes scalars by step (`train/loss`, `train/rate`, `train/<term>`) and by epoch (`epoch/loss`, `val/...`).

    Raises:
        FewsightError: the extra is not installed.
    """

    def __init__(self, run: Run, images: TrainingSet) -> None:
        require_tensorboard()
        self.run, self.images = run, images
        self.writer: SummaryWriter | None = None
        self.done = 0

    def start(self, total_steps: int, done_steps: int) -> None:
        """Open the event file; points after the step that a run resumes from are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.done = done_steps
        self.writer = SummaryWriter(str(self.run.path / FOLDER), purge_step=done_steps + 1 if done_steps else None)
        if done_steps == 0:
            recipe = self.run.recipe
            sheet, _ = preview_sheet(recipe, self.images, self.run.classes, 1)
            self.writer.add_image("first batch", np.asarray(sheet), 0, dataformats="HWC")
            self.writer.add_text("recipe", "".join(f"    {line}\n" for line in recipe_toml(recipe).splitlines()), 0)
            self.writer.flush()

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        """Add a point to the curves every few steps."""
        self.done = done_steps
        if done_steps % EVERY_STEPS == 0:
            self._scalars({"train/loss": line["loss"], "train/rate": line["lr"]})
            self._scalars({f"train/{name}": value for name, value in line.get("terms", {}).items()})

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Add the epoch's mean loss, and the figures on val if it was evaluated."""
        self._scalars({"epoch/loss": line["train_loss"], "epoch/seconds": line["seconds"]})
        self._scalars({name.replace("val_", "val/"): line[name] for name in ("val_top1", "val_nll") if name in line})
        self._scalars({f"norms/{name}": value for name, value in line.get("norms", {}).items()})
        assert self.writer is not None, "start() comes first"
        self.writer.flush()

    def say(self, text: str) -> None:
        """Messages are not written to TensorBoard."""

    def close(self) -> None:
        """Flush and close the file."""
        if self.writer is not None:
            self.writer.close()

    def _scalars(self, values: Mapping[str, float]) -> None:
        assert self.writer is not None, "start() comes first"
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.done)


def require_tensorboard() -> None:
    """Check that the extra is installed.

    Raises:
        FewsightError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise FewsightError("--tensorboard needs an extra: pip install 'fewsight[tensorboard]'")
