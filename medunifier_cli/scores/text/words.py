"""Cut reports into words before they are scored, under one of two protocols for the reference.

The model's tokenizer is uncased and its decoder moves blanks around punctuation, so hypothesis and reference
go through the same cut: lower case, accents off, only letters and digits are words ("t-spine" is two), a
full stop between digits is a decimal point, any other ends a sentence, list numbers ("1.") are dropped.
No PTB tokenizer (Java) is used, as by R2Gen and by the published code.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, get_args

from medunifier_cli.errors import DataError

Words = list[str]
Protocol = Literal["single", "sentences"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

_DECIMAL = re.compile(r"(?<=\d)\s*\.\s*(?=\d)")
_TOKEN = re.compile(r"\d+(?:\.\d+)+|[^\W_]+|[.!?]")
_LIST_NUMBER = re.compile(r"\d{1,2}")


def sentences(report: str) -> list[Words]:
    """The words of each sentence that has any."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", report.lower()) if not unicodedata.combining(c))
    out: list[Words] = [[]]
    for token in _TOKEN.findall(_DECIMAL.sub(".", plain)):
        if token in ".!?":
            out.append([])
        else:
            out[-1].append(token)
    return [words for words in out if words and not (len(words) == 1 and _LIST_NUMBER.fullmatch(words[0]))]


def prepare(
    hypotheses: Sequence[str], references: Sequence[str], protocol: Protocol = "single"
) -> tuple[list[Words], list[list[Words]]]:
    """What is compared with what.

    - `single` (headline): the whole report is the one reference, "." after each sentence, as R2Gen and the
      baselines of the paper's table 4 do.
    - `sentences`: each sentence of the report is a reference of its own, without full stops, as the published
      code does. It keeps capitals in the references, which an uncased model cannot write; here both are lower
      case. Scores of the two protocols are not comparable.

    Args:
        hypotheses: N generated reports; an empty one has no words and scores 0.
        references: N radiologists' reports.

    Returns:
        (words of each hypothesis, words of each of its references).

    Raises:
        DataError: no report, two lengths, an unknown protocol, a reference without words (named by its row).
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown protocol {protocol!r}; there are {' and '.join(PROTOCOLS)}")
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses):,} hypotheses and {len(references):,} references do not pair")
    if not len(hypotheses):
        raise DataError("no report to score; generate some with `mu report` first")
    cut = [sentences(text) for text in references]
    empty = [i for i, parts in enumerate(cut) if not parts]
    if empty:
        raise DataError(
            f"{len(empty):,} of {len(cut):,} references have no words, the first in row {empty[0]}; "
            "leave them out"
        )
    generated = [sentences(text) for text in hypotheses]
    if protocol == "single":
        return [_joined(parts) for parts in generated], [[_joined(parts)] for parts in cut]
    return [[word for part in parts for word in part] for parts in generated], cut


def _joined(parts: Sequence[Words]) -> Words:
    return [word for part in parts for word in (*part, ".")]
