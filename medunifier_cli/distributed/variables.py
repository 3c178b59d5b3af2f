"""Refuse variables of Accelerate that would train otherwise than the recipe says.

Accelerate reads settings from the environment where no argument gives them, and some even then:
ACCELERATE_GRADIENT_ACCUMULATION_STEPS divides gradients, ACCELERATE_DYNAMO_BACKEND compiles the model. They
are meant for scripts without a recipe, and are easily left over from another job.
"""

from __future__ import annotations

import os

from medunifier_cli.errors import MuError

PREFIX = "ACCELERATE_"
OFF = ("false", "no", "0", "none")
"""Values, in lower case, that switch a setting off."""
ANY_VALUE = (
    "BYPASS_DEVICE_MAP", "CPU_AFFINITY", "DEBUG_MODE", "ENABLE_RICH", "LOG_LEVEL", "USE_CPU",
    "DYNAMO_MODE", "DYNAMO_USE_FULLGRAPH", "DYNAMO_USE_DYNAMIC", "DYNAMO_USE_REGIONAL_COMPILATION",
)  # fmt: skip
"""Settings that change no number: of messages and processor cores, and of a compiler that is off.

USE_CPU is what `accelerate launch --cpu` sets; the first line of a run names the device."""
ONLY: dict[str, tuple[str, ...]] = {"GRADIENT_ACCUMULATION_STEPS": ("1",), "TORCH_DEVICE": ()}
"""Settings that no value switches off, and the values that they have anyway."""


def check_variables(precision: str) -> None:
    """Refuse settings of Accelerate that the recipe does not make; empty ones are removed.

    What a plain `accelerate launch` exports (accelerate 1.15) passes, whatever the recipe's precision.

    Args:
        precision: of the recipe, `train.precision`.

    Raises:
        MuError: one line with all of them.
    """
    refused = []
    for name, value in sorted(os.environ.items()):
        setting = name.removeprefix(PREFIX)
        if setting == name or setting in ANY_VALUE:
            continue
        if not value:
            del os.environ[name]  # Accelerate would try to read a number or a truth value from it
            continue
        accepted = ("no", precision) if setting == "MIXED_PRECISION" else ONLY.get(setting, OFF)
        if value.lower() not in accepted:
            refused.append(f"{name}={value}")
    if refused:
        verb = "are" if len(refused) > 1 else "is"
        raise MuError(
            f"{', '.join(refused)} {verb} set in the environment, but the recipe alone says how a run is "
            f"trained; unset {'them' if len(refused) > 1 else 'it'}, or leave the option out of "
            "`accelerate launch`"
        )
