"""`mu score`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from medunifier_cli.roots import find_run, newest_run

if TYPE_CHECKING:
    from medunifier_cli.train.record import Run


@click.command()
@click.argument("runs", nargs=-1)
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "csv"]), default="text", show_default=True,
    help="How tables are written.",
)  # fmt: skip
@click.option(
    "--tables/--rows", "tables", default=None,
    help="The paper's tables or all numbers of the runs; by default the tables, if a run has a number there.",
)  # fmt: skip
@click.option("--baselines", is_flag=True, help="In the paper's tables, show the other methods' rows too.")
def score(runs: tuple[str, ...], form: str, tables: bool | None, baselines: bool) -> None:
    """Print what one or several runs reached: the paper's tables beside them, or each number and its floor.

    RUNS are names or folders; by default the newest run that has results. A run brings along what was
    fine-tuned or fitted from it, and stands in the rows of the paper whose objectives its recipe has.
    """
    from medunifier_cli.train.record import Run

    folders = [find_run(run) for run in runs] or [
        newest_run(lambda path: any(Run(path).results.glob("*.json")), "score")
    ]
    click.echo(_table([Run(folder) for folder in folders], form, tables, baselines))


def _table(runs: list[Run], form: str, tables: bool | None, baselines: bool) -> str:
    from medunifier_cli.tasks.beside_paper import measured, sections, strangers
    from medunifier_cli.tasks.tables import render, render_sections, rows_of

    found = [] if tables is False else [measured(run) for run in runs]
    shown = sections(found, baselines) if found else []
    if tables or any(section.filled for section in shown):
        for line in [*strangers(found), *dict.fromkeys(note for run in found for note in run.notes)]:
            click.echo(f"mu: {line}", err=True)
        return render_sections(shown, form)
    return render(rows_of(runs, intervals=form == "csv"), form)
