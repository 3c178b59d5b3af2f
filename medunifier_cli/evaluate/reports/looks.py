"""Which parts of an image the sentences of a generated report draw on, by the model's attention weights.

Text never attends to the image: it attends to the keys and values of the queries, which have attended to the
image in the layers before (`model.qformer`). So the map of a token is the product of the two attentions: in
each layer how much the token attends to each query, times where that query looked in the layers before.
That is what the model computed with, and not a proof: patches have exchanged contents in the image encoder,
and attention tells how much is read, not what it changes.

T tokens, Q queries, V image tokens (class token and patches), H heads, D width, G edge of the patch grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.data.texts.report import readable
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.model.attention.masks import by_head, causal_rows
from medunifier_cli.model.attention.memory import ImageMemory
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.qformer import Block

ENDS = (".", "!", "?")
"""Tokens that end a sentence."""


def query_looks(model: MedUnifier, memory: ImageMemory) -> list[Tensor | None]:
    """Where the queries of one image look in each layer: cross-attention weights [Q, V], mean over heads.

    Args:
        memory: of one image.

    Returns:
        For each layer; None where it has no cross-attention. Rows sum to 1.
    """
    qformer = model.qformer
    query_1QD = qformer.norm(qformer.query_tokens)[None]
    looks: list[Tensor | None] = []
    for block, cross in zip(_blocks(model), memory.cross, strict=True):
        attention = block.attention
        q, k, v = attention.project(attention.qkv(query_1QD))
        query_1QD = attention.finish(attention.attend(q, k, v), query_1QD)
        if block.cross is not None and cross is not None:
            q = by_head(block.cross.q(query_1QD), block.cross.heads)
            looks.append(_weights(q, cross[0], None)[0].mean(dim=0))
        else:
            looks.append(None)
        query_1QD = block.after_attention(query_1QD, cross, None)
    return looks


def token_reads(model: MedUnifier, memory: ImageMemory, ids_T: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """How much each token of a text attends to each query, in each layer of the causal pass.

    Args:
        memory: of one image.
        ids_T: [DEC], then the text.

    Returns:
        For each layer weights [T, Q], mean over heads: what a row lacks to 1 goes to earlier words. And the
        features of the last layer [T, D], those of `QFormer.decode_text`.
    """
    qformer, count = model.qformer, len(ids_T)
    device = memory.query_BQD.device
    ids = torch.tensor(list(ids_T), device=device)
    text_TD = qformer.norm(qformer.word(ids) + qformer.position.weight[:count])
    open_TS = causal_rows(qformer.queries, count, device)
    reads = []
    for block, (own_k, own_v) in zip(_blocks(model), memory.own, strict=True):
        attention = block.attention
        q, k, v = attention.project(attention.qkv(text_TD)[None])
        k, v = torch.cat([own_k, k], dim=2), torch.cat([own_v, v], dim=2)
        weights_1HTS = _weights(q, k, open_TS)
        reads.append(weights_1HTS[0, :, :, : qformer.queries].mean(dim=0))
        mixed = (weights_1HTS @ v).transpose(1, 2).flatten(2)[0]
        text_TD = block.ffn_text(attention.finish(mixed, text_TD))
    return reads, text_TD


def token_maps(
    model: MedUnifier, memory: ImageMemory, tokens: Sequence[int], start: int
) -> NDArray[np.float32]:
    """Of each token of a generated text, where the image was read to write it: [T, G, G], each sums to 1.

    Args:
        model: in evaluation mode.
        memory: of one image.
        tokens: as generated, without [DEC].
        start: the id of [DEC].

    Returns:
        Without rows if no layer reads queries that have looked at the image, as in a Q-Former of one layer.
    """
    looks = query_looks(model, memory)
    # the row of a token predicts the next one: the first word is written from [DEC]
    reads, _ = token_reads(model, memory, [start, *tokens[:-1]])
    patches = memory.patch_BVD.shape[1]
    total_TP = torch.zeros(len(tokens), patches, device=memory.query_BQD.device)
    before: list[Tensor] = []
    for read_TQ, look_QV in zip(reads, looks, strict=True):
        if before:
            total_TP += read_TQ @ torch.stack(before).mean(dim=0)[:, 1:]
        if look_QV is not None:
            before.append(look_QV)
    edge = math.isqrt(patches)
    sums_T1 = total_TP.sum(dim=1, keepdim=True)
    if not tokens or not bool((sums_T1 > 0).all()):
        return np.zeros((0, edge, edge), np.float32)
    grid: NDArray[np.float32] = (total_TP / sums_T1).view(len(tokens), edge, edge).cpu().numpy()
    return grid


def sentences(tokenizer: TextTokenizer, tokens: Sequence[int]) -> list[tuple[str, slice]]:
    """A generated text in sentences: each as it is written, and which tokens it has."""
    words = [tokenizer.decode([token]) for token in tokens]
    found, first = [], 0
    for number, word in enumerate(words, 1):
        inside_number = number < len(words) and words[number][:1].isdigit() and number - 2 >= first
        decimal = word == "." and inside_number and words[number - 2][-1:].isdigit()
        if (word in ENDS and not decimal) or number == len(words):
            text = readable(tokenizer.decode(tokens[first:number]))
            if text.strip("".join(ENDS) + " "):
                found.append((text, slice(first, number)))
            first = number
    return found


def _blocks(model: MedUnifier) -> list[Block]:
    return [block for block in model.qformer.blocks if isinstance(block, Block)]


def _weights(q_BHTE: Tensor, k_BHSE: Tensor, open_TS: Tensor | None) -> Tensor:
    """Attention weights [B, H, T, S], which the model's own kernels do not return."""
    scores = q_BHTE @ k_BHSE.transpose(2, 3) / math.sqrt(q_BHTE.shape[3])
    if open_TS is not None:
        scores = scores.masked_fill(~open_TS, -torch.inf)
    return scores.float().softmax(dim=3)
