"""Zero-shot prompts for the classes of the 5x200 sets: combinations of a severity, a subtype and a location.

MIMIC 5x200 and CheXpert 5x200 share their classes and these prompts. The scheme and the number of prompts per
class are GLoRIA's (210, 15, 192, 18, 54) and, for pneumonia, the published MedUnifier code's (234); the words
are our own. Order within a prompt: severity, subtype, location.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .prompts import combinations, observed

__all__ = ["PROMPT_SETS"]


ATELECTASIS = combinations(
    ("", "mild", "minimal"),
    (
        *("subsegmental atelectasis", "linear atelectasis", "plate-like atelectasis", "discoid atelectasis"),
        *("compressive atelectasis", "patchy atelectasis", "residual atelectasis"),
    ),
    (
        *("at the left base", "at the right base", "at both bases", "in the left lower lobe"),
        *("in the right lower lobe", "in the left upper lobe", "in the right upper lobe"),
        *("in the right middle lobe", "in the lingula", "in the mid lungs"),
    ),
)

CARDIOMEGALY = combinations(
    ("", "mild", "severe"),
    (
        *("cardiomegaly", "cardiac enlargement", "enlargement of the cardiac silhouette"),
        *("enlargement of the heart", "increase of the heart size"),
    ),
)

CONSOLIDATION = combinations(
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
)

EDEMA = combinations(
    ("", "mild", "severe"),
    (
        *("pulmonary edema", "interstitial edema", "alveolar edema", "perihilar edema"),
        *("pulmonary vascular congestion with edema", "fluid overload with pulmonary edema"),
    ),
)

PLEURAL_EFFUSION = combinations(
    ("", "small", "large"),
    ("pleural effusion", "layering pleural effusion", "loculated pleural effusion"),
    (
        *("on the left", "on the right", "on both sides", "at the left base", "at the right base"),
        "blunting the costophrenic angle",
    ),
)

PNEUMONIA = combinations(
    ("", "patchy", "multifocal", "round", "early", "extensive"),
    ("pneumonia", "bacterial pneumonia", "viral pneumonia"),
    (
        *("in the left lower lobe", "in the right lower lobe", "in the left upper lobe"),
        *("in the right upper lobe", "in the right middle lobe", "in the lingula", "in both lungs"),
        *("at the left base", "at the right base", "at both bases", "in the mid lung zone"),
        *("in the lower lung zone", "in the upper lung zone"),
    ),
)

PROMPT_SETS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "combinations": {
        "Atelectasis": ATELECTASIS,
        "Cardiomegaly": CARDIOMEGALY,
        "Consolidation": CONSOLIDATION,
        "Edema": EDEMA,
        "Pleural Effusion": PLEURAL_EFFUSION,
        "Pneumonia": PNEUMONIA,
    },
    "observed": observed(
        *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion", "Pneumonia"),
    ),
}
"""Six classes, because the two class lists differ: the paper's has Pneumonia, GLoRIA's has Consolidation."""
