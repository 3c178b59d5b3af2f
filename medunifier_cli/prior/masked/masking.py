"""What a masked prior hides in training, as a function of a row's random numbers.

Letters: B rows, T top edge, P = T * T cells, S = 5 slots of a cell (see `network.py`), N numbers of a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CONTEXT = 0.25
"""Share of rows whose top codes are told with the bottom codes of the cells not hidden, as in editing."""


def chances(cells: int) -> int:
    """N, random numbers of a row: two shares, whether it is as in editing, and one for each code."""
    return 3 + 5 * cells


def cosine_share(chance: Tensor) -> Tensor:
    """The share of codes to hide, cos(pi / 2 * u) of u uniform in [0, 1) (MaskGIT, section 3.1)."""
    return torch.cos(math.pi / 2 * chance)


def hide(chance_BL: Tensor, count_B: Tensor) -> Tensor:
    """bool [B, L]: the `count` codes of each row with the smallest random numbers."""
    return chance_BL.argsort(1).argsort(1) < count_B[:, None]


def count_of(share_B: Tensor, codes: int) -> Tensor:
    """int64, how many of a map's codes a share is; at least one."""
    return (share_B * codes).ceil().long().clamp(1, codes)


def hidden_in_training(chance_BN: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Which codes each of a row's two views hides, bool [B, P, S] each.

    The first view is for the top codes: a share of them is hidden, and all bottom codes, or in some rows only
    those of the hidden cells. The second is for the bottom codes: a share of them is hidden, no top code.
    """
    share_BN, order_BN = cosine_share(chance_BN[:, :2]), chance_BN[:, 3:]
    top_BP = hide(order_BN[:, :cells], count_of(share_BN[:, 0], cells))
    as_editing_B = chance_BN[:, 2] < CONTEXT
    under_BP = top_BP | ~as_editing_B[:, None]
    bottom_BQ = hide(order_BN[:, cells:], count_of(share_BN[:, 1], 4 * cells))
    return _views(top_BP, under_BP, bottom_BQ)


def hidden_in_measuring(chance_BN: Tensor, cells: int, shift: float) -> tuple[Tensor, Tensor]:
    """As `hidden_in_training`, but any number is equally likely, and the first view hides all bottom codes.

    Args:
        shift: added to the shares, modulo 1: the same rows with other numbers of hidden codes.
    """
    share_BN, order_BN = (chance_BN[:, :2] + shift) % 1, chance_BN[:, 3:]
    # floor(u * L) + 1 is uniform from 1 to L
    top_BP = hide(order_BN[:, :cells], (share_BN[:, 0] * cells).long() + 1)
    bottom_BQ = hide(order_BN[:, cells:], (share_BN[:, 1] * 4 * cells).long() + 1)
    return _views(top_BP, torch.ones_like(top_BP), bottom_BQ)


def _views(top_BP: Tensor, under_BP: Tensor, bottom_BQ: Tensor) -> tuple[Tensor, Tensor]:
    """The view for the top, with the cells whose bottom codes are hidden in it; and that for the bottom."""
    first = torch.cat((top_BP[:, :, None], under_BP[:, :, None].expand(-1, -1, 4)), 2)
    none = torch.zeros_like(top_BP)[:, :, None]
    return first, torch.cat((none, bottom_BQ.view(len(top_BP), -1, 4)), 2)
