"""The reports of the phantom describe the findings of the image in varied words and parse without loss."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from medunifier_plugins.phantom.case import CLASSES, EDEMA
from medunifier_plugins.phantom.dataset import Phantom, make_record

from medunifier_cli.data.contract import DatasetPlugin, Record

PHANTOM = Phantom()

# Repeated here on purpose and not imported: the words by which a person tells the findings apart.
WORDS = {
    "Atelectasis": ("atelecta", "collapse"),
    "Cardiomegaly": ("cardiomegaly", "enlarge", "increased"),
    "Pneumonia": ("pneumonia", "consolidation", "infiltrate", "airspace"),
    "Edema": ("edema", "congestion"),
    "Pleural Effusion": ("effusion", "pleural fluid"),
}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [make_record(0, split, i) for split, n in (("train", 3000), ("test", 500)) for i in range(n)]


def _truth(record: Record) -> set[str]:
    return {f["name"] for f in record.facts["findings"]}


def _text(record: Record) -> str:
    return " ".join(record.sections[s] for s in PHANTOM.text_sections)


def _tokens(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[^\sa-z]", text.lower())


def test_reading_a_report_gives_the_truth(records: list[Record]):
    for record in records:
        truth = _truth(record)
        assert PHANTOM.findings_in(_text(record)) == truth, _text(record)
        for section in record.sections.values():
            assert PHANTOM.findings_in(section) == truth, section


def test_reading_survives_what_a_tokenizer_does_to_a_text(records: list[Record]):
    for record in records[:500]:
        apart = re.sub(r"([.,-])", r" \1 ", _text(record).lower())
        assert PHANTOM.findings_in(apart) == _truth(record), apart
        assert PHANTOM.findings_in(_text(record).upper()) == _truth(record)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("No pleural effusion, consolidation or pulmonary edema.", ()),
        ("There is no evidence of atelectasis. The heart is not enlarged.", ()),
        ("Pleural effusion is not seen. Edema is absent.", ()),
        ("Neither consolidation nor effusion is seen.", ()),
        ("The lungs are free of edema, infiltrate and atelectasis", ()),
        ("The mediastinum is not widened. Heart size is normal.", ()),
        ("No edema, but there is a small left pleural effusion.", ("Pleural Effusion",)),
        ("No edema, a small left pleural effusion.", ("Pleural Effusion",)),
        ("Small left pleural effusion without edema or atelectasis.", ("Pleural Effusion",)),
        ("The cardiac silhouette is mildly enlarged without consolidation", ("Cardiomegaly",)),
        ("Enlarged heart with bilateral effusions and no edema.", ("Cardiomegaly", "Pleural Effusion")),
        (
            "Interstitial edema. No pleural effusion; linear atelectasis in the left base.",
            ("Edema", "Atelectasis"),
        ),
        ("Effusion is not present, however consolidation is seen in the right lung.", ("Pneumonia",)),
        ("No effusion. Blunting of the left costophrenic angle.", ("Pleural Effusion",)),
        ("Lungs without consolidation, with mild edema.", ("Edema",)),
        ("CARDIOMEGALY AND VASCULAR CONGESTION", ("Cardiomegaly", "Edema")),
        ("Enlarged lymph nodes. Increased markings.", ()),
        ("no pneumonia no pneumonia no pneumonia moderate", ()),
    ],
)
def test_negated_and_mixed_sentences(text: str, expected: tuple[str, ...]):
    assert PHANTOM.findings_in(text) == set(expected)


def test_size_side_and_zone_in_the_text_are_those_of_the_image(records: list[Record]):
    for record in records:
        for section, text in record.sections.items():
            sentences = text.lower().split(". ")
            for finding in record.facts["findings"]:
                own = [s for s in sentences if _says(s, finding["name"])]
                assert own, (section, finding)
                assert any(_matches(s, finding) for s in own), (section, finding, own)
            # No word of place or size that belongs to no finding.
            for words, field in (("upper mid lower", "zone"), ("small moderate large mild severe", "size")):
                said = {w for w in words.split() if re.search(rf"\b{w}(ly)?\b(?! abdomen)", text.lower())}
                assert said == {f[field] for f in record.facts["findings"]} - {None}, text


def _says(sentence: str, name: str) -> bool:
    # What hangs on behind `without`, or before `but`, is denied.
    asserted = sentence.split(" but ")[-1].split(" without ")[0]
    return any(word in asserted for word in WORDS[name]) and not re.match(
        r"(there is )?(no|negative)\b", asserted
    )


def _matches(sentence: str, finding: Mapping[str, Any]) -> bool:
    sides = {
        "right": r"\bright\b",
        "left": r"\bleft\b",
        "bilateral": r"\b(bilateral|bilaterally|both)\b",
        None: "",
    }
    side = "" if finding["name"] == EDEMA else sides[finding["side"]]
    return all(re.search(p, sentence) for p in (finding["size"], side, rf"\b{finding['zone'] or ''}"))


def test_single_finding_reports_name_no_other_side(records: list[Record]):
    for record in records:
        findings = record.facts["findings"]
        if len(findings) == 1 and findings[0]["side"] in ("right", "left"):
            other = {"right": "left", "left": "right"}[findings[0]["side"]]
            assert not re.search(rf"\b({other}|bilateral|bilaterally)\b", _text(record)), _text(record)


def test_nothing_present_is_denied(records: list[Record]):
    for record in records:
        for sentence in re.split(r"\.| but ", _text(record).lower()):
            denied = re.split(r"\b(?:no|not|without|negative for|free of) ", sentence)[1:]
            assert not any(w in part for part in denied for name in _truth(record) for w in WORDS[name]), (
                sentence
            )


def test_some_of_what_is_absent_is_denied(records: list[Record]):
    denied = [
        any(w in _text(r).lower() for c in CLASSES if c not in _truth(r) for w in WORDS[c]) for r in records
    ]
    assert np.mean(denied) > 0.9


def test_length_vocabulary_and_variety(records: list[Record]):
    texts = [_text(r) for r in records]
    words = [len(t.split()) for t in texts]
    assert 37 < np.mean(words) < 42
    assert min(words) >= 20
    # [CLS] and [SEP] must fit beside them in the 95 tokens of the paper.
    assert max(len(_tokens(t)) for t in texts) <= 93
    assert 120 < len({w for t in texts for w in _tokens(t)}) < 400
    assert len(set(texts)) > 0.97 * len(texts)
    for name in CLASSES:
        firsts = Counter(r.sections["impression"] for r in records if _truth(r) == {name})
        assert len(firsts) > 8, name
    opening = Counter(t.split()[0] for t in texts)
    assert opening.most_common(1)[0][1] < 0.5 * len(texts)


def test_sentences_are_written_as_sentences(records: list[Record]):
    for record in records:
        for text in record.sections.values():
            assert text == text.strip()
            assert text.endswith(".")
            assert all(re.match(r"[A-Z]", s) for s in text.split(". ")), text
            assert not re.search(r"\ba [aeiou]|\b(\w+) \1\b|[{}]|  |None", text), text


def test_prompt_sets(records: list[Record]):
    sets = PHANTOM.prompt_sets()
    assert list(sets) == ["report", "other"]
    used = {w for r in records for w in _tokens(_text(r))}
    sentences = {s.rstrip(".") for r in records for s in _text(r).split(". ")}
    for prompts in sets.values():
        assert tuple(prompts) == PHANTOM.classes
    for name, prompts in sets["report"].items():
        assert 8 <= len(set(prompts)) == len(prompts) <= 15
        assert all(PHANTOM.findings_in(p) == {name} for p in prompts)
        assert {w for p in prompts for w in _tokens(p)} <= used
        said = [s.rstrip(".") for p in prompts for s in p.split(". ")]
        assert np.mean([s in sentences for s in said]) > 0.6, "a report somewhere says just that"
        places = {w for p in prompts for w in _tokens(p)} & {"right", "left", "upper", "mid", "lower"}
        assert len(places) == {"Cardiomegaly": 0, "Edema": 0, "Pleural Effusion": 2}.get(name, 5)
    for name, prompts in sets["other"].items():
        assert all(PHANTOM.findings_in(p) != {name} for p in prompts), "the reports' own word for it"
        assert all(set(_tokens(p)) - used for p in prompts)
    assert PHANTOM.prompt_sets() == sets


def test_other_data_sets_do_not_claim_to_read_reports():
    assert DatasetPlugin.findings_in(PHANTOM, "Cardiomegaly.") is None
