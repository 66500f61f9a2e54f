"""plan.json of a reproduction and its recipes/: written once, then read by the same command to go on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fewsight.apps.reproduce.plan import Job
from fewsight.apps.reproduce.published import TRAININGS
from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.recipes import load_recipe, recipe_toml

PLAN = "plan.json"


@dataclass(frozen=True)
class Target:
    """What to reproduce on, as plan.json keeps it."""

    data: str
    test: str  # a split of the data, or a folder
    scale: str


@dataclass(frozen=True)
class PlannedJob:
    """A job in plan.json; its recipe is a file in recipes/."""

    training: str
    name: str
    start: str | None
    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class PlanFile(Target):
    """plan.json."""

    jobs: list[PlannedJob]


def check_out(out: Path, target: Target) -> None:
    """Refuse a folder with other content, or with a reproduction that has another target."""
    if (out / PLAN).is_file():
        before = asdict(_read_plan_file(out))
        options = asdict(target).items()
        different = [f"{name} {before[name]}, not {value}" for name, value in options if before[name] != value]
        if different:
            raise RunError(f"{out} was started with different options ({'; '.join(different)}); choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} already exists and holds no reproduction; choose another --out. Nothing was changed.")


def write_plan(out: Path, target: Target, planned: Sequence[Job]) -> None:
    """Write the plan, by which the same command will go on, unless it is written already."""
    if (out / PLAN).is_file():
        return
    for name in ("recipes", "logs", "runs"):
        files.make_folder(out / name)
    jobs = []
    for job in planned:
        files.write_text(out / "recipes" / f"{job.name}.toml", recipe_toml(job.recipe))
        costs = (job.seconds, job.memory_bytes, job.disk_bytes)
        jobs.append(PlannedJob(job.training.recipe, job.name, job.start, *costs))
    files.write_json(out / PLAN, asdict(PlanFile(**asdict(target), jobs=jobs)))


def _read_plan_file(out: Path) -> PlanFile:
    return files.read_json(out / PLAN, PlanFile, "`fewsight reproduce`")


def read_plan(out: Path) -> list[Job]:
    """The plan that a reproduction was started with, its recipes as they are there now.

    Raises:
        RecipeError, RunError: the plan or a recipe is missing or damaged.
    """
    trainings = {training.recipe: training for training in TRAININGS}
    planned = _read_plan_file(out).jobs
    unknown = next((job.training for job in planned if job.training not in trainings), None)
    if unknown is not None:
        raise RunError(f"{out / PLAN} is not what `fewsight reproduce` wrote: there is no training {unknown!r}")
    recipes = {job.name: load_recipe(out / "recipes" / f"{job.name}.toml") for job in planned}
    several = next((name for name, recipe in recipes.items() if recipe.run.members > 1), None)
    if several is not None:
        raise RunError(f"{out / 'recipes' / several}.toml: the tables are of single runs; set run.members = 1")
    return [
        Job(
            trainings[job.training],
            job.name,
            job.start,
            recipes[job.name],
            job.seconds,
            job.memory_bytes,
            job.disk_bytes,
        )
        for job in planned
    ]
