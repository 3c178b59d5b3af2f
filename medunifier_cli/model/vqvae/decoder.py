"""Hierarchical decoder D (paper, equation 22 and appendix 2): two code maps -> the image.

G: bottom grid edge (16 at 224 px and patch 14), T = G / 2. n = ceil(log2(patch)) deconvolution blocks lead
from the base map, of edge size / 2^n (14), to the image. A block is transposed convolution, ReLU, norm; the
last one gives pixels, so it ends with its convolution: a ReLU and a norm would act on pixels.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.model.norm import map_norm
from medunifier_cli.model.precision import concatenate
from medunifier_cli.recipe.schema import GeneratorConfig

MID_GREY = 0.5
"""Initial value of all pixels: from 0, the first hundreds of steps would only learn to brighten."""


def blocks_for(patch_size: int) -> int:
    """Number of 2x deconvolution blocks from the base map to pixels."""
    return math.ceil(math.log2(patch_size))


def _he(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    """He weights (He et al. 2015) for a layer before a ReLU, in place."""
    # not `nn.init.kaiming_normal_`: in a transposed convolution of stride 2 an output pixel is reached by a
    # quarter of the kernel's taps, which it does not count. PyTorch's own start costs 0.4 dB in 250 steps.
    window, stride = math.prod(layer.kernel_size), math.prod(layer.stride)
    taps = window / stride if isinstance(layer, nn.ConvTranspose2d) else window
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * taps)))
    return layer


class RectifiedDeconvolution(nn.ConvTranspose2d):
    """Transposed convolution and ReLU, which can be compiled as one: bias and ReLU in one pass.

    Without the norm that follows: over several ranks it is an exchange, which no compiler joins to anything.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        """[B, C, H, W] -> rectified, as the kernel and the stride say."""
        return F.relu(super().forward(x_BCHW))


def deconvolution(channels: int, out: int, norm: str) -> nn.Sequential:
    """2x upsampling block [B, channels, H, W] -> [B, out, 2H, 2W]; norm after ReLU, the paper's order."""
    rectified = _he(RectifiedDeconvolution(channels, out, 4, 2, 1))
    # the norm is the third part: checkpoints name its weights so
    return nn.Sequential(rectified, nn.Identity(), map_norm(norm, out))


class Decoder(nn.Module):
    """z_q_top and z_q_bottom -> image."""

    def __init__(self, recipe: GeneratorConfig, image_size: int, patch_size: int) -> None:
        super().__init__()
        grid, blocks = image_size // patch_size, blocks_for(patch_size)
        base = image_size >> blocks
        widths = [recipe.base_width >> i for i in range(blocks)]
        self.raise_top = deconvolution(recipe.code_width, recipe.code_width, recipe.norm)
        kernel = grid - base + 1
        # without padding the kernel takes the grid (16) down to the base map (14), whose edge doubles to the
        # image's; where both are equal, an ordinary 3x3
        to_base = nn.Conv2d(
            2 * recipe.code_width, widths[0], kernel if kernel > 1 else 3, padding=int(kernel == 1)
        )
        layers: list[nn.Module] = [_he(to_base), nn.ReLU(), map_norm(recipe.norm, widths[0])]
        for channels, out in pairwise(widths):
            layers.append(deconvolution(channels, out, recipe.norm))
        # not `_he`: no ReLU follows, and pixels should start near mid-grey
        to_pixels = nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1)
        nn.init.constant_(to_pixels.bias, MID_GREY)  # type: ignore[arg-type]
        layers.append(to_pixels)
        self.layers = nn.Sequential(*layers)

    def forward(self, top_BCTT: Tensor, bottom_BCGG: Tensor) -> Tensor:
        """[B, C, T, T] and [B, C, G, G] -> [B, 3, S, S], about [0, 1] and not clamped."""
        raised = self.raise_top(top_BCTT)
        joined = concatenate([raised, bottom_BCGG], dim=1)
        if joined.device.type == "cuda":
            # the layout of a GPU's fast convolutions, which all layers keep; weights stay as they are saved
            joined = joined.contiguous(memory_format=torch.channels_last)
        image: Tensor = self.layers(joined)
        return image
