"""What a recipe of `mu fit-prior` may say (paper, section 4.2 and appendix 2; PixelSNAIL as in VQ-VAE-2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

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


WIDTH_STEP = 16
"""Every width is a multiple of it, so that no product leaves a rest to the vector instructions; see
`prior/cache.py`."""


@dataclass(frozen=True)
class PixelSnailConfig:
    """One PixelSNAIL. The paper gives no sizes; these are VQ-VAE-2's at a width that fits 8x8 maps."""

    channels: Count = 256
    """C, width of the residual stream, a multiple of 16."""
    blocks: Count = 4
    """Blocks, each closed by a causal attention where `attention` is on."""
    layers: Count = 4
    """Gated residual layers of a block."""
    kernel: Count = 3
    """Odd width of a layer's causal window: that many columns, (kernel + 1) / 2 rows."""
    stem_kernel: Count = 5
    """Odd width of the first window, which does not see its own position."""
    attention: bool = True
    """Close each block with attention over all earlier positions."""
    heads: Count = 8
    """Attention heads; they share A = C / 2 channels."""
    dropout: Annotated[float, Bounds(0, 0.9)] = 0.1
    """Inside each residual layer, in training."""
    concat_elu: bool = False
    """Activation elu([x, -x]) of the original code instead of elu(x); doubles a layer's input."""
    top_layers: CountOrZero = 4
    """Bottom prior only: residual layers of the stack that reads the top map."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What the fields must agree on: (field, what is wrong)."""
        for name in ("kernel", "stem_kernel"):
            if getattr(self, name) < 3 or getattr(self, name) % 2 == 0:
                yield name, f"{getattr(self, name)} is not an odd number from 3 on"
        if self.channels < WIDTH_STEP or self.channels % WIDTH_STEP:
            yield "channels", f"{self.channels} is not a multiple of {WIDTH_STEP}"
        if self.attention and (self.channels // 2) % self.heads:
            yield "heads", f"{self.heads} heads do not divide half of {self.channels} channels"


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
    top: PixelSnailConfig = field(default_factory=PixelSnailConfig)
    bottom: PixelSnailConfig = field(default_factory=lambda: PixelSnailConfig(attention=False))


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
        yield from self.train.problems()
        if self.optim.warmup_lr > self.optim.peak_lr:
            yield "optim.warmup_lr", f"{self.optim.warmup_lr:g} is above optim.peak_lr {self.optim.peak_lr:g}"
        for level, snail in (("top", self.prior.top), ("bottom", self.prior.bottom)):
            for key, what in snail.problems():
                yield f"prior.{level}.{key}", what
