"""`mu runs`."""

from __future__ import annotations

import click

from medunifier_cli.options.shared import format_option
from medunifier_cli.roots import run_names, runs_root
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import say, show


@click.command()
@format_option
def runs() -> None:
    """List the runs: stage, data, state, headline, time and size; `mu show RUN` tells more of one.

    Runs are looked for in $MU_RUNS (default: runs/), the last trained first.
    """
    from medunifier_cli.overview.runs import render_runs, run_rows
    from medunifier_cli.run.record import Run

    names = run_names()
    if not names:
        say(f"no run in {runs_root()}/; `mu pretrain RECIPE` trains one, and MU_RUNS names another folder")
    if names or form() != "text":
        show(render_runs(run_rows([Run(runs_root() / name) for name in names]), form()))
