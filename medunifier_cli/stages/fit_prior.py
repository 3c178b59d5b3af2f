"""Fitting the priors: images to codes once, then both PixelSNAILs through the shared loop.

Letters: B maps of a batch, n of a split, K codes.
"""

from __future__ import annotations

import dataclasses
import math
import time
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
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore, starting_run
from medunifier_cli.checkpoint.priors import build_pair
from medunifier_cli.data.order import SampleOrder
from medunifier_cli.distributed import draws, world
from medunifier_cli.errors import CheckpointError, MuError
from medunifier_cli.evaluate.benchmark import Benchmark, open_benchmark
from medunifier_cli.evaluate.results import Metric, Result, table
from medunifier_cli.prior.baseline import Baseline, baseline, refuse_collapsed
from medunifier_cli.prior.pair import CodeBatch, PriorPair
from medunifier_cli.recipe.load import load_saved, stage_of
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.provenance import command_line, data_facts
from medunifier_cli.run.record import Run
from medunifier_cli.stages.codes import Codes, codes_hash, encode_split, read_codes, write_codes
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.loop import Values, fit

CODES = "codes.h5"
LEVELS = ("top", "bottom")
CURVES = {
    "total": "Loss, both priors",
    **{level: f"Loss of the {level} prior, nats per code" for level in LEVELS},
    **{f"{level}_accuracy": f"Accuracy of the {level} prior" for level in LEVELS},
    "lr": "Learning rate",
}
"""Numbers of the log that get a curve on the run's page: name -> heading."""


class PriorFitting:
    """The stage: what `loop.fit` asks for, for both priors at once."""

    def __init__(
        self,
        recipe: PriorRecipe,
        trained: PretrainedRun,
        train: Codes,
        valid: Codes | None,
        device: torch.device,
    ) -> None:
        self.recipe, self.train_codes, self.valid_codes, self.device = recipe, train, valid, device
        torch.manual_seed(recipe.train.seed)
        self.module: nn.Module = build_pair(recipe, trained).to(device)
        self.pair = self.module
        self.samples = "maps"
        self.shown: tuple[str, ...] = ("total", *LEVELS)
        self.pretrained, self.codes = trained.identity, codes_hash(train)
        settings = recipe.train
        self.steps = settings.steps or math.ceil(settings.epochs * len(train) / settings.global_batch)
        self.micro = settings.micro_batch or max(1, settings.global_batch // world.size())
        if settings.global_batch % (self.micro * world.size()):
            raise MuError(
                f"train.global_batch: {settings.global_batch} is not a multiple of {self.micro} maps x "
                f"{world.size()} ranks; change it or train.micro_batch"
            )

    def start(self) -> None:
        """A new run starts from random weights."""

    def scale(self, name: str) -> float:
        """One learning rate for all."""
        return 1.0

    def batches(self, first_step: int) -> Iterator[list[CodeBatch]]:
        """Micro-batches of each step: places of the endless order, as in pre-training."""
        settings = self.recipe.train
        order = SampleOrder(len(self.train_codes), settings.seed)
        stretch = self.micro * world.size()
        for step in range(first_step, self.steps):
            starts = range(step * settings.global_batch, (step + 1) * settings.global_batch, stretch)
            yield [self._train_batch(order, start + world.rank() * self.micro) for start in starts]

    def _train_batch(self, order: SampleOrder, start: int) -> CodeBatch:
        seed, places = self.recipe.train.seed, range(start, start + self.micro)
        samples = order.indices(places.start, places.stop)
        if self.recipe.prior.condition == "none":
            return self._batch(self.train_codes, samples)
        views = self.train_codes.text_nVD.shape[1]
        view_B = (draws.uniform(seed, draws.TEXT_VIEW, places) * views).long().numpy()
        drop_B = draws.uniform(seed, draws.TEXT_DROP, places) < self.recipe.prior.drop_text
        return self._batch(self.train_codes, samples, view_B, drop_B.to(self.device))

    def _batch(
        self, codes: Codes, samples: NDArray[np.int64], view_B: Any = 0, drop_B: Tensor | None = None
    ) -> CodeBatch:
        def placed(rows: NDArray[Any], kind: type[Any]) -> Tensor:
            return torch.from_numpy(rows.astype(kind)).to(self.device)

        with_text = self.recipe.prior.condition == "text"
        return CodeBatch(
            placed(codes.top_nTT[samples], np.int64),
            placed(codes.bottom_nGG[samples], np.int64),
            placed(codes.text_nVD[samples, view_B], np.float32) if with_text else None,
            drop_B,
        )

    def step(self, module: nn.Module, batch: CodeBatch, step: int, micro: int) -> tuple[Values, Values]:
        """Nats per code and accuracy of one micro-batch."""
        out: tuple[Values, Values] = module(batch)
        return out

    def validate(self, step: int) -> Mapping[str, float]:
        """Held-out nats per code and accuracy of both levels."""
        return {} if self.valid_codes is None else self.measure(self.valid_codes)

    def measure(self, codes: Codes, without_text: bool = False) -> dict[str, float]:
        """Every map of a split once (as `train.valid_batches` allows), with its whole text or with none."""
        assert isinstance(self.pair, PriorPair)
        stretch, limit = self.micro * world.size(), self.recipe.train.valid_batches
        n = min(len(codes), limit * stretch) if limit else len(codes)
        total = torch.zeros(2, 2, dtype=torch.float64, device=self.device)
        for start in range(world.rank() * self.micro, n + stretch - 1 - (n - 1) % stretch, stretch):
            places = np.arange(start, start + self.micro)
            drop_B = torch.ones(self.micro, dtype=torch.bool, device=self.device) if without_text else None
            batch = self._batch(codes, np.minimum(places, n - 1), 0, drop_B)
            total += self.pair.sums(batch, torch.from_numpy(places < n).to(self.device))
        total = world.all_sum(total).cpu()
        numbers = {}
        for row, (level, maps) in enumerate(zip(LEVELS, (codes.top_nTT, codes.bottom_nGG), strict=True)):
            count = n * maps[0].size
            numbers[level] = float(total[row, 0]) / count
            numbers[f"{level}_accuracy"] = float(total[row, 1]) / count
        numbers["total"] = numbers["top"] + numbers["bottom"]
        return numbers

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All weights and buffers."""
        return dict(self.pair.state_dict())

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError when names or shapes differ."""
        self.pair.load_state_dict(dict(tensors))

    def facts(self) -> dict[str, Any]:
        """Whose codes these are."""
        return {"pretrained": self.pretrained, "codes": self.codes}


def with_pretrained(recipe: PriorRecipe, given: str, folder: Path) -> PriorRecipe:
    """The recipe with its pre-training run filled in: `given`, the recipe's, that of the run in `folder`, or
    the newest.

    Raises:
        CheckpointError: there is none, or it is no pre-training run.
    """
    wanted, before = given or recipe.prior.pretrained, Run(folder).recipe
    if not wanted and before.exists() and stage_of(before) == PriorRecipe.stage:
        wanted = load_saved(before, PriorRecipe).prior.pretrained
    name = starting_run(wanted, "fit-prior")
    return dataclasses.replace(recipe, prior=dataclasses.replace(recipe.prior, pretrained=name))


def check_codes(pretrained: PretrainRecipe, folder: Path) -> None:
    """Raises CheckpointError where a pre-training run has no codes."""
    if not pretrained.objectives.tig:
        raise CheckpointError(f"{folder}: trained without TIG, it has no codes to fit priors on")


def run_fitting(recipe: PriorRecipe, folder: Path) -> None:
    """One rank of `mu fit-prior`, from wherever `folder` stands to its end.

    Raises:
        Stopped: a signal came; run the same again.
        MuError: anything the user must mend.
    """
    run = Run(folder)
    accelerator = accelerator_of(recipe.train, folder)
    trained = restore(Run(find_run(recipe.prior.pretrained)), accelerator.device)
    check_codes(trained.recipe, trained.run.folder)
    own = trained.recipe.data
    train = open_benchmark(trained, split=recipe.data.train or own.train)
    if recipe.data.limit:
        train.source.rows = train.source.rows[: recipe.data.limit]
    name = recipe.data.valid or own.valid
    valid = open_benchmark(trained, split=name) if name else None
    if world.is_main():
        with run.locked():
            _fit(recipe, run, accelerator, trained, train, valid)
    else:
        _fit(recipe, run, accelerator, trained, train, valid)


def _fit(
    recipe: PriorRecipe, run: Run, accelerator: Accelerator, trained: PretrainedRun, train: Benchmark,
    valid: Benchmark | None,
) -> None:  # fmt: skip
    if world.is_main():
        run.begin(recipe, {train.plugin.name: data_facts(train.shards)}, command_line())
    world.barrier()
    codes = _codes(recipe, run, trained, [asked for asked in (train, valid) if asked is not None])
    train_codes = codes[train.split]
    valid_codes = codes[valid.split] if valid is not None else None
    size = trained.recipe.model.generator.codebook_size
    floors = {}
    for level, column in (("top", "top_nTT"), ("bottom", "bottom_nGG")):
        maps = getattr(train_codes, column)
        floors[level] = baseline(maps, getattr(valid_codes or train_codes, column), size)
        refuse_collapsed(level, floors[level], size, str(trained.run.folder))
    stage = PriorFitting(recipe, trained, train_codes, valid_codes, accelerator.device)
    if world.is_main():
        shapes = " and ".join(
            f"{m.shape[1]}x{m.shape[2]}" for m in (train_codes.top_nTT, train_codes.bottom_nGG)
        )
        click.echo(
            f"mu: {run.folder}: {len(train_codes):,} maps of {shapes} codes, from {trained.run.folder}; "
            f"{stage.steps:,} steps of {recipe.train.global_batch}, condition {recipe.prior.condition}",
            err=True,
        )
    done = fit(stage, run, accelerator, recipe.train, recipe.optim)
    accelerator.end_training()
    if not done and world.is_main():
        click.echo(f"mu: {run.folder} is complete: {stage.steps:,} steps", err=True)
    if valid is not None and valid_codes is not None:
        _measure(stage, run, trained, valid, valid_codes, floors)
    world.barrier()


def _codes(
    recipe: PriorRecipe, run: Run, trained: PretrainedRun, splits: list[Benchmark]
) -> dict[str, Codes]:
    """The run's `codes.h5`, made where it is not there yet."""
    path = run.folder / CODES
    made_of = {
        "checkpoint": trained.identity,
        "data": data_facts(splits[0].shards)["manifest"],
        "choice of samples": {asked.split: len(asked.source) for asked in splits},
        "text sections": recipe.prior.sections,
    }
    if not path.exists():
        started = time.monotonic()
        made = {asked.split: encode_split(trained, asked.source, recipe.prior.sections) for asked in splits}
        if world.is_main():
            write_codes(path, made, made_of)
            count = sum(map(len, made.values()))
            seconds = time.monotonic() - started
            click.echo(f"mu: {path}: {count:,} images encoded in {seconds:.0f} s", err=True)
        world.barrier()
    return read_codes(path, tuple(asked.split for asked in splits), made_of)


def _measure(
    stage: PriorFitting,
    run: Run,
    trained: PretrainedRun,
    valid: Benchmark,
    codes: Codes,
    floors: dict[str, Baseline],
) -> None:
    """The last weights on the held-out split: results file, and a table on stdout."""
    checkpoint = store.newest(run.checkpoints, only=("model",))
    assert checkpoint is not None
    stage.load_tensors(checkpoint.tensors["model"])
    stage.pair.eval()
    stage.recipe = dataclasses.replace(
        stage.recipe, train=dataclasses.replace(stage.recipe.train, valid_batches=0)
    )
    with torch.no_grad():
        found = stage.measure(codes)
        blind = stage.measure(codes, without_text=True) if stage.recipe.prior.condition == "text" else {}
    metrics = []
    for level in LEVELS:
        floor = floors[level]
        metrics += [
            Metric(f"{level} prior, nats per code", found[level], floor.unigram),
            Metric(f"{level}, a unigram for each place", floor.place_unigram, floor.unigram, "nats"),
            Metric(f"{level} prior, accuracy", found[f"{level}_accuracy"], floor.accuracy),
            Metric(f"{level} codes, perplexity", math.exp(found[level]), floor.perplexity, "under the prior"),
        ]
        if blind:
            metrics.append(Metric(f"{level} prior without text, nats per code", blind[level], floor.unigram))
    if not world.is_main():
        return
    seen = dataclasses.replace(
        trained, run=run, step=checkpoint.step, identity=store.identity(run.checkpoints, checkpoint.step)
    )
    Result(
        "priors", valid.plugin.name, valid.split, valid.shards, n=len(codes), metrics=metrics,
        seed=stage.recipe.train.seed,
        protocol=(
            "every held-out map once, with its whole text where the priors are conditioned; floor of nats: "
            "codes drawn independently by their frequency in training; floor of accuracy: the most frequent "
            "code of each place; floor of perplexity: of the training codes without any context"
        ),
        more={
            "pretrained": trained.identity,
            "baseline": {level: dataclasses.asdict(floor) for level, floor in floors.items()},
        },
    ).write(seen)  # fmt: skip
    click.echo(f"{run.folder}, {valid.plugin.name}/{valid.split}, n = {len(codes):,}")
    click.echo(table(metrics))
