"""Write `.ci/requirements.lock`, the versions installed here of all that the package needs: `make lock`.

It is a constraints file: `make demo LOCKED=1` installs these versions and no others. Extras are not in it.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCK = ROOT / ".ci" / "requirements.lock"
PACKAGE = "medunifier"


def declared(table: str) -> list[str]:
    """The requirements in a list of pyproject.toml: `dependencies`, or the name of an extra."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{table} = \[(.*?)\]$", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, table
    return re.findall(r'"([^"]+)"', found[1])


def canonical(name: str) -> str:
    """A package's name as an index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(requirements: list[str]) -> dict[str, str]:
    """Version of each installed package that these requirements need on this machine, and what these need."""
    found: dict[str, str] = {}
    waiting = [(Requirement(line), "") for line in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonical(requirement.name)
        new = name not in found
        found[name] = version(name)
        for wanted in ("", *requirement.extras) if new else requirement.extras:
            waiting += [(Requirement(line), wanted) for line in requires(name) or []]
    return found


def lines() -> Iterator[str]:
    """The lines of the lock file."""
    yield f"# Written by `make lock` with Python {platform.python_version()} on {platform.system()}."
    for name, number in sorted(needed(declared("dependencies")).items()):
        # a local version (2.8.0+cpu) would exclude every other build of the same release
        yield f"{name}=={number.partition('+')[0]}"


if __name__ == "__main__":
    LOCK.write_text("\n".join(lines()) + "\n", encoding="utf-8")
