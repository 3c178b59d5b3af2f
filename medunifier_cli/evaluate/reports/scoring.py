"""Score generated reports, and as baseline one constant report that is given to every image.

N reports, C classes of findings, D resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.texts.report import readable
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.results import Metric
from medunifier_cli.parsing import checked, read_json_lines
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.scores.bootstrap import Interval, percentiles, resample_counts
from medunifier_cli.scores.classification import ClassScores, finding_scores
from medunifier_cli.scores.text.clinical import CLINICAL, clinical_scores
from medunifier_cli.scores.text.meteor import Corpus, MeteorScores, MeteorUnavailableError, meteor
from medunifier_cli.scores.text.oddities import variety
from medunifier_cli.scores.text.report import report_scores
from medunifier_cli.scores.text.rouge import rouge_l
from medunifier_cli.scores.text.words import PROTOCOLS, Protocol, prepare, sentences

if TYPE_CHECKING:  # files of reports are scored without torch
    from medunifier_cli.data.loader import SplitSource
    from medunifier_cli.data.texts.tokenizer import TextTokenizer

NAMES = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4", "meteor": "METEOR",
    "rouge_l": "ROUGE-L", "cider": "CIDEr",
}  # fmt: skip
SUFFIX: dict[Protocol, str] = {"single": "", "sentences": ", each sentence a reference"}
DISTINCT = "distinct reports"
"""Metric: how many different reports were generated; 1 is one text for every image."""
HEADLINE = ("BLEU-4", "ROUGE-L", DISTINCT, "finding micro-F1")
CANDIDATES, COMPARED = 200, 200
"""Number of training reports the constant one is chosen from, and of those it is compared with."""


LONGEST = 50_000
"""Characters of a report that is scored; the longest of MIMIC-CXR have some 6,000."""


class ReportTexts(TypedDict):
    """What every line of a file of reports has."""

    reference: str
    hypothesis: str


class ReportRow(ReportTexts, total=False):
    """What else is read of a line, if it is there."""

    key: str | int | float | None
    dataset: str | int | float | None
    subject: str | int | float | None


@dataclass
class Scored:
    """All scores of a file of reports."""

    metrics: list[Metric] = field(default_factory=list)
    per_finding: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Class -> `precision`, `recall`, `f1` and `positives`; empty if no plugin reads reports."""
    notes: list[str] = field(default_factory=list)
    """What is missing or unusual, with the reason, one line each."""
    n: int = 0
    per_report: list[dict[str, Any]] = field(default_factory=list)
    """One row for each scored report: whose it is, and its scores under the first protocol; no text."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file of reports: one JSON object per line with the texts `reference` and `hypothesis`.

    Raises:
        DataError: the file cannot be read, holds no report, or has a line of another form.
    """
    advice = "a line is a JSON object with the texts `reference` and `hypothesis`, as `mu report` writes it"
    rows = read_json_lines(path, dict[str, Any], DataError, advice)
    for number, row in enumerate(rows, 1):
        where = f"{path}, report {number:,}"
        checked(row, ReportRow, where, DataError, advice)
        if max(len(row["reference"]), len(row["hypothesis"])) > LONGEST:
            # the time of ROUGE-L and of the counts of n-grams grows faster than the text
            raise DataError(f"{where}: a text of more than {LONGEST:,} characters is no report; take it out")
    if not rows:
        raise DataError(f"{path}: no report to score; generate some with `mu report` first")
    return rows


def constant_report(train: SplitSource, tokenizer: TextTokenizer) -> str:
    """The most typical training report, cut to the model's length: the best report that needs no image.

    The most frequent report and up to `CANDIDATES` random ones (seed 0) are compared, by ROUGE-L, with
    `COMPARED` others.
    """
    from medunifier_cli.evaluate.reports.writer import whole_text

    rng = np.random.default_rng(0)
    _, first, counts = np.unique(train.digests, return_index=True, return_counts=True)
    sampled = rng.permutation(len(train))[: CANDIDATES + COMPARED]
    candidates = [int(first[counts.argmax()]), *sampled[:CANDIDATES].tolist()]
    others = [words for i in sampled[-COMPARED:] if (words := _words(whole_text(train, int(i))))]
    best, best_score = "", -1.0
    for i in dict.fromkeys(candidates):
        text = whole_text(train, i)
        text = tokenizer.decode(tokenizer.encode(text, train.text_recipe.max_tokens))
        score = float(rouge_l([_words(text)] * len(others), [[words] for words in others]).mean())
        if score > best_score:
            best, best_score = text, score
    return readable(best)


def score_rows(
    rows: Sequence[dict[str, Any]], plugin: DatasetPlugin | None, constant: str = "", clinical: bool = False
) -> Scored:
    """All scores of generated reports.

    Args:
        rows: as `read_rows` gives them; `subject` names the patient, whom the bootstrap resamples as a whole.
        plugin: reads findings out of reports, if it can.
        constant: report of the baseline; empty for no baseline.
        clinical: add CheXbert F1, RadGraph F1, RadCliQ and RaTEScore.

    Raises:
        DataError: no row has a reference with words.
    """
    numbers = [i for i, row in enumerate(rows) if sentences(row["reference"])]
    with_words = [rows[i] for i in numbers]
    if not with_words:
        raise DataError("no report to score: none has a reference with words")
    hypotheses = [row["hypothesis"] for row in with_words]
    references = [row["reference"] for row in with_words]
    groups = groups_of(with_words)
    out = Scored(n=len(with_words))
    names = ("key", "dataset", "subject")
    out.per_report = [
        {"report": i, **{name: rows[i][name] for name in names if name in rows[i]}} for i in numbers
    ]
    if len(with_words) < len(rows):
        out.notes.append(
            f"{len(rows) - len(with_words):,} of {len(rows):,} references have no words; left out"
        )
    of_meteor = _meteor(out, hypotheses, references, constant, groups)
    _add_text_scores(out, "single", hypotheses, references, constant, groups, of_meteor)
    different, oddities = variety(hypotheses, references)
    out.metrics.append(Metric(DISTINCT, float(different), 1.0 if constant else None))
    out.notes += oddities
    _add_findings(out, plugin, hypotheses, references, constant, groups)
    if clinical:
        _add_clinical(out, hypotheses, references, constant, groups)
    for protocol in PROTOCOLS[1:]:
        _add_text_scores(out, protocol, hypotheses, references, constant, groups, of_meteor)
    out.notes = list(dict.fromkeys(out.notes))
    return out


def groups_of(rows: Sequence[dict[str, Any]]) -> NDArray[np.str_] | None:
    """The patient of each report, whom the bootstrap resamples as a whole; None if rows do not name them."""
    subjects = np.array(["" if row.get("subject") is None else str(row["subject"]) for row in rows])
    return subjects if len(set(subjects.tolist())) > 1 and all(subjects) else None


def plugin_of(rows: Sequence[dict[str, Any]]) -> DatasetPlugin | None:
    """The data set plugin that all rows name as `dataset`; None if they name none, or several.

    Raises:
        MuError: no such plugin.
    """
    names = {str(row.get("dataset") or "") for row in rows}
    return prepared_dataset(names.pop()) if len(names) == 1 and names != {""} else None


def _add_text_scores(
    out: Scored, protocol: Protocol, hypotheses: list[str], references: list[str], constant: str, groups: Any,
    of_meteor: dict[Protocol, list[MeteorScores]],
) -> None:  # fmt: skip
    scored = report_scores(hypotheses, references, protocol, groups)
    values: dict[str, float | None] = {**scored.scores}
    spans = dict(scored.intervals)
    baseline: dict[str, float | None] = {}
    if constant:
        baseline |= report_scores([constant] * len(references), references, protocol, draws=0).scores
    for meteor_scores, column in zip(of_meteor[protocol], (values, baseline), strict=False):
        column["meteor"] = meteor_scores.corpus
    if of_meteor[protocol]:
        spans["meteor"] = percentiles(of_meteor[protocol][0].resampled)
    out.metrics += [
        Metric.of(NAMES[name] + SUFFIX[protocol], values.get(name), spans.get(name), baseline.get(name))
        for name in NAMES
    ]
    out.notes += scored.notes
    if protocol == PROTOCOLS[0]:
        columns = dict(scored.per_report)
        if of_meteor[protocol]:
            columns["meteor"] = of_meteor[protocol][0].per_report
        _add_columns(out, {name: columns[name] for name in NAMES if name in columns})


def _meteor(
    out: Scored, hypotheses: list[str], references: list[str], constant: str, groups: Any
) -> dict[Protocol, list[MeteorScores]]:
    """METEOR of the reports and of the constant one under each protocol, by one start of its program; empty
    without it."""
    counts_DN = np.concatenate(list(resample_counts(len(references), groups)))
    corpora = []
    for protocol in PROTOCOLS:
        corpora.append(Corpus(*prepare(hypotheses, references, protocol), counts_DN))
        if constant:
            corpora.append(Corpus(*prepare([constant] * len(references), references, protocol)))
    try:
        scores = meteor(corpora)
    except MeteorUnavailableError as error:
        out.notes.append(f"METEOR: left empty. {error}")
        return {protocol: [] for protocol in PROTOCOLS}
    step = len(scores) // len(PROTOCOLS)
    return {protocol: scores[i * step : (i + 1) * step] for i, protocol in enumerate(PROTOCOLS)}


def _add_findings(
    out: Scored,
    plugin: DatasetPlugin | None,
    hypotheses: list[str],
    references: list[str],
    constant: str,
    groups: Any,
) -> None:
    if plugin is None or not plugin.classes or plugin.findings_in(references[0]) is None:
        return
    truth, asserted = findings_of(plugin, references), findings_of(plugin, hypotheses)
    scores = finding_scores(truth, asserted, plugin.classes)
    out.per_finding = scores.per_class
    out.notes += scores.notes
    always = np.repeat(findings_of(plugin, [constant]), len(references), axis=0)
    baseline = finding_scores(truth, always, plugin.classes) if constant else ClassScores({}, {})
    values = {
        f"finding {label}": (scores.scores.get(key), baseline.scores.get(key))
        for label, key in (("micro-F1", "micro_f1"), ("macro-F1", "macro_f1"))
    }
    for name in plugin.classes:
        values[f"F1, {name}"] = (scores.per_class[name]["f1"], baseline.per_class.get(name, {}).get("f1"))
    spans = _finding_intervals(truth, asserted, plugin.classes, groups)
    out.metrics += [
        Metric.of(name, value, spans.get(name), constant_value)
        for name, (value, constant_value) in values.items()
    ]


def _finding_intervals(
    truth_NC: NDArray[np.float64], asserted_NC: NDArray[np.float64], classes: Sequence[str], groups: Any
) -> dict[str, Interval]:
    """Intervals of F1, from counts summed over each resample; resamples without any finding are left out."""
    both_NC, size_NC = 2 * truth_NC * asserted_NC, truth_NC + asserted_NC
    counts_DN = np.concatenate(list(resample_counts(len(truth_NC), groups)))
    both_DC, size_DC = counts_DN @ both_NC, counts_DN @ size_NC
    with np.errstate(invalid="ignore"):
        f1_DC = both_DC / size_DC
        micro_D = both_DC.sum(axis=1) / size_DC.sum(axis=1)
        macro_D = np.nansum(f1_DC, axis=1) / (size_DC > 0).sum(axis=1)
    columns = {"finding micro-F1": micro_D, "finding macro-F1": macro_D}
    columns |= {f"F1, {name}": f1_DC[:, c] for c, name in enumerate(classes)}
    finite = {name: values[np.isfinite(values)] for name, values in columns.items()}
    return {name: percentiles(v) for name, v in finite.items() if 2 * len(v) >= len(counts_DN)}


def _add_clinical(
    out: Scored, hypotheses: list[str], references: list[str], constant: str, groups: Any
) -> None:
    found = clinical_scores(hypotheses, references, groups)
    baseline: dict[str, float] = {}
    if constant and found.scores:
        baseline = clinical_scores([constant] * len(references), references, draws=0).scores
    out.metrics += [
        Metric.of(name, found.scores.get(name), found.intervals.get(name), baseline.get(name))
        for name in CLINICAL
    ]
    _add_columns(out, found.per_report)
    out.notes += found.notes


def _add_columns(out: Scored, columns: Mapping[str, NDArray[np.float64]]) -> None:
    """Scores of each report, [N] by name, as further keys of its row."""
    for i, row in enumerate(out.per_report):
        row |= {name: float(values[i]) for name, values in columns.items()}


def findings_of(plugin: DatasetPlugin, texts: Sequence[str]) -> NDArray[np.float64]:
    """[N, C]: 1 where a report asserts the class."""
    rows = [plugin.findings_in(text) or frozenset() for text in texts]
    return np.array([[float(name in row) for name in plugin.classes] for row in rows])


def _words(text: str) -> list[str]:
    return [word for part in sentences(text) for word in (*part, ".")]
