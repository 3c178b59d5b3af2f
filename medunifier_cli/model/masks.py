"""The three self-attention masks of the paper (figure 2, right) and the layout of packed text.

Rows attend to columns; True means "may attend". Queries come first, text after. Queries also cross-attend
to the image in every pass, which no mask restricts.

Rows are packed (texts end to end, no padding) wherever one costs a matrix product. Only inside attention,
3 % of the work at paper sizes, are they laid out as a padded grid, as wide as the longest text of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

MaskKind = Literal["uni-modal", "bi-directional", "multi-modal causal"]


def full_mask(kind: MaskKind, queries: int, lengths_B: Tensor, longest: int) -> Tensor:
    """The whole mask of a kind, [B, 1, Q+L, Q+L], padding columns closed.

    The passes of `qformer.py` never build it: each computes only rows and columns that are open. It is the
    definition they are tested against.
    """
    place = torch.arange(queries + longest, device=lengths_B.device)
    is_text = place >= queries
    real_BS = ~is_text | (place - queries < lengths_B[:, None])
    row, column = place[:, None], place[None, :]
    if kind == "uni-modal":
        open_SS = is_text[:, None] == is_text[None, :]
    elif kind == "bi-directional":
        open_SS = torch.ones_like(row == column)
    else:
        open_SS = ~is_text[None, :] | (is_text[:, None] & (column <= row))
    return (open_SS[None] & real_BS[:, None, :])[:, None]


def causal_rows(queries: int, longest: int, device: torch.device) -> Tensor:
    """Text rows of the multi-modal causal mask, [L, Q+L]: all queries, then this and earlier tokens.

    Padding needs no closing of its own: it follows a text's last token.
    """
    queries_open = torch.ones(longest, queries, dtype=torch.bool, device=device)
    return torch.cat([queries_open, torch.ones(longest, longest, dtype=torch.bool, device=device).tril()], 1)


@dataclass(frozen=True)
class Layout:
    """Where packed rows stand in the padded [B, S] grid of attention; S = queries + longest text.

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

    @classmethod
    def of(cls, lengths_B: Tensor, device: torch.device, queries: int = 0) -> Layout:
        """Lay out texts of the given lengths, each behind so many queries.

        `lengths_B` is on the CPU, so that a GPU need not wait.
        """
        texts, width = len(lengths_B), queries + int(lengths_B.max())
        end_B = lengths_B.cumsum(0)
        start_B = end_B - lengths_B
        row_N = torch.repeat_interleave(torch.arange(texts), lengths_B)
        position_N = torch.arange(int(end_B[-1])) - start_B[row_N]
        query_slots = torch.arange(texts)[:, None] * width + torch.arange(queries)
        slot_R = torch.cat([query_slots.flatten(), row_N * width + queries + position_N])
        real_BS = torch.arange(width) < queries + lengths_B[:, None]
        parts = (slot_R, position_N, start_B, real_BS)
        return cls(*(part.to(device, non_blocking=True) for part in parts))

    @property
    def open_keys(self) -> Tensor:
        """[B, 1, 1, S]: a mask that closes padding and nothing else."""
        return self.real_BS[:, None, None, :]

    def pad(self, packed_RD: Tensor) -> Tensor:
        """[R, D] -> [B, S, D], zeros on padding."""
        rows, width = self.real_BS.shape
        return spread(packed_RD, self.slot_R, rows * width).view(rows, width, -1)

    def unpad(self, padded_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [R, D]."""
        return collect(padded_BSD.flatten(0, 1), self.slot_R)


class _Spread(torch.autograd.Function):
    """Rows to their slots. Its own Function since slots are unique: no atomic adds in the backward pass."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, slot_N: Tensor, slots: int) -> Tensor:
        ctx.save_for_backward(slot_N)
        return rows_ND.new_zeros(slots, rows_ND.shape[1]).index_copy_(0, slot_N, rows_ND)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot_N,) = ctx.saved_tensors
        return grads[0].index_select(0, slot_N), None, None


class _Collect(torch.autograd.Function):
    """Rows from their slots; the transpose of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, slots_SD: Tensor, slot_N: Tensor) -> Tensor:
        ctx.save_for_backward(slot_N)
        ctx.slots = slots_SD.shape[0]
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
