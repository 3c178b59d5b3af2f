"""A trained MedUnifier in Python: `medunifier.load` gives a model that takes images and texts as they are.

Nothing heavy is imported before a model is loaded. What the verbs of `mu` do with a model, this does by the
same functions, and to the same numbers.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medunifier_cli import __version__
from medunifier_cli.errors import MuError

if TYPE_CHECKING:
    import torch

    from medunifier.answers import Classification, Codes, Prediction
    from medunifier.model import Model
    from medunifier_cli.evaluate.films.likeness import Likeness
    from medunifier_cli.evaluate.films.origin import Origin
    from medunifier_cli.evaluate.reports.writer import Decoding, GeneratedReport

__all__ = [
    "Classification", "Codes", "Decoding", "GeneratedReport", "Likeness", "Model", "MuError", "Origin",
    "Prediction", "__version__", "load",
]  # fmt: skip

_MODULES = {
    "Classification": "medunifier.answers",
    "Codes": "medunifier.answers",
    "Likeness": "medunifier_cli.evaluate.films.likeness",
    "Model": "medunifier.model",
    "Origin": "medunifier_cli.evaluate.films.origin",
    "Prediction": "medunifier.answers",
    "Decoding": "medunifier_cli.evaluate.reports.writer",
    "GeneratedReport": "medunifier_cli.evaluate.reports.writer",
}
"""Where each name is, imported when it is first asked for."""


def load(run: str | os.PathLike[str] = "", device: str | torch.device | None = None) -> Model:
    """Load a trained model.

    Args:
        run: a run of `mu pretrain`; one of `mu fit-prior`, with the model that it was fitted on; or one of
            `mu finetune`, which predicts, and whose other answers are those of the fine-tuned weights: a
            name in `$MU_RUNS` or a folder. Empty for the newest pre-training run, which is named on standard
            error.
        device: such as `cpu` or `cuda:1`; by default the GPU if there is one.

    Raises:
        MuError: there is no such run, or it is damaged or unfinished, in one line; or no such device.
    """
    from medunifier.model import open_model

    return open_model(run, device)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
