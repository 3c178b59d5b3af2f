"""`mu retrieve`."""

from __future__ import annotations

import click

from medunifier_cli.roots import find_run, newest_run


@click.command()
@click.option("--run", "name", default="", help="Run to use; by default the newest pre-trained one.")
@click.option("--data", "dataset", default="", help="Data set; by default the run's own.")
@click.option("--split", default="", help="Split; by default the run's held-out one.")
def retrieve(name: str, dataset: str, split: str) -> None:
    """Measure image-to-text and text-to-image retrieval on a split."""
    from medunifier_cli.checkpoint.restore import is_pretrained, restore
    from medunifier_cli.tasks.results import table
    from medunifier_cli.tasks.retrieval import benchmark
    from medunifier_cli.tasks.splits import open_benchmark
    from medunifier_cli.train.record import Run

    folder = find_run(name) if name else newest_run(lambda path: is_pretrained(Run(path)), "retrieve")
    trained = restore(Run(folder))
    asked = open_benchmark(trained, dataset, split)
    metrics = benchmark(trained, asked.source, asked.plugin.name, asked.split, asked.shards)
    click.echo(table(metrics))
