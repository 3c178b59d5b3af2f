"""What cached sampling computes once, before the first position. See `cache.py` for how it is used and why.

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
    # Part of what defines a sample (sample s is row s % R of tile s // R): another R may round products
    # differently, and so give other codes for the same seed.
    return 8 if device.type == "cpu" else 64


def product_weights(prior: PixelSnail) -> dict[nn.Module, Tensor]:
    """Each convolution and linear map as a contiguous float32 [window * A, N], in (row, column, A) order.

    N is padded to a multiple of 8, which keeps each tile of an output aligned. Shared by all threads.
    """
    weights: dict[nn.Module, Tensor] = {}
    for module in prior.modules():
        if isinstance(module, nn.Conv2d):
            # (row, column, A): the order in which a channels-last window lies in memory, so that a window of
            # the cache is a view and needs no copy.
            kernel = module.weight.detach().float().permute(2, 3, 1, 0)
            kernel = kernel.reshape(-1, module.out_channels)
            # Only `head` is ever padded, where K is no multiple of 8; `CachedPrior.logits` cuts it off again.
            weights[module] = F.pad(kernel, (0, -module.out_channels % 8)).contiguous()
        elif isinstance(module, nn.Linear):
            weights[module] = module.weight.detach().float().t().contiguous()
    return weights


@dataclass(frozen=True)
class Conditioning:
    """What a layer adds that does not change over the positions, for the tiles of one `CachedPrior`."""

    weights: dict[nn.Module, Tensor]
    """`product_weights` of the prior."""
    size: tuple[int, int]
    """(H, W) of the code map."""
    rows: int
    """R."""
    device: torch.device
    text: list[Tensor] | None
    """Text context [R, C] of each tile."""
    top: list[Tensor] | None
    """Top map [R, C, h, w] of each tile, as `TopStack` gives it."""
    tiles: int
    """T."""

    @classmethod
    def of(
        cls, prior: PixelSnail, weights: dict[nn.Module, Tensor], size: tuple[int, int], tiles: int, *,
        top_codes: Tensor | None, condition: Tensor | None, drop: Tensor | None,
    ) -> Conditioning:  # fmt: skip
        """Project text and top map of every tile; the arguments are those of `CachedPrior`."""
        device = prior.head.weight.device
        rows = tile_rows(device)
        text: list[Tensor] | None = None
        if prior.config.text_width:
            text = []
            for tile in range(tiles):
                context = prior.text_context(
                    None if condition is None else condition[tile], None if drop is None else drop[tile], rows
                )
                assert context is not None
                text.append(context.float())
        top: list[Tensor] | None = None
        if prior.top_stack is not None and top_codes is not None:
            # The top map is known in full, so its stack is not causal and runs once, as in training.
            top = [prior.top_stack(codes_Rhw) for codes_Rhw in top_codes]
        return cls(weights, size, rows, device, text, top, tiles)

    def zeros(self, *shape: int) -> Tensor:
        """Float32 zeros [T, *shape]."""
        return torch.zeros(self.tiles, *shape, device=self.device)

    def constants(self, module: GatedResidual, bias_N: Tensor) -> list[Tensor]:
        """What bias, text and top map add before the gate, [h, w, R, N] per tile; h = w = 1 without top."""
        added = []
        for tile in range(self.tiles):
            # None of the three depends on the codes, so they are added up here once instead of at each of the
            # H * W positions.
            constant = bias_N.expand(1, 1, self.rows, -1)
            if module.text is not None:
                assert self.text is not None
                constant = constant + self.text[tile] @ self.weights[module.text]
            if module.top is not None:
                assert self.top is not None
                # On the small map: a 1x1 projection and nearest-neighbour reading commute.
                constant = constant + module.top(self.top[tile]).float().permute(2, 3, 0, 1)
            added.append(constant.contiguous())
        return added


def bias_of(conv: nn.Module) -> Tensor:
    """A convolution's bias, float32 [N]."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return conv.bias.detach().float()


def nearest(length: int, source: int) -> Tensor:
    """int64 [length]: the source index that `F.interpolate(mode="nearest")` reads at each position."""
    # Asked of PyTorch instead of computed as floor(i * source / length): its float scale rounds some sizes
    # differently, and the cached pass must read the same top code as the training pass.
    index = torch.arange(source, dtype=torch.float32)[None, None]
    return F.interpolate(index, length, mode="nearest")[0, 0].long()
