"""The keys of a recipe of `mu finetune` (paper, section 4 and appendix 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

from medunifier_cli.recipe.bounds import Bounds, Count, CountOrZero, NonNegative, Positive, Processes, Samples
from medunifier_cli.recipe.schema import LIVE
from medunifier_cli.recipe.schema_train import AdamWConfig, CompileConfig, LoopConfig, OptimConfig


@dataclass(frozen=True)
class FinetuneDataConfig:
    """The shards, and how much of them is used. Texts are not read."""

    dataset: str = "rsna"
    """Name of the data set plugin, which defines the classes and the headline metric."""
    shards: str = ""
    """Folder of shards; empty for `$MU_DATA/shards/<dataset>`."""
    train: str = "train"
    """Split to train on."""
    valid: str = "valid"
    """Split by which the best epoch is chosen."""
    test: str = "test"
    """Held-out split that is measured once at the end; empty for none."""
    fraction: Annotated[float, Bounds(0, 1, above=True)] = 1.0
    """Share of the train split to train on. If the shards list a subset `train-0.01` or `train-0.1`, as
    published splits do, it is used; otherwise a stratified sample is drawn and recorded in the run."""
    fraction_seed: CountOrZero = 0
    """Seed of that sample; with one seed, smaller fractions are subsets of larger ones."""
    extra: tuple[str, ...] = ()
    """Further prepared data sets whose train split is trained on as well, such as synthetic images; never
    validated or tested on. An epoch is all samples together, and `fraction` is of the train split alone."""
    workers: Processes = 4
    """Loader processes per rank; 0 decodes in the training process."""
    features: str = LIVE
    """Features of the image encoder, where pre-training kept it frozen: `live`, `cached` or a folder, as for
    pre-training."""


@dataclass(frozen=True)
class FinetuneModelConfig:
    """The pre-trained model, and the classification head on its uni-modal queries."""

    pretrained: str = ""
    """Pre-training run to start from, by name or folder; empty for the newest. Same as `--run`."""
    freeze: bool = False
    """Train only the head, on features that are computed once (a probe)."""
    head: str = "mlp"
    """Head plugin: `linear`, `mlp` (ours: two layers, a ReLU between), `two-linear` (the authors': no ReLU),
    `attention-pool` or your own."""
    loss: Literal["", "cross_entropy", "binary_cross_entropy"] = ""
    """`cross_entropy`: samples of exactly one class; `binary_cross_entropy`: samples with any number of
    labels, unknown ones ignored; empty for the loss of the head, or `binary_cross_entropy` where the data
    set has a single class."""
    metric: Literal["", "accuracy", "auroc"] = ""
    """Headline metric, by which the best epoch is chosen; empty for that of the head, else of the data
    set."""
    balance: bool = False
    """Weight classes by the inverse of their frequency in the training samples."""


@dataclass(frozen=True)
class FinetuneOptimConfig(AdamWConfig):
    """AdamW with two learning rates, linear warm-up and cosine decay."""

    model_lr: NonNegative = 3e-6
    """Learning rate of pre-trained weights after warm-up (paper, appendix 2)."""
    head_lr: Positive = 3e-4
    """Learning rate of new layers after warm-up (paper, appendix 2)."""

    def for_loop(self) -> OptimConfig:
        """The settings of the loop: the head's learning rate, which `Finetuning.scale` lowers for the
        model."""
        shared = {field.name: getattr(self, field.name) for field in fields(AdamWConfig)}
        return OptimConfig(peak_lr=self.head_lr, warmup_lr=0.0, final_lr=0.0, **shared)


@dataclass(frozen=True)
class FinetuneTrainConfig(LoopConfig, CompileConfig):
    """Length, batch size and intervals of training."""

    epochs: Count = 50
    """Passes over the training samples, each rounded up to whole steps; ignored if `steps` is set."""
    global_batch: Samples = 64
    """Images per optimiser step, over all ranks and passes."""
    valid_every: CountOrZero = 0
    """Steps between two validations, the best of which decides the weights that are kept; 0 for every
    epoch."""
    patience: CountOrZero = 0
    """Validations in a row without a better one after which training ends; 0 for the last step."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints."""
    keep: Count = 1
    """Number of checkpoints to keep."""

    def for_loop(self, samples: int) -> FinetuneTrainConfig:
        """The same settings with epochs of `samples` images converted into steps."""
        epoch = -(-samples // self.global_batch)  # rounded up: an epoch sees every image
        return replace(self, steps=self.steps or self.epochs * epoch, valid_every=self.valid_every or epoch)


@dataclass(frozen=True)
class FinetuneRecipe:
    """Fine-tuning of a pre-trained run to classify images."""

    stage: Literal["finetune"] = "finetune"
    """The verb that the recipe is for."""
    name: str = ""
    """Name of the run if `--name` gives none; empty for the name of the recipe file. The fraction is
    appended."""
    data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    model: FinetuneModelConfig = field(default_factory=FinetuneModelConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between fields: (dotted key, what is wrong, naming every other key it read)."""
        if not self.data.valid:
            yield "data.valid", "empty, but the best epoch is chosen on it"
        if self.data.dataset in self.data.extra:
            yield "data.extra", f"{self.data.dataset} is data.dataset already"
        if len(set(self.data.extra)) < len(self.data.extra):
            yield "data.extra", "names a data set twice"
        if self.data.features != LIVE and self.data.extra:
            yield "data.features", "of one data set, while data.extra adds others; set it to live"
        if self.data.test and self.data.test in (self.data.train, self.data.valid):
            yield "data.test", f"{self.data.test!r} is also data.train or data.valid; nothing is held out"
        yield from self.train.problems()
        if self.model.loss == "binary_cross_entropy" and self.model.metric == "accuracy":
            yield "model.metric", "accuracy needs one class a sample; model.loss allows any number of labels"
