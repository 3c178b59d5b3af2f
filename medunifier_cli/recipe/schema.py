"""The keys of a pre-training recipe: a field's type is its check, the string under it its documentation.

`load.py` fills these dataclasses from YAML and `-o key=value`. Bounds are `Annotated` metadata; `problems()`
of a dataclass checks what its fields must agree on. The strings under the fields become `docs/recipes.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_type_hints

from medunifier_cli.recipe.bounds import (
    Bounds,
    Count,
    CountOrZero,
    Depth,
    DepthOrZero,
    NonNegative,
    Positive,
    Processes,
    Share,
    Size,
    SizeOrZero,
)
from medunifier_cli.recipe.schema_train import OptimConfig, PretrainTrainConfig

LIVE, CACHED = "live", "cached"
"""Values of `data.features` that are no folder."""
Weight = Annotated[float, Bounds(0), "weight of an objective"]
"""Weight of the objective that has the name of the field."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images, anew in each epoch. Never a mirror image: reports say left."""

    crop: Annotated[float, Bounds(0.1, 1)] = 1.0
    """Smallest share of the image's area that a random crop keeps; 1 for no crop. Crops are as sharp as whole
    images if the shards hold images of at least `data.image_size` / sqrt(crop) pixels."""
    rotation: Annotated[float, Bounds(0, 45)] = 0.0
    """Largest rotation either way, in degrees; what comes in from outside is black."""
    contrast: Annotated[float, Bounds(0, 0.9)] = 0.0
    """Largest change of contrast: 0.2 multiplies distances to the mean grey level by 0.8 to 1.2."""
    brightness: Annotated[float, Bounds(0, 0.9)] = 0.0
    """Largest change of brightness, as a share of the whole range from black to white."""
    share: Share = 1.0
    """Share of the images that are changed. Where it is 1, whole and upright films are drawn worse."""

    @property
    def any(self) -> bool:
        """Whether anything changes."""
        return bool(self.share) and replace(self, share=1.0) != AugmentConfig()


@dataclass(frozen=True)
class DataConfig:
    """The shards, and how image and text of a sample are prepared."""

    dataset: str = "mimic-cxr"
    """Name of the data set plugin, whose shards are read from `$MU_DATA/shards/<dataset>`."""
    shards: str = ""
    """Folder of shards; empty for that of the data set."""
    train: str = "train"
    """Split to train on."""
    valid: str = "valid"
    """Split to validate on; empty for none."""
    test: str = "test"
    """Held-out split that is measured once at the end; empty for none."""
    image_size: Size = 224
    """Height and width in pixels; the aspect ratio is not kept (paper, appendix 2)."""
    sections: tuple[str, ...] = ()
    """Sections of the report that make up the text, in order; the data set's own where empty or not there."""
    require: Literal["any", "all"] = "any"
    """Use samples that have `any` of the sections, or only those that have `all`."""
    workers: Processes = 4
    """Loader processes per rank; 0 decodes in the training process."""
    limit: CountOrZero = 0
    """Use only the first N samples of the train split; 0 for all."""
    features: str = LIVE
    """Features of a frozen image encoder: `live` computes them in each step; `cached` reads what `mu prepare
    --features RECIPE` wrote to `$MU_DATA/features/<dataset>`; or a folder to which it wrote them."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class TextConfig:
    """Tokenizer and text length (paper, appendix 2)."""

    tokenizer: str = "train"
    """Hub name or local folder of a BERT tokenizer; `train` trains a WordPiece tokenizer on the train
    split."""
    vocabulary: Annotated[int, Bounds(1, 1_000_000)] = 30522
    """Largest vocabulary of a tokenizer that is trained."""
    max_tokens: Annotated[int, Bounds(4, 512)] = 95
    """Tokens of a text, L_t, special tokens included; longer texts are truncated."""
    strip_deidentified: bool = False
    """Remove `___` and `XXXX`, which mark removed personal data."""
    section_marks: bool = False
    """Begin each section with its name (`FINDINGS:`), so that generated reports have sections too."""
    drop: Annotated[float, Bounds(0, 0.9)] = 0.0
    """Share of a text's tokens that its uni-modal pass (ITC, TIG) does not see in training, drawn anew in
    each epoch: a pair is harder to learn by heart. Matching and text generation read the whole text."""


@dataclass(frozen=True)
class VitConfig:
    """Image encoder (paper, section 3.2)."""

    name: str = "eva_giant_patch14_clip_224"
    """Name of a vision transformer in timm."""
    weights: str = "random"
    """Initial weights: `hub` (timm's own), a hub name `org/model`, a local folder or file, or `random`."""
    frozen: bool = True
    """Keep the weights fixed, and run without gradient in bf16 on a GPU; `false` trains them with the
    rest."""
    drop_last_block: bool = True
    """Take the features of the second to last block, as BLIP-2 does."""
    patch_size: SizeOrZero = 0
    """Patch size in pixels; 0 for that of the named model."""
    width: SizeOrZero = 0
    """Embedding width D_v; 0 for that of the named model."""
    depth: DepthOrZero = 0
    """Number of blocks; 0 for that of the named model."""
    heads: SizeOrZero = 0
    """Number of attention heads; 0 for that of the named model."""
    pixel_norm: Literal["none", "clip", "imagenet"] = "none"
    """`none`: pixels in [0, 1] (paper); `clip`, `imagenet`: standardised with the mean and deviation of
    CLIP's or of ImageNet's images, as the image encoder's weights were trained."""
    position_std: NonNegative = 0.0
    """Standard deviation of random position embeddings; 0 for timm's own, 0.02. Queries that start from
    random weights hardly see where something is unless positions differ about as much as patches do."""
    stem: Literal["patches", "convolutions"] = "patches"
    """How pixels become tokens: `patches`, one linear map each (paper); `convolutions`, a small residual
    network (Xiao et al. 2021), with which random weights learn from a few thousand images."""


@dataclass(frozen=True)
class QFormerConfig:
    """Image-text encoder with learnable queries (paper, sections 3.2 and 3.3)."""

    weights: str = "random"
    """Initial weights: hub name, folder or file of a BERT, BLIP-2 or published MedUnifier, or `random`."""
    layers: Depth = 12
    """Number of transformer blocks."""
    width: Size = 768
    """Width D of queries and text tokens."""
    heads: Size = 12
    """Number of attention heads."""
    ffn_width: Size = 3072
    """Inner width of both feed-forward networks."""
    queries: Size = 32
    """Number of learnable queries, L_q."""
    cross_attention_every: Count = 1
    """Cross-attention in every Nth block: 1 as in the paper; 2 as BLIP-2 weights need."""
    dropout: Annotated[float, Bounds(0, 0.9)] = 0.1
    """Dropout of hidden states and attention weights, as in BERT."""
    init_std: Positive = 0.02
    """Standard deviation of random weights, BERT's `initializer_range`; narrow models need about
    1 / sqrt(width)."""
    embedding_std: NonNegative = 0.0
    """Standard deviation of random word embeddings, and of their positions five times smaller; 0 for
    `init_std` of both. Their sum is normalised at once, so a smaller one only lets words change their meaning
    in fewer steps."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Text-grounded image generation (paper, section 3.4)."""

    codebook_size: Annotated[int, Bounds(2, 65536)] = 512
    """Number of codes K, in the top and in the bottom codebook."""
    code_width: Size = 768
    """Width of a code vector."""
    codebook: Literal["loss", "ema"] = "loss"
    """How codes are learned: `loss`, by equation (23); `ema`, as running means of the vectors assigned to
    them."""
    ema_decay: Share = 0.99
    """Decay per forward pass of the running means, and of the use of a code that revival goes by."""
    revive_dead_codes: bool = False
    """Replace unused codes with encoder outputs of the batch, and initialise the codebook with such outputs;
    the paper does neither, and without them its codebooks collapse."""
    revive_below: NonNegative = 0.05
    """A code counts as unused when the running mean of its assignments per step falls below this share of the
    mean over all codes."""
    beta: NonNegative = 0.5
    """Weight of both commitment losses."""
    base_width: Size = 1536
    """Channels of the decoder's first map, halved by each block; the authors' code has 4608."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation after each ReLU of the decoder and in `bottleneck` residual blocks; `batch` is
    synchronised over all ranks."""
    nonlinear: Literal["linear-relu", "linear-relu-linear"] = "linear-relu-linear"
    """The adapters' nonlinear layer, which the paper does not detail; `linear-relu-linear` as in the authors'
    code, twice as wide inside the top adapter."""
    upsample: Literal["learned", "nearest"] = "nearest"
    """How the top adapter enlarges the map of queries to a square: `learned`, by a transposed convolution;
    `nearest`, by repeating rows, as in the authors' code."""
    residual: Literal["pre-activation", "bottleneck"] = "bottleneck"
    """Layers of the adapters' residual blocks: `pre-activation`, as in VQ-VAE-2 (ReLU, 3x3, ReLU, 1x1);
    `bottleneck`, as in He et al. 2016, which the paper cites, and in the authors' code (1x1, 3x3, 1x1, each
    normalised, a ReLU after the sum)."""
    feature_norm: Literal["none", "batch"] = "none"
    """`batch`: non-affine batch normalisation before the adapters' ReLU, which short runs from random weights
    need."""
    position_scale: NonNegative = 1.0
    """Factor on the adapters' positional encoding; 1 as in the paper."""
    residual_width: Size = 384
    """Inner channels of a residual block."""
    residual_layers: Depth = 2
    """Number of layers of a residual block, each with its own weights."""
    rate_scale: Positive = 1.0
    """Factor on the learning rate of the generator: convolutions tolerate higher learning rates than
    transformers."""


@dataclass(frozen=True)
class ObjectivesConfig:
    """Objectives and their weights, equation (24). One of weight 0 is neither built nor computed."""

    itc: Weight = 1.0
    """Weight of image-text contrast."""
    itm: Weight = 1.0
    """Weight of image-text matching; needs `itc`, whose similarities choose the negatives."""
    itg: Weight = 1.0
    """Weight of image-grounded text generation."""
    tig: Weight = 1.0
    """Weight of text-grounded image generation."""
    embed_width: Size = 256
    """Width E of the space in which ITC compares images and texts."""
    embed_norm: Literal["none", "batch"] = "none"
    """`batch`: non-affine batch normalisation of the ITC projections, without which short runs stay at a loss
    of ln(batch)."""
    temperature: Annotated[float, Bounds(0.01, 0.5)] = 0.07
    """Initial value of the learnable temperature of ITC."""
    itc_smoothing: Annotated[float, Bounds(0, 0.9)] = 0.0
    """Label smoothing of ITC; the authors' code has 0.1."""
    itm_negatives: Literal["hard", "random"] = "hard"
    """How negatives are sampled: `hard`, by ITC similarity as in ALBEF (paper); `random`, uniformly."""
    itm_exclude_same_text: bool = True
    """Never use a pair as a negative whose texts are equal as the model reads them: the same tokens up to
    `text.max_tokens`."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every objective there is a weight for."""
        kinds = get_type_hints(cls, include_extras=True)
        return tuple(name for name, kind in kinds.items() if kind is Weight)

    def weights(self) -> dict[str, float]:
        """Weight of each objective that is on, by name."""
        return {name: getattr(self, name) for name in self.names() if getattr(self, name)}


@dataclass(frozen=True)
class ModelConfig:
    """The three parts of the model."""

    vit: VitConfig = field(default_factory=VitConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)


@dataclass(frozen=True)
class PretrainRecipe:
    """A pre-training run."""

    stage: Literal["pretrain"] = "pretrain"
    """The verb that the recipe is for."""
    name: str = ""
    """Name of the run if `--name` gives none; empty for the name of the recipe file."""
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between fields: (dotted key, what is wrong, naming every other key it read)."""
        qformer, vit, objectives, train = self.model.qformer, self.model.vit, self.objectives, self.train
        if qformer.width % qformer.heads:
            yield (
                "model.qformer.width",
                f"{qformer.width} is not a multiple of model.qformer.heads {qformer.heads}",
            )
        for key, changed in (("position_std", vit.position_std), ("stem", vit.stem != "patches")):
            if changed and vit.weights != "random":
                yield f"model.vit.{key}", "would replace those of model.vit.weights, which must be `random`"
        if self.data.features != LIVE:
            if not vit.frozen:
                yield "data.features", "needs model.vit.frozen: features of an encoder that is trained change"
            if self.data.augment.any:
                yield "data.features", "computed once, while data.augment changes images; set it to live"
        if objectives.itm and not objectives.itc:
            yield "objectives.itm", "needs objectives.itc: its similarities choose the hard negatives"
        if not objectives.weights():
            first, *others = (f"objectives.{name}" for name in objectives.names())
            yield first, f"off, as are {', '.join(others)}: nothing would be trained"
        if self.optim.warmup_lr > self.optim.peak_lr:
            yield "optim.warmup_lr", f"{self.optim.warmup_lr:g} is above optim.peak_lr {self.optim.peak_lr:g}"
        yield from train.problems()
        yield from self._problems_of_validations()
        if objectives.itm and 1 in (train.global_batch, train.micro_batch):
            key = "train.micro_batch" if train.micro_batch == 1 else "train.global_batch"
            yield key, "1 leaves objectives.itm without negatives"

    def _problems_of_validations(self) -> Iterator[tuple[str, str]]:
        train = self.train
        if train.tracker_reports and not (self.objectives.itg and self.data.valid):
            yield "train.tracker_reports", "needs objectives.itg, which learns to write, and data.valid"
        if train.patience and not train.best:
            yield "train.patience", "needs train.best, which says what a better validation is"
        if train.best and not self.data.valid:
            yield "train.best", "needs data.valid, which is empty"
        if train.best.startswith("recall"):
            if not self.objectives.itc:
                yield "train.best", f"{train.best} needs objectives.itc, which compares images with texts"
            if train.valid_pairs < 20:
                yield "train.best", f"{train.best} needs 20 train.valid_pairs, not {train.valid_pairs}"
