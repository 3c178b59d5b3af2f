"""Cross-attention of pairs that share images: numbers against pairs one by one, and rows that are bounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medunifier_cli.model.attention.masks import LONGEST_ROW, PairPlan
from tests.tiny import draw_texts, pack, tiny_model

CPU = torch.device("cpu")


def everybodys_negative(images: int) -> Tensor:
    """Each image with its own text and with a hard one; image 3 is every text's negative besides."""
    return torch.cat([torch.arange(images), torch.full((images,), 3), torch.arange(images)])


def image_of_row(plan: PairPlan) -> Tensor:
    return torch.cat([torch.arange(plan.images), plan.extra_E])


def test_a_popular_image_changes_no_number_and_no_gradient() -> None:
    images = 12
    image_M = everybodys_negative(images)
    assert len(PairPlan.of(image_M, images, CPU).extra_E) > 1, "the case that this test is for"
    model = tiny_model()
    text = pack(draw_texts(len(image_M), seed=2))
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(images, 17, 48, dtype=torch.float64, generator=generator).requires_grad_()
    weigh = torch.randn(len(image_M), 4, 32, dtype=torch.float64, generator=generator)

    def gradients(shared: bool) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad(set_to_none=True)
        features.grad = None
        # dense: each pair has a copy of its image, and nothing is shared
        memory = model.qformer.encode_image(features if shared else features[image_M])
        places = image_M if shared else torch.arange(len(image_M))
        fused = model.qformer.fuse(memory, places, text)
        (fused * weigh).sum().backward()
        assert features.grad is not None
        named = [one.grad for one in model.qformer.parameters() if one.grad is not None]
        return fused.detach(), [features.grad, *named]

    fused, found = gradients(shared=True)
    dense, expected = gradients(shared=False)
    torch.testing.assert_close(fused, dense, rtol=1e-9, atol=1e-11)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("images", [1, 2, 16, 64, 256])
@pytest.mark.parametrize("popular", ["one", "few", "even", "skewed"])
def test_rows_of_queries_are_bounded_whoever_is_popular(images: int, popular: str) -> None:
    generator = torch.Generator().manual_seed(images)
    drawn = {
        "one": torch.full((images,), images - 1),
        "few": torch.randint(0, min(3, images), (images,), generator=generator),
        "even": torch.randint(0, images, (images,), generator=generator),
        "skewed": (torch.rand(images, generator=generator) ** 6 * images).long(),
    }[popular]
    image_M = torch.cat([torch.arange(images), drawn, torch.arange(images)])
    plan = PairPlan.of(image_M, images, CPU)
    rows = plan.rows * plan.per_image
    # without the bound, "one" takes `images` + 2 times as many rows as there are images
    assert rows <= LONGEST_ROW * (len(image_M) + images), (rows, len(image_M))
    # keys and values are copied for the further rows alone
    assert len(plan.extra_E) <= images / 2
    # every pair has a place of its own in a row of its image
    assert len(set(plan.slot_M.tolist())) == len(image_M)
    assert int(plan.slot_M.max()) < rows
    assert image_of_row(plan)[plan.slot_M // plan.per_image].tolist() == image_M.tolist()


def test_an_ordinary_batch_is_laid_out_as_ever() -> None:
    generator = torch.Generator().manual_seed(0)
    image_M = torch.cat(
        [torch.arange(32), torch.randint(0, 32, (32,), generator=generator), torch.arange(32)]
    )
    plan = PairPlan.of(image_M, 32, CPU)
    assert len(plan.extra_E) == 0
    assert plan.per_image == int(torch.bincount(image_M).max())
    seen: dict[int, int] = {}
    for image, slot in zip(image_M.tolist(), plan.slot_M.tolist(), strict=True):
        assert slot == image * plan.per_image + seen.get(image, 0)
        seen[image] = seen.get(image, 0) + 1
