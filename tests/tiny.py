"""A model of a few thousand weights and batches for it: the paper's recipe, shrunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medunifier_cli.data.contract import Batch, PackedText
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe

VOCABULARY, CLS, SEP, DEC = 41, 2, 3, 40
SMALL = (
    "data.image_size=32", "text.max_tokens=12", "model.vit.name=vit_tiny_patch16_224",
    "model.vit.weights=random", "model.vit.frozen=false", "model.vit.drop_last_block=false",
    "model.vit.patch_size=8", "model.vit.width=48", "model.vit.depth=1", "model.vit.heads=4",
    "model.qformer.weights=random", "model.qformer.layers=3", "model.qformer.width=32",
    "model.qformer.heads=4", "model.qformer.ffn_width=64", "model.qformer.queries=4",
    "model.qformer.dropout=0.0", "model.generator.codebook_size=16", "model.generator.code_width=12",
    "model.generator.base_width=16", "model.generator.residual_width=8", "objectives.embed_width=16",
    "train.global_batch=8", "train.micro_batch=8",
    # the paper's own codebook and features, which the slow references follow
    "model.generator.revive_dead_codes=false", "model.generator.ema_decay=0.99",
    "model.generator.feature_norm=none",
)  # fmt: skip
"""32 px in 8-px patches: 17 image tokens of width 48, a 4x4 bottom and a 2x2 top map."""


def tiny_recipe(*overrides: str) -> PretrainRecipe:
    """The shrunk full.yaml; no dropout."""
    return load_recipe("full", [*SMALL, *overrides])


def tiny_model(*overrides: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> MedUnifier:
    """A model whose weights are all random, norms and biases too, so that none can be left out unnoticed."""
    torch.manual_seed(seed)
    model = MedUnifier(tiny_recipe(*overrides), VOCABULARY).to(dtype)
    scatter(model)
    return model.train()


def scatter(module: torch.nn.Module) -> None:
    """Fill all weights of a module with random numbers, large enough that attention is not uniform."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("temperature"):
                continue
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.normal_(around, 0.25)


def pack(texts: Sequence[Sequence[int]]) -> PackedText:
    """Token ids end to end."""
    return PackedText.of(texts)


def pad(texts: Sequence[Sequence[int]], longest: int) -> Tensor:
    """Token ids in a grid, padded with 0."""
    return torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])


def draw_texts(count: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """[CLS] words [SEP], of 3 to `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (count,), generator=generator).tolist()
    return [
        [CLS, *torch.randint(5, VOCABULARY - 1, (n - 2,), generator=generator).tolist(), SEP] for n in lengths
    ]


def draw_batch(
    count: int, seed: int = 0, equal: Sequence[tuple[int, int]] = (), image_size: int = 32
) -> Batch:
    """Random pairs; for (i, j) in `equal` text j is text i."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 1, image_size, image_size), generator=generator).to(torch.uint8)
    texts, digest = draw_texts(count, seed), list(range(100, 100 + count))
    for i, j in equal:
        texts[j], digest[j] = texts[i], digest[i]
    place = torch.arange(count) + 1000 * seed
    return Batch(
        [str(i) for i in range(count)], image, pack(texts), torch.tensor(digest),
        torch.full((count,), -1), place,
    )  # fmt: skip


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some consecutive pairs of a batch."""
    texts = [ids.tolist() for ids in batch.text.ids_N.split(batch.text.lengths_B.tolist())]
    return Batch(
        batch.keys[rows], batch.image_B1HW[rows], pack(texts[rows]), batch.digest_B[rows],
        batch.label_B[rows], batch.position_B[rows],
    )  # fmt: skip
