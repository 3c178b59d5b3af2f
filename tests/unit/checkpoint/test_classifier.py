"""Restoring a fine-tuned classifier: its classes are the run's own, its weights those of the best epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medunifier_cli.checkpoint import classifier, store
from medunifier_cli.checkpoint.classifier import restore_classifier
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import CheckpointError
from medunifier_cli.model.classifier import Classifier, build_head
from medunifier_cli.plugin_index import load_head
from medunifier_cli.recipe.load import dump_recipe, load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.run.record import Run
from tests.tiny import tiny_model, tiny_recipe

CLASSES = ("Pneumonia", "Oedema", "Normal")
"""Not in alphabetical order, and not those of the data set that the recipe names."""


def pretrained(run: Run, device: torch.device | None = None) -> PretrainedRun:
    model = tiny_model(dtype=torch.float32).eval()
    return PretrainedRun(
        run, tiny_recipe(), TextTokenizer.__new__(TextTokenizer), model, torch.device("cpu"), 7, "base"
    )


@pytest.fixture
def run(own_roots: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of `mu finetune` with all weights fine-tuned, and the network whose weights it holds."""
    (own_roots / "runs" / "base").mkdir(parents=True)
    monkeypatch.setattr(classifier, "restore", pretrained)
    run = Run(own_roots / "runs" / "tuned")
    run.folder.mkdir()
    recipe = load_recipe("finetune-demo", ("model.head=linear", "model.pretrained=base"), FinetuneRecipe)
    run.recipe.write_text(dump_recipe(recipe))
    entry = {"positives": dict.fromkeys(CLASSES, 5)}
    (run.folder / "samples.json").write_text(json.dumps({"train": entry}))
    save(run, finetuned(seed=1), step=4)
    return run


def finetuned(seed: int, classes: int = len(CLASSES)) -> Classifier:
    """A network as fine-tuning leaves it: every trained weight has moved."""
    shape = tiny_recipe().model.qformer
    head = build_head(load_head("linear"), shape.queries, shape.width, classes, 0)
    network = Classifier(tiny_model(dtype=torch.float32), head, freeze=False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and not name.endswith("norm.weight"):
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def save(run: Run, network: Classifier, step: int) -> None:
    store.save(run.folder / "best", store.Checkpoint(step, {"model": network.weights()}, {}), keep=1)


def test_classes_are_the_runs_own_in_the_order_of_the_outputs(run: Run) -> None:
    finetuned_run, network, classes = restore_classifier(run)
    assert classes == CLASSES
    queries = torch.randn(2, 4, 32)
    assert network.head(queries).shape == (2, 3)
    assert finetuned_run.run is run
    assert finetuned_run.step == 4
    assert finetuned_run.identity == store.identity(run.folder / "best", 4)


def test_weights_are_those_of_the_best_epoch_and_the_network_is_in_evaluation_mode(run: Run) -> None:
    save(run, finetuned(seed=2), step=9)
    _, network, _ = restore_classifier(run)
    expected = finetuned(seed=2)
    image = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(network(image), expected(image))
    assert not any(module.training for module in network.modules())


def test_a_run_of_another_stage_is_refused(run: Run) -> None:
    run.recipe.write_text(dump_recipe(load_recipe("demo")))
    with pytest.raises(CheckpointError, match="not a run of `mu finetune`"):
        restore_classifier(run)


def test_an_unfinished_run_is_refused(run: Run) -> None:
    (run.folder / "best").rename(run.folder / "gone")
    with pytest.raises(CheckpointError, match=r"not finished; run `mu finetune` again$"):
        restore_classifier(run)


@pytest.mark.parametrize("damage", ["no head", "a stranger"])
def test_weights_that_do_not_fit_are_refused(run: Run, damage: str) -> None:
    weights = finetuned(seed=1).weights()
    if damage == "no head":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    else:
        weights["model.qformer.stranger"] = torch.zeros(1)
    store.save(run.folder / "best", store.Checkpoint(5, {"model": weights}, {}), keep=1)
    with pytest.raises(CheckpointError, match="its weights do not fit"):
        restore_classifier(run)


def test_a_pretraining_run_that_was_trained_again_is_refused(run: Run) -> None:
    facts = {"pretrained": "base", "samples": "x"}
    weights = {"model": finetuned(seed=1).weights()}
    store.save(run.folder / "best", store.Checkpoint(5, weights, facts), keep=1)
    assert restore_classifier(run)[0].step == 5
    store.save(run.folder / "best", store.Checkpoint(6, weights, {**facts, "pretrained": "before"}), keep=1)
    with pytest.raises(
        CheckpointError, match=r"from checkpoint before, but .*/base holds base; fine-tune again"
    ):
        restore_classifier(run)
