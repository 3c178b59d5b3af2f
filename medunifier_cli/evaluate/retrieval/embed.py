"""Embed a split in the joint space of ITC, once per checkpoint and data; the features are cached in the run.

n samples, Q queries, E joint space.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import SPECIAL, PackedText, to_device
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.evaluate.benchmark import evaluation_batches
from medunifier_cli.evaluate.retrieval.prompts import LONGEST_PROMPT
from medunifier_cli.evaluate.shared.sharing import in_order
from medunifier_cli.model.precision import measuring
from medunifier_cli.recipe.schema import CACHED
from medunifier_cli.run.cache import Arrays
from medunifier_cli.run.encoding import encoded_mapped
from medunifier_cli.run.provenance import data_facts
from medunifier_cli.terminal.progress import Progress

BATCH = 64
"""Samples per forward pass."""


@dataclass(frozen=True)
class Embeddings:
    """ITC features of a split."""

    image_nQE: NDArray[np.float32]
    """Mapped from the cache and not loaded: 32 KiB of each sample at the paper's sizes."""
    text_nE: NDArray[np.float32]
    label_n: NDArray[np.int64]
    """Class index, -1 for samples with no class or several."""
    has_text_n: NDArray[np.bool_]
    """False if the text is empty; its feature is then that of [CLS] [SEP]."""
    keys: list[str]


@dataclass(frozen=True)
class Chosen:
    """Some rows of an array, copied only as they are asked for; `scores.search` reads them block by block."""

    rows: NDArray[Any]
    numbers: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the chosen rows together."""
        return (len(self.numbers), *self.rows.shape[1:])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: slice | NDArray[np.int64]) -> NDArray[Any]:
        chosen: NDArray[Any] = self.rows[self.numbers[index]]
        return chosen


def embed_split(
    trained: PretrainedRun, source: SplitSource, dataset: str, split: str, shards: Path
) -> Embeddings:
    """Features of every sample of a split, from the run's cache if this checkpoint and these data made it.

    Args:
        source: opened with `need_text=False`, so that retrieval and zero-shot share one pass.
        dataset, split: name of the cache.
        shards: folder whose manifest the cache belongs to.

    Raises:
        CheckpointError: the run was trained without ITC, or its embeddings are not finite.
    """
    need_itc(trained)
    made_of: dict[str, Any] = {
        "checkpoint": trained.identity,
        "manifest": data_facts(shards)["manifest"],
        "shards": source.shards.fingerprint,
        "samples": len(source),
        "sections": list(source.sections),
    }
    if source.features is not None:
        made_of["features"] = CACHED
        source = source.with_features(source.features, images=False)
    path = trained.run.folder / "cache" / f"embeddings-{dataset}-{split}.h5"
    arrays = encoded_mapped(path, made_of, len(source), lambda first: _embed(trained, source, first), "image")
    keys = source.shards.keys(source.rows)
    # labels as the data set's plugin has them now: no model is asked for them
    return Embeddings(arrays["image"], arrays["text"], source.labels, arrays["has_text"], keys)


def need_itc(trained: PretrainedRun) -> None:
    """Raises CheckpointError for a run that was trained without ITC and so has no joint space."""
    if not trained.recipe.objectives.itc:
        raise CheckpointError(
            f"{trained.run.folder}: trained without ITC, it cannot compare images with texts"
        )


def token_ids(trained: PretrainedRun, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of texts, [CLS] ... [SEP], none of them cut.

    Raises:
        DataError: an empty text, or one longer than the recipe's `text.max_tokens`.
    """
    longest = trained.recipe.text.max_tokens
    rows = []
    for number, text in enumerate(texts, 1):
        which = f"text {number} of {len(texts):,}: " if len(texts) > 1 else ""
        # One token more than allowed is enough to see that a text is too long.
        ids = trained.tokenizer.encode(text[:LONGEST_PROMPT], longest + 1)
        if len(ids) > longest or len(text) > LONGEST_PROMPT:
            raise DataError(
                f"{which}a text of more than {longest} tokens; the run's text.max_tokens is {longest}"
            )
        if len(ids) <= SPECIAL:
            raise DataError(f"{which}an empty text cannot be compared with images")
        rows.append(ids)
    return rows


def embed_texts(trained: PretrainedRun, texts: Sequence[str]) -> NDArray[np.float32]:
    """ITC features of texts, [n, E], L2-normalised.

    Raises:
        DataError: see `token_ids`.
    """
    rows = token_ids(trained, texts)
    features = []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        with measuring():
            text_cls = trained.model.encode_text(PackedText.of(some, trained.device))
            features.append(trained.model.text_head(text_cls).cpu().numpy())
    return np.concatenate(features)


def embed_images(trained: PretrainedRun, image_or_feature: Tensor) -> NDArray[np.float32]:
    """ITC features, [B, Q, E], of uint8 images [B, 1, H, W], or of cached features of the image encoder."""
    with measuring():
        memory = trained.model.encode(image_or_feature)
        image: NDArray[np.float32] = trained.model.image_head(memory.query_BQD).cpu().numpy()
    return image


def embed_many_images(trained: PretrainedRun, image_n1HW: Tensor) -> NDArray[np.float32]:
    """ITC features, [n, Q, E], of any number of uint8 images [n, 1, H, W] on the CPU.

    Raises:
        CheckpointError: the run was trained without ITC, or its embeddings are not finite.
    """
    need_itc(trained)
    size = trained.batch_size or BATCH
    parts = [
        embed_images(trained, image_n1HW[start : start + size].to(trained.device))
        for start in range(0, len(image_n1HW), size)
    ]
    image_nQE = np.concatenate(parts)
    check_finite(trained, image_nQE)
    return image_nQE


def check_finite(trained: PretrainedRun, *features: NDArray[np.float32]) -> None:
    """Raises CheckpointError for NaN or infinite features: no similarity to them means anything."""
    if not all(np.isfinite(feature).all() for feature in features):
        raise CheckpointError(
            f"{trained.run.folder}: the embeddings of step {trained.step} are not finite; training diverged, "
            "see its log.jsonl"
        )


def _embed(trained: PretrainedRun, source: SplitSource, first: int) -> Generator[Arrays, None, None]:
    """The columns of the cache from a row on, by name of the data set in the file."""
    done = first
    with (
        Progress(len(source), "sample", first=first) as progress,
        closing(in_order(partial(_embedded, trained, source, first))) as parts,
    ):
        for rows in parts:
            yield rows
            done += len(rows["label"])
            progress.advance(done)


def _embedded(
    trained: PretrainedRun, source: SplitSource, first: int, rank: int, ranks: int
) -> Generator[Arrays | None, None, None]:
    """One rank's share of `_embed`, a batch at a time."""
    model = trained.model
    size = trained.batch_size or BATCH
    for batch, mask_B in evaluation_batches(source, size, first=first, rank=rank, ranks=ranks):
        if not mask_B.any():
            yield None
            continue
        batch, real = to_device(batch, trained.device), mask_B.numpy()
        image_BQE = embed_images(trained, batch.image_or_feature)[real]
        with measuring():
            text_BE = model.text_head(model.encode_text(batch.text)).cpu().numpy()[real]
        check_finite(trained, image_BQE, text_BE)  # before it is cached
        yield {
            "image": image_BQE,
            "text": text_BE,
            "label": batch.label_B.cpu().numpy()[real],
            "has_text": batch.text.lengths_B.numpy()[real] > SPECIAL,
        }
