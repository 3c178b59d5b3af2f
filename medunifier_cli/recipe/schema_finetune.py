"""What a recipe of `mu finetune` may say (paper, section 4 and appendix 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

from medunifier_cli.recipe.schema import (
    AdamWConfig,
    Bounds,
    Count,
    CountOrZero,
    LoopConfig,
    NonNegative,
    OptimConfig,
    Positive,
)


@dataclass(frozen=True)
class FinetuneDataConfig:
    """Which shards, and how much of them. Texts are not needed and not read."""

    dataset: str = "rsna"
    """Name of the data set plugin, which names the classes and the headline metric."""
    shards: str = ""
    """Another folder of shards; empty for `$MU_DATA/shards/<dataset>`."""
    train: str = "train"
    """Split to train on."""
    valid: str = "valid"
    """Split that chooses the best epoch."""
    test: str = "test"
    """Held-out split, measured once at the end; empty for none."""
    fraction: Annotated[float, Bounds(0, 1, above=True)] = 1.0
    """Share of the train split. 0.01 and 0.1 are the shards' own `train-0.01` and `train-0.1` where they list
    such ids; else a stratified draw, recorded in the run."""
    fraction_seed: CountOrZero = 0
    """Seed of that draw; smaller fractions of one seed are part of larger ones."""
    workers: CountOrZero = 4
    """Loader processes per rank; 0 decodes in the training process."""


@dataclass(frozen=True)
class FinetuneModelConfig:
    """The pre-trained model, and the head on its uni-modal queries."""

    pretrained: str = ""
    """Pre-training run to start from, by name or folder; empty for the newest. `--from` says the same."""
    freeze: bool = False
    """Train the head alone, on features computed once: a probe."""
    head: str = "mlp"
    """Head plugin: `linear`, `mlp` (the authors' two layers), `attention-pool`, or one of your own."""
    loss: Literal["", "cross_entropy", "binary_cross_entropy"] = ""
    """`cross_entropy`: samples of exactly one class; `binary_cross_entropy`: any number of labels a sample,
    unknown ones left out; empty for the head's own."""
    metric: Literal["", "accuracy", "auroc"] = ""
    """Chooses the best epoch and is the headline; empty for the head's own, else the data set's."""
    balance: bool = False
    """Weigh classes by one over their frequency in the training samples."""


@dataclass(frozen=True)
class FinetuneOptimConfig(AdamWConfig):
    """AdamW with two learning rates, warm-up and cosine."""

    model_lr: NonNegative = 3e-6
    """Learning rate of pre-trained weights after warm-up (paper, appendix 2)."""
    head_lr: Positive = 3e-4
    """Learning rate of new layers after warm-up (paper, appendix 2)."""

    def for_loop(self) -> OptimConfig:
        """As the loop takes it: the head's rate, which the stage's `scale` turns into the model's."""
        shared = {one.name: getattr(self, one.name) for one in fields(AdamWConfig)}
        return OptimConfig(peak_lr=self.head_lr, warmup_lr=0.0, final_lr=0.0, **shared)


@dataclass(frozen=True)
class FinetuneTrainConfig(LoopConfig):
    """How long, how wide, how often."""

    epochs: Count = 50
    """Passes over the training samples, each rounded up to whole steps; `steps` takes precedence where it is
    set."""
    global_batch: Count = 64
    """Images per optimiser step, over all ranks and micro-batches."""
    valid_every: CountOrZero = 0
    """Steps between validations, the best of which gives the weights that are kept; 0 for each epoch."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    keep: Count = 1
    """Checkpoints kept."""

    def for_loop(self, samples: int) -> FinetuneTrainConfig:
        """The same with epochs of `samples` images counted out in steps."""
        epoch = -(-samples // self.global_batch)
        return replace(self, steps=self.steps or self.epochs * epoch, valid_every=self.valid_every or epoch)


@dataclass(frozen=True)
class FinetuneRecipe:
    """Classification of images from a pre-trained run."""

    stage: Literal["finetune"] = "finetune"
    """What this recipe is for."""
    name: str = ""
    """Name of the run, when the command line gives none; empty for the recipe's file name. The fraction is
    added to it."""
    data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    model: FinetuneModelConfig = field(default_factory=FinetuneModelConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What the fields must agree on: (dotted key, what is wrong, naming every other key looked at)."""
        if not self.data.valid:
            yield "data.valid", "empty, but the best epoch is chosen on it"
        if self.data.test and self.data.test in (self.data.train, self.data.valid):
            yield "data.test", f"{self.data.test!r} is also data.train or data.valid; nothing is held out"
        yield from self.train.problems()
        if self.model.loss == "binary_cross_entropy" and self.model.metric == "accuracy":
            yield "model.metric", "accuracy needs one class a sample; model.loss allows any number of labels"
