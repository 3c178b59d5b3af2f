"""The layers of a PixelSNAIL prior (Chen et al. 2018): causal windows, gated residuals, causal attention.

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
"""From one period over two maps to four periods over one; enough to tell 16 positions of an axis apart."""
BACKGROUND = 4 * OCTAVES
"""P: sine and cosine at four octaves, for each axis."""


class CausalConv(nn.Module):
    """Convolution over the rows above (down-shifted) and the row's own past (down-right-shifted).

    Two kernels instead of one masked one: no multiplication by zero, and sampling can compute the upper part
    for a whole row at once.
    """

    def __init__(self, width: int, out: int, kernel: int, *, strict: bool = False) -> None:
        """`strict` leaves out the position itself, as the first layer must."""
        super().__init__()
        # The input of the first layer at a position is the very code to be predicted there, so it must be
        # left out. Inputs of later layers no longer depend on that code: these may read their own position.
        self.reach = kernel // 2
        self.strict = strict
        # Together the two kernels hold the causal half of one kernel x kernel window; one bias is enough.
        self.above = nn.Conv2d(width, out, (self.reach, kernel))
        self.here = nn.Conv2d(width, out, (1, self.reach + (not strict)), bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, out, H, W]."""
        reach = self.reach
        # Padding (left, right, top, bottom). -1 at the bottom drops the last row: each output row then sees
        # the `reach` rows strictly above it. The row's own part has no padding on the right, and where strict
        # it loses its last column instead, which shifts every window by one to the left.
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
        # [x, -x] doubles what each convolution reads, not what it gives.
        self.doubles = config.concat_elu
        times = 2 if self.doubles else 1
        self.first = _convolution(kind, times * width, inner, config.kernel)
        # Value and gate of every channel from one convolution; `glu` splits them.
        self.second = _convolution(kind, times * inner, 2 * width, config.kernel)
        # Without bias: each joins a sum that already has the bias of a convolution.
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
        # Dropout between the two convolutions, as in PixelCNN++ and the original code; never on the sum x.
        gated: Tensor = self.second(self.dropout(self.activate(hidden)))
        if self.top is not None:
            assert top is not None
            # A 1x1 convolution and nearest-neighbour upsampling commute, so it runs on the smaller map.
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
        # Queries must not contain the code at their own position, which is what is predicted there.
        queried = torch.cat((x_BCHW, background_BPHW), 1)
        query: Tensor = self.query(self.query_block(queried, text=text))
        keyed = torch.cat((code_BCHW, x_BCHW, background_BPHW), 1)
        past: Tensor = self.key_value(self.key_block(keyed, text=text)).flatten(2)
        # Keys do contain the code at their position. So they are shifted by one, the learned start in front:
        # with that, the causal mask lets a position see exactly what lies strictly before it.
        past = torch.cat((self.start.expand(batch, 1, -1).mT.to(past.dtype), past[:, :, :-1]), 2)
        key, value = past.chunk(2, 1)
        mixed = F.scaled_dot_product_attention(
            self.split(query.flatten(2)), self.split(key), self.split(value), is_causal=True
        )
        mixed_BAHW = mixed.mT.reshape(batch, self.width, height, width)
        return self.out_block(x_BCHW, aux=mixed_BAHW, text=text)  # type: ignore[no-any-return]

    def split(self, x_BAL: Tensor) -> Tensor:
        """[B, A, L] -> [B, heads, L, A / heads]."""
        batch, width, length = x_BAL.shape
        return x_BAL.view(batch, self.heads, width // self.heads, length).mT.contiguous()


class CodeEmbedding(nn.Module):
    """Codes as vectors: learned ones, or the quantiser's own behind a learned linear map.

    With the quantiser's vectors, codes that are near each other in the codebook start with near embeddings.
    """

    vectors: Tensor

    def __init__(self, codes: int, width: int, codebook_width: int) -> None:
        super().__init__()
        self.learned = None if codebook_width else nn.Embedding(codes, width)
        if codebook_width:
            # A buffer, not a parameter: training leaves the codebook alone, and checkpoints hold it, so that
            # sampling does not depend on the pre-training run for it.
            self.register_buffer("vectors", torch.zeros(codes, codebook_width))
            self.project = nn.Linear(codebook_width, width)

    def table(self) -> Tensor:
        """[K, width], a row for each code."""
        if self.learned is not None:
            return self.learned.weight
        return self.project(self.vectors)  # type: ignore[no-any-return]

    def forward(self, codes_BHW: Tensor) -> Tensor:
        """int64 [B, H, W] -> [B, width, H, W], channels last in memory."""
        # Through the table of K rows even behind the linear map: K products are fewer than B * H * W.
        return F.embedding(codes_BHW, self.table()).permute(0, 3, 1, 2)


def background(size: tuple[int, int] | torch.Size, like: Tensor) -> Tensor:
    """Sines and cosines of each position's relative place: [1, P, H, W] of `like`'s type and device."""
    # Computed, not learned, so that it exists for every map size. Relative positions, so that row 3 of 8 and
    # rows 6 and 7 of 16 lie around the same angle: top and bottom map share one coordinate system.
    octave = math.pi * 2.0 ** torch.arange(OCTAVES, device=like.device, dtype=torch.float32)
    axes = []
    for length in size:
        # Centres of the cells, in (0, 1). In float32 even where the model runs in bfloat16, whose 8
        # significant bits would blur the angles of the highest octave; only the sines are cast.
        position = (torch.arange(length, device=like.device, dtype=torch.float32) + 0.5) / length
        angle = octave[:, None] * position
        axes.append(torch.cat((angle.sin(), angle.cos())))
    height, width = size
    rows = axes[0][:, :, None].expand(-1, -1, width)
    columns = axes[1][:, None, :].expand(-1, height, -1)
    return torch.cat((rows, columns))[None].to(like.dtype)
