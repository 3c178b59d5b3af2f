"""`mu retrieve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.evaluate.shared.ranks import ENCODED, on_ranks
from medunifier_cli.files import must_exist
from medunifier_cli.options.shared import (
    batch_size_option,
    data_option,
    device_option,
    format_option,
    hinting,
    likeness_option,
    refuse,
    run_option,
)
from medunifier_cli.terminal.options import Whole
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import show


def _count(name: str, dataset: str, split: str, ids: Path | None, **_: Any) -> int:
    from medunifier_cli.evaluate.benchmark import count_samples

    return count_samples(name, dataset, split, ids)


def _check(
    query: str | None, image: Path | None, similar: bool, split: str, ids: Path | None, **_: Any
) -> None:
    if split and ids:
        raise click.UsageError("--split and --ids name the samples; give one of them")
    if query is not None and image is not None:
        raise click.UsageError("search by --query or by --image, not by both")
    if query is None and image is None:
        refuse({"top", "out"}, "is for the gallery of --query or --image")
    if image is None:
        refuse({"likeness"}, "is for the film of --image")
    if similar and image is None:
        raise click.UsageError("--similar finds images like that of --image; add it")
    if similar:
        refuse({"rerank"}, "compares images with texts, and --similar images with images")


def _meant(ctx: click.Context) -> str:
    return "" if ctx.params.get("image") else f"did you mean --image {ctx.args[0]}?"


@click.command(cls=hinting(_meant))
@run_option()
@data_option("Data set; by default the run's own.")
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
    "--similar", is_flag=True, help="Find images like that of --image, instead of reports that fit it."
)
@click.option(
    "--top",
    type=Whole(1, 10_000),
    default=20,
    show_default=True,
    help="Number of hits that a search shows.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the gallery; by default in the run.")
@likeness_option
@format_option
@device_option
@batch_size_option("64")
@job_options(nodes=True)
@on_ranks(large=ENCODED, count=_count, check=_check)
def retrieve(
    name: str, dataset: str, split: str, ids: Path | None, rerank: int, query: str | None, image: Path | None,
    similar: bool, top: int, out: Path | None, likeness: bool, batch: int | None, sbatch: JobOptions | None,
) -> None:  # fmt: skip
    """Measure image-to-text and text-to-image retrieval on a split, or search it.

    With --query or --image nothing is measured: the best hits are written as a gallery, a folder of static
    HTML, and its path is printed. It holds the film of --image, and images and reports of the split: treat it
    like the data. Films unlike the training data are named. Not for diagnosis.
    """
    if sbatch:
        sbatch.show()
        return
    must_exist([image] if image is not None else [])
    from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.results import tables
    from medunifier_cli.evaluate.shared.sharing import everywhere

    trained = everywhere(restore, pretrained_run(name, "retrieve")).with_batches_of(batch)
    benchmark = open_benchmark(trained, dataset, split, need_text=False, ids=ids, prefer_benchmark=True)
    if query is not None or image is not None:
        from medunifier_cli.evaluate.retrieval.search import search_by_image, search_by_text, search_similar

        if image is not None and similar:
            page = search_similar(trained, benchmark, image, top, out, likeness)
        elif image is not None:
            page = search_by_image(trained, benchmark, image, top, rerank, out, likeness)
        else:
            page = search_by_text(trained, benchmark, query or "", top, rerank, out)
        show(str(page), err=form() != "text")
        return
    from medunifier_cli.evaluate.retrieval.retrieval import measure_retrieval

    metrics_by_heading = measure_retrieval(trained, benchmark, rerank)
    one_table = {"": next(iter(metrics_by_heading.values()))} if len(metrics_by_heading) == 1 else None
    show(tables(one_table or metrics_by_heading))
