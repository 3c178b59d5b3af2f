"""Compare two files of reports on the same images: `mu score A.jsonl B.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.render import for_programs, number, render
from medunifier_cli.evaluate.reports.scoring import NAMES, findings_of, groups_of, plugin_of, read_rows
from medunifier_cli.scores import bootstrap
from medunifier_cli.scores.bootstrap import resample_counts
from medunifier_cli.scores.paired import DRAWS, Difference, difference, mean_differences
from medunifier_cli.scores.text.bleu import ORDERS, bleu_counts
from medunifier_cli.scores.text.cider import cider
from medunifier_cli.scores.text.meteor import Corpus, MeteorUnavailableError, meteor
from medunifier_cli.scores.text.oddities import variety
from medunifier_cli.scores.text.rouge import rouge_l
from medunifier_cli.scores.text.words import Words, prepare, sentences

PROTOCOL = (
    "{n:,} images that both files have, paired by {paired}; reference: the whole report (single), words in "
    "lower case without punctuation; B - A: 95 % percentiles and two-sided p of the paired bootstrap over "
    "{units}, {draws:,} resamples ({meteor:,} for METEOR), seed {seed}; CIDEr keeps its word weights; p "
    "values are not corrected for the number of metrics"
)
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Pairs:
    """N pairs of reports as they are scored, and how both are resampled."""

    words: Sequence[list[Words]]
    """Of A and of B: N hypotheses, cut into words."""
    truth: list[list[Words]]
    """N references, cut into words."""
    groups: Any
    """[N] patients, resampled as a whole; None resamples images."""
    draws: int
    seed: int

    def counts(self, most: int = 0) -> Iterator[NDArray[np.float64]]:
        """[d, N] arrays of `draws` rows in all, or of `most` if that is fewer; see `resample_counts`."""
        draws = min(self.draws, most) if most else self.draws
        return resample_counts(len(self.truth), self.groups, draws, self.seed)


@dataclass
class Comparison:
    """What two files of reports score, and how far they are apart."""

    n: int
    """Number of images compared."""
    protocol: str
    metrics: dict[str, tuple[float, float, Difference]] = field(default_factory=dict)
    """Name -> value of A, value of B, B - A."""
    notes: list[str] = field(default_factory=list)


def compare_files(a: Path, b: Path, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Text scores of two files of reports on the images that both have.

    Findings are read by the data set plugin that the rows name as `dataset`, if it reads any.

    Raises:
        DataError: a file that cannot be read, no image in both, or other references for the same images.
    """
    of_a, of_b, paired, notes = _paired(read_rows(a), read_rows(b), a, b)
    references = [row["reference"] for row in of_a]
    hypotheses = [[row["hypothesis"] for row in rows] for rows in (of_a, of_b)]
    groups = groups_of(of_a)
    protocol = PROTOCOL.format(
        n=len(of_a), paired=paired, units="images" if groups is None else "patients", draws=draws,
        meteor=min(draws, bootstrap.DRAWS), seed=seed,
    )  # fmt: skip
    out = Comparison(len(of_a), protocol, notes=notes)
    for name, texts in zip("AB", hypotheses, strict=True):
        out.notes += [f"{name}: {note}" for note in variety(texts, references)[1]]
    cut = [prepare(texts, references) for texts in hypotheses]
    pairs = Pairs([hypothesis for hypothesis, _ in cut], cut[0][1], groups, draws, seed)
    _add_bleu(out, pairs)
    _add_meteor(out, pairs)
    means = [
        {NAMES["rouge_l"]: rouge_l(words, pairs.truth), NAMES["cider"]: cider(words, pairs.truth)}
        for words in pairs.words
    ]
    for name, delta in mean_differences(means[0], means[1], groups, draws, seed).items():
        out.metrics[name] = (float(means[0][name].mean()), float(means[1][name].mean()), delta)
    _add_findings(out, of_a, hypotheses, references, pairs)
    return out


def render_comparison(comparison: Comparison, form: str) -> str:
    """A table in a format."""
    if for_programs(form):
        cells: list[list[object]] = [["metric", "A", "B", "B - A", "low", "high", "p"]]
        for name, (a, b, delta) in comparison.metrics.items():
            cells.append([name, a, b, delta.value, delta.interval.low, delta.interval.high, delta.p])
        return render(cells, form)
    rows = [["metric", "A", "B", "B - A", "95 % interval", "p"]]
    for name, (a, b, delta) in comparison.metrics.items():
        span = f"{delta.interval.low:+.3f} to {delta.interval.high:+.3f}"
        rows.append([name, number(a), number(b), f"{delta.value:+.3f}", span, number(delta.p, decimals=4)])
    return render(rows, form)


def _paired(a: Rows, b: Rows, path_a: Path, path_b: Path) -> tuple[Rows, Rows, str, list[str]]:
    """The rows of images that both files have, in the order of A; by what they were paired; and notes."""
    notes = []
    if all(row.get("key") not in (None, "") for row in (*a, *b)):
        paired = "key"
        # another program's file often has no `dataset`
        several = all(row.get("dataset") for row in (*a, *b))
        by_key = [_by_key(rows, path, several) for rows, path in ((a, path_a), (b, path_b))]
        common = [key for key in by_key[0] if key in by_key[1]]
        if not common:
            raise DataError(f"{path_a} and {path_b}: no `key` is in both; they report on other images")
        for name, rows, path in (("A", a, path_a), ("B", b, path_b)):
            if len(common) < len(rows):
                notes.append(
                    f"{name}: {len(rows) - len(common):,} of {len(rows):,} images of {path} are not in the "
                    "other file; left out"
                )
        a, b = ([rows[key] for key in common] for rows in by_key)
    else:
        paired = "line"
        if len(a) != len(b):
            raise DataError(
                f"{path_a} and {path_b}: {len(a):,} and {len(b):,} reports without a `key` in each line; add "
                "`key`, the name of the image, to pair them"
            )
    pairs = list(zip(a, b, strict=True))
    other = [i for i, (x, y) in enumerate(pairs) if sentences(x["reference"]) != sentences(y["reference"])]
    if other:
        raise DataError(
            f"{path_a} and {path_b}: different references for {len(other):,} of {len(pairs):,} images, first "
            f"in pair {other[0] + 1:,} in the order of A; compare reports against the same references"
        )
    kept = [pair for pair in pairs if sentences(pair[0]["reference"])]
    if not kept:
        raise DataError(f"{path_a}: no report to score: none has a reference with words")
    if len(kept) < len(pairs):
        notes.append(f"{len(pairs) - len(kept):,} of {len(pairs):,} references have no words; left out")
    return [x for x, _ in kept], [y for _, y in kept], paired, notes


def _by_key(rows: Rows, path: Path, several: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows by key, and by data set where all have one: keys of two data sets may be the same."""
    out = {(str(row["dataset"]) if several else "", str(row["key"])): row for row in rows}
    if len(out) < len(rows):
        raise DataError(
            f"{path}: {len(rows) - len(out):,} of {len(rows):,} lines repeat the `key` of another"
        )
    return out


def _add_bleu(out: Comparison, pairs: Pairs) -> None:
    counts = [bleu_counts(words, pairs.truth) for words in pairs.words]
    resampled = [[side.corpus(counts_DN) for side in counts] for counts_DN in pairs.counts()]
    bleu_D4 = [np.concatenate([chunk[side] for chunk in resampled]) for side in (0, 1)]
    whole = [side.corpus() for side in counts]
    for n in range(ORDERS):
        a, b = float(whole[0][n]), float(whole[1][n])
        delta = difference(a, b, bleu_D4[0][:, n], bleu_D4[1][:, n])
        out.metrics[NAMES[f"bleu_{n + 1}"]] = (a, b, delta)


def _add_meteor(out: Comparison, pairs: Pairs) -> None:
    counts_DN = np.concatenate(list(pairs.counts(bootstrap.DRAWS)))
    try:
        a, b = meteor([Corpus(words, pairs.truth, counts_DN) for words in pairs.words])
    except MeteorUnavailableError as error:
        out.notes.append(f"METEOR: left out. {error}")
        return
    delta = difference(a.corpus, b.corpus, a.resampled, b.resampled)
    out.metrics[NAMES["meteor"]] = (a.corpus, b.corpus, delta)


def _add_findings(
    out: Comparison, rows: Rows, hypotheses: Sequence[list[str]], references: list[str], pairs: Pairs
) -> None:
    """Micro-F1 of findings, from counts summed over each resample."""
    try:
        plugin = plugin_of(rows)
    except MuError as error:
        out.notes.append(f"findings: left out. {error}")
        return
    if plugin is None or not plugin.classes or plugin.findings_in(references[0]) is None:
        return
    truth_NC = findings_of(plugin, references)
    both_N2, size_N2 = np.empty((len(rows), 2)), np.empty((len(rows), 2))
    for side, texts in enumerate(hypotheses):
        asserted_NC = findings_of(plugin, texts)
        both_N2[:, side] = 2 * (truth_NC * asserted_NC).sum(axis=1)
        size_N2[:, side] = (truth_NC + asserted_NC).sum(axis=1)
    with np.errstate(invalid="ignore"):
        f1_D2 = np.concatenate([counts @ both_N2 / (counts @ size_N2) for counts in pairs.counts()])
    f1_D2 = f1_D2[np.isfinite(f1_D2).all(axis=1)]  # without resamples on which a side has no finding at all
    a, b = (both_N2.sum(axis=0) / np.maximum(size_N2.sum(axis=0), 1)).tolist()
    if len(f1_D2):
        out.metrics["finding micro-F1"] = (a, b, difference(a, b, f1_D2[:, 0], f1_D2[:, 1]))
