"""A recipe by path or name, with `-o` overrides -> a frozen, checked dataclass; and back to text.

A recipe may start from another: `base: full` takes everything from it and states only what differs. All
problems of all sources are raised together, each with its place and the nearest valid key.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import yaml

from medunifier_cli.errors import RecipeError
from medunifier_cli.recipe.build import build
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.settings import Setting, Settings, YamlError, read_overrides, read_text
from medunifier_cli.recipe.stages import SCHEMAS

SHIPPED = "medunifier_recipes"


class Recipe(Protocol):
    """What a schema must have besides its fields."""

    @property
    def stage(self) -> str: ...

    @property
    def name(self) -> str: ...

    def problems(self) -> Iterator[tuple[str, str]]:
        """(dotted key, what is wrong); the text names, as dotted keys, the other fields it read."""
        ...


R = TypeVar("R", bound=Recipe)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(
        path.name.removesuffix(".yaml") for path in files(SHIPPED).iterdir() if path.name.endswith(".yaml")
    )


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe: a path, or the bare name of a shipped one. A file wins over a name.

    Raises:
        RecipeError: there is no such file; names the nearest shipped recipe.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    name = str(path_or_name)
    if name in shipped_recipes():
        return Path(str(files(SHIPPED).joinpath(f"{name}.yaml")))
    if path.is_dir():
        raise RecipeError(
            f"{path} is a folder; a recipe is a YAML file or one of: {', '.join(shipped_recipes())}"
        )
    nearest = difflib.get_close_matches(path.stem, shipped_recipes(), n=1)
    hint = f"did you mean `{nearest[0]}`? " if nearest else ""
    raise RecipeError(f"no recipe {name}; {hint}shipped: {', '.join(shipped_recipes())}")


@overload
def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = ()) -> PretrainRecipe: ...


@overload
def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = (), *, schema: type[R]) -> R: ...


@overload
def load_recipe(path_or_name: str | Path, overrides: Iterable[str], schema: type[R]) -> R: ...


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = (), schema: Any = PretrainRecipe) -> Any:
    """Read, merge and check a recipe.

    Args:
        path_or_name: a YAML file, or the bare name of a shipped recipe (`full`).
        overrides: `key=value` in dotted keys, values as YAML; the last one wins.
        schema: dataclass to fill; its `stage` is the stage the recipe must be for.

    Returns:
        An instance of `schema`; an empty `name` becomes the file's.

    Raises:
        RecipeError: every problem found, one per line.
    """
    return _load(find_recipe(path_or_name), tuple(overrides), schema, saved=False)


def load_saved(path: Path, schema: type[R]) -> R:
    """The recipe that a run keeps in its folder, also one that an earlier version wrote.

    Raises:
        RecipeError: every problem found, one per line.
    """
    recipe: R = _load(find_recipe(path), (), schema, saved=True)
    return recipe


def load_own(path: Path, schema: type[R]) -> R | None:
    """The recipe that a run of the stage of `schema` keeps at `path`; None where there is no such run.

    Raises:
        RecipeError: every problem found, one per line.
    """
    if not path.exists() or stage_of(path) != _stage_of_schema(schema):
        return None
    return load_saved(path, schema)


def _load(path: Path, overrides: tuple[str, ...], schema: Any, saved: bool) -> Any:
    settings = _merge([*_chain(path, schema, saved), read_overrides(overrides, schema)])
    _check_stage(settings, schema, _shown(path))
    recipe = build(schema, settings)
    settings.problems.extend(_disagreements(recipe, settings, _shown(path)))
    if settings.problems:
        raise RecipeError("\n".join(settings.problems))
    if not recipe.name:
        recipe = dataclasses.replace(recipe, name=path.stem)
    return recipe


def stage_of(path_or_name: str | Path) -> str:
    """The stage a recipe is for, as it or its base says; `pretrain` where neither does.

    Raises:
        RecipeError: no such recipe, not YAML, or a stage that nobody knows.
    """
    path = find_recipe(path_or_name)
    setting = _merge(_chain(path, PretrainRecipe)).by_key.get("stage")
    stage = setting.value if setting is not None else PretrainRecipe.stage
    if not isinstance(stage, str) or stage not in SCHEMAS:
        where = setting.where if setting is not None else _shown(path)
        raise RecipeError(f"{where}: stage: {stage!r} is none of: {', '.join(SCHEMAS)}")
    return stage


def load_any(path_or_name: str | Path, overrides: Iterable[str] = (), saved: bool = False) -> Recipe:
    """A recipe of whatever stage it says it is for; raises as `load_recipe`.

    Args:
        path_or_name: a YAML file, or the bare name of a shipped recipe.
        overrides: see `load_recipe`.
        saved: the recipe is one that a run keeps, see `load_saved`.
    """
    path = find_recipe(path_or_name)
    recipe: Recipe = _load(path, tuple(overrides), SCHEMAS[stage_of(path)], saved)
    return recipe


def dump_recipe(recipe: Any) -> str:
    """The whole recipe as YAML, defaults included; `load_recipe` of it gives an equal recipe."""
    return yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _shown(path: Path) -> str:
    """The path as messages give it: relative to where the user stands, if it lies below."""
    try:
        return str(path.relative_to(Path.cwd())) if path.is_absolute() else str(path)
    except ValueError:
        return str(path)


def _chain(path: Path, schema: type, saved: bool = False) -> list[Settings]:
    """Settings of the recipe and of what it is based on, the deepest base first."""
    chain: list[Settings] = []
    seen: list[Path] = []
    while True:
        seen.append(path.resolve())
        try:
            settings, base = read_text(_read(path), _shown(path), schema, saved)
        except YamlError as problem:
            raise RecipeError(str(problem)) from problem
        chain.insert(0, settings)
        if base is None:
            return chain
        path = _base_path(base, path)
        if path.resolve() in seen:
            raise RecipeError(f"{base.where}: base: {base.value} leads back to itself")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"{_shown(path)}: cannot be read: {why}") from error


def _base_path(base: Setting, owner: Path) -> Path:
    """`base: full` is a shipped recipe; `base: mine.yaml` lies beside the recipe that says so."""
    name = base.value
    if not isinstance(name, str) or not name:
        raise RecipeError(f"{base.where}: base: expected the name or file of a recipe")
    beside = owner.parent / name
    try:
        return beside if beside.is_file() else find_recipe(name)
    except RecipeError as error:
        raise RecipeError(f"{base.where}: base: {error}") from error


def _merge(sources: Sequence[Settings]) -> Settings:
    merged = Settings({}, [], set())
    for source in sources:
        merged.by_key.update(source.by_key)
        merged.problems.extend(source.problems)
        merged.suspects |= source.suspects
    return merged


def _check_stage(settings: Settings, schema: type, shown: str) -> None:
    """A recipe for another verb gets one line, not a line for each of its keys."""
    wanted = _stage_of_schema(schema)
    setting = settings.by_key.get("stage")
    stage = setting.value if setting is not None else wanted
    if isinstance(stage, str) and stage in SCHEMAS and stage != wanted:
        raise RecipeError(f"{shown} is a recipe for `mu {stage}`, not for `mu {wanted}`")


def _stage_of_schema(schema: type) -> Any:
    return next(field.default for field in dataclasses.fields(schema) if field.name == "stage")


def _disagreements(recipe: Recipe, settings: Settings, shown: str) -> Iterator[str]:
    """Problems between fields, less those that touch a key already complained about."""
    for key, what in recipe.problems():
        if any(suspect == key or suspect in what for suspect in settings.suspects):
            continue
        setting = settings.by_key.get(key)
        yield f"{setting.where if setting else shown}: {key}: {what}"
