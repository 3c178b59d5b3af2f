"""The paper's three self-attention masks built whole (figure 2, right), which the model's passes never do.

Each pass of `model/qformer.py` computes only the rows and columns that are open to it; this is the definition
they are tested against.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MaskKind = Literal["uni-modal", "bi-directional", "multi-modal causal"]


def full_mask(kind: MaskKind, queries: int, lengths_B: Tensor, longest: int) -> Tensor:
    """Bool [B, 1, Q+L, Q+L], True where the row may attend to the column; padding columns are closed."""
    position = torch.arange(queries + longest, device=lengths_B.device)
    is_text = position >= queries
    real_BS = ~is_text | (position - queries < lengths_B[:, None])
    row, column = position[:, None], position[None, :]
    if kind == "uni-modal":
        open_SS = is_text[:, None] == is_text[None, :]
    elif kind == "bi-directional":
        open_SS = torch.ones_like(row == column)
    else:
        open_SS = ~is_text[None, :] | (is_text[:, None] & (column <= row))
    return (open_SS[None] & real_BS[:, None, :])[:, None]
