"""`mu score --copies`: test whether synthetic images are copies of training images.

Each image gets one number: its distance to the nearest training image (candidates by encoder features, then
1 - pixel correlation with the most correlated of them). Held-out real images, which cannot be copies, get the
same number as the reference.

The test: let d be the held-out 1 % quantile, that is the k-th smallest of h held-out distances. If the f
judged images came from the same source as the held-out ones, the number of judged images nearer than d would
be beta-binomial(f, k, h - k + 1), whatever the distribution of the distances (a fact of order statistics, see
`scores.privacy.nearness`). p is the probability of a count at least as large as the one found.

The decoder blurs what a prior has memorised, so there are two comparisons, and each may raise the alarm:
synthetic images against training images as they are, where the held-out reference is taken twice, as it is
and reconstructed through the codes (synthetic images are as smooth as reconstructions, and smooth images
correlate more); and everything reconstructed through the codes, where a memorised training image is found
again exactly. Each comparison is tested at half of `ALPHA`, so that `ALPHA` bounds a false alarm of either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import MuError
from medunifier_cli.evaluate.benchmark import open_benchmark
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.evaluate.shared.sharing import each, known_everywhere
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
from medunifier_cli.scores.privacy import ALPHA, QUANTILE, Nearness, correlation, nearest, nearness
from medunifier_cli.terminal.say import say

CANDIDATES = 10
"""Training images, nearest by features, whose pixels are compared."""
SHOWN = 24
"""Closest pairs on the page."""
CHUNK = 64
"""Images whose pixels are compared at once."""
SEARCHED = 1024
"""Images whose nearest features are looked for at once: each such search reads all training features."""
MAX_HELD_OUT = 5000
"""Held-out images compared; the 1 % quantile is steady long before."""
SEED = 0
"""Seed of the bootstrap intervals."""
AS_THEY_ARE = "as they are"
RECONSTRUCTED = "reconstructed"
ALL_RECONSTRUCTED = "reconstructed, to training images reconstructed"


@dataclass(frozen=True)
class NearestTraining:
    """The nearest training image of each of n images."""

    number_n: NDArray[np.int64]
    """Its number in the set of training images."""
    distance_n: NDArray[np.float64]
    """1 - pixel correlation, from 0 (a copy up to contrast) to 2."""
    feature_distance_n: NDArray[np.float64]
    """Euclidean distance of the nearest encoder features, perhaps of another training image."""


@dataclass(frozen=True)
class Verdict:
    """Result of the test."""

    metrics: list[Metric]
    copies_suspected: bool
    page: Path
    """Page of the closest pairs."""


def find_copies(scorer: Scorer, fake: str, heldout: str = "") -> Verdict:
    """Run the test; writes `results/copies-<dataset>-<images>.json` and a page of the closest pairs.

    Args:
        fake: images to judge, a folder or a split.
        heldout: split of real images that the run was not trained on; empty for its `data.test`.

    Raises:
        MuError: the run names no held-out split and none is given, or it is the one that was trained on.
    """
    pretrained = scorer.pretrained
    own = pretrained.recipe.data
    split = heldout or own.test or own.valid
    if not split:
        raise MuError(f"{pretrained.run.folder}: its recipe names no held-out split; name one with --heldout")
    if split == own.train:
        raise MuError(
            f"{scorer.run.folder}: trained on {split!r}, which is no reference for images it has not seen; "
            "name a held-out split with --heldout"
        )
    train = known_everywhere(_training_images(scorer))
    fakes = known_everywhere(open_images(pretrained, fake))
    heldout_split = open_benchmark(pretrained, split=split, class_texts=True)
    unseen = known_everywhere(SplitImages(heldout_split, pretrained.recipe.data.train))
    judged, held_out_neighbours = _compare(pretrained, train, fakes, unseen)
    comparisons = {
        name: nearness(judged[name].distance_n, reference.distance_n)
        for name, reference in held_out_neighbours.items()
    }
    # Reported, but no part of the test: features forget detail, and unlike patients can have near features.
    features = nearness(
        judged[AS_THEY_ARE].feature_distance_n, held_out_neighbours[AS_THEY_ARE].feature_distance_n
    )
    suspected = copies_suspected(comparisons)
    metrics = [
        mean(
            f"copies: nearer than 1 % of held-out images {name}",
            judged[name].distance_n < comparison.threshold, QUANTILE, seed=SEED,
        )
        for name, comparison in comparisons.items()
    ]  # fmt: skip
    near_n = judged[AS_THEY_ARE].feature_distance_n < features.threshold
    metrics.append(mean("copies: the same by encoder features alone", near_n, QUANTILE, seed=SEED))
    # The page shows the comparison with the stronger evidence.
    best = min(
        (name for name in (AS_THEY_ARE, ALL_RECONSTRUCTED) if name in comparisons),
        key=lambda name: comparisons[name].p,
    )
    shown, threshold = judged[best], comparisons[best].threshold
    page = _show(scorer, train, fakes, shown, threshold, comparisons, suspected)
    _write(scorer, train, fakes, unseen, shown, {**comparisons, "features": features}, metrics, suspected)
    return Verdict(metrics, suspected, page)


def _compare(
    pretrained: PretrainedRun, train: SplitImages, fakes: ImageSet, unseen: SplitImages
) -> tuple[dict[str, NearestTraining], dict[str, NearestTraining]]:
    """Nearest training images of judged and of held-out images, by the name of the comparison."""
    count = min(len(unseen), MAX_HELD_OUT)
    plain = _nearest_training(pretrained, train, fakes, len(fakes))
    judged = {AS_THEY_ARE: plain}
    held_out = {AS_THEY_ARE: _nearest_training(pretrained, train, unseen, count)}
    if pretrained.recipe.objectives.tig:
        smooth = known_everywhere(CodedImages(pretrained, unseen))
        judged[RECONSTRUCTED] = plain
        held_out[RECONSTRUCTED] = _nearest_training(pretrained, train, smooth, count)
        coded = known_everywhere(CodedImages(pretrained, train))
        # The judged images themselves went through the decoder already: once is enough.
        judged[ALL_RECONSTRUCTED] = _nearest_training(pretrained, coded, fakes, len(fakes))
        held_out[ALL_RECONSTRUCTED] = _nearest_training(pretrained, coded, smooth, count)
    return judged, held_out


def copies_suspected(comparisons: Mapping[str, Nearness]) -> bool:
    """Decide the test: True if judged images lie improbably near to training images.

    Args:
        comparisons: `AS_THEY_ARE`, and `RECONSTRUCTED` and `ALL_RECONSTRUCTED` where they could be made.
    """
    # Against training images as they are, both references must agree: compared with sharp held-out images
    # alone, any smooth image could look near, and compared with smooth ones alone, any sharp one.
    tests = [[comparisons[name] for name in (AS_THEY_ARE, RECONSTRUCTED) if name in comparisons]]
    if ALL_RECONSTRUCTED in comparisons:
        tests.append([comparisons[ALL_RECONSTRUCTED]])
    return any(all(one.p < ALPHA / len(tests) for one in test) for test in tests)


def _training_images(scorer: Scorer) -> SplitImages:
    pretrained = scorer.pretrained
    benchmark = open_benchmark(pretrained, split=pretrained.recipe.data.train, class_texts=True)
    if scorer.limit:
        # Images that the priors never saw cannot have been copied, and would only blur the comparison.
        benchmark.source.rows = benchmark.source.rows[: scorer.limit]
    return SplitImages(benchmark, pretrained.recipe.data.train)


def _nearest_training(
    pretrained: PretrainedRun, train: ImageSet, images: ImageSet, n: int
) -> NearestTraining:
    """Nearest training image of images 0 to n - 1."""
    numbers: list[int] = []
    distances: list[float] = []
    features: list[float] = []
    train_tD = encoder_features(pretrained, train)
    for first in range(0, n, SEARCHED):
        chunks = [range(i, min(i + CHUNK, n)) for i in range(first, min(first + SEARCHED, n), CHUNK)]
        greys, means = zip(*each(partial(_seen, pretrained, images), chunks), strict=True)
        candidates_nC, feature_distance = nearest(np.concatenate(means), train_tD, CANDIDATES)
        features += feature_distance[:, 0].tolist()
        pairs = [
            (grey, candidates_nC[chunk.start - first : chunk.stop - first])
            for chunk, grey in zip(chunks, greys, strict=True)
        ]
        for of_chunk in each(partial(_most_correlated, train), pairs):
            numbers += [number for number, _ in of_chunk]
            distances += [1.0 - correlated for _, correlated in of_chunk]
    return NearestTraining(np.array(numbers), np.array(distances), np.array(features))


def _seen(
    pretrained: PretrainedRun, images: ImageSet, numbers: range
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Grey levels and features of some images."""
    grey_BSS = images.pick(numbers)
    return grey_BSS, query_means(pretrained, grey_BSS)


def _most_correlated(
    train: ImageSet, pair: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> list[tuple[int, float]]:
    """Of each image the training image, among its candidates [B, C], whose pixels correlate most, and how."""
    grey_BSS, candidates_BC = pair
    # Many images share candidates; each training image is decoded once.
    unique, position = np.unique(candidates_BC, return_inverse=True)
    pictures = train.pick(unique.tolist())[position.reshape(candidates_BC.shape)]
    found = []
    for image, rows, others in zip(grey_BSS, candidates_BC, pictures, strict=True):
        correlations = correlation(image, others)
        found.append((int(rows[correlations.argmax()]), float(correlations.max())))
    return found


def _tests_made(comparisons: Mapping[str, Nearness]) -> str:
    """What `copies_suspected` decides by, for the protocol."""
    if ALL_RECONSTRUCTED not in comparisons:  # a model without codes
        return f"(p < {ALPHA:g}, beta-binomial) against held-out images as they are"
    return (
        f"(p < {ALPHA / 2:g}, beta-binomial) either against held-out images both as they are and "
        "reconstructed, or with training and held-out images all reconstructed"
    )


def _show(
    scorer: Scorer, train: ImageSet, fakes: ImageSet, judged: NearestTraining, threshold: float,
    comparisons: dict[str, Nearness], suspected: bool,
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
        if suspected
        else "no nearer than unseen ones",
        **{
            f"nearer than 1 % of held-out images {name}": f"{one.share:.1%} (p = {one.p:.3g})"
            for name, one in comparisons.items()
        },
    }
    return write_pairs(scorer.run.folder / "page" / f"copies-{fakes.label}", about, pairs)


def _write(
    scorer: Scorer, train: ImageSet, fakes: ImageSet, unseen: ImageSet, judged: NearestTraining,
    comparisons: dict[str, Nearness], metrics: list[Metric], suspected: bool,
) -> None:  # fmt: skip
    nearest_first = np.argsort(judged.distance_n, kind="stable")[:SHOWN].tolist()
    Result(
        "copies", scorer.pretrained.recipe.data.dataset, fakes.label, scorer.shards(),
        n=len(judged.distance_n), seed=SEED, metrics=metrics,
        protocol=(
            f"{fakes.name}: 1 - pixel correlation with the most correlated of the {CANDIDATES} images of "
            f"{train.name} nearest by encoder features, against the same of held-out {unseen.name}; copies "
            "are suspected when the share nearer than the held-out 1 % quantile is improbable "
            + _tests_made(comparisons)
        ),
        more={
            "copies_suspected": suspected,
            "references": {name: dataclasses.asdict(one) for name, one in comparisons.items()},
            "closest": [
                {"image": fakes.title(i), "training_image": train.title(int(judged.number_n[i])),
                 "distance": float(judged.distance_n[i])}
                for i in nearest_first
            ],
        },
    ).write(scorer.judge())  # fmt: skip


def verdict_line(verdict: Verdict) -> str:
    """One-line verdict for the terminal."""
    if verdict.copies_suspected:
        return (
            "COPIES SUSPECTED: images lie nearer to training images than unseen real ones do; look at "
            f"{verdict.page} before you share any"
        )
    return f"no sign of copies; the closest pairs are at {verdict.page}"


def print_verdict(verdict: Verdict) -> None:
    """Print the verdict on stderr, so that stdout holds the table alone."""
    say(f"{verdict_line(verdict)}")
