"""Leave tokens of training texts out at random, as functions of seed and position: `text.drop`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medunifier_cli.data.batch import PackedText, send
from medunifier_cli.distributed import draws


def drop_tokens(text: PackedText, positions: Sequence[int], share: float, seed: int) -> PackedText:
    """The texts without a random share of their tokens; [CLS] and [SEP] stay.

    Args:
        text: B texts, on any device.
        positions: B positions of the sample order, which decide what is left out.
        share: of the tokens, in [0, 1).
        seed: of the run.
    """
    here = text.on_host()
    kept_B = []
    for position, length in zip(positions, here.lengths_B.tolist(), strict=True):
        # words of the counter above the lowest, which counts the numbers that are drawn
        random = draws.philox(seed, draws.TOKEN_DROP, (0, position, 0, 0)).random(length)
        kept = torch.from_numpy(random >= share)
        kept[0] = kept[-1] = True
        kept_B.append(kept)
    (ids_N,) = send((here.ids_N[torch.cat(kept_B)],), text.ids_N.device)
    return PackedText(ids_N, torch.stack([kept.sum() for kept in kept_B]))
