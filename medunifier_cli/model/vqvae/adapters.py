"""Latent adapters (paper, section 3.4 and appendix 1): encoder features -> the maps that are quantised.

C is the code width, G the patch grid's edge (16 at 224 px), T = G / 2 the top map's edge.
What the paper leaves open has two forms each, ours and that of the authors' code: `nonlinear`, `upsample` and
`residual` of the recipe.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.model.norm import GlobalBatchNorm, map_norm
from medunifier_cli.model.precision import concatenate
from medunifier_cli.recipe.schema import GeneratorConfig


def sinusoid_2d(channels: int, height: int, width: int) -> Tensor:
    """2-D positional encoding [C, H, W]: half of the channels encode the row, half the column.

    Source: Wang and Liu 2019, as the paper cites it.
    """
    # fixed and not learned: it adds no weights and needs no training before positions can be told apart
    half = channels // 2
    encoding = torch.zeros(channels, height, width)
    for offset, length, dim in ((0, height, 1), (half, width, 2)):
        # sines and cosines alternate, as in Vaswani et al. 2017; an odd channel left over stays 0
        pairs = (half if offset == 0 else channels - half) // 2
        rate = torch.exp(torch.arange(pairs) * (-math.log(10000.0) / max(pairs, 1)))
        angle = rate[:, None] * torch.arange(length)[None, :]
        angle = angle[:, :, None] if dim == 1 else angle[:, None, :]
        angle = angle.expand(pairs, height, width)
        encoding[offset : offset + 2 * pairs : 2] = angle.sin()
        encoding[offset + 1 : offset + 2 * pairs : 2] = angle.cos()
    return encoding


class PreActivationLayer(nn.Sequential):
    """What VQ-VAE-2's residual layer adds to its input: [B, C, H, W] -> the same."""

    def __init__(self, recipe: GeneratorConfig) -> None:
        channels, inner = recipe.code_width, recipe.residual_width
        super().__init__(
            # not in place: the input is also what the layer's output is added to
            nn.ReLU(),
            nn.Conv2d(channels, inner, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
        )


class BottleneckLayer(nn.Sequential):
    """What He et al. 2016's bottleneck adds to its input: [B, C, H, W] -> the same."""

    def __init__(self, recipe: GeneratorConfig) -> None:
        channels, inner, norm = recipe.code_width, recipe.residual_width, recipe.norm
        # no biases: the norms that follow have them
        super().__init__(
            nn.Conv2d(channels, inner, 1, bias=False),
            map_norm(norm, inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            map_norm(norm, inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            map_norm(norm, channels),
        )


class ResidualBlock(nn.Module):
    """Residual layers, each with weights of its own (the published code repeats one layer)."""

    def __init__(self, recipe: GeneratorConfig) -> None:
        super().__init__()
        # He et al. take the sum through a ReLU; pre-activation layers leave the way from input to output free
        self.rectified = recipe.residual == "bottleneck"
        layer = BottleneckLayer if self.rectified else PreActivationLayer
        self.layers: nn.ModuleList = nn.ModuleList(layer(recipe) for _ in range(recipe.residual_layers))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        for layer in self.layers:
            x_BCHW = x_BCHW + layer(x_BCHW)
            if self.rectified:
                x_BCHW = F.relu(x_BCHW)
        return x_BCHW


class Nonlinear(nn.Module):
    """The adapters' nonlinear layer and the positional encoding that is added to it.

    With random encoders the features of different images are nearly equal, and the codes then encode the
    position in the map and nothing else. The recipe's `feature_norm` and `position_scale` let the content
    prevail within a short run.

    Args:
        width: D of the features.
        inner: width between the two linear layers of `linear-relu-linear`.
        recipe: form and width C of the layer.
        height: H of the map.
        columns: W of the map.
    """

    def __init__(self, width: int, inner: int, recipe: GeneratorConfig, height: int, columns: int) -> None:
        super().__init__()
        self.shape = (height, columns)
        two = recipe.nonlinear == "linear-relu-linear"
        hidden = inner if two else recipe.code_width
        self.linear = nn.Linear(width, hidden)
        # with PyTorch's default the encoding below was some six times as strong as the content, and both
        # codebooks stood for positions only
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)
        self.out = nn.Linear(hidden, recipe.code_width) if two else None
        if self.out is not None:
            # as strong as its input, so that content and positions are balanced alike in both forms
            nn.init.normal_(self.out.weight, std=hidden**-0.5)
            nn.init.zeros_(self.out.bias)
        batch = recipe.feature_norm == "batch"
        # each channel at each position is a feature: per channel alone, the variance between positions of one
        # map would swamp that between images. Non-affine, as nothing may scale the content down again.
        features = hidden * height * columns
        self.norm = GlobalBatchNorm(features, affine=False) if batch else None
        where = recipe.position_scale * sinusoid_2d(recipe.code_width, height, columns)
        self.where: Tensor
        # not persistent: a table that the recipe determines, not a weight
        self.register_buffer("where", where, persistent=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, H * W, D] -> [B, C, H, W]."""
        y = self.linear(x_BLD)
        if self.norm is not None:
            y = self.norm(y.flatten(1)).view(y.shape)
        y_BLC: Tensor = F.relu(y)
        if self.out is not None:
            y_BLC = self.out(y_BLC)
        # in the features' own precision: in fp32 the residual blocks would carry fp32 maps through autocast
        where = self.where.to(y_BLC.dtype)
        return y_BLC.transpose(1, 2).reshape(len(y), -1, *self.shape) + where


def raise_rows(channels: int, factor: int, how: str) -> nn.Module:
    """[B, channels, H, W] -> [B, channels, factor * H, W]; `how` is `upsample` of the recipe."""
    if how == "nearest":
        return nn.Upsample(scale_factor=(factor, 1))
    # kernel 2f + f % 2, stride f and padding ceil(f / 2) give exactly f times as many rows, and kernel 3 with
    # padding 1 keeps the columns. 32 queries and T = 8: 4 rows to 8, f = 2.
    kernel, padding = (2 * factor + factor % 2, 3), ((factor + 1) // 2, 1)
    return nn.ConvTranspose2d(channels, channels, kernel, (factor, 1), padding)


class TopAdapter(nn.Module):
    """Z_top, equation (18): queries -> [B, C, T, T].

    The queries fill a map of `queries / T` rows, which is then upsampled to T rows.
    """

    def __init__(self, queries: int, width: int, recipe: GeneratorConfig, top: int) -> None:
        super().__init__()
        channels, rows = recipe.code_width, queries // top
        self.nonlinear = Nonlinear(width, 2 * channels, recipe, rows, top)
        # the attribute is called `stretch` because checkpoints of earlier versions name its weights so
        self.stretch = raise_rows(channels, top // rows, recipe.upsample)
        self.residual = ResidualBlock(recipe)

    def forward(self, query_BQD: Tensor) -> Tensor:
        """[B, Q, D] -> z_e_top [B, C, T, T]."""
        out: Tensor = self.residual(self.stretch(self.nonlinear(query_BQD)))
        return out


class BottomAdapter(nn.Module):
    """Z_bottom, equation (20): patch features joined with the text's [CLS] -> [B, C, G, G]."""

    def __init__(self, width: int, recipe: GeneratorConfig, grid: int) -> None:
        super().__init__()
        self.nonlinear = Nonlinear(width, recipe.code_width, recipe, grid, grid)
        self.residual = ResidualBlock(recipe)

    def forward(self, local_BVD: Tensor, text_BD: Tensor) -> Tensor:
        """f_local [B, G*G, D_v] and f_t_cls [B, D] -> [B, C, G, G]."""
        # the same text vector at every position, concatenated with the features (paper, section 3.4)
        text = text_BD[:, None].expand(-1, local_BVD.shape[1], -1)
        out: Tensor = self.residual(self.nonlinear(concatenate([local_BVD, text], dim=2)))
        return out
