"""Give the trackers of a run what is logged: numbers, pictures, and texts where the recipe asks for them.

Pictures and texts are what a validation has written to the run's `samples/`, with the step in their names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker
from PIL import Image

from medunifier_cli.files import text_lines
from medunifier_cli.recipe.schema_train import LoopConfig, PretrainTrainConfig
from medunifier_cli.run.log import Log
from medunifier_cli.run.record import Run
from medunifier_cli.train.trackers.opening import TENSORBOARD, open_trackers, quiet_stdout, warn_of

TEXTS = "reports-step-{:08d}.jsonl"
"""File of `samples/` with the reports of a validation: lines with `reference` and `hypothesis`."""
COLUMNS = ("key", "reference", "hypothesis")
SINGLE = ("aim", "clearml")
"""Trackers that take a picture under a name, and not a list of pictures as the others do."""
NUMBERS_ALONE = ("aim", "dvclive")
"""Trackers to which Accelerate can give no text; of one it repeats the text in a warning."""


class Tracking:
    """The trackers of this start of a run; none on any rank but the main one.

    Leaving the context after an exception leaves them open: a run that was stopped is not finished.

    Args:
        log: where this rank writes it. Its lines that were cut off are done again, and not logged twice.
        first: steps done before this start.
    """

    def __init__(self, run: Run, settings: LoopConfig, log: Log | None, first: int) -> None:
        self.samples, self._first = run.samples, first
        # a file that an earlier start wrote at the same step is not to be sent by one that asks for none
        self._texts = isinstance(settings, PretrainTrainConfig) and bool(settings.tracker_reports)
        self._sent = log.cut if log is not None else frozenset()
        resumed_at = first if first or self._sent else None
        self.trackers = open_trackers(run, settings, resumed_at) if log is not None else []

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._each(lambda tracker: tracker.finish())

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers under their names, once for each event and step.

        Args:
            event: as in `log.jsonl`.
            step: optimiser steps done.
        """
        self._each(lambda tracker: tracker.log(_named(tracker, numbers), step=step), (event, step))

    def log_samples(self, step: int) -> None:
        """Log the pictures and the reports that the validation of this step has written, if any."""
        if not self.trackers:
            return
        done = ("valid", step)
        for path in sorted(self.samples.glob(f"*-step-{step:08d}.png")):
            name = f"valid/{path.name.partition('-step-')[0]}"
            self._each(lambda tracker, p=path, n=name: _log_picture(tracker, n, p, step), done)  # type: ignore[misc]
        texts = self.samples / TEXTS.format(step)
        if self._texts and texts.exists():
            self._each(lambda tracker: _log_reports(tracker, texts, step), done, quote=False)

    def _each(
        self, give: Callable[[GeneralTracker], Any], event: tuple[str, int] | None = None, quote: bool = True
    ) -> None:
        """Give each tracker something; one that fails is left out from then on."""
        for tracker in tuple(self.trackers):
            # TensorBoard has dropped those of later steps when it was opened
            dropped = tracker.name == TENSORBOARD and event is not None and event[1] > self._first
            if event in self._sent and not dropped:
                continue
            try:
                with quiet_stdout():
                    give(tracker)
            except Exception as error:
                warn_of(tracker.name, error, quote)
                self.trackers.remove(tracker)


def _named(tracker: Any, numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers under names that the tracker takes: MLflow refuses `@`, and with it all numbers of the step."""
    if tracker.name != "mlflow":
        return dict(numbers)
    return {name.replace("@", "_at_"): number for name, number in numbers.items()}


def _log_picture(tracker: Any, name: str, path: Path, step: int) -> None:
    """Log a picture in the way that the tracker has for it; one without any gets none."""
    if tracker.name == "trackio":
        import trackio

        tracker.tracker.log({name: trackio.Image(str(path))}, step=step)
    elif hasattr(tracker, "log_images"):
        with Image.open(path) as picture:
            grey_HW = np.asarray(picture.convert("L"))
        if tracker.name == TENSORBOARD:
            tracker.log_images({name: grey_HW[None, :, :, None]}, step=step, dataformats="NHWC")
        else:
            tracker.log_images({name: grey_HW if tracker.name in SINGLE else [grey_HW]}, step=step)
    elif hasattr(tracker, "log_artifact"):
        tracker.log_artifact(str(path), "samples")


def _log_reports(tracker: Any, path: Path, step: int) -> None:
    """Log reports beside their references, as a table where the tracker has tables."""
    if tracker.name in NUMBERS_ALONE:
        return
    rows = [[str(json.loads(line)[column]) for column in COLUMNS] for line in text_lines(path)]
    name = "valid/reports"
    if hasattr(tracker, "log_table"):
        tracker.log_table(name, columns=list(COLUMNS), data=rows, step=step)
    elif hasattr(tracker, "log_artifact"):
        tracker.log_artifact(str(path), "samples")
    else:
        lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
        cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
        table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        tracker.log({name: _markdown(tracker, table)}, step=step)


def _markdown(tracker: Any, table: str) -> Any:
    if tracker.name != "trackio":
        return table
    import trackio

    return trackio.Markdown(table)
