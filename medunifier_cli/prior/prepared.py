"""What cached sampling works out once, before the first position. See `cache.py` for how and why.

Legend: T tiles, R rows of a tile, C channels, N a layer's output width, A its input width, h x w the top map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.prior.layers import GatedResidual
from medunifier_cli.prior.pixelsnail import PixelSnail


def tile_rows(device: torch.device) -> int:
    """R: 8 keeps a small batch cheap on a CPU, where reading the weights is most of the cost."""
    return 8 if device.type == "cpu" else 64


def product_weights(prior: PixelSnail) -> dict[nn.Module, Tensor]:
    """Each convolution and linear map as a contiguous float32 [window * A, N], in (row, column, A) order.

    N is padded to a multiple of 8, which keeps each tile of an output aligned. Shared by all threads.
    """
    weights: dict[nn.Module, Tensor] = {}
    for module in prior.modules():
        if isinstance(module, nn.Conv2d):
            kernel = module.weight.detach().float().permute(2, 3, 1, 0)
            kernel = kernel.reshape(-1, module.out_channels)
            weights[module] = F.pad(kernel, (0, -module.out_channels % 8)).contiguous()
        elif isinstance(module, nn.Linear):
            weights[module] = module.weight.detach().float().t().contiguous()
    return weights


@dataclass(frozen=True)
class Surroundings:
    """What does not change over the positions, for the tiles of one `CachedPrior`."""

    weights: dict[nn.Module, Tensor]
    size: tuple[int, int]
    rows: int
    device: torch.device
    text: list[Tensor] | None
    """[R, C] a tile."""
    top: list[Tensor] | None
    """[R, C, h, w] a tile."""
    tiles: int

    def zeros(self, *shape: int) -> Tensor:
        """Float32 zeros [T, *shape]."""
        return torch.zeros(self.tiles, *shape, device=self.device)

    def constants(self, module: GatedResidual, bias_N: Tensor) -> list[Tensor]:
        """What bias, text and top map add before the gate, [h, w, R, N] a tile; h = w = 1 without top."""
        added = []
        for tile in range(self.tiles):
            constant = bias_N.expand(1, 1, self.rows, -1)
            if module.text is not None:
                assert self.text is not None
                constant = constant + self.text[tile] @ self.weights[module.text]
            if module.top is not None:
                assert self.top is not None
                constant = constant + module.top(self.top[tile]).float().permute(2, 3, 0, 1)
            added.append(constant.contiguous())
        return added


def bias_of(conv: nn.Module) -> Tensor:
    """A convolution's bias, float32 [N]."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return conv.bias.detach().float()


def nearest(length: int, source: int) -> Tensor:
    """int64 [length]: where `F.interpolate(mode="nearest")` reads a source that long; asked, not derived."""
    index = torch.arange(source, dtype=torch.float32)[None, None]
    return F.interpolate(index, length, mode="nearest")[0, 0].long()
