"""Batch normalisation whose statistics are those of the global batch.

PyTorch's SyncBatchNorm refuses CPU tensors, so the statistics are all-reduced here, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32


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
        x = at_least_fp32(input)
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = world.all_sum(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = world.all_sum(x.sum(over)) / count
        x = x - mean.view(shape)
        # from centred values: E[x^2] - E[x]^2 would lose what small differences on a large mean leave
        variance = world.all_sum((x * x).sum(over)) / count
        self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        x = x * torch.rsqrt(variance + self.eps).view(shape)
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
