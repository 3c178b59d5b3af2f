"""Classes, loss and metric of a fine-tuning recipe: what is stated, what the head and the data set give."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from medunifier_cli.errors import DataError, MuError
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.stages import finetune_task
from medunifier_cli.stages.finetune_task import Task, resolve_task

STAGE = "stage: finetune\n"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder that only says which classes it was prepared with: none other than the plugin's."""
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path


def resolve(shards: Path, dataset: str, **model: str) -> Task:
    """The task of a recipe with the linear head on `shards`."""
    recipe = FinetuneRecipe()
    data = dataclasses.replace(recipe.data, dataset=dataset, shards=str(shards))
    changed = dataclasses.replace(recipe.model, **{"head": "linear", **model})
    return resolve_task(dataclasses.replace(recipe, data=data, model=changed))


@pytest.mark.parametrize(
    ("dataset", "model", "kind", "metric"),
    [
        ("rsna", {}, "one", "auroc"),  # RSNA's headline
        ("covidx", {}, "one", "accuracy"),  # COVIDx's headline
        ("covidx", {"metric": "auroc"}, "one", "auroc"),
        ("covidx", {"loss": "binary_cross_entropy"}, "many", "auroc"),  # accuracy is not defined for it
        ("rsna", {"metric": "accuracy"}, "one", "accuracy"),
    ],
)
def test_loss_and_metric(shards: Path, dataset: str, model: dict[str, str], kind: str, metric: str) -> None:
    task = resolve(shards, dataset, **model)
    assert (task.kind, task.metric, task.shards, task.head.name) == (kind, metric, shards, "linear")


def test_what_the_head_says_comes_between_the_recipe_and_the_data_set(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Head:
        name, loss, metric = "mine", "binary_cross_entropy", "auroc"

    monkeypatch.setattr(finetune_task, "load_head", lambda name: Head())
    assert (resolve(shards, "covidx").kind, resolve(shards, "covidx").metric) == ("many", "auroc")
    one = resolve(shards, "covidx", loss="cross_entropy", metric="accuracy")
    assert (one.kind, one.metric) == ("one", "accuracy")


def test_accuracy_for_any_number_of_labels_is_refused(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Head:
        name, loss, metric = "mine", "binary_cross_entropy", ""

    monkeypatch.setattr(finetune_task, "load_head", lambda name: Head())
    with pytest.raises(MuError, match=r"head `mine`: accuracy needs one class .*model\.metric to auroc"):
        resolve(shards, "covidx", metric="accuracy")


def test_classes_are_those_of_the_shards(shards: Path) -> None:
    assert len(resolve(shards, "covidx").plugin.classes) == 3
    (shards / "manifest.json").write_text(json.dumps({"classes": ["Cat", "Dog"]}))
    assert resolve(shards, "covidx").plugin.classes == ("Cat", "Dog")
    (shards / "manifest.json").write_text(json.dumps({"classes": ["Cat"]}))
    task = resolve(shards, "covidx")  # a single class is there or not, and accuracy is not its headline
    assert (task.kind, task.metric) == ("many", "auroc")
    with pytest.raises(DataError, match=r"covidx has a single class \(Cat\), and cross entropy"):
        resolve(shards, "covidx", loss="cross_entropy")
    (shards / "manifest.json").write_text(json.dumps({"dataset": "table", "classes": []}))
    with pytest.raises(DataError, match="table has no classes: nothing to fine-tune on"):
        resolve(shards, "table")


def test_missing_shards_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder of shards; run `mu prepare` first"):
        resolve(tmp_path / "nowhere", "rsna")


def test_one_recipe_check_needs_no_shards(tmp_path: Path) -> None:
    """The contradiction of loss and metric within a recipe is found when it is loaded."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"{STAGE}model: {{loss: binary_cross_entropy, metric: accuracy}}\n")
    with pytest.raises(MuError, match=r"model\.metric: accuracy needs one class a sample"):
        load_recipe(path, schema=FinetuneRecipe)
