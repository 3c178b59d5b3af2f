"""The pre-trained model with a classification head on its queries (paper, section 4): f_q -> logits.

B images, Q queries, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.head_contract import HeadPlugin
from medunifier_cli.model.medunifier import MedUnifier

IMAGE_PARTS = ("vit.", "vision_norm.", "qformer.")
TEXT_ONLY = ("qformer.word.", "qformer.position.", ".ffn_text.")
"""Parts of the image-text encoder that the queries' own pass never reaches."""
# the parts to keep are listed, not those to leave out: the heads of a new objective are left out unnamed


class Classifier(nn.Module):
    """The pre-trained model and a new head.

    Args:
        model: pre-trained. Parameters that the pass over an image does not reach are no longer trained.
        head: [B, Q, D] -> [B, C].
        freeze: train the head alone; the model stays in evaluation mode, and `forward` takes queries.
    """

    def __init__(self, model: MedUnifier, head: nn.Module, freeze: bool) -> None:
        super().__init__()
        self.model, self.head, self.freeze = model, head, freeze
        for name, parameter in model.named_parameters():
            # `weights` saves what requires a gradient, and DistributedDataParallel would wait in each step
            # for the gradient of a parameter that no image reaches
            if freeze or not is_of_image(name):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        """A frozen model stays in evaluation mode."""
        super().train(mode)
        # `module.train()` of the loop reaches every child: dropout would make the frozen features random
        if self.freeze:
            self.model.eval()
        return self

    def queries(self, image_or_feature: Tensor) -> Tensor:
        """uint8 grey levels, or cached features of them -> f_q [B, Q, D] of the uni-modal pass."""
        return self.model.encode(image_or_feature).query_BQD

    def forward(self, images_or_queries: Tensor) -> Tensor:
        """uint8 images [B, 1, H, W] or cached features of them [B, V, D_v], or queries [B, Q, D] where the
        model is frozen -> logits [B, C]."""
        # a frozen model gives an image the same queries in every epoch, so the stage computes them once
        query_BQD = images_or_queries if self.freeze else self.queries(images_or_queries)
        logits: Tensor = self.head(query_BQD)
        return logits

    def weights(self) -> dict[str, Tensor]:
        """The tensors that fine-tuning changes: trained parameters, and buffers of the head."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = self.state_dict()
        return {name: state[name] for name in state if name in trained or name.startswith("head.")}


def is_of_image(name: str) -> bool:
    """Whether a parameter of `MedUnifier` takes part in f_q."""
    return name.startswith(IMAGE_PARTS) and not any(part in name for part in TEXT_ONLY)


def build_head(plugin: HeadPlugin, queries: int, width: int, classes: int, seed: int) -> nn.Module:
    """Build a head from its plugin and try it once.

    Args:
        plugin: which head.
        queries: Q.
        width: D.
        classes: C.
        seed: of its random weights.

    Raises:
        MuError: it fails, or its output is not logits [B, C].
    """
    torch.manual_seed(seed)  # here, so that a head's start does not depend on what was built before it
    try:
        head = plugin.build(queries, width, classes)
        with torch.no_grad():
            # in evaluation mode: a head's batch norm must not learn from these zeros
            plugin.check(head.eval(), torch.zeros(2, queries, width), classes)
    except Exception as error:  # a plugin is someone else's code and may raise anything
        first_line = (str(error).splitlines() or [""])[0]
        raise MuError(
            f"head `{plugin.name}` cannot be used on {queries} queries of width {width} and {classes} "
            f"classes: {type(error).__name__}: {first_line}"
        ) from error
    return head.train()
