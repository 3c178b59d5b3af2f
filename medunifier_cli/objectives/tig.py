"""Text-grounded image generation (paper, equation 23)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32
from medunifier_cli.model.vqvae.generator import Generated
from medunifier_cli.model.vqvae.quantizer import COLLAPSED, perplexity, place_counts, place_perplexity
from medunifier_cli.objectives.objective import EncodedBatch, LossAndMonitors, Objective


def tig_loss(image_BCHW: Tensor, generated: Generated, beta: float) -> LossAndMonitors:
    """Reconstruction + codebook terms + beta * commitment terms, means over the local batch.

    The paper writes squared norms; like van den Oord et al. 2017 the means over elements are meant, which
    keeps the terms of one size at any resolution.

    Args:
        image_BCHW: pixels in [0, 1].
        generated: reconstruction and both quantised maps.
        beta: beta_1 = beta_2 of the paper.
    """
    # no perceptual or adversarial term, as in the paper: the image of the lowest squared error is smooth
    reconstruction = F.mse_loss(at_least_fp32(generated.image_BCHW), image_BCHW)
    codebook = generated.top.codebook_loss + generated.bottom.codebook_loss
    commitment = generated.top.commitment_loss + generated.bottom.commitment_loss
    # the codes of all ranks are counted first: perplexity is not linear, so a mean over ranks would be lower
    codes = len(generated.top.count_K)
    top_PK = world.all_sum(place_counts(generated.top.code_BHW, codes))
    bottom_PK = world.all_sum(place_counts(generated.bottom.code_BHW, codes))
    return LossAndMonitors(
        reconstruction + codebook + beta * commitment,
        {
            "reconstruction": reconstruction.detach(),
            "codebook": codebook.detach(),
            "commitment": commitment.detach(),
            "perplexity_top": perplexity(top_PK.sum(dim=0)),
            "perplexity_bottom": perplexity(bottom_PK.sum(dim=0)),
            "place_perplexity_top": place_perplexity(top_PK),
            "place_perplexity_bottom": place_perplexity(bottom_PK),
        },
    )


class TextGroundedImageGeneration(Objective):
    """Two-level vector quantisation of the image, grounded in f_q and f_t_cls, and its reconstruction."""

    name = "tig"
    title = "TIG loss"
    monitors: ClassVar[Mapping[str, str]] = {
        "perplexity_top": "Perplexity of the top codebook",
        "perplexity_bottom": "Perplexity of the bottom codebook",
        "place_perplexity_top": "Perplexity at one position, top codes",
        "place_perplexity_bottom": "Perplexity at one position, bottom codes",
    }
    reads_text_cls = True
    # f_q becomes the top codes, whose gradient passes straight through to it, and f_t_cls part of the bottom
    reaches_every_weight = True

    def doubt(self, numbers: Mapping[str, float]) -> str:
        """Codebooks that have collapsed, over the whole map or at each position of it."""
        for level in ("top", "bottom"):
            places = numbers[f"place_perplexity_{level}"]
            if places < COLLAPSED:
                return (
                    f"the {level} codes are the same for all images (perplexity {places:.2f} at one "
                    f"position, {numbers[f'perplexity_{level}']:.0f} over the map); "
                    "model.generator.codebook=ema, revive_dead_codes=true, feature_norm=batch and a "
                    "smaller beta keep them apart"
                )
        return ""

    def compute(self, encoded: EncodedBatch) -> LossAndMonitors:
        """Mean over the local images."""
        # every rank holds as many images as any other, so the mean over ranks is that over the global batch
        model, memory = encoded.model, encoded.memory
        # f_local is read before the Q-Former, so the ViT's features get gradient on two ways
        generated = model.generator(memory.query_BQD, memory.patch_BVD, encoded.text_cls_BD, encoded.revival)
        return tig_loss(encoded.image_BCHW, generated, model.recipe.model.generator.beta)
