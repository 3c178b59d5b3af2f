"""The numbers of the paper: tables 1 to 6 of the main text and table 1 of the appendix (A1), as printed.

All in percent, except FID. A column names the result of ours that is the same measure; a row of MedUnifier
names the objectives that a run must have been trained with to be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Values = tuple[float | None, ...]


@dataclass(frozen=True)
class PaperObjectives:
    """The objectives a row of MedUnifier was trained with. ITC is on in all rows."""

    itm: bool
    itg: bool
    tig: float | None
    """Weight of TIG; None for any weight above 0."""

    def fits(self, weights: Mapping[str, float]) -> bool:
        """Whether a run was trained with the same objectives, and no others.

        Args:
            weights: of every objective that was on, by name, as `ObjectivesConfig.weights` gives them.
        """
        names = {"itc"} | ({"itm"} if self.itm else set()) | ({"itg"} if self.itg else set())
        if self.tig != 0:
            names.add("tig")
        same_weight = not self.tig or math.isclose(weights.get("tig", 0.0), self.tig)
        return set(weights) == names and same_weight


@dataclass(frozen=True)
class Measure:
    """A column, and the number of a run that belongs there: task, data set, split (empty for any), end of the
    metric's name."""

    name: str
    task: str
    dataset: str
    split: str
    metric: str
    fraction: float | None = None
    """Share of the train split, for fine-tuning."""
    scale: float = 100.0
    """Factor from our unit to the paper's."""
    lower_is_better: bool = False


@dataclass(frozen=True)
class Row:
    """A method, its values by column, and which runs fill the row (None: another method's row)."""

    name: str
    values: Values
    fits: PaperObjectives | None = None


@dataclass(frozen=True)
class PaperTable:
    """One table."""

    number: str
    title: str
    measures: tuple[Measure, ...]
    rows: tuple[Row, ...]


WITH_TIG, WITHOUT_TIG = PaperObjectives(True, True, None), PaperObjectives(True, True, 0.0)
IDS = (
    ("ID 1: ITC", PaperObjectives(False, False, 0.0)),
    ("ID 2: ITC ITM", PaperObjectives(True, False, 0.0)),
    ("ID 3: ITC ITM ITG", PaperObjectives(True, True, 0.0)),
    ("ID 4: ITC ITM TIG", PaperObjectives(True, False, 1.0)),
    ("ID 5: ITC ITM ITG TIG", PaperObjectives(True, True, 1.0)),
    ("ID 6: ITC ITM ITG 0.8 TIG", PaperObjectives(True, True, 0.8)),
    ("ID 7: ITC ITM ITG 1.2 TIG", PaperObjectives(True, True, 1.2)),
)


def _ours(without: Values, with_tig: Values) -> tuple[Row, Row]:
    return Row("MedUnifier (w/o TIG)", without, WITHOUT_TIG), Row("MedUnifier (w TIG)", with_tig, WITH_TIG)


def _finetuned(dataset: str, metric: str) -> tuple[Measure, ...]:
    label = {"auroc": "AUC", "accuracy": "ACC"}[metric]
    name = {"rsna": "RSNA", "siim": "SIIM", "covidx": "COVIDx"}[dataset]
    return tuple(
        Measure(f"{name} {label}, {share:.0%}", "finetune", dataset, "test", metric, share)
        for share in (0.01, 0.1, 1.0)
    )


def _retrieval(direction: str, short: str) -> tuple[Measure, ...]:
    return tuple(
        Measure(f"{short} mAP@{k}", "retrieval", "mimic-cxr", "5x200", f"{direction}, map@{k}")
        for k in (1, 5, 10)
    )


ITR = _retrieval("image to text", "image-text")
ZERO_SHOT = (
    Measure("MIMIC 5x200 ACC", "zeroshot", "mimic-cxr", "5x200", "accuracy"),
    Measure("CheXpert 5x200 ACC", "zeroshot", "chexpert-5x200", "5x200", "accuracy"),
    Measure("RSNA ACC", "zeroshot", "rsna", "zeroshot", "accuracy"),
)
REPORTS = tuple(
    Measure(name, "report", "mimic-cxr", "test", name)
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L")
)
FID = tuple(
    Measure(f"FID, {what}", "synthesis", "mimic-cxr", "", f"FID, {what}", scale=1.0, lower_is_better=True)
    for what in ("validation", "reconstruction", "synthetic")
)

TABLES = (
    PaperTable(
        "1",
        "Fine-tuned image classification, AUROC or accuracy at 1 %, 10 % and 100 % of the training data",
        (*_finetuned("rsna", "auroc"), *_finetuned("siim", "auroc"), *_finetuned("covidx", "accuracy")),
        (
            Row("ConVIRT", (84.2, 86.9, 88.7, 84.2, 85.7, 91.5, 72.5, 82.5, 92.0)),
            Row("GLoRIA", (84.1, 86.8, 89.1, 85.1, 88.5, 92.1, 66.5, 80.5, 88.0)),
            Row("BioViL", (82.0, 85.4, 88.6, 79.8, 81.6, 90.5, None, None, None)),
            Row("LoVT", (85.1, 86.5, 89.3, 85.5, 88.5, 92.2, None, None, None)),
            Row("MGCA", (85.8, 87.7, 89.2, 86.1, 89.6, 92.0, 74.8, 84.8, 92.3)),
            Row("PRIOR", (85.7, 87.1, 89.2, 87.2, 89.1, 92.3, None, None, None)),
            *_ours(
                (86.3, 87.1, 88.1, 87.6, 88.7, 92.3, 75.3, 87.5, 92.8),
                (87.6, 88.8, 91.7, 87.9, 92.5, 94.8, 76.8, 88.3, 93.5),
            ),
        ),
    ),
    PaperTable(
        "2",
        "Cross-modal retrieval on MIMIC-CXR 5x200, mAP@K in the paper's protocol",
        (*ITR, *_retrieval("text to image", "text-image")),
        (
            Row("ConVIRT", (46.5, 53.9, 53.8, 20.0, 45.4, 35.5)),
            Row("GLoRIA", (46.7, 56.4, 55.0, 51.8, 59.5, 58.9)),
            Row("BioViL", (47.3, 57.7, 55.6, 54.6, 64.3, 62.8)),
            Row("MedCLIP", (47.6, 58.0, 55.9, 56.3, 69.9, 66.7)),
            Row("MGCA", (47.1, 57.4, 55.4, 53.1, 61.9, 61.1)),
            Row("REFERS", (52.4, 59.9, 58.6, 60.6, 71.9, 69.0)),
            Row("CXR-CLIP", (51.8, 61.2, 58.5, 60.2, 69.2, 64.6)),
            *_ours((57.4, 65.4, 60.3, 59.6, 68.3, 63.4), (60.7, 66.6, 61.7, 63.1, 70.8, 64.4)),
        ),
    ),
    PaperTable(
        "3",
        "Zero-shot image classification, accuracy",
        ZERO_SHOT,
        (
            Row("ConVIRT", (43.8, 35.2, 77.4)),
            Row("GLoRIA", (47.5, 45.0, 68.3)),
            Row("BioViL", (48.5, 42.2, 77.1)),
            Row("MedCLIP", (47.1, 41.1, 81.8)),
            Row("MGCA", (48.0, 40.9, 76.2)),
            Row("REFERS", (49.5, 41.8, 78.0)),
            Row("CXR-CLIP", (49.7, 35.9, 76.9)),
            *_ours((44.8, 40.8, 85.0), (50.4, 43.5, 82.0)),
        ),
    ),
    PaperTable(
        "4",
        "Reports of the MIMIC-CXR test set (ours: one reference each; the authors' code takes each sentence "
        "as a reference)",
        REPORTS,
        (
            Row("DCL", (None, None, None, 10.9, 15.0, 28.4)),
            Row("MOTOR", (None, 21.3, None, 15.6, 19.3, 31.4)),
            Row("ViLT", (None, 21.3, None, 9.2, None, 29.6)),
            Row("R2Gen", (35.3, 21.8, 14.5, 10.3, 14.2, 27.7)),
            Row("PTUnifier", (None, None, None, 10.7, None, None)),
            *_ours((40.1, 24.4, 16.0, 11.3, 18.8, 29.6), (41.5, 26.3, 18.1, 12.9, 22.7, 34.0)),
        ),
    ),
    PaperTable(
        "5",
        "FID of images against the MIMIC-CXR training images, lower is better",
        FID,
        (
            Row("UniXGen", (None, None, 78.2)),
            Row("RoentGen", (None, None, 42.4)),
            Row("LLM-CXR", (None, None, 22.8)),
            Row("MedUnifier (w TIG)", (17.2, 27.2, 42.6), WITH_TIG),
        ),
    ),
    PaperTable(
        "6",
        "Ablation of the objectives, image-text retrieval on MIMIC-CXR 5x200",
        ITR,
        tuple(
            Row(name, values, fits)
            for (name, fits), values in zip(
                IDS[:5],
                (
                    (53.7, 63.8, 59.9),
                    (55.2, 64.1, 60.3),
                    (57.4, 65.4, 60.3),
                    (58.5, 65.2, 60.8),
                    (60.7, 66.6, 61.7),
                ),
                strict=True,
            )
        ),
    ),
    PaperTable(
        "A1",
        "Ablation of the objectives and of the weight of TIG, zero-shot and fine-tuned classification",
        (
            ZERO_SHOT[0],
            *(_finetuned(*which)[-1] for which in (("rsna", "auroc"), ("siim", "auroc"))),
            _finetuned("covidx", "accuracy")[-1],
        ),
        tuple(
            Row(name, values, fits)
            for (name, fits), values in zip(
                IDS,
                (
                    (41.4, 87.0, 89.4, 90.8),
                    (44.3, 87.1, 89.8, 91.5),
                    (44.8, 88.1, 92.3, 92.8),
                    (46.2, 89.1, 92.6, 91.3),
                    (50.4, 91.7, 94.8, 93.5),
                    (49.7, 87.5, 92.0, 92.5),
                    (49.1, 90.8, 93.6, 92.0),
                ),
                strict=True,
            )
        ),
    ),
)
