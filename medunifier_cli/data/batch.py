"""What a loader hands to the model: `Sample`, `PackedText` and `Batch`, and how a batch gets to a device.

Torch is imported by the functions that need it and not by the module: `data.contract` re-exports these
classes, and data set plugins and `mu prepare` must start without torch.

Shapes: B pairs, N tokens of all texts, H = W = `data.image_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPECIAL = 2
"""Tokens of a text without a word: [CLS] and [SEP]."""


@dataclass(frozen=True)
class Sample:
    """One image-text pair as it is read from a shard."""

    key: str
    image_HW: NDArray[np.uint8]
    """Grey levels 0 (black) to 255, already at the recipe's image size."""
    token_ids: Sequence[int]
    """[CLS] ... [SEP], at most `text.max_tokens` of them."""
    text_digest: int
    """63-bit hash of the token ids, equal for texts that the model reads alike."""
    label: int
    """Index of the one positive class, -1 where there is none or more than one."""


@dataclass(frozen=True)
class PackedText:
    """The texts of a batch end to end; N = sum of lengths, nothing is padded."""

    ids_N: Tensor
    """int64 token ids."""
    lengths_B: Tensor
    """int64 tokens per text, each >= 2 ([CLS] and [SEP]); on the CPU, wherever `ids_N` is."""
    copy_N: Tensor | None = None
    """`ids_N` on the CPU, where a batch that has gone to a GPU still has them."""

    def on_host(self) -> PackedText:
        """The same texts, their ids on the CPU."""
        return PackedText(self.ids_N.cpu() if self.copy_N is None else self.copy_N, self.lengths_B)

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], device: torch.device | None = None) -> PackedText:
        """Pack texts.

        Args:
            texts: the token ids of each, [CLS] and [SEP] included.
            device: where `ids_N` goes; by default the CPU.
        """
        import torch

        ids = [token for text in texts for token in text]
        return cls(
            torch.tensor(ids, dtype=torch.int64, device=device),
            # The layout of a batch (masks, offsets) is computed from the lengths on the CPU; on a GPU each
            # look at them would wait for all work under way.
            torch.tensor([len(text) for text in texts], dtype=torch.int64),
        )


@dataclass(frozen=True)
class Batch:
    """B pairs at consecutive positions of the sample order; the input of a training step."""

    keys: Sequence[str]
    image_B1HW: Tensor
    """uint8 grey levels; `model.vit.pixels` turns them into [0, 1] and three channels on the device.
    [B, 1, 0, 0] where features stand in for them and nothing else reads them."""
    text: PackedText
    digest_B: Tensor
    """int64, see `Sample.text_digest`."""
    label_B: Tensor
    """int64, see `Sample.label`."""
    position_B: Tensor
    """int64 positions in the endless sample order (epoch * n + index within the epoch), on the CPU. Every
    random number of a pair is drawn for its position, so ranks and micro-batches do not change it."""
    feature_BVD: Tensor | None = None
    """Cached features of the image encoder, bf16; None where it has to run."""

    @property
    def image_or_feature(self) -> Tensor:
        """What `MedUnifier.encode` reads: cached features, or images where there are none."""
        return self.image_B1HW if self.feature_BVD is None else self.feature_BVD


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with images, ids, digests and labels on `device`; lengths and positions stay on the CPU."""
    # lengths decide shapes and positions seed random numbers: both are read on the CPU, which would otherwise
    # wait for a GPU in the middle of every step. The same object on the CPU: nothing changes it in place.
    if device.type == "cpu":
        return batch
    text = batch.text
    # pinned: from other memory the CPU waits for the copy, whatever `non_blocking` says
    images, features = batch.image_B1HW, batch.feature_BVD
    if device.type == "cuda":
        images, features = images.pin_memory(), None if features is None else features.pin_memory()
    ids_N, digest_B, label_B = send((text.ids_N, batch.digest_B, batch.label_B), device)
    return Batch(
        batch.keys,
        images.to(device, non_blocking=True),
        PackedText(ids_N, text.lengths_B, text.ids_N),
        digest_B, label_B, batch.position_B,
        None if features is None else features.to(device, non_blocking=True),
    )  # fmt: skip


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """int64 tensors of the CPU on `device`, in one copy for which nothing waits; as they are for the CPU."""
    if device.type == "cpu":
        return list(tensors)
    import torch

    sizes = [tensor.numel() for tensor in tensors]
    buffer = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
    torch.cat([tensor.flatten() for tensor in tensors], out=buffer)
    parts = torch.split(buffer.to(device, non_blocking=True), sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class Fetched:
    """Tensors on their way to the CPU: started now, waited for when they are read, and then for nothing else
    that the device was given in between."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        import torch

        self._event: torch.cuda.Event | None = None
        self._tensors = [tensor.detach() for tensor in tensors]
        if any(tensor.device.type == "cuda" for tensor in tensors):
            sources = self._tensors
            self._tensors = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in sources]
            for here, there in zip(self._tensors, sources, strict=True):
                here.copy_(there, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def get(self) -> list[Tensor]:
        """The tensors on the CPU."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._tensors


def first_pairs(batch: Batch, count: int) -> Batch:
    """The first `count` pairs of a batch."""
    # texts are packed end to end, so the first pairs' tokens are the first tokens
    text, lengths = batch.text, batch.text.lengths_B[:count]
    tokens = int(lengths.sum())
    return Batch(
        batch.keys[:count],
        batch.image_B1HW[:count],
        PackedText(text.ids_N[:tokens], lengths, None if text.copy_N is None else text.copy_N[:tokens]),
        batch.digest_B[:count],
        batch.label_B[:count],
        batch.position_B[:count],
        None if batch.feature_BVD is None else batch.feature_BVD[:count],
    )
