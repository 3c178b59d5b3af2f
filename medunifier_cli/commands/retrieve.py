"""`mu retrieve`."""

from __future__ import annotations

from pathlib import Path

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.terminal.options import Whole
from medunifier_cli.terminal.say import show


@click.command()
@click.option("--run", "name", default="", help="Run to use; by default the newest pre-trained one.")
@click.option("--data", "dataset", default="", help="Data set; by default the run's own.")
@click.option("--split", default="", help="Split or subset; by default the data set's benchmark.")
@click.option("--ids", type=click.Path(path_type=Path), help="File of sample keys to use instead of a split.")
@click.option(
    "--rerank", type=Whole(0, 10_000), default=0, metavar="K",
    help="Number of best candidates of each ranking that are re-ranked by image-text matching (ITM).",
)  # fmt: skip
@click.option("--query", metavar="TEXT", help="Text to search the split's images with.")
@click.option(
    "--image", type=click.Path(path_type=Path), help="Image file to search the split's reports with."
)
@click.option(
    "--top",
    type=Whole(1, 10_000),
    default=20,
    show_default=True,
    help="Number of hits that a search shows.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the gallery; by default in the run.")
@job_options()
def retrieve(
    name: str, dataset: str, split: str, ids: Path | None, rerank: int, query: str | None, image: Path | None,
    top: int, out: Path | None, sbatch: JobOptions | None,
) -> None:  # fmt: skip
    """Measure image-to-text and text-to-image retrieval on a split, or search it.

    With --query or --image nothing is measured: the best hits are written as a gallery, a folder of static
    HTML, and its path is printed. It holds images and reports of the split: treat it like the data.
    """
    if query is not None and image is not None:
        raise click.UsageError("search by --query or by --image, not by both")
    if out and query is None and image is None:
        raise click.UsageError("--out is for the gallery of --query or --image")
    if sbatch:
        sbatch.show()
        return
    from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.results import table

    trained = restore(pretrained_run(name, "retrieve"))
    benchmark = open_benchmark(trained, dataset, split, need_text=False, ids=ids, prefer_benchmark=True)
    if query is not None or image is not None:
        from medunifier_cli.evaluate.retrieval.search import search_by_image, search_by_text

        if image is not None:
            page = search_by_image(trained, benchmark, image, top, rerank, out)
        else:
            page = search_by_text(trained, benchmark, query or "", top, rerank, out)
        show(str(page))
        return
    from medunifier_cli.evaluate.retrieval.retrieval import measure_retrieval

    metrics_by_heading = measure_retrieval(trained, benchmark, rerank)
    for heading, metrics in metrics_by_heading.items():
        if len(metrics_by_heading) > 1:
            show(heading)
        show(table(metrics))
