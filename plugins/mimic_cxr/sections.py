"""Finding the sections of a MIMIC-CXR report, by the rules of the MIT-LCP mimic-cxr code and one correction.

A heading is a line break, a blank, capitals (or blanks and `( ) / , -`), a colon and white space. So a text
that was stripped or re-indented has no headings, and neither digits ("CHEST, 2 VIEWS:"), lower case
("Impression:") nor a missing blank ("FINDINGS:No") make one. The counts of the literature rest on these
rules; they are kept. The correction: there, the white space after a colon is used up, so that "FINDINGS:"
with " IMPRESSION: ..." on the next line swallows the second heading; here it is not.
"""

from __future__ import annotations

import re

__all__ = ["WITHOUT_FINDINGS", "report_sections"]

HEADING = re.compile(r"\n ([A-Z ()/,-]+):(?=\s)")

RENAMED = {
    "impression": (
        *("conclusion", "impresson", "imprression", "imoression", "impressoin", "imprssion"),
        *("impresion", "imperssion", "mpression", "impession"),
        "ndication",  # odd, but so it is there; it matters only where no real impression follows
    ),
    "findings": ("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"),
    "indication": (*("reason for examination", "reason for exam", "clinical indication", "idication"),),
    "history": ("clinical information", "pfi"),
    "comparison": ("reference exam", "comparision", "comparsion", "comparrison", "comparisions"),
    "examination": ("exam", "type of examination"),
}
"""Headings that stand for a section without containing its name: other words for it, and typing errors."""

BY_NAME = {heading: section for section, headings in RENAMED.items() for heading in headings}

CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
"""A heading that contains one of these is that section; the first one wins ("findings and impression")."""

VIEW_WORDS = re.compile(
    r"chest|portable|ribs|bone window"
    r"|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and"
    r"|two views|one view|frontal view|pa view|ap view|lateral view|frontal upright|frontal semi-upright"
)
"""A heading that describes the pictures ("CHEST RADIOGRAPHS") opens the findings."""

KEPT = frozenset(
    ("findings", "impression", "indication", "history", "comparison", "technique", "examination")
)

WITHOUT_FINDINGS = frozenset((50798377, 52035334, 53071062, 53607029, 54168089, 54231141, 56724958, 58235663))
"""Studies whose report says nothing of the picture, whatever its headings (list of the MIT-LCP code)."""


def report_sections(report: str) -> dict[str, str]:
    """Section name -> raw text with its line breaks, ends stripped; the last non-empty one of its name.

    Args:
        report: the file as it is, with the blank that starts each line.

    What stands above the first heading (addenda, wet reads) is left out, and a text without any heading.
    """
    report = report.replace("\r\n", "\n")
    headings = list(HEADING.finditer(report))
    ends = [heading.start() for heading in headings] + [len(report)]
    sections = {}
    for heading, end in zip(headings, ends[1:], strict=True):
        name = _section_name(heading.group(1))
        text = report[heading.end() : end].strip()
        if text and name in KEPT:
            sections[name] = text
    return sections


def _section_name(heading: str) -> str:
    heading = heading.lower().strip()
    if heading in KEPT:
        return heading
    if heading in BY_NAME:
        return BY_NAME[heading]
    for section in CONTAINED:
        if section in heading:
            return section
    return "findings" if VIEW_WORDS.search(heading) else heading
