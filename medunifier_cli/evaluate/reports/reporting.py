"""Generate the reports of a split, save them and score them (paper, table 4); score files of reports."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.render import for_programs, number, render
from medunifier_cli.evaluate.reports.scoring import (
    LONGEST,
    Scored,
    constant_report,
    plugin_of,
    read_rows,
    score_rows,
)
from medunifier_cli.evaluate.results import Result, span
from medunifier_cli.files import write_text
from medunifier_cli.parsing import decoded, read_bytes
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.roots import shards_folder

if TYPE_CHECKING:  # what writes reports imports torch, what scores a file of them does not
    from medunifier_cli.checkpoint.pretrained import PretrainedRun
    from medunifier_cli.evaluate.reports.writer import Decoding

TASK = "report"
CONSTANT = ".constant.txt"
"""Ending of the file, next to the reports, that holds the constant report of the baseline."""
SCORES = ".scores.jsonl"
"""Ending of the file, next to the reports, that holds the scores of each report."""
PROTOCOL = (
    "{decoding}; reference: the radiologist's whole report (single) or, where named so, each sentence of it; "
    "words in lower case without punctuation; CIDEr in [0, 10], all others in [0, 1]; findings: read out of "
    "both reports; floor: the most typical training report said of every image; intervals: 95 %, bootstrap "
    "over patients"
)


@dataclass(frozen=True)
class ReportedSplit:
    """Scores and file of a split's reports."""

    scored: Scored
    reports: Path
    """The JSON lines."""


def report_split(
    trained: PretrainedRun, decoding: Decoding, dataset: str = "", split: str = "", limit: int = 0,
    out: Path | None = None, clinical: bool = False,
) -> ReportedSplit:  # fmt: skip
    """Write `results/report-<dataset>-<split>.json`, the reports and the scores of each.

    These are `results/reports-<dataset>-<split>.jsonl` and `results/reports-<dataset>-<split>.scores.jsonl`.

    Args:
        dataset, split: see `open_benchmark`.
        limit: use only the first `limit` samples; 0 for all.
        out: another folder than the run's results.
        clinical: add CheXbert F1, RadGraph F1, RadCliQ and RaTEScore.

    Raises:
        CheckpointError: the run was trained without ITG.
        DataError: no such split, or nothing to score in it.
    """
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.reports.writer import Writer, save_rows, write_split

    benchmark = open_benchmark(trained, dataset, split)
    target = _with_results_in(trained, out)
    if not target.run.writable:  # said now, and not when hours of reports are lost
        raise DataError(f"{target.run.results}: this user may not write there; give --out FOLDER")
    writer = Writer(trained, decoding, trained_sections(trained))
    rows, cut = write_split(writer, benchmark.source, benchmark.plugin.name, limit)
    path = target.run.results / f"reports-{benchmark.plugin.name}-{benchmark.split}.jsonl"
    save_rows(rows, path, benchmark.shards)
    constant, missing = _constant(trained)
    if constant:
        write_text(path.with_name(path.stem + CONSTANT), constant + "\n", texts_of=benchmark.shards)
    scored = score_rows(rows, benchmark.plugin, constant, clinical)
    if cut:
        scored.notes.append(f"{cut:,} of {len(rows):,} reports were cut at the longest length")
    scored.notes += [missing] if missing else []
    save_scores(scored, path)
    Result(
        TASK, benchmark.plugin.name, benchmark.split, benchmark.shards, n=scored.n, metrics=scored.metrics,
        seed=decoding.seed,
        protocol=PROTOCOL.format(decoding=decoding.describe()),
        more={
            "limit": limit, "decoding": dataclasses.asdict(decoding), "per_finding": scored.per_finding,
            "notes": scored.notes, "cut_at_longest": cut,
        },
    ).write(target)  # fmt: skip
    return ReportedSplit(scored, path)


def score_file(path: Path, clinical: bool = False) -> Scored:
    """Score a file of reports, from `mu report` or another program; writes the scores of each next to it.

    The baseline is the constant report in the file next to the reports, if there is one. Findings are read by
    the data set plugin that the rows name as `dataset`.

    Raises:
        DataError: see `read_rows` and `score_rows`.
    """
    rows = read_rows(path)
    notes, plugin = [], None
    try:
        plugin = plugin_of(rows)
    except MuError as error:
        notes.append(f"findings: left out. {error}")
    constant_file = path.with_name(path.stem + CONSTANT)
    constant = _read_constant(constant_file) if constant_file.is_file() else ""
    if not constant:
        notes.append(f"baseline: left out, there is no {constant_file.name} next to the reports")
    scored = score_rows(rows, plugin, constant, clinical)
    scored.notes += notes
    try:
        scored.notes.append(f"scores of each report: {save_scores(scored, path)}")
    except MuError as error:  # reports are often in a folder that is only to be read
        scored.notes.append(f"scores of each report: not written. {error}")
    return scored


def _read_constant(path: Path) -> str:
    # one report, and not whatever large file has this name
    return decoded(read_bytes(path, limit=4 * LONGEST), str(path)).strip()


def save_scores(scored: Scored, reports: Path) -> Path:
    """Write the scores of each report next to the file of reports, as JSON lines; returns the path.

    A line has `report` (its position in the file, from 0), what identifies it (`key`, `dataset`, `subject`),
    and `bleu_1` to `bleu_4`, `rouge_l`, `cider` and `meteor` where it could be computed. A corpus score is
    the mean of these for ROUGE-L and CIDEr alone.

    Raises:
        DataError: it cannot be written.
    """
    path = reports.with_name(reports.stem + SCORES)
    write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in scored.per_report))
    return path


def render_scores(scored: Scored, form: str) -> str:
    """All scores, then precision, recall and F1 of each finding: two tables, for programs a single one."""
    if for_programs(form):
        rows: list[list[object]] = [["metric", "value", "low", "high", "baseline"]]
        rows += [[m.name, m.value, m.low, m.high, m.baseline] for m in scored.metrics]
        for name, found in scored.per_finding.items():
            rows += [[f"{key}, {name}", found[key], None, None, None] for key in ("precision", "recall")]
        return render(rows, form)
    metrics = [["metric", "value", "95 % interval", "baseline"]]
    metrics += [[m.name, number(m.value, "-"), span(m), number(m.baseline)] for m in scored.metrics]
    keys = ("precision", "recall", "f1", "positives")
    findings = [["finding", *keys]]
    for name, row in scored.per_finding.items():
        positives = row["positives"] or 0
        findings.append([name, *(number(row[key], "-") for key in keys[:3]), f"{positives:.0f}"])
    tables = [metrics, *([findings] if scored.per_finding else [])]
    return "\n\n".join(render(rows, form) for rows in tables)


def trained_sections(trained: PretrainedRun) -> tuple[str, ...]:
    """The text sections that the section marks of a run name; none where it was trained without marks."""
    if not trained.recipe.text.section_marks:
        return ()  # and no data set is needed to write its reports
    data = trained.recipe.data
    return tuple(data.sections or prepared_dataset(data.dataset, data.shards).text_sections)


def _constant(trained: PretrainedRun) -> tuple[str, str]:
    """The constant report, chosen from the run's training split; or an empty text, and the reason."""
    from medunifier_cli.data.loader import SplitSource

    data = trained.recipe.data
    folder = Path(data.shards) if data.shards else shards_folder(data.dataset)
    try:
        train = SplitSource(
            Shards.open(folder, data.train), trained.tokenizer, data, trained.recipe.text,
            prepared_dataset(data.dataset, data.shards),
        )  # fmt: skip
    except DataError as error:
        return "", f"baseline: left out, the run's training texts are not here ({error})"
    return constant_report(train, trained.tokenizer), ""


def _with_results_in(trained: PretrainedRun, out: Path | None) -> PretrainedRun:
    """The same run, but with another folder for its results if one is given."""
    if out is None:
        return trained
    run = copy.copy(trained.run)
    run.results, run.elsewhere = out, True
    return dataclasses.replace(trained, run=run)
