"""The masked prior beside a slow reference: what it hides, its loss and likelihood, and its decoding."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medunifier_cli.errors import MuError
from medunifier_cli.model.sampling import Draws
from medunifier_cli.prior.contract import CodeBatch, TextStates
from medunifier_cli.prior.masked.decoding import schedule
from medunifier_cli.prior.masked.masking import hidden_in_training
from medunifier_cli.prior.masked.network import _from_place, to_cells, to_maps
from medunifier_cli.prior.masked.prior import MaskedPrior
from medunifier_cli.prior.masked.shape import MaskedShape
from tests.reference.slow_masked import (
    BOTTOM,
    TOP,
    cell_of_maps,
    decode_by_hand,
    hidden_by_hand,
    log_p,
    nats_of_all_orders,
)
from tests.tiny import scatter

TINY = MaskedShape(
    width=16, layers=2, heads=2, dropout=0.0, top_rounds=2, bottom_rounds=3, choice_noise=1.0, codes=7,
    text_width=6, top_edge=2,
)  # fmt: skip


def tiny(**changes: object) -> MaskedPrior:
    torch.manual_seed(0)
    prior = MaskedPrior(replace(TINY, **changes)).eval()  # type: ignore[arg-type]
    scatter(prior)
    if prior.shape.codebook_width:
        prior.set_codebooks(*torch.randn(2, 7, prior.shape.codebook_width))
        prior.prepare(torch.randint(7, (20, 2, 2)), torch.randint(7, (20, 4, 4)))
    return prior


def texts(rows: int, tokens: int = 5) -> TextStates:
    torch.manual_seed(1)
    return TextStates(torch.randn(rows, tokens, 6), torch.arange(rows) % tokens + 1)


def batch_of(prior: MaskedPrior, rows: int, drop: bool = False) -> CodeBatch:
    torch.manual_seed(2)
    edge, codes = prior.shape.top_edge, prior.shape.codes
    top, bottom = torch.randint(codes, (rows, edge, edge)), torch.randint(codes, (rows, 2 * edge, 2 * edge))
    chance = torch.rand(rows, prior.chances, dtype=torch.float64)
    drop_B = torch.arange(rows) % 2 == 0 if drop else None
    return CodeBatch(top, bottom, None, drop_B, texts(rows), chance)


def part(batch: CodeBatch, rows: slice) -> CodeBatch:
    assert batch.tokens is not None
    assert batch.chance_BN is not None
    tokens = TextStates(batch.tokens.state_BMD[rows], batch.tokens.length_B[rows])
    drop = None if batch.drop_B is None else batch.drop_B[rows]
    return CodeBatch(batch.top_BTT[rows], batch.bottom_BGG[rows], None, drop, tokens, batch.chance_BN[rows])


def test_a_cell_holds_a_top_code_and_the_four_under_it() -> None:
    top, bottom = torch.randint(9, (2, 3, 3)), torch.randint(9, (2, 6, 6))
    cells = to_cells(top, bottom)
    assert cells.tolist() == [cell_of_maps(t, b) for t, b in zip(top.tolist(), bottom.tolist(), strict=True)]
    assert all(a.equal(b) for a, b in zip(to_maps(cells), (top, bottom), strict=True))


def test_each_view_hides_what_its_random_numbers_say() -> None:
    prior = tiny()
    chance = torch.rand(40, prior.chances, dtype=torch.float64)
    first, second = hidden_in_training(chance, 4)
    for row in range(40):
        assert (first[row].tolist(), second[row].tolist()) == hidden_by_hand(chance[row].tolist(), 4)
    assert first.any((1, 2)).all()  # a row that hides nothing would divide by 0
    assert second.any((1, 2)).all()


def test_loss_is_a_mean_over_hidden_codes_and_then_over_rows() -> None:
    prior = tiny()
    batch = batch_of(prior, 6, drop=True)
    losses, monitors = prior(batch)
    assert batch.chance_BN is not None
    assert batch.tokens is not None
    cells = to_cells(batch.top_BTT, batch.bottom_BGG).tolist()
    for level, name in ((TOP, "top"), (BOTTOM, "bottom")):
        nats, hits = [], []
        for row in range(6):
            hidden = hidden_by_hand(batch.chance_BN[row].tolist(), 4)[level]
            seen = [
                [7 if h else code for code, h in zip(*both, strict=True)]
                for both in zip(cells[row], hidden, strict=True)
            ]
            text = None if row % 2 == 0 else batch.tokens.rows([row])
            told = [
                (log_p(prior.network, seen, text, cell, slot), cells[row][cell][slot])
                for cell in range(4)
                for slot in ((0,) if level == TOP else (1, 2, 3, 4))
                if hidden[cell][slot]
            ]
            nats.append(-sum(float(p[code]) for p, code in told) / len(told))
            hits.append(sum(int(p.argmax()) == code for p, code in told) / len(told))
        assert float(losses[name].detach()) == pytest.approx(sum(nats) / 6, rel=1e-5)
        assert float(monitors[f"{name}_accuracy"]) == pytest.approx(sum(hits) / 6)
    assert float(losses["total"].detach()) == pytest.approx(
        float((losses["top"] + losses["bottom"]).detach())
    )


def test_halves_of_a_batch_train_as_the_whole_does() -> None:
    """So two ranks train as one: their gradients are averaged."""
    prior = tiny()
    batch = batch_of(prior, 8, drop=True)

    def gradient(parts: list[CodeBatch]) -> dict[str, Tensor]:
        prior.zero_grad()
        for one in parts:
            (prior(one)[0]["total"] / len(parts)).backward()
        return {name: p.grad.clone() for name, p in prior.named_parameters() if p.grad is not None}

    whole, halves = gradient([batch]), gradient([part(batch, slice(0, 4)), part(batch, slice(4, 8))])
    assert whole.keys() == halves.keys() == dict(prior.named_parameters()).keys()
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-4, atol=1e-6)


def test_nats_are_those_of_every_order_in_which_a_map_can_be_told() -> None:
    """One cell: four bottom codes have 24 orders, and the four numbers of hidden codes are all measured."""
    prior = tiny(top_edge=1)
    one = batch_of(prior, 1)
    orders = list(itertools.permutations(range(4)))
    chance = torch.zeros(24, prior.chances, dtype=torch.float64)
    chance[:, 4:] = torch.tensor(orders) / 4
    tokens = texts(5).rows([3] * 24)
    batch = CodeBatch(
        one.top_BTT.expand(24, -1, -1), one.bottom_BGG.expand(24, -1, -1), None, None, tokens, chance
    )
    sums = prior.sums(batch, torch.arange(24) < 24)
    cells, text = to_cells(one.top_BTT, one.bottom_BGG)[0].tolist(), texts(5).rows([3])
    for level in (TOP, BOTTOM):
        expected = nats_of_all_orders(prior.network, cells, text, level)
        assert float(sums[level, 0]) / 24 == pytest.approx(expected, rel=1e-5)
    half = prior.sums(batch, torch.arange(24) < 12) + prior.sums(batch, torch.arange(24) >= 12)
    torch.testing.assert_close(half, sums)


def test_a_dropped_text_is_no_text_and_what_follows_a_text_is_not_read() -> None:
    prior = tiny()
    cells, tokens = torch.randint(8, (3, 4, 5)), texts(3)

    def out(text: TextStates | None, drop: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return prior.network.body(cells, prior.network.keys_of_text(text, drop, 3))

    longer = TextStates(torch.cat((tokens.state_BMD, torch.full((3, 4, 6), 99.0)), 1), tokens.length_B)
    torch.testing.assert_close(out(longer), out(tokens))
    torch.testing.assert_close(out(tokens, torch.ones(3, dtype=torch.bool)), out(None))
    changed = TextStates(tokens.state_BMD + 1e-3 * torch.randn(3, 5, 6), tokens.length_B)
    assert not torch.allclose(out(changed), out(tokens))


def test_the_bias_starts_at_the_frequencies_of_each_place() -> None:
    prior = tiny()
    top, bottom = torch.randint(7, (50, 2, 2)), torch.randint(7, (50, 4, 4))
    top[:, 1, 0] = 3
    prior.prepare(top, bottom)
    share = prior.network.bias[2, 0].softmax(0)
    overall = torch.bincount(top.flatten(), minlength=7) + 1.0
    expected = (50 * (torch.arange(7) == 3) + 16 * overall / overall.sum()) / 66
    torch.testing.assert_close(share, expected)


@pytest.mark.parametrize("codes", [1, 3, 16, 64])
@pytest.mark.parametrize("rounds", [1, 4, 9])
def test_the_schedule_keeps_a_code_in_every_round_and_ends_with_none_hidden(codes: int, rounds: int) -> None:
    counts = schedule(codes, rounds)
    assert counts[-1] == 0
    assert len(counts) <= rounds
    assert all(a > b for a, b in itertools.pairwise([codes, *counts]))


def test_codes_that_mean_the_same_at_two_places_have_the_same_vector() -> None:
    """Codes 0 and 1 are used at one place, 2 and 3 at another; a finding adds the same to both."""
    here, there, finding = torch.tensor([5.0, -1, 0]), torch.tensor([-2.0, 4, 1]), torch.tensor([0.0, 0.5, 2])
    book = torch.stack([here, here + finding, there, there + finding, torch.full((3,), 99.0)])
    codes = torch.tensor([[0, 2], [0, 3], [1, 2], [0, 2], [1, 3], [0, 2]])
    vector = _from_place(book, codes)
    torch.testing.assert_close(vector[0], vector[2])
    torch.testing.assert_close(vector[1], vector[3])
    along = (vector[1] - vector[0]).float()
    torch.testing.assert_close(along / along.norm(), finding / finding.norm())
    assert not vector[4].any(), "a code that is not used"
    assert float(vector[codes].square().mean()) == pytest.approx(1)


def test_a_prior_that_knows_codes_by_vectors_keeps_them_with_its_weights() -> None:
    prior, tokens = tiny(codebook_width=4), texts(3)
    loaded = MaskedPrior(prior.shape)
    loaded.load_state_dict(prior.state_dict())
    drawn = [one.sample(2, range(3), Draws(1), tokens) for one in (prior, loaded)]
    assert all(a.equal(b) for a, b in zip(*drawn, strict=True))
    prior.network.vectors.get_buffer("bottom_KW").zero_()  # type: ignore[union-attr]
    assert not prior.sample(2, range(3), Draws(1), tokens)[1].equal(drawn[0][1])
    prior = tiny(codebook_width=4)
    prior(batch_of(prior, 6))[0]["total"].backward()
    gradient = {name: p.grad for name, p in prior.named_parameters()}
    for name in ("enter.0", "enter.1", "leave.0", "leave.1"):
        assert gradient[f"network.vectors.{name}.weight"].any(), name  # type: ignore[union-attr]


@pytest.mark.parametrize("vectors", [0, 4])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_rounds_give_the_codes_of_decoding_by_hand(guidance: float, vectors: int) -> None:
    prior, tokens = tiny(codebook_width=vectors), texts(3)
    draws = Draws(5, temperature=0.8, guidance=guidance)
    top, bottom = prior.sample(2, range(6, 9), draws, tokens)
    cells = to_cells(top, bottom)
    nothing = [[7] * 5 for _ in range(4)]
    for row in range(3):
        text = tokens.rows([row])
        assert cells[row].tolist() == decode_by_hand(prior.network, nothing, text, 6 + row, draws)


def test_a_sample_is_the_same_in_every_batch_and_with_any_number_of_threads() -> None:
    prior, tokens, draws = tiny(), texts(21), Draws(3, guidance=2.0)
    top, bottom = prior.sample(2, range(21), draws, tokens)
    threads = torch.get_num_threads()
    try:
        for first, last, count in ((0, 5, 1), (5, 18, 2), (18, 21, 1), (7, 8, 2)):
            torch.set_num_threads(count)
            again = prior.sample(2, range(first, last), draws, tokens.rows(range(first, last)))
            assert again[0].equal(top[first:last])
            assert again[1].equal(bottom[first:last])
    finally:
        torch.set_num_threads(threads)
    assert not prior.sample(2, range(21), Draws(4, guidance=2.0), tokens)[1].equal(bottom)


def test_filling_keeps_every_code_that_is_not_hidden() -> None:
    prior, tokens = tiny(), texts(3)
    torch.manual_seed(4)
    film = torch.randint(7, (1, 4, 5))
    hidden = film.clone()
    hidden[:, 1:3] = prior.network.hidden
    draws = Draws(0, guidance=1.5)
    filled = prior.fill(hidden.expand(3, -1, -1), range(3), draws, tokens)
    assert filled[:, [0, 3]].equal(film[:, [0, 3]].expand(3, -1, -1))
    assert (filled < 7).all()
    for row in range(3):
        by_hand = decode_by_hand(prior.network, hidden[0].tolist(), tokens.rows([row]), row, draws)
        assert filled[row].tolist() == by_hand


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    prior = tiny()
    with pytest.raises(MuError, match=r"states of texts are \(2, 5, 6\), the prior needs \(3, tokens, 6\)"):
        prior.sample(2, range(3), Draws(0), texts(2))
    with pytest.raises(MuError, match="needs a prompt"):
        prior.sample(2, range(3), Draws(0, guidance=2), None)
    with pytest.raises(MuError, match="fitted without text"):
        tiny(text_width=0).sample(2, range(3), Draws(0), texts(3))
    with pytest.raises(MuError, match="3 heads do not divide"):
        tiny(heads=3)
    with torch.no_grad():
        prior.network.bias[0, 0, 0] = torch.nan
    with pytest.raises(MuError, match="NaN or infinite logits"):
        prior.sample(2, range(3), Draws(0), texts(3))
