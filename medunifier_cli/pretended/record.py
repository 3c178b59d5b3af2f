"""What a trace of the pretended GPU holds: launches of kernels, and transfers."""

from __future__ import annotations

from typing import NamedTuple


class Launch(NamedTuple):
    """One kernel."""

    part: str
    way: str
    """`forward` or `backward`."""
    name: str
    flop: float
    bytes: int
    dtype: str


class Transfer(NamedTuple):
    """One copy between the CPU and the device, or one wait for it."""

    kind: str
    bytes: int
    where: str
    """File and line of ours that asked for it."""
    blocking: bool
