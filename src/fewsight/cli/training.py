"""Commands for data and training: demo, check, train, recipes."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fewsight.cli import early
from fewsight.errors import FewsightError

MAX_MEMBERS = 32  # as the schema of recipes says


def demo(*, out: Path = Path("runs/demo")) -> int:
    """Train on scikit-learn's digits (50 images per class), test on the rest and show the results.

    Args:
        out: the run folder to write (runs/demo).
    """
    from fewsight.cli.demo import run_demo

    run_demo(out)
    return 0


def check(
    data: Path,
    /,
    *,
    holdout: float = 0.2,
    splits: str = "",
    reread: bool = False,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
    html: Path | None = None,
) -> int:
    """Check a dataset: unreadable files, duplicates, leaks between splits, labels, classes. Exit code 1 with findings.

    Args:
        data: a dataset, as for train.
        holdout: fraction of each class that train would hold out as val if the data has no splits (0.2).
        splits: train=NAME,val=NAME,test=NAME for splits with other names: of folders, or a manifest's values.
        reread: read every file again, also those whose size and times have not changed; for file systems that keep no
            exact times.
        json_: also write every finding to this file.
        html: also write a page with thumbnails to this file.
    """
    from fewsight.apps.check import check as check_data
    from fewsight.apps.check import check_json, show_check, write_page
    from fewsight.machine import files
    from fewsight.machine.outputs import Kind, check_output
    from fewsight.terminal import make_console, progress_counter

    if json_ is not None:
        check_output(json_, "--json", Kind("a result of fewsight check", (b'"layout":', b'"counts":')))
    if html is not None:
        check_output(html, "--html", Kind("a page of fewsight check", (b'content="fewsight check"',)))
    console = make_console()
    with progress_counter(console, "checking") as progress:
        checked = check_data(data, holdout=holdout, splits=splits, reread=reread, progress=progress)
    show_check(console, checked)
    if json_ is not None:
        files.write_json(files.link_target(json_), check_json(checked))
        console.print(f"wrote {json_}")
    if html is not None:
        write_page(checked, html)
        console.print(f"wrote {html}")
    return 0 if checked.ok else 1


def train(
    data: Path | None = None,
    /,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    other_machine: bool = False,
    recipe: str | None = None,
    hours: float | None = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    members: str | None = None,
    seeds: str | None = None,
    init_from: Path | None = None,
    merge_val: bool = False,
    holdout: float | None = None,
    splits: str | None = None,
    max_bad: float | None = None,
    leak: Literal["drop", "stop", "allow"] | None = None,
    deterministic: bool = False,
    preview: int | None = None,
    tensorboard: bool = False,
) -> int:
    """Train a classifier on a folder of class folders, a folder with train/, val/, test/, or a CSV or Parquet manifest.

    Args:
        data: the folder or manifest; with --resume, its new place, if moved.
        out: the run folder to write; it must not exist yet.
        resume: continue this run instead, with its own recipe and data.
        other_machine: resume where processor, processes, threads, device or versions differ; the last bits then do too.
        recipe: auto (the default), a shipped recipe (see `fewsight recipes`) or a TOML file.
        hours: time budget of the whole command for `auto` (1).
        set_: KEY=VALUE overrides a value of the recipe, for example stages.0.optim.base_lr=0.05; may be repeated.
        members: train so many models side by side; OUT is their ensemble.
        seeds: train once per seed with the same plan, for example 0,1,2; the runs are OUT/seed0 and so on.
        init_from: train the last stage only, from this run's weights (with --seeds, its seed0 and so on). The recipe
            auto keeps the run's backbone and image size.
        merge_val: train on train + val, as the paper does.
        holdout: fraction of each class held out as val if the data has no splits (0.2).
        splits: train=A,val=B,test=C where they are called otherwise.
        max_bad: refuse to train if more than this fraction of the images cannot be read (0.01).
        leak: what to do with a training image that equals one of another split: drop it, stop, or allow it (drop).
            Near duplicates are only named.
        deterministic: on a GPU, allow deterministic operations only.
        preview: write this many augmented batches to OUT/preview.png and do not train.
        tensorboard: also write curves, one batch and the recipe to OUT/tensorboard.
    """
    if resume is not None:
        given = {"--out": out, "--recipe": recipe, "--hours": hours, "--set": set_ or None,
                 "--members": members, "--seeds": seeds, "--init-from": init_from, "--merge-val": merge_val or None,
                 "--holdout": holdout, "--splits": splits, "--max-bad": max_bad, "--leak": leak,
                 "--deterministic": deterministic or None, "--preview": preview}  # fmt: skip
        _refuse_with_resume([name for name, value in given.items() if value is not None])
    elif other_machine:
        raise FewsightError("--other-machine is for a run that goes on: fewsight train --resume RUN --other-machine")
    elif data is None or out is None:
        raise FewsightError("train needs DATA and --out RUN, for example: fewsight train photos/ --out runs/photos")
    if hours is not None and recipe not in (None, "auto"):
        raise FewsightError(f"--hours is the time budget of `--recipe auto`; leave out --hours, or --recipe {recipe}")
    if preview is not None and preview < 1:
        raise FewsightError(f"--preview {preview}: expected at least 1 batch")
    seed_list = _seed_list(seeds) if seeds is not None else []
    if members is not None and members not in map(str, range(1, MAX_MEMBERS + 1)):  # as an int, 1.5 would become 2
        raise FewsightError(f"--members {members}: expected a whole number from 1 to {MAX_MEMBERS}")
    settings = {"run.members": members, "data.merge_val": "true" if merge_val else None, "data.holdout": holdout,
                "data.splits": splits, "data.max_bad": max_bad, "data.leak": leak,
                "run.deterministic": "true" if deterministic else None}  # fmt: skip
    overrides = [*set_, *(f"{key}={value}" for key, value in settings.items() if value is not None)]
    if resume is not None:
        early.check_run(resume, data)
    else:
        assert data is not None
        assert out is not None
        folders = [] if preview else [out / f"seed{seed}" for seed in seed_list] or [out]
        early.check_training(data, out, folders, recipe or "auto", hours, overrides)
        if init_from is not None:
            early.check_exists(init_from)

    from fewsight.cli.show import show_next, show_run, show_seeds
    from fewsight.terminal import make_console
    from fewsight.training.session import resume as resume_run
    from fewsight.training.session import train as train_run

    console, reporters = make_console(), []
    if tensorboard:
        from fewsight.training.tensorboard import TensorBoard, require_tensorboard

        require_tensorboard()
        reporters.append(TensorBoard)
    if resume is not None:
        run = resume_run(resume, data=data, other_machine=other_machine, console=console, reporters=reporters)
        show_run(run, console)
        show_next(run, console)
        return 0
    assert data is not None
    assert out is not None
    runs = train_run(
        data,
        out,
        recipe=recipe or "auto",
        hours=1.0 if hours is None else hours,
        overrides=overrides,
        seeds=seed_list,
        init_from=init_from,
        preview=preview or 0,
        console=console,
        reporters=reporters,
    )
    for run in runs:
        show_run(run, console)
    show_seeds(runs, console)
    if len(runs) == 1:
        show_next(runs[0], console)
    return 0


def recipes(name: str | None = None, /) -> int:
    """List the shipped recipes, or print one.

    Args:
        name: the recipe to print.
    """
    from fewsight.recipes import load_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name == "auto":
        print("# auto is planned from the data, the device and --hours; `fewsight train` prints the plan and why,\n"
              "# and writes it to RUN/recipe.toml.")  # fmt: skip
    elif name is not None:
        load_recipe(name)
        print(shipped.get(name, Path(name)).read_text(encoding="utf-8"), end="")
    else:
        print("auto                     the default: planned from the data, the device and --hours")
        for recipe_name, path in shipped.items():
            print(f"{recipe_name:<24} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    return 0


def _seed_list(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in parts):
        raise FewsightError(f"--seeds {text}: expected numbers separated by commas, for example 0,1,2")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise FewsightError(f"--seeds {text}: a seed is given twice")
    if max(seeds) >= 2**63:
        raise FewsightError(f"--seeds {text}: expected seeds below 2^63")
    return seeds


def _refuse_with_resume(names: list[str]) -> None:
    if names:
        raise FewsightError(f"--resume continues with the run's own recipe and data; leave out {', '.join(names)}")
