"""What a recipe may say. The type is the check; the string under a field is its documentation.

`load.py` turns YAML and `-o key=value` into these. Bounds stand in `Annotated` metadata; what several
fields must agree on stands in `problems()` of the dataclass that holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_type_hints

from medunifier_cli.errors import MuError


@dataclass(frozen=True)
class Bounds:
    """Closed interval a number must lie in; `above` excludes `low` itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False


Share = Annotated[float, Bounds(0, 1)]
Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
NonNegative = Annotated[float, Bounds(0)]
Positive = Annotated[float, Bounds(0, above=True)]
Weight = Annotated[float, Bounds(0), "weight of an objective"]
"""Weight of an objective, which has the field's name."""


@dataclass(frozen=True)
class DataConfig:
    """Which shards, and how a sample becomes a picture and a text."""

    dataset: str = "mimic-cxr"
    """Name of the data set plugin; its shards lie under `$MU_DATA/shards/<dataset>`."""
    shards: str = ""
    """Another folder of shards; empty for the place above."""
    train: str = "train"
    """Split to train on."""
    valid: str = "valid"
    """Split to validate on; empty for none."""
    test: str = "test"
    """Split of the last, held-out evaluation; empty for none."""
    image_size: Count = 224
    """Edge in pixels; the aspect ratio is not kept (paper, appendix 2)."""
    sections: tuple[str, ...] = ()
    """Text sections, in order; empty for those the data set plugin names."""
    require: Literal["any", "all"] = "any"
    """Which sections a sample must have to be used: `any` of them, or `all`."""
    workers: CountOrZero = 4
    """Loader processes per rank; 0 decodes in the training process."""
    limit: CountOrZero = 0
    """Use only the first so many samples of the train split; 0 for all."""


@dataclass(frozen=True)
class TextConfig:
    """Tokenizer and text length (paper, appendix 2)."""

    tokenizer: str = "train"
    """Hub name or local folder of a BERT tokenizer; `train` learns WordPieces on the train split."""
    vocabulary: Count = 30522
    """Size of the vocabulary when it is learned; fewer if the texts have fewer."""
    max_tokens: Annotated[int, Bounds(4, 512)] = 95
    """L_t with the special tokens; longer texts are cut."""
    strip_deidentified: bool = False
    """Remove `___` and `XXXX`, the marks of removed personal data."""
    section_marks: bool = False
    """Put its name before each section (`FINDINGS:`), so that generated reports come in sections too."""


@dataclass(frozen=True)
class VitConfig:
    """Image encoder (paper, section 3.2)."""

    name: str = "eva_giant_patch14_clip_224"
    """timm model."""
    weights: str = "random"
    """`hub` (timm's own), a hub name `org/model`, a local folder or safetensors file, or `random`."""
    frozen: bool = True
    """Never trained, run without gradient in bf16 on a GPU. False trains it with the rest."""
    drop_last_block: bool = True
    """As BLIP-2: features of the last block but one."""
    patch_size: CountOrZero = 0
    """Another patch size than the model's own; 0 keeps it."""
    width: CountOrZero = 0
    """Another embedding width D_v; 0 keeps it."""
    depth: CountOrZero = 0
    """Another number of blocks; 0 keeps it."""
    heads: CountOrZero = 0
    """Another number of attention heads; 0 keeps it."""
    pixel_norm: Literal["none", "clip"] = "none"
    """Pixels as they are in [0, 1] (paper) or with CLIP's mean and deviation."""


@dataclass(frozen=True)
class QFormerConfig:
    """Image-text encoder with learnable queries (paper, sections 3.2 and 3.3)."""

    weights: str = "random"
    """Hub name or local folder of a BERT, or `random`."""
    layers: Count = 12
    """Transformer blocks."""
    width: Count = 768
    """D, of queries and text alike."""
    heads: Count = 12
    """Attention heads."""
    ffn_width: Count = 3072
    """Inner width of both feed-forward networks."""
    queries: Count = 32
    """L_q learnable embeddings."""
    cross_attention_every: Count = 1
    """1: in each block, as the paper; 2: in every second, which BLIP-2 weights need."""
    dropout: Annotated[float, Bounds(0, 0.9)] = 0.1
    """BERT's own, on hidden states and attention."""
    init_std: Positive = 0.02
    """Deviation of random weights, BERT's `initializer_range`; narrow models need about 1 / sqrt(width)."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Text-grounded image generation (paper, section 3.4)."""

    codebook_size: Annotated[int, Bounds(2)] = 512
    """K codes, top and bottom."""
    code_width: Count = 768
    """Width of a code."""
    codebook: Literal["loss", "ema"] = "loss"
    """`loss`: equation (23); `ema`: running means of the assigned vectors, all-reduced."""
    ema_decay: Share = 0.99
    """Decay of the running means."""
    revive_dead_codes: bool = False
    """Put codes nobody chose for a while onto encoder outputs of the batch, and start from such outputs."""
    revive_below: NonNegative = 0.05
    """A code is dead when its running count per step falls under this."""
    beta: NonNegative = 0.5
    """Weight of both commitment terms."""
    base_width: Count = 1536
    """Channels of the decoder's base map, halved by each block; the authors' code starts at 4608."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation after each ReLU of the decoder; `batch` is synchronised across ranks."""
    feature_norm: Literal["none", "batch"] = "none"
    """Non-affine batch normalisation before the adapters' ReLU; a short run from random weights needs it."""
    position_scale: NonNegative = 1.0
    """Strength of the adapters' positional encoding; the paper adds it as it is."""
    residual_width: Count = 384
    """Inner channels of a residual block."""
    residual_layers: Count = 2
    """Layers of a residual block, each with weights of its own."""
    rate_scale: Positive = 1.0
    """Factor on the learning rate of these layers: convolutions stand more than transformers."""


@dataclass(frozen=True)
class ObjectivesConfig:
    """Weights of equation (24). An objective of weight 0 is neither built nor computed."""

    itc: Weight = 1.0
    """Image-text contrast."""
    itm: Weight = 1.0
    """Image-text matching; needs `itc`, whose similarities choose the negatives."""
    itg: Weight = 1.0
    """Image-grounded text generation."""
    tig: Weight = 1.0
    """Text-grounded image generation."""
    embed_width: Count = 256
    """E, the space of ITC."""
    embed_norm: Literal["none", "batch"] = "none"
    """Non-affine batch normalisation on the ITC projections; ends the plateau at ln(batch) of short runs."""
    temperature: Annotated[float, Bounds(0.01, 0.5)] = 0.07
    """Start of the learnable temperature."""
    itc_smoothing: Annotated[float, Bounds(0, 0.9)] = 0.0
    """Label smoothing of ITC; the published code has 0.1."""
    itm_negatives: Literal["hard", "random"] = "hard"
    """`hard`: drawn by ITC similarity, as ALBEF (paper); `random`: uniformly."""
    itm_exclude_same_text: bool = True
    """Pairs whose texts are equal word for word are never negatives."""

    def weights(self) -> dict[str, float]:
        """Weight of each objective that is on, by name."""
        names = [
            name for name, kind in get_type_hints(type(self), include_extras=True).items() if kind is Weight
        ]
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@dataclass(frozen=True)
class AdamWConfig:
    """What AdamW and its warm-up are told in every stage (paper, appendix 2)."""

    warmup: Share = 0.05
    """Share of all steps."""
    beta1: Share = 0.9
    """First AdamW beta."""
    beta2: Share = 0.95
    """Second AdamW beta."""
    weight_decay: NonNegative = 0.05
    """On matrices and kernels; biases, norms and embeddings have none."""
    clip_norm: NonNegative = 1.0
    """Largest gradient norm; 0 for no clipping."""


@dataclass(frozen=True)
class OptimConfig(AdamWConfig):
    """AdamW, warm-up and cosine (paper, appendix 2)."""

    peak_lr: Positive = 1e-4
    """Learning rate after warm-up."""
    warmup_lr: NonNegative = 1e-5
    """Learning rate of the first step."""
    final_lr: NonNegative = 0.0
    """Learning rate the cosine ends at."""


@dataclass(frozen=True)
class LoopConfig:
    """What the training loop is told in every stage: how long, how wide, how often."""

    seed: CountOrZero = 0
    """Seed of every random draw."""
    epochs: Positive = 30.0
    """Passes over the train split; `steps` takes precedence where it is set."""
    steps: CountOrZero = 0
    """Optimiser steps; 0 to count epochs."""
    global_batch: Count = 256
    """Samples per optimiser step, over all ranks and micro-batches."""
    micro_batch: CountOrZero = 0
    """Samples per rank and pass; 0 for all of a rank's share."""
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    """Mixed precision; losses are always fp32."""
    processes: CountOrZero = 0
    """Processes to start; 0 for one per GPU, or one."""
    threads: CountOrZero = 0
    """CPU threads per process; 0 leaves it to PyTorch. Fixed threads make CPU runs repeatable bit for bit."""
    log_every: Count = 10
    """Steps between lines of `log.jsonl`."""
    valid_every: CountOrZero = 1000
    """Steps between validations; 0 only at the end."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    keep: Count = 2
    """Checkpoints kept."""
    tensorboard: bool = True
    """Write TensorBoard files through Accelerate's trackers."""

    def micro_batch_size(self, ranks: int, samples: str = "samples") -> int:
        """Samples that one rank takes in one forward pass.

        Args:
            ranks: processes of the run, which the recipe cannot know.
            samples: what is counted, in the plural, for the message.

        Raises:
            MuError: the global batch cannot be divided evenly; all ranks must take passes of one size.
        """
        micro = self.micro_batch or self.global_batch // ranks
        if micro < 1 or self.global_batch % (micro * ranks):
            parts = f"{micro} {samples} x {ranks} processes" if self.micro_batch else f"{ranks} processes"
            raise MuError(
                f"train.global_batch: {self.global_batch} is not a multiple of {parts}; change it, "
                "train.micro_batch or the number of processes"
            )
        return micro

    def problems(self) -> Iterator[tuple[str, str]]:
        """What the fields must agree on: (dotted key of the recipe, what is wrong)."""
        if self.micro_batch and self.global_batch % self.micro_batch:
            yield (
                "train.global_batch",
                f"{self.global_batch} is not a multiple of train.micro_batch {self.micro_batch}",
            )


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """How long, how wide, how often."""

    micro_batch: CountOrZero = 64
    """Pairs per rank and pass; 0 for all of a rank's share. ITC and ITM contrast within one pass."""
    valid_batches: CountOrZero = 50
    """Batches per validation; 0 for the whole split."""


@dataclass(frozen=True)
class ModelConfig:
    """The model's parts."""

    vit: VitConfig = field(default_factory=VitConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)


@dataclass(frozen=True)
class PretrainRecipe:
    """A pre-training run."""

    stage: Literal["pretrain"] = "pretrain"
    """What this recipe is for."""
    name: str = ""
    """Name of the run, when the command line gives none; empty for the recipe's file name."""
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What the fields must agree on: (dotted key, what is wrong, naming every other key looked at)."""
        qformer, objectives, train = self.model.qformer, self.objectives, self.train
        if qformer.width % qformer.heads:
            yield (
                "model.qformer.width",
                f"{qformer.width} is not a multiple of model.qformer.heads {qformer.heads}",
            )
        if objectives.itm and not objectives.itc:
            yield "objectives.itm", "needs objectives.itc: its similarities choose the hard negatives"
        if not (objectives.itc or objectives.itg or objectives.tig):
            yield "objectives.itc", "off, as are objectives.itg and objectives.tig; nothing would be trained"
        if self.optim.warmup_lr > self.optim.peak_lr:
            yield "optim.warmup_lr", f"{self.optim.warmup_lr:g} is above optim.peak_lr {self.optim.peak_lr:g}"
        yield from train.problems()
        if objectives.itm and 1 in (train.global_batch, train.micro_batch):
            key = "train.micro_batch" if train.micro_batch == 1 else "train.global_batch"
            yield key, "1 leaves objectives.itm without negatives"
