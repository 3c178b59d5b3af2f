"""Sets of reports whose scores look like something else than they are: one line for each such property.

A metric cannot tell these from good or bad reports: one text given to every image shares its stock phrases
with all references, equal references leave CIDEr no word to weigh, and a text without blanks is one word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from medunifier_cli.scores.text.bleu import ngrams
from medunifier_cli.scores.text.cider import ORDERS
from medunifier_cli.scores.text.words import Words, prepare

LONG_WORDS = 12.0
"""Mean letters of a word from which texts have no blanks; English reports have about 6, German ones 8."""
LONG_WORDS_CHARACTERS = 3.5
"""The same for Chinese and Japanese, where texts that were cut into words have about 2 characters a word."""
_CHARACTERS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def variety(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[int, list[str]]:
    """How many different reports were generated, and what makes the scores of these texts misleading.

    Reports are different if the words that are scored are: case and punctuation do not count.

    Args:
        hypotheses: N generated reports.
        references: N radiologists' reports, each with words.

    Returns:
        Number of different reports in [1, N], and one line for each oddity; no line quotes a report.
    """
    words, against = prepare(hypotheses, references)
    truth = [reference for (reference,) in against]
    kinds, true_kinds = _counted(words), _counted(truth)
    notes = []
    if len(words) > 1:
        notes += _repeated(kinds, true_kinds, len(words))
        notes += _weightless(truth, len(true_kinds))
        if words == truth:
            notes.append(
                f"all {len(words):,} generated reports equal their references word for word: check that "
                "`hypothesis` holds what was generated"
            )
    notes += _unspaced("generated reports", hypotheses) + _unspaced("references", references)
    return len(kinds), notes


def _repeated(kinds: Counter[str], true_kinds: Counter[str], n: int) -> list[str]:
    """Whether one report is given to all images, or to half of them while references differ more."""
    most, true_most = max(kinds.values()), max(true_kinds.values())
    if len(kinds) == 1:
        return [
            f"1 distinct hypothesis among {n:,}: every image got the same report, so that no score here "
            f"measures what was read from an image ({len(true_kinds):,} distinct references)"
        ]
    if 2 * most >= n and true_most < most:
        return [
            f"{len(kinds):,} distinct hypotheses among {n:,}, one of them given to {most:,} images; "
            f"{len(true_kinds):,} distinct references, the most frequent one of {true_most:,} images"
        ]
    return []


def _weightless(truth: Sequence[Words], kinds: int) -> list[str]:
    """References of which CIDEr weighs every n-gram with 0, because all references have it."""
    if kinds == 1:
        return [f"cider: 0 even for perfect reports, since all {len(truth):,} references are the same"]
    shared = [set.intersection(*(set(ngrams(words, n)) for words in truth)) for n in range(1, ORDERS + 1)]
    zero = sum(all(set(ngrams(words, n)) <= shared[n - 1] for n in range(1, ORDERS + 1)) for words in truth)
    if not zero:
        return []
    return [
        f"cider: 0 even for a perfect report on {zero:,} of {len(truth):,} images, whose references have "
        "only words that all references have"
    ]


def _unspaced(what: str, texts: Sequence[str]) -> list[str]:
    """Whether texts have no blanks between words, so that whole sentences count as one word."""
    # by category, as \w takes Thai vowel signs for the end of a word
    words = [
        word
        for text in texts
        for word in "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()
    ]
    of_characters = [word for word in words if _CHARACTERS.search(word)]
    for some, most in ((of_characters, LONG_WORDS_CHARACTERS), (words, LONG_WORDS)):
        mean = sum(map(len, some)) / len(some) if some else 0.0
        # a stray foreign word among many is no unspaced text
        if mean >= most and 2 * len(some) >= len(words):
            return [
                f"{what}: words of {mean:.0f} letters on average, as in text without blanks between words; a "
                "sentence then counts as one word: cut the texts into words, with blanks, before scoring them"
            ]
    return []


def _counted(texts: Sequence[Words]) -> Counter[str]:
    return Counter(" ".join(words) for words in texts)
