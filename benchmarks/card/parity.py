"""Losses and gradients of one batch on a card, compared with those of the CPU in fp32."""

from __future__ import annotations

from typing import Any

import torch
from objectives import NO_VIT, SAME_NUMBERS, TINY, make_batch
from torch import Tensor

from medunifier_cli.data.batch import to_device
from medunifier_cli.data.contract import Batch
from medunifier_cli.distributed import draws
from medunifier_cli.objectives.pretraining import PretrainingLoss, build_model
from medunifier_cli.recipe.load import load_recipe

PAIRS = 8
LOSS = {"fp32": 1e-4, "bf16": 3e-2}
"""Largest relative difference of a loss that is still called equal."""
GRADIENT = {"fp32": 1e-3, "bf16": 0.25}
"""The same of all gradients: length of their difference over their length.

bf16 keeps 7 bits, and the queries of an untrained model differ between images by a twentieth of their length:
rounding is 7 % of that difference, and 17 % behind the batch norms of the adapters' bottlenecks, each of
which gives it full scale again. On a CPU the gradients differ by 0.07 to 0.21 and the losses by at most
0.005, with initial weights of 0.1 to 0.3.
"""


def build(device: torch.device) -> PretrainingLoss:
    """A small model with full.yaml's objectives, its image encoder trained and so in fp32; no dropout.

    ITM's negatives are random ones: hard ones are chosen by similarities, of which two may be nearly equal.
    """
    own = ("model.vit.frozen=false", "objectives.itm_negatives=random")
    settings = [*NO_VIT, *SAME_NUMBERS, *TINY.overrides, *own]
    torch.manual_seed(0)
    model = build_model(load_recipe("full", settings), TINY.vocabulary)
    return PretrainingLoss(model.to_device(device), TINY.vocabulary - 1).train()


def losses_and_gradients(
    batch: Batch, device: torch.device, precision: str
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Of the first pass of a new model, both on the CPU."""
    module = build(device)
    # codes start from encoder outputs: those that they are built with are so much alike that rounding chooses
    revival = draws.generator(0, draws.REVIVAL, 0, 0)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        losses, _ = module(to_device(batch, device), revival)
    losses["total"].backward()
    named = module.named_parameters()
    gradients = {name: p.grad.detach().cpu().double() for name, p in named if p.grad is not None}
    return {name: float(loss.detach()) for name, loss in losses.items()}, gradients


def norm(gradients: dict[str, Tensor]) -> float:
    """Euclidean length of all gradients together."""
    return float(torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt())


def compare(device: torch.device) -> dict[str, Any]:
    """Differences in both precisions, and whether they are within the tolerances."""
    cpu, (batch, _) = torch.device("cpu"), make_batch(PAIRS, TINY)
    expected, gradients = losses_and_gradients(batch, cpu, "fp32")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default for convolutions keeps 10 bits of a factor
    result: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        losses, found = losses_and_gradients(batch, device, precision)
        loss = max(abs(losses[name] - expected[name]) / abs(expected[name]) for name in expected)
        gradient = norm({name: found[name] - one for name, one in gradients.items()}) / norm(gradients)
        result |= {
            f"loss_{precision}": loss, f"gradient_{precision}": gradient,
            f"within_{precision}": loss <= LOSS[precision] and gradient <= GRADIENT[precision],
        }  # fmt: skip
    torch.backends.cudnn.allow_tf32 = before
    return result
