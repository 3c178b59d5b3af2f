"""What training and sampling ask of a prior over the codes of a model, whichever kind it is.

Letters: B maps, T top edge, G = 2 T bottom edge, D text width, M tokens of the longest text, N numbers of a
row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from medunifier_cli.model.sampling import Draws

Values = dict[str, Tensor]


@dataclass(frozen=True)
class TextStates:
    """Texts as sequences: the states of the text pass at every token."""

    state_BMD: Tensor
    """Float; what lies behind a text's end is arbitrary."""
    length_B: Tensor
    """int64, tokens of each text, from 1 to M."""

    def rows(self, numbers: Sequence[int]) -> TextStates:
        """The texts at these places, in this order."""
        return TextStates(self.state_BMD[list(numbers)], self.length_B[list(numbers)])


@dataclass(frozen=True)
class CodeBatch:
    """Code maps of B images, and their texts."""

    top_BTT: Tensor
    """int64"""
    bottom_BGG: Tensor
    """int64"""
    text_BD: Tensor | None
    """One vector for a text; None for priors without text, or that read `tokens`."""
    drop_B: Tensor | None = None
    """bool, rows trained without their text; None for none of them."""
    tokens: TextStates | None = None
    """The texts as sequences, for priors that read them so."""
    chance_BN: Tensor | None = None
    """float64 in [0, 1), from which a masked prior decides what it hides; N is its `chances`."""


class Prior(Protocol):
    """Both levels of codes as one module: p(top, bottom | text)."""

    @property
    def tokens(self) -> bool:
        """Whether it reads texts as sequences, `CodeBatch.tokens`, and not as one vector."""

    @property
    def chances(self) -> int:
        """N of `CodeBatch.chance_BN`; 0 for none."""

    @property
    def decoding(self) -> Mapping[str, float]:
        """Settings of sampling beside `Draws`, by name: with others the same seed gives other images."""

    def prepare(self, top_nTT: Tensor, bottom_nGG: Tensor) -> None:
        """Set what is counted in the codes of the training split, before the first step."""

    def forward(self, batch: CodeBatch) -> tuple[Values, Values]:
        """Losses in nats per code (`top`, `bottom`, their sum `total`) and accuracies, means over rows."""

    def sums(self, batch: CodeBatch, mask_B: Tensor) -> Tensor:
        """Float64 [2, 2]: nats and hits of top and bottom, summed over the codes of the rows in `mask_B`."""

    def sample(
        self, top_edge: int, numbers: range, draws: Draws, text: Tensor | TextStates | None
    ) -> tuple[Tensor, Tensor]:
        """Top and bottom codes of the samples with these numbers, int64 [n, T, T] and [n, G, G] on the CPU.

        Args:
            text: of these samples, in the form that `tokens` says; None samples without text.
        """
