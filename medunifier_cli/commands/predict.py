"""`mu predict FILES`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.evaluate.shared.ranks import ENCODED, on_ranks
from medunifier_cli.options.shared import (
    batch_size_option,
    device_option,
    format_option,
    likeness_option,
    run_option,
)
from medunifier_cli.terminal.options import PROBABILITY
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import show


def _count(files: tuple[Path, ...], **_: Any) -> int:
    from medunifier_cli.evaluate.reports.writer import files_under

    return len(files_under(files))


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@run_option("the newest of `mu finetune`")
@click.option(
    "--threshold", type=PROBABILITY, default=None,
    help="Probability from which a finding is named, where a film may have several; by default 0.5 in JSON, "
    "and tables name none.",
)  # fmt: skip
@likeness_option
@format_option
@device_option
@batch_size_option("64")
@job_options(nodes=True)
@on_ranks(large=ENCODED, count=_count)
def predict(
    files: tuple[Path, ...], name: str, threshold: float | None, likeness: bool, batch: int | None,
    sbatch: JobOptions | None,
) -> None:  # fmt: skip
    """Classify image FILES by a fine-tuned run: the probability of each of its classes.

    FILES are PNG, JPEG or DICOM, or folders of them. Where training gave each film one class, the
    probabilities of a film sum to 1; where a film may have any number of findings, each has its own. The
    answer names the run and its training data, and films that are unlike these. Not for diagnosis.
    """
    if sbatch:
        sbatch.show()
        return
    from medunifier_cli.checkpoint.pretrained import run_for
    from medunifier_cli.evaluate.films.answers import render_answers
    from medunifier_cli.evaluate.films.origin import origin_of_run
    from medunifier_cli.evaluate.films.predict import predict_files, restore_predictor
    from medunifier_cli.evaluate.reports.writer import files_under
    from medunifier_cli.evaluate.shared.sharing import everywhere
    from medunifier_cli.recipe.schema_finetune import FinetuneRecipe

    paths = files_under(files)
    run = run_for(name, "predict", FinetuneRecipe)
    predictor = everywhere(restore_predictor, run).with_batches_of(batch)
    if threshold is not None and predictor.kind == "one":
        raise click.UsageError(
            f"--threshold names several findings of a film, and {run.folder} gives each film one class"
        )
    answers = predict_files(predictor, paths, threshold, likeness)
    show(render_answers(answers, origin_of_run(predictor.trained), form()))
