"""Pre-training: data, tokenizer, model and objectives brought together for the loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.convert import load_bert
from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.data.batch import first_pairs, to_device
from medunifier_cli.data.contract import Batch
from medunifier_cli.data.loader import SplitSource, eval_batches, micro_batch_size, train_batches
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.token_table import texts_of
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.distributed import draws, world
from medunifier_cli.evaluate.results import table
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.pretraining import (
    PretrainingLoss,
    active_objectives,
    build_model,
    leaves_weights_unused,
)
from medunifier_cli.page.pictures import save_pairs
from medunifier_cli.plugin_index import load_dataset
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.provenance import command_line, data_facts
from medunifier_cli.run.record import Run
from medunifier_cli.stages.heldout import evaluate
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.loop import Values, fit

SHOWN_PAIRS = 8
"""Images in the reconstruction picture of a validation."""


class Pretraining:
    """The stage: what `loop.fit` asks for, for the four objectives."""

    def __init__(
        self, recipe: PretrainRecipe, run: Run, train: SplitSource, valid: SplitSource | None,
        tokenizer: TextTokenizer, device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.run, self.train_split, self.valid_split = recipe, run, train, valid
        self.device = device
        torch.manual_seed(recipe.train.seed)
        model = build_model(recipe, tokenizer.size)
        self.frozen_hash = store.tensors_hash(dict(model.vit.frozen_tensors()))
        self.module: nn.Module = PretrainingLoss(model.to_device(device), tokenizer.dec_id)
        self.objectives = self.module
        self.samples = "pairs"
        self.shown: tuple[str, ...] = ("total", *(objective.name for objective in active_objectives(recipe)))
        settings = recipe.train
        self.steps = settings.steps or math.ceil(settings.epochs * len(train) / settings.global_batch)
        self.micro = micro_batch_size(settings.global_batch, settings.micro_batch, world.size())

    @property
    def model(self) -> MedUnifier:
        """The model inside the objectives, whatever they are wrapped in."""
        assert isinstance(self.objectives, PretrainingLoss)
        return self.objectives.model

    def start(self) -> None:
        """Load the BERT that the image-text encoder starts from; a resumed run has it in its checkpoint."""
        if self.recipe.model.qformer.weights != "random":
            load_bert(self.model, self.recipe.model.qformer.weights)

    def scale(self, name: str) -> float:
        """Factor on the learning rate of a parameter."""
        return self.recipe.model.generator.rate_scale if name.startswith("model.generator.") else 1.0

    def batches(self, first_step: int) -> Iterator[list[Batch]]:
        """Micro-batches of each step, on the device."""
        settings = self.recipe.train
        for step in train_batches(
            self.train_split, seed=settings.seed, first_step=first_step, steps=self.steps,
            global_batch=settings.global_batch, micro_batch=settings.micro_batch,
            rank=world.rank(), world=world.size(), workers=self.recipe.data.workers,
        ):  # fmt: skip
            yield [to_device(batch, self.device) for batch in step]

    def step(self, module: nn.Module, batch: Batch, step: int, micro: int) -> tuple[Values, Values]:
        """All objectives of one micro-batch."""
        revival = draws.generator(self.recipe.train.seed, draws.REVIVAL, step, micro)
        out: tuple[Values, Values] = module(batch, revival)
        return out

    def validate(self, step: int) -> Mapping[str, float]:
        """Losses and monitors averaged over whole batches of the validation split.

        The last, incomplete batch is left out: in-batch losses depend on the size of the batch.
        """
        if self.valid_split is None:
            return {}
        sums: dict[str, float] = {}
        whole = max(1, len(self.valid_split) // (self.micro * world.size()))
        count = min(whole, self.recipe.train.valid_batches or whole)
        batches = eval_batches(
            self.valid_split, batch_size=self.micro, rank=world.rank(), world=world.size(),
            workers=0, batches=count,
        )  # fmt: skip
        for number, (batch, _) in enumerate(batches):
            batch = to_device(batch, self.device)
            losses, monitors = self.objectives(batch)
            values = {**losses, **monitors}
            means = world.mean(torch.stack([value.float() for value in values.values()])).tolist()
            for name, value in zip(values, means, strict=True):
                sums[name] = sums.get(name, 0.0) + value / count
            if number == 0 and world.is_main() and self.recipe.objectives.tig:
                self._show(batch, step)
        return sums

    def _show(self, batch: Batch, step: int) -> None:
        few = first_pairs(batch, SHOWN_PAIRS)
        made = self.model.reconstruct(few)
        save_pairs(
            pixels(few.image_B1HW), made.image_BCHW, self.run.samples / f"reconstructions-step-{step:08d}.png"
        )

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All weights and buffers but those of a frozen image encoder."""
        state = self.model.state_dict()
        frozen = {f"vit.vit.{name}" for name, _ in self.model.vit.frozen_tensors()}
        return {name: tensor for name, tensor in state.items() if name not in frozen}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError when names or shapes differ."""
        result = self.model.load_state_dict(dict(tensors), strict=False)
        missing = [name for name in result.missing_keys if name in self.checkpoint_tensors()]
        if missing or result.unexpected_keys:
            raise RuntimeError(f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}")

    def facts(self) -> dict[str, Any]:
        """Where frozen weights came from and what they were."""
        vit = self.recipe.model.vit
        source = f"{vit.name} {vit.weights}" + (
            f" seed {self.recipe.train.seed}" if vit.weights == "random" else ""
        )
        return {"frozen_source": source, "frozen_hash": self.frozen_hash} if vit.frozen else {}


def open_split(
    recipe: PretrainRecipe, split: str, tokenizer: TextTokenizer, need_text: bool = True
) -> SplitSource:
    """A split of the recipe's shards with the recipe's texts."""
    plugin = load_dataset(recipe.data.dataset)
    shards = Shards.open(split_folder(recipe), split)
    return SplitSource(shards, tokenizer, recipe.data, recipe.text, plugin, need_text=need_text)


def split_folder(recipe: PretrainRecipe) -> Path:
    """Where the recipe's shards lie."""
    return Path(recipe.data.shards) if recipe.data.shards else shards_folder(recipe.data.dataset)


def tokenizer_of(recipe: PretrainRecipe, run: Run) -> TextTokenizer:
    """The run's tokenizer: kept in its folder from the first start on, where nothing can move it."""
    if not (run.tokenizer / "vocab.txt").exists() and world.is_main():
        if recipe.text.tokenizer == "train":
            plugin = load_dataset(recipe.data.dataset)
            shards = Shards.open(split_folder(recipe), recipe.data.train)
            sections = recipe.data.sections or plugin.text_sections
            texts = texts_of(shards, sections, recipe.data, recipe.text)
            made = TextTokenizer.train(texts, recipe.text.vocabulary)
        else:
            made = TextTokenizer.load(recipe.text.tokenizer)
        made.save(run.tokenizer)
    world.barrier()
    return TextTokenizer.load(str(run.tokenizer))


def run_pretraining(recipe: PretrainRecipe, folder: Path) -> None:
    """One rank of a pre-training run, from wherever `folder` stands to its end.

    Raises:
        Stopped: a signal came; run the same again.
        MuError: anything the user must mend.
    """
    run = Run(folder)
    for split in filter(None, (recipe.data.train, recipe.data.valid, recipe.data.test)):
        Shards.open(split_folder(recipe), split)  # before a run folder is made for nothing
    accelerator = accelerator_of(recipe.train, folder, leaves_weights_unused(recipe))
    if world.is_main():
        with run.locked():
            _pretrain(recipe, run, accelerator)
    else:
        _pretrain(recipe, run, accelerator)


def _pretrain(recipe: PretrainRecipe, run: Run, accelerator: Accelerator) -> None:
    if world.is_main():
        run.begin(recipe, {recipe.data.dataset: data_facts(split_folder(recipe))}, command_line())
    world.barrier()
    tokenizer = tokenizer_of(recipe, run)
    train = open_split(recipe, recipe.data.train, tokenizer)
    valid = open_split(recipe, recipe.data.valid, tokenizer) if recipe.data.valid else None
    stage = Pretraining(recipe, run, train, valid, tokenizer, accelerator.device)
    if world.is_main():
        left_out = f", {train.excluded:,} without text left out" if train.excluded else ""
        click.echo(
            f"mu: {run.folder}: {len(train):,} pairs of {recipe.data.dataset}/{recipe.data.train}{left_out}; "
            f"{stage.steps:,} steps of {recipe.train.global_batch} on {world.size()} "
            f"{accelerator.device.type} process{'es' if world.size() > 1 else ''}",
            err=True,
        )
    done = fit(stage, run, accelerator, recipe.train, recipe.optim)
    accelerator.end_training()
    if world.is_main():
        if not done:
            click.echo(f"mu: {run.folder} is complete: {stage.steps:,} steps", err=True)
        if recipe.data.test:
            _measure(recipe, run, train, tokenizer)
    world.barrier()


def _measure(recipe: PretrainRecipe, run: Run, train: SplitSource, tokenizer: TextTokenizer) -> None:
    """The last checkpoint on the held-out split: results file, picture, and a table on stdout."""
    trained = restore(run)
    heldout = open_split(recipe, recipe.data.test, tokenizer)
    metrics = evaluate(trained, train, heldout, recipe.data.test, split_folder(recipe))
    if metrics:
        click.echo(f"{run.folder}, {recipe.data.dataset}/{recipe.data.test}, n = {len(heldout):,}")
        click.echo(table(metrics))
