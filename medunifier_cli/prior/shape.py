"""The shape of one prior: the recipe's sizes, and the sizes set by the model whose codes it learns."""

from __future__ import annotations

from dataclasses import dataclass

from medunifier_cli.recipe.schema_prior import PixelSnailConfig


@dataclass(frozen=True)
class PriorShape(PixelSnailConfig):
    """All sizes of one PixelSNAIL, by default those of the paper's top prior.

    `replace(shape, top_codes=512, attention=False)` is the paper's bottom prior.
    """

    # Not recipe keys: the pre-training run decides them; `checkpoint.priors.build_prior` reads them there.

    codes: int = 512
    """K, size of the codebook this prior is over."""
    text_width: int = 0
    """D_t of the text feature that enters every gated residual layer; 0 for an unconditional prior."""
    top_codes: int = 0
    """Codes of the top map that conditions this prior; 0 for none (the top prior itself)."""
    codebook_width: int = 0
    """Read codes as the quantiser's own vectors of this width (`set_codebooks`); 0 learns an embedding."""
