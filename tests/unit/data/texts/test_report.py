"""Composing report texts, splitting them, making them readable, and their hash."""

import pytest

from medunifier_cli.data.texts.report import compose, digest, readable, sections_of


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
