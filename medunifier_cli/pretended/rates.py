"""How long a launch would take on an H100 (80 GB, SXM): assumed rates, to compare versions of a step with.

Trust ratios to perhaps 15 %, absolute numbers to 25 %: no rate was measured here.
"""

from __future__ import annotations

from collections.abc import Iterable

from medunifier_cli.pretended.record import Launch

CARD = "H100 (80 GB, SXM)"
BANDWIDTH, GATHERS, NORMS_BACKWARD = 2.6e12, 1.6e12, 1.8e12
"""Bytes a second: of element-wise kernels, of those that gather or fill with zeros, of norms backward."""
TOWER, PRODUCTS, PRODUCTS_FP32 = 620e12, 450e12, 45e12
"""FLOP a second of matrix products: of the frozen tower and others in bf16; in fp32."""
FLASH, MASKED, ATTENTION_BACKWARD = 320e12, 120e12, 170e12
CONVOLUTION, CONVOLUTION_BACKWARD = 300e12, 220e12
FLOOR = 2.5e-6
"""Seconds of the shortest launch; others have floors up to twice as long."""
WAIT = 250e-6
"""Seconds that the device idles after a wait of the CPU for it."""
PRODUCT_NAMES = ("addmm", "mm", "bmm", "_addmm_activation")
GATHER_NAMES = (
    "index_copy_", "index_select", "new_zeros", "embedding", "embedding_dense_backward", "index.Tensor",
)  # fmt: skip


def seconds(launches: Iterable[Launch], waits: int, exchanged: float = 0.0) -> float:
    """Of a step.

    Args:
        waits: of the CPU for the device, in the middle of the step.
        exchanged: seconds of exchanges between ranks that nothing hides.
    """
    return sum(map(_one, launches)) + waits * WAIT + exchanged


def _one(launch: Launch) -> float:
    name, flop, size = launch.name, launch.flop, launch.bytes
    if name in PRODUCT_NAMES:
        rate = TOWER if launch.part == "vit" else PRODUCTS
        return max(flop / (rate if launch.dtype == "bfloat16" else PRODUCTS_FP32), size / BANDWIDTH, 4e-6)
    if name.startswith("convolution"):
        rate = CONVOLUTION if name == "convolution" else CONVOLUTION_BACKWARD
        return max(flop / rate, size / BANDWIDTH, 5e-6)
    if "attention" in name:
        rate = ATTENTION_BACKWARD if "backward" in name else FLASH if name == "attention" else MASKED
        return max(flop / rate, size / BANDWIDTH, 5e-6)
    if name in GATHER_NAMES:
        return max(size / GATHERS, 3e-6)
    if "norm" in name and "backward" in name:
        return max(size / NORMS_BACKWARD, 5e-6)
    return max(size / BANDWIDTH, FLOOR)
