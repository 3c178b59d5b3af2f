"""The shape of a masked prior: the recipe's sizes, and the sizes set by the model whose codes it learns."""

from __future__ import annotations

from dataclasses import dataclass

from medunifier_cli.recipe.schema_prior import MaskedConfig


@dataclass(frozen=True)
class MaskedShape(MaskedConfig):
    """All sizes of one masked prior."""

    # Not recipe keys: the pre-training run decides them; `checkpoint.priors.build_prior` reads them there.

    codes: int = 512
    """K, size of either codebook."""
    text_width: int = 0
    """D of the states of a text; 0 for an unconditional prior."""
    codebook_width: int = 0
    """Width of the quantiser's vectors that codes are known by as well (`set_codebooks`); 0 for learned
    embeddings alone."""
    top_edge: int = 8
    """T, edge of the top map; that of the bottom map is twice as long."""
