"""Samples of one split as the recipe describes them: composed and tokenized text, image decoded and resized.

Shapes: B pairs, N tokens of all texts, H = W = `data.image_size`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.data.batch import Batch, PackedText, Sample
from medunifier_cli.data.cached_features import SplitFeatures
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.disk.index import digest64
from medunifier_cli.data.images.stored import decode_grey, empty_images
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.report import compose
from medunifier_cli.data.texts.token_table import prompt_table, sections_there, token_table
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import DataError
from medunifier_cli.recipe.schema import DataConfig, TextConfig

Room = Tensor | tuple[Tensor, Tensor]
"""Where a batch is read to: its images; or its images and its cached features."""


class SplitSource:
    """The image-text pairs of one split. Picklable: it keeps neither the tokenizer nor the plugin.

    Args:
        shards: the opened split.
        tokenizer: tokenizes all texts here, once.
        data, text: sections of the recipe. `data.limit` applies to the split named `data.train`.
        plugin: names the text sections, and the class of a sample.
        need_text: leave samples without text out; False keeps them with the text [CLS] [SEP].
        class_prompts: for a split in which no sample has text: class -> prompts. Each sample of exactly one
            class then has one of them as its text, chosen by its key. None for no such texts.

    Attributes:
        rows: row of each sample in the shards, int64 [n].
        labels: class index of each sample, -1 for none or several, int64 [n].
        digests: hash of each sample's whole text, int64 [n].
        token_digests: hash of what the model reads of it, int64 [n], see `report.token_digest`.
        excluded: number of samples left out because their text is empty.
        prompted: whether the texts are prompts of the classes.
        features: cached features of the image encoder, which batches then have; None for none.

    Raises:
        DataError: no sample is left, a shard cannot be read, or a class has no prompt.
    """

    def __init__(
        self,
        shards: Shards,
        tokenizer: TextTokenizer,
        data: DataConfig,
        text: TextConfig,
        plugin: DatasetPlugin,
        *,
        need_text: bool = True,
        class_prompts: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.shards = shards
        self.features: SplitFeatures | None = None
        self._decodes = True
        self.data = data
        self.text_recipe = text
        self.sections = data.sections or plugin.text_sections
        self._table = token_table(shards, self.sections, data, text, tokenizer)
        label_n = shards.class_indices(plugin)
        self.prompted = class_prompts is not None and not self._table.start[-1]
        self._prompts: list[str] = []
        if self.prompted:
            self._prompts, self._prompt_n = _prompts_of(shards, plugin, label_n, class_prompts or {})
            self._table = prompt_table(self._prompts, self._prompt_n, text, tokenizer)
        # The text of a sample without words: the Q-Former needs at least [CLS] to attend to.
        self._blank = np.array([tokenizer.cls_id, tokenizer.sep_id], np.int32)
        # Decided once and for the whole split, before training: if a worker skipped empty texts when it met
        # them, the position of every later sample would depend on what had been read before.
        has_text = np.diff(self._table.start) > 0
        self.excluded = int((~has_text).sum()) if need_text else 0
        self.rows: NDArray[np.int64] = np.flatnonzero(has_text) if need_text else np.arange(len(shards))
        # After the samples without text are gone: `limit` is the number of samples that are trained on.
        if shards.split == data.train and data.limit:
            self.rows = self.rows[: data.limit]
        if not len(self.rows):
            raise DataError(
                f"{shards.folder}: no sample of split {shards.split!r} is left; {self.excluded:,} of "
                f"{len(shards):,} have no text in {', '.join(self.sections)} (data.sections, data.require); "
                f"sections there: {sections_there(shards)}"
            )
        # Of all samples at once, while the plugin is at hand: workers get labels as numbers, and plugins from
        # elsewhere need not pickle.
        self.labels = label_n[self.rows]
        self.digests: NDArray[np.int64] = self._table.digest[self.rows].astype(np.int64)
        self.token_digests: NDArray[np.int64] = self._table.token_digest[self.rows].astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def folder(self) -> Path:
        """Folder of the shards."""
        return self.shards.folder

    def with_features(self, features: SplitFeatures | None, images: bool = True) -> SplitSource:
        """The same samples with cached features, if any; `images`: and with the images all the same."""
        other = copy.copy(self)
        other.features, other._decodes = features, images or features is None
        return other

    def at_size(self, size: int) -> SplitSource:
        """The same samples, their images decoded at another size."""
        other = copy.copy(self)
        other.data = replace(self.data, image_size=size)
        return other

    def empty(self, count: int) -> Room:
        """Uninitialised tensors for `count` samples: uint8 [count, 1, H, W], and cached features."""
        images = empty_images(count, self.data.image_size if self._decodes else 0)
        return images if self.features is None else (images, self.features.empty(count))

    def sample(self, i: int) -> Sample:
        """Sample i with its image decoded.

        Raises:
            DataError: damaged image or shard; names shard and key.
        """
        row = int(self.rows[i])
        size = self.data.image_size
        image_HW = np.empty((size, size), np.uint8)
        self._decode(self.shards.image(row), row, image_HW)
        return Sample(
            key=self.shards.key(row),
            image_HW=image_HW,
            token_ids=self._token_ids(row).tolist(),
            text_digest=int(self._table.token_digest[row]),
            label=int(self.labels[i]),
        )

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], room: Room) -> Batch:
        """A batch of samples, int64 [B], at their positions of the order.

        Equal to `loader.collate` over `sample`, without a step per sample where one per batch will do.

        Args:
            room: of `empty`, overwritten and part of the batch.

        Raises:
            DataError: damaged image, shard or features; names the file.
        """
        rows = self.rows[samples]
        image_B1HW, feature_BVD = room if isinstance(room, tuple) else (room, None)
        if self._decodes:
            self._decode_rows(rows, image_B1HW)
        if feature_BVD is not None and self.features is not None:
            self.features.read(rows, feature_BVD)
        ids = [self._token_ids(row) for row in rows.tolist()]
        lengths = np.array([len(one) for one in ids], np.int64)
        return Batch(
            keys=self.shards.keys(rows),
            image_B1HW=image_B1HW,
            # Not PackedText.of: it would turn 64 x 40 numpy integers into Python integers and back.
            text=PackedText(torch.from_numpy(np.concatenate(ids)).long(), torch.from_numpy(lengths)),
            # Indexing with an array copies, so no tensor below shares memory with the split's tables, and
            # writing to a batch cannot change them.
            digest_B=torch.from_numpy(self._table.token_digest[rows]),
            label_B=torch.from_numpy(self.labels[samples]),
            position_B=torch.from_numpy(positions),
            feature_BVD=feature_BVD,
        )

    def meta(self, i: int) -> dict[str, Any]:
        """The metadata of sample i, as written to its shard."""
        return self.shards.meta(int(self.rows[i]))

    def text(self, i: int) -> str:
        """Composed text of sample i, untruncated; where texts are prompts, its prompt."""
        if self.prompted:
            return self._prompts[int(self._prompt_n[self.rows[i]])]
        sections = self.meta(i).get("sections") or {}
        text = self.text_recipe
        return compose(
            sections, self.sections, self.data.require, text.strip_deidentified, text.section_marks
        )

    def token_ids(self, i: int) -> list[int]:
        """[CLS] ... [SEP] of sample i; reads no image."""
        ids: list[int] = self._token_ids(int(self.rows[i])).tolist()
        return ids

    def images(self, samples: NDArray[np.int64]) -> Tensor:
        """Images of several samples, uint8 [B, 1, H, W].

        Raises:
            DataError: damaged image or shard; names shard and key.
        """
        image_B1HW = empty_images(len(samples), self.data.image_size)
        self._decode_rows(self.rows[samples], image_B1HW)
        return image_B1HW

    def images_or_features(self, samples: NDArray[np.int64]) -> Tensor:
        """Cached features of several samples, bf16 [B, V, D]; `images` where there are none.

        Raises:
            DataError: damaged image, shard or features; names the file.
        """
        if self.features is None:
            return self.images(samples)
        feature_BVD = self.features.empty(len(samples))
        self.features.read(self.rows[samples], feature_BVD)
        return feature_BVD

    def _token_ids(self, row: int) -> NDArray[np.int32]:
        start, stop = self._table.start[row : row + 2]
        return self._table.ids_N[start:stop] if stop > start else self._blank

    def _decode_rows(self, rows: NDArray[np.int64], image_B1HW: Tensor) -> None:
        # A view, not a copy: writing to it writes to the tensor, which may be in shared memory.
        pixels = image_B1HW.numpy()
        for i, (row, body) in enumerate(zip(rows.tolist(), self.shards.images(rows), strict=True)):
            self._decode(body, row, pixels[i, 0])

    def _decode(self, body: bytes, row: int, out_HW: NDArray[np.uint8]) -> None:
        if not decode_grey(body, out_HW):
            raise DataError(
                f"{self.shards.where(row)}: damaged image, or one of too many pixels; run `mu prepare` again"
            )


class SplitView:
    """The samples of a split, read in another way; a subclass says in which. A `loader.SampleSource`.

    Args:
        source: what is read.
    """

    def __init__(self, source: SplitSource) -> None:
        self.source = source

    @property
    def folder(self) -> Path:
        """Folder of the shards, for messages."""
        return self.source.folder

    def __len__(self) -> int:
        return len(self.source)

    def empty(self, count: int, /) -> Room:
        """Uninitialised tensors for what is read of `count` samples."""
        return self.source.empty(count)

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], room: Room, /) -> Batch:
        """The batch of these samples at these positions of the order.

        Raises:
            DataError: damaged image, shard or features; names the file.
        """
        return self.source.read(samples, positions, room)


def _prompts_of(
    shards: Shards, plugin: DatasetPlugin, label_n: NDArray[np.int64], by_class: Mapping[str, Sequence[str]]
) -> tuple[list[str], NDArray[np.int64]]:
    """All prompts, and the index of each sample's, -1 for a sample without a class; chosen by its key."""
    missing = [name for name in plugin.classes if not by_class.get(name)]
    if missing or not plugin.classes:
        raise DataError(
            f"{shards.folder}: no texts in split {shards.split!r}, and no prompts for "
            f"{', '.join(missing) or 'any class'}, which would stand in for them; prepare it with prompts "
            "(for a table: -o prompts=FILE)"
        )
    prompts = list(dict.fromkeys(text for name in plugin.classes for text in by_class[name]))
    number = {text: i for i, text in enumerate(prompts)}
    numbers = [[number[text] for text in by_class[name]] for name in plugin.classes]
    chosen_n = np.full(len(label_n), -1, np.int64)
    for row in np.flatnonzero(label_n >= 0).tolist():
        choices = numbers[label_n[row]]
        chosen_n[row] = choices[digest64(shards.key(row)) % len(choices)]
    return prompts, chosen_n
