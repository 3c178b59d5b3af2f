"""The numbers of the paper: tables 1 to 6 of the main text and table 1 of the appendix (A1), as printed.

All in percent, except FID. A column names the result of ours that is the same measure, and what that result
must record to have been measured in the same way; a row of MedUnifier names the weights of the objectives
that a run must have been trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from medunifier_cli.evaluate.tables.demands import Demand

Values = tuple[float | None, ...]
TRAINED_ON = "mimic-cxr"
"""Data set that all models of MedUnifier's rows were pre-trained on."""


@dataclass(frozen=True)
class PaperObjectives:
    """The weights of the objectives that a row of MedUnifier was trained with; 0 for not at all."""

    itm: float
    itg: float
    tig: float
    itc: float = 1.0

    def fits(self, weights: Mapping[str, float]) -> bool:
        """Whether a run was trained with exactly these weights, and with no other objective.

        Args:
            weights: of every objective that was on, by name, as `ObjectivesConfig.weights` gives them.
        """
        own = {name: weight for name, weight in vars(self).items() if weight}
        return set(weights) == set(own) and all(math.isclose(weights[name], own[name]) for name in own)


@dataclass(frozen=True)
class Measure:
    """A column, and the results of a run that belong there."""

    name: str
    task: str
    """Result files of this task, and of its variants (`retrieval-rerank10`), are looked at."""
    dataset: str
    metric: str
    """End of the metric's name."""
    demands: tuple[Demand, ...]
    """What the result must record; anything else leaves the cell empty."""
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


WITH_TIG, WITHOUT_TIG = PaperObjectives(1.0, 1.0, 1.0), PaperObjectives(1.0, 1.0, 0.0)
IDS = (
    ("ID 1: ITC", PaperObjectives(0.0, 0.0, 0.0)),
    ("ID 2: ITC ITM", PaperObjectives(1.0, 0.0, 0.0)),
    ("ID 3: ITC ITM ITG", WITHOUT_TIG),
    ("ID 4: ITC ITM TIG", PaperObjectives(1.0, 0.0, 1.0)),
    ("ID 5: ITC ITM ITG TIG", WITH_TIG),
    ("ID 6: ITC ITM ITG 0.8 TIG", PaperObjectives(1.0, 1.0, 0.8)),
    ("ID 7: ITC ITM ITG 1.2 TIG", PaperObjectives(1.0, 1.0, 1.2)),
)
FIVE = ("Atelectasis", "Cardiomegaly", "Pneumonia", "Edema", "Pleural Effusion")
"""Classes of the paper's 5x200 sets; other sets of that name have Consolidation instead of Pneumonia."""


def _ours(without: Values, with_tig: Values) -> tuple[Row, Row]:
    return Row("MedUnifier (w/o TIG)", without, WITHOUT_TIG), Row("MedUnifier (w TIG)", with_tig, WITH_TIG)


def _measured_as(task: str, split: str) -> tuple[Demand, ...]:
    return Demand("task", (task,), "protocol"), Demand("split", (split,), "split")


def _finetuned(dataset: str, metric: str) -> tuple[Measure, ...]:
    label = {"auroc": "AUC", "accuracy": "ACC"}[metric]
    name = {"rsna": "RSNA", "siim": "SIIM", "covidx": "COVIDx"}[dataset]
    setting = (
        *_measured_as("finetune", "test"),
        Demand("head", ("two-linear",), "head"),  # the authors'; the paper does not describe it
        Demand("frozen", (False,), "frozen model"),
        Demand("train.split", ("train",), "split trained on"),
        Demand("extra", ((),), "further data sets trained on", may_lack=True),
        Demand("balanced", (False,), "classes weighted by frequency"),
        Demand("rates.model", (3e-6,), "learning rate of the model"),  # appendix 2, as the next
        Demand("rates.head", (3e-4,), "learning rate of the head"),
    )
    return tuple(
        Measure(
            f"{name} {label}, {share:.0%}", "finetune", dataset, metric,
            (*setting, Demand("fraction", (share,), "share of the training data")),
        )
        for share in (0.01, 0.1, 1.0)
    )  # fmt: skip


def _benchmark(task: str, split: str, classes: tuple[str, ...]) -> tuple[Demand, ...]:
    return (
        *_measured_as(task, split),
        Demand("classes", (classes,), "classes"),
        Demand("n", (1000,), "number of samples"),
    )


def _retrieval(direction: str, short: str) -> tuple[Measure, ...]:
    demands = _benchmark("retrieval", "5x200", FIVE)
    return tuple(
        Measure(f"{short} mAP@{k}", "retrieval", "mimic-cxr", f"{direction}, map@{k}", demands)
        for k in (1, 5, 10)
    )


def _zeroshot(name: str, dataset: str, split: str, classes: tuple[str, ...], drawn: int) -> Measure:
    ensemble = (
        Demand("prompt_set", ("gloria",), "prompts"),  # "as in Huang et al.", appendix 2
        Demand("prompts_per_class", (drawn,), "prompts per class"),  # the authors' code
        Demand("ensemble", ("max",), "score of a class over its prompts"),  # appendix 2
    )
    demands = (*_benchmark("zeroshot", split, classes), *ensemble)
    return Measure(f"{name} ACC", "zeroshot", dataset, "accuracy", demands)


def _images(kind: str, *demands: Demand) -> Measure:
    against = Demand("real.name", ("mimic-cxr/train",), "real images")
    return Measure(
        f"FID, {kind}", "synthesis", "mimic-cxr", f"FID, {kind}", (against, *demands), scale=1.0,
        lower_is_better=True,
    )  # fmt: skip


ITR = _retrieval("image to text", "image-text")
ZERO_SHOT = (
    _zeroshot("MIMIC 5x200", "mimic-cxr", "5x200", FIVE, 15),
    _zeroshot("CheXpert 5x200", "chexpert-5x200", "5x200", FIVE, 15),
    _zeroshot("RSNA", "rsna", "zeroshot", ("Pneumonia", "Normal"), 10),
)
REPORTS = tuple(
    Measure(
        name, "report", "mimic-cxr", name,
        (
            *_measured_as("report", "test"),
            Demand("limit", (0,), "number of samples it was limited to"),
            Demand("decoding.how", ("beam",), "decoding"),
            Demand("decoding.beams", (3,), "number of beams"),  # the authors' code, as the rest
            Demand("decoding.min_tokens", (0, 3), "shortest report"),
            Demand("decoding.max_tokens", (0,), "longest report"),  # 0: as long as in training
            Demand("decoding.length_penalty", (1.0,), "length penalty"),
            Demand("decoding.repetition_penalty", (1.0,), "repetition penalty"),
            Demand("decoding.no_repeat_ngram", (0,), "forbidden n-grams"),
        ),
    )
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L")
)  # fmt: skip
OWN_MODEL = Demand("fake.own_model", (True,), "images made by this model")
FID = (
    _images("validation", Demand("fake.name", ("mimic-cxr/valid",), "judged images")),
    _images(
        "reconstruction", OWN_MODEL, Demand("fake.reconstructs", ("mimic-cxr/train",), "reconstructed images")
    ),
    _images(
        "synthetic",
        OWN_MODEL,
        Demand("fake.prompted", (False,), "images sampled for prompts"),
        Demand("fake.prior", ("pixelsnail",), "kind of prior"),  # section 4.2
    ),
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
