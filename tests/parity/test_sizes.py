"""Sizes: the paper's model counted on the meta device, and geometries from the recipe alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vqvae.generator import ImageGenerator, Sizes
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import GeneratorConfig
from tests.tiny import VOCABULARY, draw_batch, tiny_model, tiny_recipe

WORDS = 30522 + 1  # CXR-BERT's vocabulary and [DEC]
LAYERS, D, FFN, D_V, QUERIES, TOKENS = 12, 768, 3072, 1408, 32, 95


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linear(rows: int, columns: int) -> int:
    return rows * columns + columns


@pytest.fixture(scope="module")
def full() -> MedUnifier:
    with torch.device("meta"):
        return MedUnifier(load_recipe("full"), WORDS, load=False)


def test_vit_g_without_its_last_block(full: MedUnifier) -> None:
    """39 of 40 blocks of width 1408 and inner width 6144, 257 positions; queries and values have biases."""
    block = 3 * D_V * D_V + 2 * D_V + linear(D_V, D_V) + linear(D_V, 6144) + linear(6144, D_V) + 4 * D_V
    stem = 14 * 14 * 3 * D_V + D_V + D_V + 257 * D_V
    assert len(full.vit.vit.blocks) == 39
    assert count(full.vit) == 39 * block + stem
    assert (full.vit.width, full.vit.tokens) == (D_V, 257)
    assert not any(parameter.requires_grad for parameter in full.vit.parameters())


def test_image_text_encoder(full: MedUnifier) -> None:
    norm = 2 * D
    attention = 4 * linear(D, D) + norm
    cross = 2 * linear(D, D) + 2 * linear(D_V, D) + norm
    feed_forward = linear(D, FFN) + linear(FFN, D) + norm
    embeddings = (WORDS + TOKENS + QUERIES) * D + norm
    assert count(full.qformer) == LAYERS * (attention + cross + 2 * feed_forward) + embeddings
    # without cross-attention and the queries' own feed-forward it is BERT base, 12 x 7.09 M
    assert LAYERS * (attention + feed_forward) == 85_054_464


def test_cross_attention_in_every_second_block_only(full: MedUnifier) -> None:
    with torch.device("meta"):
        recipe = load_recipe("full", ["model.qformer.cross_attention_every=2", "objectives.tig=0.0"])
        alternate = MedUnifier(recipe, WORDS, load=False).qformer
    cross = 2 * linear(D, D) + 2 * linear(D_V, D) + 2 * D
    assert count(full.qformer) - count(alternate) == 6 * cross


def test_heads(full: MedUnifier) -> None:
    assert count(full.image_head) == count(full.text_head) == linear(D, 256)
    assert count(full.match_head) == linear(D, 2)
    assert count(full.word_head) == linear(D, D) + 2 * D + WORDS  # its matrix is the word embedding's
    assert count(full.vision_norm) == 2 * D_V


def test_image_generator(full: MedUnifier) -> None:
    generator = full.generator
    assert generator.quantise_top.code_KC.shape == generator.quantise_bottom.code_KC.shape == (512, 768)
    assert (generator.top, generator.grid) == (8, 16)
    assert 50e6 < count(generator.decoder) <= 60e6


def test_every_weight_belongs_to_one_part(full: MedUnifier) -> None:
    parts = sum(count(child) for child in full.children()) + full.temperature.numel()
    assert count(full) == parts
    assert all(parameter.device.type == "meta" for parameter in full.parameters())


@pytest.mark.parametrize(
    ("off", "missing"),
    [
        (("itc", "itm"), {"image_head", "text_head", "temperature", "match_head"}),
        (("itm",), {"match_head"}),
        (("itg",), {"word_head"}),
        (("tig",), {"generator"}),
        (("itm", "itg", "tig"), {"match_head", "word_head", "generator"}),
    ],
)
def test_parts_of_an_objective_that_is_off_are_not_built(off: tuple[str, ...], missing: set[str]) -> None:
    everything = {name.split(".")[0] for name, _ in tiny_model().named_parameters()}
    left = tiny_model(*(f"objectives.{name}=0.0" for name in off))
    assert {name.split(".")[0] for name, _ in left.named_parameters()} == everything - missing


NARROW = GeneratorConfig(codebook_size=8, code_width=4, base_width=32, residual_width=4, residual_layers=1)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "queries"),
    [
        (64, 8, 8), (64, 8, 4), (64, 8, 16), (224, 14, 32), (224, 14, 64), (224, 16, 49), (224, 16, 7),
        (32, 8, 2), (32, 8, 4), (64, 16, 2), (128, 16, 8), (448, 14, 32 * 8), (96, 12, 16), (64, 4, 32),
        (384, 16, 24), (384, 16, 36), (384, 16, 48), (56, 7, 8),
    ],
)  # fmt: skip
def test_geometry_follows_from_image_and_patch(image_size: int, patch_size: int, queries: int) -> None:
    grid = image_size // patch_size
    generator = ImageGenerator(NARROW, Sizes(image_size, patch_size, 6, 5, queries)).eval()
    with torch.no_grad():
        generated = generator(torch.randn(2, queries, 5), torch.randn(2, grid * grid, 6), torch.randn(2, 5))
        assert generated.image_BCHW.shape == (2, 3, image_size, image_size)
        assert generated.top.code_BHW.shape == (2, grid // 2, grid // 2)
        assert generated.bottom.code_BHW.shape == (2, grid, grid)
        again = generator.from_codes(generated.top.code_BHW, generated.bottom.code_BHW)
    torch.testing.assert_close(again, generated.image_BCHW)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "queries", "changes", "message"),
    [
        (56, 14, 4, {}, "data.image_size: 56 cannot be halved 4 times"),
        (48, 16, 4, {}, "data.image_size: a 3x3 patch grid has no half"),
        (224, 16, 32, {}, "32 queries do not fill rows of a 7x7 map; one of 7, 49 does"),
        (64, 8, 12, {}, "12 queries do not fill rows of a 4x4 map; one of 4, 8, 16 does"),
        (64, 8, 32, {}, "32 queries do not fill rows of a 4x4 map"),
        (64, 8, 2, {}, "2 queries do not fill rows of a 4x4 map"),
        (64, 16, 2, {"base_width": 4}, "model.generator.base_width: 4 cannot be halved 3 times"),
        (64, 1, 32, {}, "patch size 1"),
    ],
)
def test_what_cannot_be_built_says_so_in_one_line(
    image_size: int, patch_size: int, queries: int, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(MuError) as error:
        ImageGenerator(replace(NARROW, **changes), Sizes(image_size, patch_size, 6, 5, queries))  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.image_size=60",), "60"),
        (("model.vit.patch_size=12",), "12"),
        (("model.vit.name=vit_of_my_dreams",), "timm has no model vit_of_my_dreams"),
        (("model.vit.heads=7",), "model.vit"),
        (("model.vit.weights=no/such/folder/anywhere",), "model.vit.weights: no/such/folder/anywhere"),
    ],
)
def test_an_image_encoder_that_cannot_be_built(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(MuError) as error:
        MedUnifier(tiny_recipe(*overrides), VOCABULARY)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("image_size", "patch_size", "queries"), [(64, 16, 2), (32, 8, 4), (48, 12, 2)])
def test_the_whole_model_at_other_sizes(image_size: int, patch_size: int, queries: int) -> None:
    model = tiny_model(
        f"data.image_size={image_size}", f"model.vit.patch_size={patch_size}",
        f"model.qformer.queries={queries}", dtype=torch.float32,
    )  # fmt: skip
    generated = model.eval().reconstruct(draw_batch(2, image_size=image_size))
    assert generated.image_BCHW.shape == (2, 3, image_size, image_size)
