"""`mu show RUN`."""

from __future__ import annotations

import click

from medunifier_cli.options import complete
from medunifier_cli.options.shared import format_option
from medunifier_cli.roots import find_run
from medunifier_cli.terminal.output import form


@click.command()
@click.argument("run", shell_complete=complete.runs)
@format_option
def show(run: str) -> None:
    """Show one run: stage, recipe, data, state, what it starts from, what was made from it, size.

    RUN is a name or a folder. `mu score RUN` prints what it reached.
    """
    from medunifier_cli.overview.runs import render_facts, run_facts
    from medunifier_cli.run.record import Run
    from medunifier_cli.terminal import say

    say.show(render_facts(run_facts(Run(find_run(run))), form()))
