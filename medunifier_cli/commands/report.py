"""`mu report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medunifier_cli.checkpoint.pretrained import PretrainedRun
    from medunifier_cli.evaluate.reports.writer import Decoding


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--run", "name", default="", help="Run to use; by default the newest pre-trained one.")
@click.option("--data", "dataset", default="", help="Data set; by default the run's own.")
@click.option("--split", default="", help="Split; by default the run's held-out one.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Only the first so many of the split.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=None,
    help="Folder for reports and scores of a split; by default the run's results.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON line a file.")
@click.option(
    "--sample", "how", type=click.Choice(["greedy", "beam", "nucleus"]), default="beam", show_default=True,
    help="How words are chosen; nucleus draws them.",
)  # fmt: skip
@click.option(
    "--beams", type=click.IntRange(min=1), default=3, show_default=True, help="Texts that beam search keeps."
)
@click.option(
    "--length-penalty", type=float, default=1.0, show_default=True,
    help="Of beam search: the larger, the longer the reports.",
)  # fmt: skip
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Of nucleus."
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True, help="Of nucleus."
)
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Of nucleus; 0 for all words.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of nucleus.")
@click.option("--min-tokens", type=click.IntRange(min=0), default=0, help="Shortest report.")
@click.option(
    "--max-tokens", type=click.IntRange(min=0), default=0,
    help="Longest report; 0 for as long as the run was trained on.",
)  # fmt: skip
@click.option(
    "--repetition-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
    help="Above 1, words said before become less likely.",
)  # fmt: skip
@click.option(
    "--no-repeat-ngram", type=click.IntRange(min=0), default=0, help="No run of so many tokens comes twice."
)
@click.option("--clinical", is_flag=True, help="CheXbert and RadGraph F1 too (extra `clinical`).")
def report(
    files: tuple[Path, ...], name: str, dataset: str, split: str, limit: int, out: Path | None, as_json: bool,
    clinical: bool, **decoding: float,
) -> None:  # fmt: skip
    """Write radiology reports of a split, or of images given.

    FILES are PNG, JPEG or DICOM, or folders of them: the reports go to standard output. Without FILES the
    run's held-out split is reported on and scored.
    """
    from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
    from medunifier_cli.evaluate.reports.writer import Decoding, files_under

    for_split = {"--data": dataset, "--split": split, "--limit": limit, "--out": out, "--clinical": clinical}
    wrong = [flag for flag, value in for_split.items() if value]
    if files and wrong:
        raise click.UsageError(f"{wrong[0]} is for a split, not for files")
    if as_json and not files:
        raise click.UsageError("--json is for files; the reports of a split are JSON lines anyway")
    paths = files_under(files)
    trained, how = restore(pretrained_run(name, "report")), Decoding(**decoding)  # type: ignore[arg-type]
    if files:
        _report_files(trained, how, paths, as_json)
    else:
        _report_split(trained, how, dataset, split, limit, out, clinical)


def _report_split(
    trained: PretrainedRun,
    how: Decoding,
    dataset: str,
    split: str,
    limit: int,
    out: Path | None,
    clinical: bool,
) -> None:
    from medunifier_cli.evaluate.reports.reporting import report_split
    from medunifier_cli.evaluate.reports.scoring import HEADLINE
    from medunifier_cli.evaluate.results import table

    done = report_split(trained, how, dataset, split, limit, out, clinical)
    shown = done.scored.metrics if clinical else [m for m in done.scored.metrics if m.name in HEADLINE]
    click.echo(table(shown))
    for note in done.scored.notes:
        click.echo(f"mu: {note}", err=True)
    click.echo(f"mu: {done.scored.n:,} reports in {done.reports}; all scores: `mu score --reports`", err=True)


def _report_files(trained: PretrainedRun, how: Decoding, paths: list[Path], as_json: bool) -> None:
    from medunifier_cli.evaluate.reports.reporting import trained_sections
    from medunifier_cli.evaluate.reports.writer import Writer, write_files

    for path, found in write_files(Writer(trained, how, trained_sections(trained)), paths):
        if isinstance(found, str):  # said on stderr already
            if as_json:
                click.echo(json.dumps({"file": str(path), "skipped": found}, ensure_ascii=False))
        elif as_json:
            row = {"file": str(path), "report": found.text} | (
                {"sections": found.sections} if found.sections else {}
            )
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            if len(paths) > 1:
                click.echo(f"== {path}")
            for section, text in found.sections.items() or [("", found.text)]:
                click.echo(f"{section.replace('_', ' ').upper()}: {text}" if section else text)
