"""Image-grounded text generation (paper, equations 15 to 17): causal language modelling after the queries.

B texts, N tokens, P = N - B predicted tokens, K vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medunifier_cli.data.batch import send
from medunifier_cli.data.contract import PackedText
from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32, half_type
from medunifier_cli.objectives.objective import EncodedBatch, LossAndMonitors, Objective


def decoder_inputs_and_targets(text: PackedText, dec_id: int) -> tuple[PackedText, Tensor]:
    """Teacher forcing: inputs [DEC] w_1 ... w_n, and after each of them its target, w_1 ... w_n [SEP].

    Returns:
        Texts one token shorter, P = N - B tokens in all, and int64 targets [P]. Nothing else is a target.
    """
    # on the CPU, where the lengths are: `nonzero` on a GPU would have to be waited for
    end_B = text.lengths_B.cumsum(0)
    first_N = torch.zeros(len(text.ids_N), dtype=torch.bool)
    last_N = first_N.clone()
    first_N[end_B - text.lengths_B] = True
    last_N[end_B - 1] = True
    masks = (first_N, ~last_N, ~first_N)
    first_B, input_P, target_P = send([mask_N.nonzero()[:, 0] for mask_N in masks], text.ids_N.device)
    # [DEC] replaces [CLS], as in BLIP-2: it tells the shared weights which of the two passes this is
    ids_N = text.ids_N.index_fill(0, first_B, dec_id)
    return PackedText(ids_N[input_P], text.lengths_B - 1), text.ids_N[target_P]


class TokenLoss(torch.autograd.Function):
    """Cross-entropy of logits in half precision, as a sum: computed in fp32, its gradient in half precision.

    PyTorch's own makes three more tensors of P x K in fp32 on the way back, of 360 MB each at paper sizes.
    """

    @staticmethod
    def forward(ctx: Any, logits_PK: Tensor, target_P: Tensor) -> Tensor:
        """Scalar, fp32 at least."""
        log_share_PK = torch.log_softmax(at_least_fp32(logits_PK), dim=1)
        ctx.save_for_backward(log_share_PK, target_P)
        ctx.dtype = logits_PK.dtype
        return -log_share_PK.gather(1, target_P[:, None]).sum()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Shares minus targets, in place of what was kept."""
        log_share_PK, target_P = ctx.saved_tensors
        share_PK, own_P1 = log_share_PK.exp_(), target_P[:, None]
        share_PK.scatter_(1, own_P1, share_PK.gather(1, own_P1) - 1)
        half = torch.empty(share_PK.shape, dtype=ctx.dtype, device=share_PK.device)
        return torch.mul(share_PK, grads[0], out=half), None


def itg_loss(logits_PK: Tensor, target_P: Tensor) -> LossAndMonitors:
    """Equation (15): sum over the P predicted tokens, to be divided by their global number.

    The paper divides by N * L_t; texts differ in length here and padding is no target, so the mean is over
    real tokens. Where a step accumulates micro-batches, it is the mean of their means.
    """
    # a sum: ranks hold different numbers of tokens, and only the caller knows those of all
    if half_type(logits_PK.device) is not None:
        loss: Tensor = TokenLoss.apply(logits_PK, target_P)
    else:
        loss = F.cross_entropy(at_least_fp32(logits_PK), target_P, reduction="sum")
    hits = (logits_PK.argmax(dim=1) == target_P).float().sum()
    return LossAndMonitors(loss, {"itg_hits": hits.detach()})


class ImageGroundedTextGeneration(Objective):
    """The text decoder reads the queries' keys and values of the uni-modal pass: exact, since in the
    multi-modal causal mask queries never attend to text."""

    name = "itg"
    title = "ITG loss"
    monitors: ClassVar[Mapping[str, str]] = {"itg_accuracy": "ITG accuracy, next token"}
    # f_q itself is never read: the last layer's feed-forward network of the queries gets no gradient
    reaches_every_weight = False

    def compute(self, encoded: EncodedBatch) -> LossAndMonitors:
        """Mean over the predicted tokens of all ranks."""
        inputs, target_P = decoder_inputs_and_targets(encoded.batch.text, encoded.dec_id)
        loss, counts = itg_loss(encoded.model.decode_text(encoded.memory, inputs), target_P)
        # the divisor is that of all ranks, so that each token of this pass over all ranks weighs the same
        tokens = world.total(float(len(target_P)), loss.device)
        return LossAndMonitors(
            world.share_of_mean(loss, tokens),
            {"itg_accuracy": world.share_of_mean(counts["itg_hits"], tokens)},
        )
