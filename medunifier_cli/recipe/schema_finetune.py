"""What a recipe of `mu finetune` may say (paper, section 4 and appendix 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from medunifier_cli.recipe.schema import (
    Bounds,
    Count,
    CountOrZero,
    NonNegative,
    OptimConfig,
    Positive,
    Share,
    TrainConfig,
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
class FinetuneOptimConfig:
    """AdamW with two learning rates, warm-up and cosine."""

    model_lr: NonNegative = 3e-6
    """Learning rate of pre-trained weights after warm-up (paper, appendix 2)."""
    head_lr: Positive = 3e-4
    """Learning rate of new layers after warm-up (paper, appendix 2)."""
    warmup: Share = 0.05
    """Share of all steps, from 0 upwards."""
    beta1: Share = 0.9
    """First AdamW beta."""
    beta2: Share = 0.95
    """Second AdamW beta."""
    weight_decay: NonNegative = 0.05
    """On matrices and kernels; biases, norms and embeddings have none."""
    clip_norm: NonNegative = 1.0
    """Largest gradient norm; 0 for no clipping."""

    def for_loop(self) -> OptimConfig:
        """As `loop.fit` takes it: the head's rate, which `scale` turns into the model's."""
        return OptimConfig(
            peak_lr=self.head_lr, warmup_lr=0.0, final_lr=0.0, warmup=self.warmup, beta1=self.beta1,
            beta2=self.beta2, weight_decay=self.weight_decay, clip_norm=self.clip_norm,
        )  # fmt: skip


@dataclass(frozen=True)
class FinetuneTrainConfig:
    """How long, how wide, how often."""

    seed: CountOrZero = 0
    """Seed of everything drawn but the fraction."""
    epochs: Count = 50
    """Passes over the training samples, each rounded up to whole steps; `steps` wins where it is set."""
    steps: CountOrZero = 0
    """Optimiser steps; 0 to count epochs."""
    global_batch: Count = 64
    """Images per optimiser step, over all ranks and micro-batches."""
    micro_batch: CountOrZero = 0
    """Images per rank and pass; 0 for all of a rank's share."""
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    """Mixed precision; losses are fp32 always."""
    processes: CountOrZero = 0
    """Processes to start; 0 for one per GPU, or one."""
    threads: CountOrZero = 0
    """CPU threads per process; 0 leaves it to PyTorch. Fixed threads make CPU runs repeatable bit for bit."""
    log_every: Count = 10
    """Steps between lines of `log.jsonl`."""
    validate_every: CountOrZero = 0
    """Steps between validations, the best of which gives the weights that are kept; 0 for each epoch."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    keep: Count = 1
    """Checkpoints kept."""
    tensorboard: bool = True
    """Write TensorBoard files through Accelerate's trackers."""

    def for_loop(self, samples: int) -> TrainConfig:
        """As `loop.fit` takes it, in steps."""
        epoch = -(-samples // self.global_batch)
        return TrainConfig(
            seed=self.seed, epochs=float(self.epochs), steps=self.steps or self.epochs * epoch,
            global_batch=self.global_batch, micro_batch=self.micro_batch, precision=self.precision,
            processes=self.processes, threads=self.threads, log_every=self.log_every,
            valid_every=self.validate_every or epoch, valid_batches=0,
            checkpoint_every=self.checkpoint_every, keep=self.keep, tensorboard=self.tensorboard,
        )  # fmt: skip


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
        train = self.train
        if not self.data.valid:
            yield "data.valid", "empty, but the best epoch is chosen on it"
        if self.data.test and self.data.test in (self.data.train, self.data.valid):
            yield "data.test", f"{self.data.test!r} is also data.train or data.valid; nothing is held out"
        if train.micro_batch and train.global_batch % train.micro_batch:
            yield (
                "train.global_batch",
                f"{train.global_batch} is not a multiple of train.micro_batch {train.micro_batch}",
            )
        if self.model.loss == "binary_cross_entropy" and self.model.metric == "accuracy":
            yield "model.metric", "accuracy needs one class a sample; model.loss allows any number of labels"
