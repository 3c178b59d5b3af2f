"""Which rows attend to which, tested by changing one input and looking which outputs change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medunifier_cli.data.contract import PackedText
from medunifier_cli.model.attention.masks import Layout, causal_rows
from medunifier_cli.model.qformer import QFormer
from tests.reference.full_mask import full_mask
from tests.reference.plain_encoder import BI_DIRECTIONAL, CAUSAL, UNI_MODAL, figure_2_mask
from tests.tiny import DEC, draw_texts, pack, tiny_model

TEXTS = draw_texts(4, seed=5)
LENGTHS = [len(text) for text in TEXTS]
START = [sum(LENGTHS[:i]) for i in range(4)]
PAIRED = torch.tensor([0, 1, 1, 3])


@pytest.fixture(scope="module")
def qformer() -> QFormer:
    return tiny_model().qformer


def image(changed: int | None = None) -> Tensor:
    x = torch.randn(4, 17, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    if changed is not None:
        x[changed, 9] += 1
    return x


def with_word(text: int, position: int, word: int = 4) -> PackedText:
    texts = [list(t) for t in TEXTS]
    assert texts[text][position] != word
    texts[text][position] = word
    return pack(texts)


def moved(before: Tensor, after: Tensor) -> Tensor:
    """Whether each row changed at all."""
    return (before != after).flatten(1).any(dim=1)


def encode_text(qformer: QFormer, text: PackedText, image_BVD: Tensor) -> Tensor:
    return qformer.encode_text(text)


def decode_text(qformer: QFormer, text: PackedText, image_BVD: Tensor) -> Tensor:
    return qformer.decode_text(qformer.encode_image(image_BVD), text)


def fuse(qformer: QFormer, text: PackedText, image_BVD: Tensor) -> Tensor:
    return qformer.fuse(qformer.encode_image(image_BVD), PAIRED, text)


Pass = Callable[[QFormer, PackedText, Tensor], Tensor]


@pytest.mark.parametrize("text", range(4))
def test_a_later_word_moves_no_earlier_one(qformer: QFormer, text: int) -> None:
    before = decode_text(qformer, pack(TEXTS), image())
    for position in range(1, LENGTHS[text]):
        after = decode_text(qformer, with_word(text, position), image())
        expected = torch.zeros(sum(LENGTHS), dtype=torch.bool)
        expected[START[text] + position : START[text] + LENGTHS[text]] = True
        assert moved(before, after).tolist() == expected.tolist()


def test_writing_sees_its_own_image_only(qformer: QFormer) -> None:
    after = decode_text(qformer, pack(TEXTS), image(changed=2))
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    assert moved(decode_text(qformer, pack(TEXTS), image()), after).tolist() == (owner == 2).tolist()


@pytest.mark.parametrize("text", range(4))
def test_reading_text_sees_all_of_that_text_and_no_image(qformer: QFormer, text: int) -> None:
    before = encode_text(qformer, pack(TEXTS), image())
    for position in range(LENGTHS[text]):
        after = encode_text(qformer, with_word(text, position), image())
        assert moved(before, after).tolist() == [row == text for row in range(4)]


def test_uni_modal_queries_see_their_image_and_no_text(qformer: QFormer) -> None:
    """`encode_image` takes no text; that it equals a full pass under the uni-modal mask, for any text, is
    tested in test_qformer."""
    before, after = qformer.encode_image(image()), qformer.encode_image(image(changed=1))
    assert moved(before.query_BQD, after.query_BQD).tolist() == [False, True, False, False]


def test_pairs_see_their_text_and_their_image(qformer: QFormer) -> None:
    before = fuse(qformer, pack(TEXTS), image())
    for text in range(4):
        for position in range(LENGTHS[text]):
            after = fuse(qformer, with_word(text, position), image())
            assert moved(before, after).tolist() == [row == text for row in range(4)]
    for number in range(4):
        after = fuse(qformer, pack(TEXTS), image(changed=number))
        assert moved(before, after).tolist() == (number == PAIRED).tolist()
    # all queries of a pair, not just some
    after = fuse(qformer, with_word(2, 1), image())
    assert bool((before[2] != after[2]).any(dim=1).all())


@pytest.mark.parametrize("run", [encode_text, decode_text, fuse])
def test_neighbours_in_the_batch_do_not_leak(qformer: QFormer, run: Pass) -> None:
    """A text alone gives what it gives between longer and shorter ones."""
    together = run(qformer, pack(TEXTS), image())
    for row in range(4):
        own_image = image()[PAIRED[row] if run is fuse else row][None]
        if run is fuse:
            memory = qformer.encode_image(own_image)
            alone = qformer.fuse(memory, torch.tensor([0]), pack([TEXTS[row]]))
        else:
            alone = run(qformer, pack([TEXTS[row]]), own_image)
        rows = slice(START[row], START[row] + LENGTHS[row]) if run is decode_text else slice(row, row + 1)
        in_batch = together[rows]
        torch.testing.assert_close(in_batch, alone, atol=1e-10, rtol=1e-10)


def test_dec_instead_of_cls_moves_every_word(qformer: QFormer) -> None:
    before = decode_text(qformer, pack(TEXTS), image())
    after = decode_text(qformer, pack([[DEC, *text[1:]] for text in TEXTS]), image())
    assert bool(moved(before, after).all())


@pytest.mark.parametrize("kind", [UNI_MODAL, BI_DIRECTIONAL, CAUSAL])
def test_full_mask_is_figure_2(kind: str) -> None:
    """Cell by cell from the figure, and equal to what the plain encoder uses."""
    lengths, queries, longest = [3, 5, 2], 4, 6
    mask = full_mask(kind, queries, torch.tensor(lengths), longest)  # type: ignore[arg-type]
    assert mask.shape == (3, 1, 10, 10)
    for text, length in enumerate(lengths):
        for row in range(10):
            for column in range(10):
                from_query, to_query = row < queries, column < queries
                allowed = {
                    UNI_MODAL: from_query == to_query,
                    BI_DIRECTIONAL: True,
                    CAUSAL: to_query or (not from_query and column <= row),
                }[kind]
                real = to_query or column - queries < length
                assert bool(mask[text, 0, row, column]) == (allowed and real), (row, column)
    assert torch.equal(mask, figure_2_mask(kind, queries, lengths, longest))


def test_causal_rows_are_the_text_rows_of_the_full_mask() -> None:
    lengths, queries, longest = torch.tensor([3, 6]), 4, 6
    whole = full_mask("multi-modal causal", queries, lengths, longest)[:, 0, queries:]
    for text, length in enumerate(lengths.tolist()):
        rows = causal_rows(queries, longest, torch.device("cpu"))
        assert torch.equal(whole[text, :length], rows[:length])


@pytest.mark.parametrize("queries", [0, 2])
def test_packing_and_padding_undo_each_other(queries: int) -> None:
    layout = Layout.of(torch.tensor(LENGTHS), torch.device("cpu"), queries)
    packed = torch.randn(4 * queries + sum(LENGTHS), 3, dtype=torch.float64, requires_grad=True)
    padded = layout.pad(packed)
    assert padded.shape == (4, queries + max(LENGTHS), 3)
    for row, (start, length) in enumerate(zip(START, LENGTHS, strict=True)):
        assert torch.equal(padded[row, :queries], packed[row * queries : (row + 1) * queries])
        text = packed[4 * queries + start : 4 * queries + start + length]
        assert torch.equal(padded[row, queries : queries + length], text)
        assert not padded[row, queries + length :].any()
        assert layout.real_BS[row].tolist() == [c < queries + length for c in range(padded.shape[1])]
    assert torch.equal(layout.unpad(padded), packed)
    assert torch.autograd.gradcheck(layout.pad, (packed,))
    assert torch.autograd.gradcheck(layout.unpad, (padded.detach().requires_grad_(),))
