"""Split a MIMIC-CXR report into sections, by the rules of the MIT-LCP mimic-cxr code with two corrections.

A heading is a line break, one space, capitals (or spaces and `( ) / , -`), a colon and white space. So digits
("CHEST, 2 VIEWS:"), lower case ("Impression:") or a missing space ("FINDINGS:No") prevent one. These limits
are kept, because the counts in the literature rest on them. Two corrections. The original pattern consumes
the white space after the colon, so that " IMPRESSION: ..." on the line after "FINDINGS:" is not recognised; a
look-ahead leaves it in place. And a report without a line that begins with one space, as the released ones
have, has been stripped or re-indented, and gets its spaces back first.
"""

from __future__ import annotations

import re

__all__ = ["WITHOUT_FINDINGS", "report_sections"]

RELEASED = re.compile(r"^ \S", re.MULTILINE)
"""A line as in the released files, indented by one space."""
HEADING = re.compile(r"\n ([A-Z ()/,-]+):(?=\s)")

RENAMED = {
    "impression": (
        *("conclusion", "impresson", "imprression", "imoression", "impressoin", "imprssion"),
        *("impresion", "imperssion", "mpression", "impession"),
        "ndication",  # odd, but part of the original table; it matters only if no real impression follows
    ),
    "findings": ("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"),
    "indication": (*("reason for examination", "reason for exam", "clinical indication", "idication"),),
    "history": ("clinical information", "pfi"),
    "comparison": ("reference exam", "comparision", "comparsion", "comparrison", "comparisions"),
    "examination": ("exam", "type of examination"),
}
"""Section -> headings that mean it without containing its name: synonyms and typing errors."""

BY_NAME = {heading: section for section, headings in RENAMED.items() for heading in headings}

CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
"""A heading that contains one of these names is that section; "findings and impression" is the first one."""

VIEW_WORDS = re.compile(
    r"chest|portable|ribs|bone window"
    r"|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and"
    r"|two views|one view|frontal view|pa view|ap view|lateral view|frontal upright|frontal semi-upright"
)
"""A heading that describes the images ("CHEST RADIOGRAPHS") begins the findings."""

KEPT = frozenset(
    ("findings", "impression", "indication", "history", "comparison", "technique", "examination")
)

WITHOUT_FINDINGS = frozenset((50798377, 52035334, 53071062, 53607029, 54168089, 54231141, 56724958, 58235663))
"""Studies whose report does not describe the image, whatever its headings (list of the MIT-LCP code)."""


def report_sections(report: str) -> dict[str, str]:
    """Section name -> raw text with its line breaks, stripped; of repeated sections the last non-empty one.

    Text above the first heading (addenda, wet reads) and reports without any heading yield nothing.

    Args:
        report: the file, in which each line begins with a space unless somebody re-indented it.
    """
    report = report.replace("\r\n", "\n")
    if not RELEASED.search(report):
        report = "\n".join(f" {line.strip()}" for line in report.split("\n"))
    report = f"\n{report}"  # the title may have been cut off, so that the first line is a heading
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
