"""Fit the priors (paper, section 4.2): encode images to codes once, then train both levels as a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.encoder.features import features_fact
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.checkpoint.priors import build_prior
from medunifier_cli.data.loader import micro_batch_size
from medunifier_cli.data.order import SampleOrder
from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import Facts, agree
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.results import Result, show_measured
from medunifier_cli.objectives.without_data import without_data
from medunifier_cli.prior.baseline import Baseline, baseline, refuse_collapsed
from medunifier_cli.prior.contract import CodeBatch
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run
from medunifier_cli.stages.codes import (
    Codes,
    check_codes,
    encode_splits,
    made_of,
    open_splits,
    read_codes,
    say_texts,
    split_hash,
)
from medunifier_cli.stages.priors.batches import CodeBatches
from medunifier_cli.stages.priors.metrics import LEVELS, OF_ANY_ORDER, metrics_of
from medunifier_cli.stages.running import Begin, open_run, start_facts, train_stage
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.stage import Values
from medunifier_cli.train.stop import Watch

CODES = "codes.h5"
CURVES = {
    "total": "Loss, both priors",
    **{level: f"Loss of the {level} prior, nats per code" for level in LEVELS},
    **{f"{level}_accuracy": f"Accuracy of the {level} prior" for level in LEVELS},
    "lr": "Learning rate",
}
"""Numbers of the log that get a curve on the run's page: name -> heading."""


class PriorFitting:
    """Fitting both priors as a stage of training; `train.stage.Stage` says what each method is for."""

    def __init__(
        self, recipe: PriorRecipe, trained: PretrainedRun, train: Codes, valid: Codes | None,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.train.seed)
        self.module = build_prior(recipe, trained).to(device)
        self.train_codes = CodeBatches(recipe, trained, self.module, train)
        self.valid_codes = CodeBatches(recipe, trained, self.module, valid) if valid is not None else None
        self.samples = "maps"
        self.shown: tuple[str, ...] = ("total", *LEVELS)
        self.pretrained_hash, self.codes_hash = trained.identity, split_hash(train)
        settings = recipe.train
        self.steps = settings.steps or ceil(settings.epochs * len(train) / settings.global_batch)
        self.micro_batch = micro_batch_size(
            settings.global_batch, settings.micro_batch, world.size(), self.samples
        )

    def start(self) -> None:
        """Random weights; what a prior takes from the training codes before its first step."""
        codes = self.train_codes.codes
        self.module.prepare(*(torch.from_numpy(maps.astype(np.int64)) for maps in maps_of(codes)))

    def scale(self, name: str) -> float:
        """1: both priors share one learning rate."""
        return 1.0

    def batches(self, first_step: int) -> Iterator[list[CodeBatch]]:
        """This rank's micro-batches of each step: consecutive positions of the endless shuffled order.

        As `data.loader.train_batches` cuts it, but without its processes: the codes are in memory.
        """
        settings = self.recipe.train
        order = SampleOrder(len(self.train_codes.codes), settings.seed)
        samples_per_pass = self.micro_batch * world.size()
        for step in range(first_step, self.steps):
            starts = range(step * settings.global_batch, (step + 1) * settings.global_batch, samples_per_pass)
            yield [self._train_batch(order, start + world.rank() * self.micro_batch) for start in starts]

    def _train_batch(self, order: SampleOrder, start: int) -> CodeBatch:
        positions = range(start, start + self.micro_batch)
        return self.train_codes.training(order.indices(positions.start, positions.stop), positions)

    def step(self, module: nn.Module, batch: CodeBatch, step: int, micro: int) -> tuple[Values, Values]:
        """Nats per code and accuracy of one micro-batch."""
        return module(batch)  # type: ignore[no-any-return]

    def dry(self, batch: CodeBatch) -> Tensor:
        """Nats per code without data."""
        return without_data(self.module)(without_data(batch))[0]["total"]  # type: ignore[no-any-return]

    def doubt(self, numbers: Mapping[str, float]) -> str:
        """Nothing: no number of this stage shows within a hundred steps that training fails."""
        return ""

    def over(self) -> str:
        """Never: priors train to their last step."""
        return ""

    def validate(self, step: int, watch: Watch = iter) -> Mapping[str, float]:
        """Held-out nats per code and accuracy of both levels; empty without a validation split."""
        if self.valid_codes is None:
            return {}
        return self.measure(self.valid_codes, self.recipe.train.valid_batches, watch=watch)

    def measure(
        self, split: CodeBatches, batches: int = 0, without_text: bool = False, watch: Watch = iter
    ) -> dict[str, float]:
        """Nats per code and accuracy of both levels over a split, the same on every rank.

        Args:
            batches: stop after this number of batches; 0 for the whole split.
            without_text: drop every text; otherwise each map is measured with its whole text.
            watch: see `train.stop.TrainingStop.watch`.
        """
        codes, per_pass = split.codes, self.micro_batch * world.size()
        n = min(len(codes), batches * per_pass) if batches else len(codes)
        total = torch.zeros(2, 2, dtype=torch.float64, device=self.device)
        # as `data.loader.eval_batches`: passes of one size on all ranks, with rows past the end that repeat
        # the last map and are masked out of the sums
        end = ceil(n / per_pass) * per_pass
        for start in watch(range(world.rank() * self.micro_batch, end, per_pass)):
            positions = np.arange(start, start + self.micro_batch)
            batch = split.held_out(np.minimum(positions, n - 1), without_text)
            total += self.module.sums(batch, torch.from_numpy(positions < n).to(self.device))
        total = world.all_sum(total).cpu()
        numbers = {}
        for row, (level, maps) in enumerate(zip(LEVELS, maps_of(codes), strict=True)):
            count = n * maps[0].size
            numbers[level] = float(total[row, 0]) / count
            numbers[f"{level}_accuracy"] = float(total[row, 1]) / count
        numbers["total"] = numbers["top"] + numbers["bottom"]
        return numbers

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All weights and buffers."""
        return dict(self.module.state_dict())

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that `checkpoint_tensors` returned.

        Raises:
            RuntimeError: names or shapes differ.
        """
        self.module.load_state_dict(dict(tensors))

    def facts(self) -> dict[str, Any]:
        """Hashes of the pre-trained checkpoint and of the codes: a resumed run must have the same."""
        return {"pretrained": self.pretrained_hash, "codes": self.codes_hash}


def run_fitting(recipe: PriorRecipe, folder: Path) -> None:
    """One rank of a run of priors: start it, or resume it from its last checkpoint, and measure it.

    Args:
        recipe: with `prior.pretrained` filled in.

    Raises:
        Stopped: a signal came; the same command resumes.
        MuError: what the user has to mend.
    """
    run = Run(folder)
    accelerator = accelerator_of(recipe.train, folder)
    trained, train, valid = agree(lambda: _check_start(recipe, accelerator.device))
    parts = [split for split in (train, valid) if split is not None]
    splits = {part.split: part.source.shards.fingerprint for part in parts}
    read = features_fact({part.split: part.source.features for part in parts})
    with open_run(run, recipe, train.plugin.name, train.shards, splits, lambda: Begin(facts=read)):
        say_texts(train)
        codes = _codes(recipe, run, trained, parts)
        train_codes, valid_codes = codes[train.split], codes[valid.split] if valid is not None else None
        # before the hours of fitting: priors on codes that are the same for every image learn nothing
        baselines = _baselines(train_codes, valid_codes or train_codes, trained)
        stage = PriorFitting(recipe, trained, train_codes, valid_codes, accelerator.device)
        shapes = " and ".join(f"{m.shape[1]}x{m.shape[2]}" for m in maps_of(train_codes))
        of = f" of {recipe.data.dataset}" if recipe.data.dataset else ""
        subject = f"{len(train_codes):,} maps of {shapes} codes{of} from {trained.run.folder}, condition "
        subject += recipe.prior.condition
        if recipe.prior.kind != "pixelsnail":
            subject += f", kind {recipe.prior.kind}"
        train_stage(stage, run, accelerator, recipe.train, recipe.optim, subject)
        if valid is not None and valid_codes is not None:
            _measure(stage, run, trained, valid, baselines)


def _check_start(
    recipe: PriorRecipe, device: torch.device
) -> tuple[tuple[PretrainedRun, Benchmark, Benchmark | None], Facts]:
    """The pre-trained model and the splits, and what all ranks must agree on."""
    trained = restore(Run(find_run(recipe.prior.pretrained)), device)
    check_codes(trained.recipe, trained.run.folder)
    train, valid = open_splits(recipe, trained)
    shards = {part.split: part.source.shards.fingerprint for part in (train, valid) if part is not None}
    return (trained, train, valid), start_facts(recipe, shards, the_pretrained_model=trained.identity)


def maps_of(codes: Codes) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Top and bottom maps of a split, in the order of `LEVELS`."""
    return codes.top_nTT, codes.bottom_nGG


def _baselines(train: Codes, heldout: Codes, trained: PretrainedRun) -> dict[str, Baseline]:
    """What no prior at all reaches, for each level.

    Raises:
        CheckpointError: the codes have collapsed.
    """
    size = trained.recipe.model.generator.codebook_size
    baselines = {}
    for level, train_maps, heldout_maps in zip(LEVELS, maps_of(train), maps_of(heldout), strict=True):
        baselines[level] = baseline(train_maps, heldout_maps, size)
        refuse_collapsed(level, baselines[level], size, str(trained.run.folder))
    return baselines


def _codes(
    recipe: PriorRecipe, run: Run, trained: PretrainedRun, splits: list[Benchmark]
) -> dict[str, Codes]:
    """Codes of each split from the run's `codes.h5`, which the first start writes."""
    path = run.folder / CODES
    facts = made_of(recipe, trained, splits)
    if not path.exists():
        sources = {of.split: of.source for of in splits}
        encode_splits(trained, sources, recipe.prior.sections, path, facts, tokens=recipe.prior.reads_tokens)
    return read_codes(path, tuple(split.split for split in splits), facts)


def _measure(
    stage: PriorFitting, run: Run, trained: PretrainedRun, valid: Benchmark, baselines: Mapping[str, Baseline]
) -> None:  # fmt: skip
    """Measure the last weights on the held-out split: a result file, and a table on stdout."""
    checkpoint = store.newest(run.checkpoints, only=("model",))
    assert checkpoint is not None  # `fit` has just written or found it
    stage.load_tensors(checkpoint.tensors["model"])
    stage.module.eval()
    codes = stage.valid_codes
    assert codes is not None
    with torch.no_grad():
        numbers = stage.measure(codes)
        with_text = stage.recipe.prior.condition == "text"
        without_text = stage.measure(codes, without_text=True) if with_text else {}
    metrics = metrics_of(numbers, without_text, baselines)
    if not world.is_main():
        return
    masked = stage.recipe.prior.kind == "masked"
    fitted = dataclasses.replace(
        trained, run=run, step=checkpoint.step, identity=store.identity(run.checkpoints, checkpoint.step)
    )
    Result(
        "priors", valid.plugin.name, valid.split, valid.shards, n=len(codes.codes), metrics=metrics,
        seed=stage.recipe.train.seed,
        protocol=(
            "every held-out map once, with its whole text where the priors are conditioned; baseline of "
            "nats: codes sampled independently by their frequency in training; of accuracy: the most "
            "frequent code of each position; of perplexity: that of the training codes without any context; "
            f"{OF_ANY_ORDER if masked else ''}"
            f"forward passes in {trained.precision}"
        ),
        more={
            "pretrained": trained.identity,
            "baseline": {level: dataclasses.asdict(result) for level, result in baselines.items()},
        },
    ).write(fitted)  # fmt: skip
    show_measured(f"{run.folder}, {valid.plugin.name}/{valid.split}, n = {len(codes.codes):,}", metrics)
