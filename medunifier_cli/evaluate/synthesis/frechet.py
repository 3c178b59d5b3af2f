"""`mu score --real --fake`: Fréchet and kernel distances, precision and recall of synthetic images.

On features of the run's own image encoder and of Inception.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import PretrainedRun, is_run_of, restore
from medunifier_cli.checkpoint.priors import restore_priors
from medunifier_cli.errors import MissingWeightsError, MuError
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.evaluate.synthesis.image_sets import ImageSet, encoder_features, open_images
from medunifier_cli.evaluate.synthesis.inception import fid_and_kid, load_inception
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.record import Run
from medunifier_cli.scores.image import frechet_distance, frechet_interval, precision_recall

MANIFOLD = 10_000
"""Images per side in precision and recall; every pair is compared, so more would take hours."""
ENCODER = "encoder FD"
"""Fréchet distance on the run's own features; not comparable with FID."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The run whose encoder, settings and shards judge the images."""

    run: Run
    """Where results go: the run of priors if one was named, else the pre-training run."""
    pretrained: PretrainedRun
    limit: int
    """Number of training samples the priors saw, 0 for all."""
    inception: str = ""
    """Inception weights named in the priors' recipe, see `load_inception`."""

    def judge(self) -> PretrainedRun:
        """As `Result.write` takes it: a result carries the hash of the run whose folder it is in."""
        step = store.steps(self.run.checkpoints)[-1]
        identity = store.identity(self.run.checkpoints, step)
        return dataclasses.replace(self.pretrained, run=self.run, step=step, identity=identity)

    def shards(self) -> Path:
        """Folder of the shards of the run's own data set."""
        own = self.pretrained.recipe.data
        return Path(own.shards) if own.shards else shards_folder(own.dataset)


def open_scorer(run: Run) -> Scorer:
    """A pre-training run, or a run of priors with the model whose codes they model."""
    if not is_run_of(run, PriorRecipe):
        return Scorer(run, restore(run), 0)
    fitted = restore_priors(run)
    return Scorer(run, fitted.pretrained, fitted.recipe.data.limit, fitted.recipe.inception)


def score_images(
    scorer: Scorer, real: str, fake: str, *, extractor: str, weights: str, images: int, seed: int
) -> list[Metric]:
    """Compare two sets of images; writes `results/synthesis-<dataset>-<kind>.json` of the run.

    Args:
        real: real images, a folder or a split.
        fake: images to judge, a folder or a split.
        extractor: `encoder`, `inception` or `both`; `auto` is both where Inception's weights are available.
        weights: file of Inception weights, see `load_inception`; empty for the recipe's.
        images: judge a random subset of N fakes, chosen by `seed`; 0 for all.
        seed: of that choice, the bootstrap intervals and KID's subsets.

    Raises:
        MuError: fewer fakes than `images`, or weights that are missing.
    """
    pretrained, weights = scorer.pretrained, weights or scorer.inception
    reals, fakes = open_images(pretrained, real), open_images(pretrained, fake)
    subset = np.arange(len(fakes))
    if images:
        if images > len(fakes):
            raise MuError(f"--images {images}: {fake} holds {len(fakes):,}")
        subset = np.sort(np.random.default_rng(seed).permutation(len(fakes))[:images])
    metrics: list[Metric] = []
    used: dict[str, Any] = {}
    if extractor != "inception":
        pair = encoder_features(pretrained, reals), encoder_features(pretrained, fakes)[subset]
        metrics += _metrics(ENCODER, fakes.kind, *pair, seed)
        used["encoder"] = {"features": "f_q, mean over queries", "checkpoint": pretrained.identity,
                           "width": pair[0].shape[1]}  # fmt: skip
    if extractor != "encoder":
        try:
            network = load_inception(weights, pretrained.device)
        except MissingWeightsError as error:
            if extractor != "auto" or weights:
                raise
            click.echo(f"mu: skipping FID and KID: {error}", err=True)
        else:
            pair = network.features(reals), network.features(fakes)[subset]
            metrics += _metrics("FID", fakes.kind, *pair, seed)
            used["inception"] = {"features": "2048", "weights_sha256": network.weights_hash,
                                 "resize": "299x299 by torch-fidelity"}  # fmt: skip
    _write(scorer, reals, fakes, len(subset), metrics, used, seed)
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
    manifolds = precision_recall(some_real, some_fake)
    what = "encoder" if name == ENCODER else "Inception"
    metrics.append(mean(f"precision on {what}, {kind}", manifolds.fake_in_real_n, seed=seed))
    metrics.append(mean(f"recall on {what}, {kind}", manifolds.real_in_fake_n, seed=seed))
    return metrics


def _write(
    scorer: Scorer, reals: ImageSet, fakes: ImageSet, n: int, metrics: list[Metric], used: dict[str, Any],
    seed: int,
) -> None:  # fmt: skip
    own = scorer.pretrained.recipe.data
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
        more={"real": {"name": reals.name, "n": len(reals)}, "extractors": used,
              "fake": {"name": fakes.name, "n": n, **fakes.origin}},
    ).write(scorer.judge())  # fmt: skip
