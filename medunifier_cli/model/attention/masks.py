"""Attention masks (paper, figure 2, right), and the layout of packed texts and of pairs that share an image.

Rows attend to columns; True means "may attend". Queries come first, text after. Queries also cross-attend
to the image in every pass, which no mask restricts.

Of the paper's three masks only two need a tensor. The uni-modal one keeps queries and text apart, so each is
a pass of its own without a mask between them; the bi-directional one closes padding alone (`open_keys`); of
the multi-modal causal one only the text's rows are computed (`causal_rows`). The whole masks are in
`tests/reference/full_mask.py`.

Rows are packed (texts end to end, no padding) wherever a row costs a matrix product. Only inside attention,
3 % of the work at paper sizes, are they laid out as a padded grid, as wide as the longest text of the batch;
and on a GPU not even there, see `attention/sequences.py`, whose layout takes the place of this one.

B texts or images, M pairs, Q queries, L longest text, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medunifier_cli.data.batch import send
from medunifier_cli.model.precision import attention

KeyValue = tuple[Tensor, Tensor]
"""Keys and values, each [B, H, S, D/H]."""
Parts = tuple[Tensor, ...]
"""Rows of pairs, all of them or queries and text apart."""


def by_head(x_BSD: Tensor, heads: int) -> Tensor:
    """[B, S, D] -> [B, H, S, D/H]."""
    return x_BSD.view(*x_BSD.shape[:2], heads, -1).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention of each head, [B, H, S, D/H] -> [B, S, D]; `dropout` is that of the attention weights."""
    mixed = attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def causal_rows(queries: int, longest: int, device: torch.device) -> Tensor:
    """Text rows of the multi-modal causal mask, [L, Q+L]: all queries, then this and earlier tokens.

    Padding needs no mask of its own: it follows a text's last token, so no real token attends to it.
    """
    # no batch dimension: one mask serves texts of every length, as rows beyond a text's end are dropped
    queries_open = torch.ones(longest, queries, dtype=torch.bool, device=device)
    return torch.cat([queries_open, torch.ones(longest, longest, dtype=torch.bool, device=device).tril()], 1)


@dataclass(frozen=True)
class Layout:
    """Position of packed rows in the padded [B, S] grid of attention; S = queries + longest text.

    The R packed rows are all queries, pair after pair, and then all text tokens, text after text.
    """

    slot_R: Tensor
    """int64, row of the grid * S + column."""
    position_N: Tensor
    """int64, position of each token in its own text."""
    start_B: Tensor
    """int64, index of each text's first token among the tokens."""
    real_BS: Tensor
    """bool, False on padding."""
    queries: int
    """Q of the rows; 0 for text alone."""
    causal: Tensor | None
    """`causal_rows`, for `attend_after`."""

    @classmethod
    def of(cls, lengths_B: Tensor, device: torch.device, queries: int = 0, after: int = 0) -> Layout:
        """Lay out texts of the given lengths, each after `queries` queries.

        Args:
            lengths_B: int64, on the CPU.
            device: of the packed rows.
            queries: 0 for text alone.
            after: queries that are no rows of these, but whose keys and values the text attends to.
        """
        # all of it is computed on the CPU, where the lengths are: `int(max)` and `repeat_interleave` would
        # each make the CPU wait for a GPU, in every pass of every step
        texts, width = len(lengths_B), queries + int(lengths_B.max())
        end_B = lengths_B.cumsum(0)
        start_B = end_B - lengths_B
        row_N = torch.repeat_interleave(torch.arange(texts), lengths_B)
        position_N = torch.arange(int(end_B[-1])) - start_B[row_N]
        query_slots = torch.arange(texts)[:, None] * width + torch.arange(queries)
        # all queries before all text, not pair by pair: the two parts have feed-forward networks of their
        # own, and this way each is a slice
        slot_R = torch.cat([query_slots.flatten(), row_N * width + queries + position_N])
        slot_R, position_N, start_B, used_B = send((slot_R, position_N, start_B, queries + lengths_B), device)
        real_BS = torch.arange(width, device=device) < used_B[:, None]
        causal = causal_rows(after, width, device) if after else None
        return cls(slot_R, position_N, start_B, real_BS, queries, causal)

    @classmethod
    def of_pairs(
        cls, image_M: Tensor, images: int, lengths_M: Tensor, device: torch.device, queries: int
    ) -> tuple[Layout, PairPlan]:
        """The layout of M pairs, and the plan by which their queries attend to the images.

        Args:
            image_M: int64, on the CPU: the image of each pair, below `images`.
            lengths_M: int64, on the CPU: of the texts.
        """
        return cls.of(lengths_M, device, queries), PairPlan.of(image_M, images, device)

    @property
    def open_keys(self) -> Tensor:
        """[B, 1, 1, S]: a mask that closes padding and nothing else."""
        # closed as keys only: rows of padding are computed, since a row without any open key would be NaN
        return self.real_BS[:, None, None, :]

    def pad(self, packed_RD: Tensor) -> Tensor:
        """[R, D] -> [B, S, D], zeros on padding."""
        rows, width = self.real_BS.shape
        return spread(packed_RD, self.slot_R, rows * width).view(rows, width, -1)

    def unpad(self, padded_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [R, D]."""
        return collect(padded_BSD.flatten(0, 1), self.slot_R)

    def attend(self, qkv_R3D: Tensor, heads: int, dropout: float, lead_only: bool = False) -> Tensor:
        """Self-attention of each text, or of each pair's queries and text: [R, 3D] -> [R, D].

        Args:
            qkv_R3D: queries, keys and values of each row, side by side.
            dropout: of the attention weights.
            lead_only: the queries of all pairs [M * Q, D], or the first token of each text [B, D]; the other
                rows are keys and values alone.
        """
        # projected while packed, so that padding costs no matrix product, and then laid out
        q, k, v = (by_head(part, heads) for part in self.pad(qkv_R3D).chunk(3, dim=2))
        if not lead_only:
            return self.unpad(attend(q, k, v, self.open_keys, dropout))
        return attend(q[:, :, : self.queries or 1], k, v, self.open_keys, dropout).flatten(0, 1)

    def attend_after(self, qkv_N3D: Tensor, own: KeyValue, heads: int, dropout: float) -> Tensor:
        """Multi-modal causal attention of texts, each after the queries of `own`: [N, 3D] -> [N, D]."""
        q, k, v = (by_head(part, heads) for part in self.pad(qkv_N3D).chunk(3, dim=2))
        # queries first, the columns' order in `causal_rows`
        k, v = torch.cat([own[0], k], dim=2), torch.cat([own[1], v], dim=2)
        return self.unpad(attend(q, k, v, self.causal, dropout))

    def join(self, queries: Tensor, text: Tensor) -> Parts:
        """Queries of all pairs [M * Q, D] and their texts [N, D] -> the parts that a block works on."""
        return (torch.cat([queries, text]),)

    def split(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """What `join` has joined."""
        count = self.queries * len(self.start_B)
        queries, text = torch.split(parts[0], [count, len(parts[0]) - count])
        return queries, text

    def rows(self, parts: Parts) -> Tensor:
        """[R, D], the rows in the order of `attend`."""
        return parts[0]

    def parts(self, rows_RD: Tensor) -> Parts:
        """What `rows` put in order."""
        return (rows_RD,)

    def in_order(self, query_MQD: Tensor) -> Tensor:
        """The queries of each pair, in the order of the pairs."""
        return query_MQD


LONGEST_ROW = 4
"""Times the mean number of pairs of an image; beyond, the pairs of popular images take several rows."""


@dataclass(frozen=True)
class PairPlan:
    """Which image each of M pairs attends to, arranged so that hardly any keys and values are copied.

    Pairs that share an image become one longer row of queries: [images, per_image * Q] attends to
    [images, V]. Repeating keys and values for each pair instead would take M * V * 2D numbers in every layer.

    Rows are as long as the longest one, so one image that is everybody's negative would make all of them so.
    Where an image has more than `LONGEST_ROW` times the mean, rows hold twice the mean, and the further pairs
    of an image get further rows, for which alone its keys and values are copied.
    """

    slot_M: Tensor
    """int64: row * `per_image` + number of the pair among those of its row; unique."""
    per_image: int
    """Pairs of the longest row; shorter ones have empty slots."""
    images: int
    """The first rows, one for each image."""
    extra_E: Tensor
    """int64, the image of each further row; mostly there is none."""

    @property
    def rows(self) -> int:
        """R = images + E."""
        return self.images + len(self.extra_E)

    @classmethod
    def of(cls, image_M: Tensor, images: int, device: torch.device) -> PairPlan:
        """`image_M` (int64, on the CPU) holds indices below `images`."""
        # on the CPU: `per_image` decides a shape, for which a GPU would have to be waited for
        count = torch.bincount(image_M, minlength=images)
        order = torch.argsort(image_M, stable=True)
        first = count.cumsum(0) - count
        turn_M = torch.empty_like(image_M)
        turn_M[order] = torch.arange(len(image_M)) - first[image_M[order]]
        per_image, mean = int(count.max()), -(-len(image_M) // images)
        if per_image > LONGEST_ROW * mean:
            per_image = 2 * mean
        # rows of an image after its first one
        further = (count - 1).clamp(min=0) // per_image
        extra_E = torch.repeat_interleave(torch.arange(images), further)
        first_extra = images + further.cumsum(0) - further
        row_M = torch.where(turn_M < per_image, image_M, first_extra[image_M] + turn_M // per_image - 1)
        slot_M = row_M * per_image + turn_M % per_image
        slot_M, extra_E = send((slot_M, extra_E), device)
        return cls(slot_M, per_image, images, extra_E)

    def attend_images(self, q_MQD: Tensor, memory: KeyValue, heads: int, dropout: float) -> Tensor:
        """Attention of each pair's queries to its image, -> [M, Q, D].

        Args:
            memory: keys and values of all images.
            dropout: of the attention weights.
        """
        pairs, queries, width = q_MQD.shape
        # no mask: queries of a pair never see those of another here, they only share its keys and values, and
        # the empty slots of the plan are rows that nobody collects
        q = spread(q_MQD.flatten(1), self.slot_M, self.rows * self.per_image)
        q = by_head(q.view(self.rows, self.per_image * queries, width), heads)
        if not len(self.extra_E):
            mixed = attend(q, *memory, None, dropout)
        else:
            extra = memory[0][self.extra_E], memory[1][self.extra_E]
            first, further = q[: self.images], q[self.images :]
            mixed = torch.cat([attend(first, *memory, None, dropout), attend(further, *extra, None, dropout)])
        return collect(mixed.view(-1, queries * width), self.slot_M).view(pairs, queries, width)


# Indexing has a gradient already, but a general one: it allows for repeated indices and so adds rows with
# atomic operations, slow and in no fixed order on a GPU. Slots are unique, hence a copy is enough both ways.
class _Spread(torch.autograd.Function):
    """Rows to their slots; the gradient is `_Collect`."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, slot_N: Tensor, slots: int) -> Tensor:
        ctx.save_for_backward(slot_N)
        return rows_ND.new_zeros(slots, rows_ND.shape[1]).index_copy_(0, slot_N, rows_ND)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot_N,) = ctx.saved_tensors
        return grads[0].index_select(0, slot_N), None, None  # None: indices and sizes have no gradient


class _Collect(torch.autograd.Function):
    """Rows from their slots; the gradient is `_Spread`."""

    @staticmethod
    def forward(ctx: Any, slots_SD: Tensor, slot_N: Tensor) -> Tensor:
        ctx.save_for_backward(slot_N)
        ctx.slots = slots_SD.shape[0]  # the gradient of padding, which nobody read, is 0
        return slots_SD.index_select(0, slot_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slot_N,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.slots, grads[0].shape[1]).index_copy_(0, slot_N, grads[0]), None


def spread(rows_ND: Tensor, slot_N: Tensor, slots: int) -> Tensor:
    """[N, D] rows to unique slots of a zero [slots, D]."""
    result: Tensor = _Spread.apply(rows_ND, slot_N, slots)
    return result


def collect(slots_SD: Tensor, slot_N: Tensor) -> Tensor:
    """[S, D] -> [N, D], the rows at unique slots."""
    result: Tensor = _Collect.apply(slots_SD, slot_N)
    return result
