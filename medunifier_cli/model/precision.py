"""Where half precision ends."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """bf16 and fp16 -> fp32; fp32 and fp64 stay, so that the tests can compare in fp64 throughout."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
