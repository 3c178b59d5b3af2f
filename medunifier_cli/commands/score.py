"""`mu score`."""

from __future__ import annotations

import click

from medunifier_cli.roots import find_run, newest_run


@click.command()
@click.argument("runs", nargs=-1)
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "csv"]), default="text", show_default=True,
    help="How the table is written.",
)  # fmt: skip
def score(runs: tuple[str, ...], form: str) -> None:
    """Print what one or several runs reached, each number beside its floor.

    RUNS are names or folders; by default the newest run that has results.
    """
    from medunifier_cli.tasks.tables import render, rows_of
    from medunifier_cli.train.record import Run

    folders = [find_run(run) for run in runs] or [
        newest_run(lambda path: any(Run(path).results.glob("*.json")), "score")
    ]
    click.echo(render(rows_of([Run(folder) for folder in folders]), form))
