"""The four losses, each pure: inputs -> (loss, monitors). `total.py` joins them into a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Objective(NamedTuple):
    """A loss with gradient and numbers worth watching without."""

    loss: Tensor
    monitors: Mapping[str, Tensor]
