"""Greedy, beam search and sampling against transformers' `generate` and a full enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration

from medunifier_cli.errors import MuError
from medunifier_cli.evaluate.reports.decoding import (
    Constraints,
    DecodedText,
    Step,
    beam_search,
    greedy,
    nucleus,
)
from medunifier_cli.evaluate.reports.text_cache import TextCache
from medunifier_cli.model.sampling import Draws
from tests.tiny import DEC, SEP, VOCABULARY, pack, scatter, tiny_model

CPU = torch.device("cpu")
FIRST, END, WORDS, LONGEST = 0, 2, 23, 14


@pytest.fixture(scope="module")
def bart() -> BartForConditionalGeneration:
    """A small encoder and decoder with large random weights: some texts end early, some repeat themselves."""
    torch.manual_seed(4)
    config = BartConfig(
        vocab_size=WORDS, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=40,
        bos_token_id=FIRST, pad_token_id=1, eos_token_id=END, decoder_start_token_id=FIRST,
        forced_eos_token_id=None, dropout=0.0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    scatter(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.final_logits_bias[0, END] = 2.2
    model.generation_config.forced_eos_token_id = None
    return model


def prompts(count: int) -> Tensor:
    """What the encoder reads, one row a text."""
    return torch.randint(3, WORDS, (count, 6), generator=torch.Generator().manual_seed(8))


def as_step(model: BartForConditionalGeneration, read: Tensor) -> Step:
    """The slow way: the whole decoder anew for every token."""
    state: dict[str, Tensor] = {"said": torch.empty(len(read), 0, dtype=torch.int64), "read": read}

    def step(token_R: Tensor, parent_R: Tensor) -> Tensor:
        state["said"] = torch.cat([state["said"][parent_R], token_R[:, None]], dim=1)
        state["read"] = state["read"][parent_R]
        with torch.no_grad():
            out = model(input_ids=state["read"], decoder_input_ids=state["said"], use_cache=False)
        return out.logits[:, -1]

    return step


def generated(model: BartForConditionalGeneration, read: Tensor, **settings: Any) -> list[list[int]]:
    """Texts of transformers, without the first token, the end and what follows it."""
    with torch.no_grad():
        rows = model.generate(
            read, max_new_tokens=LONGEST, do_sample=False, suppress_tokens=[FIRST, 1], **settings
        )
    texts = []
    for row in rows[:, 1:].tolist():
        texts.append(row[: row.index(END)] if END in row else [token for token in row if token != 1])
    return texts


RULES: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    ({}, {}, 1.0),
    ({"min_tokens": 5}, {"min_new_tokens": 5}, 0.0),
    ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}, 2.5),
    ({"no_repeat_ngram": 1, "min_tokens": 3}, {"no_repeat_ngram_size": 1, "min_new_tokens": 3}, -1.0),
    ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}, 1.0),
    ({"repetition_penalty": 0.8, "min_tokens": 2}, {"repetition_penalty": 0.8, "min_new_tokens": 2}, 2.0),
]
"""Ours, theirs, and a length penalty for beam search."""


@pytest.mark.parametrize(("ours", "theirs", "_penalty"), RULES)
def test_greedy_equals_transformers(
    bart: BartForConditionalGeneration, ours: dict[str, Any], theirs: dict[str, Any], _penalty: float
) -> None:
    read = prompts(9)
    found = greedy(
        as_step(bart, read), 9, Constraints(FIRST, END, LONGEST, forbidden_ids=(FIRST, 1), **ours), CPU
    )
    expected = generated(bart, read, num_beams=1, **theirs)
    assert [one.tokens for one in found] == expected
    assert len({tuple(text) for text in expected}) > 3


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize(("ours", "theirs", "penalty"), RULES)
def test_beam_search_equals_transformers(
    bart: BartForConditionalGeneration,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    penalty: float,
    beams: int,
) -> None:
    read, constraints = prompts(9), Constraints(FIRST, END, LONGEST, forbidden_ids=(FIRST, 1), **ours)
    found = beam_search(as_step(bart, read), 9, constraints, beams, CPU, penalty)
    expected = generated(bart, read, num_beams=beams, length_penalty=penalty, **theirs)
    assert [one.tokens for one in found] == expected
    assert len({tuple(text) for text in expected}) > 3


def test_the_cases_end_early_and_are_cut(bart: BartForConditionalGeneration) -> None:
    """Or the tests above would leave finished rows unseen."""
    found = greedy(
        as_step(bart, prompts(12)),
        12,
        Constraints(FIRST, END, LONGEST, forbidden_ids=(FIRST, 1), no_repeat_ngram=2),
        CPU,
    )
    assert {one.ended for one in found} == {True, False}
    assert len({len(one.tokens) for one in found}) > 2


def table(seed: int, words: int) -> Callable[[tuple[int, ...]], Tensor]:
    """Logits as a function of the tokens said: any text model there is."""

    def logits(said: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + hash(said) % 1_000_000)
        return torch.randn(words, generator=generator, dtype=torch.float64) * 2

    return logits


def step_of(model: Callable[[tuple[int, ...]], Tensor], texts: int) -> Step:
    said: list[tuple[int, ...]] = [()] * texts

    def step(token_R: Tensor, parent_R: Tensor) -> Tensor:
        said[:] = [(*said[p], t) for p, t in zip(parent_R.tolist(), token_R.tolist(), strict=True)]
        return torch.stack([model(row) for row in said])

    return step


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_the_best_of_all_texts(seed: int, penalty: float) -> None:
    words, longest = 4, 4
    model = table(seed, words)
    scores: dict[tuple[int, ...], float] = {}
    for length in range(1, longest + 1):
        for said in itertools.product(range(1, words), repeat=length):
            if 2 in said[:-1] or (length < longest and said[-1] != 2):
                continue
            total = sum(float(model((0, *said[:i])).log_softmax(0)[token]) for i, token in enumerate(said))
            scores[said] = total / length**penalty
    best = max(scores, key=lambda said: scores[said])
    found = beam_search(
        step_of(model, 1),
        1,
        Constraints(start_id=0, end_id=2, max_tokens=longest, forbidden_ids=(0,)),
        200,
        CPU,
        penalty,
    )[0]
    assert tuple(found.tokens) == (best[:-1] if best[-1] == 2 else best)
    assert found.score == pytest.approx(scores[best], abs=1e-9)


def test_draws_follow_the_distribution_and_its_limits() -> None:
    model = table(1, 6)
    constraints = Constraints(start_id=0, end_id=2, max_tokens=1, forbidden_ids=(0,))
    logits = model((0,)).clone()
    logits[0] = -torch.inf
    for draws in (Draws(3), Draws(3, temperature=0.5), Draws(3, top_k=2), Draws(3, top_p=0.7)):
        found = nucleus(step_of(model, 4000), range(4000), constraints, draws, CPU)
        seen = Counter(one.tokens[0] if one.tokens else 2 for one in found)
        share = (logits / draws.temperature).softmax(0)
        order = share.argsort(descending=True).tolist()
        kept = order[: draws.top_k] if draws.top_k else order
        if draws.top_p < 1:
            kept = order[: 1 + sum(float(share[order[: i + 1]].sum()) < 0.7 for i in range(6))]
        kept = [token for token in kept if share[token] > 0]
        assert set(seen) <= set(kept)
        for token in kept:
            expected = float(share[token] / share[kept].sum())
            assert seen[token] / 4000 == pytest.approx(expected, abs=0.03)


def test_a_sampled_text_depends_on_seed_and_number_alone() -> None:
    model = table(2, 9)
    constraints = Constraints(start_id=0, end_id=2, max_tokens=12, forbidden_ids=(0,))

    def drawn(numbers: list[int], seed: int = 5) -> list[list[int]]:
        found = nucleus(step_of(model, len(numbers)), numbers, constraints, Draws(seed, top_p=0.9), CPU)
        return [one.tokens for one in found]

    numbers = [7, 2**63 - 1, 0, 12, 3, 5, 1, 9]
    together = drawn(numbers)
    assert together == [drawn([number])[0] for number in numbers]
    assert together[::-1] == drawn(numbers[::-1])
    assert len({tuple(text) for text in together}) > 5
    assert drawn(numbers, seed=6) != together


def test_a_text_ends_where_every_token_is_forbidden() -> None:
    constraints = Constraints(
        start_id=0, end_id=2, max_tokens=9, forbidden_ids=(0,), no_repeat_ngram=1, min_tokens=8
    )
    for found in (
        greedy(step_of(table(0, 4), 2), 2, constraints, CPU),
        beam_search(step_of(table(0, 4), 2), 2, constraints, 3, CPU),
        nucleus(step_of(table(0, 4), 2), [0, 1], constraints, Draws(0), CPU),
    ):
        assert [sorted(one.tokens) for one in found] == [[1, 3], [1, 3]]


def test_bad_settings_and_nan_are_errors() -> None:
    good = {"start_id": 0, "end_id": 2, "max_tokens": 5}
    for bad, words in (
        ({"max_tokens": 0}, "maximum length must be 1 or more"),
        ({"min_tokens": 5}, "minimum length must be 0 to 4"),
        ({"repetition_penalty": 0.0}, "repetition penalty must be"),
        ({"no_repeat_ngram": -1}, "no-repeat n-gram must be"),
    ):
        with pytest.raises(MuError, match=words):
            greedy(step_of(table(0, 4), 1), 1, Constraints(**{**good, **bad}), CPU)
    with pytest.raises(MuError, match="1 or more beams"):
        beam_search(step_of(table(0, 4), 1), 1, Constraints(**good), 0, CPU)
    with pytest.raises(MuError, match="temperature"):
        nucleus(step_of(table(0, 4), 1), [0], Constraints(**good), Draws(0, temperature=math.nan), CPU)
    with pytest.raises(MuError, match="logits are NaN"):
        greedy(lambda token_R, _: torch.full((len(token_R), 4), torch.nan), 1, Constraints(**good), CPU)


@pytest.mark.parametrize("every", [1, 2])
def test_cached_logits_are_those_of_the_whole_text_at_once(every: int) -> None:
    model = tiny_model(f"model.qformer.cross_attention_every={every}", dtype=torch.float32).eval()
    texts = torch.tensor([[DEC, *row] for row in words(5, 11)])
    features = torch.randn(5, 17, 48, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        memory = model.qformer.encode_image(features)
        whole = model.decode_text(memory, pack(texts.tolist())).view(5, 12, -1)
        cache = TextCache(model, memory, max_tokens=12)
        for place in range(12):
            logits = cache.step(texts[:, place], torch.arange(5))
            torch.testing.assert_close(logits, whole[:, place], atol=1e-4, rtol=1e-5)
    assert whole.std() > 0.3


def words(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(5, VOCABULARY - 1, (count, length), generator=generator).tolist()


def recomputed(model: Any, memory: Any) -> Step:
    """The step function without a cache: every text from its first token on."""
    state: dict[str, Any] = {
        "said": torch.empty(len(memory.query_BQD), 0, dtype=torch.int64),
        "memory": memory,
    }

    def step(token_R: Tensor, parent_R: Tensor) -> Tensor:
        old = state["memory"]
        own = [(k[parent_R], v[parent_R]) for k, v in old.own]
        state["memory"] = type(old)(old.feature_BVD, old.query_BQD[parent_R], old.cross, own)
        state["said"] = torch.cat([state["said"][parent_R], token_R[:, None]], dim=1)
        text = model.qformer.decode_text(state["memory"], pack(state["said"].tolist()))
        logits: Tensor = model.word_logits(text.view(*state["said"].shape, -1)[:, -1])
        return logits

    return step


SEARCHES: dict[str, Callable[[Step, Constraints], list[DecodedText]]] = {
    "greedy": lambda step, constraints: greedy(step, 7, constraints, CPU),
    "beam": lambda step, constraints: beam_search(step, 7, constraints, 3, CPU),
    "nucleus": lambda step, constraints: nucleus(step, list(range(7)), constraints, Draws(1, top_p=0.9), CPU),
}


@pytest.mark.parametrize("how", SEARCHES)
def test_texts_with_the_cache_are_those_without(how: str) -> None:
    """Rows end, leave and change places on the way; in fp64, so that no tie can hide a wrong row."""
    model = tiny_model(seed=4).eval()
    with torch.inference_mode():
        model.word_head.bias[SEP] += 2.5
        features = torch.randn(7, 17, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        memory = model.qformer.encode_image(features)
        constraints = Constraints(start_id=DEC, end_id=SEP, max_tokens=11, forbidden_ids=(DEC, 0))
        fast = SEARCHES[how](TextCache(model, memory, 12).step, constraints)
        slow = SEARCHES[how](recomputed(model, memory), constraints)
    assert [one.tokens for one in fast] == [one.tokens for one in slow]
    assert [one.score for one in fast] == pytest.approx([one.score for one in slow], abs=1e-9)
    assert len({len(one.tokens) for one in fast}) > 1
