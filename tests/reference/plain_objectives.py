"""ITC, ITM and ITG (paper, section 3.3), each by its own full pass, with the plain encoder.

The losses come twice: as loops over the paper's sums (`loop_*`), and in tensor form for the benchmark, where
a loop would be timed for being a loop. The tests hold both to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.plain_encoder import BI_DIRECTIONAL, CAUSAL, UNI_MODAL, PlainEncoder

VISION_EPS = 1e-5
NO_TARGET = -100


def loop_itc(g_q: Tensor, g_t: Tensor, temperature: Tensor) -> Tensor:
    """Equations (10) to (12). g_q [N, Q, E], g_t [N, E], unit vectors."""
    pairs = len(g_t)
    score = [[torch.stack([q @ g_t[n] for q in g_q[k]]).max() for n in range(pairs)] for k in range(pairs)]
    image_to_text, text_to_image = [], []
    for k in range(pairs):
        own = torch.exp(score[k][k] / temperature)
        texts = sum(torch.exp(score[k][n] / temperature) for n in range(pairs))
        images = sum(torch.exp(score[n][k] / temperature) for n in range(pairs))
        image_to_text.append(-torch.log(own / texts))
        text_to_image.append(-torch.log(own / images))
    return (sum(image_to_text) / pairs + sum(text_to_image) / pairs) / 2


def loop_itm(logits_MQ2: Tensor, matched: list[int]) -> Tensor:
    """Equations (13) and (14): mean logits over queries, then the mean of -log p(answer)."""
    total = torch.zeros((), dtype=logits_MQ2.dtype)
    for logits, answer in zip(logits_MQ2, matched, strict=True):
        mean = sum(logits[i] for i in range(len(logits))) / len(logits)
        total = total - torch.log(torch.exp(mean[answer]) / (torch.exp(mean[0]) + torch.exp(mean[1])))
    return total / len(matched)


def loop_itg(logits_BLK: Tensor, ids_BL: Tensor, lengths: list[int]) -> Tensor:
    """Equation (15) over real tokens: position i gives p of token i + 1."""
    terms = []
    for logits, ids, length in zip(logits_BLK, ids_BL.tolist(), lengths, strict=True):
        for i in range(length - 1):
            p = torch.exp(logits[i]) / torch.exp(logits[i]).sum()
            terms.append(-torch.log(p[ids[i + 1]]))
    return sum(terms, torch.zeros((), dtype=logits_BLK.dtype)) / len(terms)


def draw_by_weight(weights: list[float], uniform: float) -> int:
    """The column where the running sum of the weights first passes `uniform` of their sum; -1 without any."""
    total, run = math.fsum(weights), 0.0
    for column, weight in enumerate(weights):
        run += weight
        if weight > 0 and run > uniform * total:
            return column
    return max((column for column, weight in enumerate(weights) if weight > 0), default=-1)


def hard_negatives(score_NN: Tensor, temperature: float, texts: list[int], uniform: list[float]) -> list[int]:
    """ALBEF's draw for each row: the softmax of its scores, without its own pair and without equal texts."""
    chosen = []
    for row, scores in enumerate(score_NN.tolist()):
        top = max(scores)
        weights = [
            0.0 if column == row or texts[column] == texts[row] else math.exp((s - top) / temperature)
            for column, s in enumerate(scores)
        ]
        chosen.append(draw_by_weight(weights, uniform[row]))
    return chosen


@dataclass(frozen=True)
class PaddedTexts:
    """B texts in a grid; `texts` numbers them so that equal texts have equal numbers."""

    ids_BL: Tensor
    lengths: list[int]
    texts: list[int]


class PlainObjectives:
    """The three losses of a batch.

    Args:
        weights: as `plain_weights` makes them.
        heads: of attention.
        dec_id: token id of [DEC].
    """

    def __init__(self, weights: Mapping[str, Tensor], heads: int, dec_id: int) -> None:
        self.w, self.dec_id = weights, dec_id
        self.encode = PlainEncoder(weights, heads)

    def look(self, features_BVD: Tensor) -> Tensor:
        """The trainable norm after the frozen ViT."""
        return self.encode.norm("vision_norm", features_BVD, VISION_EPS)

    def embeddings(self, image_BVD: Tensor, text: PaddedTexts) -> tuple[Tensor, Tensor]:
        """Equations (8) and (9): g_q [B, Q, E] and g_t [B, E]."""
        f_q, f_t = self.encode(image_BVD, text.ids_BL, text.lengths, UNI_MODAL)
        g_q = self.encode.linear("image_head.project", f_q)
        g_t = self.encode.linear("text_head.project", f_t[:, 0])
        return F.normalize(g_q, dim=-1), F.normalize(g_t, dim=-1)

    def match_logits(self, image_MVD: Tensor, text: PaddedTexts) -> Tensor:
        """Logits of each query, [M, Q, 2]."""
        f_q, _ = self.encode(image_MVD, text.ids_BL, text.lengths, BI_DIRECTIONAL)
        return self.encode.linear("match_head", f_q)

    def word_logits(self, image_BVD: Tensor, text: PaddedTexts) -> Tensor:
        """Vocabulary logits at every position, padding included, [B, L, K]."""
        ids = text.ids_BL.clone()
        ids[:, 0] = self.dec_id
        _, f_t = self.encode(image_BVD, ids, text.lengths, CAUSAL)
        x = F.gelu(self.encode.linear("word_head.transform", f_t))
        return F.linear(
            self.encode.norm("word_head.norm", x), self.w["word.weight"], self.w["word_head.bias"]
        )

    def itc(self, g_q: Tensor, g_t: Tensor) -> Tensor:
        """Tensor form of `loop_itc`."""
        score = torch.einsum("kqe,ne->kqn", g_q, g_t).amax(dim=1) / self.w["temperature"]
        own = torch.arange(len(score))
        return (F.cross_entropy(score, own) + F.cross_entropy(score.T, own)) / 2

    def itm_rows(self, text_of: list[int], image_of: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Positives, each text with another image, each image with another text -> images, texts, answers."""
        images, texts = list(range(len(text_of))), list(range(len(text_of)))
        for text, image in enumerate(image_of):
            if image >= 0:
                images.append(image)
                texts.append(text)
        for image, text in enumerate(text_of):
            if text >= 0:
                images.append(image)
                texts.append(text)
        return images, texts, [int(row < len(text_of)) for row in range(len(images))]

    def itm(self, image_BVD: Tensor, text: PaddedTexts, text_of: list[int], image_of: list[int]) -> Tensor:
        """Tensor form of `loop_itm`; image k is also shown text `text_of[k]`, text k image `image_of[k]`."""
        images, texts, matched = self.itm_rows(text_of, image_of)
        rows = PaddedTexts(text.ids_BL[texts], [text.lengths[t] for t in texts], [])
        logits = self.match_logits(image_BVD[images], rows).mean(dim=1)
        return F.cross_entropy(logits, torch.tensor(matched))

    def itg(self, image_BVD: Tensor, text: PaddedTexts) -> Tensor:
        """Tensor form of `loop_itg`."""
        logits = self.word_logits(image_BVD, text)
        target = text.ids_BL[:, 1:].clone()
        for row, length in enumerate(text.lengths):
            target[row, length - 1 :] = NO_TARGET
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten(), ignore_index=NO_TARGET)

    def __call__(
        self, features_BVD: Tensor, text: PaddedTexts, uniform_text: list[float], uniform_image: list[float]
    ) -> dict[str, Tensor]:
        """All three, negatives drawn by the given numbers in [0, 1)."""
        image = self.look(features_BVD)
        g_q, g_t = self.embeddings(image, text)
        with torch.no_grad():
            score = torch.einsum("kqe,ne->kqn", g_q, g_t).amax(dim=1)
        temperature = self.w["temperature"].item()
        text_of = hard_negatives(score, temperature, text.texts, uniform_text)
        image_of = hard_negatives(score.T, temperature, text.texts, uniform_image)
        return {
            "itc": self.itc(g_q, g_t),
            "itm": self.itm(image, text, text_of, image_of),
            "itg": self.itg(image, text),
        }
