"""The JSON Schemas of recipes: up to date, and of the same opinion as the loader, value by value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from medunifier_cli.cli import mu
from medunifier_cli.recipe.build import WrongValueError, check
from medunifier_cli.recipe.documented.json_schema import json_of
from medunifier_cli.recipe.load import shipped_recipes, stage_of
from medunifier_cli.recipe.settings import Setting, field_types
from medunifier_cli.recipe.stages import SCHEMAS
from tests.folders import ROOT

FOLDER = ROOT / "recipes" / "schema"
NAMED = re.compile(r"^# yaml-language-server: \$schema=(\S+)$")
"""The first line of a recipe, as yaml-language-server reads it."""
VALUES: tuple[Any, ...] = (
    True, False, None, 0, 1, -1, 2, 64, 65, 4096, 70_000, 2_000_000, 10**20, 0.5, -0.5, 1.5, "", "loss", "no",
    "1", "two\nlines", "x" * 5000, [], ["findings"], ["a"] * 1001, [1], [["a"]], {"a": 1},
)  # fmt: skip


def validator(stage: str) -> jsonschema.Draft7Validator:
    schema = json.loads((FOLDER / f"{stage}.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def parsed(text: str) -> Any:
    return yaml.safe_load(text)


def leaves(schema: type, properties: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, declared type and JSON Schema of every value."""
    for name, kind in field_types(schema).items():
        if "properties" in properties[name]:
            yield from leaves(kind, properties[name]["properties"], f"{prefix}{name}.")
        else:
            yield prefix + name, kind, properties[name]


def takes(kind: Any, value: object) -> bool:
    try:
        check(kind, Setting(value, "a text in quotes has none", "here"))
    except WrongValueError:
        return False
    return True


@pytest.mark.parametrize("stage", SCHEMAS)
def test_is_up_to_date(stage: str) -> None:
    written = (FOLDER / f"{stage}.json").read_text(encoding="utf-8")
    assert written == json_of(stage), "run `make docs`"


def test_each_stage_has_one_and_nothing_else_has() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(SCHEMAS)


@pytest.mark.parametrize("stage", SCHEMAS)
def test_judges_every_value_as_the_loader_does(stage: str) -> None:
    properties = validator(stage).schema["properties"]
    keys = list(leaves(SCHEMAS[stage], properties))
    assert len(keys) > 30
    differences = [
        (key, value)
        for key, kind, schema in keys
        for value in VALUES
        if jsonschema.Draft7Validator(schema).is_valid(value) != takes(kind, value)
    ]
    assert differences == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_name_theirs_and_are_valid(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    named = NAMED.match(text.splitlines()[0])
    assert named is not None
    path = ROOT / "recipes" / named[1]
    assert path == FOLDER / f"{stage_of(name)}.json"
    assert [error.message for error in validator(path.stem).iter_errors(parsed(text))] == []


@pytest.mark.parametrize(
    ("stage", "text", "message"),
    [
        ("pretrain", "objectives: {itg_weigth: 1}", "'itg_weigth' was unexpected"),
        ("pretrain", "sead: 1", "'sead' was unexpected"),
        ("pretrain", "stage: finetune", r"'finetune' is not one of \['pretrain'\]"),
        ("pretrain", "optim: {peak_lr: fast}", "'fast' is not of type 'number'"),
        ("pretrain", "optim: {peak_lr: 0}", "less than or equal to the minimum of 0"),
        ("pretrain", "train: {steps: -1}", "-1 is less than the minimum of 0"),
        ("pretrain", "text: {drop: 0.95}", "0.95 is greater than the maximum of 0.9"),
        ("pretrain", "train: {precision: fp8}", r"'fp8' is not one of \['no', 'bf16', 'fp16'\]"),
        ("pretrain", "data: {sections: findings}", "'findings' is not of type 'array'"),
        ("pretrain", "data: 3", "3 is not of type 'object', 'null'"),
        ("pretrain", "base: [full]", "is not of type 'string'"),
        ("finetune", "model: {freeze: 1}", "1 is not of type 'boolean'"),
        ("fit-prior", "prior: {kind: diffusion}", "'diffusion' is not one of"),
    ],
)
def test_a_mistake_is_refused(stage: str, text: str, message: str) -> None:
    (error,) = validator(stage).iter_errors(parsed(text))
    assert re.search(message, error.message)


def test_an_empty_section_and_a_base_are_allowed() -> None:
    assert validator("pretrain").is_valid(parsed("base: full\ndata:\nobjectives: {itc: 0.5}"))


def test_a_copy_names_the_schema_wherever_it_lies(tmp_path: Path) -> None:
    """Copied from a copy too, whose own line is replaced."""
    first, second = tmp_path / "a folder" / "mine.yaml", tmp_path / "again.yaml"
    first.parent.mkdir()
    for recipe, target in (("probe-demo", first), (first, second)):
        done = CliRunner().invoke(mu, ["recipes", str(recipe), "--copy", str(target)])
        assert done.exit_code == 0, done.output
        line, *rest = target.read_text(encoding="utf-8").splitlines()
        named = NAMED.match(line)
        assert named is not None
        assert Path(unquote(urlparse(named[1]).path)).samefile(FOLDER / "finetune.json")
        shipped = (ROOT / "recipes" / "probe-demo.yaml").read_text(encoding="utf-8").splitlines()
        assert rest == shipped[1:]
