"""How pixels become tokens: convolutions in place of the linear map of patches (`model.vit.stem`)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.model.norm import GlobalBatchNorm


def _convolution(channels: int, out: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    kernel = max(3, stride | 1)  # at least the stride, so that every pixel is read
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, GlobalBatchNorm(out)


class ResidualConvolutions(nn.Module):
    """The basic block of He et al. 2016: two 3x3 convolutions with batch norm, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels)
        )

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        out: Tensor = F.relu(map_BCHW + self.layers(map_BCHW))
        return out


def convolutional_stem(patch_size: int, width: int) -> nn.Sequential:
    """Pixels -> tokens by convolutions that overlap (Xiao et al. 2021, "Early convolutions help transformers
    see better"): [B, 3, H, W] -> [B, width, H / patch_size, W / patch_size].

    One strided layer for each prime factor of the patch size, the last with `width / 2` channels and each
    before it with half of those, then a linear map. Unlike theirs, a residual block follows each strided
    layer but the first, whose maps are large.
    """
    strides = prime_factors(patch_size)
    layers: list[nn.Module] = []
    channels = 3
    for number, stride in enumerate(strides, 1):
        out = max(8, width // 2 ** (1 + len(strides) - number))
        layers += [*_convolution(channels, out, stride), nn.ReLU()]
        if number > 1:
            layers.append(ResidualConvolutions(out))
        channels = out
    last = nn.Conv2d(channels, width, 1)
    nn.init.normal_(last.weight, std=channels**-0.5)
    return nn.Sequential(*layers, last)


def prime_factors(number: int) -> list[int]:
    """In ascending order, each as often as it divides: 12 -> [2, 2, 3]."""
    factors, factor = [], 2
    while number > 1:
        while number % factor == 0:
            factors.append(factor)
            number //= factor
        factor += 1
    return factors
