"""Batch normalisation whose statistics are those of the global batch; the norm that a recipe names.

PyTorch's SyncBatchNorm refuses CPU tensors, so there the statistics are all-reduced here. On a GPU its
kernels do the work, but not its module, which waits for the GPU in each layer to see which ranks have rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32


class Synchronised(torch.autograd.Function):
    """PyTorch's kernels of synchronised batch norm, on GPUs: one exchange forward and one backward.

    Source: `torch.nn.modules._functions.SyncBatchNorm`, which also serves ranks without rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean_C: Tensor, variance_C: Tensor,
        eps: float, momentum: float,
    ) -> Tensor:  # fmt: skip
        """Normalise over all ranks' rows; updates the running `mean_C` and `variance_C`."""
        channels, rows = x.shape[1], x.numel() // x.shape[1]
        own_mean, own_scale = torch.batch_norm_stats(x, eps)
        own = torch.cat([own_mean, own_scale, own_mean.new_full((1,), rows)])
        all_WC = torch.stack(world.collect_rows(own))
        means, scales = all_WC[:, :channels].contiguous(), all_WC[:, channels:-1].contiguous()
        rows_W = all_WC[:, -1].contiguous()
        mean, scale = torch.batch_norm_gather_stats_with_counts(
            x, means, scales, mean_C, variance_C, momentum, eps, rows_W
        )
        ctx.save_for_backward(x, weight, mean, scale, rows_W.to(torch.int32))
        result: Tensor = torch.batch_norm_elemt(x, weight, bias, mean, scale, eps)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input, the weight and the bias; the others have none."""
        x, weight, mean, scale, rows_W = ctx.saved_tensors
        channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        grad = grads[0].contiguous(memory_format=layout)
        affine = weight is not None
        sum_dy, sum_dy_xmu, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad, x, mean, scale, weight, True, affine, affine
        )
        sums_2C = world.all_sum(torch.cat([sum_dy, sum_dy_xmu]))
        sum_dy, sum_dy_xmu = sums_2C.chunk(2)
        grad_x = torch.batch_norm_backward_elemt(grad, x, mean, scale, weight, sum_dy, sum_dy_xmu, rows_W)
        of_affine = (grad_weight, grad_bias) if affine else (None, None)
        return grad_x, *of_affine, None, None, None, None


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
        if input.device.type == "cuda":
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            synchronised: Tensor = Synchronised.apply(
                input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum
            )
            return synchronised
        x = at_least_fp32(input)
        reduced_dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        # counts are summed too: the statistics then hold even if ranks bring different numbers of rows
        count = world.all_sum(x.new_full((), float(x.numel() // x.shape[1])))
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
