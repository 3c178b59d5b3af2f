"""Image-text encoder with learnable queries (paper, section 3.3): one set of weights, four passes.

Q queries, L text tokens, V image tokens (class token and patches), H heads, D width; N packed text tokens.

The four passes: `encode_image` and `encode_text` (uni-modal mask), `fuse` (bi-directional), `decode_text`
(multi-modal causal). Notable choices:
- What depends on the image alone is computed once, in `encode_image`, and kept in an `ImageMemory`. Every
  layer's keys and values of cross-attention serve ITC, ITM and ITG. The queries' own keys and values serve
  ITG: in the multi-modal causal mask queries never attend to text, so they equal those of the uni-modal pass.
- Layers are BERT's (post-norm), so that BERT and BLIP-2 weights can be loaded; `tests/parity` compares them
  with transformers' BertModel and BLIP-2 Q-Former.
- The last layer computes only the rows that a loss reads: the text's first token, or the queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medunifier_cli.data.contract import PackedText
from medunifier_cli.model.attention.masks import KeyValue, Layout, PairPlan, Parts, attend, by_head
from medunifier_cli.model.attention.memory import ImageMemory
from medunifier_cli.model.attention.sequences import Sequences, layout_for
from medunifier_cli.model.precision import halved
from medunifier_cli.recipe.schema import QFormerConfig

LAYER_NORM_EPS = 1e-12  # BERT's


class Attention(nn.Module):
    """The end of both kinds of attention, alone in `forward` so that it can be compiled as one."""

    dropout: float
    out: nn.Linear
    norm: nn.LayerNorm

    def forward(self, mixed: Tensor, before: Tensor) -> Tensor:
        """Output projection, dropout, residual, norm; both [..., D]."""
        # the norm comes after the residual (post-norm), as in BERT: pre-norm trains more easily from random
        # weights, but no published BERT could be loaded
        out: Tensor = self.norm(F.dropout(self.out(mixed), self.dropout, self.training) + before)
        return out


class SelfAttention(Attention):
    """Multi-head self-attention and its residual. Its three steps are called apart, as each pass puts another
    set of keys, rows or masks between them."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        # one matrix product instead of three; `checkpoint/convert.py` joins BERT's three matrices
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def project(self, grid_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, 3D] of `qkv` -> queries, keys, values, each [B, H, S, D/H]."""
        q, k, v = (by_head(part, self.heads) for part in grid_BSD.chunk(3, dim=2))
        return q, k, v

    @property
    def dropped(self) -> float:
        """Dropout of attention weights now."""
        # unlike a module, a function does not know whether it is being trained
        return self.dropout if self.training else 0.0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over heads -> [B, S, D]."""
        return attend(q, k, v, None, self.dropped)

    def finish(self, mixed: Tensor, before: Tensor) -> Tensor:
        """The third step, which may be compiled."""
        return self(mixed, before)  # type: ignore[no-any-return]


class CrossAttention(Attention):
    """Queries attend to image tokens, whose keys and values are computed apart, once."""

    def __init__(self, width: int, image_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(image_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def keys_values(self, image_BVD: Tensor) -> KeyValue:
        """[B, V, D_v] -> keys and values [B, H, V, D/H]."""
        k, v = (by_head(part, self.heads) for part in self.kv(image_BVD).chunk(2, dim=2))
        return k, v

    def look(self, query_MQD: Tensor, memory: KeyValue, plan: PairPlan | Sequences | None) -> Tensor:
        """Cross-attention with its end: [M, Q, D] -> [M, Q, D]. Without a plan pair m looks at image m."""
        query_MQD, half = halved(query_MQD)
        q, dropped = self.q(half), self.dropout if self.training else 0.0
        if plan is None:
            mixed = attend(by_head(q, self.heads), *memory, None, dropped)
        else:
            mixed = plan.attend_images(q, memory, self.heads, dropped)
        return self(mixed, query_MQD)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with GELU between, and their residual."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x, half = halved(x)
        # the exact GELU, not its tanh approximation, as in BERT
        out = F.dropout(self.down(F.gelu(self.up(half))), self.dropout, self.training)
        normed: Tensor = self.norm(out + x)
        return normed


class Block(nn.Module):
    """One transformer block: queries and text share self-attention and have a feed-forward network each."""

    def __init__(self, recipe: QFormerConfig, image_width: int, looks_at_image: bool) -> None:
        super().__init__()
        width, dropout = recipe.width, recipe.dropout
        self.attention = SelfAttention(width, recipe.heads, dropout)
        self.cross = CrossAttention(width, image_width, recipe.heads, dropout) if looks_at_image else None
        # apart, as in BLIP-2: queries carry an image's content, text tokens words, and both meet in attention
        self.ffn_query = FeedForward(width, recipe.ffn_width, dropout)
        self.ffn_text = FeedForward(width, recipe.ffn_width, dropout)

    def queries_only(self, query_BQD: Tensor, cross: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """Uni-modal pass of the queries -> (queries, their own keys and values)."""
        query_BQD, half = halved(query_BQD)
        q, k, v = self.attention.project(self.attention.qkv(half))
        query_BQD = self.attention.finish(self.attention.attend(q, k, v), query_BQD)
        return self.after_attention(query_BQD, cross, None), (k, v)

    def after_attention(
        self, query_MQD: Tensor, cross: KeyValue | None, plan: PairPlan | Sequences | None
    ) -> Tensor:
        """Cross-attention and feed-forward of the queries."""
        if self.cross is not None:
            assert cross is not None  # `encode_image` made one for each layer with cross-attention
            query_MQD = self.cross.look(query_MQD, cross, plan)
        out: Tensor = self.ffn_query(query_MQD)
        return out

    def text_only(self, text_ND: Tensor, layout: Layout | Sequences, cls_only: bool) -> Tensor:
        """Uni-modal pass of the text, packed [N, D] -> [N, D], or -> [B, D] of the first tokens."""
        attention, (text_ND, half) = self.attention, halved(text_ND)
        mixed = layout.attend(attention.qkv(half), attention.heads, attention.dropped, cls_only)
        if cls_only:
            text_ND = text_ND[layout.start_B]
        out: Tensor = self.ffn_text(attention.finish(mixed, text_ND))
        return out

    def text_after_queries(self, text_ND: Tensor, layout: Layout | Sequences, own: KeyValue) -> Tensor:
        """Multi-modal causal pass of the text over the queries' keys and values, packed -> packed."""
        attention, (text_ND, half) = self.attention, halved(text_ND)
        mixed = layout.attend_after(attention.qkv(half), own, attention.heads, attention.dropped)
        out: Tensor = self.ffn_text(attention.finish(mixed, text_ND))
        return out

    def pairs(
        self, parts: Parts, layout: Layout | Sequences, cross: KeyValue | None, plan: PairPlan | Sequences,
        queries_only: bool,
    ) -> Parts:  # fmt: skip
        """Bi-directional pass of queries and text, see `Layout.join`; or of the queries alone, [M * Q, D]."""
        attention, before = self.attention, [halved(part) for part in parts]
        # put in order in half precision, where that moves half as much as it would after the norms
        qkv = attention.qkv(layout.rows(tuple(half for _, half in before)))
        mixed = layout.attend(qkv, attention.heads, attention.dropped, queries_only)
        parts = tuple(whole for whole, _ in before)
        if queries_only:
            query = attention.finish(mixed, layout.split(parts)[0])
            return (self._queries_of_pairs(query, layout, cross, plan),)
        mixed_parts = layout.parts(mixed)
        parts = tuple(attention.finish(*both) for both in zip(mixed_parts, parts, strict=True))
        # from here on queries and text part: only queries attend to the image
        query, text = layout.split(parts)
        return layout.join(self._queries_of_pairs(query, layout, cross, plan), self.ffn_text(text))

    def _queries_of_pairs(
        self, query: Tensor, layout: Layout | Sequences, cross: KeyValue | None, plan: PairPlan | Sequences
    ) -> Tensor:
        width = query.shape[1]
        return self.after_attention(query.view(-1, layout.queries, width), cross, plan).view(-1, width)


class QFormer(nn.Module):
    """The image-text encoder E_Q and its embeddings.

    Args:
        recipe: sizes, see `recipe.schema.QFormerConfig`.
        image_width: D_v of the image tokens.
        vocabulary: token ids, [DEC] included.
        max_tokens: longest text.
    """

    def __init__(self, recipe: QFormerConfig, image_width: int, vocabulary: int, max_tokens: int) -> None:
        super().__init__()
        self.dropout, self.heads = recipe.dropout, recipe.heads
        self.query_tokens = nn.Parameter(torch.empty(recipe.queries, recipe.width))
        # no token types as in BERT: type 0, its only one here, is added to the positions when BERT is loaded
        self.word = nn.Embedding(vocabulary, recipe.width)
        self.position = nn.Embedding(max_tokens, recipe.width)
        self.norm = nn.LayerNorm(recipe.width, eps=LAYER_NORM_EPS)
        self.blocks: nn.ModuleList = nn.ModuleList(
            Block(recipe, image_width, layer % recipe.cross_attention_every == 0)
            for layer in range(recipe.layers)
        )
        initialise(self, recipe.init_std)
        if recipe.embedding_std:
            nn.init.normal_(self.word.weight, std=recipe.embedding_std)
            # a text starts as its words: positions as large as words would be half of what is normalised
            nn.init.normal_(self.position.weight, std=recipe.embedding_std / 5)
        # not 0: equal queries would get equal gradients and stay equal
        nn.init.normal_(self.query_tokens, std=recipe.init_std)

    @property
    def queries(self) -> int:
        """Q."""
        return self.query_tokens.shape[0]

    @property
    def head_width(self) -> int:
        """D / H."""
        return self.query_tokens.shape[1] // self.heads

    def _embed_queries(self, rows: int) -> Tensor:
        # normalised once for the batch; dropout comes after `expand`, so each row has a mask of its own
        normed = self.norm(self.query_tokens).expand(rows, -1, -1)
        return F.dropout(normed, self.dropout, self.training)

    def _embed_text(self, text: PackedText, layout: Layout | Sequences) -> Tensor:
        embedded = self.norm(self.word(text.ids_N) + self.position(layout.position_N))
        return F.dropout(embedded, self.dropout, self.training)

    def encode_image(self, image_BVD: Tensor) -> ImageMemory:
        """Uni-modal pass of the queries over the image: [B, V, D_v] -> memory with f_q [B, Q, D]."""
        query = self._embed_queries(image_BVD.shape[0])
        cross: list[KeyValue | None] = []
        own: list[KeyValue] = []
        for block in self._blocks():
            cross.append(block.cross.keys_values(image_BVD) if block.cross is not None else None)
            query, keys_values = block.queries_only(query, cross[-1])
            own.append(keys_values)
        return ImageMemory(image_BVD, query, cross, own)

    def encode_text(self, text: PackedText, states: bool = False) -> Tensor:
        """Uni-modal pass of the text -> f_t_cls [B, D], the features of each text's first token; with
        `states` those of every token, packed [N, D]."""
        device = text.ids_N.device
        layout = layout_for(device, self.head_width).of(text.lengths_B, device)
        text_ND = self._embed_text(text, layout)
        for layer, block in enumerate(self._blocks(), 1):
            # the losses read the first token alone; a prior over codes reads all
            text_ND = block.text_only(text_ND, layout, cls_only=layer == len(self.blocks) and not states)
        return text_ND

    def fuse(self, memory: ImageMemory, image_M: Tensor, text: PackedText, recompute: bool = False) -> Tensor:
        """M pairs, bi-directional mask -> f_q [M, Q, D].

        Args:
            memory: of B images.
            image_M: int64 on the CPU, the image that goes with text m.
            text: M texts.
            recompute: keep a layer's input alone for the backward pass, and compute the layer again there.
        """
        pairs, device = len(image_M), text.ids_N.device
        layout, plan = layout_for(device, self.head_width).of_pairs(
            image_M, memory.query_BQD.shape[0], text.lengths_B, device, self.queries
        )
        # queries start anew from their tokens, not from `memory`: here they see the text from the first layer
        # on, so only the image's keys and values can be taken over
        parts = layout.join(self._embed_queries(pairs).flatten(0, 1), self._embed_text(text, layout))
        for layer, (block, cross) in enumerate(zip(self._blocks(), memory.cross, strict=True), 1):
            arguments = (parts, layout, cross, plan, layer == len(self.blocks))
            # layer by layer: the whole pass would be in memory at once again, beside all that is kept;
            # dropout draws the same numbers again, as the state of its generator is kept too
            parts = (
                checkpoint(block.pairs, *arguments, use_reentrant=False)
                if recompute
                else block.pairs(*arguments)
            )
        return layout.in_order(parts[0].view(pairs, self.queries, -1))

    def decode_text(self, memory: ImageMemory, text: PackedText) -> Tensor:
        """Text b after the queries of image b, multi-modal causal mask -> packed f_t [N, D]."""
        device = text.ids_N.device
        layout = layout_for(device, self.head_width).of(text.lengths_B, device, after=self.queries)
        text_ND = self._embed_text(text, layout)
        # the queries themselves are not computed again: text attends to their stored keys and values
        for block, own in zip(self._blocks(), memory.own, strict=True):
            text_ND = block.text_after_queries(text_ND, layout, own)
        return text_ND

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def initialise(root: nn.Module, std: float) -> None:
    """BERT's initial weights: matrices and embeddings normal with deviation `std`, biases 0."""
    for module in root.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
