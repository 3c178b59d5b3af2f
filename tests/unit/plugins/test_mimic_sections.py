"""Finding the sections of a report: the rules, and every trap that datasets of this kind have shown."""

from __future__ import annotations

import pytest
from medunifier_plugins.mimic_cxr.sections import report_sections

TITLE = " " * 33 + "FINAL REPORT\n"


def found(body: str) -> dict[str, str]:
    """Findings and impression of a report with that body."""
    sections = report_sections(TITLE + body)
    return {name: text for name, text in sections.items() if name in ("findings", "impression")}


def test_plain_report_with_wrapped_lines_and_a_mark_of_removed_data() -> None:
    body = (
        " EXAMINATION:  CHEST (PA AND LAT)\n \n"
        " INDICATION:  ___ year old woman with cough  // pneumonia?\n \n"
        " TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  ___\n \n FINDINGS: \n \n"
        " The lungs are clear. Compared with ___,\n the heart is normal.\n \n"
        " IMPRESSION: \n \n No acute process.\n"
    )
    assert report_sections(TITLE + body) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old woman with cough  // pneumonia?",
        "technique": "Chest PA and lateral",
        "comparison": "___",
        "findings": "The lungs are clear. Compared with ___,\n the heart is normal.",
        "impression": "No acute process.",
    }


def test_without_the_blank_at_the_start_of_the_line_there_is_no_heading() -> None:
    body = " INDICATION: Cough.\n \n FINDINGS: Clear.\n"
    assert found(body) == {"findings": "Clear."}
    assert found(body.replace("\n ", "\n")) == {}
    assert found(body.replace("\n ", "\n\t")) == {}


@pytest.mark.parametrize("indent", ["", "  ", "\t", "        "])
@pytest.mark.parametrize("title", [TITLE, ""])
def test_a_report_that_was_stripped_or_indented_anew_is_read_as_the_released_one(
    indent: str, title: str
) -> None:
    body = (
        " EXAMINATION: CHEST\n \n FINDINGS:\n The heart is normal.\n The lungs: clear.\n \n"
        " IMPRESSION:\n No acute process.\n"
    )
    changed = "".join(f"{indent}{line.strip()}\n" for line in (title + body).split("\n"))
    released = found(body)
    assert released == {
        "findings": "The heart is normal.\n The lungs: clear.",
        "impression": "No acute process.",
    }
    assert {name: report_sections(changed)[name] for name in released} == released


def test_a_report_whose_title_was_cut_off_begins_with_a_heading() -> None:
    assert report_sections(" FINDINGS: \n \n Clear.\n") == {"findings": "Clear."}


def test_findings_without_text_do_not_swallow_the_heading_on_the_next_line() -> None:
    assert found(" FINDINGS:\n IMPRESSION: Clear.\n") == {"impression": "Clear."}
    assert found(" FINDINGS:\n \n IMPRESSION: Clear.\n") == {"impression": "Clear."}
    assert found(" FINDINGS: \n IMPRESSION: Clear.\n") == {"impression": "Clear."}


@pytest.mark.parametrize("heading", ["CHEST, 2 VIEWS:", "Impression:", "IMPRESSION:No"])
def test_headings_with_digits_lower_case_or_no_blank_are_text(heading: str) -> None:
    assert found(f" {heading} effusion.\n") == {}
    assert found(f" FINDINGS: Clear.\n {heading} effusion.\n") == {
        "findings": f"Clear.\n {heading} effusion."
    }


def test_a_heading_of_view_words_opens_the_findings_and_the_last_one_wins() -> None:
    assert found(" CHEST RADIOGRAPHS: Clear.\n") == {"findings": "Clear."}
    assert found(" CHEST RADIOGRAPHS: First.\n FINDINGS: Second.\n") == {"findings": "Second."}
    assert found(" FINDINGS: First.\n PORTABLE AP VIEW: Second.\n") == {"findings": "Second."}


def test_of_repeated_sections_the_last_that_says_something_counts() -> None:
    assert found(" IMPRESSION: Old.\n IMPRESSION: New.\n") == {"impression": "New."}
    assert found(" IMPRESSION: Old.\n IMPRESSION: \n") == {"impression": "Old."}


def test_wet_read_and_addendum_above_the_report_are_left_out() -> None:
    top = (
        " " * 33 + "FINAL ADDENDUM\n ADDENDUM Small effusion after all.\n\n"
        "______________________________________________________________________________\n" + TITLE
    )
    assert report_sections(top + " IMPRESSION: Clear.\n") == {"impression": "Clear."}


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("CONCLUSION", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("IMPRESSOIN", "impression"),
        ("NDICATION", "impression"),
        ("FINDING", "findings"),
        ("FINDNGS", "findings"),
        ("CHEST, TWO VIEWS", "findings"),
        ("FRONTAL AND LATERAL VIEWS OF THE CHEST", "findings"),
        ("RIBS", "findings"),
        ("PFI", "history"),
        ("CLINICAL HISTORY", "history"),
        ("REASON FOR EXAMINATION", "indication"),
        ("COMPARISON STUDY", "comparison"),
        ("EXAM", "examination"),
    ],
)
def test_other_names_and_typing_errors(heading: str, section: str) -> None:
    assert report_sections(f"{TITLE} {heading}: Some text.\n") == {section: "Some text."}


def test_a_text_without_headings_has_no_sections_and_no_last_paragraph() -> None:
    assert found(" Portable chest.\n \n The lungs are clear.\n") == {}
    assert found(" INDICATION: Cough.\n \n The lungs are clear.\n") == {}


def test_windows_line_ends_change_nothing() -> None:
    body = " FINDINGS: \n \n Clear.\n \n IMPRESSION: \n \n Normal.\n"
    assert found(body.replace("\n", "\r\n")) == found(body) == {"findings": "Clear.", "impression": "Normal."}
