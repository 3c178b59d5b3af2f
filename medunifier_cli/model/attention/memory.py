"""What is computed from the images alone, once, and shared by all passes over them.

B images, V image tokens (class token and patches), Q queries, D and D_v widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from medunifier_cli.model.attention.masks import KeyValue


@dataclass
class ImageMemory:
    """What all passes over the same B images share; not detached, so their gradients add up in it."""

    feature_BVD: Tensor
    """f_v, class token first, after the trainable norm."""
    query_BQD: Tensor
    """f_q of the uni-modal pass."""
    cross: Sequence[KeyValue | None]
    """Per layer: keys and values of the image tokens, None in a layer without cross-attention."""
    own: Sequence[KeyValue]
    """Per layer: the queries' keys and values of self-attention."""

    @property
    def patch_BVD(self) -> Tensor:
        """f_local: f_v without the class token."""
        return self.feature_BVD[:, 1:]
