"""Baselines of experiments/real_pairs.py that train no network: nearest neighbours and a linear model.

n images with their texts in the training split, m in the one that is measured; P pixels, W words, E width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.scores.partners import partner_ranks
from medunifier_cli.scores.text.words import sentences

Floats = NDArray[np.float32]
EDGE = 32
"""Pixels of the edge to which images are reduced: finer detail does not line up between two patients."""
LEAST = 5
"""Training texts that must use a word, before it counts."""
PRINCIPAL = {"pixels": 100, "words": 300}
"""Principal components that the linear model reads."""
RIDGE = 1.0
"""Added to each variance, as a multiple of the mean variance of the principal components."""
DIRECTIONS = 20
"""Pairs of directions that the linear model compares images and texts by."""


@dataclass(frozen=True)
class Pairs:
    """The images and texts of one split, in the same order."""

    image_nHW: NDArray[np.uint8]
    texts: Sequence[str]


def unit(rows_nE: Floats) -> Floats:
    """Rows of length 1. A row of zeros (no known word, a blank image) becomes the first axis."""
    out = np.asarray(rows_nE, np.float32).copy()
    norm = np.linalg.norm(out, axis=1, keepdims=True)
    out /= np.where(norm > 0, norm, 1)
    out[norm[:, 0] == 0, 0] = 1.0
    return out


def pixel_vectors(image_nHW: NDArray[np.uint8]) -> Floats:
    """[n, P], each image reduced, its mean taken off, scaled to length 1: products are correlations."""
    small = [
        np.asarray(Image.fromarray(image).resize((EDGE, EDGE), Image.Resampling.BOX)) for image in image_nHW
    ]
    flat_nP = np.stack(small).reshape(len(small), -1).astype(np.float32)
    return unit(flat_nP - flat_nP.mean(axis=1, keepdims=True))


class Words:
    """TF-IDF of the training texts: log(n / texts that use the word), once for each word of a text."""

    def __init__(self, texts: Sequence[str]) -> None:
        used = Counter(word for text in texts for word in set(_words(text)))
        known = sorted(word for word, count in used.items() if count >= LEAST) or sorted(used)
        self.column = {word: i for i, word in enumerate(known)}
        self.weight = np.log(len(texts) / np.array([used[word] for word in known], np.float64))

    def vectors(self, texts: Sequence[str]) -> Floats:
        """[n, W], rows of length 1."""
        out = np.zeros((len(texts), len(self.column)), np.float32)
        for row, text in enumerate(texts):
            columns = [self.column[word] for word in set(_words(text)) if word in self.column]
            out[row, columns] = self.weight[columns]
        return unit(out)


def _words(text: str) -> list[str]:
    return [word for sentence in sentences(text) for word in sentence]


def nearest(query_mE: Floats, train_nE: Floats) -> NDArray[np.int64]:
    """Row of the training split with the largest product, [m]."""
    return np.asarray((query_mE @ train_nE.T).argmax(axis=1), np.int64)


def neighbour_ranks(
    train: Pairs, measured: Pairs, partners: NDArray[np.int64]
) -> Mapping[str, NDArray[np.int64]]:
    """Rank of the own partner if both ways go through the nearest training pair.

    An image takes the text of the training image nearest in pixels, and candidates rank by the words they
    share with it. A text takes the image of the training text nearest in words, and candidates rank by their
    pixels.

    Args:
        partners: [m] ids; equal ids are partners.

    Returns:
        `image_to_text` and `text_to_image`, [m] from 1.
    """
    words = Words(train.texts)
    pixels_nP, pixels_mP = pixel_vectors(train.image_nHW), pixel_vectors(measured.image_nHW)
    words_nW, words_mW = words.vectors(train.texts), words.vectors(measured.texts)
    text_of_image_mW = words_nW[nearest(pixels_mP, pixels_nP)]
    image_of_text_mP = pixels_nP[nearest(words_mW, words_nW)]
    to_text, _ = partner_ranks(text_of_image_mW[:, None], words_mW, partners, partners)
    _, to_image = partner_ranks(pixels_mP[:, None], image_of_text_mP, partners, partners)
    return {"image_to_text": to_text, "text_to_image": to_image}


def neighbour_texts(train: Pairs, measured: Pairs) -> list[str]:
    """For each image the text of the training image that is nearest in pixels."""
    rows = nearest(pixel_vectors(measured.image_nHW), pixel_vectors(train.image_nHW))
    return [train.texts[row] for row in rows.tolist()]


def linear_ranks(
    train: Pairs, measured: Pairs, partners: NDArray[np.int64]
) -> Mapping[str, NDArray[np.int64]]:
    """Rank of the own partner by regularised canonical correlation analysis of pixels and words (Hotelling
    1936), fitted on the training split; as `neighbour_ranks`."""
    words = Words(train.texts)
    image_nE, image_mE = _principal(pixel_vectors, train.image_nHW, measured.image_nHW, PRINCIPAL["pixels"])
    text_nE, text_mE = _principal(words.vectors, train.texts, measured.texts, PRINCIPAL["words"])
    white_image, white_text = _whitening(image_nE), _whitening(text_nE)
    shared = white_image @ (image_nE.T @ text_nE / len(image_nE)) @ white_text
    left, strength, right = np.linalg.svd(shared, full_matrices=False)
    kept = slice(0, DIRECTIONS)
    image_mE = unit(image_mE @ white_image @ left[:, kept] * strength[kept])
    text_mE = unit(text_mE @ white_text @ right[kept].T * strength[kept])
    to_text, to_image = partner_ranks(image_mE[:, None], text_mE, partners, partners)
    return {"image_to_text": to_text, "text_to_image": to_image}


def _principal(
    vectors: Callable[[Any], Floats], train: Any, measured: Any, most: int
) -> tuple[Floats, Floats]:
    """Both splits in the principal components of the training split, centred on it."""
    train_nP, measured_mP = vectors(train), vectors(measured)
    mean_P = train_nP.mean(axis=0)
    _, _, axes = np.linalg.svd(train_nP - mean_P, full_matrices=False)
    axes = axes[:most]
    return (train_nP - mean_P) @ axes.T, (measured_mP - mean_P) @ axes.T


def _whitening(rows_nE: Floats) -> Floats:
    """[E, E]: inverse square root of the covariance with its ridge."""
    values, axes = np.linalg.eigh(rows_nE.T @ rows_nE / len(rows_nE))
    ridged = np.maximum(values, 0) + RIDGE * values.mean()
    return np.asarray(axes @ np.diag(1 / np.sqrt(ridged)) @ axes.T, np.float32)
