"""Fine-tune a pre-trained model for classification (paper, section 4): model, head and labels as a stage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.best import Best
from medunifier_cli.checkpoint.classifier import build_classifier
from medunifier_cli.checkpoint.encoder.features import features_fact, open_features
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.data.cached_features import SplitFeatures
from medunifier_cli.data.labels.labelled import Labelled, LabelledFeatures, LabelledImages, counts
from medunifier_cli.data.labels.mixed import Mixed
from medunifier_cli.data.labels.samples import (
    EXTRA,
    SAMPLES,
    Part,
    choose_samples,
    open_samples,
    plan_samples,
    read_samples,
)
from medunifier_cli.data.loader import eval_batches, train_batches
from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import Facts, agree, together
from medunifier_cli.evaluate.results import Metric, read_results, show_measured
from medunifier_cli.files import sha256, write_text
from medunifier_cli.model.precision import measuring
from medunifier_cli.objectives.classify import balanced, classification_loss
from medunifier_cli.objectives.without_data import without_data
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.provenance import data_facts
from medunifier_cli.run.record import Run
from medunifier_cli.scores.classification import probabilities
from medunifier_cli.stages.features import features_of
from medunifier_cli.stages.finetune_results import TASK, measure, scores_of
from medunifier_cli.stages.finetune_task import Task, resolve_task
from medunifier_cli.stages.running import Begin, compiles_here, open_run, start_facts, train_stage
from medunifier_cli.terminal.say import say
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.stage import Values
from medunifier_cli.train.stop import Watch

Source = LabelledImages | LabelledFeatures | Mixed
Features = Mapping[str, SplitFeatures | None]
"""Cached features of the image encoder by role."""

EVAL_BATCH = 64
"""Images per rank and pass in evaluation; changes no result."""


class Finetuning:
    """Fine-tuning as a stage of training; `train.stage.Stage` says what each method is for.

    Args:
        sources: `train` and `valid`, and `test` where there is one.
        samples_hash: SHA-256 of `samples.json`: a run resumes only on the samples it was started with.
    """

    def __init__(
        self, recipe: FinetuneRecipe, task: Task, trained: PretrainedRun, sources: Mapping[str, Source],
        samples_hash: str, device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.task, self.sources, self.device = recipe, task, sources, device
        self.pretrained_hash, self.samples_hash = trained.identity, samples_hash
        classes = task.plugin.classes
        self.module = build_classifier(recipe, trained, len(classes)).to(device)
        self.settings = recipe.train.for_loop(len(sources["train"]))
        self.steps = self.settings.steps
        self.weight_2C: Tensor | None = None
        if recipe.model.balance:
            frequency = counts(sources["train"].target, len(classes))
            self.weight_2C = balanced(frequency, task.kind == "one").to(device)
        self.samples = "images"
        self.shown: tuple[str, ...] = ("total", "accuracy", "auroc")
        self.best = Best(recipe.train.patience)

    def start(self) -> None:
        """Nothing to load: `__init__` got the pre-trained model, and a new head starts at random."""

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

    def dry(self, batch: Labelled) -> Tensor:
        """The loss without data, and without the weights of classes."""
        empty = without_data(batch)
        return classification_loss(without_data(self.module)(empty.input), empty.target)[0]["total"]

    def doubt(self, numbers: Mapping[str, float]) -> str:
        """Nothing: no number of this stage shows within a hundred steps that training fails."""
        return ""

    def validate(self, step: int, watch: Watch = iter) -> Mapping[str, float]:
        """Scores of the validation split; keeps the weights if the headline metric is the best so far."""
        logits = self.predict(self.sources["valid"], watch)
        target = self.sources["valid"].target
        scores_nC = probabilities(logits, self.task.kind == "one")
        scores = scores_of(target, scores_nC, self.task.plugin.classes).scores
        self.best.offer(scores[self.task.metric], step, self.module.weights())
        # without the class weights of training, so that the losses of recipes can be compared
        losses, _ = classification_loss(
            torch.from_numpy(logits).to(self.device), torch.from_numpy(np.asarray(target)).to(self.device)
        )
        return {"total": float(losses["total"]), **scores, "best": self.best.value}

    def over(self) -> str:
        """Why training ends before the last epoch, if the validations have stopped to get better."""
        return self.best.over(self.task.metric)

    def predict(self, source: Source, watch: Watch = iter) -> NDArray[np.float32]:
        """Logits of every sample in order, [n, C], on every rank; evaluation mode, no mixed precision.

        Args:
            watch: what the batches go through, so that a signal ends a validation.
        """
        self.module.eval()
        parts = []
        # ranks take turns at stretches of EVAL_BATCH, so that rows gathered rank after rank are in order; the
        # last batch is filled up with repeats, which the final cut removes
        with measuring():
            for batch, _ in watch(
                eval_batches(
                    source, batch_size=EVAL_BATCH, rank=world.rank(), world=world.size(),
                    workers=self._workers(),
                )
            ):  # fmt: skip
                logits = self.module(batch.to(self.device).input)
                parts.append(world.gather(logits.float()).cpu())
        return np.asarray(torch.cat(parts)[: len(source)].numpy(), np.float32)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Weights that fine-tuning changes, as they are and as they were in the best epoch, and its score."""
        return {**self.module.weights(), **self.best.tensors()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that `checkpoint_tensors` returned.

        Raises:
            RuntimeError: names or shapes differ.
            KeyError: there is no best epoch.
        """
        self.best.load(tensors)
        self.load({name: tensor for name, tensor in tensors.items() if name in self.module.weights()})

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights that fine-tuning changes.

        Raises:
            RuntimeError: one is missing or of another shape.
        """
        missing = sorted(self.module.weights().keys() - weights.keys())
        result = self.module.load_state_dict(dict(weights), strict=False)
        if missing or result.unexpected_keys:
            raise RuntimeError(f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}")

    def facts(self) -> dict[str, Any]:
        """Hashes of the pre-trained checkpoint and of `samples.json`: a resumed run must have the same."""
        return {"pretrained": self.pretrained_hash, "samples": self.samples_hash}

    def scale(self, name: str) -> float:
        """Learning rate of a parameter relative to the head's, which is the loop's."""
        optim = self.recipe.optim
        return 1.0 if name.startswith("head.") else optim.model_lr / optim.head_lr

    def _workers(self) -> int:
        # features come from a memory-mapped file, with nothing to decode
        return 0 if self.recipe.model.freeze else self.recipe.data.workers


def run_finetuning(recipe: FinetuneRecipe, folder: Path) -> None:
    """One rank of a fine-tuning run: start it, or resume it from its last checkpoint, and measure it.

    Args:
        recipe: with `model.pretrained` filled in.

    Raises:
        Stopped: a signal came; the same command resumes.
        MuError: what the user has to mend.
    """
    run = Run(folder)
    accelerator = accelerator_of(recipe.train, folder)
    # a frozen model is not part of a step: its queries are computed once
    compiles = not recipe.model.freeze and compiles_here(recipe.train, accelerator.device)

    def check_start() -> tuple[tuple[Task, PretrainedRun, list[Part], Features], Facts]:
        task, pretrained = resolve_task(recipe), Run(find_run(recipe.model.pretrained))
        # a split without labels or classes is an error before there is a run folder
        size = task.image_size(pretrained)
        parts = plan_samples(recipe.data, task.shards, task.plugin, task.kind, size, task.extra)
        trained = restore(pretrained, accelerator.device)
        shards = {part.role: part.images.shards.fingerprint for part in parts}
        facts = start_facts(recipe, shards, the_pretrained_model=trained.identity)
        setting, dataset = recipe.data.features, recipe.data.dataset
        features = {
            part.role: open_features(setting, dataset, trained.recipe, part.images.shards, trained.encoder)
            for part in parts
        }
        return (task, trained, parts, features), facts

    task, trained, parts, features = agree(check_start)
    of = {part.role: {part.images.shards.split: part.images.shards.fingerprint} for part in parts}
    splits = {split: value for part in parts if not part.extra for split, value in of[part.role].items()}
    extra = {p.extra: data_facts(p.images.folder, of[p.role]) for p in parts if p.extra}
    facts = {"compiled": compiles, **({"extra": extra} if extra else {}), **features_fact(features)}
    with open_run(run, recipe, recipe.data.dataset, task.shards, splits, lambda: Begin(facts=facts)):
        samples = _samples(recipe, run, task, parts)
        images = {
            part.role: open_samples(samples[part.role], part).with_features(features.get(part.role))
            for part in parts
        }
        inputs: Mapping[str, LabelledImages | LabelledFeatures] = images
        if recipe.model.freeze:
            names = {part.role: part.extra or recipe.data.dataset for part in parts}
            inputs = features_of(trained, images, names, run, recipe.data.workers)
        sources: dict[str, Source] = dict(inputs)
        more = [source for role, source in inputs.items() if role.startswith(EXTRA)]
        if more:
            sources["train"] = Mixed([inputs["train"], *more])
        samples_hash = sha256(run.folder / SAMPLES)
        stage = Finetuning(recipe, task, trained, sources, samples_hash, accelerator.device)
        train = samples["train"]
        subject = (
            f"{train['n']:,} images of {recipe.data.dataset}/{train['split']} ({train['rule']})"
            f"{_added(samples)} from {trained.run.folder}"
        )
        train_stage(stage, run, accelerator, stage.settings, recipe.optim.for_loop(), subject, compiles)
        _finish(recipe, run, stage, trained, samples)


def _samples(recipe: FinetuneRecipe, run: Run, task: Task, parts: list[Part]) -> Mapping[str, Any]:
    """The content of the run's `samples.json`: chosen at the first start, and the same ever after."""
    path = run.folder / SAMPLES

    def choose() -> None:
        if world.is_main() and not path.exists():
            samples = choose_samples(parts, task.plugin.classes, recipe.data.workers)
            write_text(path, json.dumps(samples, indent=1))

    together(choose)
    return read_samples(path)


def _finish(
    recipe: FinetuneRecipe, run: Run, stage: Finetuning, trained: PretrainedRun, samples: Mapping[str, Any]
) -> None:
    """Save the best epoch's weights under `best/`, and measure them on the held-out split, once."""
    best = run.folder / "best"
    stage.load(stage.best.weights)
    if world.is_main() and store.steps(best) != [stage.best.step]:
        facts = {**stage.facts(), "metric": stage.task.metric, "value": stage.best.value}
        store.save(best, store.Checkpoint(stage.best.step, {"model": stage.best.weights}, facts), keep=1)
    world.barrier()
    identity = store.identity(best, stage.best.step)
    epoch = stage.best.step * recipe.train.global_batch / len(stage.sources["train"])
    if world.is_main():
        say(
            f"{best}: step {stage.best.step:,} of {stage.steps:,} (epoch {epoch:.3g}), "
            f"validation {stage.task.metric} {stage.best.value:.3f}"
        )
    if "test" not in stage.sources:
        return
    # once: looking again after a change of mind is how a test split turns into a validation split
    metrics = _earlier_result(run, recipe.data.dataset, identity)
    if metrics is None:
        test = stage.sources["test"]
        assert not isinstance(test, Mixed)  # nothing is added to what is held out
        logits = stage.predict(test)
        if world.is_main():
            tuned = dataclasses.replace(trained, run=run, step=stage.best.step, identity=identity)
            pretrained = {"run": trained.run.folder.name, "step": trained.step, "hash": trained.identity}
            kept = {"epoch": round(epoch, 2), "metric": stage.task.metric, "validation": stage.best.value}
            metrics = measure(
                tuned, recipe, test, logits, stage.task.plugin.classes,
                {"samples": samples, "pretrained": pretrained, "best": kept},
            )  # fmt: skip
    if world.is_main() and metrics is not None:
        n = len(stage.sources["test"])
        show_measured(
            f"{run.folder}, {recipe.data.dataset}/{recipe.data.test}, n = {n:,}, "
            f"trained on {samples['train']['n']:,}{_added(samples)}",
            metrics,
        )


def _added(samples: Mapping[str, Any]) -> str:
    """` and 40 of NAME` for each data set that added samples."""
    extra = [role for role in samples if role.startswith(EXTRA)]
    return "".join(f" and {samples[role]['n']:,} of {role.removeprefix(EXTRA)}" for role in extra)


def _earlier_result(run: Run, dataset: str, identity: str) -> list[Metric] | None:
    """The held-out result of the weights with the hash `identity`; None if they were not measured yet."""
    for result in read_results(run.results):
        same = result["task"] == TASK and result["dataset"] == dataset
        if same and result.get("checkpoint", {}).get("hash") == identity:
            return [Metric.from_json(metric) for metric in result["metrics"]]
    return None
