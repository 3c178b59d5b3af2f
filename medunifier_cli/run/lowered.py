"""Lower the learning rate of a run that ended because its numbers were not finite, and of no other.

A run belongs to one recipe. This is the one exception: with the rates it had it would end in the same way at
every start, and without it the steps before would have to be done again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RATES = (
    "optim.peak_lr", "optim.warmup_lr", "optim.final_lr", "optim.head_lr", "optim.model_lr",
    "optim.clip_norm",
)  # fmt: skip
"""Recipe keys that may be lowered."""
NOT_FINITE, LOWERED = "not_finite", "lowered"
"""Keys of a start in the provenance: how it ended so, see `ended_at`; the rates that it lowered."""


def lowered(
    before: Mapping[str, Any], now: Mapping[str, Any], changed: Sequence[str], starts: Sequence[Any]
) -> dict[str, list[float]]:
    """The rates that a start lowers, as the provenance keeps them: key -> [before, now].

    Args:
        before: values of the run's recipe by dotted key.
        now: values of this start's.
        changed: keys whose values differ.
        starts: earlier starts, from the provenance.

    Returns:
        Nothing if another key has changed, a rate has risen, or no start ended because of such numbers since
        the rates were lowered last.
    """
    told = [start for start in starts if isinstance(start, dict) and start.keys() & {NOT_FINITE, LOWERED}]
    if not told or not all(_is_lower(key, before.get(key), now.get(key)) for key in changed):
        return {}
    rates = {key: [before[key], now[key]] for key in changed}
    # the same again: killed after that start was noted and before the recipe was changed
    return rates if NOT_FINITE in told[-1] or told[-1].get(LOWERED) == rates else {}


def ended_at(step: int, dead_end: str) -> dict[str, Any]:
    """What the provenance keeps of such an end.

    Args:
        step: steps done.
        dead_end: hash of the checkpoint of which it is known that no step after it was finite; or empty.
    """
    return {"step": step, "dead_end": dead_end}


def dead_ends(starts: Sequence[Any]) -> set[str]:
    """Hashes of the checkpoints from which a lower rate must not resume: their weights are finite and absurd.

    With the rates it had a run may try again, as what was not finite may have been the data.
    """
    ends: set[str] = set()
    told: list[str] = []
    for start in starts:
        if isinstance(start, dict):
            if start.get(LOWERED):
                ends.update(told)
            end = start.get(NOT_FINITE)
            told += [str(end["dead_end"])] if isinstance(end, dict) and end.get("dead_end") else []
    return ends


def _is_lower(key: str, before: Any, now: Any) -> bool:
    if key not in RATES or not all(isinstance(value, int | float) for value in (before, now)):
        return False
    if key == "optim.clip_norm":  # 0 is no clipping at all
        return bool(now > 0 and (before == 0 or now < before))
    return bool(now < before)
