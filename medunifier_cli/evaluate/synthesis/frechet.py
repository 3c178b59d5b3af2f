"""`mu score --real --fake`: how near images come to real ones, on the run's own encoder and on Inception."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.checkpoint.priors import is_fitted, restore_priors
from medunifier_cli.errors import MissingWeightsError, MuError
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.evaluate.synthesis.image_sets import ImageSet, encoder_features, open_images
from medunifier_cli.evaluate.synthesis.inception import fid_and_kid, load_inception
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.record import Run
from medunifier_cli.scores.image import frechet_distance, frechet_interval, precision_recall

MANIFOLD = 10_000
"""Images of a side that precision and recall look at; every pair is compared, so more would take hours."""
ENCODER = "encoder FD"
"""Fréchet distance on the run's own features; never to be mixed up with FID."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A run that images are judged with."""

    run: Run
    """Where results go: the priors' run where one was named, else the pre-training run."""
    trained: PretrainedRun
    limit: int
    """Training samples the priors saw, 0 for all."""
    inception: str = ""
    """Inception's weights by the priors' recipe, see `load_inception`."""

    def judge(self) -> PretrainedRun:
        """As `Result.write` takes it: results carry the hash of the run they lie in."""
        step = store.steps(self.run.checkpoints)[-1]
        identity = store.identity(self.run.checkpoints, step)
        return dataclasses.replace(self.trained, run=self.run, step=step, identity=identity)

    def shards(self) -> Path:
        """Of the run's own data set."""
        own = self.trained.recipe.data
        return Path(own.shards) if own.shards else shards_folder(own.dataset)


def open_scorer(folder: Path) -> Scorer:
    """A pre-training run, or a run of priors with the model under it."""
    run = Run(folder)
    if not is_fitted(run):
        return Scorer(run, restore(run), 0)
    fitted = restore_priors(run)
    return Scorer(run, fitted.trained, fitted.recipe.data.limit, fitted.recipe.inception)


def score_images(
    scorer: Scorer, real: str, fake: str, *, extractor: str, weights: str, images: int, seed: int
) -> list[Metric]:
    """Compare two sets; writes `results/synthesis-<dataset>-<kind>.json` of the run.

    Args:
        real, fake: folder or split.
        extractor: `encoder`, `inception` or `both`; `auto` is both where Inception's weights are there.
        weights: Inception's, see `load_inception`; empty for the recipe's.
        images: judge only so many fakes, drawn by `seed`; 0 for all.
    """
    trained, weights = scorer.trained, weights or scorer.inception
    reals, fakes = open_images(trained, real), open_images(trained, fake)
    chosen = np.arange(len(fakes))
    if images:
        if images > len(fakes):
            raise MuError(f"--images {images}: {fake} holds {len(fakes):,}")
        chosen = np.sort(np.random.default_rng(seed).permutation(len(fakes))[:images])
    metrics: list[Metric] = []
    used: dict[str, Any] = {}
    if extractor != "inception":
        pair = encoder_features(trained, reals), encoder_features(trained, fakes)[chosen]
        metrics += _metrics(ENCODER, fakes.kind, *pair, seed)
        used["encoder"] = {"features": "f_q, mean over queries", "checkpoint": trained.identity,
                           "width": pair[0].shape[1]}  # fmt: skip
    if extractor != "encoder":
        try:
            network = load_inception(weights, trained.device)
        except MissingWeightsError as error:
            if extractor != "auto" or weights:
                raise
            click.echo(f"mu: FID and KID left out: {error}", err=True)
        else:
            pair = network.features(reals), network.features(fakes)[chosen]
            metrics += _metrics("FID", fakes.kind, *pair, seed)
            used["inception"] = {"features": "2048", "weights_sha256": network.weights_hash,
                                 "resize": "299x299 by torch-fidelity"}  # fmt: skip
    _write(scorer, reals, fakes, len(chosen), metrics, used, seed)
    return metrics


def _metrics(
    name: str, kind: str, real_nD: NDArray[np.float32], fake_nD: NDArray[np.float32], seed: int
) -> list[Metric]:
    interval = frechet_interval(real_nD, fake_nD, seed=seed)
    values = [("", frechet_distance(real_nD, fake_nD))]
    if name == "FID":
        fid, kid, deviation = fid_and_kid(real_nD, fake_nD, seed)
        values = [("", fid)]
    metrics = [Metric.of(f"{name}, {kind}", values[0][1], interval)]
    if name == "FID":
        metrics.append(Metric(f"KID, {kind}", kid, note=f"standard deviation over subsets {deviation:.5f}"))
    rows = np.random.default_rng(seed)
    some_real, some_fake = (side[rows.permutation(len(side))[:MANIFOLD]] for side in (real_nD, fake_nD))
    found = precision_recall(some_real, some_fake)
    what = "encoder" if name == ENCODER else "Inception"
    metrics.append(mean(f"precision on {what}, {kind}", found.fake_in_real_n, seed=seed))
    metrics.append(mean(f"recall on {what}, {kind}", found.real_in_fake_n, seed=seed))
    return metrics


def _write(
    scorer: Scorer, reals: ImageSet, fakes: ImageSet, n: int, metrics: list[Metric], used: dict[str, Any],
    seed: int,
) -> None:  # fmt: skip
    own = scorer.trained.recipe.data
    Result(
        "synthesis", own.dataset, fakes.kind, scorer.shards(), n=n, seed=seed,
        metrics=metrics,
        protocol=(
            f"{n:,} images of {fakes.name} against {len(reals):,} of {reals.name}, all 8-bit grey at "
            f"{own.image_size}x{own.image_size}, squashed as in `mu prepare`; interval: value -+ 1.96 "
            f"bootstrap errors over the judged images; precision and recall: Kynkäänniemi et al. 2019, "
            f"k = 3, at most {MANIFOLD:,} images a side, manifolds held fixed in their intervals. Fréchet "
            "distances grow as n shrinks: compare equal n"
        ),
        more={"real": {"name": reals.name, "n": len(reals)}, "fake": {"name": fakes.name, "n": n},
              "extractors": used},
    ).write(scorer.judge())  # fmt: skip
