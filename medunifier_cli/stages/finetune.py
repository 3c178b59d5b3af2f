"""Fine-tuning (paper, section 4): a pre-trained model, a new head and labels for the loop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.data.labels.labelled import Labelled, LabelledFeatures, LabelledImages, counts
from medunifier_cli.data.labels.samples import (
    SAMPLES,
    Part,
    choose_samples,
    open_samples,
    plan_samples,
    read_samples,
)
from medunifier_cli.data.loader import eval_batches, train_batches
from medunifier_cli.distributed import world
from medunifier_cli.evaluate.results import Metric, read_results, table
from medunifier_cli.files import sha256, write_text
from medunifier_cli.model.classifier import Classifier, build_head
from medunifier_cli.objectives.classify import balanced, classification_loss
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.provenance import command_line, data_facts
from medunifier_cli.run.record import Run
from medunifier_cli.stages.features import compute_features, features_file, read_features
from medunifier_cli.stages.finetune_results import TASK, measure, probabilities, scores_of
from medunifier_cli.stages.finetune_task import Task, task_of
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.loop import Values, fit

Source = LabelledImages | LabelledFeatures

EVAL_BATCH = 64
BEST = "best."
"""Before the names of the best epoch's weights in a checkpoint."""


class Finetuning:
    """The stage: what `loop.fit` asks for, for a head on the queries."""

    def __init__(
        self, recipe: FinetuneRecipe, task: Task, trained: PretrainedRun, sources: Mapping[str, Source],
        samples_hash: str, device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.task, self.sources, self.device = recipe, task, sources, device
        self.started_from, self.samples_hash = trained.identity, samples_hash
        qformer = trained.recipe.model.qformer
        classes = task.plugin.classes
        head = build_head(task.head, qformer.queries, qformer.width, len(classes), recipe.train.seed)
        self.classifier = Classifier(trained.model, head, recipe.model.freeze).to(device)
        self.module: nn.Module = self.classifier
        self.settings = recipe.train.for_loop(len(sources["train"]))
        self.steps = self.settings.steps
        self.weight_2C: Tensor | None = None
        if recipe.model.balance:
            counted = counts(sources["train"].target, len(classes))
            self.weight_2C = balanced(counted, task.kind == "one").to(device)
        self.samples = "images"
        self.shown: tuple[str, ...] = ("total", "accuracy", "auroc")
        self.best_value, self.best_step = -1.0, 0
        self.best: dict[str, Tensor] = {}

    def start(self) -> None:
        """The pre-trained model and the new head are all there is."""

    def batches(self, first_step: int) -> Iterator[list[Labelled]]:
        """Micro-batches of each step, on the device."""
        settings = self.recipe.train
        for step in train_batches(
            self.sources["train"], seed=settings.seed, first_step=first_step, steps=self.steps,
            global_batch=settings.global_batch, micro_batch=settings.micro_batch,
            rank=world.rank(), world=world.size(), workers=self._workers(),
        ):  # fmt: skip
            yield [batch.to(self.device) for batch in step]

    def step(self, module: nn.Module, batch: Labelled, step: int, micro: int) -> tuple[Values, Values]:
        """The loss of one micro-batch."""
        return classification_loss(module(batch.input), batch.target, self.weight_2C)

    def validate(self, step: int) -> Mapping[str, float]:
        """Scores of the validation split; the weights are kept when the headline was never higher."""
        logits = self.predict(self.sources["valid"])
        target = self.sources["valid"].target
        scores_nC = probabilities(logits, self.task.kind == "one")
        found = scores_of(target, scores_nC, self.task.plugin.classes).scores
        value = found[self.task.metric]
        if value > self.best_value:
            self.best_value, self.best_step = value, step
            weights = self.classifier.weights()
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        given = torch.from_numpy(logits).to(self.device), torch.from_numpy(np.asarray(target)).to(self.device)
        losses, _ = classification_loss(*given)
        return {"total": float(losses["total"]), **found, "best": self.best_value}

    def predict(self, source: Source) -> NDArray[np.float32]:
        """Logits of every sample in order, [n, C], on every rank; evaluation mode, fp32."""
        self.classifier.eval()
        parts = []
        with torch.no_grad():
            for batch, _ in eval_batches(
                source, batch_size=EVAL_BATCH, rank=world.rank(), world=world.size(), workers=self._workers()
            ):
                logits = self.classifier(batch.to(self.device).input)
                parts.append(world.gather(logits.float()).cpu())
        return np.asarray(torch.cat(parts)[: len(source)].numpy(), np.float32)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Weights that fine-tuning changes; those of the best epoch so far, and how good it was."""
        best = {BEST + name: tensor for name, tensor in self.best.items()}
        return {
            **self.classifier.weights(),
            **best,
            "best": torch.tensor([self.best_value, self.best_step], dtype=torch.float64),
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError when names or shapes differ, KeyError without a best epoch."""
        value, step = tensors["best"].tolist()
        self.best_value, self.best_step = value, int(step)
        self.best = {
            name.removeprefix(BEST): tensor for name, tensor in tensors.items() if name.startswith(BEST)
        }
        self.load({name: tensor for name, tensor in tensors.items() if name in self.classifier.weights()})

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the classifier. Raises RuntimeError when one is missing or of another shape."""
        missing = sorted(self.classifier.weights().keys() - weights.keys())
        result = self.classifier.load_state_dict(dict(weights), strict=False)
        if missing or result.unexpected_keys:
            raise RuntimeError(f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}")

    def facts(self) -> dict[str, Any]:
        """What the run started from and learned from."""
        return {"pretrained": self.started_from, "samples": self.samples_hash}

    def scale(self, name: str) -> float:
        """Learning rate of a parameter over the head's."""
        optim = self.recipe.optim
        return 1.0 if name.startswith("head.") else optim.model_lr / optim.head_lr

    def _workers(self) -> int:
        return 0 if self.recipe.model.freeze else self.recipe.data.workers


def run_finetuning(recipe: FinetuneRecipe, folder: Path) -> None:
    """One rank of a fine-tuning run, from wherever `folder` stands to its end.

    Args:
        recipe: with `model.pretrained` filled in.

    Raises:
        Stopped: a signal came; run the same again.
        MuError: anything the user must mend.
    """
    run, task = Run(folder), task_of(recipe)
    started_from = Run(find_run(recipe.model.pretrained))
    size = task.image_size(started_from)
    parts = plan_samples(recipe.data, task.shards, task.plugin, task.kind, size)  # before a folder is made
    accelerator = accelerator_of(recipe.train, folder)
    if world.is_main():
        with run.locked():
            _finetune(recipe, run, task, started_from, parts, accelerator)
    else:
        _finetune(recipe, run, task, started_from, parts, accelerator)


def _finetune(
    recipe: FinetuneRecipe, run: Run, task: Task, started_from: Run, parts: list[Part],
    accelerator: Accelerator,
) -> None:  # fmt: skip
    path, plugin = run.folder / SAMPLES, task.plugin
    if world.is_main():
        run.begin(recipe, {recipe.data.dataset: data_facts(task.shards)}, command_line())
        if not path.exists():
            write_text(path, json.dumps(choose_samples(parts, plugin.classes, recipe.data.workers), indent=1))
    world.barrier()
    samples = read_samples(path)
    trained = restore(started_from, accelerator.device)
    images = {part.role: open_samples(samples[part.role], part) for part in parts}
    sources: Mapping[str, Source] = images
    if recipe.model.freeze:
        sources = _features(trained, recipe, images)
    stage = Finetuning(recipe, task, trained, sources, sha256(path), accelerator.device)
    if world.is_main():
        train = samples["train"]
        click.echo(
            f"mu: {run.folder}: {train['n']:,} images of {recipe.data.dataset}/{train['split']} "
            f"({train['rule']}) from {started_from.folder}; {stage.steps:,} steps of "
            f"{recipe.train.global_batch} on {world.size()} {accelerator.device.type} "
            f"process{'es' if world.size() > 1 else ''}",
            err=True,
        )
    done = fit(stage, run, accelerator, stage.settings, recipe.optim.for_loop())
    accelerator.end_training()
    if world.is_main() and not done:
        click.echo(f"mu: {run.folder} is complete: {stage.steps:,} steps", err=True)
    _finish(recipe, run, stage, trained, samples)
    world.barrier()


def _features(
    trained: PretrainedRun, recipe: FinetuneRecipe, images: Mapping[str, LabelledImages]
) -> dict[str, LabelledFeatures]:
    """The queries of all samples, computed by the main rank unless they are cached."""
    made = {}
    for role, chosen in images.items():
        path = features_file(trained, chosen, recipe.data.dataset)
        if world.is_main():
            reader = Classifier(trained.model, nn.Identity(), freeze=True)
            compute_features(trained, reader, chosen, path, recipe.data.workers)
        world.barrier()
        made[role] = LabelledFeatures(chosen, read_features(path))
    return made


def _finish(
    recipe: FinetuneRecipe, run: Run, stage: Finetuning, trained: PretrainedRun, samples: Mapping[str, Any]
) -> None:
    """Keep the best epoch's weights under `best/`, and measure them on the held-out split, once."""
    best = run.folder / "best"
    stage.load(stage.best)
    if world.is_main() and store.steps(best) != [stage.best_step]:
        facts = {**stage.facts(), "metric": stage.task.metric, "value": stage.best_value}
        store.save(best, store.Checkpoint(stage.best_step, {"model": stage.best}, facts), keep=1)
    world.barrier()
    identity = store.identity(best, stage.best_step)
    epoch = stage.best_step * recipe.train.global_batch / len(stage.sources["train"])
    if world.is_main():
        click.echo(
            f"mu: {best}: step {stage.best_step:,} of {stage.steps:,} (epoch {epoch:.3g}), "
            f"validation {stage.task.metric} {stage.best_value:.3f}",
            err=True,
        )
    if "test" not in stage.sources:
        return
    metrics = _measured(run, recipe.data.dataset, identity)
    if metrics is None:
        logits = stage.predict(stage.sources["test"])
        if world.is_main():
            tuned = dataclasses.replace(trained, run=run, step=stage.best_step, identity=identity)
            pretrained = {"run": trained.run.folder.name, "step": trained.step, "hash": trained.identity}
            chosen = {"epoch": round(epoch, 2), "metric": stage.task.metric, "validation": stage.best_value}
            metrics = measure(
                tuned, recipe, stage.sources["test"], logits, stage.task.plugin.classes,
                {"samples": samples, "pretrained": pretrained, "best": chosen},
            )  # fmt: skip
    if world.is_main() and metrics is not None:
        n = len(stage.sources["test"])
        click.echo(
            f"{run.folder}, {recipe.data.dataset}/{recipe.data.test}, n = {n:,}, "
            f"trained on {samples['train']['n']:,}"
        )
        click.echo(table(metrics))


def _measured(run: Run, dataset: str, identity: str) -> list[Metric] | None:
    """The held-out result of these very weights, where there is one."""
    for result in read_results(run.results):
        same = result["task"] == TASK and result["dataset"] == dataset
        if same and result["checkpoint"]["hash"] == identity:
            return [Metric.from_json(metric) for metric in result["metrics"]]
    return None
