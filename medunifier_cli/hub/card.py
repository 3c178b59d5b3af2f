"""The model card: README.md of an exported folder, filled from the run.

Sections of the card are those that the hub's own template names. Numbers come from the run's result files of
the exported checkpoint, each with its interval, baseline, number of samples and protocol. It holds no report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.disk.manifest import MANIFEST
from medunifier_cli.errors import MuError
from medunifier_cli.evaluate.render import number, render
from medunifier_cli.evaluate.results import Metric, read_results, span
from medunifier_cli.files import write_text
from medunifier_cli.hub.card_words import CITATION, HOW_TO, INTENDED, LIMITS, WARNING
from medunifier_cli.parsing import read_json
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.roots import shards_folder

CARD = "README.md"
TASKS = {
    "zeroshot": "zero-shot-image-classification", "retrieval": "image-text-retrieval",
    "report": "image-to-text", "pretraining": "image-feature-extraction", "synthesis": "text-to-image",
    "conformance": "text-to-image",
}  # fmt: skip
"""First word of a task of ours -> what the hub calls it."""
LISTED = 3
"""Metrics of each result in the card's head, which the hub shows beside the model."""


def write_card(
    trained: PretrainedRun, folder: Path, licence: str, bundled: bool, towers: Mapping[str, float | None]
) -> None:
    """Write the card of an exported run.

    Args:
        licence: of the weights, by its name on the hub.
        bundled: whether a frozen image encoder is in the folder.
        towers: ONNX files, see `onnx_towers.write_towers`.

    Raises:
        DataError: a damaged result file.
    """
    plugin, recipe = _plugin(trained.recipe), trained.recipe
    results = _results(trained)
    name = trained.run.folder.resolve().name
    parts = [
        f"---\n{_head(name, licence, recipe.data.dataset, results)}\n---",
        f"# {name}: MedUnifier for chest radiographs",
        WARNING if plugin is None or plugin.needs_raw else f"{WARNING} {_SYNTHETIC}",
        f"## Use\n\n{HOW_TO}",
        *([f"ONNX: {_onnx(towers)}"] if towers else []),
        f"## Intended use\n\n{INTENDED}",
        f"## Limits\n\n{LIMITS}",
        f"## Training data\n\n{_data(recipe, plugin)}",
        f"## Training\n\n{_training(trained, bundled)}",
        f"## Results\n\n{_tables(results)}",
        f"## Licence\n\n{_licence(licence, plugin)}",
        f"## Citation\n\n{CITATION}" + (f"\n\nData: {plugin.citation}" if plugin and plugin.citation else ""),
    ]
    write_text(folder / CARD, "\n\n".join(parts) + "\n")


_SYNTHETIC = (
    "It was trained on synthetic radiographs made by a program: what it says of a patient's radiograph means "
    "nothing."
)


def _plugin(recipe: PretrainRecipe) -> DatasetPlugin | None:
    """The data set's plugin; None where it is not installed or its shards are damaged."""
    try:
        return prepared_dataset(recipe.data.dataset, recipe.data.shards)
    except MuError:
        return None


def _results(trained: PretrainedRun) -> list[dict[str, Any]]:
    """Results of the checkpoint that is exported; those of an earlier one are not of these weights."""
    return [
        result
        for result in read_results(trained.run.results)
        if result.get("checkpoint", {}).get("hash") == trained.identity
    ]


def _head(name: str, licence: str, dataset: str, results: list[dict[str, Any]]) -> str:
    listed = [
        EvalResult(
            task_type=TASKS.get(result["task"].split("-")[0], "other"),
            dataset_type=result["dataset"],
            dataset_name=result["dataset"],
            dataset_split=result["split"],  # results of another split are not listed under this one
            metric_type=metric.name,
            metric_name=metric.title,
            metric_value=round(metric.value, 4),
        )
        for result in results
        for metric in _metrics(result)[:LISTED]
        if metric.value is not None
    ]
    data = ModelCardData(
        language="en",
        license=licence,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["medunifier", "medical", "radiology", "chest-x-ray", "vision-language", dataset],
        model_name=name if listed else None,
        eval_results=listed or None,
    )
    return str(data.to_yaml()).rstrip()


def _metrics(result: Mapping[str, Any]) -> list[Metric]:
    return [Metric.from_json(entry) for entry in result["metrics"]]


def _onnx(towers: Mapping[str, float | None]) -> str:
    checked = {
        name: "not compared with PyTorch" if far is None else f"within {far:.1e} of PyTorch"
        for name, far in towers.items()
    }
    return "; ".join(f"`{name}` ({words})" for name, words in checked.items()) + "."


def _data(recipe: PretrainRecipe, plugin: DatasetPlugin | None) -> str:
    lines = [f"- Data set: {plugin.title if plugin else recipe.data.dataset} (`{recipe.data.dataset}`)"]
    if plugin and plugin.homepage:
        lines.append(f"- Source: {plugin.homepage}")
    lines.append(f"- Terms of the data: {(plugin and plugin.licence) or 'not stated'}")
    counts = ", ".join(f"{split} {count:,}" for split, count in _counts(recipe))
    if counts:
        lines.append(f"- Images: {counts}; splits by patient where the data set tells patients apart")
    sections = recipe.data.sections or (plugin.text_sections if plugin else ())
    lines.append(
        f"- Text: {', '.join(sections) or 'of the data set'}, at most {recipe.text.max_tokens} tokens"
    )
    if recipe.text.tokenizer == "train":
        lines.append("- `vocab.txt` was learned from the training texts and holds their words")
    return "\n".join(lines)


def _counts(recipe: PretrainRecipe) -> Iterator[tuple[str, int]]:
    """Samples of each split, as far as the shards are here."""
    folder = Path(recipe.data.shards) if recipe.data.shards else shards_folder(recipe.data.dataset)
    try:
        splits = read_json(folder / MANIFEST, dict[str, Any]).get("splits", {})
    except MuError:
        return
    for split, facts in splits.items():
        if isinstance(facts, Mapping) and isinstance(facts.get("samples"), int):
            yield split, facts["samples"]


def _training(trained: PretrainedRun, bundled: bool) -> str:
    recipe, vit = trained.recipe, trained.recipe.model.vit
    weights = sum(parameter.numel() for parameter in trained.model.parameters())
    learned = sum(parameter.numel() for parameter in trained.model.parameters() if parameter.requires_grad)
    objectives = ", ".join(f"{name} {weight:g}" for name, weight in recipe.objectives.weights().items())
    encoder = "trained with the rest"
    if vit.frozen:
        encoder = f"frozen, from `{vit.weights}`, " + ("in this folder" if bundled else "not in this folder")
    start = recipe.model.qformer.weights
    rows = [
        f"- Steps: {trained.step:,} of {recipe.train.global_batch} pairs (checkpoint `{trained.identity}`)",
        f"- Objectives and weights: {objectives}",
        f"- Image encoder: `{vit.name}` at {recipe.data.image_size} x {recipe.data.image_size}, {encoder}",
        f"- Image-text encoder: started from {'random weights' if start == 'random' else f'`{start}`'}",
        f"- Weights: {weights / 1e6:,.1f} million, {learned / 1e6:,.1f} million of them trained",
        f"- Precision of training: {'fp32' if recipe.train.precision == 'no' else recipe.train.precision}; "
        f"seed {recipe.train.seed}",
        "- The whole recipe: `recipe.yaml`",
    ]
    return "\n".join(rows)


def _tables(results: list[dict[str, Any]]) -> str:
    if not results:
        return "None of this checkpoint has been measured."
    blocks = ["Measured by `mu` on held-out data; intervals are 95 %."]
    for result in results:
        rows = [["", "value", "95 % interval", "baseline"]]
        rows += [
            [metric.title, number(metric.value, "-"), span(metric), number(metric.baseline)]
            for metric in _metrics(result)
        ]
        blocks.append(
            f"### {result['task']}, {result['dataset']}/{result['split']}, n = {result.get('n', 0):,}\n\n"
            f"{render(rows, 'markdown')}\n\n{result.get('protocol', '')}. Seed {result.get('seed', 0)}."
        )
    return "\n\n".join(blocks)


def _licence(licence: str, plugin: DatasetPlugin | None) -> str:
    chosen = "Whoever exported the run has not chosen one." if licence == "other" else f"`{licence}`."
    data = plugin.licence if plugin and plugin.licence else "not stated"
    return f"Weights: {chosen} The terms of the training data bind their use as well: {data}"
