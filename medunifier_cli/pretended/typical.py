"""A batch for a step that is only counted: texts as long as reports are, and no more than that."""

from __future__ import annotations

import numpy as np
import torch

from medunifier_cli.data.batch import Batch, PackedText
from medunifier_cli.recipe.schema import PretrainRecipe

LENGTHS = (6, 21, 25, 28, 30, 32, 34, 36, 38, 41, 43, 45, 47, 50, 53, 57, 62, 68, 78, 93, 95)
"""Every 5th percentile of the token counts of the 3,927 Open-i reports with findings or impression, [CLS] and
[SEP] included, cut at 95; WordPieces learned on them. Their mean is 46.8."""
WORD = 5


def typical_batch(recipe: PretrainRecipe, pairs: int) -> Batch:
    """Pairs on the CPU whose texts are spread as those of `LENGTHS`, cut at `text.max_tokens`; all differ."""
    places = (np.arange(pairs) + 0.5) / pairs * (len(LENGTHS) - 1)
    lengths = np.interp(places, range(len(LENGTHS)), LENGTHS).round().astype(int)
    lengths = np.random.default_rng(0).permutation(lengths.clip(2, recipe.text.max_tokens))
    number_B, size = torch.arange(pairs), recipe.data.image_size
    ids_N = torch.full((int(lengths.sum()),), WORD)
    return Batch(
        [str(number) for number in range(pairs)],
        torch.zeros(pairs, 1, size, size, dtype=torch.uint8),
        PackedText(ids_N, torch.from_numpy(lengths)),
        digest_B=number_B + 1000, label_B=torch.zeros_like(number_B), position_B=number_B,
    )  # fmt: skip
