"""Choose among several images drawn for one text: the one that the model's own ITM matches with it best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import PackedText
from medunifier_cli.errors import CheckpointError
from medunifier_cli.model.precision import measuring


def need_itm(pretrained: PretrainedRun) -> None:
    """Raises CheckpointError for a run that was trained without ITM and so judges no match."""
    if not pretrained.recipe.objectives.itm:
        raise CheckpointError(
            f"{pretrained.run.folder}: trained without ITM, it cannot choose the image that matches a prompt "
            "best; leave --best-of out"
        )


def best_match(
    pretrained: PretrainedRun, image_kSS: Sequence[NDArray[np.uint8]], text: str
) -> tuple[int, float]:
    """The number of the image that matches a text best, the first of several, and its log-odds of a match.

    The candidates of one text go through the model together and alone: what is chosen does not depend on
    other images.

    Args:
        image_kSS: grey levels.
    """
    ids = pretrained.tokenizer.encode(text, pretrained.recipe.text.max_tokens)
    image_k1SS = torch.from_numpy(np.stack(image_kSS))[:, None].to(pretrained.device)
    with measuring():
        memory = pretrained.model.encode(image_k1SS)
        packed = PackedText.of([ids] * len(image_kSS), pretrained.device)
        logits_k2 = pretrained.model.match(memory, torch.arange(len(image_kSS)), packed).float()
    odds_k = (logits_k2[:, 1] - logits_k2[:, 0]).cpu().numpy()
    return int(odds_k.argmax()), float(odds_k.max())
