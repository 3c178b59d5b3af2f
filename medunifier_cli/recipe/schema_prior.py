"""What a recipe of `mu fit-prior` may say (paper, section 4.2 and appendix 2; PixelSNAIL as in VQ-VAE-2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from medunifier_cli.prior.config import PixelSnailConfig
from medunifier_cli.recipe.schema import Bounds, Count, CountOrZero, OptimConfig, Share, TrainConfig


@dataclass(frozen=True)
class PriorDataConfig:
    """Which samples become codes. Data set, texts and image size are the pre-training run's."""

    train: str = ""
    """Split to fit on; empty for the run's own train split."""
    valid: str = ""
    """Held-out split that nats per code are told on; empty for the run's own."""
    limit: CountOrZero = 0
    """Use only the first so many samples of the train split; 0 for all."""


@dataclass(frozen=True)
class Snail:
    """Shape of one PixelSNAIL. The paper gives none; these are VQ-VAE-2's at a width that fits 8x8 maps."""

    channels: Count = 256
    """Width of the residual stream, a multiple of 16."""
    blocks: Count = 4
    """Blocks, each closed by a causal attention where `attention` is on."""
    layers: Count = 4
    """Gated residual layers of a block."""
    kernel: Count = 3
    """Odd width of a layer's causal window."""
    stem_kernel: Count = 5
    """Odd width of the first window."""
    attention: bool = True
    """Close each block with attention over all earlier positions."""
    heads: Count = 8
    """Attention heads; they share half of the channels."""
    dropout: Annotated[float, Bounds(0, 0.9)] = 0.1
    """Inside each residual layer."""
    concat_elu: bool = False
    """Activation elu([x, -x]) of the original code instead of elu(x)."""
    top_layers: CountOrZero = 4
    """Bottom prior only: residual layers of the stack that reads the top map."""


@dataclass(frozen=True)
class PriorConfig:
    """The two priors of a pre-training run."""

    pretrained: str = ""
    """Pre-training run whose codes are learned, by name or folder; empty for the newest. `--from` says the
    same."""
    condition: Literal["none", "text"] = "none"
    """`none`: the paper's. `text`: the text's feature enters both priors, so that prompts can be obeyed."""
    drop_text: Share = 0.1
    """Share of training rows that do without their text, so that guidance works."""
    sections: bool = True
    """Show each section of a text alone too, so that short prompts are no surprise."""
    codebook_vectors: bool = False
    """Read codes as the quantiser's own vectors behind a linear map, instead of learned embeddings."""
    top: Snail = field(default_factory=Snail)
    bottom: Snail = field(default_factory=lambda: Snail(attention=False))


@dataclass(frozen=True)
class PriorRecipe:
    """Top and bottom PixelSNAIL over the codes of a pre-trained run."""

    stage: Literal["fit-prior"] = "fit-prior"
    """What this recipe is for."""
    name: str = ""
    """Name of the run, when the command line gives none; empty for the recipe's file name."""
    data: PriorDataConfig = field(default_factory=PriorDataConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inception: str = ""
    """File of torch-fidelity's Inception weights, for FID by `mu score --real`; empty for torch's cache."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What the fields must agree on: (dotted key, what is wrong, naming every other key looked at)."""
        train = self.train
        if train.micro_batch and train.global_batch % train.micro_batch:
            yield (
                "train.global_batch",
                f"{train.global_batch} is not a multiple of train.micro_batch {train.micro_batch}",
            )
        if self.optim.warmup_lr > self.optim.peak_lr:
            yield "optim.warmup_lr", f"{self.optim.warmup_lr:g} is above optim.peak_lr {self.optim.peak_lr:g}"
        for level, snail in (("top", self.prior.top), ("bottom", self.prior.bottom)):
            for key, what in snail_config(snail, codes=1).problems():
                yield f"prior.{level}.{key}", what


def snail_config(
    snail: Snail, *, codes: int, text_width: int = 0, top_codes: int = 0, codebook_width: int = 0
) -> PixelSnailConfig:
    """A recipe's shape with what follows from the pre-trained model."""
    return PixelSnailConfig(
        codes=codes, channels=snail.channels, blocks=snail.blocks, layers=snail.layers, kernel=snail.kernel,
        stem_kernel=snail.stem_kernel, attention=snail.attention, heads=snail.heads, dropout=snail.dropout,
        concat_elu=snail.concat_elu, text_width=text_width, top_codes=top_codes,
        top_layers=snail.top_layers, codebook_width=codebook_width,
    )  # fmt: skip
