"""METEOR 1.5 (Denkowski and Lavie 2014): the authors' Java program, as pycocoevalcap (extra `nlg`) ships it.

There is no METEOR without it: other programs of that name give other numbers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError, MuError

Floats = NDArray[np.float64]

CHUNKS = 20
"""Column of the program's 23 counts: runs of matches in a row. After it come the words matched in both
texts, whose lengths are the first two columns."""


class Corpus(NamedTuple):
    """What is scored together."""

    hypotheses: Sequence[Sequence[str]]
    """Words of N reports."""
    references: Sequence[Sequence[Sequence[str]]]
    """Words of one or more references of each."""
    counts_DN: Floats | None = None
    """How often each of D resamples holds each report, as `resample_counts` gives it."""


class MeteorUnavailableError(MuError):
    """Java or the METEOR program is missing, or does not run; the message says which."""


class MeteorScores(NamedTuple):
    """METEOR of N reports, in [0, 1]."""

    corpus: float
    """From summed counts; not the mean of the others."""
    per_report: Floats
    """[N]; 0 for a report without words."""
    resampled: Floats
    """[D]: `corpus` of each resample; empty without resamples."""


def meteor(corpora: Sequence[Corpus]) -> list[MeteorScores]:
    """METEOR of one or more corpora by one start of the program, whose tables take seconds to load.

    Raises:
        MeteorUnavailableError: Java or the program is missing, or does not run.
        DataError: no report, a report without a reference, or two lengths.
    """
    for hypotheses, references, _ in corpora:
        if not hypotheses or len(hypotheses) != len(references) or not all(references):
            raise DataError("METEOR needs one or more references of each hypothesis")
    if shutil.which("java") is None:
        raise MeteorUnavailableError("METEOR 1.5 needs Java, and there is no `java` on the path")
    try:
        from pycocoevalcap.meteor.meteor import Meteor  # type: ignore[import-untyped,import-not-found]
    except ImportError:
        raise MeteorUnavailableError("METEOR 1.5 needs `pip install 'medunifier[nlg]'`") from None
    with _neutral_locale():
        program = Meteor()
    try:
        return [_score(program, corpus) for corpus in corpora]
    except (OSError, ValueError):  # a pipe that broke, or an answer that is no number
        raise MeteorUnavailableError(
            "METEOR 1.5 is there but its Java program stopped; it needs Java 8 or later and 2 GiB of memory"
        ) from None
    finally:
        program.meteor_p.kill()
        program.meteor_p.wait()
        for pipe in (program.meteor_p.stdin, program.meteor_p.stdout, program.meteor_p.stderr):
            with suppress(BrokenPipeError):
                pipe.close()


@contextmanager
def _neutral_locale() -> Iterator[None]:
    """Start Java in UTF-8 and with decimal points, which a German ISO-8859-1 locale would not give."""
    before = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LC_ALL"]
        else:
            os.environ["LC_ALL"] = before


def _score(program: Any, corpus: Corpus) -> MeteorScores:
    """The program counts matches per report; a corpus, and so a resample, is scored from the counts' sum."""
    lines = [
        program._stat(" ".join(words), [" ".join(reference) for reference in against])
        for words, against in zip(corpus.hypotheses, corpus.references, strict=True)
    ]
    *each, together = _evaluate(program, lines)
    resampled = np.empty(0)
    if corpus.counts_DN is not None:
        matches_NM = np.array([[float(value) for value in line.split()] for line in lines])
        # In a sum, the program counts no chunk for a report that matches its reference word by word.
        whole_N = (matches_NM[:, :2] == matches_NM[:, CHUNKS + 1 :]).all(axis=1)
        matches_NM[whole_N & (matches_NM[:, CHUNKS] == 1), CHUNKS] = 0
        sums_DM = corpus.counts_DN @ matches_NM
        resampled = np.array(_evaluate(program, [" ".join(map(str, row)) for row in sums_DM.tolist()])[:-1])
    return MeteorScores(together, np.array(each), resampled)


def _evaluate(program: Any, lines: Sequence[str]) -> list[float]:
    """Score of each line of counts, and last that of their sum."""
    program.meteor_p.stdin.write(f"EVAL ||| {' ||| '.join(lines)}\n".encode())
    program.meteor_p.stdin.flush()
    return [float(program.meteor_p.stdout.readline()) for _ in range(len(lines) + 1)]
