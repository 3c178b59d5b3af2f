"""Casts to fp32 at least: where a sum or a logarithm would lose too much in half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """bf16 and fp16 -> fp32; fp32 and fp64 are returned as they are."""
    # not `x.float()`: the tests compare with slow references in fp64, and a cast down would hide small errors
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def full_precision(device: torch.device) -> torch.autocast:
    """No mixed precision in this block; tensors without data, as in `mu check`, go by the CPU's flag."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
