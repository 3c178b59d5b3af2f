"""The image-text encoder as the paper writes it, without one saving.

Text padded, the whole [Q+L, Q+L] mask of figure 2, each pass over queries and text together, keys and values
of the image computed anew by every pass. Nothing here comes from `medunifier_cli.model`; weights are taken
from a state dict by the names below.

B images, Q queries, L padded text length, S = Q + L, V image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

BERT_EPS = 1e-12
UNI_MODAL, BI_DIRECTIONAL, CAUSAL = "uni-modal", "bi-directional", "multi-modal causal"
SPLIT = {
    ".attention.qkv.": (".self.query.", ".self.key.", ".self.value."),
    ".cross.kv.": (".cross.key.", ".cross.value."),
    ".cross.q.": (".cross.query.",),
    ".attention.out.": (".self.out.",),
    ".attention.norm.": (".self.norm.",),
}


def plain_weights(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict (or gradients by the same names) of MedUnifier -> one tensor per matrix of the paper."""
    plain = {}
    for name, tensor in ours.items():
        short = name.removeprefix("qformer.").removeprefix("blocks.")
        parts = next((parts for fused, parts in SPLIT.items() if fused in short), None)
        if parts is None:
            plain[short] = tensor
            continue
        fused = next(fused for fused in SPLIT if fused in short)
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            plain[short.replace(fused, part)] = piece
    return plain


def figure_2_mask(kind: str, queries: int, lengths: list[int], longest: int) -> Tensor:
    """The mask of a pass, bool [B, 1, S, S]: True where the row may attend to the column."""
    size = queries + longest
    mask = torch.zeros(len(lengths), 1, size, size, dtype=torch.bool)
    mask[:, :, :queries, :queries] = True
    if kind == BI_DIRECTIONAL:
        mask[:, :, :queries, queries:] = True
        mask[:, :, queries:, :] = True
    elif kind == UNI_MODAL:
        mask[:, :, queries:, queries:] = True
    elif kind == CAUSAL:
        mask[:, :, queries:, :queries] = True
        mask[:, :, queries:, queries:] = torch.ones(longest, longest, dtype=torch.bool).tril()
    else:
        raise ValueError(kind)
    for row, length in enumerate(lengths):
        mask[row, :, :, queries + length :] = False
    return mask


class PlainEncoder:
    """E_Q of equations (6) and (7).

    Args:
        weights: as `plain_weights` makes them.
        heads: of attention.
    """

    def __init__(self, weights: Mapping[str, Tensor], heads: int) -> None:
        self.w, self.heads = weights, heads
        self.queries = len(weights["query_tokens"])
        self.layers = sum(name.endswith(".self.query.weight") for name in weights)

    def __call__(
        self, image_BVD: Tensor, ids_BL: Tensor, lengths: list[int], kind: str
    ) -> tuple[Tensor, Tensor]:
        """One full pass -> f_q [B, Q, D] and f_t [B, L, D], padding rows meaningless."""
        mask = figure_2_mask(kind, self.queries, lengths, ids_BL.shape[1])
        words = self.w["word.weight"][ids_BL] + self.w["position.weight"][: ids_BL.shape[1]]
        x = torch.cat([self.w["query_tokens"].expand(len(ids_BL), -1, -1), words], dim=1)
        x = self.norm("norm", x)
        for layer in range(self.layers):
            x = self.norm(f"{layer}.self.norm", x + self.attention(f"{layer}.self", x, x, mask))
            query, text = x[:, : self.queries], x[:, self.queries :]
            if f"{layer}.cross.query.weight" in self.w:
                seen = self.attention(f"{layer}.cross", query, image_BVD, None)
                query = self.norm(f"{layer}.cross.norm", query + seen)
            query = self.feed_forward(f"{layer}.ffn_query", query)
            text = self.feed_forward(f"{layer}.ffn_text", text)
            x = torch.cat([query, text], dim=1)
        return x[:, : self.queries], x[:, self.queries :]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float = BERT_EPS) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.w[f"{name}.bias"], eps)

    def attention(self, name: str, rows: Tensor, columns: Tensor, mask: Tensor | None) -> Tensor:
        q = self.split(self.linear(f"{name}.query", rows))
        k = self.split(self.linear(f"{name}.key", columns))
        v = self.split(self.linear(f"{name}.value", columns))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.linear(f"{name}.out", mixed.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        return self.norm(
            f"{name}.norm", x + self.linear(f"{name}.down", F.gelu(self.linear(f"{name}.up", x)))
        )
