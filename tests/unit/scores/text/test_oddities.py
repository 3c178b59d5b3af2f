"""Notes on sets of reports whose scores mislead; the metrics themselves show that they do."""

from __future__ import annotations

import pytest

from medunifier_cli.evaluate.reports.scoring import DISTINCT, score_rows
from medunifier_cli.scores.text import meteor
from medunifier_cli.scores.text.cider import cider
from medunifier_cli.scores.text.oddities import variety
from medunifier_cli.scores.text.words import prepare

STOCK = "The heart is normal in size. The lungs are clear. No pneumothorax."
TRUTH = [
    f"{finding}. Heart size is normal. No pneumothorax."
    for finding in (
        "Small left pleural effusion", "No acute process", "Mild cardiomegaly", "Right lower lobe pneumonia",
        "Left apical pneumothorax", "Interstitial edema",
    )
]  # fmt: skip


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)


def test_one_report_for_every_image_is_named_and_counted() -> None:
    rows = [{"reference": text, "hypothesis": STOCK} for text in TRUTH * 4]
    scored = score_rows(rows, None, STOCK)
    values = {metric.name: metric for metric in scored.metrics}
    assert values["BLEU-4"].value is not None
    assert values["BLEU-4"].value > 0.1, "it looks like a score"
    assert (values[DISTINCT].value, values[DISTINCT].baseline) == (1, 1)
    note = next(note for note in scored.notes if "1 distinct hypothesis among 24" in note)
    assert "6 distinct references" in note


def test_case_and_punctuation_do_not_make_a_report_distinct() -> None:
    assert variety(["No edema.", "no edema", "NO  EDEMA ."], TRUTH[:3])[0] == 1
    assert variety(["No edema.", "Edema.", "Small effusion."], TRUTH[:3]) == (3, [])


def test_a_report_for_most_images_is_named_but_normal_studies_alike_are_not() -> None:
    count, notes = variety([STOCK, STOCK, STOCK, "Edema."], TRUTH[:4])
    assert count == 2
    assert notes[0].startswith("2 distinct hypotheses among 4, one of them given to 3 images; 4 distinct ref")
    normal = ["No acute process."] * 3 + ["Mild cardiomegaly."]
    assert variety([*["No acute disease."] * 3, "Big heart."], normal) == (2, [])


def test_references_that_cider_cannot_weigh() -> None:
    words, against = prepare([STOCK] * 3, [STOCK] * 3)
    assert cider(words, against).tolist() == [0, 0, 0], "perfect reports"
    _, notes = variety(["Edema.", "Clear.", "Small effusion."], [STOCK] * 3)
    assert notes == ["cider: 0 even for perfect reports, since all 3 references are the same"]
    # the first reference has nothing that the others lack
    truth = ["No edema.", "No edema. Big heart.", "No edema. Clear lungs."]
    words, against = prepare(truth, truth)
    assert (cider(words, against) == 0).tolist() == [True, False, False]
    _, notes = variety(["Edema.", "Clear.", "Small effusion."], truth)
    assert len(notes) == 1
    assert notes[0].startswith("cider: 0 even for a perfect report on 1 of 3 images")


@pytest.mark.parametrize(
    "text",
    [
        "双肺清晰。心影正常。",
        "心影增大、双肺纹理增多、未见明显气胸。",
        "心臓は正常大です。肺野は清明です。",
        "หัวใจมีขนาดปกติ ไม่พบน้ำในช่องเยื่อหุ้มปอด",
        "Theheartisnormalinsize.Thelungsareclear.Nopneumothorax.",
    ],
)
def test_texts_without_blanks_are_named_on_each_side(text: str) -> None:
    others = [text, f"{text}{text}"]
    notes = [note for note in variety(others, TRUTH[:2])[1] if "without blanks" in note]
    assert [note.split(":")[0] for note in notes] == ["generated reports"]
    notes = [note for note in variety(TRUTH[:2], others)[1] if "without blanks" in note]
    assert [note.split(":")[0] for note in notes] == ["references"]
    assert not any(text in note for note in notes)


@pytest.mark.parametrize(
    "texts",
    [
        ["心影 增大 、 双肺 纹理 增多 。", "未见 明显 气胸 。"],
        ["Rechtsherzinsuffizienz, kein Nachweis eines Pneumothorax.", "Herzschrittmacheraggregat links."],
        ["Hepatosplenomegaly.", "Cardiomegaly with cephalization 心影增大双肺纹理."],
    ],
)
def test_texts_with_blanks_are_not(texts: list[str]) -> None:
    assert not [note for note in variety(texts, texts)[1] if "without blanks" in note]


def test_references_given_as_hypotheses_are_named() -> None:
    assert any("equal their references word for word" in note for note in variety(TRUTH, TRUTH)[1])
    assert not any("word for word" in note for note in variety([*TRUTH[1:], TRUTH[0]], TRUTH)[1])
