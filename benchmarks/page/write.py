"""BENCHMARKS.md: a section for each benchmark, of which those that were not run again stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.page.meaning import meaning_of

HEADING = """# Benchmarks

Written by `python benchmarks/run.py`; sections that were not run again keep their own date and hardware. Seconds,
and rates per second, that were measured beside other work say little; ratios were measured in turns on the same cores
and can be compared. What is counted (launches, transfers, bytes, floating point operations) does not depend on the
machine, and what is predicted is marked so. Rows without a value need a GPU, and none was at hand."""  # noqa: E501
MISSING = "Not run yet: "
OWN = ("benchmark",)
"""Keys that only repeat the name."""


class Ran(NamedTuple):
    """What a benchmark left."""

    command: str
    seconds: float
    result: Mapping[str, Any] | None
    """Its JSON line; None if it has none."""
    problem: str
    """Why it has none."""


def shown(value: Any) -> str:
    """A value as a cell of a table; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {shown(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "/")


def section(name: str, ran: Ran, when: str, where: str, keys: Sequence[str] = ()) -> str:
    """A benchmark's part of the page: a row for each key.

    Args:
        keys: rows that stay empty where the result lacks them.
    """
    lines = [f"## {name}", "", f"{when}; {where}; {ran.seconds:,.0f} s."]
    if ran.result is None:
        return "\n".join([*lines, "", f"`{ran.command}` has no result: {ran.problem}.", ""])
    result = {**dict.fromkeys(keys), **ran.result}
    if result.get("device", "") is None:
        lines += ["", "It needs a GPU, and none was at hand."]
    lines += ["", "| key | value | meaning | command |", "|---|---|---|---|"]
    lines += [
        f"| `{key}` | {shown(value)} | {meaning_of(name, key)} | `{ran.command}` |"
        for key, value in result.items()
        if key not in OWN
    ]
    return "\n".join([*lines, ""])


def sections_of(page: str) -> dict[str, str]:
    """Name -> text of each section of a page, without the heading."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.split("\n", 1)[0].removeprefix("## "): part.rstrip() + "\n" for part in parts}


def page(sections: Mapping[str, str], names: Iterable[str] = ()) -> str:
    """The whole page, sections in order of their names.

    Args:
        names: all benchmarks; those without a section are named at the top.
    """
    missing = ", ".join(sorted(set(names) - set(sections)))
    note = [f"{MISSING}{missing}; `python benchmarks/run.py --missing` does.", ""] if missing else []
    return "\n".join([HEADING, "", *note, *(sections[name] for name in sorted(sections))])
