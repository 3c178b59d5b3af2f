"""The keys of a recipe that say how to train, in every stage: optimiser and loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from medunifier_cli.recipe.bounds import (
    Bounds,
    Count,
    CountOrZero,
    NonNegative,
    Pairs,
    Positive,
    Processes,
    Samples,
    SamplesOrZero,
    Share,
)


@dataclass(frozen=True)
class AdamWConfig:
    """Settings of AdamW and its warm-up that every stage has (paper, appendix 2)."""

    warmup: Share = 0.05
    """Share of all steps over which the learning rate rises linearly."""
    beta1: Share = 0.9
    """Decay of the first moment."""
    beta2: Share = 0.95
    """Decay of the second moment."""
    weight_decay: NonNegative = 0.05
    """Weight decay of matrices and convolution kernels; biases, norms and embeddings of words, positions and
    queries have none. The position embeddings of a trained image encoder and the embeddings of priors do."""
    clip_norm: NonNegative = 1.0
    """Norm to which gradients are clipped; 0 for no clipping."""


@dataclass(frozen=True)
class OptimConfig(AdamWConfig):
    """AdamW with linear warm-up and cosine decay (paper, appendix 2)."""

    peak_lr: Positive = 1e-4
    """Learning rate after warm-up."""
    warmup_lr: NonNegative = 1e-5
    """Learning rate of the first step."""
    final_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine decay."""


@dataclass(frozen=True)
class LoopConfig:
    """Length, batch size and intervals of training that every stage has."""

    seed: CountOrZero = 0
    """Seed of all random numbers."""
    epochs: Positive = 30.0
    """Passes over the train split; ignored if `steps` is set."""
    steps: CountOrZero = 0
    """Optimiser steps; 0 to use `epochs`."""
    global_batch: Samples = 256
    """Samples per optimiser step, over all ranks and passes."""
    micro_batch: SamplesOrZero = 0
    """Samples per rank and forward pass; 0 for the rank's whole share of the global batch."""
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    """Mixed precision; losses are always computed in fp32."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Precision in which ranks exchange gradients: `bf16` halves what goes over the network, which pays where
    they are on several nodes, and rounds each rank's gradient to 8 significant bits."""
    processes: Processes = 0
    """Processes to start; 0 for one per GPU, or one without a GPU."""
    threads: Processes = 0
    """CPU threads per process; 0 for PyTorch's default, at most as many as the process may use. A fixed
    number makes CPU runs repeatable bit for bit."""
    deterministic: bool = False
    """Deterministic kernels on a GPU, as `--deterministic` asks for: runs are repeatable bit for bit, and
    slower. No difference on a CPU."""
    log_every: Count = 10
    """Steps between two lines of `log.jsonl`."""
    valid_every: CountOrZero = 1000
    """Steps between two validations; 0 to validate only at the end."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints. One is written while training continues."""
    keep: Count = 2
    """Number of checkpoints to keep."""
    skip_limit: Count = 10
    """Steps in a row whose loss or gradients are not finite, after which the run ends with its last good
    checkpoint; each such step is skipped."""
    timeout: Count = 1800
    """Seconds that ranks wait in one step, validation batch or checkpoint for one that hangs, before the run
    ends and names it."""
    tensorboard: bool = True
    """Write TensorBoard files where tensorboard is installed, without a word where it is not:
    `train.trackers: [tensorboard]` asks for it."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that get numbers, pictures and the recipe, by Accelerate's names: `tensorboard`,
    `wandb`, `trackio`, `mlflow` (extras of this package) and its others. One that is not installed, or fails,
    costs a warning and no run. Where they store it, and whether that is a service, is theirs to be told, by
    variables such as WANDB_MODE or MLFLOW_TRACKING_URI."""
    project: str = "medunifier"
    """Name under which trackers group runs."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between fields: (dotted key of the recipe, what is wrong)."""
        if len(set(self.trackers)) < len(self.trackers):
            yield "train.trackers", "names a tracker twice"
        if not self.tensorboard and "tensorboard" in self.trackers:
            yield "train.trackers", "asks for tensorboard, which train.tensorboard turns off"
        if self.trackers and not self.project:
            yield "train.project", "empty, but train.trackers need a name for what they group"
        if self.micro_batch and self.global_batch % self.micro_batch:
            yield (
                "train.global_batch",
                f"{self.global_batch} is not a multiple of train.micro_batch {self.micro_batch}",
            )


@dataclass(frozen=True)
class CompileConfig:
    """Whether training steps are compiled, in stages that have parts worth it."""

    compile: Literal["auto", "always", "never"] = "auto"
    """Compile blocks of the image encoder, of the image-text encoder and of the image decoder by PyTorch's
    compiler, for training steps alone: `auto` on a GPU, unless `train.deterministic` is set or the compiler
    lacks something, of which a line tells; `always` on a CPU too, or an error; `never`. The first step of
    each start takes longer, less so where PyTorch finds its cache of an earlier one
    (TORCHINDUCTOR_CACHE_DIR). Losses change by rounding, and dropout draws other masks."""


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Length, batch size and intervals of training."""

    micro_batch: SamplesOrZero = 64
    """Samples per rank and forward pass; 0 for the rank's whole share of the global batch. In pre-training,
    ITC and ITM contrast the pairs of one pass over all ranks."""
    valid_batches: CountOrZero = 50
    """Batches of a validation; 0 for the whole split."""
    change_contrast: bool = False
    """Pre-training only: resume with a number of processes that changes how many pairs ITC and ITM contrast
    with each other."""


@dataclass(frozen=True)
class PretrainTrainConfig(TrainConfig, CompileConfig):
    """Length, batch size and intervals of training; which validation is the best."""

    recompute_itm: bool = False
    """Compute each layer of ITM's pass again in the backward pass instead of keeping it: less memory for more
    work; losses and gradients are the same."""
    valid_pairs: Pairs = 500
    """Pairs of the valid split on which each validation also ranks the paired text of every image and the
    paired image of every text (recall@1, 5 and 10, median rank) and asks ITM for the paired text against
    another one; 0 for none. Needs `objectives.itc`."""
    best: Literal["", "loss", "recall@1", "recall@5", "recall@10"] = ""
    """Keep the weights of the best validation too, and use them in all that follows: `loss`, the lowest
    total; `recall@K`, the highest mean of both directions among `train.valid_pairs`; empty for the weights of
    the last step. A checkpoint then holds the weights twice."""
    tracker_reports: Annotated[int, Bounds(0, 100)] = 0
    """Reports that each validation writes of its first images, for `train.trackers` and TensorBoard, beside
    the reference reports. 0 for none: both are patient data, and a tracker may be a service outside of the
    house. Needs `objectives.itg`."""
    patience: CountOrZero = 0
    """Validations in a row without a better one by `train.best` after which training ends; 0 for the last
    step."""
