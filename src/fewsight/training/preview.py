"""A contact sheet of the first augmented batches, as the model receives them, including CutMix."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from fewsight.augment import contact_sheet
from fewsight.data.prepare import Prepared
from fewsight.data.training_set import TrainingSet
from fewsight.machine import files
from fewsight.recipes import Recipe
from fewsight.runs import PREVIEW
from fewsight.terminal import printable
from fewsight.training.feed import AugmentedImages, keys_of
from fewsight.training.mix import mix
from fewsight.training.plans import batch_plan, draws_before
from fewsight.training.schedule import augment_at
from fewsight.wording import counted


def write_preview(recipe: Recipe, prepared: Prepared, count: int, out: Path, console: Console) -> None:
    """Write `out/preview.png`: the first `count` augmented batches as the model receives them, including CutMix."""
    sheet, sizes = preview_sheet(recipe, prepared.images, prepared.classes, count)
    files.make_folder(out)
    target = out / PREVIEW
    with files.replacing(target) as part:
        sheet.save(part, format="PNG")
    batches = counted(count, "batch")
    console.print(f"wrote {target}: {batches} of {' or '.join(map(str, sizes))} images as the model will see them")


def preview_sheet(
    recipe: Recipe, images: TrainingSet, classes: Sequence[str], count: int
) -> tuple[Image.Image, list[int]]:
    """A contact sheet of the first `count` batches of the first stage, and the batch sizes among them.

    Raises:
        DataError: an image can no longer be read.
    """
    source = AugmentedImages(
        images.root,
        images.paths,
        recipe.augment,
        recipe.run.seed,
        images.numbers,
        augment_at=partial(augment_at, recipe),
    )
    stage = recipe.stages[0]
    plan = batch_plan(recipe, stage, images)
    labels = torch.tensor(images.labels)
    sheets, captions = [], []
    for number in range(count):
        epoch, step = divmod(number, plan.num_steps)
        in_epoch = plan.epoch(epoch)
        indices, draws = in_epoch[step], draws_before(in_epoch)[step]
        batch = source.__getitems__(keys_of(epoch, indices, draws))
        if isinstance(batch, Exception):
            raise batch
        pixels = torch.from_numpy(batch).float()
        mixed, targets = mix(pixels, labels, indices, recipe, stage, epoch, step)
        sheets.append(mixed.permute(0, 2, 3, 1).byte().numpy())
        names = [[classes[int(label)] for label in part] for part in (targets.labels, targets.other_labels)]
        stems = [Path(images.paths[index]).stem for index in indices]
        captions.append(
            [_caption(label, other, stem, targets.lam) for label, other, stem in zip(*names, stems, strict=True)]
        )
    return contact_sheet(sheets, captions), sorted({len(sheet) for sheet in sheets})


def _caption(label: str, other_label: str, stem: str, lam: float) -> str:
    """The class and the file name; for a mixed image both classes with their target probabilities."""
    if lam == 1:
        return f"{printable(label)}\n{printable(stem)}"
    return f"{lam:.2f} {printable(label)}\n{1 - lam:.2f} {printable(other_label)}"
