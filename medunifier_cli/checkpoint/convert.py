"""Weights under other projects' names -> ours: BERT, BLIP-2 as LAVIS and as transformers spell it.

BERT gives the text side, and the queries' feed-forward networks start from the same weights (as BLIP-2 and
the published code do); cross-attention then stays random. BLIP-2 gives the whole Q-Former and its heads.
BERT's embedding of token type 0 is folded into the positions: the Q-Former has no token types, and so the
text pass equals BertModel exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medunifier_cli.errors import MuError
from medunifier_cli.model.weights import TRANSFORMERS_FILES, weights_path

if TYPE_CHECKING:
    from medunifier_cli.model.medunifier import MedUnifier

PREFIXES = ("Qformer.bert.", "Qformer.", "qformer.", "bert.")
RENAMED = (
    (".attention.attention.", ".attention.self."),
    (".crossattention.attention.", ".crossattention.self."),
    ("vision_projection.", "vision_proj."),
    ("text_projection.", "text_proj."),
    (".gamma", ".weight"),
    (".beta", ".bias"),
)
BLOCK_PARTS = {
    "attention.output.dense": ("attention.out",),
    "attention.output.LayerNorm": ("attention.norm",),
    "crossattention.self.query": ("cross.q",),
    "crossattention.output.dense": ("cross.out",),
    "crossattention.output.LayerNorm": ("cross.norm",),
    "intermediate.dense": ("ffn_text.up",),
    "output.dense": ("ffn_text.down",),
    "output.LayerNorm": ("ffn_text.norm",),
    "intermediate_query.dense": ("ffn_query.up",),
    "output_query.dense": ("ffn_query.down",),
    "output_query.LayerNorm": ("ffn_query.norm",),
}
FUSED = {
    "attention.self": ("attention.qkv", ("query", "key", "value")),
    "crossattention.self": ("cross.kv", ("key", "value")),
}
HEADS = {
    "vision_proj": "image_head.project",
    "text_proj": "text_head.project",
    "itm_head": "match_head",
    "ln_vision": "vision_norm",
    "vision_model.post_layernorm": "vision_norm",
    "cls.predictions.transform.dense": "word_head.transform",
    "cls.predictions.transform.LayerNorm": "word_head.norm",
    "embeddings.LayerNorm": "qformer.norm",
    "layernorm": "qformer.norm",
}


def load_bert(model: MedUnifier, source: str) -> list[str]:
    """Start the image-text encoder from a BERT or BLIP-2 checkpoint.

    Args:
        model: is changed in place.
        source: local folder or file, or a hub name that is in the local cache.

    Returns:
        Names of ours that the source does not have, and that stay as they were.

    Raises:
        MissingWeightsError: nothing at `source`.
        MuError: weights of another shape.
    """
    theirs = canonical(read_weights(source))
    ours = translate(theirs, model, source)
    state = model.state_dict()
    for name, tensor in ours.items():
        if name in state and state[name].shape != tensor.shape:
            raise MuError(
                f"model.qformer.weights: {source} has {name} of shape {tuple(tensor.shape)}, "
                f"the recipe's model {tuple(state[name].shape)}"
            )
    known = {name: tensor for name, tensor in ours.items() if name in state}
    if not any(".attention.qkv." in name for name in known):
        raise MuError(f"model.qformer.weights: {source} holds no BERT or BLIP-2 encoder")
    model.load_state_dict(known, strict=False)
    return sorted(name for name in state if name not in known and not name.startswith("vit."))


def read_weights(source: str) -> dict[str, Tensor]:
    """Tensors by name from a local file or folder, or from the hub's local cache; never from the network.

    Raises:
        MissingWeightsError: not on this machine.
        MuError: a file that cannot be read.
    """
    path = weights_path("model.qformer.weights", source, TRANSFORMERS_FILES)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)  # refuses anything but tensors
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        raise MuError(f"{path}: damaged, or not a file of weights alone; fetch it again") from error
    state = state.get("model", state)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def canonical(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's own spelling for every tensor."""
    named = {}
    for name, tensor in theirs.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        for old, new in RENAMED:
            name = name.replace(old, new)
        named[name] = tensor
    return named


def translate(theirs: Mapping[str, Tensor], model: MedUnifier, source: str) -> dict[str, Tensor]:
    """Tensors in BERT's spelling -> ours."""
    ours: dict[str, Tensor] = {}
    layers = len(model.qformer.blocks)
    for name, tensor in theirs.items():
        module, _, kind = name.rpartition(".")
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", module)
        if match and int(match[1]) < layers:
            for part in BLOCK_PARTS.get(match[2], ()):
                ours[f"qformer.blocks.{match[1]}.{part}.{kind}"] = tensor
        elif module in HEADS:
            ours[f"{HEADS[module]}.{kind}"] = tensor
    for layer in range(layers):
        for theirs_part, (part, pieces) in FUSED.items():
            for kind in ("weight", "bias"):
                found = [
                    theirs.get(f"encoder.layer.{layer}.{theirs_part}.{piece}.{kind}") for piece in pieces
                ]
                if all(piece is not None for piece in found):
                    ours[f"qformer.blocks.{layer}.{part}.{kind}"] = torch.cat(
                        [p for p in found if p is not None]
                    )
    if "query_tokens" in theirs:
        ours["qformer.query_tokens"] = theirs["query_tokens"].flatten(0, -2)
        _check_frequency(theirs, model, source)
    else:
        for name in [name for name in ours if ".ffn_text." in name]:
            ours[name.replace(".ffn_text.", ".ffn_query.")] = ours[name]
    _embeddings(theirs, model, source, ours)
    return ours


def _check_frequency(theirs: Mapping[str, Tensor], model: MedUnifier, source: str) -> None:
    has = {int(m[1]) for name in theirs if (m := re.match(r"encoder\.layer\.(\d+)\.crossattention", name))}
    wants = {i for i, block in enumerate(model.qformer.blocks) if getattr(block, "cross", None) is not None}
    if has != wants:
        raise MuError(
            f"model.qformer.weights: {source} has cross-attention in {len(has)} layers, the recipe in "
            f"{len(wants)}; BLIP-2 weights need model.qformer.cross_attention_every=2"
        )


def _embeddings(
    theirs: Mapping[str, Tensor], model: MedUnifier, source: str, ours: dict[str, Tensor]
) -> None:
    word = theirs.get("embeddings.word_embeddings.weight")
    position = theirs.get("embeddings.position_embeddings.weight")
    if word is None or position is None:
        return
    wanted = model.qformer.word.weight
    if word.shape[1] != wanted.shape[1]:
        raise MuError(
            f"model.qformer.weights: {source} is {word.shape[1]} wide, the recipe's model {wanted.shape[1]}; "
            "set model.qformer.width"
        )
    spare = len(wanted) - len(word)
    if spare not in (0, 1):  # [DEC] is the one token that a BERT vocabulary lacks
        raise MuError(
            f"model.qformer.weights: {source} has {len(word):,} words, the tokenizer {len(wanted):,}; "
            "text.tokenizer and model.qformer.weights belong together"
        )
    ours["qformer.word.weight"] = torch.cat([word, wanted.detach()[len(word) :]])
    length = len(model.qformer.position.weight)
    if len(position) < length:
        raise MuError(f"text.max_tokens: {length} is more than the {len(position)} positions of {source}")
    types = theirs.get("embeddings.token_type_embeddings.weight")
    ours["qformer.position.weight"] = position[:length] + (types[0] if types is not None else 0)
    bias = theirs.get("cls.predictions.bias", theirs.get("cls.predictions.decoder.bias"))
    if bias is not None:
        ours["word_head.bias"] = torch.cat([bias, bias.new_zeros(len(wanted) - len(bias))])
