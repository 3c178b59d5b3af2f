"""What became of each tensor of another project's weights: mapped, or left out and why; and what is new."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "a name that this version does not know"
REASONS = (
    (r"(visual_encoder|vision_model|visual)\.", "of the image encoder, which model.vit.weights loads"),
    (r"(embeddings\.)?position_ids$", "a constant"),
    (
        r"cls\.predictions\.decoder\.(weight|bias)$",
        "the same as the word embeddings, or as the bias of words",
    ),
    (r"(pooler|cls\.seq_relationship|cls_projection_head)\b", "a head of BERT that this model does not have"),
    (
        r"(opt|t5|llm|language)_(model|proj)|language_projection",
        "of a language model behind BLIP-2's queries",
    ),
    (r"temp$", "a temperature, which starts at objectives.temperature"),
    (r"vqvae\.quantizer_bottom\.", "codes twice as wide as ours, whose features are projected first"),
    (r"vqvae\.", "of the authors' decoder, whose layers are others than ours"),
    (r"encoder\.layer\.\d+\.", "of a layer or a part that the recipe's model does not have"),
    (r"(query_tokens|embeddings\.|layernorm\.)", "of a part that the recipe's model does not have"),
)
"""Pattern of a name in BERT's own spelling -> why such a tensor is left out; the first one that fits."""


@dataclass(frozen=True)
class Loaded:
    """The outcome of loading weights of another project."""

    mapped: Mapping[str, Sequence[str]]
    """Name in the file -> names in the model; three of BERT's matrices make one of ours."""
    left_out: Mapping[str, str]
    """Name in the file -> why it is not used."""
    new: Sequence[str]
    """Tensors of the model that keep their initial values; those of the image encoder are not counted."""

    def summary(self, source: str) -> str:
        """One line."""
        unknown = sum(reason == UNKNOWN for reason in self.left_out.values())
        doubt = f", {unknown:,} of them with unknown names" if unknown else ""
        return (
            f"{source}: {len(self.mapped):,} tensors mapped, {len(self.left_out):,} left out{doubt}; "
            f"{len(self.new):,} tensors of the model start anew"
        )

    def as_json(self) -> dict[str, Any]:
        """The whole list."""
        return {"mapped": dict(self.mapped), "left_out": dict(self.left_out), "new": list(self.new)}


def why_left_out(name: str) -> str:
    """Why a tensor is not used, by its name in BERT's own spelling."""
    return next((why for pattern, why in REASONS if re.match(pattern, name)), UNKNOWN)
