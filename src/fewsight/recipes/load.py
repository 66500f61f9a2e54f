"""From a recipe's name or file, with overrides, to a checked Recipe, and back to TOML."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from fewsight.errors import RecipeError
from fewsight.recipes.schema import Recipe


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of each recipe that the package ships."""
    folder = Path(str(resources.files("fewsight.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name_or_file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a TOML file by path, and apply `key.path=value` overrides.

    Raises:
        RecipeError: no such recipe; not TOML; an unknown key (the nearest is named); a wrong value.
    """
    shipped = shipped_recipes()
    path = shipped.get(str(name_or_file), Path(name_or_file))
    if not path.is_file():
        near = difflib.get_close_matches(str(name_or_file), [*shipped, "auto"], 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(
            f"no recipe {str(name_or_file)!r}: it is neither a file nor one of auto, {', '.join(shipped)}.{hint}"
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise RecipeError(f"cannot read recipe {path}: {error}") from error
    return parse_recipe(values, overrides, str(name_or_file))


def parse_recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Check a recipe's values after the overrides.

    Raises:
        RecipeError: as `load_recipe`.
    """
    merged = _copy(values)
    for override in overrides:
        _apply(merged, override)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()[:5]]
        raise RecipeError(f"recipe {source}: " + "; ".join(dict.fromkeys(lines))) from error


def recipe_toml(recipe: Recipe, heading: str = "") -> str:
    """A recipe as TOML, every value written out; `heading` becomes comment lines on top."""
    comments = "".join(f"# {line}\n" for line in heading.splitlines())
    return comments + tomli_w.dumps(recipe.model_dump(mode="json"))


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """`key: old -> new` for each value that differs."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for key, item in items:
        nested = isinstance(item, dict) or (isinstance(item, list) and item and isinstance(item[0], dict))
        flat.update(_flat(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item})
    return flat


def _apply(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"--set {override}: expected KEY=VALUE, for example --set augment.train_px=96")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    *parents, last = key.strip().split(".")
    place: Any = values
    for name in parents:
        place = _descend(place, name, key)
    if isinstance(place, list):
        _descend(place, last, key)
        place[int(last)] = value
    else:
        place[last] = value


def _descend(place: Any, name: str, key: str) -> Any:
    if isinstance(place, list):
        if not name.isdecimal() or int(name) >= len(place):
            raise RecipeError(f"--set {key}: the recipe has {len(place)} stage(s), numbered from 0; got {name!r}")
        return place[int(name)]
    if not isinstance(place, dict):
        raise RecipeError(f"--set {key}: {name!r} is not a section of the recipe")
    return place.setdefault(name, {})


def _explain(problem: dict[str, Any]) -> str:
    location = [part for part in problem["loc"] if not _is_union_tag(part)]
    where = ".".join(str(part) for part in location) or "recipe"
    if problem["type"] == "extra_forbidden":
        below, leaves = _below(problem["input"]), set(_all_keys(Recipe))
        near = " or ".join(repr(one if one in leaves else one + below) for one in _nearest(location))
        hint = f"did you mean {near}?" if near else f"known here: {', '.join(_keys_at(location[:-1]))}"
        return f"unknown key {where + below!r}; {hint}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    return f"{where}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"


def _below(value: Any) -> str:
    """The rest of a key whose first part is unknown, where there is one: of `{"backbone": "x"}` it is `.backbone`."""
    if not isinstance(value, dict) or len(value) != 1:
        return ""
    (name, within), *_ = value.items()
    return f".{name}{_below(within)}"


def _nearest(location: Sequence[int | str]) -> list[str]:
    """The keys that an unknown one may stand for: much like it here, of its name elsewhere, less like it."""
    name, here = str(location[-1]), _keys_at(location[:-1])
    elsewhere: dict[str, list[str]] = {}
    for key in _all_keys(Recipe):
        elsewhere.setdefault(key.rpartition(".")[2], []).append(key)
    for known, cutoff in ((here, 0.7), (elsewhere, 1.0), (here, 0.5), (elsewhere, 0.75)):
        if like := difflib.get_close_matches(name, known, 1, cutoff):
            return [".".join(map(str, [*location[:-1], like[0]]))] if known is here else elsewhere[like[0]]
    return [key for last, keys in elsewhere.items() if name in last.split("_") for key in keys][:3]


def _all_keys(section: type[BaseModel]) -> Iterator[str]:
    """Every key of a section and of those within it; the first stage stands for all."""
    for name, field in section.model_fields.items():
        annotation = field.annotation
        within = next((one for one in (annotation, *get_args(annotation)) if _is_section(one)), None)
        if within is None:
            yield name
        else:
            step = f"{name}." if within is annotation else f"{name}.0."
            yield from (step + key for key in _all_keys(within))


def _is_union_tag(part: int | str) -> bool:
    """Pydantic adds the tried alternative of a union to the location; users never wrote it."""
    return isinstance(part, str) and ("[" in part or part.removeprefix("constrained-") in ("int", "str", "float"))


def _keys_at(location: Sequence[int | str]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next((arg for arg in get_args(annotation) if _is_section(arg)), annotation)
    return list(model.model_fields)


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
