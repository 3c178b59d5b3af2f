"""`mu score --copies`: are synthetic images copies of training images?

Each image's nearest training image (by encoder features, then by pixel correlation among the nearest few) is
compared with how near held-out real images come to the training set. Two ways, for a decoder blurs:
against training images as they are, beside held-out images as they are and reconstructed (synthetic images
are as smooth as reconstructions, and smooth images correlate more); and everything through the codes, where
what a prior has memorised is the same image again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import MuError
from medunifier_cli.evaluate.benchmark import open_benchmark
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.evaluate.synthesis.frechet import Scorer
from medunifier_cli.evaluate.synthesis.image_sets import (
    CodedImages,
    ImageSet,
    SplitImages,
    encoder_features,
    open_images,
    query_means,
)
from medunifier_cli.page.closest_pairs import Pair, write_pairs
from medunifier_cli.scores.privacy import ALARM, QUANTILE, Nearness, correlation, nearest, nearness

CANDIDATES = 10
"""Training images, nearest by features, that pixels are compared with."""
SHOWN = 24
"""Closest pairs on the page."""
CHUNK = 64
"""Images handled at once."""
MOST_HELDOUT = 5000
"""Held-out images compared; the 1 % quantile is steady long before."""
SEED = 0
"""Of the intervals."""
PLAIN, SMOOTH, CODED = "as they are", "reconstructed", "reconstructed, to training images reconstructed"


@dataclass(frozen=True)
class Closest:
    """Of each image its nearest training image."""

    number_n: NDArray[np.int64]
    distance_n: NDArray[np.float64]
    """1 - pixel correlation, from 0 (a copy up to contrast) to 2."""
    feature_distance_n: NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    metrics: list[Metric]
    rings: bool
    page: Path


def find_copies(scorer: Scorer, fake: str, real: str = "", heldout: str = "") -> Verdict:
    """Compare, write `results/copies-<dataset>-<kind>.json` and a page of the closest pairs.

    Args:
        real: training images, folder or split; empty for the split the run was trained on.
        heldout: split of real images it was not trained on; empty for the run's `data.test`.

    Raises:
        MuError: the run names no held-out split and none is given.
    """
    trained = scorer.trained
    train = _training_images(scorer, real)
    fakes = open_images(trained, fake)
    split = heldout or trained.recipe.data.test or trained.recipe.data.valid
    if not split:
        raise MuError(f"{trained.run.folder}: its recipe names no held-out split; give one with --heldout")
    unseen = SplitImages(open_benchmark(trained, split=split), trained.recipe.data.train)
    count = min(len(unseen), MOST_HELDOUT)
    judged, references = _compare(trained, train, fakes, unseen, count)
    found = {name: nearness(judged[name].distance_n, other.distance_n) for name, other in references.items()}
    features = nearness(judged[PLAIN].feature_distance_n, references[PLAIN].feature_distance_n)
    rings = _rings(found)
    metrics = [
        mean(
            f"copies: nearer than 1 % of held-out images {name}",
            judged[name].distance_n < one.threshold, QUANTILE, seed=SEED,
        )
        for name, one in found.items()
    ]  # fmt: skip
    near_n = judged[PLAIN].feature_distance_n < features.threshold
    metrics.append(mean("copies: the same by encoder features alone", near_n, QUANTILE, seed=SEED))
    way = min((name for name in (PLAIN, CODED) if name in found), key=lambda name: found[name].p)
    shown, threshold = judged[way], found[way].threshold  # on the page: the way that says more
    page = _show(scorer, train, fakes, shown, threshold, found, rings)
    _write(scorer, train, fakes, unseen, shown, {**found, "features": features}, metrics, rings)
    return Verdict(metrics, rings, page)


def _compare(
    trained: PretrainedRun, train: ImageSet, fakes: ImageSet, unseen: SplitImages, count: int
) -> tuple[dict[str, Closest], dict[str, Closest]]:
    """Judged and held-out images beside the training images, for each way of looking."""
    plain = _closest(trained, train, fakes, len(fakes))
    judged = {PLAIN: plain}
    references = {PLAIN: _closest(trained, train, unseen, count)}
    if trained.recipe.objectives.tig:
        smooth = CodedImages(trained, unseen)
        judged[SMOOTH], references[SMOOTH] = plain, _closest(trained, train, smooth, count)
        if isinstance(train, SplitImages):  # a folder has no texts, which the codes are made with
            coded = CodedImages(trained, train)
            judged[CODED] = _closest(trained, coded, fakes, len(fakes))
            references[CODED] = _closest(trained, coded, smooth, count)
    return judged, references


def _rings(found: dict[str, Nearness]) -> bool:
    """Either way of looking may ring, so each has half of the probability of a false alarm."""
    ways = [[found[name] for name in (PLAIN, SMOOTH) if name in found]]
    if CODED in found:
        ways.append([found[CODED]])
    return any(all(one.p < ALARM / len(ways) for one in way) for way in ways)


def _training_images(scorer: Scorer, real: str) -> ImageSet:
    trained = scorer.trained
    if real:
        return open_images(trained, real)
    asked = open_benchmark(trained, split=trained.recipe.data.train)
    if scorer.limit:
        asked.source.rows = asked.source.rows[: scorer.limit]
    return SplitImages(asked, trained.recipe.data.train)


def _closest(trained: PretrainedRun, train: ImageSet, images: ImageSet, n: int) -> Closest:
    """Nearest training image of images 0 to n - 1."""
    numbers, distances, features = [], [], []
    train_tD = encoder_features(trained, train)
    for start in range(0, n, CHUNK):
        grey = images.pick(range(start, min(start + CHUNK, n)))
        candidates, far = nearest(query_means(trained, grey), train_tD, CANDIDATES)
        unique, place = np.unique(candidates, return_inverse=True)
        pictures = train.pick(unique.tolist())[place.reshape(candidates.shape)]
        for image, rows, others in zip(grey, candidates, pictures, strict=True):
            alike = correlation(image, others)
            numbers.append(int(rows[alike.argmax()]))
            distances.append(1.0 - float(alike.max()))
        features += far[:, 0].tolist()
    return Closest(np.array(numbers), np.array(distances), np.array(features))


def _show(
    scorer: Scorer, train: ImageSet, fakes: ImageSet, judged: Closest, threshold: float,
    found: dict[str, Nearness], rings: bool,
) -> Path:  # fmt: skip
    order = np.argsort(judged.distance_n, kind="stable")[:SHOWN]
    pairs = [
        Pair(
            fakes.pick([number])[0], fakes.title(number),
            train.pick([int(judged.number_n[number])])[0], train.title(int(judged.number_n[number])),
            1.0 - float(judged.distance_n[number]), bool(judged.distance_n[number] < threshold),
        )
        for number in order.tolist()
    ]  # fmt: skip
    about = {
        "images": f"{len(judged.distance_n):,} of {fakes.name}",
        "training images": f"{len(train):,} of {train.name}",
        "verdict": "nearer to training images than unseen ones are"
        if rings
        else "no nearer than unseen ones",
        **{
            f"nearer than 1 % of held-out images {name}": f"{one.share:.1%} (p = {one.p:.3g})"
            for name, one in found.items()
        },
    }
    return write_pairs(scorer.run.folder / "page" / f"copies-{fakes.kind}", about, pairs)


def _write(
    scorer: Scorer, train: ImageSet, fakes: ImageSet, unseen: ImageSet, judged: Closest,
    found: dict[str, Nearness], metrics: list[Metric], rings: bool,
) -> None:  # fmt: skip
    nearest_ones = np.argsort(judged.distance_n, kind="stable")[:SHOWN].tolist()
    Result(
        "copies", scorer.trained.recipe.data.dataset, fakes.kind, scorer.shards(),
        n=len(judged.distance_n), seed=SEED, metrics=metrics,
        protocol=(
            f"{fakes.name}: 1 - pixel correlation with the most correlated of the {CANDIDATES} images of "
            f"{train.name} nearest by encoder features, beside the same of held-out {unseen.name}; rings "
            f"when the share nearer than the held-out 1 % quantile is improbable (p < {ALARM / 2:g}, "
            "beta-binomial) either beside held-out images both as they are and reconstructed, or with "
            "training and held-out images all reconstructed"
        ),
        more={
            "rings": rings, "references": {name: dataclasses.asdict(one) for name, one in found.items()},
            "closest": [
                {"image": fakes.title(i), "training_image": train.title(int(judged.number_n[i])),
                 "distance": float(judged.distance_n[i])}
                for i in nearest_ones
            ],
        },
    ).write(scorer.judge())  # fmt: skip


def verdict_line(verdict: Verdict) -> str:
    """What a person should know."""
    if verdict.rings:
        return (
            "COPIES SUSPECTED: images lie nearer to training images than unseen real ones do; look at "
            f"{verdict.page} before you share any"
        )
    return f"no sign of copies; the closest pairs are at {verdict.page}"


def say(verdict: Verdict) -> None:
    """On stderr."""
    click.echo(f"mu: {verdict_line(verdict)}", err=True)
