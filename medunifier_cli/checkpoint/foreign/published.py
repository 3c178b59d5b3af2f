"""The names of the published MedUnifier's generator, as far as its layers are ours.

Its adapters compute what ours do with `nonlinear: linear-relu-linear`, `upsample: nearest` and
`residual: bottleneck`, and its top codebook is ours. Its decoder has other layers (residual stacks before
deconvolutions, norms before ReLUs, other widths), and its bottom codes are twice as wide: these start anew.
All else in such a file is BLIP-2's, under LAVIS' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from medunifier_cli.errors import MuError

if TYPE_CHECKING:
    from medunifier_cli.model.medunifier import MedUnifier

MARK = "vqvae."
"""Before every name of its generator."""
ADAPTERS = {"top_bridge": "adapt_top", "bottom_bridge": "adapt_bottom"}
LINEAR = {"0": "linear", "2": "out"}
LAYER = re.compile(r"vqvae\.(\w+_bridge)\.resdiual_stack\.residual_stack\.(\d+)\.residual_block\.(.+)")
"""Spelt as the authors spell it."""
MLP = re.compile(r"vqvae\.(\w+_bridge)\.mlp\.([02])\.(weight|bias)")
CODES = "vqvae.quantizer_top.codebook.weight"
FORM = (("nonlinear", "linear-relu-linear"), ("upsample", "nearest"), ("residual", "bottleneck"))
"""Keys of `model.generator` that give the adapters the authors' form, with `residual_layers` 3."""


def generator_names(tensors: Mapping[str, Tensor], model: MedUnifier) -> dict[str, str]:
    """Name in the file -> name in the model, of what both generators have.

    Args:
        tensors: of a whole file; one without a generator gives nothing.
        model: whose recipe says which form the adapters have.

    Raises:
        MuError: the recipe's adapters have another form than the authors'; says which keys to set.
    """
    if not any(name.startswith(MARK) for name in tensors) or not model.recipe.objectives.tig:
        return {}
    recipe = model.recipe.model.generator
    layers = {int(match[2]) + 1 for name in tensors if (match := LAYER.fullmatch(name))}
    wrong = [f"{key}={value}" for key, value in FORM if getattr(recipe, key) != value]
    if layers and recipe.residual_layers != max(layers):
        wrong.append(f"residual_layers={max(layers)}")
    if wrong:
        raise MuError(
            "model.qformer.weights: of the published MedUnifier, whose adapters have another form; set "
            + " ".join(f"model.generator.{setting}" for setting in wrong)
        )
    named = {}
    for name in tensors:
        if (match := MLP.fullmatch(name)) and match[1] in ADAPTERS:
            named[name] = f"generator.{ADAPTERS[match[1]]}.nonlinear.{LINEAR[match[2]]}.{match[3]}"
        elif (match := LAYER.fullmatch(name)) and match[1] in ADAPTERS:
            named[name] = f"generator.{ADAPTERS[match[1]]}.residual.layers.{match[2]}.{match[3]}"
        elif name == CODES:
            named[name] = "generator.quantise_top.code_KC"
    return named
