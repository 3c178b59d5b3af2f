"""How fast cards multiply matrices by their makers' data sheets: what utilisation is a share of."""

from __future__ import annotations

TERA = 1e12
PEAKS = {
    "B200": 2250, "GH200": 989, "H200 NVL": 835, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989,
    "A100": 312, "A40": 149.7, "A30": 165, "A10": 125, "L40S": 362, "L40": 181, "L4": 121,
    "RTX A6000": 154.8, "RTX 6000 Ada": 364, "RTX 4090": 165.2, "RTX 3090": 71, "V100": 125, "T4": 65,
}  # fmt: skip
"""TFLOP a second of dense products of bf16 that are summed in fp32, without sparsity, by NVIDIA's data sheets
of each card (V100 and T4, which have no bf16: of fp16). The names are parts of those that CUDA gives."""


def peak_of(name: str) -> float | None:
    """FLOP a second of a card by its name, as `torch.cuda.get_device_name` gives it; None for an unknown one.

    Of two names in the table that fit, the longer one counts: `H100 PCIe` before `H100`, `L40S` before `L4`.
    """
    fitting = [card for card in PEAKS if card in name]
    return PEAKS[max(fitting, key=len)] * TERA if fitting else None
