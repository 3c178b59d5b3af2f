"""Each loss against a loop written from the paper, with gradients; the step as a whole; hard negatives."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from medunifier_cli.distributed import draws
from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.itc import TEMPERATURE_RANGE, itc_loss
from medunifier_cli.objectives.itg import decoder_inputs_and_targets, itg_loss
from medunifier_cli.objectives.itm import itm_loss, negative_weights, take_texts
from medunifier_cli.objectives.pretraining import PretrainingLoss
from medunifier_cli.objectives.similarity import image_text_similarity
from tests.reference.plain_encoder import plain_weights
from tests.reference.plain_generator import generate, plain_tig
from tests.reference.plain_objectives import (
    PaddedTexts,
    PlainObjectives,
    hard_negatives,
    loop_itc,
    loop_itg,
    loop_itm,
)
from tests.tiny import CLS, DEC, SEP, VOCABULARY, draw_batch, draw_texts, pack, pad, tiny_model

CLOSE = {"atol": 1e-9, "rtol": 1e-8}
OUR_ADAPTERS = (
    "model.generator.nonlinear=linear-relu", "model.generator.upsample=learned",
    "model.generator.residual=pre-activation",
)  # fmt: skip
"""What `plain_generator` writes out; `test_adapters.py` has the authors'."""
POSITIONS_FP32 = {"atol": 1e-6, "rtol": 1e-5}
"""The positional encoding is a table in fp32."""


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(rand(*shape, seed=seed), dim=-1)


def same_with_gradients(ours: Tensor, plain: Tensor, inputs: list[Tensor], **near: float) -> None:
    torch.testing.assert_close(ours, plain.to(ours.dtype), **near)
    gradients = torch.autograd.grad(ours, inputs, retain_graph=True)
    expected = torch.autograd.grad(plain, inputs, retain_graph=True)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, **near)
        assert bool(one.any())


def test_itc_equals_equations_10_to_12() -> None:
    g_q, g_t = unit(5, 3, 8).requires_grad_(), unit(5, 8, seed=1).requires_grad_()
    temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    similarity = image_text_similarity(g_q, g_t)
    ours = itc_loss(similarity, similarity.T, torch.arange(5), temperature)
    same_with_gradients(ours.loss, loop_itc(g_q, g_t, temperature), [g_q, g_t, temperature], **CLOSE)


def test_itc_smoothing_spreads_its_share_over_all_pairs() -> None:
    similarity, temperature, share = rand(4, 4), torch.tensor(0.1, dtype=torch.float64), 0.3
    losses = []
    for scores in (similarity, similarity.T):
        for k in range(4):
            log_p = torch.log_softmax(scores[k] / temperature, dim=0)
            losses.append(-(1 - share) * log_p[k] - share * log_p.mean())
    ours = itc_loss(similarity, similarity.T, torch.arange(4), temperature, share).loss
    torch.testing.assert_close(ours, torch.stack(losses).mean(), **CLOSE)


def test_itc_accuracy_counts_both_directions() -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.8, 0.2]])  # image 0 and text 0 right, 1 and 1: text only
    seen = itc_loss(similarity, similarity.T, torch.arange(2), torch.tensor(0.1)).monitors
    assert float(seen["itc_accuracy"]) == pytest.approx(3 / 4)


def test_itm_equals_equations_13_and_14() -> None:
    logits, matched = rand(6, 3, 2).requires_grad_(), [1, 1, 0, 0, 0, 0]
    ours = itm_loss(logits.mean(dim=1), torch.tensor(matched)).loss / 6
    same_with_gradients(ours, loop_itm(logits, matched), [logits], **CLOSE)
    with pytest.raises(ValueError, match="6 rows of logits, 5 targets"):
        itm_loss(logits.mean(dim=1), torch.tensor(matched[:5]))


def test_itg_equals_equation_15_over_real_tokens() -> None:
    texts = draw_texts(3, seed=2)
    lengths, text = [len(t) for t in texts], pack(texts)
    grid = rand(3, max(lengths), VOCABULARY).requires_grad_()
    inputs, target_P = decoder_inputs_and_targets(text, DEC)
    read = torch.arange(max(lengths)) < inputs.lengths_B[:, None]
    ours = itg_loss(grid[read], target_P).loss / len(target_P)
    plain = loop_itg(grid, pad(texts, max(lengths)), lengths)
    same_with_gradients(ours, plain, [grid], **CLOSE)


def test_what_the_decoder_reads_and_says() -> None:
    inputs, target_P = decoder_inputs_and_targets(pack([[CLS, 7, 8, SEP], [CLS, SEP], [CLS, 9, SEP]]), DEC)
    assert inputs.ids_N.tolist() == [DEC, 7, 8, DEC, DEC, 9]
    assert inputs.lengths_B.tolist() == [3, 1, 2]
    assert target_P.tolist() == [7, 8, SEP, SEP, 9, SEP]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("equal", [(), ((0, 3), (0, 5))], ids=["all texts differ", "three texts equal"])
def test_a_step_equals_the_plain_objectives(every: int, equal: tuple[tuple[int, int], ...]) -> None:
    """Losses by loops over the plain encoder's passes; negatives drawn there by the same random numbers."""
    model = tiny_model("objectives.tig=0.0", f"model.qformer.cross_attention_every={every}")
    objectives, batch = PretrainingLoss(model, DEC), draw_batch(6, equal=equal)
    losses, _ = objectives(batch)

    plain = PlainObjectives(plain_weights(dict(model.named_parameters())), 4, DEC)
    texts = [ids.tolist() for ids in batch.text.ids_N.split(batch.text.lengths_B.tolist())]
    text = PaddedTexts(pad(texts, 12), [len(t) for t in texts], batch.digest_B.tolist())
    image = plain.look(model.vit(pixels(batch.image_B1HW)))
    uniform = [
        draws.uniform(model.recipe.train.seed, purpose, batch.position_B.tolist()).tolist()
        for purpose in (draws.NEGATIVE_TEXT, draws.NEGATIVE_IMAGE)
    ]
    g_q, g_t = plain.embeddings(image, text)
    score = torch.einsum("kqe,ne->kqn", g_q, g_t).amax(dim=1).detach()
    text_of = hard_negatives(score, 0.07, text.texts, uniform[0])
    image_of = hard_negatives(score.T, 0.07, text.texts, uniform[1])
    images, of, matched = plain.itm_rows(text_of, image_of)
    assert sum(matched) == 6
    assert len(matched) == 18
    rows = PaddedTexts(text.ids_BL[of], [text.lengths[t] for t in of], [])
    expected = {
        "itc": loop_itc(g_q, g_t, model.temperature),
        "itm": loop_itm(plain.match_logits(image[images], rows), matched),
        "itg": loop_itg(plain.word_logits(image, text), text.ids_BL, text.lengths),
    }
    for name, loss in expected.items():
        inputs = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(losses[name], inputs, retain_graph=True, allow_unused=True)
        plain_gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        torch.testing.assert_close(losses[name], loss, **CLOSE)
        for one, other in zip(gradients, plain_gradients, strict=True):
            assert one is not None or other is None or not other.any()
            if one is not None:
                expected_gradient = torch.zeros_like(one) if other is None else other
                torch.testing.assert_close(one, expected_gradient, **CLOSE)
    torch.testing.assert_close(losses["total"], sum(expected.values()), **CLOSE)
    # what the benchmark times is the same mathematics
    benchmarked = plain(model.vit(pixels(batch.image_B1HW)), text, *uniform)
    for name, loss in expected.items():
        torch.testing.assert_close(benchmarked[name], loss, **CLOSE)


def test_tig_equals_equations_18_to_23() -> None:
    model = tiny_model("objectives.itm=0.0", "objectives.itg=0.0", *OUR_ADAPTERS)
    batch = draw_batch(3)
    losses, monitors = PretrainingLoss(model, DEC)(batch)
    image = pixels(batch.image_B1HW)
    memory = model.encode_image(image)
    f_q = memory.query_BQD
    text_cls = model.encode_text(batch.text)
    weights = dict(model.generator.named_parameters())
    generated = generate(weights, f_q, memory.patch_BVD, text_cls, 32)
    loss = plain_tig(image, generated, 0.5)
    inputs = [
        p for n, p in model.named_parameters() if p.requires_grad and "head" not in n and n != "temperature"
    ]
    gradients = torch.autograd.grad(losses["tig"], inputs, allow_unused=True)
    expected = torch.autograd.grad(loss, inputs, allow_unused=True)
    torch.testing.assert_close(losses["tig"], loss, **POSITIONS_FP32)
    assert sum(g is not None for g in gradients) > 50
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, **POSITIONS_FP32)
    for level, name in ((generated[1], "top"), (generated[2], "bottom")):
        share = torch.tensor(list(Counter(level.code.flatten().tolist()).values())) / level.code.numel()
        expected_perplexity = float(torch.exp(-(share * share.log()).sum()))
        assert float(monitors[f"perplexity_{name}"]) == pytest.approx(expected_perplexity, rel=1e-5)
        entropies = []
        for place in level.code.flatten(1).T:  # over the images of the batch, one position at a time
            share = torch.tensor(list(Counter(place.tolist()).values())) / len(place)
            entropies.append(float(-(share * share.log()).sum()))
        expected_place = math.exp(sum(entropies) / len(entropies))
        assert float(monitors[f"place_perplexity_{name}"]) == pytest.approx(expected_place, rel=1e-5)


@pytest.mark.parametrize(
    ("off", "parts"),
    [
        ("itg", {"word_head"}),
        ("tig", {"generator"}),
        ("itm", {"match_head"}),
    ],
)
def test_an_objective_that_is_off_is_neither_built_nor_computed(off: str, parts: set[str]) -> None:
    model = tiny_model(f"objectives.{off}=0.0", dtype=torch.float32)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert not names & parts
    assert {"word_head", "generator", "match_head"} - parts <= names
    losses, monitors = PretrainingLoss(model, DEC)(draw_batch(4))
    assert set(losses) == {"itc", "itm", "itg", "tig", "total"} - {off}
    assert not any(name.startswith(off) for name in monitors)


def test_weights_of_equation_24() -> None:
    model = tiny_model("objectives.itc=0.5", "objectives.itg=2.0", "objectives.tig=1.2", dtype=torch.float32)
    losses, _ = PretrainingLoss(model, DEC)(draw_batch(4))
    by_hand = 0.5 * losses["itc"] + losses["itm"] + 2 * losses["itg"] + 1.2 * losses["tig"]
    torch.testing.assert_close(losses["total"], by_hand)


@pytest.mark.parametrize(("value", "end"), [(0.0001, TEMPERATURE_RANGE[0]), (3.0, TEMPERATURE_RANGE[1])])
def test_temperature_stays_in_its_range(value: float, end: float) -> None:
    model = tiny_model("objectives.tig=0.0", dtype=torch.float32)
    torch.nn.init.constant_(model.temperature, value)
    PretrainingLoss(model, DEC)(draw_batch(4))
    assert model.temperature.item() == pytest.approx(end)


def test_negatives_are_drawn_by_the_softmax_of_similarity() -> None:
    """Chi-square over 20,000 places: 99.9 % quantile for 3 degrees of freedom is 16.3."""
    scores = torch.tensor([[2.0, 0.5, 1.0, -1.0, 1.5]])
    weight = negative_weights(scores, torch.tensor([0]), torch.tensor([7]), torch.arange(7, 12), True, True)
    places = range(20_000)
    drawn = draws.choose(weight.expand(len(places), -1), draws.uniform(1, draws.NEGATIVE_TEXT, places))
    counts = torch.bincount(drawn, minlength=5).double()
    share = torch.softmax(scores[0, 1:].double(), dim=0) * len(places)
    assert counts[0] == 0
    assert float(((counts[1:] - share) ** 2 / share).sum()) < 16.3


def test_random_negatives_are_uniform_over_the_others() -> None:
    scores = torch.tensor([[20.0, 0.5, 1.0, -1.0]])
    weight = negative_weights(scores, torch.tensor([1]), torch.tensor([1]), torch.arange(4), False, True)
    assert weight.tolist() == [[1.0, 0.0, 1.0, 1.0]]


def test_own_pair_and_equal_texts_are_never_negatives() -> None:
    scores = rand(4, 4).float()
    digest = torch.tensor([5, 6, 5, 8])
    weight = negative_weights(scores, torch.arange(4), digest, digest, True, True)
    assert (weight == 0).tolist() == [
        [True, False, True, False],
        [False, True, False, False],
        [True, False, True, False],
        [False, False, False, True],
    ]
    option_off = negative_weights(scores, torch.arange(4), digest, digest, True, False)
    assert (option_off == 0).tolist() == torch.eye(4, dtype=torch.bool).tolist()


def test_a_sure_row_still_finds_a_negative() -> None:
    """Similarities 1 and -1 at the smallest temperature: the softmax of all others underflows."""
    scores = torch.tensor([[1.0, -1.0, -1.0]]) / TEMPERATURE_RANGE[0]
    weight = negative_weights(scores, torch.tensor([0]), torch.tensor([0]), torch.arange(3), True, True)
    drawn = draws.choose(weight.expand(100, -1), draws.uniform(0, draws.NEGATIVE_TEXT, range(100)))
    assert set(drawn.tolist()) == {1, 2}


def test_draws_follow_from_seed_purpose_and_place_alone() -> None:
    first = draws.uniform(3, draws.NEGATIVE_TEXT, range(50))
    assert torch.equal(first[[40, 7]], draws.uniform(3, draws.NEGATIVE_TEXT, [40, 7]))
    assert not torch.equal(first, draws.uniform(4, draws.NEGATIVE_TEXT, range(50)))
    assert not torch.equal(first, draws.uniform(3, draws.NEGATIVE_IMAGE, range(50)))
    assert len(set(first.tolist())) == 50
    assert 0 <= float(first.min()) <= float(first.max()) < 1
    seeds = {draws.step_seed(0, draws.REVIVAL, *place) for place in ((0, 1), (1, 0), (1, 1), (0, 0), (2, 0))}
    assert len(seeds) == 5


@pytest.mark.parametrize(
    ("weights", "uniform", "expected"),
    [
        ([0.0, 0.0, 0.0], 0.5, -1),
        ([0.0, 1.0, 0.0], 0.0, 1),
        ([0.0, 1.0, 0.0], 1 - 2**-53, 1),
        ([1.0, 0.0, 1.0], 0.5, 2),
        ([1.0, 0.0, 1.0], 0.5 - 2**-53, 0),
        ([0.1] * 3 + [0.0], 1 - 2**-53, 2),
        ([1e-12, 0.0], 0.3, 0),
    ],
)
def test_choose_at_the_edges(weights: list[float], uniform: float, expected: int) -> None:
    drawn = draws.choose(torch.tensor([weights]), torch.tensor([uniform], dtype=torch.float64))
    assert drawn.tolist() == [expected]


def test_the_largest_number_still_draws_a_column_with_weight() -> None:
    """Whatever the sum of weights rounds to: the last column is forbidden and never drawn."""
    weight = rand(2000, 5).abs().float()
    weight[:, -1] = 0
    weight[:50, :4] = 0.25  # sums to exactly 1
    drawn = draws.choose(weight, torch.full((2000,), 1 - 2**-53, dtype=torch.float64))
    assert set(drawn.tolist()) == {3}


def test_a_batch_of_one_text_has_no_negatives_and_itm_is_of_positives_alone() -> None:
    model = tiny_model("objectives.tig=0.0", dtype=torch.float32)
    batch = draw_batch(4, equal=[(0, 1), (0, 2), (0, 3)])
    losses, monitors = PretrainingLoss(model, DEC)(batch)
    memory = model.encode_image(pixels(batch.image_B1HW))
    logits = model.match(memory, torch.arange(4), batch.text)
    torch.testing.assert_close(losses["itm"], -torch.log_softmax(logits, dim=1)[:, 1].mean())
    assert float(monitors["itm_accuracy"]) == pytest.approx(
        float((logits[:, 1] > logits[:, 0]).float().mean())
    )


def test_texts_are_taken_by_number() -> None:
    texts = draw_texts(4, seed=9)
    taken = take_texts(pack(texts), torch.tensor([2, 0, 2, 3]))
    expected = pack([texts[2], texts[0], texts[2], texts[3]])
    assert torch.equal(taken.ids_N, expected.ids_N)
    assert torch.equal(taken.lengths_B, expected.lengths_B)
