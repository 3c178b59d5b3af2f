"""`mu score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medunifier_cli.roots import find_run, newest_run

if TYPE_CHECKING:
    from medunifier_cli.run.record import Run


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
@click.option("--page", is_flag=True, help="Write each run's page/index.html instead, and print its path.")
@click.option("--baselines", is_flag=True, help="In the paper's tables, show the other methods' rows too.")
@click.option(
    "--reports", type=click.Path(path_type=Path), default=None,
    help="Score a file of reports: JSON lines with `reference` and `hypothesis`, as `mu report` writes.",
)  # fmt: skip
@click.option(
    "--outputs", type=click.Path(path_type=Path), default=None,
    help="Score a file of per-sample outputs, as results/*.samples.jsonl: classification or rankings.",
)  # fmt: skip
@click.option("--clinical", is_flag=True, help="With --reports: CheXbert and RadGraph F1 too.")
@click.option(
    "--fake", default="", help="Judge these images: a folder, such as of `mu synthesize`, or a split."
)
@click.option("--real", default="", help="With --fake: real images to compare with, a folder or a split.")
@click.option("--copies", is_flag=True, help="With --fake: look for copies of training images.")
@click.option(
    "--heldout", default="", help="With --copies: split of unseen images; by default the held-out one."
)
@click.option(
    "--classifier", default="", help="With --fake: fine-tuned run that says whether prompts are obeyed."
)
@click.option(
    "--extractor", type=click.Choice(["auto", "encoder", "inception", "both"]), default="auto",
    show_default=True, help="With --real: features; auto takes Inception's where its weights are there.",
)  # fmt: skip
@click.option(
    "--inception", default="",
    help="With --real: file of torch-fidelity's Inception weights; by default what the priors' recipe names.",
)  # fmt: skip
@click.option("--images", type=click.IntRange(min=0), default=0, help="With --real: judge only so many.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of draws and intervals."
)
def score(
    runs: tuple[str, ...], form: str, tables: bool | None, page: bool, baselines: bool,
    reports: Path | None, outputs: Path | None, clinical: bool, fake: str, real: str, copies: bool,
    heldout: str, classifier: str, extractor: str, inception: str, images: int, seed: int,
) -> None:  # fmt: skip
    """Print what one or several runs reached: the paper's tables beside them, or each number and its floor.

    RUNS are names or folders; by default the newest one with results. A run brings along what was
    fine-tuned or fitted from it, and stands in the rows of the paper whose objectives its recipe has.
    """
    if reports is not None or clinical:
        if reports is None or runs or fake:
            raise click.UsageError("reports are scored with --reports FILE alone, or with --clinical")
        from medunifier_cli.evaluate.reports.reporting import render_scores, score_file

        scored = score_file(reports, clinical)
        click.echo(render_scores(scored, form))
        for note in scored.notes:
            click.echo(f"mu: {note}", err=True)
        return
    if outputs is not None:
        from medunifier_cli.evaluate.results import table
        from medunifier_cli.evaluate.tables.saved_outputs import score_outputs

        metrics, notes = score_outputs(outputs)
        click.echo(table(metrics))
        for note in notes:
            click.echo(f"mu: {note}", err=True)
        return
    if any((fake, real, copies, heldout, classifier, inception, images)):
        if not fake or len(runs) > 1:
            raise click.UsageError("images are judged with --fake and one run at most")
        from medunifier_cli.evaluate.synthesis.judge import ImageOptions, judge_images

        judge_images(
            ImageOptions(
                fake=fake, run=runs[0] if runs else "", real=real, copies=copies, heldout=heldout,
                classifier=classifier, extractor=extractor, inception=inception, images=images, seed=seed,
            )
        )  # fmt: skip
        return
    from medunifier_cli.run.record import Run

    chosen = [Run(find_run(run)) for run in runs] or [_newest()]
    if page:
        from medunifier_cli.evaluate.tables.tables import rows_of
        from medunifier_cli.page.run_page import write_run_page

        for run in chosen:
            click.echo(str(write_run_page(run, rows_of([run]))))
        return
    click.echo(_table(chosen, form, tables, baselines))


def _newest() -> Run:
    """The run with results that was trained last; where it was made from another one, that one."""
    from medunifier_cli.checkpoint.lineage import base_of
    from medunifier_cli.run.record import Run

    run = Run(newest_run(lambda path: any(Run(path).results.glob("*.json")), "score"))
    base = base_of(run)
    if base is None or base.folder == run.folder:
        return run
    click.echo(f"mu: which was made from {base.folder}; shows that one with all made from it", err=True)
    return base


def _table(runs: list[Run], form: str, tables: bool | None, baselines: bool) -> str:
    from medunifier_cli.evaluate.tables.beside_paper import measured, sections, strangers
    from medunifier_cli.evaluate.tables.tables import render, render_sections, rows_of

    found = [] if tables is False else [measured(run) for run in runs]
    shown = sections(found, baselines) if found else []
    if tables or any(section.filled for section in shown):
        for line in [*strangers(found), *dict.fromkeys(note for run in found for note in run.notes)]:
            click.echo(f"mu: {line}", err=True)
        return render_sections(shown, form)
    return render(rows_of(runs, intervals=form == "csv"), form)
