"""Run a module of this folder in several processes at once, as ranks that wait for each other need."""

from __future__ import annotations

from collections.abc import Sequence

from tests import warm

TIME_LIMIT_S = 300


def run_together(module: str, calls: Sequence[Sequence[object]]) -> None:
    """Run `python -m module` with each list of arguments; all must end with 0."""
    running = [warm.start(["-m", module, *call]) for call in calls]
    try:
        for process in running:
            printed, _ = process.communicate(timeout=TIME_LIMIT_S)
            assert process.returncode == 0, printed
    finally:
        for process in running:
            process.kill()
