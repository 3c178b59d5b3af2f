"""`mu zeroshot`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from medunifier_cli.checkpoint.pretrained import PretrainedRun
    from medunifier_cli.evaluate.retrieval.zeroshot import Ensemble


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--run", "name", default="", help="Run to use; by default the newest pre-trained one.")
@click.option("--data", "dataset", default="", help="Data set, for images and classes; by default the run's.")
@click.option("--split", default="", help="Split or drawn subset; by default the data set's benchmark.")
@click.option("--ids", type=click.Path(path_type=Path), help="A file of sample keys, instead of a split.")
@click.option(
    "--prompts", default="",
    help="Prompt set of the data set, `all` of them, or a YAML file `class: [prompt, ...]`.",
)  # fmt: skip
@click.option(
    "--count", type=click.IntRange(min=0),
    help="Prompts drawn per class, 0 for all; by default as the data set's literature has it (15 or 10).",
)  # fmt: skip
@click.option(
    "--ensemble", type=click.Choice(["max", "mean"]), default="max", show_default=True, help="Over prompts."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draw of prompts."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option(
    "--save-prompts", type=click.Path(path_type=Path), help="Write the prompt set as YAML to edit, and stop."
)
def zeroshot(
    files: tuple[Path, ...], name: str, dataset: str, split: str, ids: Path | None, prompts: str,
    count: int | None, ensemble: str, seed: int, as_json: bool, as_csv: bool,
    save_prompts: Path | None,
) -> None:  # fmt: skip
    """Classify a split, or image FILES, by prompts alone: accuracy, AUROC, macro F1.

    FILES are PNG, JPEG or DICOM: prints the probability of each class at the run's own temperature. Without
    FILES a split is measured; its result, the probabilities and a picture of the confusion matrix land in
    the run's results/.
    """
    if files and (split or ids):
        raise click.UsageError("give image files, or --split or --ids, not both")
    form = "json" if as_json else "csv" if as_csv else "text"
    if save_prompts:
        _save_prompts(save_prompts, name, dataset, prompts)
        return
    from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
    from medunifier_cli.evaluate.benchmark import open_benchmark

    trained = restore(pretrained_run(name, "zeroshot"))
    if files:
        from medunifier_cli.plugin_index import load_dataset

        plugin = load_dataset(dataset or trained.recipe.data.dataset)
        chosen = _ensembles(plugin, prompts, count, ensemble, seed)
        if len(chosen) > 1:
            raise click.UsageError("files are classified with one prompt set, not with all")
        click.echo(_of_files(trained, files, plugin.classes, chosen[0], form))
        return
    asked = open_benchmark(trained, dataset, split, need_text=False, ids=ids, prefer_benchmark=True)
    _measure(trained, asked, _ensembles(asked.plugin, prompts, count, ensemble, seed), form)


def _ensembles(plugin: Any, prompts: str, count: int | None, over: str, seed: int) -> list[Ensemble]:
    from medunifier_cli.evaluate.retrieval.prompts import chosen_sets
    from medunifier_cli.evaluate.retrieval.zeroshot import Ensemble

    drawn = plugin.prompts_drawn if count is None else count
    return [Ensemble(texts, name, drawn, over, seed) for name, texts in chosen_sets(plugin, prompts).items()]


def _measure(trained: PretrainedRun, asked: Any, ensembles: list[Ensemble], form: str) -> None:
    from medunifier_cli.evaluate.results import table
    from medunifier_cli.evaluate.retrieval.zeroshot import benchmark

    results = []
    for ensemble in ensembles:
        outcome = benchmark(trained, asked, ensemble)
        click.echo(
            f"mu: {asked.plugin.name}/{asked.split}, prompts {ensemble.name or 'of the data set'}: "
            f"confusion matrix in {outcome.picture}", err=True,
        )  # fmt: skip
        for note in outcome.notes:
            click.echo(f"mu: {note}", err=True)
        if form == "text":
            if len(ensembles) > 1:
                click.echo(f"prompts: {ensemble.name or next(iter(asked.plugin.prompt_sets()))}")
            click.echo(table(outcome.metrics))
        else:
            results.append((ensemble, outcome))
    if form == "json":
        click.echo(json.dumps([json.loads(outcome.result.read_text()) for _, outcome in results], indent=1))
    if form == "csv":
        rows: list[list[Any]] = [["result", "metric", "value", "low", "high", "floor"]]
        for ensemble, outcome in results:
            rows += [[ensemble.task, m.name, m.value, m.low, m.high, m.floor] for m in outcome.metrics]
        click.echo(_csv(rows))


def _of_files(
    trained: PretrainedRun, files: tuple[Path, ...], classes: tuple[str, ...], ensemble: Ensemble, form: str
) -> str:
    from medunifier_cli.evaluate.retrieval.zeroshot import classify_files
    from medunifier_cli.evaluate.user_images import read_images

    rows = classify_files(trained, read_images(files, trained.recipe.data.image_size), classes, ensemble)
    if form == "json":
        return json.dumps(rows, indent=1)
    cells = [
        ["file", *classes],
        *([r["file"], *(f"{p:.3f}" for p in r["probabilities"].values())] for r in rows),
    ]
    if form == "csv":
        return _csv(cells)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def _csv(rows: list[list[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().rstrip("\n")


def _save_prompts(path: Path, name: str, dataset: str, prompts: str) -> None:
    """Write a built-in prompt set; needs no checkpoint where `--data` names the data set."""
    from medunifier_cli.errors import DataError
    from medunifier_cli.evaluate.retrieval.prompts import as_yaml, prompts_of
    from medunifier_cli.plugin_index import load_dataset

    if not dataset:
        from medunifier_cli.checkpoint.pretrained import pretrained_run
        from medunifier_cli.recipe.load import load_saved
        from medunifier_cli.recipe.schema import PretrainRecipe

        dataset = load_saved(pretrained_run(name, "zeroshot").recipe, PretrainRecipe).data.dataset
    plugin = load_dataset(dataset)
    if path.exists():
        raise DataError(f"{path}: is there already; name another file, or remove it")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder; make it first")
    chosen = prompts_of(plugin, prompts)
    path.write_text(
        as_yaml(chosen, tuple(chosen), f"{plugin.name}, set {prompts or 'default'}"), encoding="utf-8"
    )
    click.echo(str(path))
