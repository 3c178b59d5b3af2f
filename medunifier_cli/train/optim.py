"""AdamW, warm-up and cosine (paper, appendix 2), and the optimiser's state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from medunifier_cli.recipe.schema_train import OptimConfig

# The paper (appendix 2) says AdamW with a weight decay of 0.05 and no more. Biases and norms have none, as in
# BERT and nearly everywhere since. These here are our choice:
# - word, position and query embeddings: a row that few batches use gets little gradient, yet would shrink;
# - the codebook: codes must stay where the encoder's outputs are, and decay pulls them all towards 0;
# - the temperature: decay would sharpen the contrast whatever the loss says.
NO_DECAY = ("word.weight", "position.weight", "query_tokens", "code_KC", "temperature")
"""Ends of the names of parameters without weight decay, beside everything with fewer than two dimensions."""


def learning_rate(recipe: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimiser step `step` of `steps`: linear warm-up, then half a cosine down to `final_lr`."""
    # a function of the step, not a scheduler: nothing to save, and a resumed run cannot be one step off
    warm = round(recipe.warmup * steps)
    if step < warm:
        return recipe.warmup_lr + (recipe.peak_lr - recipe.warmup_lr) * step / warm
    done = (step - warm) / max(1, steps - warm)  # a run that is warm-up alone never gets here
    return recipe.final_lr + (recipe.peak_lr - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def adamw(
    module: nn.Module, recipe: OptimConfig, scale: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.AdamW:
    """AdamW over the trained parameters, in groups: with and without weight decay, for each learning rate.

    Args:
        module: parameters that require no gradient are left out.
        recipe: rates, betas and weight decay.
        scale: parameter name -> factor on the learning rate.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() >= 2 and not name.endswith(NO_DECAY)
            groups.setdefault((scale(name), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[key], "weight_decay": recipe.weight_decay if key[1] else 0.0, "scale": key[0]}
            # sorted, so that the groups have the same order whatever order modules were built in
            for key in sorted(groups, reverse=True)
        ],
        lr=recipe.peak_lr,
        betas=(recipe.beta1, recipe.beta2),
        fused=True,  # one pass over all parameters instead of a dozen operations on each
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, multiplied by the group's own `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def leave_unchanged(optimizer: torch.optim.Optimizer, flag: Tensor) -> None:
    """Make the next step of AdamW change nothing, neither weights nor moments, where `flag` is 1.

    Args:
        flag: fp32 scalar on the device of the weights, 0 or 1. The fused kernel reads it there: the way in
            which PyTorch's GradScaler skips a step, without the CPU ever knowing.
    """
    optimizer.found_inf = flag  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def _named_state(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name, parameter in module.named_parameters():
        # none before the first step, nor for a parameter that never got a gradient
        if parameter in optimizer.state:
            yield name, optimizer.state[parameter]


def state_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by name: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
    # by name, where `state_dict` numbers parameters group by group: a new group would shift all numbers, and
    # names are all that safetensors can hold
    return {
        f"{kind}.{name}": value
        for name, state in _named_state(module, optimizer)
        for kind, value in state.items()
    }


def load_state_tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Load the tensors returned by `state_tensors`.

    Raises:
        KeyError: a parameter has a part of its state alone, or a state belongs to no parameter.
    """
    kinds = sorted({name.split(".", 1)[0] for name in tensors})
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        # A parameter without any state had none: no gradient ever reached it, as with ITG alone the last
        # feed-forward network of the queries. AdamW starts its state with the first gradient, then as now.
        if parameter.requires_grad and any(f"{kind}.{name}" in tensors for kind in kinds):
            optimizer.state[parameter] = {
                # a copy: of a file that is mapped, the disk would keep the space after it is deleted
                kind: tensors[f"{kind}.{name}"].to(parameter.device, copy=True)
                for kind in kinds
            }
    # the state of a renamed parameter must not be lost in silence
    unknown = sorted(name for name in tensors if name.split(".", 1)[1] not in parameters)
    if unknown:
        raise KeyError(unknown[0])
