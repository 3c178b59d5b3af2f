"""The keys of a recipe of `mu fit-prior` (paper, section 4.2 and appendix 2; PixelSNAIL as in VQ-VAE-2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from medunifier_cli.recipe.bounds import Bounds, CountOrZero, Depth, DepthOrZero, NonNegative, Share, Size
from medunifier_cli.recipe.schema_train import OptimConfig, TrainConfig


@dataclass(frozen=True)
class PriorDataConfig:
    """The samples to encode. Image size and tokenizer are those of the pre-training run."""

    dataset: str = ""
    """Name of the data set whose codes are modelled; empty for that of the pre-training run. Same as
    `--data`. Where a data set has labels and no texts, the prompts of its classes stand in for them."""
    shards: str = ""
    """Folder of its shards; empty for that of the pre-training run, or for `$MU_DATA/shards/<dataset>`."""
    train: str = ""
    """Split to train on; empty for that of the pre-training run, or for `train` of another data set."""
    valid: str = ""
    """Held-out split on which nats per code are measured; empty for that of the pre-training run, or for
    `valid` of another data set, if it has one."""
    limit: CountOrZero = 0
    """Use only the first N samples of the train split; 0 for all."""
    features: str = ""
    """Features of the image encoder, if it is frozen: `live`, `cached` or a folder, as for pre-training;
    empty for that of the pre-training run, or for `live` with another data set."""


WIDTH_STEP = 16
"""Widths must be multiples of it, so that no element is left over from a vector loop, where `exp` may round
differently; see `prior/cache.py`."""


@dataclass(frozen=True)
class PixelSnailConfig:
    """One PixelSNAIL. The paper gives no sizes; these are those of VQ-VAE-2, at a width that suits 8x8
    maps."""

    channels: Size = 256
    """Width C of the residual stream, a multiple of 16."""
    blocks: Depth = 4
    """Number of blocks."""
    layers: Depth = 4
    """Number of gated residual layers in a block."""
    kernel: Size = 3
    """Width of the causal window of a layer, an odd number of columns; it has (kernel + 1) / 2 rows."""
    stem_kernel: Size = 5
    """Width of the first causal window, odd; it excludes the position that is predicted."""
    attention: bool = True
    """End each block with causal attention over all earlier positions."""
    heads: Size = 8
    """Number of attention heads, which share A = C / 2 channels."""
    dropout: Annotated[float, Bounds(0, 0.9)] = 0.1
    """Dropout inside each residual layer."""
    concat_elu: bool = False
    """Use the activation elu([x, -x]) of the original code instead of elu(x); doubles the input of a
    layer."""
    top_layers: DepthOrZero = 4
    """Number of residual layers that read the top map (bottom prior only)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between fields: (field, what is wrong)."""
        for name in ("kernel", "stem_kernel"):
            if getattr(self, name) < 3 or getattr(self, name) % 2 == 0:
                yield name, f"{getattr(self, name)} is not an odd number of at least 3"
        if self.channels < WIDTH_STEP or self.channels % WIDTH_STEP:
            yield "channels", f"{self.channels} is not a multiple of {WIDTH_STEP}"
        if self.attention and (self.channels // 2) % self.heads:
            yield "heads", f"{self.heads} heads do not divide half of {self.channels} channels"


@dataclass(frozen=True)
class MaskedConfig:
    """A masked prior: one transformer over both levels. Not in the paper; sizes are ours."""

    width: Size = 192
    """Width C of a token, which holds a top code and the 2 x 2 bottom codes under it; a multiple of 16."""
    layers: Depth = 3
    """Number of transformer blocks."""
    heads: Size = 6
    """Number of attention heads, which share the width."""
    dropout: Annotated[float, Bounds(0, 0.9)] = 0.1
    """Dropout behind each attention and in each feed-forward network."""
    top_rounds: Depth = 3
    """Rounds in which `mu synthesize` decodes the top codes."""
    bottom_rounds: Depth = 5
    """Rounds in which it then decodes the bottom codes."""
    choice_noise: NonNegative = 4.5
    """Scale of the Gumbel noise on the confidence that decides which codes of a round are kept; it falls to
    0 in the last round. 0 always keeps the most confident codes, which makes images alike."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between fields: (field, what is wrong)."""
        if self.width % WIDTH_STEP:
            yield "width", f"{self.width} is not a multiple of {WIDTH_STEP}"
        if self.width % self.heads:
            yield "heads", f"{self.heads} heads do not divide a width of {self.width}"


@dataclass(frozen=True)
class PriorConfig:
    """The prior over the codes of a pre-training run."""

    kind: Literal["pixelsnail", "masked"] = "pixelsnail"
    """`pixelsnail`: two priors that go code by code, as in the paper; `masked`: one transformer over both
    levels that decodes in a few rounds and reads texts word by word."""
    pretrained: str = ""
    """Pre-training run whose codes are modelled, by name or folder; empty for the newest. Same as
    `--run`."""
    condition: Literal["none", "text"] = "none"
    """`none`: unconditional, as in the paper; `text`: both levels take the text, so that images follow
    prompts."""
    drop_text: Share = 0.1
    """Share of training samples whose text is dropped, which classifier-free guidance needs."""
    sections: bool = True
    """Train on single sections of a text as well, so that short prompts work."""
    codebook_vectors: bool = False
    """Know codes by a linear map of their codebook vectors: of kind `pixelsnail` instead of learned
    embeddings; of kind `masked` beside them, less the mean vector of the places where a code is used."""
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    top: PixelSnailConfig = field(default_factory=PixelSnailConfig)
    bottom: PixelSnailConfig = field(default_factory=lambda: PixelSnailConfig(attention=False))

    @property
    def reads_tokens(self) -> bool:
        """Whether texts are read token by token, and not as one vector."""
        return self.kind == "masked" and self.condition == "text"


@dataclass(frozen=True)
class PriorRecipe:
    """Training of priors on the codes of a pre-trained run: two PixelSNAILs, or one masked transformer."""

    stage: Literal["fit-prior"] = "fit-prior"
    """The verb that the recipe is for."""
    name: str = ""
    """Name of the run if `--name` gives none; empty for the name of the recipe file."""
    data: PriorDataConfig = field(default_factory=PriorDataConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inception: str = ""
    """File of torch-fidelity's Inception weights, for the FID of `mu score --real`; empty for torch's
    cache."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between fields: (dotted key, what is wrong, naming every other key it read)."""
        yield from self.train.problems()
        if self.optim.warmup_lr > self.optim.peak_lr:
            yield "optim.warmup_lr", f"{self.optim.warmup_lr:g} is above optim.peak_lr {self.optim.peak_lr:g}"
        for level, snail in (("top", self.prior.top), ("bottom", self.prior.bottom)):
            for key, what in snail.problems():
                yield f"prior.{level}.{key}", what
        for key, what in self.prior.masked.problems():
            yield f"prior.masked.{key}", what
