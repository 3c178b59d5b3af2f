"""The four passes against transformers' BLIP-2 Q-Former and BERT, and against the plain reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
)

from medunifier_cli.checkpoint.convert import load_bert
from medunifier_cli.model.medunifier import MedUnifier
from tests.reference.plain_encoder import BI_DIRECTIONAL, CAUSAL, UNI_MODAL, PlainEncoder, plain_weights
from tests.tiny import VOCABULARY, draw_texts, pack, pad, scatter, tiny_model

TEXTS = draw_texts(5, seed=1)
LENGTHS = [len(text) for text in TEXTS]
LONGEST = max(LENGTHS)
REAL = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
NEAR = {"atol": 1e-9, "rtol": 1e-7}
FOLDED = {"atol": 1e-6, "rtol": 1e-5}
"""Positions and token types are added in fp32 when they are loaded."""


def features(count: int = 5) -> Tensor:
    return torch.randn(count, 17, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def blip2(every: int) -> Blip2ForImageTextRetrieval:
    """A small BLIP-2 with all weights drawn, as wide as `tests.tiny`'s model."""
    torch.manual_seed(0)
    qformer = Blip2QFormerConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, cross_attention_frequency=every,
        encoder_hidden_size=48, use_qformer_text_input=True,
    )  # fmt: skip
    vision = Blip2VisionConfig(
        hidden_size=48, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision.to_dict(), qformer_config=qformer.to_dict(), num_query_tokens=4,
        image_text_hidden_size=16, image_token_index=None,
    )  # fmt: skip
    model = Blip2ForImageTextRetrieval(config)
    scatter(model)
    return model.eval()


@pytest.fixture(params=[1, 2], ids=["every block", "every second block"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Blip2ForImageTextRetrieval, MedUnifier]:
    """transformers' model, and ours with its weights read from the folder it saved."""
    theirs = blip2(request.param)
    theirs.save_pretrained(tmp_path)
    ours = tiny_model(f"model.qformer.cross_attention_every={request.param}", dtype=torch.float32)
    load_bert(ours, str(tmp_path))
    return theirs.double(), ours.double()


def test_queries_over_an_image_equal_blip2(both: tuple[Blip2ForImageTextRetrieval, MedUnifier]) -> None:
    theirs, ours = both
    queries = theirs.query_tokens.expand(5, -1, -1)
    expected = theirs.qformer(query_embeds=queries, encoder_hidden_states=features()).last_hidden_state
    torch.testing.assert_close(ours.qformer.encode_image(features()).query_BQD, expected, **NEAR)


def test_pairs_equal_blip2(both: tuple[Blip2ForImageTextRetrieval, MedUnifier]) -> None:
    theirs, ours = both
    image_of = torch.tensor([0, 2, 2, 1, 2])
    embedded = theirs.embeddings(
        input_ids=pad(TEXTS, LONGEST), query_embeds=theirs.query_tokens.expand(5, -1, -1)
    )
    expected = theirs.qformer(
        query_embeds=embedded,
        query_length=4,
        attention_mask=torch.cat([torch.ones(5, 4), REAL.float()], dim=1),
        encoder_hidden_states=features(3)[image_of],
    ).last_hidden_state[:, :4]
    memory = ours.qformer.encode_image(features(3))
    torch.testing.assert_close(ours.qformer.fuse(memory, image_of, pack(TEXTS)), expected, **NEAR)


def test_text_and_contrast_heads_equal_blip2(both: tuple[Blip2ForImageTextRetrieval, MedUnifier]) -> None:
    theirs, ours = both
    embedded = theirs.embeddings(input_ids=pad(TEXTS, LONGEST))
    states = theirs.qformer(query_embeds=embedded, query_length=0, attention_mask=REAL.long())
    states = states.last_hidden_state
    text_cls = ours.qformer.encode_text(pack(TEXTS))
    torch.testing.assert_close(text_cls, states[:, 0], **NEAR)
    expected = torch.nn.functional.normalize(theirs.text_projection(states[:, 0]), dim=-1)
    torch.testing.assert_close(ours.text_head(text_cls), expected, **NEAR)


def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY - 1, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    scatter(model)
    return model.eval()


def test_text_pass_and_word_head_equal_bert(tmp_path: Path) -> None:
    theirs = bert()
    theirs.save_pretrained(tmp_path)
    ours = tiny_model(dtype=torch.float32)
    dec_before = ours.qformer.word.weight[-1].clone()
    left = load_bert(ours, str(tmp_path))
    theirs, ours = theirs.double(), ours.double()
    out = theirs(input_ids=pad(TEXTS, LONGEST), attention_mask=REAL.long(), output_hidden_states=True)
    torch.testing.assert_close(ours.qformer.encode_text(pack(TEXTS)), out.hidden_states[-1][:, 0], **FOLDED)
    logits = ours.word_logits(out.hidden_states[-1][REAL])
    torch.testing.assert_close(logits[:, :-1], out.logits[REAL], **FOLDED)
    # what BERT does not have stays: the word [DEC], the queries, cross-attention; and is named
    torch.testing.assert_close(ours.qformer.word.weight[-1], dec_before.double())
    assert {"qformer.query_tokens", "qformer.blocks.0.cross.kv.weight", "image_head.project.weight"} <= set(
        left
    )
    assert not any(name.startswith(("qformer.word", "qformer.blocks.0.ffn", "word_head")) for name in left)


def test_queries_start_from_berts_feed_forward(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    ours = tiny_model(dtype=torch.float32)
    load_bert(ours, str(tmp_path))
    for block in ours.qformer.blocks:
        for query, text in zip(block.ffn_query.parameters(), block.ffn_text.parameters(), strict=True):
            torch.testing.assert_close(query, text, atol=0, rtol=0)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_all_passes_equal_the_plain_encoder(every: int) -> None:
    model = tiny_model(f"model.qformer.cross_attention_every={every}")
    qformer, plain = model.qformer, PlainEncoder(plain_weights(dict(model.named_parameters())), 4)
    image, grid = features(), pad(TEXTS, 12)
    memory = qformer.encode_image(image)

    f_q, f_t = plain(image, grid, LENGTHS, UNI_MODAL)
    torch.testing.assert_close(memory.query_BQD, f_q, **NEAR)
    torch.testing.assert_close(qformer.encode_text(pack(TEXTS)), f_t[:, 0], **NEAR)

    image_of = torch.tensor([4, 0, 0, 1, 0])
    f_q, _ = plain(image[image_of], grid, LENGTHS, BI_DIRECTIONAL)
    torch.testing.assert_close(qformer.fuse(memory, image_of, pack(TEXTS)), f_q, **NEAR)

    _, f_t = plain(image, grid, LENGTHS, CAUSAL)
    torch.testing.assert_close(qformer.decode_text(memory, pack(TEXTS)), f_t[:, :LONGEST][REAL], **NEAR)
