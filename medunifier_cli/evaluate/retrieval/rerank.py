"""Re-rank the best candidates of a retrieval by the ITM head, which judges each image-text pair jointly.

P pairs of n images and texts; L_q queries, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import PackedText
from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.shared.sharing import each
from medunifier_cli.model.precision import measuring
from medunifier_cli.scores.search import Top, reorder
from medunifier_cli.terminal.progress import Progress

Images = Callable[[NDArray[np.int64]], Tensor]
"""Indices of images -> their grey levels, uint8 [B, 1, H, W], or cached features of them."""
Texts = Callable[[int], Sequence[int]]
"""Index of a text -> its token ids, [CLS] ... [SEP]."""

IMAGES_AT_ONCE = 32
TEXTS_AT_ONCE = 8
"""Texts of each image in one pass; 256 pairs at most."""


def match_scores(
    trained: PretrainedRun,
    images: Images,
    texts: Texts,
    image_P: NDArray[np.int64],
    text_P: NDArray[np.int64],
    quiet: bool = False,
) -> NDArray[np.float32]:
    """Log-odds of a match of each pair, [P]: logit of the match minus logit of no match (equation 14).

    The difference and not the logit of the match alone: both logits depend on the image, and only their
    difference is comparable between images.

    Args:
        images, texts: picklable, where several ranks share the work.
        quiet: show no progress.

    Raises:
        CheckpointError: the run was trained without ITM.
    """
    if not trained.recipe.objectives.itm:
        raise CheckpointError(
            f"{trained.run.folder}: trained without ITM, it cannot judge whether image and text match"
        )
    # Sorted by image, so that an image with many candidate texts is encoded once.
    order = np.lexsort((text_P, image_P))
    image, text = image_P[order], text_P[order]
    # Where the pairs of each block of images begin, and where the last ones end.
    first = np.unique(image, return_index=True)[1]
    edges = [*first[::IMAGES_AT_ONCE].tolist(), len(order)]
    blocks = [(image[low:high], text[low:high]) for low, high in pairwise(edges)]
    out, done = np.empty(len(order), np.float32), 0
    with Progress(len(order), "pair", hidden=quiet) as progress:
        for odds in each(partial(_match_block, trained, images, texts), blocks):
            out[order[done : done + len(odds)]] = odds
            done += len(odds)
            progress.advance(done)
    return out


def _match_block(
    trained: PretrainedRun, images: Images, texts: Texts, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Log-odds of the pairs of some images, sorted by image."""
    image, text = pairs
    distinct, first, image_row = np.unique(image, return_index=True, return_inverse=True)
    # Of each pair: row of its image in `memory`, and rank of its text among that image's texts.
    text_rank = np.arange(len(image)) - first[image_row]
    odds = np.empty(len(image), np.float32)
    with measuring():
        memory = trained.model.encode(images(distinct).to(trained.device))
        for lowest in range(0, int(text_rank.max()) + 1, TEXTS_AT_ONCE):
            batch = np.flatnonzero((text_rank >= lowest) & (text_rank < lowest + TEXTS_AT_ONCE))
            packed = PackedText.of([texts(int(number)) for number in text[batch]], trained.device)
            logits_M2 = trained.model.match(memory, torch.from_numpy(image_row[batch]), packed)
            odds[batch] = (logits_M2[:, 1] - logits_M2[:, 0]).cpu().numpy()
    return odds


def match_probability(logodds: ArrayLike) -> NDArray[np.float64]:
    """Log-odds of a match -> its probability, in [0, 1]."""
    # exp(-log(1 + exp(-x))): a logit below -700 does not overflow
    probability: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -np.asarray(logodds, np.float64)))
    return probability


def rerank(
    trained: PretrainedRun, images: Images, texts: Texts, to_text: Top, to_image: Top, k: int
) -> tuple[Top, Top]:
    """Order the best `k` candidates of both rankings by match; the candidates after them keep their order.

    A pair that occurs in both rankings is computed once.

    Args:
        to_text: each image's best texts.
        to_image: each text's best images, the same number.

    Returns:
        The two rankings; the scores of the first `k` are log-odds of a match, the others are unchanged.
    """
    queries_QK = np.repeat(np.arange(len(to_text.indices_QK))[:, None], k, axis=1)
    candidates = np.stack([to_text.indices_QK[:, :k], to_image.indices_QK[:, :k]])
    image_2QK = np.stack([queries_QK, candidates[1]])
    text_2QK = np.stack([candidates[0], queries_QK])
    pairs, index = np.unique(np.stack([image_2QK.ravel(), text_2QK.ravel()]), axis=1, return_inverse=True)
    scores = match_scores(trained, images, texts, pairs[0], pairs[1])[index.reshape(-1)]
    scores_2QK = scores.reshape(candidates.shape)
    return _reordered(to_text, scores_2QK[0]), _reordered(to_image, scores_2QK[1])


def _reordered(top: Top, scores_QK: NDArray[np.float32]) -> Top:
    k = scores_QK.shape[1]
    first = reorder(Top(top.indices_QK[:, :k], top.scores_QK[:, :k]), scores_QK)
    return Top(
        np.concatenate([first.indices_QK, top.indices_QK[:, k:]], axis=1),
        np.concatenate([first.scores_QK, top.scores_QK[:, k:]], axis=1),
    )
