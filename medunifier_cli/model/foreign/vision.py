"""Names of EVA-CLIP's image encoder in LAVIS, in transformers' BLIP-2 and in the published MedUnifier.

timm reads its own names, EVA's and EVA-CLIP's (`visual.`). In larger models the encoder is called
`visual_encoder` (LAVIS, published MedUnifier) or `vision_model` (transformers, whose layers have other names
too); both leave out the last norm, and mostly the last block, whose outputs BLIP-2 does not use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medunifier_cli.errors import MuError
from medunifier_cli.model.weights import harmless_globals, read_tensors

LAVIS, TRANSFORMERS = "visual_encoder.", "vision_model."
"""What comes before a name, perhaps behind what a trainer put before it."""
MARKS = (f"{LAVIS}cls_token", f"{TRANSFORMERS}embeddings.class_embedding")
"""Ends of a name that only such a file has."""
PLAIN = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
}
PARTS = {
    "self_attn.qkv": "attn.qkv", "self_attn.projection": "attn.proj", "layer_norm1": "norm1",
    "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
BLOCK = re.compile(r"blocks\.(\d+)\.")
NORM_OF_ALL = "post_layernorm."
"""transformers' name for BLIP-2's trained norm, which is no part of the encoder."""


def timm_tensors(file: Path) -> dict[str, Tensor] | None:
    """The image encoder of a file under timm's names; None for a file that timm reads itself.

    Raises:
        MuError: a tensor of the encoder has a name that neither LAVIS nor transformers gives it.
    """
    mark = next((name for name in _names(file) if name.endswith(MARKS)), "")
    if not mark:
        return None
    of_lavis = mark.endswith(MARKS[0])
    prefix = mark.removesuffix(MARKS[0] if of_lavis else MARKS[1]) + (LAVIS if of_lavis else TRANSFORMERS)
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in read_tensors(file).items()
        if name.startswith(prefix)
    }
    return inside if of_lavis else _of_transformers(inside, file)


def blocks_of(tensors: Mapping[str, Any]) -> int:
    """Number of blocks of an encoder under timm's names."""
    return 1 + max((int(match[1]) for name in tensors if (match := BLOCK.match(name))), default=-1)


def _of_transformers(inside: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in inside.items():
        if name.startswith(NORM_OF_ALL):
            continue
        match = LAYER.fullmatch(name)
        if name in PLAIN:
            named[PLAIN[name]] = tensor
        elif match and match[2] in PARTS:
            own = f"blocks.{match[1]}.{PARTS[match[2]]}.{match[3]}"
            if own.endswith("attn.qkv.bias"):
                # EVA has no bias of keys, which attention would cancel; transformers keeps zeros in its place
                query, _, value = tensor.chunk(3)
                named[own.replace("qkv.bias", "q_bias")] = query
                named[own.replace("qkv.bias", "v_bias")] = value
            else:
                named[own] = tensor
        else:
            raise MuError(
                f"model.vit.weights: {file} has {TRANSFORMERS}{name}, which is no part of BLIP-2's encoder"
            )
    return named


def _names(file: Path) -> Iterator[str]:
    """Names of the tensors of a file, without reading them; none of one that is damaged, as timm says why."""
    with suppress(Exception):
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as opened:
                yield from opened.keys()
        else:
            with harmless_globals():
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            yield from _inside(content)


def _inside(content: Any) -> Iterator[str]:
    """Keys of nested mappings that are text."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(value, Mapping):
                yield from _inside(value)
            elif isinstance(name, str):
                yield name
