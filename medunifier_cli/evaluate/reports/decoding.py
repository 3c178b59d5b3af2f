"""Decode texts token by token, by greedy search, beam search or nucleus sampling, from a step function alone.

Scores are those of transformers' `generate`, to which `tests/parity/test_decoding.py` holds every setting.

B texts to write, W beams, R unfinished rows, K token ids, T tokens of a row including the start token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medunifier_cli.errors import MuError
from medunifier_cli.model.sampling import Draws, draw_codes, uniforms

Step = Callable[[Tensor, Tensor], Tensor]
"""step(token_R, parent_R) -> logits [R, K], int64 in.

Row r continues row `parent_R[r]` of the previous call (in the first call it starts text `parent_R[r]`) with
`token_R[r]`, its latest token. Rows may be dropped, moved and repeated between calls.
"""
STREAM = 2
"""Stream of random numbers for reports; the priors use streams 0 and 1."""


@dataclass(frozen=True)
class Constraints:
    """Constraints on a decoded text."""

    start_id: int
    """Token id that every text starts with; never part of the result."""
    end_id: int
    """Token id that ends a text."""
    max_tokens: int
    """Maximum number of tokens including the end token; a text that reaches it is cut."""
    min_tokens: int = 0
    """Minimum number of tokens before the end token."""
    forbidden_ids: tuple[int, ...] = ()
    """Token ids that never occur in a text."""
    repetition_penalty: float = 1.0
    """Divides positive scores of tokens in the text, multiplies negative ones (Keskar et al. 2019)."""
    no_repeat_ngram: int = 0
    """No n-gram of this many tokens occurs twice; 0 allows it."""

    def check(self) -> None:
        """Raises MuError for a value out of range."""
        for name, value, valid, needed in (
            ("maximum length", self.max_tokens, self.max_tokens >= 1, "1 or more tokens"),
            (
                "minimum length", self.min_tokens, 0 <= self.min_tokens < self.max_tokens,
                f"0 to {self.max_tokens - 1} tokens",
            ),
            (
                "repetition penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf,
                "a number above 0",
            ),
            (
                "no-repeat n-gram", self.no_repeat_ngram, self.no_repeat_ngram >= 0,
                "0 (off) or a number of tokens",
            ),
        ):  # fmt: skip
            if not valid:
                raise MuError(f"{name} must be {needed}, not {value}")

    def apply(self, score_RK: Tensor, tokens_RT: Tensor) -> Tensor:
        """Scores of the next token under these constraints, -inf on forbidden tokens.

        If every token is forbidden, the text ends.
        """
        score_RK = score_RK.clone()
        if self.repetition_penalty != 1:
            before = score_RK.gather(1, tokens_RT)
            penalised = torch.where(
                before < 0, before * self.repetition_penalty, before / self.repetition_penalty
            )
            score_RK.scatter_(1, tokens_RT, penalised)
        n = self.no_repeat_ngram
        if 0 < n <= tokens_RT.shape[1]:
            runs_RXn = tokens_RT.unfold(1, n, 1)
            newest_Rm = tokens_RT[:, tokens_RT.shape[1] - n + 1 :]
            again_RX = (runs_RXn[..., :-1] == newest_Rm[:, None]).all(dim=2)
            row, run = again_RX.nonzero(as_tuple=True)
            score_RK[row, runs_RXn[row, run, -1]] = -torch.inf
        score_RK[:, list(self.forbidden_ids)] = -torch.inf
        if tokens_RT.shape[1] - 1 < self.min_tokens:
            score_RK[:, self.end_id] = -torch.inf
        stuck_R = score_RK.isneginf().all(dim=1)
        score_RK[stuck_R, self.end_id] = 0
        return score_RK


@dataclass(frozen=True)
class DecodedText:
    """One text."""

    tokens: list[int]
    """Without the start and end tokens."""
    ended: bool
    """False if it was cut at the maximum length."""
    score: float = 0.0
    """Beam search only: sum of log probabilities / number of tokens ** length penalty."""


def greedy(step: Step, texts: int, constraints: Constraints, device: torch.device) -> list[DecodedText]:
    """Take the likeliest token at each step.

    Args:
        texts: B.
        device: where `step` wants its tokens.

    Raises:
        MuError: a value out of range, or logits that are NaN.
    """

    def likeliest(score_RK: Tensor, _live: list[int], _position: int) -> Tensor:
        return score_RK.argmax(dim=1)

    return _token_by_token(step, texts, constraints, device, likeliest)


def nucleus(
    step: Step, numbers: Sequence[int], constraints: Constraints, draws: Draws, device: torch.device
) -> list[DecodedText]:
    """Sample each token (Holtzman et al. 2020): temperature, then the top k, then the top p.

    A sampled token depends on the seed, the text's number and the position in the text: the rest of the batch
    changes nothing, except for the last bits of the logits.

    Args:
        numbers: B numbers from 0 to 2^63 - 1, each identifying a text.
        draws: seed, temperature, top k and top p.

    Raises:
        MuError: a value out of range, or logits that are NaN.
    """
    draws.check()
    target_BL = torch.cat(
        [
            torch.from_numpy(uniforms(draws.seed, STREAM, range(number, number + 1), constraints.max_tokens))
            for number in numbers
        ]
    )

    def sampled(score_RK: Tensor, live: list[int], position: int) -> Tensor:
        return draw_codes(score_RK.double().cpu(), target_BL[live, position], draws).to(score_RK.device)

    return _token_by_token(step, len(numbers), constraints, device, sampled)


def _token_by_token(
    step: Step,
    texts: int,
    constraints: Constraints,
    device: torch.device,
    choose: Callable[[Tensor, list[int], int], Tensor],
) -> list[DecodedText]:
    """One row per text; finished rows are dropped from the batch."""
    constraints.check()
    finished: list[DecodedText | None] = [None] * texts
    live = list(range(texts))
    parent_R = torch.arange(texts, device=device)
    tokens_RT = torch.full((texts, 1), constraints.start_id, device=device)
    for position in range(constraints.max_tokens):
        score_RK = constraints.apply(_checked(step(tokens_RT[:, -1], parent_R)), tokens_RT)
        tokens_RT = torch.cat([tokens_RT, choose(score_RK, live, position)[:, None]], dim=1)
        ended_R = (tokens_RT[:, -1] == constraints.end_id).tolist()
        for row, ended in enumerate(ended_R):
            if ended or position + 1 == constraints.max_tokens:
                tokens = tokens_RT[row, 1:].tolist()
                finished[live[row]] = DecodedText(tokens[:-1] if ended else tokens, ended)
        unfinished = [row for row, ended in enumerate(ended_R) if not ended]
        if not unfinished:
            break
        live = [live[row] for row in unfinished]
        parent_R = torch.tensor(unfinished, device=device)
        tokens_RT = tokens_RT[parent_R]
    return [text for text in finished if text is not None]


def beam_search(
    step: Step,
    texts: int,
    constraints: Constraints,
    beams: int,
    device: torch.device,
    length_penalty: float = 1.0,
) -> list[DecodedText]:
    """The likeliest text that beam search with W beams finds.

    Each step extends the W best unfinished rows of a text and takes the 2 W best extensions; those among the
    first W that end are finished candidates. The search for a text stops when it has W candidates and no
    unfinished row scores better than the worst of them (`early_stopping=False` of transformers).

    Args:
        texts: B.
        beams: W >= 1.
        length_penalty: the score is log probability / number of tokens ** length_penalty; larger values give
            longer texts.

    Raises:
        MuError: a value out of range, or logits that are NaN.
    """
    constraints.check()
    if beams < 1 or not math.isfinite(length_penalty):
        raise MuError(
            f"beam search needs 1 or more beams and a finite length penalty, not {beams}, {length_penalty}"
        )
    finished: list[list[DecodedText]] = [[] for _ in range(texts)]
    live = list(range(texts))
    score_BW = torch.zeros(texts, 1, device=device)
    parent_R = torch.arange(texts, device=device)
    tokens_RT = torch.full((texts, 1), constraints.start_id, device=device)
    for length in range(1, constraints.max_tokens + 1):
        width = score_BW.shape[1]
        likely_RK = constraints.apply(
            _checked(step(tokens_RT[:, -1], parent_R)).log_softmax(dim=1), tokens_RT
        )
        ids = likely_RK.shape[1]
        total = (likely_RK.view(len(live), width, ids) + score_BW[:, :, None]).flatten(1)
        best_BC, index_BC = total.topk(min(2 * beams, width * ids))
        row_BC = index_BC // ids + width * torch.arange(len(live), device=device)[:, None]
        token_BC = index_BC % ids
        closed_BC = (token_BC == constraints.end_id) | (length == constraints.max_tokens)
        running_BC, order_BC = best_BC.masked_fill(closed_BC, -torch.inf).sort(
            dim=1, descending=True, stable=True
        )
        score_BW, order_BW = running_BC[:, :beams], order_BC[:, :beams]
        norm = length**length_penalty
        _collect_finished(
            finished, live, best_BC, row_BC, token_BC, closed_BC, tokens_RT, constraints, beams, norm
        )
        best_running = (score_BW[:, 0] / norm).tolist()
        unfinished = [
            text
            for text, number in enumerate(live)
            if best_running[text]
            > (finished[number][-1].score if len(finished[number]) == beams else -math.inf)
        ]
        if not unfinished:
            break
        rows = torch.tensor(unfinished, device=device)
        live = [live[text] for text in unfinished]
        score_BW = score_BW[rows]
        parent_R = row_BC[rows].gather(1, order_BW[rows]).flatten()
        token_R = token_BC[rows].gather(1, order_BW[rows]).flatten()
        tokens_RT = torch.cat([tokens_RT[parent_R], token_R[:, None]], dim=1)
    return [candidates[0] for candidates in finished]


def _collect_finished(
    finished: list[list[DecodedText]], live: list[int], best_BC: Tensor, row_BC: Tensor, token_BC: Tensor,
    closed_BC: Tensor, tokens_RT: Tensor, constraints: Constraints, beams: int, norm: float,
) -> None:  # fmt: skip
    """Add the extensions that ended among the first W of each text; keep the W best, the earlier of ties."""
    first = (closed_BC & best_BC.isfinite())[:, :beams]
    for text, candidate in first.nonzero().tolist():
        tokens = tokens_RT[row_BC[text, candidate], 1:].tolist()
        token = int(token_BC[text, candidate])
        ended = token == constraints.end_id
        score = float(best_BC[text, candidate]) / norm
        candidates = finished[live[text]]
        candidates.append(DecodedText(tokens if ended else [*tokens, token], ended, score))
        candidates.sort(key=lambda candidate: -candidate.score)
        del candidates[beams:]


def _checked(logits_RK: Tensor) -> Tensor:
    """The logits in fp32 at least, because beam search sums their logarithms."""
    if logits_RK.isnan().any():
        raise MuError(
            "the model's logits are NaN: its weights are damaged or its training diverged; use an earlier "
            "checkpoint or train again"
        )
    return logits_RK if logits_RK.dtype == torch.float64 else logits_RK.float()
