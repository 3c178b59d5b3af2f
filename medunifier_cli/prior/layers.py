"""Parts of a PixelSNAIL prior (Chen et al. 2018): causal windows, gated residual layers, causal attention.

Legend: B batch, K codes, H x W the code map, C channels, A attention width, P background channels,
h x w the top map that conditions the bottom one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.prior.shape import PriorShape

OCTAVES = 4
BACKGROUND = 4 * OCTAVES
"""P: sine and cosine at four octaves, for each axis."""


class CausalConv(nn.Module):
    """Convolution over the rows above (down-shifted) and the row's own past (down-right-shifted).

    Two kernels instead of one masked one: no multiplication by zero, and sampling can do the upper part for a
    whole row at once.
    """

    def __init__(self, width: int, out: int, kernel: int, *, strict: bool = False) -> None:
        """`strict` leaves out the position itself, as the first layer must."""
        super().__init__()
        self.reach = kernel // 2
        self.strict = strict
        self.above = nn.Conv2d(width, out, (self.reach, kernel))
        self.here = nn.Conv2d(width, out, (1, self.reach + (not strict)), bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, out, H, W]."""
        reach = self.reach
        above: Tensor = self.above(F.pad(x_BCHW, (reach, reach, reach, -1)))
        here: Tensor = self.here(F.pad(x_BCHW, (reach, -1 if self.strict else 0)))
        return above + here


class GatedResidual(nn.Module):
    """x + value * sigmoid(gate), both from two convolutions of x (PixelSNAIL, section 2.2).

    `aux` joins after the first convolution, as in the original code; the top map and the text join before the
    gate, as in the conditional gated PixelCNN (van den Oord et al. 2016, equation 4).
    """

    def __init__(
        self,
        config: PriorShape,
        width: int,
        *,
        kind: str = "point",
        aux: int = 0,
        top: bool = False,
        text: bool = True,
    ) -> None:
        """`kind` is `causal`, `point` (1x1) or `same` (3x3, not causal, for the top map)."""
        super().__init__()
        inner = config.channels
        self.doubles = config.concat_elu
        times = 2 if self.doubles else 1
        self.first = _convolution(kind, times * width, inner, config.kernel)
        self.second = _convolution(kind, times * inner, 2 * width, config.kernel)
        self.aux = nn.Conv2d(times * aux, inner, 1, bias=False) if aux else None
        self.top = nn.Conv2d(inner, 2 * width, 1, bias=False) if top else None
        self.text = nn.Linear(inner, 2 * width, bias=False) if text and config.text_width else None
        self.dropout = nn.Dropout(config.dropout)

    def activate(self, x: Tensor, dim: int = 1) -> Tensor:
        """ELU, of [x, -x] where the configuration asks for it; channels lie in `dim`."""
        return F.elu(torch.cat((x, -x), dim) if self.doubles else x)

    def forward(
        self, x_BCHW: Tensor, aux: Tensor | None = None, top: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Aux [B, A, H, W], top [B, C, h, w] and text [B, C] where the layer was built for them."""
        hidden: Tensor = self.first(self.activate(x_BCHW))
        if self.aux is not None:
            assert aux is not None
            hidden = hidden + self.aux(self.activate(aux))
        gated: Tensor = self.second(self.dropout(self.activate(hidden)))
        if self.top is not None:
            assert top is not None
            # 1x1 and nearest commute, so the projection runs on the smaller map.
            gated = gated + F.interpolate(self.top(top), x_BCHW.shape[-2:], mode="nearest")
        if self.text is not None:
            assert text is not None
            gated = gated + self.text(text)[:, :, None, None]
        return x_BCHW + F.glu(gated, 1)


def _convolution(kind: str, width: int, out: int, kernel: int) -> nn.Module:
    if kind == "causal":
        return CausalConv(width, out, kernel)
    return nn.Conv2d(width, out, 1) if kind == "point" else nn.Conv2d(width, out, 3, padding=1)


class CausalAttention(nn.Module):
    """Attention over all earlier positions, closing a block (PixelSNAIL, section 2.2 and the original code).

    Keys and values come from the code itself, the block's output and the background, queries from the last
    two. A learned start precedes the first position, which has no past to attend to.
    """

    def __init__(self, config: PriorShape) -> None:
        super().__init__()
        channels = config.channels
        self.heads, self.width = config.heads, channels // 2
        self.key_block = GatedResidual(config, 2 * channels + BACKGROUND)
        self.key_value = nn.Conv2d(2 * channels + BACKGROUND, 2 * self.width, 1)
        self.query_block = GatedResidual(config, channels + BACKGROUND)
        self.query = nn.Conv2d(channels + BACKGROUND, self.width, 1)
        self.start = nn.Parameter(torch.randn(2 * self.width) * 0.02)
        self.out_block = GatedResidual(config, channels, aux=self.width)

    def forward(
        self, x_BCHW: Tensor, code_BCHW: Tensor, background_BPHW: Tensor, text: Tensor | None
    ) -> Tensor:
        """Block output and code embeddings [B, C, H, W] -> [B, C, H, W]."""
        batch, _, height, width = x_BCHW.shape
        queried = torch.cat((x_BCHW, background_BPHW), 1)
        query: Tensor = self.query(self.query_block(queried, text=text))
        keyed = torch.cat((code_BCHW, x_BCHW, background_BPHW), 1)
        past: Tensor = self.key_value(self.key_block(keyed, text=text)).flatten(2)
        # Shifted by one, so that a position sees what lies strictly before it.
        past = torch.cat((self.start.expand(batch, 1, -1).mT.to(past.dtype), past[:, :, :-1]), 2)
        key, value = past.chunk(2, 1)
        mixed = F.scaled_dot_product_attention(
            self.split(query.flatten(2)), self.split(key), self.split(value), is_causal=True
        )
        mixed_BAHW = mixed.mT.reshape(batch, self.width, height, width)
        return self.out_block(x_BCHW, aux=mixed_BAHW, text=text)  # type: ignore[no-any-return]

    def split(self, x_BAL: Tensor) -> Tensor:
        """[B, A, L] -> [B, heads, L, A / heads]."""
        batch, width, places = x_BAL.shape
        return x_BAL.view(batch, self.heads, width // self.heads, places).mT.contiguous()


class CodeEmbedding(nn.Module):
    """Codes as vectors: learned ones, or the quantiser's own behind a learned linear map, so that codes whose
    vectors are near start near."""

    vectors: Tensor

    def __init__(self, codes: int, width: int, codebook_width: int) -> None:
        super().__init__()
        self.learned = None if codebook_width else nn.Embedding(codes, width)
        if codebook_width:
            self.register_buffer("vectors", torch.zeros(codes, codebook_width))
            self.project = nn.Linear(codebook_width, width)

    def table(self) -> Tensor:
        """[K, width], a row for each code."""
        if self.learned is not None:
            return self.learned.weight
        return self.project(self.vectors)  # type: ignore[no-any-return]

    def forward(self, codes_BHW: Tensor) -> Tensor:
        """int64 [B, H, W] -> [B, width, H, W], channels last in memory."""
        return F.embedding(codes_BHW, self.table()).permute(0, 3, 1, 2)


def background(size: tuple[int, int] | torch.Size, like: Tensor) -> Tensor:
    """Sines and cosines of each position's relative place: [1, P, H, W] of `like`'s type and device."""
    octave = math.pi * 2.0 ** torch.arange(OCTAVES, device=like.device, dtype=torch.float32)
    axes = []
    for length in size:
        place = (torch.arange(length, device=like.device, dtype=torch.float32) + 0.5) / length
        angle = octave[:, None] * place
        axes.append(torch.cat((angle.sin(), angle.cos())))
    height, width = size
    rows = axes[0][:, :, None].expand(-1, -1, width)
    columns = axes[1][:, None, :].expand(-1, height, -1)
    return torch.cat((rows, columns))[None].to(like.dtype)
