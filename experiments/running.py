"""Run verbs of `mu` in an experiment's own folders, and put its tables into a page of docs/."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
END = "<!-- end -->"


def mu(command: Sequence[str], home: Path, output: int | None = None) -> None:
    """Run a verb in the data and run folders below `home`, on one thread.

    Args:
        command: the verb and its arguments.
        output: file descriptor of its log; by default it writes where this process does.

    Raises:
        ClickException: it failed; its log is in `home`.
    """
    environment = {**os.environ, "MU_DATA": str(home / "data"), "MU_RUNS": str(home / "runs"),
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-m", "medunifier_cli", *command], env=environment, stdout=output, stderr=output,
        check=False, cwd=ROOT,
    )  # fmt: skip
    if ran.returncode:
        raise click.ClickException(f"`mu {command[0]}` ended with {ran.returncode}: see {home}/*.log")


def write_part(experiment: str, text: str, docs: Path = ROOT / "docs") -> None:
    """Replace what the last run of `experiments/<experiment>.py` wrote into its page; the rest stays.

    Raises:
        ClickException: the page has no place for it.
    """
    begin = f"<!-- written by experiments/{experiment}.py -->"
    target = docs / f"{experiment.replace('_', '-')}.md"
    before, found, rest = target.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise click.ClickException(f"{target}: has no lines `{begin}` and `{END}` to write between")
    target.write_text(f"{before}{begin}\n\n{text}\n\n{END}{after}", encoding="utf-8")
