"""A masked prior: what it loses in training, and what it costs to tell a map from nothing.

Training hides part of the codes and asks for them (MaskGIT, Chang et al. 2022, section 3.1). Each row is seen
twice in a step, once for either level; see `masking.hidden_in_training`.

Nats are those of decoding a map code by code in a random order, of which all are equally likely (Uria et al.
2014; Hoogeboom et al. 2022, equation 4): with m of L codes hidden, m uniform from 1 to L, L times the mean
over hidden codes of their nats is an unbiased estimate. It is an upper bound on the map's -log p by Jensen's
inequality, so it compares with the nats of a prior that has one fixed order.

Letters: B rows, T top edge, P = T * T cells, S = 5 slots of a cell, K codes, N numbers of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.sampling import Draws
from medunifier_cli.prior.baseline import POSITION_WEIGHT, PSEUDO_COUNT
from medunifier_cli.prior.contract import CodeBatch, TextStates, Values
from medunifier_cli.prior.masked.decoding import check_inputs, fill_tiles
from medunifier_cli.prior.masked.masking import chances, hidden_in_measuring, hidden_in_training
from medunifier_cli.prior.masked.network import LEVELS, SLOTS, MaskedNetwork, to_cells, to_maps
from medunifier_cli.prior.masked.shape import MaskedShape

DECODING = ("top_rounds", "bottom_rounds", "choice_noise")
"""Settings of the recipe that change what is sampled, and no weight."""
MEASUREMENTS = 4
"""Numbers of hidden codes for which a map is measured: more change the mean by less and less."""


class MaskedPrior(nn.Module):
    """Both levels as one transformer; `prior.contract.Prior` says what each method is for."""

    tokens = True

    def __init__(self, shape: MaskedShape) -> None:
        """Raises MuError if the sizes do not fit together."""
        super().__init__()
        for name, problem in shape.problems():
            raise MuError(f"prior.masked.{name}: {problem}")
        self.shape = shape
        self.network = MaskedNetwork(shape)
        self.chances = chances(self.network.cells)
        self.decoding = {name: getattr(shape, name) for name in DECODING}

    def set_codebooks(self, top_KW: Tensor, bottom_KW: Tensor) -> None:
        """The quantisers' vectors, for a prior with `codebook_width`; before `prepare`."""
        assert self.network.vectors is not None
        self.network.vectors.books = (top_KW, bottom_KW)

    @torch.no_grad()
    def prepare(self, top_nTT: Tensor, bottom_nGG: Tensor) -> None:
        """Start each code's bias from the frequencies at its place, so that what is learned is the rest."""
        network = self.network
        cell_nPS = to_cells(top_nTT, bottom_nGG)
        if network.vectors is not None:
            network.vectors.set_from(cell_nPS)
        rows, size = len(cell_nPS), self.shape.codes
        for level in LEVELS:
            count_K = torch.bincount(cell_nPS[:, :, level].flatten(), minlength=size).double() + PSEUDO_COUNT
            share_K = POSITION_WEIGHT * count_K / count_K.sum()
            for place in range(network.cells):
                for slot in range(level.start, level.stop):
                    own_K = torch.bincount(cell_nPS[:, place, slot], minlength=size) + share_K
                    network.bias[place, slot] = (own_K / (rows + POSITION_WEIGHT)).log().to(network.bias)

    def forward(self, batch: CodeBatch) -> tuple[Values, Values]:
        """Nats of a hidden code and accuracy, by level: a mean over a row, then over rows."""
        cell_BPS = to_cells(batch.top_BTT, batch.bottom_BGG)
        assert batch.chance_BN is not None
        hidden = hidden_in_training(batch.chance_BN, self.network.cells)
        losses: Values = {}
        monitors: Values = {}
        for level, (nats, hit, hidden_BPS) in self._nats(batch, cell_BPS, hidden).items():
            # A mean over the row first: over all hidden codes of a batch, a row would count by what other
            # rows hide, and two ranks would train otherwise than one.
            share_BPS = hidden_BPS / hidden_BPS.sum((1, 2), keepdim=True)
            losses[level] = (nats * share_BPS).sum((1, 2)).mean()
            monitors[f"{level}_accuracy"] = (hit * share_BPS).sum((1, 2)).mean()
        losses["total"] = losses["top"] + losses["bottom"]
        return losses, monitors

    @torch.no_grad()
    def sums(self, batch: CodeBatch, mask_B: Tensor) -> Tensor:
        """Float64 [2, 2]: nats and hits of top and bottom, summed over the rows in `mask_B`, estimated."""
        cell_BPS = to_cells(batch.top_BTT, batch.bottom_BGG)
        assert batch.chance_BN is not None
        total = torch.zeros(2, 2, dtype=torch.float64, device=mask_B.device)
        for part in range(MEASUREMENTS):
            hidden = hidden_in_measuring(batch.chance_BN, self.network.cells, part / MEASUREMENTS)
            for row, (nats, hit, hidden_BPS) in enumerate(self._nats(batch, cell_BPS, hidden).values()):
                weight_BPS = hidden_BPS / hidden_BPS.sum((1, 2), keepdim=True) * hidden_BPS[0].numel()
                weight_BPS = (weight_BPS * mask_B[:, None, None]).double()
                total[row] += torch.stack([(nats * weight_BPS).sum(), (hit * weight_BPS).sum()])
        return total / MEASUREMENTS

    def sample(
        self, top_edge: int, numbers: range, draws: Draws, text: Tensor | TextStates | None
    ) -> tuple[Tensor, Tensor]:
        """Codes of both levels, decoded in rounds; see `decoding`."""
        cells = torch.full((len(numbers), self.network.cells, SLOTS), self.network.hidden)
        return to_maps(self.fill(cells, numbers, draws, text))

    def fill(
        self, cell_nPS: Tensor, numbers: range, draws: Draws, text: Tensor | TextStates | None
    ) -> Tensor:
        """Draw the hidden codes of some samples; the other codes stay as they are.

        Args:
            cell_nPS: int64, hidden codes as number K; the same places are hidden in each sample.
            numbers: consecutive sample numbers. The same number gives the same codes in every call.
            draws: seed, temperature, truncation and guidance; any guidance but 1 costs a second pass.
            text: of these samples; None samples without text.

        Returns:
            int64 [n, P, S] on the CPU.

        Raises:
            MuError: for a value out of range, texts that do not fit the prior, or logits that are not finite.
        """
        draws.check()
        assert not isinstance(text, Tensor)
        check_inputs(self.shape, numbers, draws, text)
        was_training = self.training
        self.eval()  # dropout would make codes depend on the global generator
        try:
            return fill_tiles(self.network, cell_nPS, numbers, draws, text)
        finally:
            self.train(was_training)

    def _nats(
        self, batch: CodeBatch, cell_BPS: Tensor, hidden: tuple[Tensor, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Of each level: nats, hits and whether a code is hidden, [B, P, 1] or [B, P, 4]."""
        rows, network = len(cell_BPS), self.network
        text = network.keys_of_text(batch.tokens, batch.drop_B, rows)
        # both views of all rows in one pass
        seen = torch.cat([cell_BPS.masked_fill(hidden_BPS, network.hidden) for hidden_BPS in hidden])
        out_top, out_bottom = network.body(seen, None if text is None else text.twice()).chunk(2)
        logits = (network.top_logits(out_top)[:, :, None], network.bottom_logits(out_bottom))
        values = {}
        for level, slots, logits_BPSK, hidden_BPS in zip(
            ("top", "bottom"), LEVELS, logits, hidden, strict=True
        ):
            code_BPS = cell_BPS[:, :, slots]
            # rows of codes: the form for which PyTorch has a deterministic kernel on a GPU
            nats = F.cross_entropy(logits_BPSK.flatten(0, 2), code_BPS.flatten(), reduction="none")
            hit = (logits_BPSK.detach().argmax(-1) == code_BPS).float()
            values[level] = (nats.view(code_BPS.shape), hit, hidden_BPS[:, :, slots])
        return values
