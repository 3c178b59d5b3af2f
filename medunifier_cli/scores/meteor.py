"""METEOR 1.5 (Denkowski and Lavie 2014): the authors' Java program, as pycocoevalcap (extra `nlg`) ships it.

There is no METEOR without it: other programs of that name give other numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError, MuError

Corpus = tuple[Sequence[Sequence[str]], Sequence[Sequence[Sequence[str]]]]
"""Words of N hypotheses, and of one or more references of each."""


class MeteorUnavailableError(MuError):
    """Java or the METEOR program is missing, or does not run; the message says which."""


def meteor(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, NDArray[np.float64]]:
    """METEOR of the corpus, from its summed counts, and of each report.

    Args:
        hypotheses: words of N reports; one without words scores 0.
        references: words of one or more references of each.

    Returns:
        (corpus score, [N] scores), in [0, 1]. The corpus score is not the mean of the others.

    Raises:
        MeteorUnavailableError: see there.
        DataError: no report, a report without a reference, or two lengths.
    """
    return meteors([(hypotheses, references)])[0]


def meteors(corpora: Sequence[Corpus]) -> list[tuple[float, NDArray[np.float64]]]:
    """`meteor` of several corpora by one start of the program, whose tables take seconds to load."""
    for hypotheses, references in corpora:
        if not hypotheses or len(hypotheses) != len(references) or not all(references):
            raise DataError("METEOR needs one or more references of each hypothesis")
    if shutil.which("java") is None:
        raise MeteorUnavailableError("METEOR 1.5 needs Java, and there is no `java` on the path")
    try:
        from pycocoevalcap.meteor.meteor import Meteor  # type: ignore[import-untyped,import-not-found]
    except ImportError:
        raise MeteorUnavailableError("METEOR 1.5 needs `pip install 'medunifier[nlg]'`") from None
    program = Meteor()
    found = []
    try:
        for hypotheses, references in corpora:
            score, scores = program.compute_score(
                {row: [" ".join(words) for words in against] for row, against in enumerate(references)},
                {row: [" ".join(words)] for row, words in enumerate(hypotheses)},
            )
            found.append((score, np.array(scores)))
    except (OSError, ValueError):  # a pipe that broke, or an answer that is no number
        raise MeteorUnavailableError(
            "METEOR 1.5 is there but its Java program stopped; it needs Java 8 or later and 2 GiB of memory"
        ) from None
    finally:
        if program.lock.locked():  # left so by a failure; its destructor would wait for it forever
            program.lock.release()
        program.meteor_p.kill()
        program.meteor_p.wait()
        for pipe in (program.meteor_p.stdin, program.meteor_p.stdout, program.meteor_p.stderr):
            with suppress(BrokenPipeError):
                pipe.close()
    return found
