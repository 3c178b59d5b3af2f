"""`mu score --classifier`: measure whether synthetic images show the class that their prompts request.

The judge is a classifier fine-tuned on real images only. Its accuracy on held-out real images is reported as
well, as no generator can be expected to exceed it. C classes, n images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.checkpoint.classifier import restore_classifier
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.images.image import resize_to_square
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import open_benchmark, patients
from medunifier_cli.evaluate.codes import reconstructed_batches
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.evaluate.shared.sharing import everywhere
from medunifier_cli.evaluate.synthesis.frechet import Scorer
from medunifier_cli.evaluate.synthesis.image_sets import SAMPLING, FolderImages, SplitImages, of_batches
from medunifier_cli.model.classifier import Classifier
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run
from medunifier_cli.scores.classification import confusion_matrix

SEED = 0
"""Seed of the bootstrap intervals."""


@dataclass(frozen=True)
class _Judge:
    """A fine-tuned classifier."""

    run: PretrainedRun
    network: Classifier
    classes: tuple[str, ...]

    def classify(self, grey_BSS: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Most likely class of each image, int64 [B]."""
        with torch.no_grad():
            query_BQD = self.network.queries(torch.from_numpy(grey_BSS)[:, None].to(self.run.device))
            class_B: NDArray[np.int64] = self.network.head(query_BQD).argmax(dim=1).cpu().numpy()
        return class_B


@dataclass(frozen=True)
class _OnReal:
    """The classifier on the n held-out images of exactly one class."""

    n: int
    hits: dict[str, NDArray[np.bool_]]
    """Whether it is right: on the images, and on their reconstructions where the generator makes any (no
    prompt brings back what its decoder loses)."""
    patients: NDArray[Any] | None


@dataclass(frozen=True)
class Asked:
    """Images whose prompts request a class, and the classifier that judges them."""

    images: FolderImages
    judge: _Judge
    requested_n: NDArray[np.int64]


def open_asked(fake: str, classifier: str) -> Asked:
    """What `measure_adherence` measures; no image is decoded yet.

    Args:
        fake: folder of `mu synthesize --prompts` by class.
        classifier: run of `mu finetune`.

    Raises:
        DataError: a folder whose prompts name no class, or classes that the classifier does not know; or a
            classifier of a single class, which has nothing to choose from.
    """
    folder = Path(fake)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    judge = _Judge(*everywhere(restore_classifier, Run(find_run(classifier))))
    images = FolderImages(folder, judge.run.recipe.data.image_size)
    if len(judge.classes) == 1:
        raise DataError(
            f"{judge.run.run.folder}: knows one class, {judge.classes[0]}, and the most likely of one is no "
            "answer; give a --classifier of two or more classes"
        )
    return Asked(images, judge, _requested(images, judge.classes))


def measure_adherence(scorer: Scorer, asked: Asked) -> list[Metric]:
    """Accuracy of the requested class; writes `results/conformance-<dataset>-<images>.json`."""
    images, judge, requested_n = asked.images, asked.judge, asked.requested_n
    predicted_n = np.concatenate(list(of_batches(judge.classify, images)))
    real = _on_real(judge, scorer.pretrained)
    metrics = _metrics(requested_n, predicted_n, real, judge.classes)
    _write(scorer, images, judge, requested_n, predicted_n, real, metrics)
    return metrics


def _of_size(grey_BSS: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images in the size that the classifier takes, resized as in `mu prepare`."""
    if grey_BSS.shape[-1] == size:
        return grey_BSS
    return np.stack([resize_to_square(Image.fromarray(grey_SS), size) for grey_SS in grey_BSS])


def _requested(images: FolderImages, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Class number that each image's prompt requests, [n]."""
    names = [line.get("class", "") for line in images.lines]
    unknown = sorted({name for name in names if name not in classes})
    if unknown or not names:
        what = f"prompts for {unknown[0]!r}" if unknown and unknown[0] else "images without a requested class"
        raise DataError(
            f"{images.folder}: {what}; the classifier knows {', '.join(classes)}: synthesize images with "
            "`--prompts` by class"
        )
    return np.array([classes.index(name) for name in names])


def _metrics(
    requested_n: NDArray[np.int64], predicted_n: NDArray[np.int64], real: _OnReal, classes: tuple[str, ...]
) -> list[Metric]:
    # A classifier that always answers the most requested class.
    chance = float(np.bincount(requested_n).max() / len(requested_n))
    metrics = [mean("class asked for by prompt, accuracy", requested_n == predicted_n, chance, seed=SEED)]
    metrics += [
        mean(f"the same classifier on {what}, accuracy", hit_n, chance, groups=real.patients, seed=SEED)
        for what, hit_n in real.hits.items()
    ]
    metrics += [
        mean(f"class asked for, {name}", predicted_n[requested_n == i] == i, seed=SEED)
        for i, name in enumerate(classes)
        if (requested_n == i).any()
    ]
    return metrics


def _write(
    scorer: Scorer, images: FolderImages, judge: _Judge, requested_n: NDArray[np.int64],
    predicted_n: NDArray[np.int64], real: _OnReal, metrics: list[Metric],
) -> None:  # fmt: skip
    classes = judge.classes
    confusion = confusion_matrix(requested_n, predicted_n, len(classes))
    Result(
        "conformance", scorer.pretrained.recipe.data.dataset, images.label, scorer.shards(),
        n=len(requested_n), seed=SEED, metrics=metrics,
        protocol=(
            f"the most likely of {len(classes)} classes by {judge.run.run.folder.name}, fine-tuned on real "
            f"images; real: {real.n:,} held-out images with exactly one class; baseline: always one class. "
            "Intervals: 95 %, 1,000 bootstrap resamples, of patients where images are real"
        ),
        more={
            "classifier": {"run": judge.run.run.folder.name, "hash": judge.run.identity},
            "classes": list(classes), "confusion": confusion.tolist(), "settings": _settings(images.lines),
        },
    ).write(scorer.judge())  # fmt: skip


def _on_real(judge: _Judge, generator: PretrainedRun) -> _OnReal:
    recipe = load_saved(judge.run.run.recipe, FinetuneRecipe)
    split = recipe.data.test or recipe.data.valid
    real = open_benchmark(judge.run, recipe.data.dataset, split, need_text=False, shards=recipe.data.shards)
    # Prompts request one class each, so only images of exactly one class are comparable.
    single = real.source.labels >= 0
    if not single.any():
        raise DataError(f"{real.shards}: no image of {split!r} has exactly one class to compare with")
    classes = {"held-out real images": of_batches(judge.classify, SplitImages(real, recipe.data.train))}
    if recipe.data.dataset == generator.recipe.data.dataset and generator.recipe.objectives.tig:
        coded = open_benchmark(generator, split=split, need_text=False, class_texts=True)
        classes["those images reconstructed"] = (
            judge.classify(_of_size(image_BSS, judge.run.recipe.data.image_size))
            for _, image_BSS in reconstructed_batches(generator, coded)
        )
    hits = {
        what: (np.concatenate(list(some)) == real.source.labels)[single] for what, some in classes.items()
    }
    return _OnReal(int(single.sum()), hits, patients(real.source, np.flatnonzero(single)))


def _settings(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """How the images were sampled; the same for all images of a folder."""
    return {name: lines[0].get(name) for name in SAMPLING} | {"best_of": lines[0].get("best_of", 1)}
