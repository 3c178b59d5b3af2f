"""Attention over sequences that lie end to end, one sequence and one head at a time, from the definition."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from medunifier_cli.model.attention.sequences import Lengths


def slow_flash(
    q_RHE: Tensor, k_SHE: Tensor, v_SHE: Tensor, of_q: Lengths, of_k: Lengths, dropout: float, causal: bool
) -> Tensor:
    """What `sequences.flash` has a GPU compute; query i of n sees the keys up to number i of the last n."""
    assert dropout == 0.0, "this is not random"
    spans = []
    for lengths, rows in ((of_q, q_RHE), (of_k, k_SHE)):
        assert lengths.start_B1.dtype == torch.int32, "as the kernel demands"
        starts = lengths.start_B1.tolist()
        assert (starts[0], starts[-1]) == (0, len(rows))
        spans.append(list(pairwise(starts)))
        assert lengths.longest == max(end - start for start, end in spans[-1])
    mixed = []
    for (q_start, q_end), (k_start, k_end) in zip(*spans, strict=True):
        q, k, v = q_RHE[q_start:q_end], k_SHE[k_start:k_end], v_SHE[k_start:k_end]
        heads = []
        for head in range(q_RHE.shape[1]):
            scores = q[:, head] @ k[:, head].T / math.sqrt(q_RHE.shape[2])
            if causal:
                for i in range(len(q)):
                    last = len(k) - len(q) + i
                    scores[i, last + 1 :] = -math.inf
            heads.append(torch.softmax(scores, dim=1) @ v[:, head])
        mixed.append(torch.stack(heads, dim=1))
    return torch.cat(mixed)
