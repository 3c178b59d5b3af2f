"""Images to discrete codes, and codes back to images.

Letters: B or n images, S edge in pixels, T top edge, G bottom edge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import Batch, PackedText, first_pairs, to_device
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.benchmark import Benchmark, evaluation_batches
from medunifier_cli.evaluate.shared.sharing import in_order
from medunifier_cli.model.precision import measuring

BATCH = 64
"""Images per forward pass."""


def need_tig(pretrained: PretrainedRun) -> None:
    """Raises CheckpointError for a run that was trained without TIG and so has no codes."""
    if not pretrained.recipe.objectives.tig:
        raise CheckpointError(f"{pretrained.run.folder}: trained without TIG, it reconstructs nothing")


def encode(pretrained: PretrainedRun, image_n1HW: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Top [n, T, T] and bottom [n, G, G] codes of images with their texts, int64 on the CPU.

    Args:
        image_n1HW: uint8 grey levels.
        texts: one for each image, which the bottom codes depend on; they may be empty, and those above
            `text.max_tokens` are cut, as in training.

    Raises:
        CheckpointError: the model was trained without TIG and has no codes.
    """
    need_tig(pretrained)
    longest, levels = pretrained.recipe.text.max_tokens, []
    ids = [pretrained.tokenizer.encode(text, longest) for text in texts]
    for start in range(0, len(ids), BATCH):
        some = slice(start, start + BATCH)
        packed = PackedText.of(ids[some], pretrained.device)
        with measuring():
            top, bottom = pretrained.model.codes(image_n1HW[some].to(pretrained.device), packed)
        levels.append((top.cpu(), bottom.cpu()))
    top, bottom = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return top, bottom


def decode(pretrained: PretrainedRun, top_TT: Tensor, bottom_GG: Tensor) -> NDArray[np.uint8]:
    """Codes of one image -> grey levels [S, S]. One at a time: the batch size could change rounding."""
    with measuring():
        image = pretrained.model.generator.from_codes(
            top_TT[None].to(pretrained.device), bottom_GG[None].to(pretrained.device)
        )
    grey_SS: NDArray[np.uint8] = to_grey(image)[0]
    return grey_SS


def reconstructed_batches(
    pretrained: PretrainedRun, benchmark: Benchmark, n: int = 0
) -> Iterator[tuple[Batch, NDArray[np.uint8]]]:
    """Encode images of a split, with their texts, to codes and decode them.

    Args:
        n: only the first n images; 0 for all.

    Returns:
        In the order of the split: a batch without padding, and its reconstructions [B, S, S].
    """
    n = min(n or len(benchmark.source), len(benchmark.source))
    with closing(in_order(partial(_reconstructed, pretrained, benchmark.source, n))) as parts:
        yield from parts


def _reconstructed(
    pretrained: PretrainedRun, source: SplitSource, n: int, rank: int, ranks: int
) -> Generator[tuple[Batch, NDArray[np.uint8]] | None, None, None]:
    """One rank's share of `reconstructed_batches`."""
    size = pretrained.batch_size or BATCH
    for batch, mask_B in evaluation_batches(source, size, -(-n // size), rank=rank, ranks=ranks):
        count = int((mask_B & (batch.position_B < n)).sum())
        if not count:
            yield None
            continue
        batch = first_pairs(batch, count)
        yield batch, reconstruct_batch(pretrained, batch)


def reconstruct_batch(pretrained: PretrainedRun, batch: Batch) -> NDArray[np.uint8]:
    """The images of a batch through the code book, uint8 [B, S, S]."""
    with measuring():
        image_BCHW = pretrained.model.reconstruct(to_device(batch, pretrained.device)).image_BCHW
    return to_grey(image_BCHW)


def to_grey(image_BCHW: Tensor) -> NDArray[np.uint8]:
    """[B, 3, S, S] in about [0, 1] -> uint8 [B, S, S], the mean of the three channels."""
    grey = image_BCHW.float().clamp(0, 1).mean(dim=1)
    result: NDArray[np.uint8] = (grey * 255).round().to(torch.uint8).cpu().numpy()
    return result


def codes_hash(top_TT: Tensor, bottom_GG: Tensor) -> str:
    """Short hash of an image's codes: equal for equal codes, whichever machine decoded them."""
    digest = hashlib.sha256()
    for codes in (top_TT, bottom_GG):
        digest.update(f"{tuple(codes.shape)}".encode() + codes.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]
