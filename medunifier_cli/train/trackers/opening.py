"""Open the experiment trackers that a recipe names, under one identity over all starts of a run."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from medunifier_cli.errors import CheckpointError, MuError
from medunifier_cli.files import write_json
from medunifier_cli.parsing import read_json, read_yaml
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.run.record import Run, flatten
from medunifier_cli.terminal.say import say

TENSORBOARD = "tensorboard"
EXTRAS = (TENSORBOARD, "wandb", "trackio", "mlflow")
"""Trackers that are an extra of this package, and whose identity is kept."""
IDENTITY = "trackers.json"
"""File of a run with its identity for trackers: one that is ours, and one that MLflow gave."""
SHOWN = 200
"""Characters of a tracker's own message that a warning quotes."""


def check_trackers(settings: LoopConfig) -> None:
    """Check that Accelerate knows the trackers that a recipe names.

    Raises:
        MuError: it does not know one.
    """
    known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    for name in settings.trackers:
        if name not in known:
            raise MuError(f"train.trackers: {name!r} is no tracker of Accelerate: {', '.join(known)}")


def missing_trackers(settings: LoopConfig) -> dict[str, str]:
    """The trackers that a recipe asks for by name and that are not installed, with what to type."""
    return {
        name: f"pip install {repr(f'medunifier[{name}]') if name in EXTRAS else name}"
        for name in settings.trackers
        if not _installed(name)
    }


def open_trackers(run: Run, settings: LoopConfig, resumed_at: int | None) -> list[GeneralTracker]:
    """The trackers of a recipe, ready for numbers, with the recipe as their configuration.

    One that is not installed, or cannot be opened, costs a warning and no run. To be called on the main rank
    alone: Accelerate opens some trackers on every rank.

    Args:
        resumed_at: steps done where earlier starts have logged later ones, which are done again; else None.
    """
    for name, command in missing_trackers(settings).items():
        say(f"warning: train.trackers: {name} is not installed, so it gets nothing; {command}", always=True)
    names = [name for name in dict.fromkeys(settings.trackers) if _installed(name)]
    # not asked for by name, so not missed either
    if settings.tensorboard and TENSORBOARD not in names and _installed(TENSORBOARD):
        names.append(TENSORBOARD)
    opened = []
    for name in names:
        try:
            with quiet_stdout():
                opened.append(_open(name, run, settings, resumed_at))
        except Exception as error:
            warn_of(name, error)
    return opened


def warn_of(name: str, error: Exception, quote: bool = True) -> None:
    """Warn that a tracker has failed.

    Args:
        quote: the error's own words too; not where the tracker was given texts, which it may repeat.
    """
    words = " ".join(str(error).split()) if quote else ""
    why = f"{type(error).__name__}: {words[:SHOWN]}" if words else type(error).__name__
    say(f"warning: the tracker {name} has failed and gets no more until the next start ({why})", always=True)


def quiet_stdout() -> contextlib.AbstractContextManager[Any]:
    """Send what a tracker prints to stderr: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


def _installed(name: str) -> bool:
    # others than Accelerate's own were registered by a class, which is there
    return name not in LoggerType.list() or name in map(str, get_available_trackers())


def _open(name: str, run: Run, settings: LoopConfig, resumed_at: int | None) -> GeneralTracker:
    identity = _identity(run)
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    arguments = _arguments(name, run, identity, resumed_at)
    if name == TENSORBOARD:
        tracker = kind(TENSORBOARD, str(run.folder), **arguments)
    elif kind.requires_logging_directory:
        tracker = kind(settings.project, str(run.folder), **arguments)
    else:
        tracker = kind(settings.project, **arguments)
    tracker.start()
    _configure(tracker, run, new=name not in identity)
    if name == "mlflow" and name not in identity:
        write_json(run.folder / IDENTITY, {**identity, name: tracker.tracker.info.run_id})
    return tracker  # type: ignore[no-any-return]


def _identity(run: Run) -> dict[str, str]:
    """The identity of a run, the same at each start; a fresh run of the same name has another."""
    path = run.folder / IDENTITY
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(8)})
    return read_json(path, dict[str, str], CheckpointError, "remove it, for a new identity")


def _arguments(name: str, run: Run, identity: Mapping[str, str], resumed_at: int | None) -> dict[str, Any]:
    """What a tracker's own function needs in order to continue what an earlier start has logged."""
    title = run.folder.absolute().name
    if name == TENSORBOARD:
        # readers drop what was logged of the steps that are done again
        return {} if resumed_at is None else {"purge_step": resumed_at + 1}
    if name == "wandb":
        # the console shows paths of this machine, and a progress line that is thousands of lines there
        return {
            "id": identity["id"], "name": title, "resume": "allow", "dir": str(run.folder),
            "settings": {"console": "off"},
        }  # fmt: skip
    if name == "trackio":  # which knows runs by name alone
        return {"name": f"{title}-{identity['id'][:6]}", "resume": "allow"}
    if name == "mlflow":
        return {"run_name": title, "run_id": identity.get(name)}
    return {}


def _configure(tracker: GeneralTracker, run: Run, new: bool) -> None:
    """Store the recipe as the tracker's configuration."""
    settings = _recipe(run.recipe)
    if tracker.name == TENSORBOARD:
        # by hand, as Accelerate would make another TensorBoard run, of no numbers, at each start
        from torch.utils.tensorboard.summary import hparams

        given = {key: value for key, value in settings.items() if value is not None}
        for summary in hparams(given, {"train/total": 0}):  # type: ignore[no-untyped-call]
            tracker.tracker.file_writer.add_summary(summary)
        tracker.tracker.flush()
    elif tracker.name != "mlflow" or new:  # which refuses another value, such as another `train.log_every`
        tracker.store_init_configuration(settings)


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe of a run by dotted key, lists as text: trackers take no lists."""
    flat = flatten(read_yaml(path, dict[str, Any], CheckpointError))
    return {key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in flat.items()}
