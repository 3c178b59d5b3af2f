"""Run a module of this folder in several processes at once, as ranks that wait for each other need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from tests.folders import ROOT

TIME_LIMIT_S = 300


def run_together(module: str, calls: Sequence[Sequence[object]]) -> None:
    """Run `python -m module` with each list of arguments; all must end with 0."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, call)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for call in calls
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=TIME_LIMIT_S)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
