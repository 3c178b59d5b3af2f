"""Texts and the tokenizer, against transformers' BertTokenizer and in separate processes."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertTokenizer

from medunifier_cli.data.texts.report import TextTokenizer, compose, digest, readable, sections_of
from medunifier_cli.errors import DataError, MissingWeightsError

TEXTS = [
    "The heart is mildly enlarged. No pleural effusion or pneumothorax.",
    "Bibasilar atelectasis, right greater than left; no focal consolidation.",
    "Stable cardiomegaly with pulmonary oedema (naïve follow-up 12/3).",
] * 20


def test_compose_joins_in_order_and_collapses_white_space() -> None:
    sections = {"impression": " Normal\n chest. ", "findings": "Lungs  are\tclear.", "indication": "Cough"}
    assert compose(sections, ("findings", "impression")) == "Lungs are clear. Normal chest."
    assert compose(sections, ("impression", "findings")) == "Normal chest. Lungs are clear."


NAMES = ("findings", "clinical_notes", "impression")


def test_marked_sections_come_apart_again() -> None:
    raw = {
        "findings": "Heart big.\n No effusion.",
        "clinical_notes": "",
        "impression": "My impression is good.",
    }
    text = compose(raw, NAMES, marks=True)
    assert text == "FINDINGS: Heart big. No effusion. IMPRESSION: My impression is good."
    assert sections_of(text, NAMES) == {
        "findings": "Heart big. No effusion.",
        "impression": "My impression is good.",
    }
    assert compose(raw, NAMES, "all", marks=True) == ""
    assert compose({}, NAMES, marks=True) == ""


def test_sections_of_what_a_model_may_write() -> None:
    written = "no mark yet . impression : normal . clinical  notes : cough . impression: and clear ."
    assert sections_of(written, NAMES) == {
        "findings": "no mark yet .",
        "clinical_notes": "cough .",
        "impression": "normal . and clear .",
    }
    assert sections_of("my impression of it", NAMES) == {"findings": "my impression of it"}
    assert sections_of("impression :", NAMES) == {}


@pytest.mark.parametrize(
    ("decoded", "written"),
    [
        ("the heart is normal . no effusion .", "The heart is normal. No effusion."),
        ("follow - up of a 1 . 8 cm nodule", "Follow-up of a 1.8 cm nodule"),
        ("left / right ( ap ) , 50 % larger ; stable", "Left/right (ap), 50% larger; stable"),
        ("patient ' s chest . 2 views", "Patient's chest. 2 views"),
        ("", ""),
    ],
)
def test_decoded_text_is_written_as_people_do(decoded: str, written: str) -> None:
    assert readable(decoded) == written
    assert readable(written) == written


def test_compose_is_empty_when_the_requirement_fails() -> None:
    half = {"findings": "Clear.", "impression": " \n "}
    assert compose(half, ("findings", "impression"), "any") == "Clear."
    assert compose(half, ("findings", "impression"), "all") == ""
    assert compose({}, ("findings",), "any") == ""


def test_compose_strips_the_marks_of_removed_data_when_asked() -> None:
    sections = {"findings": "Compared to ___, XXXX is stable. EXXXXT"}
    assert compose(sections, ["findings"]) == "Compared to ___, XXXX is stable. EXXXXT"
    assert compose(sections, ["findings"], strip_deidentified=True) == "Compared to , is stable. EXXXXT"
    assert compose({"findings": " ___ "}, ["findings"], strip_deidentified=True) == ""


def test_digest_tells_texts_apart_by_their_words_alone() -> None:
    assert digest("No effusion.") == digest("no  effusion.\n")
    assert digest("No effusion.") != digest("No effusions.")
    assert 0 <= digest("x") < 2**63


def train(vocabulary: int = 200) -> TextTokenizer:
    return TextTokenizer.train(TEXTS, vocabulary)


def test_encodes_as_transformers_does(tmp_path: Path) -> None:
    tokenizer = train()
    tokenizer.save(tmp_path)
    theirs = BertTokenizer.from_pretrained(str(tmp_path))
    for text in [*TEXTS[:3], "Unknown wörds, 漢字 and  blanks", "[SEP] is no token here"]:
        if "[SEP]" not in text:  # theirs takes it for a special token
            assert tokenizer.encode(text, 512) == theirs(text)["input_ids"]
            assert tokenizer.encode(text, 12) == theirs(text, truncation=True, max_length=12)["input_ids"]
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
from medunifier_cli.data.texts.report import TextTokenizer
from tests.unit.data.texts.test_text import TEXTS
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
