"""What a model answers with where an array, a text or a picture is not enough.

n images, T top edge, G bottom edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError


@dataclass(frozen=True)
class Classification:
    """How well one image fits each class."""

    name: str
    """Path of the image, or `images[2]` for one that is no file."""
    label: str
    """The likeliest class."""
    probabilities: dict[str, float]
    """By class, with a sum of 1, at the temperature that the model learned."""
    similarities: dict[str, float]
    """Cosine by class, in [-1, 1]; the probabilities follow from these."""

    def __str__(self) -> str:
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return f"{self.name}: " + ", ".join(f"{label} {value:.3f}" for label, value in ranked)

    def __repr__(self) -> str:
        return f"Classification({self})"


@dataclass(frozen=True)
class Prediction:
    """What a fine-tuned classifier says of one image."""

    name: str
    """Path of the image, or `images[2]` for one that is no file."""
    probabilities: dict[str, float]
    """By class, in [0, 1]."""
    one_class: bool
    """Each image has one class, and the probabilities sum to 1; else it may have any number of findings."""

    @property
    def label(self) -> str:
        """The likeliest class, or finding."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def __str__(self) -> str:
        return f"{self.name}: " + ", ".join(f"{label} {p:.3f}" for label, p in self.probabilities.items())

    def __repr__(self) -> str:
        return f"Prediction({self})"


@dataclass(frozen=True, eq=False)
class Codes:
    """Discrete codes of n images: indices into the codebooks of the model that made them."""

    top: NDArray[np.int64]
    """[n, T, T]."""
    bottom: NDArray[np.int64]
    """[n, G, G]."""

    def __post_init__(self) -> None:
        if self.top.ndim != 3 or self.bottom.ndim != 3 or len(self.top) != len(self.bottom):
            raise DataError(
                f"codes are top [n, T, T] and bottom [n, G, G], not {self.top.shape} and {self.bottom.shape}"
            )

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, chosen: slice) -> Codes:
        """Those of some of the images, `codes[3:5]`."""
        return Codes(self.top[chosen], self.bottom[chosen])

    def __repr__(self) -> str:
        top, bottom = ("x".join(map(str, level.shape[1:])) for level in (self.top, self.bottom))
        return f"Codes({len(self)} image{'s' * (len(self) != 1)}, top {top}, bottom {bottom})"
