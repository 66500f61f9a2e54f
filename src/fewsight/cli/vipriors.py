"""`fewsight vipriors`: build, submit."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from fewsight.wording import counted

vipriors_app = App(name="vipriors", help="The VIPriors challenge: build its subset of ImageNet, write its submission.")


@vipriors_app.command(name="build")
def vipriors_build(*, imagenet: Path, lists: Path, out: Path, link: Literal["hard", "symlink", "copy"] = "hard") -> int:
    """Lay out OUT/imagenet_50 (train/, val/, test/imgs/img_N.JPEG) from an ImageNet tree and the toolkit's lists.

    The same command resumes where it was stopped.

    Args:
        imagenet: the folder with train/ (a folder per class) and val/ (a folder per class, or flat).
        lists: the toolkit's folder with train.pickle, val.pickle and test.pickle.
        out: the folder in which to write imagenet_50.
        link: hard (needs no space, but the same disk), symlink or copy (hard).
    """
    from fewsight.apps.vipriors.subset import build
    from fewsight.terminal import make_console, print_first, printable, progress_counter

    console = make_console()
    with progress_counter(console, "building") as progress:
        built = build(imagenet, lists, out, link=link, progress=progress)
    counts = ", ".join(f"{number:,} {split}" for split, number in built.counts.items())
    console.print(
        f"{printable(str(built.folder))}: {counts}; {built.created:,} created, {built.present:,} already present"
    )
    for kind, names in (("missing in the tree", built.missing), ("in no list", built.unlisted)):
        print_first(console, kind, names)
    if built.missing:
        console.print(
            f"all missing images: {printable(str(built.folder / 'missing.txt'))}; run this again when they are present"
        )
    return 1 if built.missing or built.unlisted else 0


@vipriors_app.command(name="submit")
def vipriors_submit(
    run: Path,
    data: Path,
    /,
    *,
    out: Path,
    views: str | None = None,
    scores: Path | None = None,
    images: int | None = None,
) -> int:
    """Write the challenge's submission: Image IDs,Predictions, with class indices in the order of the sorted names.

    Nothing is written unless every test image is present and can be read.

    Args:
        run: a run or an ensemble.
        data: the subset with test/imgs/img_N.JPEG, or the folder of these images.
        out: the CSV file to write.
        views: center, paper or names (paper).
        scores: the folder in which the scores are stored (RUN/scores/submission); the same command resumes from it.
        images: the size of the test set (50 per class).
    """
    from fewsight.apps.vipriors.submission import submit
    from fewsight.terminal import make_console, printable

    console = make_console()
    number = submit(run, data, out, views=views, scores=scores, num_images=images, console=console)
    console.print(f"wrote {printable(str(out))}: {counted(number, 'prediction')}")
    return 0
