"""`fewsight demo`: from images to test figures, on real data that a dependency ships."""

from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from fewsight.cli.show import show_figures
from fewsight.inference.evaluate import evaluate
from fewsight.machine.files import make_folder
from fewsight.machine.rng import SPLIT, stream
from fewsight.runs import check_new
from fewsight.terminal import make_console
from fewsight.training.session import train
from fewsight.wording import counted, shell_command

TRAIN_PER_CLASS = 50


def run_demo(out: Path, *, console: Console | None = None) -> None:
    """Write scikit-learn's digits to a folder beside the run, train on its train split and test on its test split."""
    console = console or make_console()
    check_new(out)
    data = write_digits(out.with_name(f"{out.name}-digits"))
    console.print(f"scikit-learn's handwritten digits as images: {data}")
    train(data, out, recipe="digits", console=console)
    evaluation = evaluate(out, data, split="test", console=console)
    show_figures(console, evaluation.figures, "digits, test")
    top1 = evaluation.figures.top1
    console.print(f"top-1 {top1} on {counted(top1.total, 'image')}; the run is in {out}")
    following = ["fewsight", "predict", str(out), str(data / "test"), "--out", "predictions.csv"]
    console.print(f"next: {shell_command(following)}")


def write_digits(folder: Path) -> Path:
    """`folder/train/<digit>` with 50 images each, `folder/test/<digit>` with the rest; PNG files of 8 x 8 px.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998, as in scikit-learn.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = stream(0, SPLIT).permutation(len(labels))
    num_written = np.zeros(10, int)
    for index in order:
        digit = int(labels[index])
        split = "train" if num_written[digit] < TRAIN_PER_CLASS else "test"
        num_written[digit] += 1
        target = folder / split / str(digit)
        make_folder(target)
        Image.fromarray(images[index]).save(target / f"{index:04d}.png")
    return folder
