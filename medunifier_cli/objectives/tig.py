"""Text-grounded image generation (paper, equation 23)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32
from medunifier_cli.model.vqvae.generator import Generated
from medunifier_cli.model.vqvae.quantizer import perplexity
from medunifier_cli.objectives import Objective


def tig_loss(image_BCHW: Tensor, made: Generated, beta: float) -> Objective:
    """Reconstruction + codebook terms + beta * commitment terms, means over the local batch.

    The paper writes squared norms; like van den Oord et al. 2017 the means over elements are meant, which
    keeps the terms of one size at any resolution.

    Args:
        image_BCHW: pixels in [0, 1].
        made: reconstruction and both quantised maps.
        beta: beta_1 = beta_2 of the paper.
    """
    reconstruction = F.mse_loss(at_least_fp32(made.image_BCHW), image_BCHW)
    codebook = made.top.codebook_loss + made.bottom.codebook_loss
    commitment = made.top.commitment_loss + made.bottom.commitment_loss
    top_K, bottom_K = world.all_sum(made.top.count_K), world.all_sum(made.bottom.count_K)
    return Objective(
        reconstruction + codebook + beta * commitment,
        {
            "reconstruction": reconstruction.detach(),
            "codebook": codebook.detach(),
            "commitment": commitment.detach(),
            "perplexity_top": perplexity(top_K),
            "perplexity_bottom": perplexity(bottom_K),
        },
    )
