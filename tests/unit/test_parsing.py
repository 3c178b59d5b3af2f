"""Whatever a document holds, the door gives the declared type or one clean line."""

import json
from pathlib import Path
from typing import TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medunifier_cli import parsing
from medunifier_cli.errors import CheckpointError, DataError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


class Facts(TypedDict):
    step: parsing.Count
    files: dict[str, list[float]]


GOOD = {"step": 3, "files": {"a": [1, 2.5]}, "later": None}


def test_a_good_document_keeps_what_was_asked_for() -> None:
    assert parsing.parse_json(json.dumps(GOOD), Facts, "x") == {"step": 3, "files": {"a": [1.0, 2.5]}}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "too deep"),
        ('{"step": ' + "1" * 5000 + "}", "too long a number"),
        ('{"step": ' + "1" * 30 + ', "files": {}}', "at step"),
        ('{"step": -1, "files": {}}', "at step"),
        ('{"step": true, "files": {}}', "at step"),
        ('{"step": 1}', "files"),
        ('{"step": 1, "files": {"a": ["secret"]}}', r"at files"),
        ("[1]", "expected object"),
        ('{"step": 1, "files": {"\\ud800": []}}', "half a character"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"{\x00}", "zero byte"),
    ],
)
def test_a_bad_document_is_one_line_that_names_the_file(text: str | bytes, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as caught:
        parsing.parse_json(text, Facts, "run/facts.json", CheckpointError, "start over with --fresh")
    line = str(caught.value)
    assert line.startswith("run/facts.json")
    assert line.endswith("start over with --fresh")
    assert "secret" not in line
    assert line.isprintable()
    assert len(line) < 300


def test_deep_values_of_any_type_are_refused() -> None:
    deep = '{"a": ' * 100 + "1" + "}" * 100
    with pytest.raises(DataError, match="64 levels"):
        parsing.parse_json(deep, dict, "x")


@pytest.mark.parametrize(
    "text",
    [
        "a: [", "a: !!int ''", "a: !!timestamp x", "a: &b [*b]", "? [a]\n: 1", "a: \0", "a: *nobody", BOMB,
        "[" * 2000, "a: " + "9" * 5000, "a: !!python/object:os.system {}", '"\\ud800"', "- 1", "--- 1\n--- 2",
    ],
    ids=range(14),
)  # fmt: skip
def test_a_bad_yaml_document_is_one_line(text: str) -> None:
    with pytest.raises(DataError) as caught:
        parsing.parse_yaml(text, dict[str, list[str]], "prompts.yaml")
    assert str(caught.value).startswith("prompts.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)
    assert parsing.read_bytes(tmp_path / "big", limit=11) == b"x" * 11
    with pytest.raises(DataError, match="larger than 10 bytes"):
        parsing.read_bytes(tmp_path / "big", limit=10)


def test_a_line_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"step": 1, "files": {}}\n\n{"step": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        parsing.read_json_lines(tmp_path / "a.jsonl", Facts)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(
        lambda value: json.dumps(value).encode())))  # fmt: skip
def test_nothing_but_the_type_or_a_line_comes_out(content: bytes) -> None:
    for parse in (parsing.parse_json, parsing.parse_yaml):
        try:
            value = parse(content, Facts, "x")
        except DataError as error:
            line = str(error)
        else:
            assert isinstance(value["step"], int)
            continue
        assert line.isprintable()
        assert len(line) < 300
