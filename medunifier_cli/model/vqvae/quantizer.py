"""Vector quantisation (paper, equations 19, 21 and 23).

K codes of width C; n = B * H * W vectors of a map. Distances and losses are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32
from medunifier_cli.recipe.schema import GeneratorConfig

EMA_EPS = 1e-5  # Laplace smoothing of the cluster sizes, as in VQ-VAE-2


@dataclass(frozen=True)
class Quantised:
    """A map after quantisation."""

    z_q_BCHW: Tensor
    """Codes; gradients pass straight through to the encoder output."""
    code_BHW: Tensor
    """int64 index of the chosen code."""
    codebook_loss: Tensor
    """||sg[z_e] - e||^2, mean over elements; 0 with the running-mean codebook, which replaces it."""
    commitment_loss: Tensor
    """||sg[e] - z_e||^2, mean over elements, before its weight beta."""
    count_K: Tensor
    """How often each code was chosen by this rank, float."""


class Quantiser(nn.Module):
    """A codebook. `loss`: trained by its term of equation (23); `ema`: running means, all-reduced.

    With `revive_dead_codes` the codebook starts from encoder outputs of the first batch, and codes that are
    hardly ever chosen move onto encoder outputs of the current batch. Neither touches the loss.
    """

    code_KC: Tensor
    usage_K: Tensor
    started: Tensor
    sum_KC: Tensor

    def __init__(self, recipe: GeneratorConfig) -> None:
        super().__init__()
        self.recipe = recipe
        size, width = recipe.codebook_size, recipe.code_width
        start = torch.empty(size, width).uniform_(-1 / size, 1 / size)
        if recipe.codebook == "loss":
            self.code_KC = nn.Parameter(start)
        else:
            self.register_buffer("code_KC", start)
            self.register_buffer("sum_KC", start.clone())
        self.register_buffer("usage_K", torch.ones(size))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def nearest(self, vectors_nC: Tensor) -> Tensor:
        """[n, C] -> int64 [n]: the code at the smallest Euclidean distance, the first one on a tie."""
        codes = at_least_fp32(self.code_KC.detach())
        distance = (codes * codes).sum(1) - 2 * vectors_nC @ codes.T
        return distance.argmin(dim=1)

    def look_up(self, code_BHW: Tensor) -> Tensor:
        """int64 [B, H, W] -> [B, C, H, W]."""
        return F.embedding(code_BHW, self.code_KC).permute(0, 3, 1, 2)

    def forward(self, z_e_BCHW: Tensor, draws: torch.Generator | None = None) -> Quantised:
        """Quantise a map.

        Args:
            z_e_BCHW: encoder output.
            draws: CPU generator, the same on all ranks, that places dead codes. None: no revival.
        """
        with torch.autocast(z_e_BCHW.device.type, enabled=False):
            z_e = at_least_fp32(z_e_BCHW)
            vectors = z_e.permute(0, 2, 3, 1).flatten(0, 2)
            if self.training and self.recipe.revive_dead_codes and draws is not None:
                self._revive(vectors.detach(), draws)
            code_n = self.nearest(vectors.detach())
            count_K = torch.bincount(code_n, minlength=len(self.code_KC)).to(z_e.dtype)
            code_BHW = code_n.view(z_e.shape[0], *z_e.shape[2:])
            chosen = self.look_up(code_BHW)
            commitment = F.mse_loss(z_e, chosen.detach())
            if self.recipe.codebook == "loss":
                codebook = F.mse_loss(chosen, z_e.detach())
            else:
                codebook = commitment.new_zeros(())
            if self.training:
                self._follow(vectors.detach(), code_n, count_K)
            straight_through = z_e + (chosen - z_e).detach()
        return Quantised(straight_through, code_BHW, codebook, commitment, count_K)

    @torch.no_grad()
    def _follow(self, vectors_nC: Tensor, code_n: Tensor, count_K: Tensor) -> None:
        """Running use of each code, and with `ema` the codes themselves."""
        decay = self.recipe.ema_decay
        self.usage_K.lerp_(world.all_sum(count_K), 1 - decay)
        if self.recipe.codebook != "ema":
            return
        sums = torch.zeros_like(self.sum_KC).index_add_(0, code_n, vectors_nC)
        self.sum_KC.lerp_(world.all_sum(sums), 1 - decay)
        total = self.usage_K.sum()
        size = (self.usage_K + EMA_EPS) / (total + len(self.usage_K) * EMA_EPS) * total
        self.code_KC.copy_(self.sum_KC / size[:, None])

    @torch.no_grad()
    def _revive(self, vectors_nC: Tensor, draws: torch.Generator) -> None:
        """Move dead codes (at first all of them) onto vectors drawn from the global batch."""
        codes = len(self.code_KC)
        everything = world.size() * len(vectors_nC)
        row_K = torch.randint(everything, (codes,), generator=draws)
        if not bool(self.started):
            dead_K = torch.ones(codes, dtype=torch.bool, device=vectors_nC.device)
            self.started.fill_(True)
            self.usage_K.fill_(everything / codes)
        else:
            dead_K = self.usage_K < self.recipe.revive_below * self.usage_K.mean()
        if not bool(dead_K.any()):
            return
        local_K = row_K.to(vectors_nC.device) - world.rank() * len(vectors_nC)
        mine_K = (local_K >= 0) & (local_K < len(vectors_nC))
        drawn = torch.where(mine_K[:, None], vectors_nC[local_K.clamp(0, len(vectors_nC) - 1)], 0.0)
        drawn = world.all_sum(drawn)
        self.code_KC.data[dead_K] = drawn[dead_K].to(self.code_KC.dtype)
        self.usage_K[dead_K] = self.usage_K.mean()
        if self.recipe.codebook == "ema":
            self.sum_KC[dead_K] = drawn[dead_K] * self.usage_K[dead_K, None]


def perplexity(count_K: Tensor) -> Tensor:
    """exp of the entropy of the code frequencies, between 1 and K. `count_K`: how often each was chosen."""
    share = count_K / count_K.sum().clamp(min=1)
    return torch.exp(-(share * share.clamp(min=1e-10).log()).sum())
