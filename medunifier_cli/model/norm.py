"""Batch normalisation whose statistics are those of the global batch.

PyTorch's SyncBatchNorm refuses CPU tensors, so the statistics are all-reduced here, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medunifier_cli.train import world


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all dimensions but the second, of [N, C] or [N, C, H, W], across all ranks."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Same shape; in evaluation with the running statistics."""
        if not self.training or world.size() == 1:
            normed: Tensor = super().forward(input)
            return normed
        x = input.float()
        over = [d for d in range(x.dim()) if d != 1]
        sums = world.all_sum(torch.stack([x.sum(over), (x * x).sum(over)]))
        count = world.all_sum(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = sums[0] / count
        variance = sums[1] / count - mean * mean
        self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        shape = [1, -1] + [1] * (x.dim() - 2)
        x = (x - mean.view(shape)) * torch.rsqrt(variance.clamp(min=0) + self.eps).view(shape)
        if self.weight is not None:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(now, self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
