"""Classify images by the head of a fine-tuned run.

n images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.classifier import classifies, restore_classifier
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.labels.labelled import Kind
from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.films.answers import FilmAnswer, answers_of, named
from medunifier_cli.evaluate.films.likeness import Likeness
from medunifier_cli.evaluate.user_images import UserImages
from medunifier_cli.model.classifier import Classifier
from medunifier_cli.model.precision import measuring
from medunifier_cli.run.record import Run
from medunifier_cli.scores.classification import probabilities

BATCH = 64
"""Images per forward pass."""
OF_SEVERAL = 0.5
"""Threshold of a finding where none is given."""


@dataclass(frozen=True)
class Predictor:
    """A classifier that `mu finetune` trained."""

    trained: PretrainedRun
    """The fine-tuned run."""
    network: Classifier
    classes: tuple[str, ...]
    kind: Kind
    """`one` class an image, whose probabilities sum to 1, or `many`, each with a probability of its own."""

    def predict(self, image_n1HW: Tensor) -> NDArray[np.float64]:
        """Probability of each class, [n, C] in [0, 1].

        Args:
            image_n1HW: uint8 grey levels, on the CPU.

        Raises:
            CheckpointError: the numbers are not finite.
        """
        parts = []
        size = self.trained.batch_size or BATCH
        for start in range(0, len(image_n1HW), size):
            some = image_n1HW[start : start + size].to(self.trained.device)
            with measuring():
                # a frozen model's classifier takes queries: training computed them once
                inputs = self.network.queries(some) if self.network.freeze else some
                parts.append(self.network(inputs).float().cpu())
        logits_nC = torch.cat(parts).numpy()
        if not np.isfinite(logits_nC).all():
            raise CheckpointError(
                f"{self.trained.run.folder}: the predictions of step {self.trained.step} are not finite; "
                "training diverged, see its log.jsonl"
            )
        return probabilities(logits_nC, self.kind == "one")

    def with_batches_of(self, images: int | None) -> Predictor:
        """The same classifier for batches of this many images; None for its own number."""
        return Predictor(self.trained.with_batches_of(images), self.network, self.classes, self.kind)


def restore_predictor(run: Run, device: torch.device | None = None) -> Predictor:
    """The classifier of the best epoch of a run of `mu finetune`.

    Raises:
        CheckpointError: not such a run, or not finished.
    """
    trained, network, classes = restore_classifier(run, device)
    return Predictor(trained, network, classes, classifies(run))


def predict_files(
    predictor: Predictor, paths: Sequence[Path], threshold: float | None = None, likeness: bool = True
) -> list[FilmAnswer]:
    """Probabilities of the user's own files.

    Args:
        paths: PNG, JPEG or DICOM; unreadable ones are reported on stderr, counted and left out.
        threshold: probability from which a class of several counts as found; None for 0.5, and for no column
            of such classes in tables.
        likeness: whether to tell how like the training films they are.

    Raises:
        DataError: none can be read.
    """
    found = answers_of(partial(_predicted, predictor), predictor.trained, paths, likeness)
    return [_answer(predictor, path, values_C, threshold, seen) for path, values_C, seen in found]


def _predicted(predictor: Predictor, files: UserImages) -> list[NDArray[np.float64]]:
    return list(predictor.predict(files.image_B1HW))


def _answer(
    predictor: Predictor, path: Path, values_C: NDArray[np.float64], threshold: float | None,
    seen: Likeness | None,
) -> FilmAnswer:  # fmt: skip
    by_class = dict(zip(predictor.classes, values_C.tolist(), strict=True))
    if predictor.kind == "one":
        said = {"class": max(by_class, key=by_class.__getitem__)}
        return FilmAnswer(path, by_class, {**said, "probabilities": by_class}, seen)
    least = OF_SEVERAL if threshold is None else threshold
    over = [name for name, value in by_class.items() if value >= least]
    cells = by_class if threshold is None else {**by_class, "found": named(over)}
    return FilmAnswer(path, cells, {"found": over, "threshold": least, "probabilities": by_class}, seen)
