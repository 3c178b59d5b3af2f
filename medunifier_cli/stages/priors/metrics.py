"""The numbers of fitted priors, each beside that of no prior at all."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp

from medunifier_cli.evaluate.results import Metric
from medunifier_cli.prior.baseline import Baseline

LEVELS = ("top", "bottom")
OF_ANY_ORDER = (
    "nats and accuracy of a masked prior: code by code in a random order, estimated from four numbers of "
    "hidden codes for each map, an upper bound on the map's nats; "
)
"""What the protocol of a masked prior says."""


def metrics_of(
    numbers: Mapping[str, float], without_text: Mapping[str, float], baselines: Mapping[str, Baseline]
) -> list[Metric]:
    """What `PriorFitting.measure` returned, each number beside that of no prior at all."""
    metrics = []
    for level in LEVELS:
        base = baselines[level]
        metrics += [
            Metric(f"{level} prior, nats per code", numbers[level], base.unigram),
            Metric(f"{level}, a unigram for each place", base.place_unigram, base.unigram, "nats"),
            Metric(f"{level} prior, accuracy", numbers[f"{level}_accuracy"], base.accuracy),
            Metric(f"{level} codes, perplexity", exp(numbers[level]), base.perplexity, "under the prior"),
        ]
        if without_text:
            name = f"{level} prior without text, nats per code"
            metrics.append(Metric(name, without_text[level], base.unigram))
    return metrics
