"""Prompts of `mu synthesize`: how files are read, in which order images take them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.contract import PackedText
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.retrieval.prompts import LONGEST_PROMPT
from medunifier_cli.evaluate.synthesis.requests import (
    ImageRequest,
    read_requests,
    requests_hash,
    text_features,
)
from medunifier_cli.plugin_index import load_dataset

PHANTOM = load_dataset("phantom")


def prompts(requests: list[ImageRequest]) -> list[tuple[str, str]]:
    return [(request.name, request.prompt) for request in requests]


def test_one_prompt_wins_and_none_is_no_request() -> None:
    assert prompts(read_requests("Small effusion", "", PHANTOM)) == [("", "Small effusion")]
    assert read_requests("", "", PHANTOM) == []


def test_text_file_keeps_line_numbers_and_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffLeft effusion.\r\n\r\n  Normal heart\r\n".encode())
    assert read_requests("", str(path), PHANTOM) == [
        ImageRequest("Left effusion.", f"{path}:1"),
        ImageRequest("Normal heart", f"{path}:3"),
    ]


def test_table_takes_prompt_and_class_from_any_column_and_other_columns_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('id,class,prompt\n1, Edema ,"Mild, diffuse edema"\n2,,Clear lungs\n3,Edema,\n4\n')
    assert read_requests("", str(path), PHANTOM) == [
        ImageRequest("Mild, diffuse edema", f"{path}:2", "Edema"),
        ImageRequest("Clear lungs", f"{path}:3"),
    ]


def test_a_file_by_class_may_name_some_classes_and_others_than_those_of_the_data_set(tmp_path: Path) -> None:
    """Images can be asked for by any name; it is a classifier that needs prompts of all of its classes."""
    path = tmp_path / "prompts.yaml"
    path.write_text("Pneumothorax: [Left pneumothorax.]\nEdema: [Edema., Mild edema.]\n")
    asked = [("Edema", "Edema."), ("Pneumothorax", "Left pneumothorax."), ("Edema", "Mild edema.")]
    assert prompts(read_requests("", str(path), PHANTOM)) == asked
    assert prompts(read_requests("", str(path), PHANTOM, "Edema")) == [asked[0], asked[2]]


def test_classes_take_turns_and_longer_lists_go_on_alone(tmp_path: Path) -> None:
    a, b, *rest = PHANTOM.classes
    path = tmp_path / "prompts.yaml"
    lines = [f"{b}: [b1]", f"{a}: [a1, a2, a3]", *(f"{name}: ['{name} 1', '{name} 2']" for name in rest)]
    path.write_text("\n".join(lines))
    assert prompts(read_requests("", str(path), PHANTOM)) == [
        (a, "a1"), (b, "b1"), *((name, f"{name} 1") for name in rest),
        (a, "a2"), *((name, f"{name} 2") for name in rest),
        (a, "a3"),
    ]  # fmt: skip


def test_a_name_without_ending_is_a_prompt_set_of_the_data_set() -> None:
    requests = read_requests("", "report", PHANTOM)
    sets = PHANTOM.prompt_sets()["report"]
    assert sorted(prompts(requests)) == sorted((name, text) for name, texts in sets.items() for text in texts)
    assert [request.name for request in requests[: len(PHANTOM.classes)]] == list(PHANTOM.classes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n \n", "no prompt in it"),
        ("table.csv", b"text,class\na,b\n", "needs a column `prompt`"),
        ("latin.txt", "Pleuraerguß".encode("latin-1"), r"latin\.txt:1: not UTF-8 text \(byte 0xdf\)"),
        ("missing.txt", None, "cannot be read"),
        ("missing.yaml", None, "cannot be read"),
        ("no-such-set", None, "no prompt set 'no-such-set'"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_requests("", str(path) if path.suffix else name, PHANTOM)
    assert "\n" not in str(raised.value)


def test_hash_changes_with_prompt_class_and_order_but_not_with_where_it_was_written() -> None:
    one, other = ImageRequest("a", "x:1", "A"), ImageRequest("b", "x:2", "B")
    base = requests_hash([one, other])
    assert base == requests_hash([ImageRequest("a", "y:9", "A"), ImageRequest("b", "y:8", "B")])
    changed = ([other, one], [one], [one, ImageRequest("b", "x:2")], [one, ImageRequest("c", "x:2", "B")])
    assert len({base, *map(requests_hash, changed)}) == 5


class Encoder:
    """Stands for tokenizer and model: a text's feature is the sum of its letters, and calls are counted."""

    def __init__(self, max_tokens: int) -> None:
        self.calls: list[int] = []
        self.run = cast(
            "PretrainedRun",
            SimpleNamespace(
                recipe=SimpleNamespace(text=SimpleNamespace(max_tokens=max_tokens)),
                tokenizer=self, model=self, device=torch.device("cpu"),
            ),
        )  # fmt: skip

    def encode(self, text: str, longest: int) -> list[int]:
        return [1, *map(ord, text), 2][:longest]

    def encode_text(self, packed: PackedText) -> Any:
        assert len(packed.lengths_B) == 1, "each prompt is encoded alone"
        self.calls.append(int(packed.lengths_B))
        return packed.ids_N.sum()[None, None].expand(1, 3)


def test_features_follow_the_requests_and_equal_prompts_are_encoded_once() -> None:
    encoder = Encoder(max_tokens=6)
    requests = [ImageRequest(text, "file:1") for text in ("ab", "c", "ab")]
    feature_nD = text_features(encoder.run, requests)
    sums = [3 + ord("a") + ord("b"), 3 + ord("c"), 3 + ord("a") + ord("b")]
    assert np.array_equal(feature_nD, np.repeat(np.array(sums, np.float32)[:, None], 3, axis=1))
    assert encoder.calls == [4, 3]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("abcde", "file:7: a prompt of more than 6 tokens"), ("", "file:7: an empty prompt")],
)
def test_a_prompt_of_wrong_length_is_named(prompt: str, message: str) -> None:
    good = ImageRequest("abcd", "file:6")
    assert len(text_features(Encoder(6).run, [good])) == 1
    with pytest.raises(DataError, match=message):
        text_features(Encoder(6).run, [good, ImageRequest(prompt, "file:7")])


def test_a_prompt_of_megabytes_is_refused_before_it_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Encoder(12)
    seen: list[int] = []
    encode = model.encode

    def counted(text: str, longest: int) -> list[int]:
        seen.append(len(text))
        return encode(text, longest)

    monkeypatch.setattr(model, "encode", counted)
    with pytest.raises(DataError, match=r"^p\.txt:3: a prompt of more than 12 tokens") as caught:
        text_features(model.run, [ImageRequest("lung" * 1_000_000, "p.txt:3")])
    assert max(seen) <= LONGEST_PROMPT
    assert "lung" not in str(caught.value)
