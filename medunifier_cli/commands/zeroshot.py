"""`mu zeroshot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.data.texts.no_finding import NO_FINDING, NO_FINDING_PROMPT
from medunifier_cli.evaluate.shared.ranks import ENCODED, on_ranks
from medunifier_cli.options.shared import (
    batch_size_option,
    data_option,
    device_option,
    format_option,
    likeness_option,
    old_format_flag,
    refuse,
    refuse_unused,
    run_option,
)
from medunifier_cli.terminal.options import LIMIT, PROBABILITY, SEED
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import say, show

OF_FILES = {"of_class", "classes", "no_finding", "multi_label", "threshold", "likeness"}
"""Parameters that have an effect on image files alone."""


def _count(
    files: tuple[Path, ...], name: str, dataset: str, split: str, ids: Path | None,
    save_prompts: Path | None, **_: Any,
) -> int:  # fmt: skip
    from medunifier_cli.evaluate.benchmark import count_samples

    if save_prompts:
        return 0
    return len(files) or count_samples(name, dataset, split, ids)


def _check(
    files: tuple[Path, ...], split: str, ids: Path | None, save_prompts: Path | None,
    of_class: tuple[str, ...], classes: Path | None, no_finding: str, **_: Any,
) -> None:  # fmt: skip
    if no_finding and Path(no_finding).exists():
        raise click.UsageError(
            f"--no-finding took {no_finding} for its prompt; write the option behind the files"
        )
    if files and (split or ids):
        raise click.UsageError("give image files, or --split or --ids, not both")
    if split and ids:
        raise click.UsageError("--split and --ids name the samples; give one of them")
    if not files:
        refuse(OF_FILES, "is for image files")
    if files and (of_class or classes):
        refuse({"dataset", "prompts", "count", "seed"}, "is of a data set's classes; leave it or --class out")
    if save_prompts:
        refuse_unused({"name", "dataset", "prompts", "save_prompts"}, "has no effect on --save-prompts")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@run_option()
@data_option("Data set of images and classes; by default the run's.")
@click.option("--split", default="", help="Split or subset; by default the data set's benchmark.")
@click.option("--ids", type=click.Path(path_type=Path), help="File of sample keys to use instead of a split.")
@click.option(
    "--prompts", default="",
    help="Prompt set of the data set, `all` of them, or a YAML file `class: [prompt, ...]`.",
)  # fmt: skip
@click.option(
    "--count", type=LIMIT,
    help="Number of prompts sampled per class, 0 for all; by default as in the data set's literature "
    "(15 or 10).",
)  # fmt: skip
@click.option(
    "--ensemble", type=click.Choice(["max", "mean"]), default="max", show_default=True,
    help="Score of a class from the similarities of its prompts.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the sampled prompts.")
@click.option(
    "--class", "of_class", multiple=True, metavar="NAME=PROMPT",
    help="Class of your own and a prompt that describes it, worded like a report; repeat it for further "
    "classes and prompts.",
)  # fmt: skip
@click.option(
    "--classes", type=click.Path(path_type=Path), metavar="YAML",
    help="File of classes of your own, `class: [prompt, ...]`.",
)  # fmt: skip
@click.option(
    "--no-finding", is_flag=False, flag_value=NO_FINDING_PROMPT, default="", metavar="[PROMPT]",
    help=f"Offer the class `{NO_FINDING}` too, described by this prompt (default: {NO_FINDING_PROMPT!r}).",
)  # fmt: skip
@click.option(
    "--multi-label",
    is_flag=True,
    help="Compare each class with its negation instead of with the others: a film may show several.",
)
@click.option(
    "--threshold", type=PROBABILITY, default=None,
    help="Probability from which a class is named, in JSON and in a column of tables; by default JSON names "
    "those of 0.5 and more with --multi-label, and else the likeliest class in any case.",
)  # fmt: skip
@likeness_option
@format_option
@old_format_flag("--json", "json")
@old_format_flag("--csv", "csv")
@device_option
@batch_size_option("64")
@click.option(
    "--save-prompts", type=click.Path(path_type=Path), help="Write the prompt set as YAML to edit, and stop."
)
@job_options(nodes=True)
@on_ranks(large=ENCODED, count=_count, check=_check)
def zeroshot(
    files: tuple[Path, ...], name: str, dataset: str, split: str, ids: Path | None, prompts: str,
    count: int | None, ensemble: str, seed: int, batch: int | None, save_prompts: Path | None,
    sbatch: JobOptions | None, of_class: tuple[str, ...], classes: Path | None, no_finding: str,
    multi_label: bool, threshold: float | None, likeness: bool,
) -> None:  # fmt: skip
    """Classify a split, or image FILES, by prompts alone: accuracy, AUROC, macro F1.

    FILES are PNG, JPEG or DICOM: prints the probability of each class at the run's own temperature, of your
    own classes with --class or --classes, and names films unlike the training data. Not for diagnosis.

    Without FILES a split is measured; the result, the probabilities and a picture of the confusion matrix are
    written to the run's results/.
    """
    if sbatch:
        sbatch.show()
        return
    if save_prompts:
        _save_prompts(save_prompts, name, dataset, prompts)
        return
    from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.retrieval import zeroshot as evaluation
    from medunifier_cli.evaluate.shared.sharing import everywhere
    from medunifier_cli.plugin_index import prepared_dataset

    trained = everywhere(restore, pretrained_run(name, "zeroshot")).with_batches_of(batch)
    if files:
        from medunifier_cli.evaluate.films import zeroshot as of_films
        from medunifier_cli.evaluate.films.answers import render_answers
        from medunifier_cli.evaluate.films.origin import origin_of_run

        if of_class or classes:
            offered = of_films.own_classes(of_class, classes)
        else:
            data = trained.recipe.data
            plugin = prepared_dataset(dataset, "") if dataset else prepared_dataset(data.dataset, data.shards)
            ensembles = evaluation.ensembles_of(plugin, prompts, count, ensemble, seed)
            if len(ensembles) > 1:
                raise click.UsageError("files are classified with one prompt set, not with all")
            offered = ensembles[0].sampled(plugin.classes)
        question = of_films.Question(offered, ensemble, no_finding, multi_label, threshold)
        answers = of_films.classify_files(trained, files, question, likeness)
        show(render_answers(answers, origin_of_run(trained), form()))
        return
    benchmark = open_benchmark(trained, dataset, split, need_text=False, ids=ids, prefer_benchmark=True)
    default = next(iter(benchmark.plugin.prompt_sets()), "")
    outcomes = []
    for one in evaluation.ensembles_of(benchmark.plugin, prompts, count, ensemble, seed):
        outcome = evaluation.measure_zeroshot(trained, benchmark, one)
        if outcome.picture is not None:
            say(
                f"{benchmark.plugin.name}/{benchmark.split}, prompts {one.name or default}: "
                f"confusion matrix in {outcome.picture}"
            )
        for note in outcome.notes:
            say(note)
        outcomes.append((one, outcome))
    show(evaluation.render_outcomes(outcomes, default, form()))


def _save_prompts(path: Path, name: str, dataset: str, prompts: str) -> None:
    """Write a prompt set; needs no checkpoint if `--data` names the data set."""
    from medunifier_cli.evaluate.retrieval.prompts import write_prompts
    from medunifier_cli.plugin_index import prepared_dataset

    shards = ""
    if not dataset:
        from medunifier_cli.checkpoint.pretrained import pretrained_run
        from medunifier_cli.recipe.load import load_saved
        from medunifier_cli.recipe.schema import PretrainRecipe

        data = load_saved(pretrained_run(name, "zeroshot").recipe, PretrainRecipe).data
        dataset, shards = data.dataset, data.shards
    write_prompts(path, prepared_dataset(dataset, shards), prompts)
    show(str(path))
