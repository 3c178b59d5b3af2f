"""Convert weights of BERT, of BLIP-2 (as LAVIS or transformers name them) and of the published MedUnifier.

BERT provides the text side, and the queries' feed-forward networks start from the same weights (as in BLIP-2
and the published code); cross-attention then stays random. BLIP-2 provides the whole Q-Former and its heads.
BERT's embedding of token type 0 is folded into the positions: the Q-Former has no token types, and so the
text pass equals BertModel exactly. Of the published MedUnifier see `foreign.published`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medunifier_cli.checkpoint.foreign.loaded import Loaded, why_left_out
from medunifier_cli.checkpoint.foreign.published import MARK, generator_names
from medunifier_cli.errors import MuError
from medunifier_cli.model.weights import TRANSFORMERS_FILES, read_tensors, weights_path

if TYPE_CHECKING:
    from medunifier_cli.model.medunifier import MedUnifier

WRAPPED = ("module.", "model.", "_orig_mod.", "_forward_module.")
"""What DistributedDataParallel, Lightning, torch.compile and Fabric put before every name, in any order."""
WORDS = "embeddings.word_embeddings.weight"
"""Every BERT has it once."""
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
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
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention.norm",
    "crossattention.self.query": "cross.q",
    "crossattention.output.dense": "cross.out",
    "crossattention.output.LayerNorm": "cross.norm",
    "intermediate.dense": "ffn_text.up",
    "output.dense": "ffn_text.down",
    "output.LayerNorm": "ffn_text.norm",
    "intermediate_query.dense": "ffn_query.up",
    "output_query.dense": "ffn_query.down",
    "output_query.LayerNorm": "ffn_query.norm",
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
    """As `load_start`; returns the names of the model's tensors that the source does not have."""
    return list(load_start(model, source).new)


def load_start(model: MedUnifier, source: str) -> Loaded:
    """Start the image-text encoder from a BERT, a BLIP-2 or a published MedUnifier.

    Args:
        model: is changed in place.
        source: local folder or file, or a hub name that is in the local cache.

    Returns:
        What became of each tensor; those of the model that the source does not have stay as they were.

    Raises:
        MissingWeightsError: nothing at `source`.
        MuError: weights of another shape.
    """
    tensors = read_weights(source)
    try:
        spelt = canonical_names(tensors)
        named = {own: tensors[name] for name, own in spelt.items()}
        converted, pieces = translate(named, model, source)
    except (RuntimeError, IndexError, TypeError) as error:  # parts that cannot be put together
        raise MuError(
            f"model.qformer.weights: {source} has tensors of other shapes than a BERT or BLIP-2 has; fetch "
            "it again"
        ) from error
    state = model.state_dict()
    for name, tensor in converted.items():
        if name in state and state[name].shape != tensor.shape:
            raise MuError(
                f"model.qformer.weights: {source} has {name} of shape {tuple(tensor.shape)}, "
                f"the recipe's model {tuple(state[name].shape)}"
            )
    # Heads of objectives that are off are in the source and not in the model.
    usable = {name: tensor for name, tensor in converted.items() if name in state}
    if not any(".attention.qkv." in name for name in usable):
        names = ", ".join(sorted(tensors)[:3])
        raise MuError(
            f"model.qformer.weights: {source} holds no BERT or BLIP-2 encoder; its tensors are {names}, ..."
        )
    model.load_state_dict(usable, strict=False)
    # The image encoder has weights of its own (`model.vit.weights`), which no BERT is expected to hold.
    new = sorted(name for name in state if name not in usable and not name.startswith("vit."))
    return _account(list(tensors), spelt, {name: pieces[name] for name in usable}, new)


def _account(
    names: Sequence[str], spelt: Mapping[str, str], pieces: Mapping[str, tuple[str, ...]], new: list[str]
) -> Loaded:
    """What became of each tensor of a file.

    Args:
        names: of all tensors of the file.
        spelt: of `canonical_names`.
        pieces: name in the model -> BERT's own names of what it was made of.
        new: tensors of the model that the file does not have.
    """
    uses: dict[str, list[str]] = {}
    for own, parts in pieces.items():
        for part in parts:
            uses.setdefault(part, []).append(own)
    mapped, left_out = {}, {}
    for name in names:
        bert_name = spelt.get(name, name)
        if name in spelt and bert_name in uses:
            mapped[name] = uses[bert_name]
        elif bert_name.rpartition(".")[0] in HEADS:
            left_out[name] = "a head of an objective that the recipe has off"
        else:
            left_out[name] = why_left_out(bert_name)
    return Loaded(mapped, left_out, new)


def read_weights(source: str) -> dict[str, Tensor]:
    """Tensors by name from a local file or folder, or from the hub's local cache; never from the network.

    Raises:
        MissingWeightsError: not on this machine.
        MuError: a file that cannot be read, or holds other things; see `read_tensors`.
    """
    return read_tensors(weights_path("model.qformer.weights", source, TRANSFORMERS_FILES))


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Name of any known spelling -> BERT's own; of one BERT inside a larger model, such as the text tower
    of a CLIP, its names alone."""
    spelt = {}
    for name in names:
        own = name
        while own.startswith(WRAPPED):
            own = own.partition(".")[2]
        for prefix in PREFIXES:
            own = own.removeprefix(prefix)
        for old, new in RENAMED:
            own = own.replace(old, new)
        spelt[name] = own
    inside = {own.removesuffix(WORDS) for own in spelt.values() if own.endswith(WORDS)}
    if len(inside) == 1 and not any(own.startswith("encoder.layer.") for own in spelt.values()):
        (tower,) = inside
        spelt = {name: own.removeprefix(tower) for name, own in spelt.items() if own.startswith(tower)}
    return spelt


def translate(
    bert: Mapping[str, Tensor], model: MedUnifier, source: str
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Tensors under BERT's names -> under the model's names; and for each of these the BERT's it was made of.

    Args:
        bert: of a whole file, under the names of `canonical_names`.
        model: what they are for; is not changed.
        source: where they come from, for messages.
    """
    converted: dict[str, Tensor] = {}
    pieces: dict[str, tuple[str, ...]] = {}
    layers = len(model.qformer.blocks)
    for name, tensor in bert.items():
        module, _, kind = name.rpartition(".")
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", module)
        own = ""
        # A shallower Q-Former takes the first layers of a deeper BERT.
        if match and int(match[1]) < layers:
            if match[2] in BLOCK_PARTS:
                own = f"qformer.blocks.{match[1]}.{BLOCK_PARTS[match[2]]}.{kind}"
        elif module in HEADS:
            own = f"{HEADS[module]}.{kind}"
        if own:
            converted[own], pieces[own] = tensor, (name,)
    for layer in range(layers):
        for bert_module, (part, matrices) in FUSED.items():
            for kind in ("weight", "bias"):
                names = [f"encoder.layer.{layer}.{bert_module}.{matrix}.{kind}" for matrix in matrices]
                if all(name in bert for name in names):
                    own = f"qformer.blocks.{layer}.{part}.{kind}"
                    converted[own], pieces[own] = torch.cat([bert[name] for name in names]), tuple(names)
    if "query_tokens" in bert:
        converted["qformer.query_tokens"] = bert["query_tokens"].flatten(0, -2)
        pieces["qformer.query_tokens"] = ("query_tokens",)
        _check_cross_attention(bert, model, source)
    else:
        for name in [name for name in converted if ".ffn_text." in name]:
            for_queries = name.replace(".ffn_text.", ".ffn_query.")
            converted[for_queries], pieces[for_queries] = converted[name], pieces[name]
    for name, own in generator_names(bert, model).items():
        converted[own], pieces[own] = bert[name], (name,)
    if any(name.startswith(MARK) for name in bert) and "temp" in bert and model.recipe.objectives.itc:
        # of a whole model: BLIP-2's belongs to a space that is about to be trained anew
        converted["temperature"], pieces["temperature"] = bert["temp"].reshape(()), ("temp",)
    for own, (tensor, parts) in _embeddings(bert, model, source).items():
        converted[own], pieces[own] = tensor, parts
    return converted, pieces


def _check_cross_attention(bert: Mapping[str, Tensor], model: MedUnifier, source: str) -> None:
    """Raises MuError unless source and model have cross-attention in the same layers."""
    layer_of = re.compile(r"encoder\.layer\.(\d+)\.crossattention")
    in_source = {int(match[1]) for name in bert if (match := layer_of.match(name))}
    in_model = {
        layer for layer, block in enumerate(model.qformer.blocks) if getattr(block, "cross", None) is not None
    }
    if in_source != in_model:
        raise MuError(
            f"model.qformer.weights: {source} has cross-attention in {len(in_source)} layers, the recipe in "
            f"{len(in_model)}; BLIP-2 weights need model.qformer.cross_attention_every=2"
        )


def _embeddings(
    bert: Mapping[str, Tensor], model: MedUnifier, source: str
) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """Word and position embeddings and the bias of the word head, each with the names of what it was made of;
    none where the source has no embeddings."""
    word = bert.get(WORDS)
    position = bert.get(POSITIONS)
    if word is None or position is None:
        return {}
    own_word = model.qformer.word.weight
    if word.shape[1] != own_word.shape[1]:
        raise MuError(
            f"model.qformer.weights: {source} is {word.shape[1]} wide, the recipe's model "
            f"{own_word.shape[1]}; set model.qformer.width"
        )
    spare = len(own_word) - len(word)
    if spare not in (0, 1):  # [DEC] is the one token that a BERT vocabulary lacks
        raise MuError(
            f"model.qformer.weights: {source} has {len(word):,} words, the tokenizer {len(own_word):,}; "
            "text.tokenizer and model.qformer.weights belong together"
        )
    whole = torch.cat([word, own_word.detach()[len(word) :]])
    converted: dict[str, tuple[Tensor, tuple[str, ...]]] = {"qformer.word.weight": (whole, (WORDS,))}
    length = len(model.qformer.position.weight)
    if len(position) < length:
        raise MuError(f"text.max_tokens: {length} is more than the {len(position)} positions of {source}")
    types = bert.get(TYPES)
    bias = bert.get("cls.predictions.bias", bert.get("cls.predictions.decoder.bias"))
    # PyTorch would broadcast the one and fill up the other
    if (types is not None and types.shape[1:] != position.shape[1:]) or (
        bias is not None and bias.shape != word.shape[:1]
    ):
        raise MuError(
            f"model.qformer.weights: {source}: its token types or the bias of its words have other "
            "shapes than its words; fetch it again"
        )
    placed = position[:length] + (types[0] if types is not None else 0)
    converted["qformer.position.weight"] = (placed, (POSITIONS, *((TYPES,) if types is not None else ())))
    if bias is not None:
        filled = torch.cat([bias, bias.new_zeros(len(own_word) - len(bias))])
        converted["word_head.bias"] = (filled, ("cls.predictions.bias", "cls.predictions.decoder.bias"))
    return converted
