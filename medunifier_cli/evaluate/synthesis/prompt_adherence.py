"""`mu score --classifier`: do synthetic images show what their prompts asked for?

A classifier that was fine-tuned on real images only looks at them; its accuracy on held-out real images
stands beside, for no generator can be expected to do better than that. C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medunifier_cli.checkpoint.classifier import restore_classifier
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import open_benchmark, patients
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.evaluate.synthesis.frechet import Scorer
from medunifier_cli.evaluate.synthesis.image_sets import FolderImages, SplitImages, batches
from medunifier_cli.evaluate.synthesis.synthesis import reconstructions
from medunifier_cli.model.classifier import Classifier
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run
from medunifier_cli.scores.classification import confusion_matrix

SEED = 0
"""Of the intervals."""


def prompts_obeyed(scorer: Scorer, fake: str, classifier: str) -> list[Metric]:
    """Accuracy of the class asked for, writes `results/conformance-<dataset>-synthetic.json`.

    Args:
        fake: folder of `mu synthesize --prompts` by class.
        classifier: run of `mu finetune`.

    Raises:
        DataError: a folder whose prompts name no class, or classes the classifier does not know.
    """
    folder = Path(fake)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    images = FolderImages(folder, scorer.trained.recipe.data.image_size)
    tuned, network, classes = restore_classifier(Run(find_run(classifier)))
    asked = [line.get("class", "") for line in images.lines]
    unknown = sorted({name for name in asked if name not in classes})
    if unknown or not asked:
        what = f"prompts for {unknown[0]!r}" if unknown and unknown[0] else "images without a class asked for"
        raise DataError(
            f"{folder}: {what}; the classifier knows {', '.join(classes)}: draw with `--prompts` by class"
        )
    label_n = np.array([classes.index(name) for name in asked])
    chosen_n = _classify(tuned, network, batches(images))
    confusion = confusion_matrix(label_n, chosen_n, len(classes))
    floor = float(np.bincount(label_n).max() / len(label_n))
    metrics = [mean("class asked for by prompt, accuracy", label_n == chosen_n, floor, seed=SEED)]
    real = _on_real(tuned, network, scorer.trained)
    metrics += [
        mean(f"the same classifier on {what}, accuracy", hit_n, floor, groups=real.patients, seed=SEED)
        for what, hit_n in real.hits.items()
    ]
    metrics += [
        mean(f"class asked for, {name}", chosen_n[label_n == i] == i, seed=SEED)
        for i, name in enumerate(classes)
        if confusion[i].sum()
    ]
    Result(
        "conformance", scorer.trained.recipe.data.dataset, images.kind, scorer.shards(),
        n=len(label_n), seed=SEED, metrics=metrics,
        protocol=(
            f"the likeliest of {len(classes)} classes by {tuned.run.folder.name}, fine-tuned on real images; "
            f"real: {real.n:,} held-out images with exactly one class; floor: always one class. "
            "Intervals: 95 %, 1,000 bootstrap resamples, of patients where images are real"
        ),
        more={
            "classifier": {"run": tuned.run.folder.name, "hash": tuned.identity}, "classes": list(classes),
            "confusion": confusion.tolist(), "settings": _settings(images.lines),
        },
    ).write(scorer.judge())  # fmt: skip
    return metrics


def _classify(
    tuned: PretrainedRun, network: Classifier, images: Iterable[NDArray[np.uint8]]
) -> NDArray[np.int64]:
    """Likeliest class of each image of batches [B, S, S]."""
    found = []
    for grey in images:
        with torch.no_grad():
            query_BQD = network.queries(torch.from_numpy(grey)[:, None].to(tuned.device))
            found.append(network.head(query_BQD).argmax(dim=1).cpu().numpy())
    result: NDArray[np.int64] = np.concatenate(found)
    return result


@dataclass(frozen=True)
class _OnReal:
    """A classifier on the n held-out images of exactly one class."""

    n: int
    hits: dict[str, NDArray[np.bool_]]
    """Whether it is right: of the images, and of the same through the generator's codes where it has any
    (what its decoder loses, no prompt brings back)."""
    patients: NDArray[Any] | None


def _on_real(tuned: PretrainedRun, network: Classifier, generator: PretrainedRun) -> _OnReal:
    recipe = load_saved(tuned.run.recipe, FinetuneRecipe)
    split = recipe.data.test or recipe.data.valid
    asked = open_benchmark(tuned, recipe.data.dataset, split, need_text=False)
    one = asked.source.labels >= 0
    if not one.any():
        raise DataError(f"{asked.shards}: no image of {split!r} has exactly one class to ask for")
    sides = {"held-out real images": batches(SplitImages(asked, recipe.data.train))}
    if recipe.data.dataset == generator.recipe.data.dataset and generator.recipe.objectives.tig:
        coded = open_benchmark(generator, split=split, need_text=False)
        sides["those images reconstructed"] = reconstructions(generator, coded)
    hits = {
        what: (_classify(tuned, network, side) == asked.source.labels)[one] for what, side in sides.items()
    }
    return _OnReal(int(one.sum()), hits, patients(asked.source, np.flatnonzero(one)))


def _settings(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """How the images were drawn; the same for all of a folder."""
    return {name: lines[0].get(name) for name in ("seed", "temperature", "top_k", "top_p", "guidance")}
