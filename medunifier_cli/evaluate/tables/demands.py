"""What a result must record for its number to be comparable with a column of the paper's tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ABSENT = object()


@dataclass(frozen=True)
class Demand:
    """A fact of a result file, and the values under which it was measured as in the paper."""

    fact: str
    """Where the result file records it; a dot leads into a nested fact, as in `real.name`."""
    accepted: tuple[Any, ...]
    """The first is the one that notes name."""
    words: str
    """What notes call it."""
    may_lack: bool = False
    """Whether a result without the fact meets the demand."""

    def differs(self, result: Mapping[str, Any]) -> str:
        """How the result differs, for a note; empty if it agrees."""
        value: Any = result
        for name in self.fact.split("."):
            value = value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is _ABSENT and self.may_lack:
            return ""
        if value is _ABSENT:
            return f"{self.words} not recorded (measure it again; must be {_shown(self.accepted[0])})"
        if any(_equal(value, one) for one in self.accepted):
            return ""
        return f"{self.words} {_shown(value)}, must be {_shown(self.accepted[0])}"


def differences(demands: Sequence[Demand], result: Mapping[str, Any]) -> list[str]:
    """What keeps a result out of a column, one phrase for each demand that it does not meet."""
    return [words for demand in demands if (words := demand.differs(result))]


def _equal(value: Any, accepted: Any) -> bool:
    if isinstance(value, list):
        return list(accepted) == value if isinstance(accepted, tuple) else False
    # In Python, True == 1: a yes must not pass for a number, nor a number for a yes.
    if isinstance(value, bool) or isinstance(accepted, bool):
        return value is accepted
    if isinstance(value, int | float) and isinstance(accepted, int | float):
        try:
            return math.isclose(value, accepted)
        except OverflowError:  # a whole number of 400 digits
            return False
    return bool(value == accepted)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return "none" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)
