"""Write zero-shot prompts: all combinations of phrases, or one fixed sentence for each class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

__all__ = ["combinations", "observed"]


def combinations(*parts: Sequence[str]) -> list[str]:
    """All combinations of one phrase from each part, in order; an empty phrase adds no extra space."""
    return [" ".join(phrase for phrase in phrases if phrase) for phrases in product(*parts)]


def observed(*classes: str) -> dict[str, list[str]]:
    """PRIOR's single prompt for each class: "<class> is observed"."""
    return {name: [f"{name.lower()} is observed"] for name in classes}
