"""Load a recipe by name or from a file, apply overrides, check it, and write it back as TOML."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import ValidationError

from fewsight.errors import RecipeError
from fewsight.recipes.options import check_name
from fewsight.recipes.schema import Recipe, Section
from fewsight.wording import first_few


def shipped_recipes() -> dict[str, Path]:
    """The file of each recipe that the package ships, by name."""
    folder = Path(str(resources.files("fewsight.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name_or_file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a TOML file by path, and apply `key.path=value` overrides.

    Raises:
        RecipeError: no such recipe; not TOML; an unknown key (the message names the nearest); an invalid value.
    """
    shipped = shipped_recipes()
    path = shipped.get(str(name_or_file), Path(name_or_file))
    if not path.is_file():
        check_name(str(name_or_file), ["auto", *shipped], "recipe", "a TOML file")
        raise RecipeError("recipe: 'auto' is planned for the data by `fewsight train` and has no values of its own")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits
        raise RecipeError(f"cannot read recipe {path}: {error}") from error
    return parse_recipe(values, overrides, str(name_or_file))


def parse_recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Apply the overrides to a recipe's values and check them.

    Args:
        values: the sections of a recipe, as TOML gives them.
        overrides: `key.path=value` each.
        source: the recipe's name for the message.

    Raises:
        RecipeError: as `load_recipe`.
    """
    merged = _copy(values)
    for override in overrides:
        _apply(merged, override)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        sentences = dict.fromkeys(_explain(dict(problem), merged) for problem in error.errors())
        raise RecipeError(f"recipe {source}: " + "; ".join(first_few(sentences))) from error


def check_keys(overrides: Sequence[str], source: str) -> None:
    """Check that overrides name keys of a recipe, without the recipe.

    Raises:
        RecipeError: one does not; the message names the nearest.
    """
    values: dict[str, Any] = {"stages": [{} for _ in range(100)]}
    for override in overrides:
        _apply(values, override)
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        unknown = [dict(problem) for problem in error.errors() if problem["type"] == "extra_forbidden"]
        if unknown:
            sentences = dict.fromkeys(_explain(problem, values) for problem in unknown)
            raise RecipeError(f"recipe {source}: " + "; ".join(first_few(sentences))) from error


def recipe_toml(recipe: Recipe, heading: str = "") -> str:
    """A recipe as TOML with every value written out; `heading` becomes comment lines at its top."""
    comments = "".join(f"# {line}\n" for line in heading.splitlines())
    return comments + tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """`key: old -> new` for each value that differs between two recipes."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def changes(old: Recipe, new: Recipe) -> list[str]:
    """The overrides that make `new` of `old`, outside of data and run, which are not compared."""
    before, after = (_flat(each.model_dump(mode="json", exclude={"data", "run"})) for each in (old, new))
    return [f"{key}={json.dumps(value)}" for key, value in after.items() if before.get(key) != value]


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
    parent: Any = values
    for name in parents:
        parent = _descend(parent, name, key)
    if isinstance(parent, list):
        _descend(parent, last, key)
        parent[int(last)] = value
    else:
        parent[last] = value


def _descend(parent: Any, name: str, key: str) -> Any:
    if isinstance(parent, list):
        if not name.isdecimal() or int(name) >= len(parent):
            raise RecipeError(f"--set {key}: the recipe has {len(parent)} stage(s), numbered from 0; got {name!r}")
        return parent[int(name)]
    if not isinstance(parent, dict):
        raise RecipeError(f"--set {key}: {name!r} is not a section of the recipe")
    return parent.setdefault(name, {})


def _explain(problem: dict[str, Any], values: Mapping[str, Any]) -> str:
    """One sentence on one of pydantic's errors about the recipe `values`."""
    location, schema = _field_at(problem["loc"])
    is_missing = problem["type"] == "missing" and len(location) == len(problem["loc"])
    if not is_missing and not {"anyOf", "prefixItems", "items"}.isdisjoint(
        schema
    ):  # one sentence on all alternatives and items
        return f"{'.'.join(map(str, location))}: expected {_describe(schema)}, got {_value_at(values, location)!r}"
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        suffix, leaves = _key_below(problem["input"]), set(_all_keys(Recipe))
        nearest = " or ".join(repr(key if key in leaves else key + suffix) for key in _nearest_keys(problem["loc"]))
        hint = f"did you mean {nearest}?" if nearest else f"keys here: {', '.join(_keys_at(problem['loc'][:-1]))}"
        return f"unknown key {where + suffix!r}; {hint}"
    if is_missing:
        return f"{where} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    return f"{where}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"


def _field_at(location: Sequence[int | str]) -> tuple[Sequence[int | str], dict[str, Any]]:
    """The part of pydantic's error location that is a recipe key, and the JSON schema of its value.

    Beyond the key pydantic's location has the alternatives of unions and the indices of lists. The schema is empty for
    a section and for an unknown key.
    """
    section: type[Section] = Recipe
    for length, part in enumerate(location, 1):
        if isinstance(part, int):
            continue
        if part not in section.model_fields:
            break
        nested = _section_of(section.model_fields[part].annotation)
        if nested is None:
            schema: dict[str, Any] = section.model_json_schema()["properties"][part]
            return location[:length], schema
        section = nested
    return location, {}


def _value_at(values: Any, location: Sequence[int | str]) -> Any:
    for part in location:
        values = values[part]
    return values


def _describe(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        given = [
            alternative for alternative in schema["anyOf"] if alternative.get("type") != "null"
        ]  # TOML has no null
        literals_first = sorted(given, key=lambda alternative: "const" not in alternative)
        return " or ".join(map(_describe, literals_first))
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])} values, each {_describe(schema['prefixItems'][0])}"
    if "items" in schema:
        return f"a list of {schema['minItems']} to {schema['maxItems']} values, each {_describe(schema['items'])}"
    words = {"integer": "an integer", "number": "a finite number", "boolean": "true or false", "string": "a string"}
    number = words[schema["type"]]
    if {"minimum", "maximum"} <= schema.keys():
        return f"{number} from {schema['minimum']} to {schema['maximum']}"
    if "minimum" in schema:
        return f"{number} of at least {schema['minimum']}"
    return f"{number} greater than {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else number


def _key_below(value: Any) -> str:
    """The rest of a dotted key whose first part is unknown: `.backbone` for the value `{"backbone": "x"}`."""
    if not isinstance(value, dict) or len(value) != 1:
        return ""
    (name, nested), *_ = value.items()
    return f".{name}{_key_below(nested)}"


def _nearest_keys(location: Sequence[int | str]) -> list[str]:
    """The keys that an unknown one may stand for.

    They have it as a word or are very similar in its section, are of its name elsewhere, less similar in its section,
    or similar elsewhere.
    """
    name, section = str(location[-1]), [str(part) for part in location[:-1]]
    in_section, elsewhere = _keys_at(location[:-1]), list(_all_keys(Recipe))
    if words := [".".join([*section, key]) for key in in_section if name in key.split("_")]:
        return words[:3]
    for cutoff, others in ((0.7, keys_named(name)), (0.5, _similar(name, elsewhere, 0.75))):
        if match := difflib.get_close_matches(name, in_section, 1, cutoff):
            return [".".join([*section, match[0]])]
        if others:
            return others
    return []


def keys_named(name: str) -> list[str]:
    """The keys of a recipe with this last part; without any, those that have it as a word: `batch` in `batch_size`."""
    lasts = {key: key.rpartition(".")[2] for key in _all_keys(Recipe)}
    exact = [key for key, last in lasts.items() if last == name]
    return exact or [key for key, last in lasts.items() if name in last.split("_")][:3]


def _similar(name: str, keys: Sequence[str], cutoff: float) -> list[str]:
    """Those of the keys whose last part is the most similar to `name`."""
    match = difflib.get_close_matches(name, [key.rpartition(".")[2] for key in keys], 1, cutoff)
    return [key for key in keys if key.rpartition(".")[2] in match]


def _all_keys(section: type[Section]) -> Iterator[str]:
    """Every key of a section and of the sections in it; of the stages only the first is listed."""
    for name, field in section.model_fields.items():
        nested = _section_of(field.annotation)
        if nested is None:
            yield name
        else:
            prefix = f"{name}." if nested is field.annotation else f"{name}.0."
            yield from (prefix + key for key in _all_keys(nested))


def _keys_at(location: Sequence[int | str]) -> list[str]:
    section: type[Section] = Recipe
    for part in location:
        if isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, alone or in a list; None for a plain value."""
    candidates = (annotation, *get_args(annotation))
    return next((value for value in candidates if isinstance(value, type) and issubclass(value, Section)), None)
