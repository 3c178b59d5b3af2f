"""Load a recipe by path or name, with `-o` overrides, as a frozen and checked dataclass; dump it as YAML.

A recipe may build on another: with `base: full` it states only what differs from `full`. All problems of all
sources are raised together, each with its place and the nearest valid key.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import yaml

from medunifier_cli.budget import YAML_CHARACTERS
from medunifier_cli.errors import RecipeError, one_line_of
from medunifier_cli.parsing import decoded, read_bytes
from medunifier_cli.recipe.build import as_text, build
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.settings import (
    LONGEST_KEY,
    Setting,
    Settings,
    Stated,
    YamlError,
    read_overrides,
    read_text,
    shortened,
)
from medunifier_cli.recipe.stages import SCHEMAS

SHIPPED = "medunifier_recipes"
"""Package of the recipes that come with the project: the folder `recipes/`."""


class Recipe(Protocol):
    """What every recipe has besides its own fields."""

    @property
    def stage(self) -> str: ...

    @property
    def name(self) -> str: ...

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between fields: (dotted key, what is wrong, naming the other keys it read)."""
        ...


R = TypeVar("R", bound=Recipe)


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in resources.files(SHIPPED).iterdir()
        if path.name.endswith(".yaml")
    )


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe, given by path or as the name of a shipped one; a file takes precedence.

    Raises:
        RecipeError: there is no such file; the message suggests the nearest shipped recipe.
    """
    path = Path(path_or_name)
    if _is_file(path):
        return path
    name = str(path_or_name)
    if name in shipped_recipes():
        return Path(str(resources.files(SHIPPED).joinpath(f"{name}.yaml")))
    if _is_file(path, of_kind=Path.is_dir):
        raise RecipeError(
            f"{path} is a folder; a recipe is a YAML file or one of: {', '.join(shipped_recipes())}"
        )
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise RecipeError(f"{shortened(name)}: no such file; `mu recipes` lists the shipped ones")
    nearest = difflib.get_close_matches(name[:LONGEST_KEY], shipped_recipes(), n=1)
    hint = f"did you mean `{nearest[0]}`? " if nearest else ""
    raise RecipeError(f"no recipe {shortened(name)}; {hint}`mu recipes` lists all")


@overload
def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = ()) -> PretrainRecipe: ...


@overload
def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = (), *, schema: type[R]) -> R: ...


@overload
def load_recipe(path_or_name: str | Path, overrides: Iterable[str], schema: type[R]) -> R: ...


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = (), schema: Any = PretrainRecipe) -> Any:
    """Read, merge and check a recipe.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe such as `full`.
        overrides: `key=value` with dotted keys and YAML values; the last one of a key wins.
        schema: dataclass to fill; its `stage` is the stage that the recipe must be for.

    Returns:
        An instance of `schema`; an empty `name` becomes that of the file.

    Raises:
        RecipeError: the problems found, as many as fit one line, and the number of all others.
    """
    return _load(find_recipe(path_or_name), tuple(overrides), schema, saved=False)


def load_saved(path: Path, schema: type[R]) -> R:
    """The recipe that a run keeps in its folder, which an earlier version may have written.

    Raises:
        RecipeError: the problems found, as many as fit one line, and the number of all others.
    """
    recipe: R = _load(find_recipe(path), (), schema, saved=True)
    return recipe


def parse_saved(text: str, shown: str, schema: type[R]) -> R:
    """The recipe in a text that is no recipe file, such as a part of an exported model's configuration.

    Args:
        text: YAML, as a run keeps it.
        shown: where the text is from, for messages.
        schema: dataclass to fill.

    Raises:
        RecipeError: the problems found, as many as fit one line, and the number of all others.
    """
    try:
        settings, _ = read_text(text, shown, schema, saved=True)
    except YamlError as problem:
        raise RecipeError(str(problem)) from problem
    recipe: R = _built(_merge([settings]), schema, shown)
    return recipe


def _load(path: Path, overrides: tuple[str, ...], schema: Any, saved: bool) -> Any:
    settings = _merge([*_chain(path, schema, saved), read_overrides(overrides, schema)])
    recipe = _built(settings, schema, _shown(path))
    if not recipe.name:
        recipe = dataclasses.replace(recipe, name=path.stem)
    return recipe


def _built(settings: Settings, schema: Any, shown: str) -> Any:
    _check_stage(settings, schema, shown)
    recipe = build(schema, settings)
    settings.problems.extend(_disagreements(recipe, settings, shown))
    if settings.problems:
        raise RecipeError(one_line_of(settings.problems))
    return recipe


def stage_of(path_or_name: str | Path) -> str:
    """The stage that a recipe or its base states; `pretrain` if neither does.

    Raises:
        RecipeError: no such recipe, not YAML, or an unknown stage.
    """
    path = find_recipe(path_or_name)
    setting = _merge(_chain(path, Stated)).by_key.get("stage")
    stage = setting.value if setting is not None else PretrainRecipe.stage
    if not isinstance(stage, str) or stage not in SCHEMAS:
        where = setting.where if setting is not None else _shown(path)
        raise RecipeError(
            f"{where}: stage: {shortened(repr(as_text(stage)))} is none of: {', '.join(SCHEMAS)}"
        )
    return stage


def load_any(path_or_name: str | Path, overrides: Iterable[str] = (), saved: bool = False) -> Recipe:
    """A recipe of any stage, by the stage it states; raises as `load_recipe`.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe.
        overrides: see `load_recipe`.
        saved: this is a recipe that a run keeps, see `load_saved`.
    """
    path = find_recipe(path_or_name)
    recipe: Recipe = _load(path, tuple(overrides), SCHEMAS[stage_of(path)], saved)
    return recipe


def origins(path_or_name: str | Path, overrides: Iterable[str] = ()) -> tuple[Recipe, dict[str, str]]:
    """A recipe of any stage, and where each setting that is no default was set: `file:line` or `-o ...`.

    Raises:
        RecipeError: the problems found, as many as fit one line, and the number of all others.
    """
    path, own = find_recipe(path_or_name), tuple(overrides)
    schema = SCHEMAS[stage_of(path)]
    recipe: Recipe = _load(path, own, schema, saved=False)
    settings = _merge([*_chain(path, schema), read_overrides(own, schema)])
    return recipe, {key: setting.where for key, setting in settings.by_key.items()}


def dump_recipe(recipe: Any) -> str:
    """The whole recipe as YAML, defaults included; loading it gives an equal recipe."""
    return yaml.safe_dump(plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """The value with tuples, also nested ones, as lists: safe YAML has no tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def _shown(path: Path) -> str:
    """The path as messages show it: relative to the current folder if it is inside."""
    try:
        return str(path.relative_to(Path.cwd())) if path.is_absolute() else str(path)
    except ValueError:
        return str(path)


def _chain(path: Path, schema: type, saved: bool = False) -> list[Settings]:
    """Settings of a recipe and of its bases, the deepest base first, so that later ones override."""
    chain: list[Settings] = []
    seen: list[Path] = []
    while True:
        seen.append(path.resolve())
        try:
            settings, base = read_text(_read(path), _shown(path), schema, saved)
        except YamlError as problem:
            # a run writes its recipe whole, so this file was damaged or edited afterwards
            advice = "; put the file back, or start the run over with --fresh" if saved else ""
            raise RecipeError(f"{problem}{advice}") from problem
        chain.insert(0, settings)
        if base is None:
            return chain
        name = str(base.value)
        path = _base_path(base, path)
        if path.resolve() in seen:
            raise RecipeError(f"{base.where}: base: {shortened(name)} leads back to itself")


def _read(path: Path) -> str:
    return decoded(read_bytes(path, RecipeError, limit=YAML_CHARACTERS), _shown(path), RecipeError)


def _is_file(path: Path, of_kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Whether there is such a file; a name that no file can have, for example a whole recipe, is none."""
    try:
        return of_kind(path)
    except (OSError, ValueError):
        return False


def _base_path(base: Setting, owner: Path) -> Path:
    """The file that `base` names: relative to the recipe that names it, else a path or a shipped recipe."""
    name = base.value
    if not isinstance(name, str) or not name:
        raise RecipeError(f"{base.where}: base: expected the name or file of a recipe")
    relative = owner.parent / name
    try:
        return relative if _is_file(relative) else find_recipe(name)
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
    """Raise for a recipe of another verb, before each of its keys is reported as unknown."""
    expected = next(field.default for field in dataclasses.fields(schema) if field.name == "stage")
    setting = settings.by_key.get("stage")
    stage = setting.value if setting is not None else expected
    if isinstance(stage, str) and stage in SCHEMAS and stage != expected:
        raise RecipeError(f"{shown} is a recipe for `mu {stage}`, not for `mu {expected}`")


def _disagreements(recipe: Recipe, settings: Settings, shown: str) -> Iterator[str]:
    """Contradictions between fields, except those with a key that was reported already.

    Such a field holds its default instead of what the user meant, which may contradict nothing.
    """
    for key, what in recipe.problems():
        if any(suspect == key or suspect in what for suspect in settings.suspects):
            continue
        setting = settings.by_key.get(key)
        yield f"{setting.where if setting else shown}: {key}: {what}"
