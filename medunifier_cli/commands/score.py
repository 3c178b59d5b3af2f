"""`mu score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.evaluate.shared.ranks import ENCODED, on_ranks
from medunifier_cli.options import complete
from medunifier_cli.options.scoring import COMPARISON, ScoreOptions, check, mode_of
from medunifier_cli.options.shared import device_option, format_option
from medunifier_cli.roots import find_run, newest_run
from medunifier_cli.terminal.options import LIMIT, SEED
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import say, show

if TYPE_CHECKING:
    from medunifier_cli.run.record import Run


def _count(runs: tuple[str, ...], more_runs: tuple[str, ...], fake: str, **_: Any) -> int:
    if not fake:
        return 0
    folder = Path(fake)
    if folder.is_dir():
        return sum(1 for path in folder.rglob("*") if path.is_file())
    from medunifier_cli.evaluate.benchmark import count_samples

    return count_samples((*runs, *more_runs, "")[0], split=fake)


@click.command()
@click.argument("runs", nargs=-1, shell_complete=complete.runs)
@click.option(
    "--run", "more_runs", multiple=True, metavar="NAME", shell_complete=complete.runs,
    help="Run to use, as RUNS names it.",
)  # fmt: skip
@format_option
@device_option
@click.option(
    "--tables/--all", " /--rows", "tables", default=None,
    help="Print the paper's tables, or all numbers of the runs; by default the tables if a run has a number "
    "there, else the headlines and the run's page.",
)  # fmt: skip
@click.option("--page", is_flag=True, help="Write each run's page/index.html instead, and print its path.")
@click.option("--baselines", is_flag=True, help="Show the rows of other methods in the paper's tables.")
@click.option(
    "--reports", type=click.Path(path_type=Path), default=None,
    help="File of reports to score: JSON lines with `reference` and `hypothesis`, as `mu report` writes.",
)  # fmt: skip
@click.option(
    "--outputs", type=click.Path(path_type=Path), default=None,
    help="File of per-sample outputs to score, as results/*.samples.jsonl: classification or rankings.",
)  # fmt: skip
@click.option(
    "--clinical", is_flag=True, help="Add CheXbert and RadGraph F1, RadCliQ and RaTEScore to --reports."
)
@click.option(
    "--fake", default="",
    help="Images to evaluate: a folder, for example one of `mu synthesize`, or a split.",
)  # fmt: skip
@click.option("--real", default="", help="Real images to compare --fake with: a folder or a split.")
@click.option("--copies", is_flag=True, help="Test whether --fake holds copies of training images.")
@click.option(
    "--heldout", default="", help="Split of unseen images for --copies; by default the held-out one."
)
@click.option(
    "--classifier", default="",
    help="Fine-tuned run that classifies --fake, to tell whether images show what their prompts ask for.",
)  # fmt: skip
@click.option(
    "--extractor", type=click.Choice(["auto", "encoder", "inception", "both", "rad-dino", "all"]),
    default="auto", show_default=True,
    help="Features for --real: the run's encoder, Inception, both, RAD-DINO, or all three; auto is the "
    "encoder, and Inception if its weights are there.",
)  # fmt: skip
@click.option(
    "--inception", default="",
    help="File of torch-fidelity's Inception weights; by default the one that the priors' recipe names.",
)  # fmt: skip
@click.option(
    "--rad-dino", default="", metavar="FOLDER|NAME",
    help="RAD-DINO for --extractor rad-dino: a folder or a cached hub name; by default microsoft/rad-dino.",
)  # fmt: skip
@click.option(
    "--images", type=LIMIT, default=0, metavar="N",
    help="Compare only N images of --fake with --real; 0 for all.",
)  # fmt: skip
@click.option(
    "--seed", type=SEED, default=0, show_default=True,
    help="Seed of the selected images and of intervals.",
)  # fmt: skip
@job_options(nodes=True)
@on_ranks(large=ENCODED, count=_count, check=check)
def score(
    runs: tuple[str, ...], more_runs: tuple[str, ...], sbatch: JobOptions | None, **options: Any
) -> None:
    """Print what one or several runs reached: the paper's tables with these runs, headlines, or all numbers.

    RUNS are names or folders; by default the newest one with results. Runs that were fine-tuned or fitted
    from a run count as its results. A run fills the rows of the paper whose objectives its recipe has.

    With two files of reports, `mu score A.jsonl B.jsonl`, these are compared on the images that both have.
    """
    given, runs = ScoreOptions(**options), runs + more_runs
    mode = mode_of(runs, given)
    if sbatch:
        sbatch.show(gpus=given.judges_images or given.clinical)
    elif mode == COMPARISON:
        _compare_reports(Path(runs[0]), Path(runs[1]), given)
    elif given.reports is not None:
        _score_reports(given.reports, given)
    elif given.outputs is not None:
        _score_outputs(given.outputs)
    elif given.judges_images:
        _score_images(runs[0] if runs else "", given)
    elif given.page:
        _write_pages(_runs(runs))
    else:
        _print_tables(_runs(runs), given)


def _score_reports(path: Path, options: ScoreOptions) -> None:
    """`--reports`: text scores, findings and, with `--clinical`, the clinical scores of a file."""
    from medunifier_cli.evaluate.reports.reporting import render_scores, score_file

    scored = score_file(path, options.clinical)
    show(render_scores(scored, form()))
    for note in scored.notes:
        say(note)


def _compare_reports(a: Path, b: Path, options: ScoreOptions) -> None:
    """Two files: their scores, the differences with intervals and p values, and how they were computed."""
    from medunifier_cli.evaluate.reports.comparing import compare_files, render_comparison

    comparison = compare_files(a, b, seed=options.seed)
    show(render_comparison(comparison, form()))
    for note in [comparison.protocol, *comparison.notes]:
        say(note)


def _score_outputs(path: Path) -> None:
    """`--outputs`: classification or ranking scores of a file."""
    from medunifier_cli.evaluate.results import table
    from medunifier_cli.evaluate.tables.saved_outputs import score_outputs

    metrics, notes = score_outputs(path)
    show(table(metrics))
    for note in notes:
        say(note)


def _score_images(run: str, options: ScoreOptions) -> None:
    """`--fake`: distances to real images, copies and prompt adherence, as far as asked for."""
    from medunifier_cli.evaluate.synthesis.judge import ImageOptions, judge_images

    judge_images(
        ImageOptions(
            fake=options.fake, run=run, real=options.real, copies=options.copies, heldout=options.heldout,
            classifier=options.classifier, extractor=options.extractor, inception=options.inception,
            rad_dino=options.rad_dino, images=options.images, seed=options.seed,
        )
    )  # fmt: skip


def _write_pages(runs: list[Run]) -> None:
    """`--page`: each run's page."""
    for run in runs:
        show(str(_write_page(run)))


def _write_page(run: Run) -> Path:
    """Write the page of a run; returns its path."""
    from medunifier_cli.checkpoint.lineage import recipe_of
    from medunifier_cli.evaluate.pair_scores import CURVES
    from medunifier_cli.evaluate.tables.page_contents import contents_of
    from medunifier_cli.objectives.pretraining import curves_of
    from medunifier_cli.page.run_page import write_run_page
    from medunifier_cli.recipe.schema import PretrainRecipe
    from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
    from medunifier_cli.recipe.schema_prior import PriorRecipe
    from medunifier_cli.stages import finetune_results, fit_prior

    recipe = recipe_of(run) or PretrainRecipe()  # a recipe that cannot be read must not cost the page
    if isinstance(recipe, FinetuneRecipe):
        curves = finetune_results.CURVES
    elif isinstance(recipe, PriorRecipe):
        curves = fit_prior.CURVES
    else:
        curves = curves_of(recipe) | CURVES
    return write_run_page(run, contents_of(run), curves)


def _print_tables(runs: list[Run], options: ScoreOptions) -> None:
    """Without another mode: the paper's tables if a run has a number there, else headlines or all numbers."""
    from medunifier_cli.evaluate.tables.beside_paper import Evidence, read_evidence, sections, unmatched_runs
    from medunifier_cli.evaluate.tables.tables import render_rows, render_sections

    evidence: list[Evidence] = [] if options.tables is False else [read_evidence(run) for run in runs]
    shown = sections(evidence, options.baselines) if evidence else []
    if options.tables or any(section.filled for section in shown):
        notes = dict.fromkeys(note for one in evidence for note in [*one.notes, *one.left_out])
        for line in [*unmatched_runs(evidence), *notes]:
            say(line)
        show(render_sections(shown, form()))
    else:
        # Somebody who measured for the paper's tables must learn why there is none.
        for line in dict.fromkeys(note for one in evidence for note in one.left_out):
            say(line)
        chosen = form()
        if options.tables is None and chosen == "text":
            _print_headlines(runs)
        else:
            show(render_rows(runs, chosen))


def _print_headlines(runs: list[Run]) -> None:
    """The headlines, where all numbers are, and the page of each run."""
    from medunifier_cli.evaluate.tables.headlines import render_headlines
    from medunifier_cli.evaluate.tables.tables import rows_of

    show(render_headlines(runs, form()))
    names = " ".join(run.folder.name for run in runs)
    say(f"headlines; all {len(rows_of(runs)) - 1:,} numbers: `mu score {names} --all`, or with a --format")
    for run in runs:
        if run.writable:
            show(str(_write_page(run)))
        else:
            say(f"{run.folder}: no page, as this user may not write there")


def _runs(names: tuple[str, ...]) -> list[Run]:
    from medunifier_cli.run.record import Run

    return [Run(find_run(name)) for name in names] or [_newest()]


def _newest() -> Run:
    """The run with results that was trained last, or the run that it was derived from."""
    from medunifier_cli.checkpoint.lineage import base_of
    from medunifier_cli.run.record import Run

    run = Run(newest_run(lambda path: any(Run(path).results.glob("*.json")), "score"))
    base = base_of(run)
    if base is None or base.folder == run.folder:
        return run
    say(f"this run was derived from {base.folder}; showing that run and every run derived from it")
    return base
