"""MedUnifier as transformers knows models: import this, and its `Auto` classes load an exported folder.

    import medunifier_cli.hub
    model = transformers.AutoModel.from_pretrained(FOLDER)

An import that registers something is what the project avoids elsewhere. Here it is transformers' own way to
load a model without running code from the hub, and nothing but `mu export` imports this package.
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from medunifier_cli.hub.configuration import MedUnifierConfig
from medunifier_cli.hub.loading import load_exported
from medunifier_cli.hub.modeling import MedUnifierModel, MedUnifierOutput
from medunifier_cli.hub.processing import MedUnifierImageProcessor, MedUnifierProcessor

__all__ = [
    "MedUnifierConfig", "MedUnifierImageProcessor", "MedUnifierModel", "MedUnifierOutput",
    "MedUnifierProcessor", "load_exported",
]  # fmt: skip

# a module that is loaded anew, as tests and notebooks do, registers its new classes
AutoConfig.register(MedUnifierConfig.model_type, MedUnifierConfig, exist_ok=True)
AutoModel.register(MedUnifierConfig, MedUnifierModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(MedUnifierConfig, MedUnifierModel, exist_ok=True)
AutoProcessor.register(  # type: ignore[no-untyped-call]
    MedUnifierConfig, MedUnifierProcessor, exist_ok=True
)
AutoImageProcessor.register(MedUnifierConfig, MedUnifierImageProcessor, exist_ok=True)
