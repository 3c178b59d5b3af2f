"""Decode text over images one token at a time; keys and values of earlier tokens are cached.

The queries of an image never change while its text is written: their keys and values come first in the cache,
computed once by `encode_image`, and no text token attends to the image itself. `QFormer.decode_text` computes
the same logits for all tokens at once.

R rows (unfinished texts), H heads, Q queries, L maximum number of tokens, D width, K token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medunifier_cli.model.attention.memory import ImageMemory
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.qformer import Block


class TextCache:
    """The state of unfinished texts; `step` is the step function that `reports.decoding` needs.

    Args:
        model: in evaluation mode, with ITG.
        memory: of the images to write about, one text each.
        max_tokens: L, including [DEC]; at most the recipe's `text.max_tokens`.
    """

    def __init__(self, model: MedUnifier, memory: ImageMemory, max_tokens: int) -> None:
        self.model, self.length, self.queries = model, 0, model.qformer.queries
        self.blocks = [block for block in model.qformer.blocks if isinstance(block, Block)]
        self.image_R = torch.arange(len(memory.query_BQD), device=memory.query_BQD.device)
        # [R, H, Q + L, D / H] for each block; the part of the queries is filled, that of the text grows
        padding = (0, 0, 0, max_tokens)
        self.keys = [torch.nn.functional.pad(keys, padding) for keys, _ in memory.own]
        self.values = [torch.nn.functional.pad(values, padding) for _, values in memory.own]

    def step(self, token_R: Tensor, parent_R: Tensor) -> Tensor:
        """Read one more token of each row; returns the logits of the next one, [R, K].

        Args:
            token_R: int64, latest token of each row; [DEC] in the first call.
            parent_R: int64, the row of the previous call that each row continues; at first, its image.
        """
        self._reorder(parent_R)
        qformer = self.model.qformer
        position = self.queries + self.length
        text_RD = qformer.norm(qformer.word(token_R) + qformer.position.weight[self.length])
        for block, keys, values in zip(self.blocks, self.keys, self.values, strict=True):
            attention = block.attention
            q, k, v = attention.project(attention.qkv(text_RD)[:, None])
            keys[:, :, position] = k[:, :, 0]
            values[:, :, position] = v[:, :, 0]
            mixed = attention.attend(q, keys[:, :, : position + 1], values[:, :, : position + 1])
            text_RD = block.ffn_text(attention.finish(mixed[:, 0], text_RD))
        self.length += 1
        return self.model.word_logits(text_RD)

    def _reorder(self, parent_R: Tensor) -> None:
        """Reorder cached keys and values so that each row continues its parent beam."""
        image_R = self.image_R[parent_R]
        if not torch.equal(image_R, self.image_R):
            # Rows were dropped or repeated: the keys and values of their queries move with them.
            self.image_R = image_R
            self.keys = [cached.index_select(0, parent_R) for cached in self.keys]
            self.values = [cached.index_select(0, parent_R) for cached in self.values]
        elif not torch.equal(parent_R, torch.arange(len(parent_R), device=parent_R.device)):
            # Beams of one image changed places. Their queries are equal, so only the text so far moves.
            text = slice(self.queries, self.queries + self.length)
            for cached in (*self.keys, *self.values):
                cached[:, :, text] = cached[:, :, text].index_select(0, parent_R)
