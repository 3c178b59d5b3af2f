"""Text after the queries one token at a time: keys and values of what was read before are kept.

Over one image the queries never change: their keys and values stand at the front, computed by `read_image`
once, and no token looks at the image itself. `QFormer.write_text` of the same tokens gives the same.

R rows (texts that are written), H heads, Q queries, L most tokens, D width, K token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.qformer import Block, ImageMemory


class TextCache:
    """The state of texts that are written; `step` is what `tasks.decoding` asks for.

    Args:
        model: in evaluation mode, with ITG.
        memory: of the images to write about, one text each.
        longest: L, [DEC] included, at most the recipe's `text.max_tokens`.
    """

    def __init__(self, model: MedUnifier, memory: ImageMemory, longest: int) -> None:
        self.model, self.read, self.queries = model, 0, model.qformer.queries
        self.blocks = [block for block in model.qformer.blocks if isinstance(block, Block)]
        self.image_R = torch.arange(len(memory.query_BQD), device=memory.query_BQD.device)
        room = (0, 0, 0, longest)  # behind the queries, for the text
        self.keys = [torch.nn.functional.pad(keys, room) for keys, _ in memory.own]
        self.values = [torch.nn.functional.pad(values, room) for _, values in memory.own]

    def step(self, token_R: Tensor, parent_R: Tensor) -> Tensor:
        """Read one more token a row -> logits of the next one [R, K].

        Args:
            token_R: int64, what the rows have just said; [DEC] in the first call.
            parent_R: int64, the row of the call before that each goes on from; in the first call the image.
        """
        self._move(parent_R)
        qformer = self.model.qformer
        place = self.queries + self.read
        text_RD = qformer.norm(qformer.word(token_R) + qformer.position.weight[self.read])
        for block, keys, values in zip(self.blocks, self.keys, self.values, strict=True):
            attention = block.attention
            q, k, v = attention.project(attention.qkv(text_RD)[:, None])
            keys[:, :, place] = k[:, :, 0]
            values[:, :, place] = v[:, :, 0]
            mixed = attention.attend(q, keys[:, :, : place + 1], values[:, :, : place + 1])
            text_RD = block.ffn_text(attention.finish(mixed[:, 0], text_RD))
        self.read += 1
        return self.model.word_logits(text_RD)

    def _move(self, parent_R: Tensor) -> None:
        """Rows take the past of their parents."""
        image_R = self.image_R[parent_R]
        if torch.equal(image_R, self.image_R):  # beams changed places: what the queries left stays
            if torch.equal(parent_R, torch.arange(len(parent_R), device=parent_R.device)):
                return
            text = slice(self.queries, self.queries + self.read)
            for past in (*self.keys, *self.values):
                past[:, :, text] = past[:, :, text].index_select(0, parent_R)
            return
        self.image_R = image_R
        self.keys = [past.index_select(0, parent_R) for past in self.keys]
        self.values = [past.index_select(0, parent_R) for past in self.values]
