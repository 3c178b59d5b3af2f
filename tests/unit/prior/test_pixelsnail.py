"""The PixelSNAIL priors: order of dependence by perturbation, conditions, and that they learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.errors import MuError
from medunifier_cli.prior.layers import CausalAttention, CausalConv, background
from medunifier_cli.prior.pixelsnail import PixelSnail
from medunifier_cli.prior.shape import PriorShape

CODES, TOP, TEXT = 6, 5, 12


def tiny(**changes: Any) -> PixelSnail:
    torch.manual_seed(11)
    config = {"codes": CODES, "channels": 32, "blocks": 1, "layers": 2, "heads": 2, "top_layers": 1}
    return PixelSnail(PriorShape(**{**config, **changes})).eval()


def influence(prior: PixelSnail, size: tuple[int, int], **given: Tensor) -> Tensor:
    """bool [L, L]: whether changing the code at raster place i moves the logits at place j."""
    places = size[0] * size[1]
    codes = torch.randint(CODES, (1, *size), generator=torch.Generator().manual_seed(0))
    changed = codes.flatten(1).repeat(places, 1)
    changed[torch.arange(places), torch.arange(places)] += 1
    batch = torch.cat((codes.flatten(1), changed % CODES)).view(-1, *size)
    with torch.no_grad():
        logits = prior(batch, **{k: v.expand(len(batch), *v.shape[1:]) for k, v in given.items()}).flatten(2)
    return (logits[1:] - logits[:1]).abs().amax(1) > 0


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (5, 2)])
@pytest.mark.parametrize(
    "changes", [{}, {"text_width": TEXT}, {"top_codes": TOP, "kernel": 5, "concat_elu": True}]
)
def test_with_attention_each_position_sees_all_codes_before_it_and_no_other(
    size: tuple[int, int], changes: dict[str, Any]
) -> None:
    given = {"top_codes": torch.zeros(1, 2, 2, dtype=torch.int64)} if "top_codes" in changes else {}
    places = size[0] * size[1]
    earlier = torch.ones(places, places, dtype=torch.bool).triu(1)
    assert torch.equal(influence(tiny(**changes), size, **given), earlier)


@pytest.mark.parametrize("kernel", [3, 5])
def test_without_attention_no_later_code_is_seen_and_all_near_ones_are(kernel: int) -> None:
    size = (6, 7)
    seen = influence(tiny(attention=False, kernel=kernel), size)
    assert not seen.tril().any()
    for row in range(size[0]):
        for column in range(size[1]):
            at = row * size[1] + column
            near = [
                (r, c)
                for r in range(max(0, row - 2), row + 1)
                for c in range(max(0, column - 2), min(size[1], column + 3))
                if (r, c) < (row, column)
            ]
            assert all(seen[r * size[1] + c, at] for r, c in near), (row, column)


@pytest.mark.parametrize(("kernel", "strict"), [(3, False), (5, False), (3, True), (7, True)])
def test_causal_window_is_a_masked_convolution(kernel: int, strict: bool) -> None:
    """PixelCNN's masks A (strict) and B: one k x k kernel with its future half at zero."""
    torch.manual_seed(0)
    conv, half = CausalConv(4, 6, kernel, strict=strict), kernel // 2
    masked = torch.zeros(6, 4, kernel, kernel)
    masked[:, :, :half] = conv.above.weight
    masked[:, :, half : half + 1, : half + (not strict)] = conv.here.weight
    x = torch.randn(2, 4, 5, 9)
    torch.testing.assert_close(conv(x), F.conv2d(x, masked, conv.above.bias, padding=half))


def test_attention_is_a_weighted_mean_over_the_past() -> None:
    torch.manual_seed(0)
    attention = CausalAttention(PriorShape(channels=32, heads=2)).eval()
    x, code, place = torch.randn(1, 32, 3, 4), torch.randn(1, 32, 3, 4), background((3, 4), torch.zeros(()))
    mixed: list[Tensor] = []
    attention.out_block.register_forward_pre_hook(
        lambda _, args, kwargs: mixed.append(kwargs["aux"]), with_kwargs=True
    )
    with torch.no_grad():
        attention(x, code, place, None)
        query = attention.query(attention.query_block(torch.cat((x, place), 1)))[0].flatten(1)
        past = attention.key_value(attention.key_block(torch.cat((code, x, place), 1)))[0].flatten(1)
        start_key_A, start_value_A = attention.start.chunk(2)
        for at in range(12):
            for head in (slice(0, 8), slice(8, 16)):
                start_key, start_value = start_key_A[head], start_value_A[head]
                keys = [start_key] + [past[:16][head][:, i] for i in range(at)]
                values = [start_value] + [past[16:][head][:, i] for i in range(at)]
                weights = torch.tensor(
                    [math.exp(float(query[head, at] @ key) / math.sqrt(8)) for key in keys]
                )
                expected = sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))
                torch.testing.assert_close(
                    mixed[0][0, head].flatten(1)[:, at], expected, atol=1e-5, rtol=1e-4
                )


def test_every_top_code_reaches_every_near_position() -> None:
    prior = tiny(attention=False, top_codes=TOP, text_width=TEXT)
    codes = torch.zeros(1, 6, 6, dtype=torch.int64)
    top = torch.zeros(1, 3, 3, dtype=torch.int64)
    plain = prior(codes, top_codes=top)
    for row in range(3):
        for column in range(3):
            changed = top.clone()
            changed[0, row, column] = 1
            moved = (prior(codes, top_codes=changed) - plain).abs().amax(1)[0] > 0
            assert moved[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].all()
            # Not causal: it is seen ahead of its place, too.
            assert moved[max(0, 2 * row - 1), max(0, 2 * column - 1)]


def test_text_enters_every_gated_layer_and_dropped_rows_have_none() -> None:
    prior = tiny(text_width=TEXT, top_codes=TOP)
    codes, top = torch.randint(CODES, (3, 4, 4)), torch.randint(TOP, (3, 2, 2))
    text = torch.randn(3, TEXT)
    logits = prior(codes, top_codes=top, condition=text)
    logits.square().sum().backward()
    entries = [p for name, p in prior.named_parameters() if ".text." in name]
    assert len(entries) == 5  # two causal layers; query, key and out of the attention
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in entries)
    null = prior(codes, top_codes=top)
    some = prior(codes, top_codes=top, condition=text, drop_condition=torch.tensor([False, True, False]))
    torch.testing.assert_close(some[1], null[1])
    torch.testing.assert_close(some[[0, 2]], logits[[0, 2]])
    assert (logits - null).abs().amax((1, 2, 3)).min() > 1e-4


def test_codes_with_the_same_vector_are_the_same_to_the_prior() -> None:
    prior = tiny(codebook_width=3, top_codes=TOP)
    vectors, top_vectors = torch.randn(CODES, 3), torch.randn(TOP, 3)
    vectors[4], top_vectors[2] = vectors[1], top_vectors[0]
    prior.set_codebooks(vectors, top_vectors)
    assert prior.embedding.vectors.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(prior.embedding.vectors.square().mean(0), torch.ones(3))
    codes, top = torch.randint(CODES, (2, 3, 4)), torch.randint(TOP, (2, 2, 2))
    same = prior(codes.masked_fill(codes == 4, 1), top_codes=top.masked_fill(top == 2, 0))
    torch.testing.assert_close(
        prior(codes.masked_fill(codes == 1, 4), top_codes=top.masked_fill(top == 0, 2)), same
    )
    with pytest.raises(ValueError, match="does not fit"):
        prior.set_codebooks(vectors[:2], top_vectors)
    with pytest.raises(ValueError, match="top codebook"):
        prior.set_codebooks(vectors)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"top_codes": TOP}, {}, "missing"),
        ({}, {"top_codes": torch.zeros(1, 1, 1, dtype=torch.int64)}, "not expected"),
        ({}, {"condition": torch.zeros(1, TEXT)}, "without text"),
        ({"text_width": TEXT}, {"condition": torch.zeros(1, 3)}, r"\(1, 3\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    changes: dict[str, Any], given: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)(torch.zeros(1, 2, 2, dtype=torch.int64), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": 4}, "kernel"),
        ({"stem_kernel": 1}, "stem_kernel"),
        ({"channels": 40}, "channels"),
        ({"heads": 3}, "heads"),
    ],
)
def test_a_shape_that_cannot_be_built_is_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(MuError, match=rf"prior\.{message}: "):
        tiny(**changes)


def test_a_prior_learns_its_neighbours_the_top_map_and_the_text() -> None:
    """Code = left code + top code + text class (mod K): nothing but all three together predicts it."""
    prior = tiny(attention=False, top_codes=TOP, text_width=2, dropout=0.0).train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(prior.parameters(), 3e-3)

    def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        top = torch.randint(TOP, (rows, 2, 3), generator=generator)
        kind = torch.randint(2, (rows,), generator=generator)
        step = top.repeat_interleave(2, 1).repeat_interleave(2, 2) + kind[:, None, None]
        first = torch.randint(CODES, (rows, 4, 1), generator=generator)
        return (first + step.cumsum(2)) % CODES, top, F.one_hot(kind, 2).float()

    for _ in range(120):
        codes, top, text = batch(32)
        loss = F.cross_entropy(prior(codes, top_codes=top, condition=text), codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes, top, text = batch(64)
    with torch.no_grad():
        logits = prior.eval()(codes, top_codes=top, condition=text)
        unprompted = prior(codes, top_codes=top)
    right = (logits.argmax(1) == codes).float()
    assert right[:, :, 1:].mean() > 0.95
    assert (unprompted.argmax(1) == codes)[:, :, 1:].float().mean() < 0.8
    assert right[:, :, 0].mean() < 0.5  # the first column is drawn at random
