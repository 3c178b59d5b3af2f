"""Batch normalisation whose statistics are those of the global batch; the norm that a recipe names.

PyTorch's SyncBatchNorm refuses CPU tensors, so the statistics are all-reduced here, on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32


# a subclass of PyTorch's batch norm: same parameters, buffers, state-dict names and evaluation
class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all dimensions but the second, of [N, C] or [N, C, H, W], across all ranks."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the global batch in training, with the running statistics in evaluation.

        Returns:
            The shape and dtype of the input.
        """
        if not self.training or world.size() == 1:
            normed: Tensor = super().forward(input)
            return normed
        x = at_least_fp32(input)
        reduced_dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        # counts are summed too: the statistics then hold even if ranks bring different numbers of rows
        count = world.all_sum(x.new_tensor(float(x.numel() // x.shape[1])))
        # `all_sum` carries gradient: each row moves the statistics that all ranks divide by
        mean = world.all_sum(x.sum(reduced_dims)) / count
        x = x - mean.view(shape)
        # from centred values: E[x^2] - E[x]^2 cancels where the mean is large and the deviation small
        variance = world.all_sum((x * x).sum(reduced_dims)) / count
        # running variance is unbiased (n - 1), the one normalised with is not: both as PyTorch does it
        self._update_running_statistics(mean.detach(), (variance * count / (count - 1)).detach())
        x = x * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.momentum is not None
        for running, now in ((self.running_mean, mean_C), (self.running_var, variance_C)):
            assert running is not None
            running.lerp_(now, self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1


def map_norm(kind: str, channels: int) -> nn.Module:
    """The norm of feature maps [B, channels, H, W] that `model.generator.norm` names: `batch` or `group`."""
    if kind == "batch":
        return GlobalBatchNorm(channels)
    # 32 groups (Wu and He 2018), or as many as divide both
    return nn.GroupNorm(math.gcd(channels, 32), channels)
