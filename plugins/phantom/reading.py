"""Recognise the classes that a report in the phantom's style asserts; negated findings do not count.

It must also work for text that a model generates, in which sentences may be mixed, incomplete or repeated.
Each sentence is split into clauses, and a term counts unless a negation in its clause applies to it.
"""

from __future__ import annotations

import re

from .case import ATELECTASIS, CARDIOMEGALY, EDEMA, EFFUSION, PNEUMONIA

_TERMS = {
    ATELECTASIS: re.compile(r"\b(atelecta\w+|collapsed?)\b"),
    CARDIOMEGALY: re.compile(r"\b(cardiomegaly|enlarge[ds]?|enlargement|increased)\b"),
    PNEUMONIA: re.compile(
        r"\b(pneumonias?|consolidations?|infiltrates?|airspace (opacity|opacities|disease))\b"
    ),
    EDEMA: re.compile(r"\b(o?edema|(vascular|pulmonary|venous) congestion)\b"),
    EFFUSION: re.compile(r"\b(effusions?|pleural fluid|blunting|blunted)\b"),
}
_HEART = re.compile(r"\b(heart|cardiac|cardiomegaly)\b")
"""Cardiomegaly needs one of these words in the clause: "enlarged" alone may refer to something else."""
_SENTENCE_END = re.compile(r"[.;:!?\n]+")
_SIZE = r"(?:(?:an?|the) )?(?:small|moderate|large|mild|severe)(?:ly)?"
_TURN = re.compile(
    rf"\b(?:but|however|although|though|while|whereas|yet)\b|,(?= (?:there (?:is|are)|{_SIZE})\b)"
)
"""Words that end the scope of a negation: `No edema, but ...`, `No edema, a small effusion ...`."""
_DENIED_AHEAD = re.compile(
    r"\b(?:no|not|without|neither|nor|never|negative for|free of|absence of|rather than)\b"
)
_ENDS_DENIAL = re.compile(r"\bwith\b")  # "Lungs without consolidation, with mild edema."
_DENIED_BEHIND = re.compile(
    r"\b(?:is|are|was|were|has been|have been) "
    r"(?:absent|excluded|ruled out|resolved|not (?:seen|present|identified|visualized|evident|noted))\b"
)


def findings_in(text: str) -> frozenset[str]:
    """Names of the classes asserted anywhere in `text`, in upper or lower case."""
    classes: set[str] = set()
    for sentence in _SENTENCE_END.split(" ".join(text.lower().replace("\n", ". ").split())):
        for clause in _TURN.split(sentence):
            classes |= _asserted(clause)
    return frozenset(classes)


def _asserted(clause: str) -> set[str]:
    denied = _denied_spans(clause)
    classes = set()
    for name, term in _TERMS.items():
        if name == CARDIOMEGALY and not _HEART.search(clause):
            continue
        if any(not any(start <= m.start() < end for start, end in denied) for m in term.finditer(clause)):
            classes.add(name)
    return classes


def _denied_spans(clause: str) -> list[tuple[int, int]]:
    """(start, end) of the parts of a clause that a negation applies to."""
    spans = []
    for denial in _DENIED_AHEAD.finditer(clause):
        end = _ENDS_DENIAL.search(clause, denial.end())
        spans.append((denial.end(), end.start() if end else len(clause)))
    spans += [(0, m.start()) for m in _DENIED_BEHIND.finditer(clause)]
    return spans
