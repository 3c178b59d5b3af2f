"""The tokenizer, against transformers' BertTokenizer and in separate processes."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertTokenizer

from medunifier_cli.data.texts.tokenizer import CONFIG, FINGERPRINT, VOCABULARY, TextTokenizer
from medunifier_cli.errors import DataError, MissingWeightsError
from tests.folders import SHARED
from tests.full_disk import room_for

INPUTS = SHARED / "review" / "inputs"
TEXTS = [
    "The heart is mildly enlarged. No pleural effusion or pneumothorax.",
    "Bibasilar atelectasis, right greater than left; no focal consolidation.",
    "Stable cardiomegaly with pulmonary oedema (naïve follow-up 12/3).",
] * 20


def train(vocabulary: int = 200) -> TextTokenizer:
    return TextTokenizer.train(TEXTS, vocabulary)


def test_encodes_as_transformers_does(tmp_path: Path) -> None:
    tokenizer = train()
    tokenizer.save(tmp_path)
    reference = BertTokenizer.from_pretrained(str(tmp_path))
    for text in [*TEXTS[:3], "Unknown wörds, 漢字 and  blanks", "[SEP] is no token here"]:
        if "[SEP]" not in text:  # the reference takes it for a special token
            assert tokenizer.encode(text, 512) == reference(text)["input_ids"]
            assert tokenizer.encode(text, 12) == reference(text, truncation=True, max_length=12)["input_ids"]
        assert tokenizer.encode(text, 512).count(tokenizer.sep_id) == 1


def test_decode_returns_the_lower_cased_text() -> None:
    tokenizer = train(1000)
    for text in TEXTS[:1]:
        assert tokenizer.decode(tokenizer.encode(text, 95)) == text.lower()
    assert tokenizer.decode([tokenizer.dec_id, tokenizer.sep_id, tokenizer.pad_id]) == ""


def test_truncation_keeps_the_end_mark() -> None:
    tokenizer = train()
    ids = tokenizer.encode(TEXTS[0], 5)
    assert (len(ids), ids[0], ids[-1]) == (5, tokenizer.cls_id, tokenizer.sep_id)
    assert tokenizer.encode("", 5) == [tokenizer.cls_id, tokenizer.sep_id]


def test_dec_is_added_once(tmp_path: Path) -> None:
    tokenizer = train(150)
    assert tokenizer.size == 151
    assert tokenizer.dec_id == 150
    tokenizer.save(tmp_path)
    again = TextTokenizer.load(str(tmp_path))
    assert again.size == 151
    assert again.fingerprint == tokenizer.fingerprint
    assert pickle.loads(pickle.dumps(again)).encode(TEXTS[1], 95) == tokenizer.encode(TEXTS[1], 95)


SCRIPT = """
import sys
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from tests.unit.data.texts.test_tokenizer import TEXTS
texts = TEXTS[::-1] if sys.argv[1] == "reversed" else TEXTS
print(TextTokenizer.train(texts, 140).fingerprint)
many = [chr(0x4E00 + i) + chr(0xAC00 + i) for i in range(1500)]  # more characters than the alphabet may hold
print(TextTokenizer.train(many, 2100).fingerprint)
"""


def test_training_is_the_same_in_every_process() -> None:
    seen = set()
    for seed, threads, way in [("0", "1", ""), ("1", "2", ""), ("2", "2", "reversed")]:
        env = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, way], env=env, capture_output=True, text=True, check=True
        )
        seen.add(run.stdout)
    assert len(seen) == 1


def test_tokenizer_json_reads_like_vocab_txt(tmp_path: Path) -> None:
    tokenizer = train()
    tokenizer.save(tmp_path / "a")
    BertTokenizer.from_pretrained(str(tmp_path / "a")).save_pretrained(str(tmp_path / "b"))
    (tmp_path / "b" / "vocab.txt").unlink(missing_ok=True)
    other = TextTokenizer.load(str(tmp_path / "b"))
    assert [other.encode(t, 95) for t in TEXTS[:3]] == [tokenizer.encode(t, 95) for t in TEXTS[:3]]


def test_a_vocabulary_smaller_than_the_alphabet_is_refused() -> None:
    with pytest.raises(DataError, match=r"text\.vocabulary: 10 is too small; characters alone take \d+"):
        train(10)


def test_no_text_to_learn_from() -> None:
    with pytest.raises(DataError, match="no text"):
        TextTokenizer.train(["", " "], 100)


def test_a_hub_name_that_is_not_cached_says_how_to_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=r"hf download some/bert vocab\.txt"):
        TextTokenizer.load("some/bert")


def test_a_cached_hub_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    home = tmp_path / "models--some--bert"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    tokenizer = train()
    tokenizer.save(home / "snapshots" / revision)
    assert TextTokenizer.load("some/bert").fingerprint == tokenizer.fingerprint


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer there; it needs vocab\.txt or tokenizer\.json"):
        TextTokenizer.load(str(tmp_path))
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"vocab\.txt: a BERT vocabulary needs \[PAD\]"):
        TextTokenizer.load(str(tmp_path))
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    with pytest.raises(DataError, match=r"tokenizer\.json: a BPE tokenizer"):
        TextTokenizer.load(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_separator_in_a_vocabulary_shifts_no_id(tmp_path: Path, encoding: str, end: str) -> None:
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "no",
        "\u2028",
        "\x85",
        "effusion",
        "\x1c",
        "[DEC]",
    ]
    (tmp_path / "vocab.txt").write_bytes("".join(token + end for token in tokens).encode(encoding))
    tokenizer = TextTokenizer.load(str(tmp_path))
    assert tokenizer.size == len(tokens)
    assert tokenizer.encode("effusion", 5)[1] == tokens.index("effusion")
    assert tokenizer.dec_id == len(tokens) - 1
    tokenizer.save(tmp_path / "again")
    assert TextTokenizer.load(str(tmp_path / "again")).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("words", "config", "unused"),
    [
        (["no", "copd"], None, 0),
        (["no", "COPD", "##F"], None, 2),
        (["no", "COPD", "##F"], {"do_lower_case": True}, 2),
        (["no", "COPD", "##F"], {"do_lower_case": False}, 0),
        (["no", "[unused1]", "<S>", "\u6f22"], None, 0),
    ],
)
def test_tokens_with_capitals_that_lower_casing_never_gives_are_counted(
    tmp_path: Path, words: list[str], config: dict[str, bool] | None, unused: int
) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert TextTokenizer.load(str(tmp_path)).unused_capitals == unused


def swap_two_words(folder: Path) -> None:
    lines = (folder / VOCABULARY).read_text(encoding="utf-8").split("\n")
    lines[-2], lines[-3] = lines[-3], lines[-2]
    (folder / VOCABULARY).write_text("\n".join(lines), encoding="utf-8")


def cut_by_a_word(folder: Path) -> None:
    lines = (folder / VOCABULARY).read_text(encoding="utf-8").split("\n")
    (folder / VOCABULARY).write_text("\n".join([*lines[:-3], ""]), encoding="utf-8")


def cut_by_half(folder: Path) -> None:
    content = (folder / VOCABULARY).read_bytes()
    (folder / VOCABULARY).write_bytes(content[: len(content) // 2])


def lose_the_settings(folder: Path) -> None:
    (folder / CONFIG).unlink()


def lose_the_vocabulary(folder: Path) -> None:
    (folder / VOCABULARY).unlink()


def spoil_the_hash(folder: Path) -> None:
    (folder / FINGERPRINT).write_text("another")


@pytest.mark.parametrize(
    "spoil",
    [swap_two_words, cut_by_a_word, cut_by_half, lose_the_settings, lose_the_vocabulary, spoil_the_hash],
)
def test_a_tokenizer_that_was_changed_is_one_line(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    cased = TextTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "No", "Effusion", "lung"], False)
    cased.save(tmp_path / "tokenizer")
    assert TextTokenizer.load(str(tmp_path / "tokenizer")).fingerprint == cased.fingerprint
    spoil(tmp_path / "tokenizer")
    with pytest.raises(DataError) as error:
        TextTokenizer.load(str(tmp_path / "tokenizer"))
    (line,) = str(error.value).splitlines()
    assert line.startswith(str(tmp_path / "tokenizer"))
    if spoil not in (lose_the_vocabulary, cut_by_half):
        assert "not the tokenizer that was written there" in line
        assert "`mu pretrain`" in line


def test_a_tokenizer_of_an_earlier_version_is_read_without_its_hash(tmp_path: Path) -> None:
    tokenizer = train()
    tokenizer.save(tmp_path / "t")
    (tmp_path / "t" / FINGERPRINT).unlink()
    assert TextTokenizer.load(str(tmp_path / "t")).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("room", [0, 10, 100, 400])
def test_a_full_disk_leaves_no_tokenizer(tmp_path: Path, room: int) -> None:
    tokenizer = train()
    with room_for(room), pytest.raises(DataError, match=r"tokenizer.*: no space left for it"):
        tokenizer.save(tmp_path / "run" / "tokenizer")
    assert list((tmp_path / "run").iterdir()) == []
    tokenizer.save(tmp_path / "run" / "tokenizer")
    assert sorted(path.name for path in (tmp_path / "run" / "tokenizer").iterdir()) == sorted(
        [CONFIG, FINGERPRINT, VOCABULARY]
    )


BAD = {
    "deep": "[" * 50_000 + "]" * 50_000,
    "a list": "[]",
    "no model": "{}",
    "model is text": '{"model": "x"}',
    "kind is a number": '{"model": {"type": 3}}',
    "long kind": json.dumps({"model": {"type": "\u001b[31m" + "x" * 5000}}),
    "vocabulary is a list": '{"model": {"vocab": []}}',
    "id is text": '{"model": {"vocab": {"a": "0"}}}',
    "negative id": '{"model": {"vocab": {"a": -1}}}',
    "huge id": '{"model": {"vocab": {"a": 1e400}}}',
    "long id": '{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}",
    "gap": '{"model": {"vocab": {"a": 1}}}',
    "token without id": '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "b"}]}',
    "half a character": '{"model": {"vocab": {"\\ud800": 0}}}',
    "normalizer is a list": '{"model": {"vocab": {"a": 0}}, "added_tokens": [], "normalizer": [1]}',
    "lowercase is text": '{"model": {"vocab": {"a": 0}}, "normalizer": {"lowercase": "yes"}}',
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_tokenizer_json_is_one_short_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(BAD[name].encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as error:
        TextTokenizer.load(str(tmp_path))
    line = str(error.value)
    assert line.startswith(str(tmp_path / "tokenizer.json"))
    assert len(line) < 300
    assert line.isprintable()


@pytest.mark.parametrize(
    "config", ["[]", "{", '{"do_lower_case": 3}', '{"strip_accents": "x"}', "[" * 50_000]
)
def test_damaged_settings_are_one_short_line(tmp_path: Path, config: str) -> None:
    train().save(tmp_path / "t")
    (tmp_path / "t" / CONFIG).write_text(config)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: ") as error:
        TextTokenizer.load(str(tmp_path / "t"))
    assert len(str(error.value)) < 300


def test_a_vocabulary_of_any_size_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "vocab.txt").open("wb") as file:
        file.truncate(10 << 30)  # takes no room on the disk
    with pytest.raises(DataError, match=r"vocab\.txt: is larger than"):
        TextTokenizer.load(str(tmp_path))


@pytest.mark.parametrize("name", sorted(path.name for path in INPUTS.glob("tokenizer-*")))
def test_what_fuzzing_found(name: str) -> None:
    with pytest.raises(DataError):
        TextTokenizer.load(str(INPUTS / name))
