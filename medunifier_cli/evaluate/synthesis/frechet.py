"""`mu score --real --fake`: Fréchet and kernel distances, precision and recall of synthetic images.

On features of the run's own image encoder, of Inception and of RAD-DINO; Fréchet distances by finding too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.checkpoint.priors import on_their_data, restore_priors
from medunifier_cli.errors import MissingWeightsError, MuError
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.evaluate.shared.sharing import everywhere
from medunifier_cli.evaluate.synthesis.image_sets import ImageSet, encoder_features, open_images
from medunifier_cli.evaluate.synthesis.inception import fid_and_kid, load_inception
from medunifier_cli.evaluate.synthesis.rad_dino import EDGE, load_rad_dino
from medunifier_cli.recipe.load import stage_of
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.record import Run
from medunifier_cli.scores.image import frechet_distance, frechet_interval, precision_recall
from medunifier_cli.terminal.say import say

MANIFOLD = 10_000
"""Images per side in precision and recall; every pair is compared, so more would take hours."""
ENCODER = "encoder FD"
"""Fréchet distance on the run's own features; not comparable with FID."""
FID, RAD_DINO = "FID", "RAD-DINO FD"
FEATURES_OF = {ENCODER: "encoder", FID: "Inception", RAD_DINO: "RAD-DINO"}
PER_FINDING = 10
"""Images of a finding that both sides need for a distance of its own; fewer give no usable covariance."""
EXTRACTORS = {
    "auto": {ENCODER, FID}, "encoder": {ENCODER}, "inception": {FID}, "both": {ENCODER, FID},
    "rad-dino": {RAD_DINO}, "all": {ENCODER, FID, RAD_DINO},
}  # fmt: skip
"""Choice -> the distances it computes."""


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
        if self.run is self.pretrained.run:
            return self.pretrained
        step = store.steps(self.run.checkpoints)[-1]
        identity = store.identity(self.run.checkpoints, step)
        return dataclasses.replace(self.pretrained, run=self.run, step=step, identity=identity)

    def shards(self) -> Path:
        """Folder of the shards of the run's own data set."""
        own = self.pretrained.recipe.data
        return Path(own.shards) if own.shards else shards_folder(own.dataset)


def open_scorer(run: Run) -> Scorer:
    """A pre-training run, or a run of priors with the model whose codes they model."""
    if not run.recipe.exists() or stage_of(run.recipe) != PriorRecipe.stage:
        return Scorer(run, everywhere(restore, run), 0)
    fitted = everywhere(restore_priors, run)
    return Scorer(run, on_their_data(fitted), fitted.recipe.data.limit, fitted.recipe.inception)


@dataclasses.dataclass(frozen=True)
class _Features:
    """Both sets as one extractor sees them."""

    distance: str
    """`ENCODER`, `FID` or `RAD_DINO`."""
    real_nD: NDArray[np.float32]
    fake_nD: NDArray[np.float32]
    facts: dict[str, Any]
    """What the result says about the extractor."""


def score_images(
    scorer: Scorer, real: str, fake: str, *, extractor: str, weights: str, images: int, seed: int,
    rad_dino: str = "",
) -> list[Metric]:  # fmt: skip
    """Compare two sets of images; writes `results/synthesis-<dataset>-<images>.json`.

    `images` is the split or the kind and name of the folder, and `-to-<real>` if that is no training split.

    Args:
        real: real images, a folder or a split.
        fake: images to judge, a folder or a split.
        extractor: a key of `EXTRACTORS`; `auto` leaves Inception out where its weights are not available.
        weights: file of Inception weights, see `load_inception`; empty for the recipe's.
        images: judge a random subset of N fakes, chosen by `seed`; 0 for all.
        seed: of that choice, the bootstrap intervals and KID's subsets.
        rad_dino: folder or hub name, see `load_rad_dino`.

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
    findings = _shared_findings(reals, fakes, subset)
    for features in _extract(pretrained, reals, fakes, subset, extractor, weights, rad_dino):
        name, pair = features.distance, (features.real_nD, features.fake_nD)
        metrics += _metrics(name, fakes.kind, *pair, seed)
        metrics += [
            Metric(
                f"{name}, {fakes.kind}, {finding}", frechet_distance(pair[0][of_real], pair[1][of_fake]),
                note=f"{len(of_real):,} real and {len(of_fake):,} judged images",
            )
            for finding, (of_real, of_fake) in findings.items()
        ]  # fmt: skip
        used |= features.facts
    by_finding = {
        name: {"real": len(of_real), "fake": len(of_fake)} for name, (of_real, of_fake) in findings.items()
    }
    _write(scorer, reals, fakes, len(subset), metrics, used, by_finding, seed)
    return metrics


def _extract(
    pretrained: PretrainedRun, reals: ImageSet, fakes: ImageSet, subset: NDArray[np.int64], extractor: str,
    weights: str, rad_dino: str,
) -> Iterator[_Features]:  # fmt: skip
    wanted = EXTRACTORS[extractor]
    facts: dict[str, Any]
    # before any image is read: missing weights must not cost the hour that another extractor takes
    dino = everywhere(load_rad_dino, rad_dino, pretrained.device) if RAD_DINO in wanted else None
    inception = None
    if FID in wanted:
        try:
            inception = everywhere(load_inception, weights, pretrained.device)
        except MissingWeightsError as error:
            if extractor != "auto" or weights:
                raise
            say(f"skipping FID and KID: {error}")
    if ENCODER in wanted:
        pair = encoder_features(pretrained, reals), encoder_features(pretrained, fakes)[subset]
        facts = {"features": "f_q, mean over queries", "checkpoint": pretrained.identity,
                 "width": pair[0].shape[1]}  # fmt: skip
        yield _Features(ENCODER, *pair, {"encoder": facts})
    if inception is not None:
        facts = {"features": "2048", "weights_sha256": inception.weights_hash,
                 "resize": "299x299 by torch-fidelity"}  # fmt: skip
        yield _Features(
            FID, inception.features(reals), inception.features(fakes)[subset], {"inception": facts}
        )
    if dino is not None:
        pair = dino.features(reals), dino.features(fakes)[subset]
        facts = {"features": "class token after the last norm", "name": dino.name,
                 "width": pair[0].shape[1], "weights_sha256": dino.weights_hash,
                 "resize": f"{EDGE}x{EDGE}, then its own processor"}  # fmt: skip
        yield _Features(RAD_DINO, *pair, {"rad-dino": facts})


def _shared_findings(
    reals: ImageSet, fakes: ImageSet, subset: NDArray[np.int64]
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Finding -> numbers of its real images and, within `subset`, of its fakes; an image may have several."""
    of_real, of_fake = reals.findings(), fakes.findings()
    if of_real is None or of_fake is None:
        return {}
    of_fake = [of_fake[i] for i in subset.tolist()]
    out = {}
    for name in sorted({name for names in of_real for name in names}):
        pair = _having(name, of_real), _having(name, of_fake)
        if min(map(len, pair)) >= PER_FINDING:
            out[name] = pair
    return out


def _having(name: str, findings: Sequence[frozenset[str]]) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = np.flatnonzero([name in names for names in findings])
    return numbers


def _metrics(
    name: str, kind: str, real_nD: NDArray[np.float32], fake_nD: NDArray[np.float32], seed: int
) -> list[Metric]:
    interval = frechet_interval(real_nD, fake_nD, seed=seed)
    values = [("", frechet_distance(real_nD, fake_nD))]
    if name == FID:
        fid, kid, deviation = fid_and_kid(real_nD, fake_nD, seed)
        values = [("", fid)]
    metrics = [Metric.of(f"{name}, {kind}", values[0][1], interval)]
    if name == FID:
        metrics.append(Metric(f"KID, {kind}", kid, note=f"standard deviation over subsets {deviation:.5f}"))
    rows = np.random.default_rng(seed)
    some_real, some_fake = (side[rows.permutation(len(side))[:MANIFOLD]] for side in (real_nD, fake_nD))
    manifolds = precision_recall(some_real, some_fake)
    what = FEATURES_OF[name]
    metrics.append(mean(f"precision on {what}, {kind}", manifolds.fake_in_real_n, seed=seed))
    metrics.append(mean(f"recall on {what}, {kind}", manifolds.real_in_fake_n, seed=seed))
    return metrics


def _write(
    scorer: Scorer, reals: ImageSet, fakes: ImageSet, n: int, metrics: list[Metric], used: dict[str, Any],
    by_finding: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    own = scorer.pretrained.recipe.data
    compared = fakes.label if reals.kind == "train" else f"{fakes.label}-to-{reals.label}"
    Result(
        "synthesis", own.dataset, compared, scorer.shards(), n=n, seed=seed,
        metrics=metrics,
        protocol=(
            f"{n:,} images of {fakes.name} against {len(reals):,} of {reals.name}, all 8-bit grey at "
            f"{own.image_size}x{own.image_size}, squashed as in `mu prepare`; interval: value -+ 1.96 "
            f"bootstrap errors over the judged images; precision and recall: Kynkäänniemi et al. 2019, "
            f"k = 3, at most {MANIFOLD:,} images a side, manifolds held fixed in their intervals. Fréchet "
            "distances grow as n shrinks: compare equal n. By finding: images that have it by label or by "
            f"prompt, {PER_FINDING} or more on both sides"
        ),
        more={"real": {"name": reals.name, "n": len(reals)}, "extractors": used,
              "fake": {"name": fakes.name, "n": n, **fakes.origin}, "findings": by_finding},
    ).write(scorer.judge())  # fmt: skip
