"""`mu report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.evaluate.shared.ranks import WRITTEN, on_ranks
from medunifier_cli.options.shared import (
    batch_size_option,
    data_option,
    device_option,
    format_option,
    likeness_option,
    old_format_flag,
    refuse,
    run_option,
)
from medunifier_cli.terminal.options import (
    CLASSES,
    LIMIT,
    PROBABILITY,
    SEED,
    TEMPERATURE,
    TOKENS,
    Number,
    Whole,
)
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import counted, say, show

if TYPE_CHECKING:
    from medunifier_cli.checkpoint.pretrained import PretrainedRun
    from medunifier_cli.evaluate.films.likeness import Likeness
    from medunifier_cli.evaluate.reports.writer import Decoding

ONLY_FOR = {
    "beam": {"beams", "length_penalty"},
    "nucleus": {"temperature", "top_p", "top_k", "seed"},
}
"""Way of decoding -> parameters that no other one has."""
OTHER_FILES = {".htm", ".pdf", ".png", ".jpg", ".jpeg", ".txt", ".md", ".json", ".jsonl", ".csv", ".docx"}
"""Endings of names that would be no folder of a page, though one could be made."""


def _count(files: tuple[Path, ...], name: str, dataset: str, split: str, limit: int, **_: Any) -> int:
    from medunifier_cli.evaluate.benchmark import count_samples
    from medunifier_cli.evaluate.reports.writer import files_under

    if files:
        return len(files_under(files))
    count = count_samples(name, dataset, split)
    return min(count, limit or count)


def _check(files: tuple[Path, ...], how: str, page: Path | None, **_: Any) -> None:
    if page is not None and page.suffix.lower() in OTHER_FILES and not page.is_dir():
        raise click.UsageError(f"--page {page}: a page is a folder, or a file whose name ends in .html")
    for way, own in ONLY_FOR.items():
        if way != how:
            refuse(own, f"is for --sample {way}")
    if files:
        refuse({"dataset", "split", "limit", "out", "clinical"}, "is for a split, not for files")
    else:
        refuse({"likeness"}, "is for image files")
        if page is not None:
            raise click.UsageError("--page shows image files: name them; `mu score --page` shows a run")
    if page is not None:
        refuse({"num_processes"}, "shares the work of many images, and --page takes a few")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@run_option()
@data_option("Data set; by default the run's own.")
@click.option("--split", default="", help="Split; by default the run's held-out one.")
@click.option(
    "--limit",
    type=LIMIT,
    default=0,
    metavar="N",
    help="Use only the first N samples of the split; 0 for all.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=None,
    help="Folder for the reports and scores of a split; by default the run's results/.",
)  # fmt: skip
@click.option(
    "--page", type=click.Path(path_type=Path), default=None, metavar="OUT",
    help="Write a page of FILES too: reports, classes, where each sentence looks, similar cases. OUT is a "
    "folder or a name ending in .html.",
)  # fmt: skip
@likeness_option
@format_option
@old_format_flag("--json", "json")
@device_option
@batch_size_option("32")
@click.option(
    "--sample", "how", type=click.Choice(["greedy", "beam", "nucleus"]), default="beam", show_default=True,
    help="Decoding: greedy, beam search, or nucleus sampling.",
)  # fmt: skip
@click.option(
    "--beams", type=Whole(1, 100), default=3, show_default=True, help="Beam search: number of beams."
)
@click.option(
    "--length-penalty", type=Number(-10, 10), default=1.0, show_default=True,
    help="Beam search: exponent of the length; larger values give longer reports.",
)  # fmt: skip
@click.option(
    "--temperature", type=TEMPERATURE, default=1.0, show_default=True,
    help="Nucleus sampling: temperature; below 1 favours likely words.",
)  # fmt: skip
@click.option(
    "--top-p", type=PROBABILITY, default=0.9, show_default=True,
    help="Nucleus sampling: keep the likeliest words that together have this probability.",
)  # fmt: skip
@click.option(
    "--top-k", type=CLASSES, default=0, metavar="K",
    help="Nucleus sampling: keep the K likeliest words; 0 for all.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Nucleus sampling: seed.")
@click.option("--min-tokens", type=TOKENS, default=0, help="Minimum length of a report in tokens.")
@click.option(
    "--max-tokens", type=TOKENS, default=0,
    help="Maximum length of a report in tokens; 0 for the length that the run was trained on.",
)  # fmt: skip
@click.option(
    "--repetition-penalty", type=Number(0, 1000, min_open=True), default=1.0, show_default=True,
    help="Penalty on words that occur already; above 1 makes them less likely.",
)  # fmt: skip
@click.option(
    "--no-repeat-ngram", type=TOKENS, default=0, metavar="N",
    help="Forbid that N tokens in a row occur twice; 0 allows it.",
)  # fmt: skip
@click.option(
    "--clinical", is_flag=True, help="Add CheXbert and RadGraph F1, RadCliQ and RaTEScore (extra `clinical`)."
)
@job_options(nodes=True)
@on_ranks(large=WRITTEN, count=_count, check=_check)
def report(
    files: tuple[Path, ...], name: str, dataset: str, split: str, limit: int, out: Path | None,
    clinical: bool, page: Path | None, likeness: bool, batch: int | None, sbatch: JobOptions | None,
    **decoding: Any,
) -> None:  # fmt: skip
    """Write radiology reports for a split, or for image FILES.

    FILES are PNG, JPEG or DICOM, or folders of them: the reports go to standard output. Without FILES, the
    run's held-out split gets reports, and they are scored against the radiologists'. `--format json` prints
    a line of JSON for each file, and `--page OUT` writes a page to look at.
    """
    if sbatch:
        sbatch.show()
        return
    from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
    from medunifier_cli.evaluate.reports.writer import Decoding, files_under
    from medunifier_cli.evaluate.shared.sharing import everywhere

    paths = files_under(files)
    if page is not None:
        from medunifier_cli.evaluate.reports.film_page import check_films

        check_films(paths)
    trained = everywhere(restore, pretrained_run(name, "report")).with_batches_of(batch)
    settings = Decoding(**decoding)
    if files:
        _report_files(trained, settings, paths, likeness, page)
    else:
        _report_split(trained, settings, dataset, split, limit, out, clinical)


def _report_split(
    trained: PretrainedRun,
    settings: Decoding,
    dataset: str,
    split: str,
    limit: int,
    out: Path | None,
    clinical: bool,
) -> None:
    from medunifier_cli.evaluate.reports.reporting import report_split
    from medunifier_cli.evaluate.reports.scoring import HEADLINE
    from medunifier_cli.evaluate.results import table

    reported = report_split(trained, settings, dataset, split, limit, out, clinical)
    shown = [m for m in reported.scored.metrics if clinical or m.name in HEADLINE]
    show(table(shown))
    for note in reported.scored.notes:
        say(note)
    written = counted(reported.scored.n, "report")
    say(f"{written} in {reported.reports}; all scores: `mu score --reports {reported.reports}`")


def _report_files(
    trained: PretrainedRun, settings: Decoding, paths: list[Path], likeness: bool, page: Path | None
) -> None:
    from medunifier_cli.evaluate.films.answers import LAST_COLUMNS, footer, last_cells
    from medunifier_cli.evaluate.films.likeness import likeness_of_file, reference_of
    from medunifier_cli.evaluate.films.origin import NOT_FOR_DIAGNOSIS, origin_of_run
    from medunifier_cli.evaluate.render import render
    from medunifier_cli.evaluate.reports.reporting import trained_sections
    from medunifier_cli.evaluate.reports.writer import Writer, write_files

    chosen, origin = form(), origin_of_run(trained)
    last = LAST_COLUMNS if chosen == "csv" else ("unlike",)
    rows: list[list[object]] = [["file", "report", "skipped", *last]]
    writer = Writer(trained, settings, trained_sections(trained))
    reference, films = reference_of(trained) if likeness else None, []
    written = []
    for path, report in write_files(writer, paths):
        written += [] if page is None else [(path, report)]
        if isinstance(report, str):  # the reason why it was skipped, which stderr has already
            rows.append([str(path), "", report, *([""] * len(last))])
            if chosen == "json":
                show(json.dumps({"file": str(path), "skipped": report}, ensure_ascii=False))
            continue
        seen = None if reference is None else likeness_of_file(trained, reference, path)
        films += [] if seen is None else [seen]
        cells = last_cells(seen, origin) if chosen == "csv" else [_word(seen)]
        rows.append([str(path), report.text, "", *cells])
        if chosen == "json":
            row = {"file": str(path), "report": report.text} | (
                {"sections": report.sections} if report.sections else {}
            )
            row |= {} if seen is None else {"likeness": seen.as_json()}
            row |= {"origin": origin.as_json(), "note": NOT_FOR_DIAGNOSIS}
            show(json.dumps(row, ensure_ascii=False))
        elif chosen == "text":
            if len(paths) > 1:
                show(f"== {path}" + (" (unlike the training films)" if seen and seen.unlike else ""))
            for section, text in report.sections.items() or [("", report.text)]:
                show(f"{section.replace('_', ' ').upper()}: {text}" if section else text)
    if chosen in ("csv", "markdown"):
        show(render(rows, chosen, words=4))
    if chosen not in ("json", "csv"):
        # a report alone on stdout can be piped into a file; a table of Markdown is one to be read
        show("\n".join(footer(films, origin)), err=chosen != "markdown")
    if page is not None:
        from medunifier_cli.evaluate.reports.film_page import film_page

        show(str(film_page(trained, written, films, settings, page)), err=chosen != "text")


def _word(seen: Likeness | None) -> str:
    return "" if seen is None or seen.unlike is None else "yes" if seen.unlike else "no"
