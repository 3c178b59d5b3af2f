"""Pre-train MedUnifier (paper, section 3): data, tokenizer, model and objectives as a stage of the loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medunifier_cli.checkpoint.best import Best, without_best
from medunifier_cli.checkpoint.contrast import PAIRS, free_keys, pairs_per_pass
from medunifier_cli.checkpoint.convert import load_start
from medunifier_cli.checkpoint.encoder.features import features_fact, open_features, refuse_other_encoder
from medunifier_cli.checkpoint.encoder.tower import load_tower
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.checkpoint.run_tokenizer import split_folder, tokenizer_of
from medunifier_cli.data.batch import to_device
from medunifier_cli.data.cached_features import SplitFeatures
from medunifier_cli.data.contract import Batch
from medunifier_cli.data.images.augment import Augmented
from medunifier_cli.data.loader import SplitSource, micro_batch_size, train_batches
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.subset import refuse_synthetic
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.distributed import draws, world
from medunifier_cli.distributed.agreement import Facts, agree, together
from medunifier_cli.errors import DataError, NoSplitError
from medunifier_cli.evaluate.pair_scores import CURVES
from medunifier_cli.evaluate.reports.reporting import trained_sections
from medunifier_cli.evaluate.reports.writer import Decoding, Writer, save_rows, write_first
from medunifier_cli.evaluate.results import show_measured
from medunifier_cli.evaluate.validation import Validation, score_of
from medunifier_cli.files import write_json
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.objectives.pretraining import (
    PretrainingLoss,
    active_objectives,
    build_model,
    leaves_weights_unused,
)
from medunifier_cli.objectives.without_data import loss_without_data
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run
from medunifier_cli.stages.heldout import evaluate
from medunifier_cli.stages.running import Begin, compiles_here, open_run, start_facts, train_stage
from medunifier_cli.terminal.say import say
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.stage import Values
from medunifier_cli.train.stop import Watch
from medunifier_cli.train.trackers.tracking import TEXTS

START_LIST = "start-weights.json"
"""File of a run that lists what became of each tensor that it started from."""


class Pretraining:
    """Pre-training as a stage of training; `train.stage.Stage` says what each method is for."""

    def __init__(
        self, recipe: PretrainRecipe, run: Run, train: SplitSource, valid: SplitSource | None,
        tokenizer: TextTokenizer, device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.train_split = recipe, train
        self.run, self.device, self.tokenizer = run, device, tokenizer
        # a frozen image encoder with random weights is not in the checkpoints: `restore` draws it again from
        # this seed, so nothing may draw between this line and the encoder
        torch.manual_seed(recipe.train.seed)
        encoder, self.frozen_hash = load_tower(recipe)
        model = build_model(recipe, tokenizer.size, encoder=encoder)
        refuse_other_encoder(train.features, self.frozen_hash)
        if train.features is not None:
            model.vit.leave_out()
        self.module = PretrainingLoss(model.to_device(device), tokenizer.dec_id)
        self.samples = "pairs"
        self.start_list = run.folder / START_LIST
        losses = (objective.name for objective in active_objectives(recipe))
        self.shown: tuple[str, ...] = ("total", *losses, *CURVES)
        settings = recipe.train
        self.steps = settings.steps or math.ceil(settings.epochs * len(train) / settings.global_batch)
        micro_batch = micro_batch_size(
            settings.global_batch, settings.micro_batch, world.size(), self.samples
        )
        self.best = Best(settings.patience)
        self.validation = Validation(recipe, valid, micro_batch, run.samples, device) if valid else None

    @property
    def model(self) -> MedUnifier:
        """The model that the objectives train."""
        return self.module.model

    def start(self) -> None:
        """Load the BERT that the image-text encoder starts from; a resumed run has it in its checkpoint.

        Here and not in `__init__`, so that a machine without the BERT files can resume and use a run.
        """
        if self.recipe.model.qformer.weights != "random":
            source = self.recipe.model.qformer.weights
            loaded = load_start(self.model, source)
            if world.is_main():
                say(f"{loaded.summary(f'model.qformer.weights: {source}')}; {self.start_list} lists them")
                write_json(self.start_list, loaded.as_json())

    def scale(self, name: str) -> float:
        """The generator's factor on the learning rate for its parameters, 1 for all others."""
        return self.recipe.model.generator.rate_scale if name.startswith("model.generator.") else 1.0

    def batches(self, first_step: int) -> Iterator[list[Batch]]:
        """Micro-batches of each step, on the device."""
        settings = self.recipe.train
        augment = self.recipe.data.augment
        source = Augmented(self.train_split, augment, settings.seed) if augment.any else self.train_split
        for step in train_batches(
            source, seed=settings.seed, first_step=first_step, steps=self.steps,
            global_batch=settings.global_batch, micro_batch=settings.micro_batch,
            rank=world.rank(), world=world.size(), workers=self.recipe.data.workers,
        ):  # fmt: skip
            yield [to_device(batch, self.device) for batch in step]

    def step(self, module: nn.Module, batch: Batch, step: int, micro: int) -> tuple[Values, Values]:
        """Losses and monitors of all objectives on one micro-batch."""
        # of (seed, step, micro-batch) alone: equal on all ranks, which must revive the same codes, and equal
        # in a resumed run
        revival = draws.generator(self.recipe.train.seed, draws.REVIVAL, step, micro)
        losses_and_monitors: tuple[Values, Values] = module(batch, revival)
        return losses_and_monitors

    def dry(self, batch: Batch) -> Tensor:
        """The loss of all objectives without data; ITM's negatives are any."""
        return loss_without_data(self.module, batch)

    def doubt(self, numbers: Mapping[str, float]) -> str:
        """What an objective's monitors say is going wrong."""
        doubts = (objective.doubt(numbers) for objective in active_objectives(self.recipe))
        return next(filter(None, doubts), "")

    def validate(self, step: int, watch: Watch = iter) -> Mapping[str, float]:
        """What `Validation` measures; keeps the weights if the recipe asks for the best and these are it."""
        if self.validation is None:
            return {}
        numbers = self.validation.measure(self.module, step, watch)
        if self.recipe.train.tracker_reports and world.is_main():
            self._write_reports(self.validation.source, step)
        if not (chosen := self.recipe.train.best):
            return numbers
        self.best.offer(score_of(numbers, chosen, self.device), step, self._weights())
        return numbers | ({"best": abs(self.best.value)} if self.best.step else {})

    def _write_reports(self, source: SplitSource, step: int) -> None:
        """Write reports of the first images, for the trackers; readable by those who may read the data."""
        recipe = self.recipe
        trained = PretrainedRun(self.run, recipe, self.tokenizer, self.model, self.device, step, identity="")
        writer = Writer(trained, Decoding("greedy"), trained_sections(trained))
        rows = write_first(writer, source, recipe.data.dataset, recipe.train.tracker_reports)
        save_rows(rows, self.run.samples / TEXTS.format(step), texts_of=split_folder(recipe))

    def over(self) -> str:
        """Why training ends before the last step, if the validations have stopped to get better."""
        return self.best.over(self.recipe.train.best)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All weights and buffers except those of a frozen image encoder, whose hash is in `facts`; and, if
        the recipe asks for them, those of the best validation."""
        return {**self._weights(), **(self.best.tensors() if self.recipe.train.best else {})}

    def _weights(self) -> dict[str, Tensor]:
        # 2 GB of bf16 for ViT-g, the same in every checkpoint
        state = self.model.state_dict()
        frozen = {f"vit.vit.{name}" for name, _ in self.model.vit.frozen_tensors()}
        return {name: tensor for name, tensor in state.items() if name not in frozen}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that `checkpoint_tensors` returned.

        Raises:
            RuntimeError: names or shapes differ.
            KeyError: the recipe asks for the best validation, and there is no record of it.
        """
        if self.recipe.train.best:
            self.best.load(tensors)
        result = self.model.load_state_dict(without_best(tensors), strict=False)
        missing = [name for name in result.missing_keys if name in self._weights()]
        if missing or result.unexpected_keys:
            raise RuntimeError(f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}")

    def facts(self) -> dict[str, Any]:
        """Hashes of the tokenizer and of the frozen image encoder: a resumed run must have the same ones."""
        vit = self.recipe.model.vit
        source = f"{vit.name} {vit.weights}" + (
            f" seed {self.recipe.train.seed}" if vit.weights == "random" else ""
        )
        frozen = {"frozen_source": source, "frozen_hash": self.frozen_hash} if vit.frozen else {}
        return {"tokenizer": self.tokenizer.fingerprint, **frozen}


def open_split(
    recipe: PretrainRecipe, split: str, tokenizer: TextTokenizer, need_text: bool = True
) -> SplitSource:
    """A split of the recipe's shards, with its texts as the recipe composes them."""
    plugin = prepared_dataset(recipe.data.dataset, recipe.data.shards)
    shards = Shards.open(split_folder(recipe), split)
    return SplitSource(shards, tokenizer, recipe.data, recipe.text, plugin, need_text=need_text)


def run_pretraining(recipe: PretrainRecipe, folder: Path) -> None:
    """One rank of a pre-training run: start it, or resume it from its last checkpoint, and measure it.

    Raises:
        Stopped: a signal came; the same command resumes.
        MuError: what the user has to mend.
    """
    run, shards = Run(folder), split_folder(recipe)
    accelerator = accelerator_of(recipe.train, folder, leaves_weights_unused(recipe))
    compiles = compiles_here(recipe.train, accelerator.device)
    hashes, features = agree(lambda: _check_start(recipe, shards))

    def begin() -> Begin:
        pairs = pairs_per_pass(recipe, world.size())
        # scores of other pairs cannot be compared, which only the choice of the best weights minds
        free = () if recipe.train.best else ("train.valid_pairs",)
        facts = {"ranks": world.size(), PAIRS: pairs, "compiled": compiles, **features_fact(features)}
        return Begin(free_keys(run, recipe) + free, facts)

    with open_run(run, recipe, recipe.data.dataset, shards, hashes, begin):
        tokenizer = tokenizer_of(recipe, run)
        # the held-out split too: one without any text is found now, not when the training is done
        splits = {
            split: open_split(recipe, split, tokenizer).with_features(
                features[split], images=bool(recipe.objectives.tig)
            )
            for split in filter(None, (recipe.data.train, recipe.data.valid, recipe.data.test))
        }
        train = splits[recipe.data.train]
        valid = splits[recipe.data.valid] if recipe.data.valid else None
        stage = Pretraining(recipe, run, train, valid, tokenizer, accelerator.device)
        skipped = f", {train.excluded:,} without text skipped" if train.excluded else ""
        pairs = pairs_per_pass(recipe, world.size())
        contrast = f", contrast within {pairs:,} pairs" if pairs else ""
        if train.features is not None:
            contrast += f", cached features of {train.features.folder}"
        subject = f"{len(train):,} pairs of {recipe.data.dataset}/{recipe.data.train}{skipped}{contrast}"
        train_stage(stage, run, accelerator, recipe.train, recipe.optim, subject, compiles)
        if recipe.data.test:
            _measure(recipe, run, train, splits[recipe.data.test], accelerator.device)


def _check_start(
    recipe: PretrainRecipe, shards: Path
) -> tuple[tuple[dict[str, str], dict[str, SplitFeatures | None]], Facts]:
    """Check that the splits are there, before there is a run folder; their hashes, and what must be alike.

    Returns:
        Hash and cached features of each split; and facts that all ranks must share.

    Raises:
        DataError: a split is missing or empty, or has no cached features where the recipe wants them.
    """
    hashes, features = {}, {}
    data = recipe.data
    for key, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        if not split:
            continue
        if key != "train":
            refuse_synthetic(shards, split, f"data.{key}")
        try:
            opened = Shards.open(shards, split)
        except NoSplitError as error:
            none = "" if key == "train" else f", or none with -o data.{key}="
            raise DataError(f"{error}; name another with -o data.{key}=SPLIT{none}") from None
        if not len(opened):
            raise DataError(
                f"{shards}: split {split} has no samples; prepare it, or name another in the recipe"
            )
        hashes[split] = opened.fingerprint
        features[split] = open_features(data.features, data.dataset, recipe, opened)
    return (hashes, features), start_facts(recipe, hashes)


def _measure(
    recipe: PretrainRecipe, run: Run, train: SplitSource, heldout: SplitSource, device: torch.device
) -> None:
    """Measure the last checkpoint on the held-out split: a result file, a picture, and a table on stdout.

    All ranks share the work: one alone would take minutes in which the others do nothing.
    """
    # what was saved, not what is in memory: this also proves that it loads
    trained = together(lambda: restore(run, device))
    metrics = evaluate(trained, train, heldout, recipe.data.test, split_folder(recipe))
    if metrics and world.is_main():
        where = f"{recipe.data.dataset}/{recipe.data.test}"
        show_measured(f"{run.folder}, {where}, n = {len(heldout):,}", metrics)
