"""`model.vit.stem`: convolutions in place of the linear map of patches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.stem import convolutional_stem, prime_factors
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import VitConfig

SMALL = {
    "name": "vit_tiny_patch16_224",
    "patch_size": 8,
    "width": 64,
    "depth": 2,
    "heads": 4,
    "frozen": False,
}


def encoder(**changed: object) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(VitConfig(**{**SMALL, **changed}), 64)  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "factors"), [(8, [2, 2, 2]), (12, [2, 2, 3]), (14, [2, 7]), (1, [])])
def test_prime_factors(number: int, factors: list[int]) -> None:
    assert prime_factors(number) == factors


@pytest.mark.parametrize("patch_size", [8, 12, 14, 16])
def test_a_token_for_each_patch_and_it_sees_all_pixels_of_its_patch(patch_size: int) -> None:
    torch.manual_seed(0)
    stem = convolutional_stem(patch_size, 64).double().eval()
    image = torch.rand(1, 3, 8 * patch_size, 8 * patch_size, dtype=torch.float64, requires_grad=True)
    token_BDhw = stem(image)
    assert token_BDhw.shape == (1, 64, 8, 8)
    (gradient,) = torch.autograd.grad(token_BDhw[0, :, 1, 2].square().sum(), image)
    seen_HW = gradient[0].abs().sum(0)
    assert (seen_HW[patch_size : 2 * patch_size, 2 * patch_size : 3 * patch_size] > 0).all()
    assert seen_HW[-1, -1] == 0, "a token far away is not moved"


def test_tokens_differ_between_images_as_much_as_they_are_long() -> None:
    features = encoder(stem="convolutions").train().vit.patch_embed(torch.rand(16, 3, 64, 64))
    assert 0.3 < float(features.detach().std(0).mean()) < 3


def test_the_rest_of_the_encoder_is_timms_and_learns_with_the_stem() -> None:
    plain, with_stem = encoder(), encoder(stem="convolutions")
    assert plain.tokens == with_stem.tokens
    with_stem(torch.rand(2, 3, 64, 64)).sum().backward()
    of_stem = [p for n, p in with_stem.named_parameters() if "patch_embed.proj" in n]
    assert of_stem
    assert all(p.grad is not None for p in of_stem)
    assert isinstance(plain.vit.patch_embed.proj, nn.Conv2d)


def test_pretrained_patches_are_not_replaced() -> None:
    with pytest.raises(MuError, match=r"model\.vit\.stem: would replace"):
        load_recipe("demo", ["model.vit.stem=convolutions", "model.vit.weights=hub"])


def test_a_model_without_plain_patches_is_refused() -> None:
    with pytest.raises(MuError, match=r"model\.vit\.stem: vit_small_r26_s32_224"):
        encoder(name="vit_small_r26_s32_224", patch_size=0, width=0, depth=0, heads=0, stem="convolutions")
