"""PixelSNAIL over code maps (Chen et al. 2018), used as in VQ-VAE-2: a top prior, a bottom one given the top.

Reading order is data flow: codes -> embedding -> stem -> blocks of gated residual layers, each ending in
causal attention if the configuration has it -> logits. Every position sees only the codes that come before it
in raster order.

Legend: B batch, K codes, H x W the code map, C channels, D_t width of a text feature, h x w the top map that
conditions the bottom one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.errors import MuError
from medunifier_cli.prior.layers import (
    BACKGROUND,
    CausalAttention,
    CausalConv,
    CodeEmbedding,
    GatedResidual,
    background,
)
from medunifier_cli.prior.shape import PriorShape


class Block(nn.Module):
    """Gated residual layers with causal windows, then causal attention if the configuration has it."""

    def __init__(self, config: PriorShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GatedResidual(config, config.channels, kind="causal", top=bool(config.top_codes))
            for _ in range(config.layers)
        )
        self.attention = CausalAttention(config) if config.attention else None

    def gated_layers(self) -> list[GatedResidual]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, GatedResidual)]

    def forward(
        self, x: Tensor, code: Tensor, background: Tensor, top: Tensor | None, text: Tensor | None
    ) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        for layer in self.layers:
            x = layer(x, top=top, text=text)
        # Each window reaches only kernel // 2 rows further up; attention reaches every earlier position at
        # once. The paper's bottom prior does without it: its map is four times as long, which costs 16 times
        # as much, and the top map already gives it the layout.
        return x if self.attention is None else self.attention(x, code, background, text)


class TopStack(nn.Module):
    """Reads the whole top map once; its output enters every causal layer of the bottom prior."""

    def __init__(self, config: PriorShape) -> None:
        super().__init__()
        self.embedding = CodeEmbedding(config.top_codes, config.channels, config.codebook_width)
        self.background = nn.Conv2d(BACKGROUND, config.channels, 1, bias=False)
        # Not causal: the top map is complete before the first bottom code is sampled.
        self.enter = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        # Without text: the causal layers that read this map have the text themselves.
        self.layers = nn.ModuleList(
            GatedResidual(config, config.channels, kind="same", text=False) for _ in range(config.top_layers)
        )

    def forward(self, top_codes_Bhw: Tensor) -> Tensor:
        """int64 [B, h, w] -> [B, C, h, w]."""
        codes = self.embedding(top_codes_Bhw)
        x = self.enter(codes) + self.background(
            background(codes.shape[-2:], codes).expand(len(codes), -1, -1, -1)
        )
        for layer in self.layers:
            x = layer(x)
        return F.elu(x)


class PixelSnail(nn.Module):
    """One prior: p(codes | top codes, text) as a product over the positions in raster order."""

    def __init__(self, config: PriorShape) -> None:
        """Raises MuError if the configuration does not fit together."""
        super().__init__()
        for name, problem in config.problems():
            raise MuError(f"prior.{name}: {problem}")
        self.config = config
        channels = config.channels
        self.embedding = CodeEmbedding(config.codes, channels, config.codebook_width)
        # Strict: the one window that reads codes leaves out the position's own, so nothing after it can leak
        # it.
        self.stem = CausalConv(channels, channels, config.stem_kernel, strict=True)
        self.background = nn.Conv2d(BACKGROUND, channels, 1, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.head = nn.Conv2d(channels, config.codes, 1)
        self.top_stack = TopStack(config) if config.top_codes else None
        if config.text_width:
            # Stands for "no text", for guidance; 1 / sqrt(width) gives it a length of about 1.
            self.null_text = nn.Parameter(torch.randn(config.text_width) / math.sqrt(config.text_width))
            self.text_in = nn.Linear(config.text_width, channels)

    @torch.no_grad()
    def set_codebooks(self, codebook_KD: Tensor, top_KD: Tensor | None = None) -> None:
        """Put the quantisers' vectors in, each channel standardised over the codes; for `codebook_width` > 0.

        Args:
            codebook_KD: vectors of this prior's codes.
            top_KD: vectors of the top codes, for a bottom prior.

        Raises:
            ValueError: if a shape is not the configuration's, or the top's is missing.
        """
        embeddings = [(self.embedding, codebook_KD)]
        if self.top_stack is not None:
            if top_KD is None:
                raise ValueError("a bottom prior needs the top codebook too")
            embeddings.append((self.top_stack.embedding, top_KD))
        for embedding, vectors in embeddings:
            if embedding.learned is not None or embedding.vectors.shape != vectors.shape:
                raise ValueError(f"codebook {tuple(vectors.shape)} does not fit this prior's configuration")
            # Standardised, as the usual initialisation of the linear map expects inputs of unit variance. The
            # clamp keeps a channel that is the same for all codes at 0 instead of NaN.
            spread = vectors.std(dim=0, correction=0).clamp_min(1e-8)
            embedding.vectors.copy_((vectors - vectors.mean(dim=0)) / spread)

    def text_context(self, condition_BD: Tensor | None, drop_B: Tensor | None, batch: int) -> Tensor | None:
        """The vectors [B, C] that enter every gated layer, or None for an unconditional prior.

        Rows marked by `drop_B`, and all rows where there is no condition, carry the learned "no text" vector.
        """
        if not self.config.text_width:
            if condition_BD is not None:
                raise ValueError(
                    "this prior was built without text (text_width 0), yet a condition was given"
                )
            return None
        null = self.null_text.expand(batch, -1)
        if condition_BD is None:
            text = null
        elif condition_BD.shape != null.shape:
            raise ValueError(f"condition is {tuple(condition_BD.shape)}, expected {tuple(null.shape)}")
        else:
            if drop_B is None:
                drop_B = torch.zeros(batch, dtype=torch.bool, device=null.device)
            # Always through `where`, so that the null vector has a gradient on every rank: data-parallel
            # training waits for every parameter, even in a batch where no row drops its text.
            text = torch.where(drop_B[:, None], null, condition_BD.to(null.dtype))
        return F.elu(self.text_in(text))

    def forward(
        self,
        codes_BHW: Tensor,
        *,
        top_codes: Tensor | None = None,
        condition: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, K, H, W], float32; those at a position depend only on codes before it.

        Args:
            codes_BHW: int64 in [0, K).
            top_codes: int64 [B, h, w], for a prior with `top_codes`.
            condition: text feature [B, D_t]; None means no text in any row.
            drop_condition: bool [B], rows trained without their text, so that guidance works.

        Raises:
            ValueError: if the top codes or the condition do not fit what the prior was built for.
        """
        if (top_codes is None) != (self.top_stack is None):
            raise ValueError(
                f"top codes are {'missing' if top_codes is None else 'not expected'} for this prior"
            )
        text = self.text_context(condition, drop_condition, len(codes_BHW))
        # Once for all positions and layers.
        top = None if self.top_stack is None else self.top_stack(top_codes)
        code = self.embedding(codes_BHW)
        place = background(code.shape[-2:], code).expand(len(code), -1, -1, -1)
        # Zero padding alone would let the layers tell only positions near the border.
        x = self.stem(code) + self.background(place)
        for block in self.blocks:
            x = block(x, code, place, top, text)
        # float32 before the softmax of the loss, whatever precision the layers run in.
        return self.head(F.elu(x)).float()  # type: ignore[no-any-return]
