"""The codebook: gradients and running means worked out by hand, batch norm against PyTorch's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from medunifier_cli.model.norm import GlobalBatchNorm
from medunifier_cli.model.vqvae.quantizer import EMA_EPS, Quantiser, perplexity
from medunifier_cli.recipe.schema import GeneratorConfig


def two_codes(**changes: object) -> Quantiser:
    """Codes (0, 0) and (4, 2)."""
    quantiser = Quantiser(replace(GeneratorConfig(codebook_size=2, code_width=2), **changes))  # type: ignore[arg-type]
    with torch.no_grad():
        quantiser.code_KC.copy_(torch.tensor([[0.0, 0.0], [4.0, 2.0]]))
        if quantiser.recipe.codebook == "ema":
            quantiser.sum_KC.copy_(quantiser.code_KC)
    return quantiser


def three_vectors() -> Tensor:
    """[1, 2, 1, 3]: (1, 0) and (-1, 1) lie nearest to code 0, (3, 3) to code 1."""
    return torch.tensor([[[[1.0, -1.0, 3.0]], [[0.0, 1.0, 3.0]]]], requires_grad=True)


def test_forward_takes_the_nearest_code() -> None:
    quantised = two_codes()(three_vectors())
    assert quantised.code_BHW.tolist() == [[[0, 0, 1]]]
    assert quantised.z_q_BCHW.tolist() == [[[[0.0, 0.0, 4.0]], [[0.0, 0.0, 2.0]]]]
    assert quantised.count_K.tolist() == [2.0, 1.0]


def test_a_tie_takes_the_first_code() -> None:
    assert two_codes().nearest(torch.tensor([[2.0, 1.0]])).tolist() == [0]


def test_straight_through_passes_the_gradient_unchanged() -> None:
    quantiser, z_e = two_codes(), three_vectors()
    weight = torch.tensor([[[[1.0, 2.0, 3.0]], [[-4.0, 5.0, -6.0]]]])
    (quantiser(z_e).z_q_BCHW * weight).sum().backward()
    assert torch.equal(z_e.grad, weight)  # type: ignore[arg-type]
    assert quantiser.code_KC.grad is None  # the decoder does not move the codes


def test_commitment_moves_the_encoder_only() -> None:
    """Mean over 6 elements of (z_e - e)^2: differences (1, 0), (-1, 1), (-1, 1), so 5 / 6."""
    quantiser, z_e = two_codes(), three_vectors()
    loss = quantiser(z_e).commitment_loss
    loss.backward()
    assert loss.item() == pytest.approx(5 / 6)
    by_hand = torch.tensor([[[[1.0, -1.0, -1.0]], [[0.0, 1.0, 1.0]]]]) * 2 / 6
    torch.testing.assert_close(z_e.grad, by_hand)
    assert quantiser.code_KC.grad is None


def test_the_codebook_term_moves_the_codes_only() -> None:
    quantiser, z_e = two_codes(), three_vectors()
    loss = quantiser(z_e).codebook_loss
    loss.backward()
    assert loss.item() == pytest.approx(5 / 6)
    # code 0 is pulled to (1, 0) and (-1, 1): -2/6 * (0, 1); code 1 to (3, 3): -2/6 * (-1, 1)
    torch.testing.assert_close(quantiser.code_KC.grad, torch.tensor([[0.0, -1.0], [1.0, -1.0]]) / 3)
    assert z_e.grad is None


def test_running_means_by_hand() -> None:
    """Two steps at decay 0.75 from counts (1, 1) and sums equal to the codes."""
    quantiser = two_codes(codebook="ema", ema_decay=0.75).train()
    count, total = [1.0, 1.0], [[0.0, 0.0], [4.0, 2.0]]
    vectors = ([2, 1], [[0.0, 1.0], [3.0, 3.0]])
    for _ in range(2):
        quantised = quantiser(three_vectors())
        assert quantised.code_BHW.tolist() == [[[0, 0, 1]]]
        assert float(quantised.codebook_loss) == 0.0
        count = [0.75 * c + 0.25 * n for c, n in zip(count, vectors[0], strict=True)]
        total = [[0.75 * a + 0.25 * b for a, b in zip(s, v, strict=True)]
                 for s, v in zip(total, vectors[1], strict=True)]  # fmt: skip
        smooth = [(c + EMA_EPS) / (sum(count) + 2 * EMA_EPS) * sum(count) for c in count]
        expected = [[value / n for value in s] for s, n in zip(total, smooth, strict=True)]
        torch.testing.assert_close(quantiser.code_KC, torch.tensor(expected))
    torch.testing.assert_close(quantiser.usage_K, torch.tensor(count))


def test_running_means_settle_on_the_means_of_their_vectors() -> None:
    quantiser = two_codes(codebook="ema", ema_decay=0.9).train()
    for _ in range(200):
        quantiser(three_vectors())
    torch.testing.assert_close(
        quantiser.code_KC, torch.tensor([[0.0, 0.5], [3.0, 3.0]]), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("codebook", ["loss", "ema"])
def test_evaluation_changes_nothing(codebook: str) -> None:
    quantiser = two_codes(codebook=codebook, revive_dead_codes=True).eval()
    before = {name: tensor.clone() for name, tensor in quantiser.state_dict().items()}
    quantiser(three_vectors(), torch.Generator().manual_seed(0))
    for name, tensor in quantiser.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("codebook", ["loss", "ema"])
def test_dead_codes_move_onto_vectors_of_the_batch(codebook: str) -> None:
    """Decay 1 holds the running means still, so that nothing but the revival moves a code."""
    recipe = GeneratorConfig(codebook_size=8, code_width=2, revive_dead_codes=True, ema_decay=1.0)
    quantiser = Quantiser(replace(recipe, codebook=codebook)).train()  # type: ignore[arg-type]
    generator, first = torch.Generator().manual_seed(0), torch.randn(4, 2, 3, 3) + 5
    quantiser(first, generator)
    assert bool((distance(quantiser.code_KC, first) < 1e-4).all())  # all codes start from the first batch
    # later only those move that are hardly ever chosen
    quantiser.usage_K.copy_(torch.tensor([9.0, 9, 9, 0, 9, 9, 0, 9]))
    if codebook == "ema":
        quantiser.sum_KC.copy_(quantiser.code_KC * quantiser.usage_K[:, None])
    second = torch.randn(4, 2, 3, 3) - 5
    quantiser(second, generator)
    near_second = distance(quantiser.code_KC, second) < 1e-4
    assert near_second.tolist() == [False, False, False, True, False, False, True, False]
    assert bool((distance(quantiser.code_KC[~near_second], first) < 1e-4).all())
    # and they have a chance to be chosen before they count as dead again
    assert bool((quantiser.usage_K[near_second] > 0.05 * quantiser.usage_K.mean()).all())


@pytest.mark.parametrize(("codes", "each"), [(18, 1), (9, 1), (36, 2)])
def test_no_two_codes_start_from_one_vector_while_there_are_others(codes: int, each: int) -> None:
    """Of two codes at one vector rounding would choose, and rounds otherwise on two ranks than on one."""
    recipe = GeneratorConfig(codebook_size=codes, code_width=2, revive_dead_codes=True, ema_decay=1.0)
    quantiser, first = Quantiser(recipe).train(), torch.randn(2, 2, 3, 3)
    quantiser(first, torch.Generator().manual_seed(0))
    _, times = quantiser.code_KC.detach().unique(dim=0, return_counts=True)
    assert times.tolist() == [each] * (codes // each)


class SlowRevival:
    """The codebook in training, a vector and a code at a time: numbers, usage and revival as documented."""

    def __init__(self, codes: list[list[float]], decay: float, below: float) -> None:
        self.codes, self.decay, self.below = codes, decay, below
        self.use: list[float] = []

    def step(self, vectors: list[list[float]], rows: list[int]) -> list[int]:
        """One batch; `rows` names, for each code, the vector that it would move to."""
        if not self.use:
            dead = [True for _ in self.codes]
            self.use = [len(vectors) / len(self.codes) for _ in self.codes]
        else:
            dead = [use < self.below * sum(self.use) / len(self.use) for use in self.use]
        mean = sum(self.use) / len(self.use)
        for k, is_dead in enumerate(dead):
            if is_dead:
                self.codes[k], self.use[k] = list(vectors[rows[k]]), mean
        chosen = []
        for vector in vectors:
            far = [sum((a - b) ** 2 for a, b in zip(vector, code, strict=True)) for code in self.codes]
            chosen.append(far.index(min(far)))
        for k in range(len(self.codes)):
            self.use[k] = self.decay * self.use[k] + (1 - self.decay) * chosen.count(k)
        return chosen


def test_revival_of_a_loss_codebook_equals_a_loop_over_codes_and_vectors() -> None:
    """Six batches that drift, so that codes die; between them the codes learn, as by an optimiser."""
    recipe = GeneratorConfig(
        codebook_size=7, code_width=3, revive_dead_codes=True, ema_decay=0.5, revive_below=0.3
    )
    quantiser = Quantiser(recipe).double().train()
    slow = SlowRevival(quantiser.code_KC.tolist(), 0.5, 0.3)
    draws, same = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    data, revived = torch.Generator().manual_seed(1), 0
    for step in range(6):
        z_e = torch.randn(2, 3, 3, 3, dtype=torch.float64, generator=data) + step
        before = quantiser.code_KC.detach().clone()
        quantised = quantiser(z_e, draws)
        vectors = z_e.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
        chosen = slow.step(vectors, torch.randperm(len(vectors), generator=same)[:7].tolist())
        assert quantised.code_BHW.flatten().tolist() == chosen
        torch.testing.assert_close(quantiser.code_KC.detach(), torch.tensor(slow.codes, dtype=torch.float64))
        torch.testing.assert_close(quantiser.usage_K, torch.tensor(slow.use, dtype=torch.float64))
        revived += int((quantiser.code_KC.detach() != before).any(dim=1).sum()) if step else 0
        with torch.no_grad():
            quantiser.code_KC.mul_(0.9)
        slow.codes = [[0.9 * value for value in code] for code in slow.codes]
    assert 3 <= revived < 5 * 7, "later batches revive some codes, and not all"


def distance(codes_KC: Tensor, vectors_BCHW: Tensor) -> Tensor:
    """Of each code to the nearest vector."""
    vectors = vectors_BCHW.permute(0, 2, 3, 1).flatten(0, 2)
    return (codes_KC.detach()[:, None] - vectors).norm(dim=2).amin(dim=1)


def test_revival_needs_training_and_a_generator() -> None:
    quantiser = two_codes(revive_dead_codes=True).train()
    quantiser(three_vectors())
    assert quantiser.code_KC.tolist() == [[0.0, 0.0], [4.0, 2.0]]


def test_look_up_gives_the_codes() -> None:
    vectors = two_codes().look_up(torch.tensor([[[1, 0]]]))
    assert vectors.tolist() == [[[[4.0, 0.0]], [[2.0, 0.0]]]]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        ([5.0, 0.0, 0.0, 0.0], 1.0),
        ([3.0, 3.0, 3.0, 3.0], 4.0),
        ([1.0, 1.0, 2.0, 0.0], 2**1.5),
        ([0.0, 0.0], 1.0),
    ],
)
def test_perplexity_by_hand(count: list[float], expected: float) -> None:
    """(1/4, 1/4, 1/2) has 1.5 bits, so 2^1.5 codes in effect."""
    assert float(perplexity(torch.tensor(count))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3, 3)])
def test_global_batch_norm_on_one_rank_is_pytorchs(shape: tuple[int, ...]) -> None:
    ours = GlobalBatchNorm(5)
    theirs: nn.Module = nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)
    weight, bias = torch.randn(5), torch.randn(5)
    for norm in (ours, theirs):
        norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    inputs = [torch.randn(*shape) * 3 + 2 for _ in range(3)]
    for x in inputs:
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        seed = torch.randn(*shape)
        (ours(one) * seed).sum().backward()
        (theirs(other) * seed).sum().backward()
        torch.testing.assert_close(one.grad, other.grad)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)  # type: ignore[union-attr]
    torch.testing.assert_close(ours.eval()(inputs[0]), theirs.eval()(inputs[0]))


def test_uniform_start_of_the_codebook() -> None:
    codes = Quantiser(GeneratorConfig(codebook_size=64, code_width=32)).code_KC.detach()
    assert float(codes.abs().max()) <= 1 / 64
    assert float(codes.std()) == pytest.approx(1 / 64 / math.sqrt(3), rel=0.1)
