"""A head on the queries of the uni-modal pass (paper, section 4): f_q -> logits.

B images, Q queries, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.head_contract import HeadPlugin
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vit import pixels

IMAGE_PARTS = ("vit.", "vision_norm.", "qformer.")
TEXT_ONLY = ("qformer.word.", "qformer.position.", ".ffn_text.")
"""Parts of the image-text encoder that the queries' own pass never reaches."""


class Classifier(nn.Module):
    """The pre-trained model and a new head.

    Args:
        model: pre-trained. What the image's pass does not reach is no longer trained.
        head: [B, Q, D] -> [B, C].
        freeze: train the head alone; the model stays in evaluation mode, and `forward` takes queries.
    """

    def __init__(self, model: MedUnifier, head: nn.Module, freeze: bool) -> None:
        super().__init__()
        self.model, self.head, self.freeze = model, head, freeze
        for name, parameter in model.named_parameters():
            if freeze or not is_of_image(name):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        """A frozen model stays in evaluation mode."""
        super().train(mode)
        if self.freeze:
            self.model.eval()
        return self

    def queries(self, image_B1HW: Tensor) -> Tensor:
        """uint8 grey levels -> f_q [B, Q, D] of the uni-modal pass."""
        return self.model.encode_image(pixels(image_B1HW)).query_BQD

    def forward(self, given: Tensor) -> Tensor:
        """uint8 images [B, 1, H, W], or queries [B, Q, D] where the model is frozen -> logits [B, C]."""
        logits: Tensor = self.head(given if self.freeze else self.queries(given))
        return logits

    def weights(self) -> dict[str, Tensor]:
        """What fine-tuning changes: trained parameters, and buffers of the head."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = self.state_dict()
        return {name: state[name] for name in state if name in trained or name.startswith("head.")}


def is_of_image(name: str) -> bool:
    """Whether a parameter of `MedUnifier` takes part in f_q."""
    return name.startswith(IMAGE_PARTS) and not any(part in name for part in TEXT_ONLY)


def build_head(plugin: HeadPlugin, queries: int, width: int, classes: int, seed: int) -> nn.Module:
    """A head from its plugin, drawn from `seed` and tried once.

    Raises:
        MuError: what it makes are not logits [B, C], or it breaks.
    """
    torch.manual_seed(seed)
    try:
        head = plugin.build(queries, width, classes)
        with torch.no_grad():
            plugin.check(head.eval(), torch.zeros(2, queries, width), classes)
    except Exception as error:  # code of others: anything may come out of it
        first_line = (str(error).splitlines() or [""])[0]
        raise MuError(
            f"head `{plugin.name}` cannot be used on {queries} queries of width {width} and {classes} "
            f"classes: {type(error).__name__}: {first_line}"
        ) from error
    return head.train()
