"""The command line: one command, one library function. Torch is imported only by a command that needs it."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markup import escape

import fewsight
from fewsight.errors import FewsightError, Interrupted

app = App(
    name="fewsight",
    help="Train strong image classifiers from scratch on few labelled images.",
    version=fewsight.__version__,
    version_flags=["--version"],
    result_action="return_value",
)


@app.command
def demo(*, out: Path = Path("runs/demo")) -> int:
    """Train on scikit-learn's digits (50 images a class), test on the rest, and show the result.

    Args:
        out: the run folder to write.
    """
    from fewsight.demo import run_demo

    run_demo(out)
    return 0


@app.command
def train(
    data: Path | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    recipe: str = "auto",
    hours: float = 1.0,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    seeds: str = "",
    merge_val: Annotated[bool, Parameter(negative="")] = False,
    holdout: float | None = None,
    max_bad: float | None = None,
    preview: int = 0,
) -> int:
    """Train a classifier on a folder of class folders, a folder with train/ val/ test/, or a CSV or Parquet manifest.

    Args:
        data: the folder or manifest.
        out: the run folder to write; it must not exist yet.
        resume: continue this run instead; recipe and data path come from the run.
        recipe: auto, the name of a shipped recipe (see `fewsight recipes`) or a TOML file.
        hours: the time that `auto` plans for, the whole command.
        set_: KEY=VALUE on top of the recipe, for example stages.0.optim.base_lr=0.05; may be repeated.
        seeds: train once for each seed by one plan, for example 0,1,2; runs lie in OUT/seed0 and so on.
        merge_val: train on train + val, as the report does.
        holdout: share of the images for val where the folder has no splits (0.2).
        max_bad: refuse when more than this share of the images cannot be read (0.01).
        preview: write OUT/preview.png, a contact sheet of that many augmented batches, and train nothing.
    """
    from fewsight.console import make_console
    from fewsight.session import resume as resume_run
    from fewsight.session import train as train_run
    from fewsight.summary import show_run, show_seeds

    console = make_console()
    if resume is not None:
        _refuse_with_resume(data=data, out=out, recipe=recipe != "auto", set=set_, seeds=seeds, preview=preview)
        show_run(resume_run(resume, console=console), console)
        return 0
    if data is None or out is None:
        raise FewsightError(
            "train needs DATA and --out RUN (or --resume RUN): fewsight train photos/ --out runs/photos"
        )
    overrides = list(set_)
    overrides += ["data.merge_val=true"] if merge_val else []
    overrides += [f"data.holdout={holdout}"] if holdout is not None else []
    overrides += [f"data.max_bad={max_bad}"] if max_bad is not None else []
    runs = train_run(
        data,
        out,
        recipe=recipe,
        hours=hours,
        overrides=overrides,
        seeds=_seed_list(seeds),
        preview=preview,
        console=console,
    )
    for run in runs:
        show_run(run, console)
    show_seeds(runs, console)
    return 0


@app.command
def evaluate(
    run: Path,
    data: Path,
    *,
    split: str | None = None,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Test a run on a split of a dataset: top-1 and top-5 with intervals, per class, the worst confusions.

    Args:
        run: the run folder.
        data: a dataset as for train; labels match by name.
        split: default test, then val; a folder without splits is taken whole.
        json_: also write every figure to this file.
    """
    from fewsight import files
    from fewsight.console import make_console, show_figures
    from fewsight.session import evaluate as evaluate_run

    console = make_console()
    found = evaluate_run(run, data, split=split, console=console)
    if found.num_trained_on:
        console.print(f"[bold]images it was trained on[/bold]: {found.num_trained_on:,} of these; the figures flatter")
    show_figures(console, found.figures, f"{run} on {data} ({found.split})")
    for error in found.unreadable[:20]:
        console.print(f"unreadable: {error}", markup=False)
    if json_ is not None:
        files.write_json(json_, {"run": str(run), "data": str(data), "split": found.split,
                                 "num_trained_on": found.num_trained_on, **found.figures.as_json()})  # fmt: skip
    return 1 if found.unreadable else 0


@app.command
def predict(
    run: Path,
    images: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=False)],
    *,
    out: Path | None = None,
    top_k: int = 5,
) -> int:
    """Predict the classes of images: files, folders and glob patterns; a row for each, in order.

    Args:
        run: the run folder.
        images: files, folders (expanded in code-point order) or patterns.
        out: a .csv, .jsonl or .parquet file; without it CSV goes to the screen.
        top_k: classes a row.
    """
    from fewsight.console import make_console
    from fewsight.inference import predict_files

    failed, total = predict_files(run, images, out, top_k=top_k, console=make_console(sys.stderr))
    if out is not None:
        print(f"wrote {out}: {total:,} rows" + (f", {failed:,} with an error" if failed else ""))
    return 1 if failed else 0


@app.command
def recipes(name: str | None = None) -> int:
    """List the shipped recipes, or print one.

    Args:
        name: the recipe to print.
    """
    from fewsight.recipes import load_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name is not None:
        load_recipe(name)
        print(shipped.get(name, Path(name)).read_text(encoding="utf-8"), end="")
        return 0
    print("auto                 the default: planned from the data, the device and --hours")
    for one, path in shipped.items():
        print(f"{one:<20} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    return 0


def _seed_list(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise FewsightError(f"--seeds {text}: expected numbers with commas between, for example 0,1,2")
    if len(set(parts)) < len(parts):
        raise FewsightError(f"--seeds {text}: a seed stands there twice")
    return [int(part) for part in parts]


def _refuse_with_resume(**given: object) -> None:
    names = [f"--{name}" if name != "data" else "DATA" for name, value in given.items() if value]
    if names:
        raise FewsightError(f"--resume takes recipe and data from the run; leave out {', '.join(names)}")


def main() -> None:
    """Run the command; known errors are one line on stderr. Exit codes: 0, 1 findings, 2 not done, 130/143."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code = app(exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except Interrupted as error:
        console.print(escape(str(error)))
        code = 128 + error.signal_number
    except (FewsightError, CycloptsError) as error:
        console.print(f"fewsight: {escape(str(error))}")
        code = 2
    except KeyboardInterrupt:
        console.print("fewsight: interrupted; nothing that was saved before is lost")
        code = 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
