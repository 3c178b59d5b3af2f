"""The phases of a call by name, and how a signal is sent at the moment a phase begins."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PHASES: Mapping[str, Sequence[str]] = {
    "start-up": ("medunifier_cli.train.accelerator:check_precision",),
    "tokenizer": ("medunifier_cli.data.texts.tokenizer:TextTokenizer.train",),
    "building the model": (
        "medunifier_cli.objectives.pretraining:build_model",
        "medunifier_cli.checkpoint.priors:build_prior",
        "medunifier_cli.checkpoint.classifier:build_classifier",
    ),
    "encoding": ("medunifier_cli.model.medunifier:MedUnifier.encode_image",),
    "training": (
        "medunifier_cli.stages.pretrain:Pretraining.step",
        "medunifier_cli.stages.fit_prior:PriorFitting.step",
        "medunifier_cli.stages.finetune:Finetuning.step",
    ),
    "saving": ("medunifier_cli.checkpoint.store:save",),
    "validation": (
        "medunifier_cli.stages.pretrain:Pretraining.validate",
        "medunifier_cli.stages.fit_prior:PriorFitting.validate",
        "medunifier_cli.stages.finetune:Finetuning.validate",
    ),
    "held-out measurement": (
        "medunifier_cli.stages.heldout:evaluate",
        "medunifier_cli.stages.heldout:psnr",
        "medunifier_cli.stages.finetune_results:measure",
        "medunifier_cli.prior.baseline:baseline",
    ),
    "writing reports": ("medunifier_cli.evaluate.reports.text_cache:TextCache.step",),
    "sampling": ("medunifier_cli.prior.sampling:sample",),
    "drawing": ("medunifier_cli.prepare.render:render",),
}
"""Phase -> functions whose first call begins it, `module:name`; whichever of them a verb calls."""


def send_at(phase: str, number: int, call: int, group: bool, main_only: bool = True) -> Callable[[], None]:
    """A function for `forked.start`: sends a signal to this process when a phase begins.

    Args:
        call: the call of the phase's function at which it is sent, from 1.
        group: to all processes of the group, as Ctrl-C on a terminal does.
        main_only: of several ranks, rank 0 sends it.
    """

    def before() -> None:
        state = {"calls": 0, "sent": False}

        def began() -> None:
            if main_only and os.environ.get("RANK", "0") != "0":
                return
            state["calls"] += 1
            if state["calls"] == call and not state["sent"]:
                state["sent"] = True
                os.write(2, b"campaign: sent\n")
                if group:
                    os.killpg(0, number)
                else:
                    os.kill(os.getpid(), number)
                time.sleep(0)  # the interpreter runs handlers between two instructions

        found = [place for place in PHASES[phase] if _wrap(place, began)]
        if not found:
            os.write(2, f"campaign: no function begins the phase {phase}\n".encode())
            os._exit(70)

    return before


def _wrap(place: str, began: Callable[[], None]) -> bool:
    """Call `began` before the function at `place`, wherever it has been imported to."""
    import sys

    module_name, _, name = place.partition(":")
    try:
        owner: Any = importlib.import_module(module_name)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        inner = owner.__dict__[last] if outer else getattr(owner, last)
    except (ImportError, AttributeError, KeyError):
        return False
    plain = inner.__func__ if isinstance(inner, classmethod | staticmethod) else inner

    def wrapped(*arguments: Any, **options: Any) -> Any:
        began()
        return plain(*arguments, **options)

    if outer:
        setattr(
            owner, last, type(inner)(wrapped) if isinstance(inner, classmethod | staticmethod) else wrapped
        )
        return True
    for module in list(sys.modules.values()):
        if (
            getattr(module, "__name__", "").startswith("medunifier_cli")
            and getattr(module, last, None) is inner
        ):
            setattr(module, last, wrapped)
    return True


NUMBERS = {"TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "INT": signal.SIGINT}
