"""AdamW, warm-up and cosine (paper, appendix 2), and the optimiser's state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from medunifier_cli.recipe.schema_train import OptimConfig

NO_DECAY = ("word.weight", "position.weight", "query_tokens", "code_KC", "temperature")
"""Embeddings and the temperature; anything one-dimensional (biases, norms) goes with them."""


def learning_rate(recipe: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimiser step `step` of `steps`: linear warm-up, then half a cosine down to `final_lr`."""
    warm = round(recipe.warmup * steps)
    if step < warm:
        return recipe.warmup_lr + (recipe.peak_lr - recipe.warmup_lr) * step / warm
    done = (step - warm) / max(1, steps - warm)
    return recipe.final_lr + (recipe.peak_lr - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def adamw(
    module: nn.Module, recipe: OptimConfig, scale: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.AdamW:
    """AdamW over what is trained in `module`, in groups: with and without decay, for each learning rate.

    Args:
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
            for key in sorted(groups, reverse=True)
        ],
        lr=recipe.peak_lr,
        betas=(recipe.beta1, recipe.beta2),
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Rate of every group; a group's own `scale` multiplies it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def _named_state(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name, parameter in module.named_parameters():
        if parameter in optimizer.state:
            yield name, optimizer.state[parameter]


def state_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `exp_avg.<parameter>` and so on."""
    return {
        f"{kind}.{name}": value
        for name, state in _named_state(module, optimizer)
        for kind, value in state.items()
    }


def load_state_tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Undo `state_tensors`. Raises KeyError when a trained parameter has no state."""
    kinds = {name.split(".", 1)[0] for name in tensors}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and tensors:
            optimizer.state[parameter] = {
                kind: tensors[f"{kind}.{name}"].to(parameter.device) for kind in sorted(kinds)
            }
