"""Zero-shot prompts for the classes of the 5x200 sets: combinations of a severity, a subtype and a location.

MIMIC 5x200 and CheXpert 5x200 share their classes and these prompts. There are four sets:

- `gloria`, the default: GLoRIA's phrases as the published MedUnifier code lists and joins them, and that
  code's own phrases for pneumonia, a class that GLoRIA does not have.
- `gloria-original`: as GLoRIA's own code joins them. Only the prompts of pleural effusion differ.
- `ours`: other words, to measure how much the wording matters.
- `observed`: PRIOR's single prompt for each class.

The phrases of the first two are data of the protocol, taken with their spelling ("presistent") from
`gloria/constants.py` of github.com/marshuang80/gloria (Huang et al., ICCV 2021) and from
`utilities/constants.py` of github.com/ZiyangZhang0511/MedUnifier. Both programs join them in the order in
which the table lists them: severity, subtype, location; in GLoRIA's table, the location of a pleural effusion
comes second. Empty phrases and stray blanks leave no extra blanks here: BERT's tokenizer ignores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .prompts import combinations, observed

__all__ = ["PROMPT_SETS"]

Prompts = Mapping[str, Sequence[str]]
"""Class -> prompts."""

LUNG_ZONES = (
    *("at the mid lung zone", "at the upper lung zone", "at the right lung zone", "at the left lung zone"),
    *("at the lung bases", "at the right lung base", "at the left lung base", "at the bilateral lung bases"),
    *("at the left lower lobe", "at the right lower lobe"),
)

EFFUSION_SEVERITIES = ("", "small", "stable", "large", "decreased", "increased")
# Both tables list "bilateral pleural effusion" twice, which makes 54 combinations, 36 of them different.
EFFUSION_SUBTYPES = ("bilateral pleural effusion", "subpulmonic pleural effusion")
EFFUSION_LOCATIONS = ("left", "right", "tiny")

PUBLISHED: Prompts = {
    "Atelectasis": combinations(
        ("", "mild", "minimal"),
        (
            *("subsegmental atelectasis", "linear atelectasis", "trace atelectasis", "bibasilar atelectasis"),
            *("retrocardiac atelectasis", "bandlike atelectasis", "residual atelectasis"),
        ),
        LUNG_ZONES,
    ),
    "Cardiomegaly": (
        "cardiac silhouette size is upper limits of normal",
        "cardiomegaly which is unchanged",
        "mildly prominent cardiac silhouette",
        "portable view of the chest demonstrates stable cardiomegaly",
        "portable view of the chest demonstrates mild cardiomegaly",
        "persistent severe cardiomegaly",
        "heart size is borderline enlarged",
        "cardiomegaly unchanged",
        "heart size is at the upper limits of normal",
        "redemonstration of cardiomegaly",
        "ap erect chest radiograph demonstrates the heart size is the upper limits of normal",
        "cardiac silhouette size is mildly enlarged",
        "mildly enlarged cardiac silhouette, likely left ventricular enlargement. "
        "other chambers are less prominent",
        "heart size remains at mildly enlarged",
        "persistent cardiomegaly with prominent upper lobe vessels",
    ),
    "Consolidation": combinations(
        ("", "increased", "improved", "apperance of"),
        (
            *("bilateral consolidation", "reticular consolidation", "retrocardiac consolidation"),
            *("patchy consolidation", "airspace consolidation", "partial consolidation"),
        ),
        (
            *("at the lower lung zone", "at the upper lung zone", "at the left lower lobe"),
            *("at the right lower lobe", "at the left upper lobe", "at the right uppper lobe"),
            *("at the right lung base", "at the left lung base"),
        ),
    ),
    "Edema": combinations(
        ("", "mild", "improvement in", "presistent", "moderate", "decreased"),
        ("pulmonary edema", "trace interstitial edema", "pulmonary interstitial edema"),
    ),
    # The published phrases do not contain the word pneumonia: "round bacterial at the mid lung zone".
    "Pneumonia": combinations(
        ("round", "early", "focal", "multifocal", "small", ""),
        ("bacterial", "viral", "mycoplasma"),
        (*LUNG_ZONES, "at the left middle lobe", "at the right middle lobe", ""),
    ),
}
"""Consolidation is only in GLoRIA, Pneumonia only in MedUnifier; both are here for either class list."""

GLORIA: Prompts = {
    **PUBLISHED,
    "Pleural Effusion": combinations(EFFUSION_SEVERITIES, EFFUSION_SUBTYPES, EFFUSION_LOCATIONS),
}

GLORIA_ORIGINAL: Prompts = {
    **PUBLISHED,
    "Pleural Effusion": combinations(EFFUSION_SEVERITIES, EFFUSION_LOCATIONS, EFFUSION_SUBTYPES),
}

OURS: Prompts = {
    "Atelectasis": combinations(
        ("", "mild", "minimal"),
        (
            *("subsegmental atelectasis", "linear atelectasis", "plate-like atelectasis"),
            *("discoid atelectasis", "compressive atelectasis", "patchy atelectasis", "residual atelectasis"),
        ),
        (
            *("at the left base", "at the right base", "at both bases", "in the left lower lobe"),
            *("in the right lower lobe", "in the left upper lobe", "in the right upper lobe"),
            *("in the right middle lobe", "in the lingula", "in the mid lungs"),
        ),
    ),
    "Cardiomegaly": combinations(
        ("", "mild", "severe"),
        (
            *("cardiomegaly", "cardiac enlargement", "enlargement of the cardiac silhouette"),
            *("enlargement of the heart", "increase of the heart size"),
        ),
    ),
    "Consolidation": combinations(
        ("", "new", "increased", "dense"),
        (
            *("consolidation", "airspace consolidation", "patchy consolidation", "focal consolidation"),
            *("confluent consolidation", "consolidation with air bronchograms"),
        ),
        (
            *("in the left lower lobe", "in the right lower lobe", "in the left upper lobe"),
            *("in the right upper lobe", "in the right middle lobe", "in the lingula"),
            *("at the left base", "at the right base"),
        ),
    ),
    "Edema": combinations(
        ("", "mild", "severe"),
        (
            *("pulmonary edema", "interstitial edema", "alveolar edema", "perihilar edema"),
            *("pulmonary vascular congestion with edema", "fluid overload with pulmonary edema"),
        ),
    ),
    "Pleural Effusion": combinations(
        ("", "small", "large"),
        ("pleural effusion", "layering pleural effusion", "loculated pleural effusion"),
        (
            *("on the left", "on the right", "on both sides", "at the left base", "at the right base"),
            "blunting the costophrenic angle",
        ),
    ),
    "Pneumonia": combinations(
        ("", "patchy", "multifocal", "round", "early", "extensive"),
        ("pneumonia", "bacterial pneumonia", "viral pneumonia"),
        (
            *("in the left lower lobe", "in the right lower lobe", "in the left upper lobe"),
            *("in the right upper lobe", "in the right middle lobe", "in the lingula", "in both lungs"),
            *("at the left base", "at the right base", "at both bases", "in the mid lung zone"),
            *("in the lower lung zone", "in the upper lung zone"),
        ),
    ),
}
"""As many combinations as in the published tables."""

PROMPT_SETS: Mapping[str, Prompts] = {
    "gloria": GLORIA,
    "gloria-original": GLORIA_ORIGINAL,
    "ours": OURS,
    "observed": observed(*OURS),
}
"""Six classes, because the two class lists differ: the paper's has Pneumonia, GLoRIA's has Consolidation."""
