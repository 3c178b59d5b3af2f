"""Vector quantisation of feature maps with one codebook (paper, equations 19, 21 and 23).

K codes of width C; n = B * H * W vectors of a map. Distances and losses are fp32 at least.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.data.batch import send
from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32, exact_products, full_precision
from medunifier_cli.recipe.schema import GeneratorConfig

COLLAPSED = 1.5
"""Perplexity below which codes carry no information; 1 means one code everywhere."""
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
    hardly ever chosen are set to encoder outputs of the current batch. The paper does neither; both leave the
    loss as it is.
    """

    code_KC: Tensor
    usage_K: Tensor
    started: Tensor
    sum_KC: Tensor
    changed_in_forward = ("code_KC",)
    """Parameters that a forward pass changes, by revival: a step that is skipped gives them back."""

    def __init__(self, recipe: GeneratorConfig) -> None:
        super().__init__()
        self.recipe = recipe
        size, width = recipe.codebook_size, recipe.code_width
        # the usual start of VQ-VAEs: narrow, so that no code is out of reach of the first encoder outputs
        start = torch.empty(size, width).uniform_(-1 / size, 1 / size)
        if recipe.codebook == "loss":
            self.code_KC = nn.Parameter(start)
        else:
            self.register_buffer("code_KC", start)
            self.register_buffer("sum_KC", start.clone())
        # in `loss` mode too, where no mean needs it: it is what tells which codes are dead
        self.register_buffer("usage_K", torch.ones(size))
        # in the state dict, so that a resumed run does not take its first batch for the very first
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def nearest(self, vectors_nC: Tensor) -> Tensor:
        """[n, C] -> int64 [n]: the code at the smallest Euclidean distance, the first one on a tie."""
        codes = at_least_fp32(self.code_KC.detach())
        # ||v - e||^2 = ||v||^2 - 2 v.e + ||e||^2, where ||v||^2 is the same for all codes of a row. Left out,
        # the argmin stays, and no large constant costs digits of the small differences
        distance = (codes * codes).sum(1) - 2 * vectors_nC @ codes.T
        return distance.argmin(dim=1)

    def look_up(self, code_BHW: Tensor) -> Tensor:
        """int64 [B, H, W] -> [B, C, H, W]."""
        return F.embedding(code_BHW, self.code_KC).permute(0, 3, 1, 2)

    def forward(self, z_e_BCHW: Tensor, draws: torch.Generator | None = None) -> Quantised:
        """Quantise a map.

        Args:
            z_e_BCHW: encoder output.
            draws: CPU generator, in the same state on all ranks, that decides which vectors replace dead
                codes. None: no revival.
        """
        # near codes differ by less than bf16 resolves, and running means would stop moving in it
        with full_precision(z_e_BCHW.device), exact_products():
            z_e = at_least_fp32(z_e_BCHW)
            vectors = z_e.permute(0, 2, 3, 1).flatten(0, 2)
            # before the nearest codes are looked up, so that this batch can choose the codes it revived
            if self.training and self.recipe.revive_dead_codes and draws is not None:
                self._revive(vectors.detach(), draws)
            code_n = self.nearest(vectors.detach())
            count_K = count_of(code_n, len(self.code_KC), z_e.dtype)
            code_BHW = code_n.view(z_e.shape[0], *z_e.shape[2:])
            z_q = self.look_up(code_BHW)
            commitment = F.mse_loss(z_e, z_q.detach())
            if self.recipe.codebook == "loss":
                codebook = F.mse_loss(z_q, z_e.detach())
            else:
                codebook = commitment.new_zeros(())
            # after the look-up: the codes that this step's loss was computed with are the old ones
            if self.training:
                self._ema_update(vectors.detach(), code_n, count_K)
            # argmin has no gradient; z_e gets that of z_q, as if both were equal (van den Oord et al. 2017)
            straight_through = z_e + (z_q - z_e).detach()
        return Quantised(straight_through, code_BHW, codebook, commitment, count_K)

    @torch.no_grad()
    def _ema_update(self, vectors_nC: Tensor, code_n: Tensor, count_K: Tensor) -> None:
        """Update the running use of each code and, with `ema`, the code: the running mean of its vectors."""
        # counts and sums of all ranks, so that every rank computes the same codebook and none is broadcast
        decay = self.recipe.ema_decay
        self.usage_K.lerp_(world.all_sum(count_K), 1 - decay)
        if self.recipe.codebook != "ema":
            return
        sums = torch.zeros_like(self.sum_KC).index_add_(0, code_n, vectors_nC)
        self.sum_KC.lerp_(world.all_sum(sums), 1 - decay)
        # smoothed, and scaled back to the old total: a code that is never chosen has a size near 0, and its
        # mean would be a division by it
        total = self.usage_K.sum()
        size = (self.usage_K + EMA_EPS) / (total + len(self.usage_K) * EMA_EPS) * total
        self.code_KC.copy_(self.sum_KC / size[:, None])

    @torch.no_grad()
    def _revive(self, vectors_nC: Tensor, draws: torch.Generator) -> None:
        """Set dead codes (at first all of them) to random vectors of the global batch."""
        codes = len(self.code_KC)
        global_rows = world.size() * len(vectors_nC)
        # Rows of the global batch, and for every code, dead or not: each rank draws the same numbers from the
        # same generator, whatever it holds, so any number of ranks revives a code with the same vector.
        row_K = _distinct_rows(codes, global_rows, draws)
        # No `if` on these tensors: the CPU would wait for the GPU in each pass of each level, to learn
        # if there is a dead code. Where none is, nothing changes, for the price of an all-reduce.
        # At the start, use is what an evenly used codebook would have: at its own scale from then on.
        even_use = torch.full_like(self.usage_K, global_rows / codes)
        usage_K = torch.where(self.started, self.usage_K, even_use)
        # relative to the mean use, so that the threshold does not depend on batch or codebook size
        is_dead_K = ~self.started | (usage_K < self.recipe.revive_below * usage_K.mean())
        self.started.fill_(True)
        # A rank fills in the rows that it holds and leaves 0 for the others: the sum over ranks is the vector
        # itself, without gathering all vectors of all ranks.
        (local_K,) = send([row_K - world.rank() * len(vectors_nC)], vectors_nC.device)
        is_local_K = (local_K >= 0) & (local_K < len(vectors_nC))
        vector_KC = torch.where(is_local_K[:, None], vectors_nC[local_K.clamp(0, len(vectors_nC) - 1)], 0.0)
        vector_KC = world.all_sum(vector_KC)
        self.code_KC.data.copy_(torch.where(is_dead_K[:, None], vector_KC, self.code_KC.data))
        # the mean use gives a new code time to prove itself before it can be called dead again
        self.usage_K.copy_(torch.where(is_dead_K, usage_K.mean(), usage_K))
        if self.recipe.codebook == "ema":
            # the sum must match, or the next update would divide the old sum by the new use
            sum_KC = vector_KC * self.usage_K[:, None]
            self.sum_KC.copy_(torch.where(is_dead_K[:, None], sum_KC, self.sum_KC))


def _distinct_rows(codes: int, rows: int, draws: torch.Generator) -> Tensor:
    """Of `rows` vectors one for each code, int64 [codes]; no vector twice, where there are enough of them."""
    # Rounding would choose between two codes at one vector, otherwise on two ranks than on one: products of
    # other sizes are summed in another order.
    order = torch.randperm(rows, generator=draws)
    return order.repeat(-(-codes // rows))[:codes]


def count_of(code_n: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    """How often each code occurs among int64 [n], as numbers of `dtype`, [K]."""
    # not `bincount`: it asks the device for the largest code and waits for the answer
    counts = torch.zeros(codes, dtype=dtype, device=code_n.device)
    return counts.index_add_(0, code_n, torch.ones_like(code_n, dtype=dtype))


def place_counts(code_BHW: Tensor, codes: int) -> Tensor:
    """How often each code was chosen at each position of the map, float [H * W, K]."""
    place_PB = code_BHW.flatten(1).T
    counts = torch.zeros(len(place_PB), codes, device=code_BHW.device)
    return counts.scatter_add_(1, place_PB, torch.ones_like(place_PB, dtype=counts.dtype))


def perplexity(count_K: Tensor) -> Tensor:
    """exp of the entropy of the code frequencies, between 1 and K; over leading dimensions, of each row.

    Args:
        count_K: how often each code was chosen, [..., K].
    """
    share = count_K / count_K.sum(dim=-1, keepdim=True).clamp(min=1)
    # an unused code adds 0 * log(1e-10) = 0, the limit of p log p
    return torch.exp(-(share * share.clamp(min=1e-10).log()).sum(dim=-1))


def place_perplexity(count_PK: Tensor) -> Tensor:
    """Perplexity at one position, as a geometric mean over the positions; 1 if all images share one map.

    The perplexity over the map alone misleads: codes that stand for positions use the whole codebook, and
    still hold nothing of the image.
    """
    return torch.exp(perplexity(count_PK).log().mean())
