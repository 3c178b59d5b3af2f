"""Attention without padding on a GPU: rows lie sequence after sequence, the kernel knows where each begins.

`Sequences` does what `masks.Layout` and `masks.PairPlan` do together, with the same rows in another order, so
results differ by rounding alone. The kernel is FlashAttention-2 (Dao 2023) as PyTorch has it. Its causal mask
is aligned to the last query and the last key of a sequence: with the keys of Q queries before those of the
text this is the paper's multi-modal causal mask, row for row.

B texts or images, M pairs, Q queries, N text tokens, V image tokens, D width, H heads; R rows of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medunifier_cli.data.batch import send
from medunifier_cli.model.attention.masks import KeyValue, Layout, Parts, collect
from medunifier_cli.model.precision import half_type

WIDEST_HEAD = 256
CAPABILITY = (8, 0)
"""Of the kernel: the widest head, of a multiple of 8, and the oldest generation of GPUs, Ampere."""


def layout_for(device: torch.device, head_width: int) -> type[Layout] | type[Sequences]:
    """How attention is laid out on a device: the one place that decides it.

    The grid wherever there is no kernel for sequences: on a CPU, in fp32 (as whatever is measured is), and on
    GPUs older than Ampere.
    """
    return Sequences if has_kernel(device, head_width) else Layout


def has_kernel(device: torch.device, head_width: int) -> bool:
    """Whether `flash` can be called now, in the precision of this moment."""
    return (
        half_type(device) is not None
        and head_width % 8 == 0
        and head_width <= WIDEST_HEAD
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= CAPABILITY
    )


class Lengths(NamedTuple):
    """Sequences that lie end to end."""

    start_B1: Tensor
    """int32 [B + 1]: the first row of each, and the number of rows of all."""
    longest: int


def flash(
    q_RHE: Tensor, k_SHE: Tensor, v_SHE: Tensor, of_q: Lengths, of_k: Lengths, dropout: float, causal: bool
) -> Tensor:
    """FlashAttention of each sequence of queries to the sequence of keys of the same number: [R, H, D/H].

    Args:
        q_RHE: fp16 or bf16, on a GPU.
        k_SHE: keys of all sequences, S of them.
        v_SHE: their values.
        of_q: sequences of queries.
        of_k: as many sequences of keys.
        dropout: of the attention weights.
        causal: query i of n attends to the keys up to number i of the last n.
    """
    # not `torch.nn.attention.varlen.varlen_attn`, which calls the same kernel without dropout
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        q_RHE, k_SHE, v_SHE, of_q.start_B1, of_k.start_B1, of_q.longest, of_k.longest, dropout, causal, False
    )[0]
    return attended


@dataclass(frozen=True)
class Sequences:
    """Texts, or queries and text of each pair, one after the other; pairs of one image are together.

    Queries are those of the sequences in their order, whereas text is in the order of the batch.
    """

    position_N: Tensor
    """int64, position of each token in its own text; texts in the order of the batch."""
    lead_F: Tensor
    """int64, the row of each query, or of each text's first token."""
    text_N: Tensor
    """int64, the row of each token of text."""
    queries: int
    """Q; 0 for text alone."""
    whole: Lengths
    """Queries and text."""
    texts: Lengths
    """Text alone, in the order of the batch."""
    leads: Lengths
    """The rows of `lead_F`."""
    images: Lengths | None
    """Queries of the pairs of each image; None without pairs."""
    place_M: Tensor
    """int64, which of the sequences belongs to pair m, or to text b."""

    @property
    def start_B(self) -> Tensor:
        """See `Layout.start_B`; without queries alone."""
        return self.lead_F

    @classmethod
    def of(cls, lengths_B: Tensor, device: torch.device, queries: int = 0, after: int = 0) -> Sequences:
        """See `Layout.of`; with `after` the sequences are those of keys, and the text lies end to end."""
        return cls._of(lengths_B, torch.arange(len(lengths_B)), None, device, queries or after)

    @classmethod
    def of_pairs(
        cls, image_M: Tensor, images: int, lengths_M: Tensor, device: torch.device, queries: int
    ) -> tuple[Sequences, Sequences]:
        """See `Layout.of_pairs`."""
        # stable, so that the order is the same everywhere
        order_M = torch.argsort(image_M, stable=True)
        queries_B = queries * torch.bincount(image_M, minlength=images)
        sequences = cls._of(lengths_M, order_M, queries_B, device, queries)
        return sequences, sequences

    @classmethod
    def _of(
        cls, lengths_B: Tensor, order_B: Tensor, queries_of_image: Tensor | None, device: torch.device,
        queries: int,
    ) -> Sequences:  # fmt: skip
        """Sequence number i is text number `order_B[i]` after its queries."""
        # on the CPU, where the lengths are, as in `Layout.of`
        texts = len(lengths_B)
        place_B = torch.empty_like(order_B)
        place_B[order_B] = torch.arange(texts)
        whole_B = queries + lengths_B[order_B]
        row_N = torch.repeat_interleave(torch.arange(texts), lengths_B)
        position_N = torch.arange(int(lengths_B.sum())) - _starts(lengths_B)[row_N]
        first_B = _starts(whole_B)[:-1]
        text_N = first_B[place_B][row_N] + queries + position_N
        leading = queries or 1
        lead_F = (first_B[:, None] + torch.arange(leading)).flatten()
        counts = [whole_B, lengths_B, torch.full_like(lengths_B, leading)]
        if queries_of_image is not None:
            counts.append(queries_of_image)
        starts = torch.cat([_starts(count) for count in counts])
        position_N, lead_F, text_N, place_B, starts = send(
            (position_N, lead_F, text_N, place_B, starts), device
        )
        parts = torch.split(starts.to(torch.int32), [len(count) + 1 for count in counts])
        lengths = [Lengths(start, int(count.max())) for start, count in zip(parts, counts, strict=True)]
        whole, alone, leads, *of_images = lengths
        images = of_images[0] if of_images else None
        return cls(position_N, lead_F, text_N, queries, whole, alone, leads, images, place_B)

    def attend(self, qkv_R3D: Tensor, heads: int, dropout: float, lead_only: bool = False) -> Tensor:
        """See `Layout.attend`."""
        q, k, v = qkv_R3D.chunk(3, dim=1)
        of_q = self.whole
        if lead_only:
            q, of_q = collect(q, self.lead_F), self.leads
        q, k, v = (_by_head(part, heads) for part in (q, k, v))
        return flash(q, k, v, of_q, self.whole, dropout, causal=False).flatten(1)

    def attend_after(self, qkv_N3D: Tensor, own: KeyValue, heads: int, dropout: float) -> Tensor:
        """See `Layout.attend_after`."""
        q, k, v = (_by_head(part, heads) for part in qkv_N3D.chunk(3, dim=1))
        k, v = (self.rows((_end_to_end(before), x)) for before, x in zip(own, (k, v), strict=True))
        return flash(q, k, v, self.texts, self.whole, dropout, causal=True).flatten(1)

    def attend_images(self, q_MQD: Tensor, memory: KeyValue, heads: int, dropout: float) -> Tensor:
        """See `PairPlan.attend_images`; the pairs are in the order of the sequences."""
        assert self.images is not None  # made by `of_pairs`
        q = _by_head(q_MQD.flatten(0, 1), heads)
        k, v = map(_end_to_end, memory)
        images, tokens = memory[0].shape[0], memory[0].shape[2]
        start = torch.arange(0, (images + 1) * tokens, tokens, dtype=torch.int32, device=q.device)
        mixed = flash(q, k, v, self.images, Lengths(start, tokens), dropout, causal=False)
        return mixed.view(q_MQD.shape)

    def join(self, queries: Tensor, text: Tensor) -> Parts:
        """See `Layout.join`; queries and text stay apart, so that nothing is copied in fp32."""
        return queries, text

    def split(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """See `Layout.split`."""
        queries, text = parts
        return queries, text

    def rows(self, parts: Parts) -> Tensor:
        """See `Layout.rows`."""
        rows: Tensor = _Join.apply(*parts, self.lead_F, self.text_N)
        return rows

    def parts(self, rows_RD: Tensor) -> Parts:
        """See `Layout.parts`."""
        parts: Parts = _Split.apply(rows_RD, self.lead_F, self.text_N)
        return parts

    def in_order(self, query_MQD: Tensor) -> Tensor:
        """See `Layout.in_order`."""
        return collect(query_MQD.flatten(1), self.place_M).view(query_MQD.shape)


def _starts(count_B: Tensor) -> Tensor:
    """[B] -> [B + 1]."""
    return torch.cat([count_B.new_zeros(1), count_B.cumsum(0)])


def _by_head(x_RD: Tensor, heads: int) -> Tensor:
    """[R, D] -> [R, H, D/H]."""
    return x_RD.view(len(x_RD), heads, -1)


def _end_to_end(x_BHSE: Tensor) -> Tensor:
    """[B, H, S, D/H] -> [B * S, H, D/H]; a view, as the projection has them in this order."""
    return x_BHSE.transpose(1, 2).flatten(0, 1)


# As in `masks`: both lists of indices together name each row once, so a copy is enough both ways.
def _taken(rows: Tensor, *index_lists: Tensor) -> tuple[Tensor, ...]:
    return tuple(rows.index_select(0, index) for index in index_lists)


def _put(first: Tensor, second: Tensor, first_F: Tensor, second_N: Tensor) -> Tensor:
    rows = first.new_empty(len(first) + len(second), *first.shape[1:])
    return rows.index_copy_(0, first_F, first).index_copy_(0, second_N, second)


class _Split(torch.autograd.Function):
    """Rows of two lists of indices; the gradient is `_Join`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, first_F: Tensor, second_N: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(first_F, second_N)
        return _taken(rows, first_F, second_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _put(*grads, *ctx.saved_tensors), None, None


class _Join(torch.autograd.Function):
    """Rows to their places; the gradient is `_Split`."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, first_F: Tensor, second_N: Tensor) -> Tensor:
        ctx.save_for_backward(first_F, second_N)
        return _put(first, second, first_F, second_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_taken(grads[0], *ctx.saved_tensors), None, None
