"""Prompt sets: which one is meant, how prompts are sampled, files that are read, written and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.retrieval.prompts import (
    fingerprint,
    prompts_of,
    read_prompts,
    sample_prompts,
    select_prompt_sets,
    write_prompts,
)
from medunifier_cli.plugin_index import load_dataset

MANY = {"a": [f"a {i}" for i in range(20)], "b": [f"b {i}" for i in range(20)]}


@pytest.fixture
def phantom() -> DatasetPlugin:
    return load_dataset("phantom")


def test_sampling_depends_on_seed_and_class_alone() -> None:
    first = sample_prompts(MANY, ("a", "b"), 5, 0)
    assert first == sample_prompts(MANY, ("a", "b"), 5, 0)
    assert first != sample_prompts(MANY, ("a", "b"), 5, 1)
    assert first["a"] == sample_prompts({"a": MANY["a"], "b": ["x"]}, ("a", "b"), 5, 0)["a"]
    for name, texts in first.items():
        assert len(set(texts)) == 5
        assert texts == sorted(texts, key=MANY[name].index), "in the order of the set"
    assert [i for i, _ in enumerate(MANY["a"]) if MANY["a"][i] in first["a"]] != [
        i for i, _ in enumerate(MANY["b"]) if MANY["b"][i] in first["b"]
    ], "classes are sampled independently"


@pytest.mark.parametrize("count", [0, 3, 4])
def test_all_prompts_without_repetition_where_there_are_few(count: int) -> None:
    prompts = {"a": ["x", "y", "x", "z"]}
    assert sample_prompts(prompts, ("a",), count, 0) == {"a": ["x", "y", "z"]}


def test_a_class_without_prompts_is_an_error() -> None:
    with pytest.raises(DataError, match="no zero-shot prompt for class 'c'"):
        sample_prompts(MANY, ("a", "c"), 5, 0)


def test_the_default_set_has_no_name_in_results(phantom: DatasetPlugin) -> None:
    default, *others = phantom.prompt_sets()
    assert list(select_prompt_sets(phantom, "")) == [""]
    assert list(select_prompt_sets(phantom, default)) == [""]
    assert select_prompt_sets(phantom, "")[""] == phantom.prompt_sets()[default]
    assert others, "the next lines need a second set"
    assert list(select_prompt_sets(phantom, "all")) == ["", *others]
    assert list(select_prompt_sets(phantom, others[0])) == [others[0]]
    with pytest.raises(DataError, match="no prompt set 'none'; there are: "):
        prompts_of(phantom, "none")


def test_a_written_file_is_read_back_and_never_overwritten(tmp_path: Path, phantom: DatasetPlugin) -> None:
    path = tmp_path / "mine.yaml"
    write_prompts(path, phantom, "")
    wanted = {name: list(texts) for name, texts in prompts_of(phantom, "").items()}
    assert read_prompts(path, tuple(wanted)) == wanted
    assert select_prompt_sets(phantom, str(path)).keys() == {"mine"}
    assert fingerprint(read_prompts(path, tuple(wanted))) == fingerprint(wanted)
    assert path.read_text().startswith(
        "# Zero-shot prompts, class: [prompt, ...]; from phantom, set default."
    )
    with pytest.raises(DataError, match="exists already"):
        write_prompts(path, phantom, "")
    with pytest.raises(DataError, match="no such folder"):
        write_prompts(tmp_path / "none" / "mine.yaml", phantom, "")


@pytest.mark.parametrize("name", ["report", "other", "mean"])
def test_a_file_cannot_pass_for_other_results(tmp_path: Path, phantom: DatasetPlugin, name: str) -> None:
    path = tmp_path / f"{name}.yaml"
    write_prompts(path, phantom, "")
    with pytest.raises(DataError, match=f"filed as those of '{name}', which phantom has already; rename"):
        select_prompt_sets(phantom, str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [x]\n", "no prompts for b"),
        ("a: [x]\nb: []\n", "write it as"),
        ("a: [x]\nb: text\n", "write it as"),
        ("a: [x]\nb: [1]\n", "write it as"),
        ("- a\n", "write it as"),
        ("a: [x\n", "no YAML"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "p.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_prompts(path, ("a", "b"))
    assert str(path) in str(caught.value)


def test_only_the_classes_asked_for_are_read_and_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("c: [z]\nb: [y]\na: [x]\n")
    assert list(read_prompts(path, ("a", "b")).items()) == [("a", ["x"]), ("b", ["y"])]
