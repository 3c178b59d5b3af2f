"""Clinical scores of reports from the `radeval` package (extra `clinical`), if installed with its weights.

CheXbert (Smit et al. 2020) reads 14 observations out of both reports, RadGraph (Jain et al. 2021) entities
and relations. RadCliQ-v1 (Yu et al. 2023) predicts from RadGraph, CheXbert, BERTScore and BLEU how many
errors a radiologist would find, RaTEScore (Zhao et al. 2024) compares entities by their embeddings. Weights
are never fetched by us.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

CHEXBERT = {
    "CheXbert micro-F1, 14 observations": "f1chexbert_all_micro_f1",
    "CheXbert macro-F1, 14 observations": "f1chexbert_all_macro_f1",
    "CheXbert micro-F1, 5 observations": "f1chexbert_5_micro_f1",
    "CheXbert macro-F1, 5 observations": "f1chexbert_5_macro_f1",
}
RADGRAPH = {
    "RadGraph F1, entities": "radgraph_simple",
    "RadGraph F1, entities and whether related": "radgraph_partial",
    "RadGraph F1, entities and relations": "radgraph_complete",
}
RADCLIQ = {"RadCliQ-v1": "radcliq_v1"}
RATESCORE = {"RaTEScore": "ratescore"}
SCORERS = {"f1chexbert": CHEXBERT, "radgraph": RADGRAPH, "radcliq": RADCLIQ, "ratescore": RATESCORE}
"""Metric of radeval -> our name -> key in its answer."""
CLINICAL = tuple(name for keys in SCORERS.values() for name in keys)
POLICY = "CheXbert: an uncertain observation counts as present; a denied one and a blank one as absent"
"""What radeval's scorer does with the four answers of CheXbert."""
DIRECTION = "RadCliQ-v1: a number of errors, so lower is better"
NOTES = {"f1chexbert": POLICY, "radcliq": DIRECTION}


def clinical_scores(
    hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """CheXbert F1, RadGraph F1, RadCliQ-v1 and RaTEScore.

    Returns:
        Scores by the names of `CLINICAL`, those that could be computed, all in [0, 1] but RadCliQ-v1; and one
        line about each thing that is missing, or about the policy used.
    """
    if importlib.util.find_spec("radeval") is None:
        return {}, [
            "clinical scores: left empty. They need `pip install 'medunifier[clinical]'` and Python 3.11"
        ]
    scores: dict[str, float] = {}
    notes = []
    for metric, keys in SCORERS.items():
        try:
            values = _radeval(metric, list(hypotheses), list(references))
        except ImportError as error:
            notes.append(f"{metric}: left empty. radeval could not be imported: no `{error.name}`")
            continue
        except Exception as error:  # of any kind without its weights; its text may quote a report
            notes.append(
                f"{metric}: left empty ({type(error).__name__}). Its weights may be missing; where there is "
                'a network, fetch them with `python -c "import radeval, sys; '
                f"sys.modules['RadEval'] = radeval; radeval.RadEval(['{metric}'])(['clear'], ['clear'])\"`"
            )
            continue
        missing = [key for key in keys.values() if key not in values]
        if missing:
            notes.append(
                f"{metric}: left empty. This version of radeval gives no `{missing[0]}`; 2.1 or later does"
            )
            continue
        scores |= {name: float(values[key]) for name, key in keys.items() if math.isfinite(values[key])}
        if metric in NOTES:
            notes.append(NOTES[metric])
    return scores, notes


def _radeval(metric: str, hypotheses: list[str], references: list[str]) -> dict[str, Any]:
    """One metric of radeval, offline."""
    with _offline():
        import radeval  # type: ignore[import-untyped,import-not-found]

        # Its RadGraph of 2.2.1 still imports itself by the package's former name.
        sys.modules.setdefault("RadEval", radeval)
        scorer = radeval.RadEval(metrics=[metric], show_progress=False)
        values: dict[str, Any] = scorer(refs=references, hyps=hypotheses)
    return values


@contextmanager
def _offline() -> Iterator[None]:
    """Keep radeval from the network: from the hub, and from NLTK's data, which it fetches on import for other
    metrics than these."""
    from huggingface_hub import constants

    with ExitStack() as stack:
        stack.enter_context(_replaced(os.environ, "HF_HUB_OFFLINE", "1"))
        stack.enter_context(_replaced(vars(constants), "HF_HUB_OFFLINE", True))  # read once, on first import
        if importlib.util.find_spec("nltk") is not None:
            import nltk  # type: ignore[import-untyped,import-not-found]

            stack.enter_context(_replaced(vars(nltk), "download", lambda *_, **__: False))
        yield


@contextmanager
def _replaced(where: MutableMapping[str, Any], name: str, value: object) -> Iterator[None]:
    existed, before = name in where, where.get(name)
    where[name] = value
    try:
        yield
    finally:
        if existed:
            where[name] = before
        else:
            del where[name]
