"""A recipe that is damaged, hostile or of another program: one clean line within seconds, or a recipe."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from medunifier_cli.errors import LINE_LIMIT, RecipeError, one_line, one_line_of
from medunifier_cli.recipe.load import load_any, load_recipe, load_saved, stage_of
from medunifier_cli.recipe.schema import PretrainRecipe

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""10^9 texts once its aliases are written out."""
HOSTILE = {
    "a zero byte": b"name: x\0\n",
    "a control character": b'name: "a\\x1b[31mb"\n',
    "half a character": b'name: "\\ud800"\n',
    "an empty whole number": b"train: {seed: !!int ''}\n",
    "a time that is none": b"data: {require: !!timestamp foo}\n",
    "a truth value that is none": b"data: {require: !!bool foo}\n",
    "a list as a key": b"? [a, b]\n: 1\n",
    "400 digits for a fraction": b"optim: {peak_lr: " + b"9" * 400 + b"}\n",
    "400 digits for a whole number": b"train: {steps: " + b"9" * 400 + b"}\n",
    "5,000 digits": b"train: {steps: " + b"9" * 5000 + b"}\n",
    "base 60": b"train: {steps: 1" + b":1" * 100_000 + b"}\n",
    "a seed of 64 bits and one": b"train: {seed: 18446744073709551616}\n",
    "deep lists": b"name: " + b"[" * 1000 + b"\n",
    "deep mappings": b"{a: " * 5000,
    "aliases that double": BOMB.encode() + b"name: *i\n",
    "aliases that double, in a list": BOMB.encode() + b"data: {sections: *i}\n",
    "a long text, named often": b"data: {sections: [&a " + b"x" * 10_000 + b", *a" * 5000 + b"]}\n",
    "an alias of itself": b"name: &a [*a]\n",
    "a list of a million": b"name: [" + b"1," * 1_000_000 + b"]\n",
    "many wrong keys": b"".join(b"key%d: 1\n" % i for i in range(500)),
    "a long wrong key": b"k" * 100_000 + b": 1\n",
    "a long name": b"name: " + b"x" * 100_000 + b"\n",
    "a long base": b"base: " + b"x" * 5000 + b"\n",
    "a base with a zero byte": b'base: "a\\0b"\n',
    "a base that is a number": b"base: 3\n",
    "a stage that is a list": b"stage: [1, 2]\n",
    "another encoding": "name: \u00fcber\n".encode("latin-1"),
    "two documents": b"name: a\n---\nname: b\n",
    "a tag of Python": b"name: !!python/object/apply:os.system [id]\n",
}

WHOLE = """# a comment of some length, in which anything may stand
base: demo
name: a name of some length, and "quotes"
data: {sections: [findings, impression], limit: 100}
optim:
  peak_lr: 2e-4
  warmup: 0.1
train:
  seed: 123456789
  steps: 100000
"""
PIECES = (
    *(b"\0", b"\xff", b"[", b"{", b"&a ", b"*a", b"!!int ", b"!!binary ", b"\t", b'"', b": ", b"- ", b"<<: "),
    *(b"9" * 30, b".nan", b"1e999", b"? ", b"| ", b"%", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"2001-99-99"),
    *(b"1", b"2", b" ", b"\n", b"x", b"true"),
)


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("mine.yaml")


def line_of(error: pytest.ExceptionInfo[RecipeError]) -> str:
    line = str(error.value)
    assert line == one_line(line)  # one line, clean, within the limit
    return line


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_recipe_is_one_line_that_names_the_file(content: bytes, recipe_file: Path) -> None:
    recipe_file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file)
    assert line_of(caught).startswith("mine.yaml")


@pytest.mark.parametrize("value", [b"[1, [2, 3]]", b"&a [*a]", BOMB.encode() + b"stage: *i"])
def test_stage_of_another_kind(value: bytes, recipe_file: Path) -> None:
    recipe_file.write_bytes(value if b"stage" in value else b"stage: " + value + b"\n")
    with pytest.raises(RecipeError) as caught:
        stage_of(recipe_file)
    line_of(caught)


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=" + "9" * 5000,
        "train.seed=-1",
        "train.seed=!!int ''",
        "data.require=!!timestamp foo",
        "name=\"a\\nb\"",
        "name=\udcff",
        "train.steps=" + "[" * 500,
        "k" * 100_000 + "=1",
        "data.sections=[&a [&b [x, x], *b], *a, " + "*a, " * 5000 + "]",
        "\x1b[31m",
    ],
)  # fmt: skip
def test_hostile_override_is_one_line(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", [override])
    assert line_of(caught).startswith("-o ")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\x1b[31m"])
def test_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert line_of(caught).startswith("no recipe ")


def test_recipe_of_a_run_says_what_to_do_when_damaged(recipe_file: Path) -> None:
    recipe_file.write_text("train:\n\tseed: 1\n")
    with pytest.raises(RecipeError, match=r"^mine\.yaml:2: not valid YAML.*put the file back, or .*--fresh$"):
        load_saved(recipe_file, PretrainRecipe)


def test_problems_are_joined_whole_and_the_rest_is_counted(recipe_file: Path) -> None:
    recipe_file.write_text("".join(f"wrong{i:02d}: 1\n" for i in range(30)))
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file)
    *shown, more = line_of(caught).split("; mine.yaml")[-1].rsplit("; ", 1)
    assert more == f"and {30 - str(caught.value).count('mine.yaml')} more"
    assert " ... " not in str(caught.value)
    assert shown


def test_one_line_of_fills_the_line_and_no_more() -> None:
    assert one_line_of(["a", "b"]) == "a; b"
    assert one_line_of(["a" * 200, "b" * 200]) == "a" * 200 + "; and 1 more"
    long = one_line_of(["a" * 5000, "b", "c"])
    assert len(long) == LINE_LIMIT
    assert long.endswith("aaa; and 2 more")


def test_changed_bytes_give_a_recipe_or_one_line(recipe_file: Path) -> None:
    """Bytes of a shipped recipe exchanged, cut, doubled and taken out, at random places."""
    draws, whole = random.Random(0), WHOLE.encode()
    outcomes, lines = [0, 0], []
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(draws.randint(1, 2)):
            place = draws.randrange(len(content))
            content[place : place + draws.choice((0, 1, 20))] = draws.choice(PIECES)
        recipe_file.write_bytes(content)
        try:
            load_any(recipe_file)
            outcomes[0] += 1
        except RecipeError as error:
            lines.append(str(error))
            outcomes[1] += 1
    assert lines == [one_line(line) for line in lines]
    assert min(outcomes) > 0  # otherwise nothing was reached
