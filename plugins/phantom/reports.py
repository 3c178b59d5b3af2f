"""Write the report of a case as a radiologist might dictate it.

Each finding gets one sentence in `findings`, with its size, side and zone, and a short phrase in
`impression`. Some absent findings are negated; present ones never are. `reading` recognises the findings in
these texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .case import (
    ATELECTASIS,
    CARDIOMEGALY,
    CLASSES,
    EDEMA,
    EFFUSION,
    PNEUMONIA,
    REPORT_STREAM,
    Case,
    Finding,
)

_SENTENCES: Mapping[str, tuple[str, ...]] = {
    ATELECTASIS: (
        "{size} band-like atelectasis is seen {where}",
        "There is {size} linear atelectasis {where}",
        "Band-like opacities {where} are consistent with {size} atelectasis",
        "{size} plate-like atelectasis is present {where}",
        "There is {size} subsegmental atelectasis {where}",
        "Linear opacity {where} reflects {size} atelectasis",
    ),
    CARDIOMEGALY: (
        "The heart is {size}ly enlarged",
        "The cardiac silhouette is {size}ly enlarged",
        "There is {size} cardiomegaly",
        "There is {size} enlargement of the cardiac silhouette",
        "Heart size is {size}ly increased, in keeping with cardiomegaly",
        "{size} cardiomegaly is present",
    ),
    PNEUMONIA: (
        "{a} {size} consolidation{s} {where} {is} concerning for pneumonia",
        "There {is} {a} {size} focal consolidation{s} {where}",
        "{a} {size} patchy airspace opacit{y} {is} seen {where}, suspicious for pneumonia",
        "{a} {size} area{s} of consolidation {is} present {where}",
        "There {is} {a} {size} airspace opacit{y} {where}, compatible with pneumonia",
        "{a} {size} infiltrate{s} {is} noted {where}, likely pneumonia",
    ),
    EDEMA: (
        "There is {size} pulmonary edema with perihilar haze",
        "{size} interstitial edema is present in both lungs",
        "Bilateral perihilar haziness indicates {size} pulmonary edema",
        "Hazy perihilar opacities are consistent with {size} edema",
        "Pulmonary vessels are indistinct, compatible with {size} edema",
        "There is vascular congestion with {size} interstitial edema",
    ),
    EFFUSION: (
        "There {is} {a} {size} {side} pleural effusion{s}",
        "{a} {size} {side} pleural effusion{s} {is} present",
        "Blunting of the {side} costophrenic angle{s} is consistent with {a} {size} effusion{s}",
        "{a} {size} {side} effusion{s} {is} seen",
        "{size} {side} pleural fluid is noted",
        "{a} {size} {side} pleural effusion{s} {is} layering at the base{s}",
    ),
}
_SUMMARIES: Mapping[str, tuple[str, ...]] = {
    ATELECTASIS: ("{size} {side} {zone} zone atelectasis", "{size} atelectasis {where}"),
    CARDIOMEGALY: ("{size} cardiomegaly", "{size} enlargement of the heart"),
    PNEUMONIA: (
        "{size} {side} {zone} zone pneumonia",
        "{size} pneumonia {where}",
        "{size} consolidation{s} {where}",
    ),
    EDEMA: ("{size} pulmonary edema", "{size} interstitial edema"),
    EFFUSION: ("{size} {side} pleural effusion{s}", "{size} {side} effusion{s}"),
}
_ABSENT: Mapping[str, tuple[str, ...]] = {
    ATELECTASIS: ("atelectasis", "collapse"),
    PNEUMONIA: ("focal consolidation", "pneumonia", "airspace opacity", "infiltrate"),
    EDEMA: ("pulmonary edema", "vascular congestion", "interstitial edema"),
    EFFUSION: ("pleural effusion", "effusion", "pleural fluid"),
}
_NORMAL_HEART = (
    "Heart size is normal",
    "The cardiac silhouette is normal in size",
    "The heart is not enlarged",
    "The cardiac silhouette is within normal limits",
    "No cardiomegaly",
    "Normal heart size",
    "Cardiac size is unremarkable",
    "The cardiothoracic proportions are preserved",
)
_DENIALS = (
    "No {list}",
    "There is no {list}",
    "No evidence of {list}",
    "The lungs are without {list}",
    "Negative for {list}",
    "No {list} is identified",
    "The lungs are free of {list}",
    "There is no sign of {list}",
)
_CLEAR = (
    "The lungs are clear",
    "Both lungs are clear",
    "Lungs are clear and well expanded",
    "Clear lungs on both sides",
    "The lungs are well aerated",
)
_OTHERS = (
    "No pneumothorax",
    "The mediastinal contours are normal",
    "The bony thorax is intact",
    "Osseous structures are unremarkable",
    "The trachea is midline",
    "There is no acute bony abnormality",
    "The mediastinum is not widened",
    "Visualized upper abdomen is unremarkable",
    "Soft tissues are unremarkable",
    "The aortic contour is normal",
    "No displaced rib fracture is seen",
    "The thoracic spine is straight",
    "Both clavicles are symmetric",
    "No free air beneath the diaphragm",
    "Frontal view of the chest was obtained in full inspiration",
    "No nodule or mass is evident",
)
_NORMAL_STUDY = (
    "No acute cardiopulmonary abnormality",
    "Normal chest radiograph",
    "No acute cardiopulmonary process",
    "No acute disease",
    "No radiographic evidence of acute disease",
    "Unremarkable study",
    "Normal examination without acute findings",
)
_ADVICE = (
    "Clinical correlation is advised",
    "Follow-up is recommended",
    "Recommend follow-up radiograph",
    "Consider comparison with prior studies",
)
_FINDINGS_WORDS = (25, 34)
"""Range of the minimum number of words of `findings`; neutral sentences fill the section up to it."""


def write_report(case: Case) -> dict[str, str]:
    """The sections `findings` and `impression` of a case."""
    rng = case.rng(REPORT_STREAM)
    return {"findings": _findings(case.findings, rng), "impression": impression(case.findings, rng)}


def finding_sentence(finding: Finding, rng: np.random.Generator) -> str:
    """One sentence for `findings`, without a full stop."""
    return _fill(_pick(_SENTENCES[finding.name], rng), finding, rng)


def impression_phrase(finding: Finding, rng: np.random.Generator) -> str:
    """One phrase for `impression`, without a full stop."""
    return _fill(_pick(_SUMMARIES[finding.name], rng), finding, rng)


def _findings(findings: Sequence[Finding], rng: np.random.Generator) -> str:
    present = {f.name for f in findings}
    sentences = [finding_sentence(findings[i], rng) for i in rng.permutation(len(findings))]
    absent = [name for name in CLASSES if name in _ABSENT and name not in present]
    denied = [_pick(_ABSENT[absent[i]], rng) for i in rng.permutation(len(absent))[: rng.integers(1, 4)]]
    if denied and sentences and rng.random() < 0.25:
        # A negation may be part of a positive sentence, before or after it.
        if rng.random() < 0.5:
            sentences[-1] += f" without {_enumerate(denied)}"
        else:
            sentences[0] = f"No {_enumerate(denied)}, but {_lower_first(sentences[0])}"
    elif denied:
        sentences.append(_pick(_DENIALS, rng).format(list=_enumerate(denied)))
    if CARDIOMEGALY not in present:
        sentences.insert(int(rng.integers(len(sentences) + 1)), _pick(_NORMAL_HEART, rng))
    if not present - {CARDIOMEGALY}:
        sentences.insert(int(rng.integers(2)), _pick(_CLEAR, rng))
    elif rng.random() < 0.3:
        sentences.insert(0, sentences.pop())
    min_words = rng.integers(*_FINDINGS_WORDS)
    for i in rng.permutation(len(_OTHERS)):
        if sum(len(s.split()) for s in sentences) >= min_words:
            break
        sentences.append(_OTHERS[i])
    return punctuate(sentences)


def impression(findings: Sequence[Finding], rng: np.random.Generator) -> str:
    """The section `impression` of a case with these findings."""
    if not findings:
        return punctuate([_pick(_NORMAL_STUDY, rng)])
    parts = [impression_phrase(findings[i], rng) for i in rng.permutation(len(findings))]
    joined = rng.random()
    if len(parts) > 1 and joined < 0.5:
        link = " with " if joined < 0.2 else " and "
        parts = [*parts[:-2], parts[-2] + link + parts[-1]]
    if rng.random() < 0.3:
        parts.append(_pick(_ADVICE, rng))
    return punctuate(parts)


def _fill(template: str, finding: Finding, rng: np.random.Generator) -> str:
    """A template with size, side and zone of the finding, in the plural for bilateral findings."""
    two = finding.side == "bilateral"
    text = template.format(
        size=finding.size,
        side=finding.side,
        zone=finding.zone,
        where=_where(finding, rng) if finding.zone else "",
        a="" if two else "a",
        s="s" if two else "",
        y="ies" if two else "y",
        **{"is": "are" if two else "is"},
    )
    return " ".join(text.split())


def _where(finding: Finding, rng: np.random.Generator) -> str:
    if finding.side == "bilateral":
        return _pick((f"in both {finding.zone} zones", f"in the {finding.zone} zones bilaterally"), rng)
    return _pick(
        (
            f"in the {finding.side} {finding.zone} zone",
            f"in the {finding.side} {finding.zone} lung zone",
            f"in the {finding.zone} zone of the {finding.side} lung",
        ),
        rng,
    )


def _enumerate(nouns: Sequence[str]) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} or {nouns[-1]}"


def punctuate(sentences: Sequence[str]) -> str:
    """Sentences, each with a capital letter and a full stop, joined by spaces."""
    return " ".join(f"{s[0].upper()}{s[1:]}." for s in sentences)


def _lower_first(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
