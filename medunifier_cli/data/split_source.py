"""The samples of one split as the recipe wants them: text composed and cut, image decoded at its size.

Shapes: B pairs, N tokens of all texts, H = W = `data.image_size`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medunifier_cli.data.contract import Batch, DatasetPlugin, PackedText, Sample
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.report import TextTokenizer, compose
from medunifier_cli.data.texts.token_table import text_table
from medunifier_cli.errors import DataError
from medunifier_cli.recipe.schema import DataConfig, TextConfig


class SplitSource:
    """The samples of one split as the recipe wants them. Picklable: it holds neither tokenizer nor plugin.

    Args:
        shards: the opened split.
        tokenizer: cuts the texts, once.
        data, text: of the recipe. `data.limit` applies to the split named `data.train`.
        plugin: names the text sections and the class of a sample.
        need_text: leave samples without text out; False keeps them with the text [CLS] [SEP].

    Attributes:
        rows: row of each sample in the shards, int64 [n].
        labels: class index of each sample, -1 for none or several, int64 [n].
        digests: hash of each sample's text, int64 [n].
        excluded: samples left out because their text is empty.

    Raises:
        DataError: nothing is left, or a shard cannot be read.
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
    ) -> None:
        self.shards = shards
        self.data = data
        self.text_recipe = text
        self.sections = data.sections or plugin.text_sections
        self._table = text_table(shards, self.sections, data, text, tokenizer)
        self._blank = np.array([tokenizer.cls_id, tokenizer.sep_id], np.int32)
        has_text = np.diff(self._table.start) > 0
        self.excluded = int((~has_text).sum()) if need_text else 0
        self.rows: NDArray[np.int64] = np.flatnonzero(has_text) if need_text else np.arange(len(shards))
        if shards.split == data.train and data.limit:
            self.rows = self.rows[: data.limit]
        if not len(self.rows):
            raise DataError(
                f"{shards.folder}: no sample of split {shards.split!r} is left; {self.excluded:,} of "
                f"{len(shards):,} have no text in {', '.join(self.sections)} (data.sections, data.require)"
            )
        self.labels = shards.class_indices(plugin)[self.rows]
        self.digests: NDArray[np.int64] = self._table.digest[self.rows].astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def folder(self) -> Path:
        """Of the shards."""
        return self.shards.folder

    def room(self, count: int) -> Tensor:
        """For the images of so many samples, uint8 [count, 1, H, W]."""
        return image_room(count, self.data.image_size)

    def sample(self, i: int) -> Sample:
        """Sample i, decoded.

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
            text_digest=int(self._table.digest[row]),
            label=int(self.labels[i]),
        )

    def gather(self, samples: NDArray[np.int64], image_B1HW: Tensor) -> Gathered:
        """`sample` for a whole batch at once: images are decoded straight into `image_B1HW`, uint8."""
        rows = self.rows[samples]
        pixels = image_B1HW.numpy()
        for place, (row, body) in enumerate(zip(rows.tolist(), self.shards.images(rows), strict=True)):
            self._decode(body, row, pixels[place, 0])
        ids = [self._token_ids(row) for row in rows.tolist()]
        return Gathered(
            keys=self.shards.keys(rows),
            image_B1HW=image_B1HW,
            ids_N=np.concatenate(ids),
            lengths_B=np.array([len(one) for one in ids]),
            digest_B=self._table.digest[rows],
            label_B=self.labels[samples],
        )

    def meta(self, i: int) -> dict[str, Any]:
        """Everything the shard says of sample i."""
        return self.shards.meta(int(self.rows[i]))

    def text(self, i: int) -> str:
        """Composed text of sample i, uncut."""
        sections = self.meta(i).get("sections") or {}
        text = self.text_recipe
        return compose(
            sections, self.sections, self.data.require, text.strip_deidentified, text.section_marks
        )

    def token_ids(self, i: int) -> list[int]:
        """[CLS] ... [SEP] of sample i, nothing decoded."""
        ids: list[int] = self._token_ids(int(self.rows[i])).tolist()
        return ids

    def images(self, samples: NDArray[np.int64]) -> Tensor:
        """Images of several samples, uint8 [B, 1, H, W].

        Raises:
            DataError: damaged image or shard; names shard and key.
        """
        return self.gather(samples, self.room(len(samples))).image_B1HW

    def _token_ids(self, row: int) -> NDArray[np.int32]:
        start, stop = self._table.start[row : row + 2]
        return self._table.ids_N[start:stop] if stop > start else self._blank

    def _decode(self, body: bytes, row: int, out_HW: NDArray[np.uint8]) -> None:
        if not decode_grey(body, out_HW):
            raise DataError(f"{self.shards.where(row)}: damaged image; run `mu prepare` again")


def image_room(count: int, image_size: int) -> Tensor:
    """An empty uint8 tensor [count, 1, H, W]."""
    return torch.empty((count, 1, image_size, image_size), dtype=torch.uint8)


def decode_grey(body: bytes, out_HW: NDArray[np.uint8]) -> bool:
    """PNG or JPEG -> `out_HW`, resized where the shards hold another size; False for a damaged image."""
    height, width = out_HW.shape
    try:
        image = Image.open(io.BytesIO(body), formats=("PNG", "JPEG"))
        grey = image if image.mode == "L" else image.convert("L")
        if grey.size != (width, height):
            grey = grey.resize((width, height), Image.Resampling.BILINEAR)
        out_HW[:] = np.asarray(grey)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


@dataclass(frozen=True)
class Gathered:
    """A batch on its way out of a worker: images in shared memory, the rest small enough for the pipe."""

    keys: list[str]
    image_B1HW: Tensor
    ids_N: NDArray[np.int32]
    lengths_B: NDArray[np.int64]
    digest_B: NDArray[np.int64]
    label_B: NDArray[np.int64]

    def batch(self, places: NDArray[np.int64]) -> Batch:
        """As a step takes it."""
        return Batch(
            keys=self.keys,
            image_B1HW=self.image_B1HW,
            text=PackedText(torch.from_numpy(self.ids_N).long(), torch.from_numpy(self.lengths_B)),
            digest_B=torch.from_numpy(self.digest_B),
            label_B=torch.from_numpy(self.label_B),
            position_B=torch.from_numpy(places),
        )
