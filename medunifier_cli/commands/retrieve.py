"""`mu retrieve`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--run", "name", default="", help="Run to use; by default the newest pre-trained one.")
@click.option("--data", "dataset", default="", help="Data set; by default the run's own.")
@click.option("--split", default="", help="Split or drawn subset; by default the data set's benchmark.")
@click.option("--ids", type=click.Path(path_type=Path), help="A file of sample keys, instead of a split.")
@click.option(
    "--rerank", type=click.IntRange(min=0), default=0, metavar="K",
    help="Also order the best K of each ranking by image-text matching.",
)  # fmt: skip
@click.option("--query", metavar="TEXT", help="Search the split for images that fit a text.")
@click.option(
    "--image", type=click.Path(path_type=Path), help="Search it for reports that fit an image file."
)
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many a search shows."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the gallery; by default in the run.")
def retrieve(
    name: str, dataset: str, split: str, ids: Path | None, rerank: int, query: str | None, image: Path | None,
    top: int, out: Path | None,
) -> None:  # fmt: skip
    """Measure image-to-text and text-to-image retrieval on a split, or search it.

    With --query or --image nothing is measured: the best hits become a gallery, a folder of static HTML
    whose path is printed. It holds images and reports of the split: treat it as the data themselves.
    """
    if query is not None and image is not None:
        raise click.UsageError("search by --query or by --image, not by both")
    if out and query is None and image is None:
        raise click.UsageError("--out is for the gallery of --query or --image")
    from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.results import table

    trained = restore(pretrained_run(name, "retrieve"))
    asked = open_benchmark(trained, dataset, split, need_text=False, ids=ids, prefer_benchmark=True)
    if query is not None or image is not None:
        from medunifier_cli.evaluate.retrieval.search import search_by_image, search_by_text

        if image is not None:
            page = search_by_image(trained, asked, image, top, rerank, out)
        else:
            page = search_by_text(trained, asked, query or "", top, rerank, out)
        click.echo(str(page))
        return
    from medunifier_cli.evaluate.retrieval.retrieval import benchmark

    measured = benchmark(trained, asked, rerank)
    for heading, metrics in measured.items():
        if len(measured) > 1:
            click.echo(heading)
        click.echo(table(metrics))
