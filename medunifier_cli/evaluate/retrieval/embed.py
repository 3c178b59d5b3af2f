"""The embedding pass: ITC features of a split, once per (checkpoint, data), kept in HDF5.

n samples, Q queries, E joint space.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import SPECIAL, PackedText, to_device
from medunifier_cli.data.loader import SplitSource, eval_batches
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.run.provenance import data_facts
from medunifier_cli.terminal.progress import Progress

BATCH = 64
"""Samples per forward pass."""


@dataclass(frozen=True)
class Embeddings:
    """ITC features of a split."""

    image_nQE: NDArray[np.float32]
    text_nE: NDArray[np.float32]
    label_n: NDArray[np.int64]
    """Class index, -1 for none or several."""
    has_text_n: NDArray[np.bool_]
    """False where the text is empty: its feature is that of [CLS] [SEP]."""
    keys: list[str]


def embed_split(
    trained: PretrainedRun, source: SplitSource, dataset: str, split: str, shards: Path
) -> Embeddings:
    """Features of every sample, from the cache where it was made by this checkpoint and these data.

    Args:
        source: opened with `need_text=False`, so that retrieval and zero-shot share one pass.
        dataset, split: what the cache is called.
        shards: folder whose manifest the cache belongs to.

    Raises:
        CheckpointError: the run was trained without ITC, or its embeddings are not finite.
    """
    need_itc(trained)
    cache = trained.run.folder / "cache" / f"embeddings-{dataset}-{split}.h5"
    made_by = f"{trained.identity} {data_facts(shards)['manifest']} {source.shards.fingerprint}"
    made_of = f"{made_by} {len(source)} {','.join(source.sections)}"
    found = _read(cache, made_of)
    if found is None:
        found = _embed(trained, source)
        check_finite(trained, found.image_nQE, found.text_nE)
        _write(cache, made_of, found)
    return found


def need_itc(trained: PretrainedRun) -> None:
    """Refuse a run that has no joint space.

    Raises:
        CheckpointError: it was trained without ITC.
    """
    if not trained.recipe.objectives.itc:
        raise CheckpointError(
            f"{trained.run.folder}: trained without ITC, it cannot compare images with texts"
        )


def embed_texts(trained: PretrainedRun, texts: list[str]) -> NDArray[np.float32]:
    """Texts -> [n, E].

    Raises:
        DataError: an empty text, or one longer than the recipe's `text.max_tokens`.
    """
    longest = trained.recipe.text.max_tokens
    rows = []
    for text in texts:
        ids = trained.tokenizer.encode(text, longest + 1)
        if len(ids) > longest:
            raise DataError(f"a text of more than {longest} tokens; the run's text.max_tokens is {longest}")
        if len(ids) <= SPECIAL:
            raise DataError("an empty text cannot be compared with images")
        rows.append(ids)
    found = []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        with torch.no_grad():
            text_cls = trained.model.encode_text(PackedText.of(some, trained.device))
            found.append(trained.model.text_head(text_cls).cpu().numpy())
    return np.concatenate(found)


def embed_images(trained: PretrainedRun, image_BCHW: Tensor) -> NDArray[np.float32]:
    """Pixels in [0, 1] -> [B, Q, E]."""
    with torch.no_grad():
        memory = trained.model.encode_image(image_BCHW)
        image: NDArray[np.float32] = trained.model.image_head(memory.query_BQD).cpu().numpy()
    return image


def check_finite(trained: PretrainedRun, *features: NDArray[np.float32]) -> None:
    """Refuse NaN and infinite features.

    Raises:
        CheckpointError: there is one, so that no similarity to it means anything.
    """
    if not all(np.isfinite(feature).all() for feature in features):
        raise CheckpointError(
            f"{trained.run.folder}: step {trained.step} gives embeddings that are not finite; training "
            "diverged, see its log.jsonl"
        )


def _embed(trained: PretrainedRun, source: SplitSource) -> Embeddings:
    from medunifier_cli.model.vit import pixels

    images, texts, labels, lengths, keys = [], [], [], [], []
    model = trained.model
    batches = eval_batches(source, batch_size=BATCH, rank=0, world=1, workers=0)
    with Progress(len(source), "sample") as progress, torch.no_grad():
        for batch, mask_B in batches:
            batch = to_device(batch, trained.device)
            images.append(embed_images(trained, pixels(batch.image_B1HW))[mask_B.numpy()])
            text_cls = model.encode_text(batch.text)
            texts.append(model.text_head(text_cls).cpu().numpy()[mask_B.numpy()])
            labels.append(batch.label_B.cpu().numpy()[mask_B.numpy()])
            lengths.append(batch.text.lengths_B.numpy()[mask_B.numpy()])
            keys += [key for key, real in zip(batch.keys, mask_B.tolist(), strict=True) if real]
            progress.advance(len(keys))
    return Embeddings(
        np.concatenate(images), np.concatenate(texts), np.concatenate(labels),
        np.concatenate(lengths) > SPECIAL, keys,
    )  # fmt: skip


def _read(path: Path, made_of: str) -> Embeddings | None:
    if not path.exists():
        return None
    try:
        with h5py.File(path) as file:
            if file.attrs["made_of"] != made_of:
                return None  # another checkpoint or other data
            keys = [key.decode() for key in file["keys"][:]]
            return Embeddings(file["image"][:], file["text"][:], file["label"][:], file["has_text"][:], keys)
    except (OSError, KeyError):
        return None  # torn by a kill; made again


def _write(path: Path, made_of: str, found: Embeddings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    with h5py.File(temporary, "w") as file:
        file.create_dataset("image", data=found.image_nQE)
        file.create_dataset("text", data=found.text_nE)
        file.create_dataset("label", data=found.label_n)
        file.create_dataset("has_text", data=found.has_text_n)
        file.create_dataset("keys", data=np.array([key.encode() for key in found.keys]))
        file.attrs["made_of"] = made_of
    temporary.replace(path)
