"""Text-grounded image generation (paper, section 3.4): adapters, quantisers and decoder joined.

C: code width, G: patch grid edge, T = G / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.precision import concatenate
from medunifier_cli.model.vqvae.adapters import BottomAdapter, TopAdapter
from medunifier_cli.model.vqvae.decoder import Decoder, blocks_for, deconvolution
from medunifier_cli.model.vqvae.quantizer import Quantised, Quantiser
from medunifier_cli.recipe.schema import GeneratorConfig


@dataclass(frozen=True)
class Generated:
    """Result of TIG for a batch: reconstructions and their codes."""

    image_BCHW: Tensor
    """Reconstruction, about [0, 1], not clamped."""
    top: Quantised
    bottom: Quantised

    @property
    def levels(self) -> tuple[Quantised, Quantised]:
        """Top and bottom."""
        return self.top, self.bottom


@dataclass(frozen=True)
class Sizes:
    """Sizes that the generator takes over from the encoders: edges in pixels, widths, number of queries."""

    image_size: int
    patch_size: int
    image_width: int
    text_width: int
    queries: int

    def check(self, base_width: int) -> None:
        """Raises MuError where no decoder of this width leads from this grid to these pixels."""
        # here and not in the recipe's own checks: the patch size may be the timm model's, known only now
        grid, blocks = self.image_size // self.patch_size, blocks_for(self.patch_size)
        if not blocks:
            raise MuError("model.vit.patch_size: patch size 1 leaves the decoder nothing to enlarge")
        if not base_width >> (blocks - 1):
            raise MuError(
                f"model.generator.base_width: {base_width} cannot be halved {blocks - 1} times, as "
                f"patch size {self.patch_size} asks of the decoder"
            )
        if self.image_size % (1 << blocks):
            raise MuError(
                f"data.image_size: {self.image_size} cannot be halved {blocks} times, as patch size "
                f"{self.patch_size} asks of the decoder"
            )
        if grid % 2:
            raise MuError(f"data.image_size: a {grid}x{grid} patch grid has no half; TIG needs an even one")
        top = grid // 2
        # queries fill whole rows of the top map, and rows are enlarged by a whole factor, see `TopAdapter`
        if self.queries % top or top % (self.queries // top):
            fitting = [rows * top for rows in range(1, top + 1) if top % rows == 0]
            raise MuError(
                f"model.qformer.queries: {self.queries} queries do not fill rows of a {top}x{top} map; "
                f"one of {', '.join(map(str, fitting))} does"
            )


class ImageGenerator(nn.Module):
    """Z_top, Z_bottom, both quantisers and D."""

    def __init__(self, recipe: GeneratorConfig, sizes: Sizes) -> None:
        super().__init__()
        sizes.check(recipe.base_width)
        grid = sizes.image_size // sizes.patch_size
        self.grid, self.top = grid, grid // 2
        self.adapt_top = TopAdapter(sizes.queries, sizes.text_width, recipe, self.top)
        self.adapt_bottom = BottomAdapter(sizes.image_width + sizes.text_width, recipe, grid)
        self.quantise_top = Quantiser(recipe)
        self.quantise_bottom = Quantiser(recipe)
        # the decoder enlarges the top map with weights of its own: there it serves pixels, here it conditions
        # the bottom codes
        self.raise_top = deconvolution(recipe.code_width, recipe.code_width, recipe.norm)
        self.join = nn.Conv2d(2 * recipe.code_width, recipe.code_width, 1)
        self.decoder = Decoder(recipe, sizes.image_size, sizes.patch_size)

    def encode(
        self, query_BQD: Tensor, local_BVD: Tensor, text_BD: Tensor, draws: torch.Generator | None = None
    ) -> tuple[Quantised, Quantised]:
        """f_q, f_local and f_t_cls -> quantised top [B, C, T, T] and bottom [B, C, G, G].

        Equation (21): the bottom is quantised given the top, by joining the decoded top to its features.
        """
        top = self.quantise_top(self.adapt_top(query_BQD), draws)
        bottom = self.adapt_bottom(local_BVD, text_BD)
        # the top takes from `draws` first: both levels share one stream of random numbers, so another order
        # would be another run
        joined = self.join(concatenate([self.raise_top(top.z_q_BCHW), bottom], dim=1))
        return top, self.quantise_bottom(joined, draws)

    def forward(
        self, query_BQD: Tensor, local_BVD: Tensor, text_BD: Tensor, draws: torch.Generator | None = None
    ) -> Generated:
        """Reconstruct the image from its codes. `draws` revives dead codes, see `Quantiser.forward`."""
        top, bottom = self.encode(query_BQD, local_BVD, text_BD, draws)
        return Generated(self.decoder(top.z_q_BCHW, bottom.z_q_BCHW), top, bottom)

    def from_codes(self, top_BTT: Tensor, bottom_BGG: Tensor) -> Tensor:
        """int64 codes -> image [B, 3, S, S]."""
        image: Tensor = self.decoder(
            self.quantise_top.look_up(top_BTT), self.quantise_bottom.look_up(bottom_BGG)
        )
        return image
