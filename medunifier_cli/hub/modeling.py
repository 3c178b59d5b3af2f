"""MedUnifier as a model of transformers: `from_pretrained`, `save_pretrained`, `push_to_hub`.

B images, T texts, Q queries, E joint space, S edge of an image in pixels, L longest text.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from medunifier_cli.checkpoint.encoder.tower import load_tower
from medunifier_cli.checkpoint.exported import check_tower
from medunifier_cli.data.batch import PackedText
from medunifier_cli.errors import CheckpointError
from medunifier_cli.hub.configuration import MedUnifierConfig
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.weights import without_drawing
from medunifier_cli.objectives.itc import TEMPERATURE_RANGE
from medunifier_cli.objectives.pretraining import build_model
from medunifier_cli.objectives.similarity import image_text_similarity

TOWER = "model.vit.vit."
"""Before the names of the image encoder's tensors."""


@dataclass
class MedUnifierOutput(ModelOutput):  # type: ignore[misc]
    """What `MedUnifierModel` returns; a field whose input was not given is None."""

    logits_per_image: Tensor | None = None
    """[B, T]: cosine of the query that fits best, divided by the learned temperature."""
    logits_per_text: Tensor | None = None
    """[T, B]."""
    image_embeds: Tensor | None = None
    """[B, Q, E], each of length 1."""
    text_embeds: Tensor | None = None
    """[T, E], each of length 1."""


class MedUnifierModel(PreTrainedModel):  # type: ignore[misc, no-untyped-call]
    """The model of a pre-training run; `model` is the `MedUnifier` that the rest of this package works on.

    Raises:
        CheckpointError: by `from_pretrained`, for weights that do not fit the configuration: none is left
            random. By what needs a joint space, for a run without ITC.
        MissingWeightsError: by `from_pretrained`, if the frozen image encoder is only named, and not here.
    """

    config_class = MedUnifierConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MedUnifierConfig) -> None:
        super().__init__(config)
        # transformers builds on the meta device and fills in the weights; constants of the recipe, which no
        # file holds, are computed all the same
        empty = torch.empty(0).is_meta
        with torch.device("cpu"), without_drawing() if empty else nullcontext():
            self.model: MedUnifier = build_model(config.pretraining, config.vocab_size, load=False)
        saved = self.state_dict()
        self._constants = {name: b.clone() for name, b in self.named_buffers() if name not in saved}
        self.post_init()  # type: ignore[no-untyped-call]
        if not config.tower["bundled"]:
            self._keys_to_ignore_on_save = {f"{TOWER}{name}" for name, _ in self.model.vit.frozen_tensors()}
            self._keys_to_ignore_on_load_missing = {rf"^{re.escape(TOWER)}"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it, and strict: each weight of the model is in the file, and none besides."""
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # they are an error below, and not a page of a report
        result: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        loaded, info = result
        missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
        config: MedUnifierConfig = loaded.config
        if not config.tower["bundled"]:
            recipe = config.pretraining
            encoder, found = load_tower(recipe)
            check_tower(recipe, found, config.tower["sha256"], str(pretrained_model_name_or_path))
            loaded.model.vit = encoder.to(loaded.device).eval()
        if missing or unexpected or info["mismatched_keys"]:
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: its weights do not fit its config.json; use the version "
                "of mu that exported it"
            )
        return (loaded, info) if wants_info else loaded

    def _init_weights(self, module: nn.Module) -> None:
        """Called for modules with tensors that were in no file: constants get their values, and weights have
        been drawn where they were built."""
        for path, other in self.named_modules():
            if other is module:
                for name, buffer in module.named_buffers(recurse=False):
                    if (constant := self._constants.get(f"{path}.{name}")) is not None:
                        buffer.data.copy_(constant)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, 3, S, S] -> [B, Q, E], each of length 1."""
        self._need_itc()
        features: Tensor = self.model.image_head(self.model.encode_image(pixel_values).query_BQD)
        return features

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids of T texts, [T, L], padded on the right -> [T, E], each of length 1."""
        self._need_itc()
        features: Tensor = self.model.text_head(self.model.encode_text(packed(input_ids, attention_mask)))
        return features

    def match(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Image-text matching of B images, each with its text -> fp32 logits [B, 2] of no match and match.

        Raises:
            CheckpointError: a run without ITM.
        """
        if not self.config.pretraining.objectives.itm:
            raise CheckpointError(
                f"{self.config.run}: trained without ITM, it cannot match images with texts"
            )
        memory = self.model.encode_image(pixel_values)
        return self.model.match(memory, torch.arange(len(pixel_values)), packed(input_ids, attention_mask))

    def forward(
        self, pixel_values: Tensor | None = None, input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None, return_dict: bool | None = None, **_: Any,
    ) -> MedUnifierOutput | tuple[Any, ...]:  # fmt: skip
        """Embed images, texts or both, and compare them.

        Args:
            pixel_values: in [0, 1], [B, 3, S, S], as `MedUnifierImageProcessor` makes them.
            input_ids, attention_mask: int64 [T, L], padded on the right.
            return_dict: False returns a tuple of the fields that are not None.
        """
        if pixel_values is None and input_ids is None:
            raise ValueError("give pixel_values, input_ids, or both")
        image = None if pixel_values is None else self.get_image_features(pixel_values)
        text = None if input_ids is None else self.get_text_features(input_ids, attention_mask)
        logits = None
        if image is not None and text is not None:
            scale = self.model.temperature.clamp(*TEMPERATURE_RANGE)  # as a training step does
            logits = image_text_similarity(image, text) / scale
        output = MedUnifierOutput(
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            image_embeds=image,
            text_embeds=text,
        )
        return output.to_tuple() if return_dict is False else output

    def _need_itc(self) -> None:
        if not self.config.pretraining.objectives.itc:
            raise CheckpointError(f"{self.config.run}: trained without ITC, it has no joint space")


def packed(input_ids: Tensor, attention_mask: Tensor | None = None) -> PackedText:
    """Token ids [T, L] as the model reads them.

    Raises:
        ValueError: padded on the left, or in the middle of a text.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if bool((mask.diff(dim=1) > 0).any()):
        raise ValueError("texts are padded on the right: set padding_side of the tokenizer to 'right'")
    return PackedText(input_ids[mask.bool()], mask.sum(1).to("cpu", torch.int64))
