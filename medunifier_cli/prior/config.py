"""Shape of a PixelSNAIL prior; without torch, so that a recipe can be checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

WIDTH_STEP = 16
"""Every width is a multiple of it, so that vector instructions never leave a rest: see `cache.py`."""


@dataclass(frozen=True)
class PixelSnailConfig:
    """Shape of one prior. The defaults are the paper's top prior; `replace(config, top_codes=512,
    attention=False)` is its bottom one."""

    codes: int = 512
    """K, size of the codebook this prior is over."""
    channels: int = 256
    """C, width of the residual stream; a multiple of 16."""
    blocks: int = 4
    """Blocks, each closed by an attention where `attention` is on."""
    layers: int = 4
    """Gated residual layers of a block."""
    kernel: int = 3
    """Odd width of a residual layer's causal window: that many columns, (kernel + 1) / 2 rows."""
    stem_kernel: int = 5
    """Odd width of the first window, which does not see its own position."""
    attention: bool = True
    """Close each block with causal attention over all earlier positions."""
    heads: int = 8
    """Attention heads; they share A = C / 2 channels."""
    dropout: float = 0.1
    """Share dropped inside each residual layer, in training."""
    concat_elu: bool = False
    """Activation elu([x, -x]) of the original code instead of elu(x); doubles the layers' input."""
    text_width: int = 0
    """D_t of the text feature that enters every gated residual layer; 0 for an unconditional prior."""
    top_codes: int = 0
    """Codes of the top map that conditions this prior; 0 for none (the top prior itself)."""
    top_layers: int = 4
    """Residual layers of the stack that reads the top map."""
    codebook_width: int = 0
    """Read codes as the quantiser's own vectors of this width (`set_codebooks`); 0 learns an embedding."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What the fields must agree on: (field, what is wrong)."""
        for name in ("kernel", "stem_kernel"):
            if getattr(self, name) < 3 or getattr(self, name) % 2 == 0:
                yield name, f"{getattr(self, name)} is not an odd number from 3 on"
        if self.channels < WIDTH_STEP or self.channels % WIDTH_STEP:
            yield "channels", f"{self.channels} is not a multiple of {WIDTH_STEP}"
        if self.attention and (self.channels // 2) % self.heads:
            yield "heads", f"{self.heads} heads do not divide half of {self.channels} channels"
