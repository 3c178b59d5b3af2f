"""`mu zeroshot`."""

from __future__ import annotations

from pathlib import Path

import click

from medunifier_cli.roots import find_run, newest_run


@click.command()
@click.option("--run", "name", default="", help="Run to use; by default the newest pre-trained one.")
@click.option("--data", "dataset", default="", help="Data set; by default the run's own.")
@click.option("--split", default="", help="Split; by default the run's held-out one.")
@click.option(
    "--prompts", default="", help="Prompt set of the data set, or a YAML file `class: [prompt, ...]`."
)
@click.option(
    "--count",
    type=click.IntRange(min=0),
    default=15,
    show_default=True,
    help="Prompts drawn per class; 0 for all.",
)
@click.option(
    "--ensemble", type=click.Choice(["max", "mean"]), default="max", show_default=True, help="Over prompts."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draw of prompts."
)
def zeroshot(name: str, dataset: str, split: str, prompts: str, count: int, ensemble: str, seed: int) -> None:
    """Classify a split by prompts alone: accuracy, AUROC, macro F1."""
    from medunifier_cli.checkpoint.restore import is_pretrained, restore
    from medunifier_cli.tasks.prompts import prompts_of, read_prompts
    from medunifier_cli.tasks.results import table
    from medunifier_cli.tasks.splits import open_benchmark
    from medunifier_cli.tasks.zeroshot import benchmark
    from medunifier_cli.train.record import Run

    folder = find_run(name) if name else newest_run(lambda path: is_pretrained(Run(path)), "zeroshot")
    trained = restore(Run(folder))
    asked = open_benchmark(trained, dataset, split)
    is_file = prompts.endswith((".yaml", ".yml"))
    chosen = (
        read_prompts(Path(prompts), asked.plugin.classes) if is_file else prompts_of(asked.plugin, prompts)
    )
    metrics, _ = benchmark(
        trained, asked.source, asked.plugin, asked.split, asked.shards, prompts=chosen,
        prompt_name=Path(prompts).stem if is_file else prompts, count=count, ensemble=ensemble, seed=seed,
    )  # fmt: skip
    click.echo(table(metrics))
